"""Dense stores against sklearn, faiss's brute force and the model itself."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

import segue
from segue.decode.speculative.store.base import StoreError
from segue.decode.speculative.store.build import build
from segue.decode.speculative.store.dense import Dense, DenseStore, Projection, pieces
from segue.laws.worlds import network, network_world, toy_world
from segue.models.lm import LM


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 96, size).tolist() for size in (40, 1, 90, 3, 2, 60, 300, 0, 70)]


def made(folder: Path, lm: LM, texts: list[list[int]], **options: object) -> DenseStore:
    return DenseStore.open(build(folder, Dense(**options), lm, texts, list))  # type: ignore[arg-type]


@functools.cache
def bare() -> Any:
    """The same network, untouched by Segue."""
    return network("llama")


def reference(text: list[int]) -> np.ndarray:
    """(T, D) last hidden states by transformers itself."""
    with torch.no_grad():
        out = bare()(input_ids=torch.tensor([text]), output_hidden_states=True)
    return np.asarray(out.hidden_states[-1][0])


def test_keys_are_those_of_sklearns_pipeline(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    """States come from transformers and the projection from sklearn: nothing here is ours but what is tested."""
    texts = [text for text in texts if len(text) < 95]  # transformers has no windows
    store = made(tmp_path / "s", lm, texts, dims=8)
    states = np.concatenate([reference(text)[: len(text) - 2] for text in texts if len(text) > 2])
    pipeline = make_pipeline(StandardScaler(), PCA(8, random_state=0), Normalizer())
    expected = pipeline.fit_transform(states.astype(np.float64))
    assert store.arrays["keys"].shape == (len(states), 8)
    np.testing.assert_allclose(store.arrays["keys"], expected, atol=2e-4)
    fresh = np.concatenate([reference([*text[::-1], 1, 2]) for text in texts if text])
    np.testing.assert_allclose(store.projection(fresh), pipeline.transform(fresh.astype(np.float64)), atol=2e-4)


def test_the_projection_equals_sklearns_to_rounding() -> None:
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24)) + 3).astype(np.float32)
    states[:, 5] = 2.0  # a dimension that says nothing
    pipeline = make_pipeline(StandardScaler(), PCA(10, random_state=0), Normalizer())
    expected = pipeline.fit_transform(states.astype(np.float64))
    np.testing.assert_allclose(Projection.fit(states, 10, 1000)(states), expected, atol=1e-6)
    few = Projection.fit(states, 10, 100)  # fitted to a sample: other directions, the same form
    assert few.components.shape == (10, 24)
    np.testing.assert_allclose(np.linalg.norm(few(states), axis=1), 1, atol=1e-6)


def test_every_position_finds_itself(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    store = made(tmp_path / "s", lm, texts, dims=16)
    assert len(store.places) == sum(max(len(text) - 2, 0) for text in texts)
    begin = 0
    for text in texts:
        for i, state in enumerate(reference(text)[: len(text) - 2] if 2 < len(text) < 95 else []):
            near, places = store.nearest(state, 3)
            assert near[0] == pytest.approx(1.0, abs=1e-5)
            same = places[near > 1 - 1e-5]  # documents that begin alike have the same states there
            assert begin + i in same
            assert (text[i + 1 :] + [-1] * 4)[:4] in store.follow(same + 1, 4).tolist()
        begin += len(text) + 1


@pytest.mark.parametrize("search", ["ivf", "hnsw"])
def test_approximate_search_recalls_what_brute_force_finds(search: str, lm: LM, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 96, 90).tolist() for _ in range(40)]
    exact = made(tmp_path / "flat", lm, texts, dims=16)
    store = made(tmp_path / search, lm, texts, dims=16, search=search)
    assert store.index is not None
    assert "keys" not in store.arrays
    found = 0
    queries = [state for _ in range(10) for state in reference(rng.integers(0, 96, 20).tolist())]
    flat = faiss.IndexFlatIP(16)
    flat.add(np.array(exact.arrays["keys"]))
    for state in queries:
        _, rows = flat.search(exact.projection(state[None]), 10)
        best = set(exact.places[rows[0]].tolist())
        assert set(exact.nearest(state, 10)[1].tolist()) == best
        found += len(best & set(store.nearest(state, 10)[1].tolist()))
    recall = found / (10 * len(queries))
    print(f"recall@10 of {search}: {recall:.3f}")
    assert recall > 0.95


def test_long_documents_are_read_in_windows_that_overlap() -> None:
    text = list(range(50))
    for window in (8, 9, 49, 50, 51):
        read = list(pieces(text, window))
        assert [t for piece, again in read for t in piece[again:]] == text
        assert all(len(piece) <= window and (again == 0 or again >= window // 2) for piece, again in read)
    assert list(pieces([], 8)) == []


def test_another_model_is_refused_with_both_names(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    store = made(tmp_path / "s", lm, texts)
    assert store.lacks(lm) == ""
    other = network_world("llama", seed=3).lm
    with pytest.raises(StoreError, match=r"hidden states of tiny-llama-0 and tiny-llama-3 has others"):
        store.check(other)
    toy = toy_world(96).lm
    assert f"and {toy.name} has others" in store.lacks(toy)
    assert "another tokenizer" in store.lacks(toy_world(5).lm)


def test_the_same_model_in_another_precision_is_accepted(tmp_path: Path) -> None:
    lm = segue.model("mini-draft", dtype="float32").lm
    store = made(tmp_path / "s", lm, [lm.encode("Question: What is the capital of France?\nAnswer: Paris.")])
    assert store.lacks(segue.model("mini-draft", dtype="bfloat16").lm) == ""


def test_too_little_text_and_bad_options_are_told(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs more text"):
        made(tmp_path / "s", lm, [[1, 2], [3]])
    for options, message in [
        ({"dims": 0}, "dims=0 is not allowed: at least 1"),
        ({"search": "lsh"}, "search='lsh' is not allowed: flat, ivf or hnsw"),
        ({"window": 4}, "window=4"),
    ]:
        with pytest.raises(ValueError, match=message):
            Dense(**options)  # type: ignore[arg-type]
