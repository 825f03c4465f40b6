"""A corpus under the states that a model had while it read it: what followed where the model was in a like state.

Key of a position: the last hidden state there, standardised per dimension, projected to its main directions (PCA) and
normalised, so that inner products are cosines. Value: the tokens from there on. The parameters of the projection are
plain arrays: looking up needs numpy and faiss, building sklearn as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from segue.data import CapabilityError, DraftTree, Want
from segue.decode.speculative.store.base import SEPARATOR, Progress, Store
from segue.models.lm import LM

INDEX = "index.faiss"
ROWS = 512  # tokens of one forward while reading
PROBE = 8  # states kept as they are, by which the model is known again
ALIKE = 0.3  # relative distance of those states up to which it is the same model, in another precision perhaps
CHUNK = 65_536  # states projected at a time


@dataclass(frozen=True)
class Dense:
    """How a dense store is built."""

    kind: ClassVar[str] = "dense"
    transient: ClassVar[tuple[str, ...]] = ("states",)

    dims: int = 64  # d': main directions kept of a state
    search: str = "flat"  # flat (exact), or for large stores ivf or hnsw (approximate)
    window: int = 512  # tokens that are read at a time; of a longer document half a window is read again
    sample: int = 200_000  # states that the projection is fitted to

    def __post_init__(self) -> None:
        for name, least in (("dims", 1), ("window", 8), ("sample", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {least}")
        if self.search not in ("flat", "ivf", "hnsw"):
            raise ValueError(f"search={self.search!r} is not allowed: flat, ivf or hnsw")
        for module, package in (("faiss", "faiss-cpu"), ("sklearn", "scikit-learn")):
            if find_spec(module) is None:
                raise ValueError(f"a dense store needs {package}: pip install 'segue[retrieval]'")

    def read(self, lm: LM, documents: list[list[int]]) -> dict[str, NDArray[Any]]:
        """(n, D) states of every position that has two tokens behind it: one to compare and one to propose."""
        if lm.start_ids:
            raise CapabilityError(
                f"{lm.name} is an encoder-decoder, whose states belong to what its encoder reads: use a suffix store"
            )
        rows = [states[: len(text) - 2] for text, states in zip(documents, self._states(lm, documents), strict=True)]
        return {"states": np.concatenate(rows)}

    def finish(self, folder: Path, tokens: NDArray[np.int32], progress: Progress) -> dict[str, NDArray[Any]]:
        places = keyed(tokens)
        if len(places) < 2:
            raise ValueError("a dense store needs more text: no two positions have two tokens behind them")
        states = np.memmap(folder / "states.bin", dtype=np.float32, mode="r").reshape(len(places), -1)
        projection = Projection.fit(states, self.dims, self.sample)
        keys = np.empty((len(states), projection.components.shape[0]), dtype=np.float32)
        for begin in range(0, len(states), CHUNK):
            progress("projecting", begin, len(states))
            keys[begin : begin + CHUNK] = projection(states[begin : begin + CHUNK])
        progress("projecting", len(states), len(states))
        arrays = {"places": places, "probe": np.array(states[: self._probe(tokens)]), **vars(projection)}
        if self.search == "flat":
            return arrays | {"keys": keys}
        progress("indexing", 0, len(keys))
        _index(self.search, keys, folder / INDEX)
        progress("indexing", len(keys), len(keys))
        return arrays

    def _probe(self, tokens: NDArray[np.int32]) -> int:
        """How many of the first states belong to the first document that has any."""
        places = keyed(tokens)[:PROBE]
        return int((places == places[0] + np.arange(len(places))).sum())

    def _states(self, lm: LM, documents: list[list[int]]) -> list[NDArray[np.float32]]:
        """(T, D) last hidden states of every document."""
        window = min(self.window, lm.context_length - 1)
        found: list[list[NDArray[np.float32]]] = [[] for _ in documents]
        pack: list[tuple[int, list[int], int]] = []  # document, tokens of a piece, those read before
        for number, text in enumerate(documents):
            for piece, again in pieces(text, window):
                if pack and sum(len(p) for _, p, _ in pack) + len(piece) > ROWS:
                    read_pack(lm, pack, found)
                pack.append((number, piece, again))
        read_pack(lm, pack, found)
        width = next((rows[0].shape[1] for rows in found if rows), 0)
        empty = np.empty((0, width), dtype=np.float32)
        return [np.concatenate([empty, *rows]) for rows in found]


def pieces(text: list[int], window: int) -> Iterator[tuple[list[int], int]]:
    """A document in windows that overlap by half, and how many tokens of each were read before."""
    begin, again = 0, 0
    while again < len(text) - begin:
        yield text[begin : begin + window], again
        again = window - (window // 2)
        begin += window // 2


def read_pack(lm: LM, pack: list[tuple[int, list[int], int]], found: list[list[NDArray[np.float32]]]) -> None:
    """Read pieces in one forward and add the states of their new tokens to those of their document."""
    if not pack:
        return
    want = Want(logits="none", hidden=(-1,))
    sequences = [lm.sequence() for _ in pack]
    scores = lm.forward([(s, DraftTree.chain(p), want) for s, (_, p, _) in zip(sequences, pack, strict=True)])
    for (number, _, again), mine in zip(pack, scores, strict=True):
        found[number].append(mine.hidden[-1].float().cpu().numpy()[again:])
    for sequence in sequences:
        sequence.release()
    pack.clear()


@dataclass(frozen=True)
class Projection:
    """z-score per dimension, main directions, unit length."""

    mean: NDArray[np.float64]  # (D,)
    scale: NDArray[np.float64]  # (D,)
    centre: NDArray[np.float64]  # (D,) of the standardised states
    components: NDArray[np.float64]  # (d', D)

    @classmethod
    def fit(cls, states: NDArray[np.float32], dims: int, sample: int) -> Projection:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        rows = states
        if len(states) > sample:
            rows = states[np.sort(np.random.default_rng(0).choice(len(states), sample, replace=False))]
        scaler = StandardScaler().fit(np.asarray(rows, dtype=np.float64))
        pca = PCA(min(dims, *rows.shape), random_state=0).fit(scaler.transform(np.asarray(rows, dtype=np.float64)))
        return cls(scaler.mean_, scaler.scale_, pca.mean_, pca.components_)

    def __call__(self, states: NDArray[Any]) -> NDArray[np.float32]:
        """(n, d') keys of states (n, D)."""
        keys = ((states - self.mean) / self.scale - self.centre) @ self.components.T
        length = np.linalg.norm(keys, axis=1, keepdims=True)
        return np.asarray(keys / np.where(length > 0, length, 1.0), dtype=np.float32)


class DenseStore(Store):
    """Finds the positions of the corpus at which the model was in a like state."""

    kind = "dense"

    @cached_property
    def projection(self) -> Projection:
        return Projection(*(np.asarray(self.arrays[name]) for name in ("mean", "scale", "centre", "components")))

    def nearest(self, state: NDArray[Any], hits: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and positions in the token stream (k,) of the nearest keys to a state (D,), nearest first."""
        import faiss

        key, hits = self.projection(state[None]), min(hits, len(self.places))
        if self.index is None:
            near, rows = faiss.knn(key, self.arrays["keys"], hits, metric=faiss.METRIC_INNER_PRODUCT)
        else:
            near, rows = self.index.search(key, hits)
        known = rows[0] >= 0
        return near[0][known], np.asarray(self.places[rows[0][known]], dtype=np.int64)

    @property
    def places(self) -> NDArray[np.int64]:
        """The position in the token stream of every key."""
        return self.arrays["places"]

    @cached_property
    def index(self) -> Any:
        """faiss's index, memory-mapped as far as faiss can; None where the keys themselves are searched."""
        if "keys" in self.arrays:
            return None
        import faiss

        ivf = self.meta["options"]["search"] == "ivf"
        mapped = faiss.IO_FLAG_MMAP if ivf else getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        return faiss.read_index(str(self.path / INDEX), mapped | faiss.IO_FLAG_READ_ONLY)

    @cached_property
    def seconds(self) -> float:
        """What one look-up takes, measured once."""
        state = np.asarray(self.arrays["probe"][0])
        took = []
        for _ in range(5):
            begin = time.perf_counter()
            self.nearest(state, 10)
            took.append(time.perf_counter() - begin)
        return min(took)

    @cached_property
    def _known(self) -> WeakKeyDictionary[LM, str]:
        return WeakKeyDictionary()

    def lacks(self, lm: LM) -> str:
        """States are told apart by the states themselves: a model of another name, precision or backend will do as
        long as it has the same ones."""
        if lm not in self._known:
            self._known[lm] = super().lacks(lm) or self._strange(lm)
        return self._known[lm]

    def _strange(self, lm: LM) -> str:
        probe = np.asarray(self.arrays["probe"])
        begin = int(self.places[0])
        found: list[list[NDArray[np.float32]]] = [[]]
        try:
            read_pack(lm, [(0, self.tokens[begin : begin + len(probe)].tolist(), 0)], found)
        except CapabilityError as error:
            return str(error)
        states = found[0][0]
        if states.shape == probe.shape and np.linalg.norm(states - probe) <= ALIKE * np.linalg.norm(probe):
            return ""
        return (
            f"{self.path} was built from the hidden states of {self.meta['model']['name']} and {lm.name} has others: "
            f"build one with `segue index build --kind dense -m` for {lm.name}"
        )


def keyed(tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """Positions of a token stream that have two tokens of their document behind them."""
    ends = tokens == SEPARATOR
    near = ends.copy()
    near[:-1] |= ends[1:]
    near[:-2] |= ends[2:]
    return np.flatnonzero(~near)


def _index(search: str, keys: NDArray[np.float32], file: Path) -> None:
    import faiss

    n, dims = keys.shape
    index: Any
    if search == "hnsw":
        index = faiss.IndexHNSWFlat(dims, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    else:
        lists = max(1, min(int(4 * n**0.5), n // 39))  # faiss wants 39 keys a list to find their centres
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dims), dims, lists, faiss.METRIC_INNER_PRODUCT)
        index.nprobe = max(1, min(lists, 8 + lists // 8))
        index.train(keys)
    index.add(keys)
    faiss.write_index(index, str(file))
