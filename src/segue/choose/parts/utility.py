"""Utilities: what one text is worth when another one is right. They score sets of texts, each pair once.

`chrf` and `bleu` are sacrebleu's sentence scores, 0 to 100; `embedding` is the cosine of sentence vectors; `judge` asks
a language model (choose/parts/judge.py); `module:function` is anybody's own, which gets two lists of texts and gives a
matrix.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from segue.choose.parts.rerank import Drawn
from segue.models.run import Decoder, Run

Matrix = NDArray[np.float64]
EXTRA = "pip install 'segue[choose]'"


@dataclass(frozen=True)
class Utility:
    """Scores candidates against references. `matrix` is all that most kinds define."""

    def matrix(self, candidates: Seq[str], references: Seq[str]) -> Matrix:
        """(n, m): what each candidate is worth where each reference is right; more is better."""
        raise NotImplementedError

    def scored(self, run: Run, candidates: Seq[Drawn], references: Seq[Drawn], wanted: Matrix) -> Decoder[Matrix]:
        """The same for drawn answers, within a run. Entries whose `wanted` (n, m) is 0 are not needed."""
        yield from ()
        run.stats.scorer_calls += int((wanted > 0).sum())
        return self.matrix([c.words for c in candidates], [r.words for r in references])


@dataclass(frozen=True)
class Chrf(Utility):
    """Sentence chrF (Popovic 2015) as sacrebleu computes it, all pairs in Rust."""

    def matrix(self, candidates: Seq[str], references: Seq[str]) -> Matrix:
        pairwise = _optional("fastchrf", "utility='chrf'").pairwise_chrf
        return np.array(pairwise([list(candidates)], [list(references)])[0], dtype=np.float64)


@dataclass(frozen=True)
class Bleu(Utility):
    """Sentence BLEU by sacrebleu: exponential smoothing, effective order."""

    def matrix(self, candidates: Seq[str], references: Seq[str]) -> Matrix:
        bleu = _optional("sacrebleu.metrics", "utility='bleu'").BLEU(effective_order=True)
        rows = [[bleu.sentence_score(c, [r]).score for r in references] for c in candidates]
        return np.array(rows, dtype=np.float64)


@dataclass(frozen=True)
class Embedding(Utility):
    """Cosine of sentence vectors; of the packaged all-MiniLM-L6-v2 unless a folder is given."""

    path: str = ""

    def matrix(self, candidates: Seq[str], references: Seq[str]) -> Matrix:
        from segue.models.embedding import encoder

        encode = encoder(self.path)
        texts = list(dict.fromkeys([*candidates, *references]))
        rows = dict(zip(texts, encode(texts), strict=True))  # every text once, however many pairs it is in
        mine, theirs = (torch.stack([rows[t] for t in part]).double() for part in (candidates, references))
        return cast("Matrix", (mine @ theirs.T).numpy())


@dataclass(frozen=True)
class Own(Utility):
    """A function `module:function` of two lists of texts that gives a matrix (n, m)."""

    place: str

    def matrix(self, candidates: Seq[str], references: Seq[str]) -> Matrix:
        found = np.asarray(imported(self.place)(list(candidates), list(references)), dtype=np.float64)
        if found.shape != (len(candidates), len(references)) or not np.isfinite(found).all():
            raise ValueError(
                f"{self.place} gave numbers of shape {found.shape}, where a finite matrix of {len(candidates)} "
                f"candidates by {len(references)} references is needed"
            )
        return found


def named(utility: str | Utility) -> Utility:
    """A utility from its name; ValueError with the nearest name where there is none."""
    from segue.choose.parts.judge import Judge

    kinds: dict[str, type[Utility]] = {"chrf": Chrf, "bleu": Bleu, "embedding": Embedding, "judge": Judge}
    if isinstance(utility, Utility):
        return utility
    if not isinstance(utility, str):
        raise ValueError(
            f"utility={utility!r} is not allowed: a name, or an object with matrix(candidates, references)"
        )
    if ":" in utility:
        return Own(utility)
    if utility not in kinds:
        near = difflib.get_close_matches(utility, kinds, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"{', '.join(kinds)}, or module:function"
        raise ValueError(f"utility={utility!r} is not known: {hint}")
    return kinds[utility]()


def expected(
    run: Run, utility: Utility, drawn: Seq[Drawn], *, references: int = 0, itself: bool = True
) -> Decoder[Matrix]:
    """Give every answer its mean utility against the others as its score; the matrix (n, m) comes back.

    `references`: so many of the draws, taken at random without replacement, stand for all (0: all of them). `itself`: a
    draw is a reference for itself as well. Sums are exactly rounded, so that no order of the draws shows.
    """
    counts = _subset(run, drawn, references)
    columns = [j for j, count in enumerate(counts) if count]
    weights = np.array([[float(counts[j]) for j in columns] for _ in drawn])  # (n, m)
    if not itself:
        for place, j in enumerate(columns):
            weights[j, place] -= 1
    judged = [drawn[j] for j in columns]
    utilities = yield from utility.scored(run, drawn, judged, weights)
    for one, row, weight in zip(drawn, utilities.tolist(), weights.tolist(), strict=True):
        total = sum(weight)
        one.score = math.fsum(u * w for u, w in zip(row, weight, strict=True) if w) / total if total else 0.0
    return utilities


def _subset(run: Run, drawn: Seq[Drawn], references: int) -> list[int]:
    """How many references each answer stands for."""
    counts = [one.count for one in drawn]
    if not references or references >= sum(counts):
        return counts
    taken = [0] * len(counts)
    for _ in range(references):
        left = torch.tensor([count - used for count, used in zip(counts, taken, strict=True)], dtype=torch.float64)
        taken[run.chance.index(left / left.sum())] += 1
    return taken


def imported(place: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{place!r} cannot be imported: {error}") from None
    if not callable(function):
        raise ValueError(f"{place!r} is not a function")
    return cast("Callable[..., Any]", function)


def _optional(module: str, use: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ValueError(f"{use} needs the package {module.partition('.')[0]}: {EXTRA}") from None
