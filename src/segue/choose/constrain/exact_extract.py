"""Exact extraction: the likeliest span of a passage as the answer, among all of them, not the one that greed finds.

1. Read the prompt. The first tokens' costs l(i) = -log p(c_i | prompt) of all places i come from its last row.
2. Take the places in the order of l(i). Cost only grows along a span, so that a place whose first token alone costs as
   much as the best span so far (per token of the longest span, where costs are divided by length) ends the search.
3. Several places at a time: score the trie of their next m passage tokens in one forward over the prompt's past.
4. Span i..j costs sum of -log p of its tokens and -log of the mass that ends the answer behind it (end of text, stop
   tokens, `ends`); or that divided by the number of what was scored.
5. The answer is the cheapest span; at a temperature a span is drawn from exp(-cost / temperature).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.hypothesis import text_of
from segue.data import Candidate, DraftTree, Scores, Want
from segue.models.constraint import spelling
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Prefill, Run
from segue.models.sequence import Mark

ROWS = 256  # nodes scored in one forward, about


class Span(NamedTuple):
    """Passage tokens start..stop-1 as an answer."""

    cost: float  # that spans are ranked by
    start: int
    stop: int
    logp: float  # of its tokens, without the end


class Table(NamedTuple):
    """A scored trie."""

    rows: Tensor  # (n, V) log-probabilities after every node
    children: dict[tuple[int, int], int]  # node and token -> node
    ends: list[float]  # log of the mass that ends the answer behind every node

    @classmethod
    def of(cls, scores: Scores, tree: DraftTree, ends: list[int]) -> Table:
        rows = scores.logits.float().log_softmax(-1)
        children = {(tree.parents[n], tree.tokens[n]): n for n in range(1, len(tree))}
        return cls(rows, children, rows[:, ends].logsumexp(-1).tolist() if ends else [0.0] * len(tree))


@dataclass(frozen=True)
class ExactExtract:
    """The answer stands in the passage, word for word, and no other span is likelier."""

    card = Card(
        paper=Paper(
            id="2108.05857",
            title="How Optimal is Greedy Decoding for Extractive Question Answering?",
            year=2021,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="greedy",
            setting="T5 on extractive QA: clearly better without examples, equal after some training",
        ),
        exact=(SameTarget(target="exact_extract"),),
        departs="places are skipped whose first token rules them out, which changes nothing but the cost; decoders "
        "alone end an answer with a set of tokens, where T5 has its sentinel; a temperature draws from the spans",
    )

    passage: str = ""  # text to extract from; empty takes the prompt itself (of an encoder-decoder its source)
    longest: int = 30  # m: tokens of a span at most
    ends: str = "\n"  # texts of one token, separated by |, that end an answer besides the end of text; T5: <extra_id_1>
    start: str = ""  # written before the answer; T5: <extra_id_0>
    normalise: bool = False  # divide a span's cost by the number of its tokens and its end
    spans: int = 5  # candidates that are kept, best first

    def __post_init__(self) -> None:
        for name in ("longest", "spans"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def run(self, run: Run) -> Decoder[None]:
        passage, ends = self._passage(run), self._ends(run)
        scores = yield from run.prefill()
        last = run.ids[-1]
        if self.start:
            written = run.lm.encode(self.start, special=False)
            scores = yield Prefill(run.sequence, written, Want(logits="last"))
            last = written[-1]
        # The trees hang from the last token, which is read again with each.
        mark = Mark(len(run.sequence) - 1, last)
        first = -scores.row(-1).float().log_softmax(-1)
        longest = min(self.longest, run.max_tokens)
        best: list[Span] = []
        kept = len(passage) * longest if run.settings.temperature else self.spans
        for places in self._chunks(passage, first, longest, run.lm):
            bound = best[-1].cost if len(best) >= kept else math.inf
            places = [i for i in places if self._least(float(first[passage[i]]), longest) <= bound]
            if not places:
                break
            paths = [passage[i : i + longest] for i in places]
            tree = DraftTree.from_paths(last, paths, source="exact_extract")
            run.sequence.rollback(mark)
            found = yield Forward(run.sequence, tree, Want())
            run.stats.scorer_calls += sum(map(len, paths))
            table = Table.of(found, tree, ends)
            for place, path in zip(places, paths, strict=True):
                best += self._spans(table, place, path, bool(ends))
            best = sorted(best)[:kept]
        self._deliver(run, passage, best)

    def _passage(self, run: Run) -> list[int]:
        if self.passage:
            return spelling(self.passage, run.lm)
        own = run.source or run.ids
        special = set(getattr(run.lm.tokenizer, "all_special_ids", ())) | run.lm.eos_ids
        passage = [token for token in own if token not in special]
        if not passage:
            raise ValueError("the prompt has no text to extract from: give passage=TEXT, or a longer prompt")
        return passage

    def _ends(self, run: Run) -> list[int]:
        ends = set(run.lm.eos_ids) | set(run.settings.stop_tokens)
        for text in self.ends.split("|") if run.lm.tokenizer is not None else ():
            ids = spelling(text, run.lm) if text else []
            if len(ids) > 1:
                raise ValueError(f"ends: {text!r} is {len(ids)} tokens of {run.lm.name}: an end must be a single one")
            ends |= set(ids)
        return sorted(ends)

    def _least(self, first: float, longest: int) -> float:
        """What a span must cost whose first token costs so much."""
        return first / (longest + 1) if self.normalise else first

    def _chunks(self, passage: list[int], first: Tensor, longest: int, lm: LM) -> Iterator[list[int]]:
        """Places in the order of their first tokens' cost, as many at a time as one forward takes."""
        order = sorted(range(len(passage)), key=lambda i: float(first[passage[i]]))
        size = max(ROWS // longest, 1)
        size = min(size, lm.most_leaves or size)
        for at in range(0, len(order), size):
            yield order[at : at + size]

    def _spans(self, table: Table, start: int, path: list[int], ended: bool) -> Iterator[Span]:
        """All spans from one place."""
        node, logp = 0, 0.0
        for count, token in enumerate(path, 1):
            logp += float(table.rows[node, token])
            node = table.children[node, token]
            cost = -(logp + table.ends[node])
            yield Span(cost / (count + ended) if self.normalise else cost, start, start + count, logp)

    def _deliver(self, run: Run, passage: list[int], best: list[Span]) -> None:
        temperature = run.settings.temperature
        chosen = 0
        if temperature:
            costs = torch.tensor([span.cost for span in best], dtype=torch.float64)
            chosen = run.chance.index(torch.softmax(-costs / temperature, 0))
        ranked = [best[chosen], *best[:chosen], *best[chosen + 1 :]][: self.spans]
        candidates = []
        for span in ranked:
            tokens = passage[span.start : span.stop]
            candidates.append(Candidate(text_of(run, tokens), tokens, span.logp, -span.cost))
        run.stats.note = f"the best of {len(passage)} places"
        run.conclude(candidates)
        run.finish_reason = "stop"  # a span as long as the limit is whole all the same
