"""German-English sentence pairs, and the order in which training reads them.

The held-out pairs are those of the data set's own valid and test parts, one for each German sentence. Its parts share
no English sentence, but the same German one may well stand in two of them; so of the training part every pair goes
that is a near-duplicate of a held-out one (`kin`).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from segue.train.corpus import rows

POOL = 4096  # pairs sorted by length together, so that a batch has little padding


@dataclass(frozen=True)
class Pair:
    """A sentence and its translation."""

    source: str
    target: str


def kin(text: str) -> set[str]:
    """Marks of a sentence; two sentences that share one are near-duplicates.

    They then have the same words in any order, or differ by one character put in, left out or exchanged; case and
    punctuation do not count.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(c if c.isalnum() else " " for c in plain.replace("'", "")).split()
    line = " ".join(words)
    return {"words " + " ".join(sorted(words)), line, *(line[:i] + line[i + 1 :] for i in range(len(line)))}


def heldout_pairs(data: Path, part: str) -> list[Pair]:
    """The pairs of "valid" or "test", the first of each German sentence."""
    found: dict[str, Pair] = {}
    for pair in _tatoeba(data, part):
        found.setdefault(pair.source, pair)
    return list(found.values())


def training_pairs(data: Path) -> list[Pair]:
    """The training part without near-duplicates of held-out sentences."""
    kept_out: set[str] = set()
    for part in ("valid", "test"):
        for pair in heldout_pairs(data, part):
            kept_out |= kin(pair.source)
    pairs = [pair for pair in _tatoeba(data, "train") if not kept_out & kin(pair.source)]
    if not pairs:
        raise ValueError(f"no sentence pairs to train on under {data / 'tatoeba_de_en'}; check the data folder")
    return pairs


def news_pairs(data: Path) -> list[Pair]:
    """NTREX news: far from what is trained on, for an honest second figure. Empty where the data set is not there."""
    path = data / "ntrex" / "test.jsonl.zst"
    return [Pair(row["de"], row["en"]) for row in rows(path)] if path.exists() else []


def _tatoeba(data: Path, part: str) -> Iterable[Pair]:
    for row in rows(data / "tatoeba_de_en" / f"{part}.jsonl.zst"):
        for german in row["de"]:
            yield Pair(german, row["en"])


@dataclass(frozen=True)
class Batch:
    """Token pairs of about one length, padded."""

    source: torch.Tensor  # (B, S)
    seen: torch.Tensor  # (B, S), 1 where there is a source token
    target: torch.Tensor  # (B, T), ends with the end of text

    @property
    def rows(self) -> int:
        return len(self.source)


def pad(lines: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """Lines of tokens as one tensor (B, longest), padded at their ends."""
    longest = max(map(len, lines))
    return torch.tensor([[*line, *[padding] * (longest - len(line))] for line in lines])


class PairReader:
    """Batches of pairs, each pair once an epoch; their order is a function of the seed and of `place`."""

    def __init__(
        self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], micro: int, padding: int, seed: int
    ) -> None:
        """`micro`: target tokens in a batch, its padding included."""
        self.sources, self.targets = sources, targets
        self.micro, self.padding, self.seed = micro, padding, seed
        self.place = {"epoch": 0, "batch": 0}  # of the next batch
        self._planned: tuple[int, list[list[int]]] = (-1, [])

    def batch(self) -> Batch:
        plan = self._plan(self.place["epoch"])
        chosen = plan[self.place["batch"]]
        last = self.place["batch"] + 1 == len(plan)
        self.place = {"epoch": self.place["epoch"] + last, "batch": 0 if last else self.place["batch"] + 1}
        source = pad([self.sources[i] for i in chosen], self.padding)
        target = pad([self.targets[i] for i in chosen], self.padding)
        return Batch(source, (source != self.padding).long(), target)

    def epochs(self) -> float:
        """How often each pair was read so far."""
        return self.place["epoch"] + self.place["batch"] / len(self._plan(self.place["epoch"]))

    def _plan(self, epoch: int) -> list[list[int]]:
        """The pairs of each batch of an epoch: pools of shuffled pairs, sorted and cut, and shuffled again."""
        if self._planned[0] != epoch:
            order = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
            shuffled = torch.randperm(len(self.sources), generator=order).tolist()
            batches: list[list[int]] = []
            for start in range(0, len(shuffled), POOL):
                pool = sorted(
                    shuffled[start : start + POOL], key=lambda i: (len(self.targets[i]), len(self.sources[i]))
                )
                batches += self._cut(pool)
            mixed = torch.randperm(len(batches), generator=order).tolist()
            self._planned = (epoch, [batches[i] for i in mixed])
        return self._planned[1]

    def _lengths(self, i: int) -> tuple[int, int]:
        return len(self.targets[i]), len(self.sources[i])

    def _cut(self, pool: Sequence[int]) -> list[list[int]]:
        """Pairs sorted by length, cut so that a batch has at most `micro` target tokens."""
        batches: list[list[int]] = [[]]
        for i in pool:
            if batches[-1] and (len(batches[-1]) + 1) * len(self.targets[i]) > self.micro:
                batches.append([])
            batches[-1].append(i)
        return batches
