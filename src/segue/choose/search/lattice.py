"""Lattices: thousands of texts for the price of a beam, by finishing what was begun and sharing what goes on alike.

1. Read the prompt. Open texts wait in a heap by log-probability / length ** length_penalty, at first the `k` likeliest
   first tokens.
2. Take up the best of them and go on greedily until the text ends; at every position the other `k` - 1 likeliest tokens
   are put into the heap. So everything that is paid for becomes part of a whole text.
3. Whenever a text gets a token: where its last `ngram` tokens are those of an earlier text of about the same length, it
   merges with that one and needs not be read on. RCB shares what follows, ZIP also the common tokens before. Texts that
   wait behind a node that was merged away are dropped.
4. When `calls` tokens have been read, the graph of all this is the lattice: every path to an end is a text.
5. The best texts by the log-probabilities of their edges, and the greedy one, are read by the model once more, since a
   path through a merged node was not scored as a whole: the candidates stand in the order of what they are worth.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.best_first import SPARE, BestFirst, likeliest
from segue.choose.parts.dag import Dag, Path
from segue.choose.parts.hypothesis import Hypothesis, deliver, first
from segue.choose.parts.recombine import RULES, Recombination
from segue.choose.parts.reread import reread
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class Lattice:
    """Everything that the model finds likely, as a graph; its best text is never worse than the greedy one."""

    card = Card(
        paper=Paper(id="2112.07660", title="Massive-scale Decoding for Text Generation using Lattices", year=2022),
        claim=Claim(
            value=None,
            unit="none",
            baseline="beam search",
            setting="hundreds to thousands of diverse, grammatical texts per lattice (summaries, translations)",
        ),
        exact=(SameTarget(target="lattice"),),
        departs="several texts are followed at once, so that forwards batch (lanes=1 is the paper's order); merging "
        "asks that the request lets both texts go on alike (under a JSON Schema, regex or grammar none do); answers "
        "are scored anew by the model",
        check="translation",
    )

    calls: int = 256  # tokens that are read, the prompt apart; the greedy text is finished in any case
    k: int = 5  # likeliest tokens of a position that are considered
    merge: str = "zip"  # texts that end alike: zip (share also what precedes), rcb (only what follows) or none
    ngram: int = 4  # tokens that must be the same for a merge
    gap: int = 5  # the lengths of texts that merge differ by less
    length_penalty: float = 0.75  # texts are ranked by log-probability / length ** this; 0 by the sum
    lanes: int = 4  # texts followed at once, in one forward; 1 is the paper's order
    results: int = 5  # candidates
    variants: bool = False  # consider also tokens that differ from a likelier one by case or blanks only

    def __post_init__(self) -> None:
        for name in ("calls", "k", "ngram", "gap", "lanes", "results"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 1")
        if self.merge not in RULES:
            raise ValueError(f"merge={self.merge!r} is not allowed: {', '.join(RULES)}")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(
                f"length_penalty={self.length_penalty} is not allowed: from -10 to 10 (0 is the plain sum)"
            )

    @property
    def sequences(self) -> int:
        """Sequences that a run may hold at a time."""
        return max(self.lanes + SPARE, self.results + 1)

    def run(self, run: Run) -> Decoder[None]:
        root = yield from first(run)
        row, root.state = root.row, 0
        assert row is not None
        dag = Dag()
        recombination = Recombination(run, dag, self.merge, self.ngram, self.gap)
        search = BestFirst(
            run,
            lambda hypothesis: self._children(run, hypothesis),
            self.calls,
            lanes=self.lanes,
            dive=True,
            worth=lambda hypothesis: self._worth(hypothesis.logp, len(hypothesis.tokens)),
            admit=lambda hypothesis: recombination.place(hypothesis, keep=hypothesis is search.opening),
        )
        yield from search.search(root)
        chosen = self._chosen(dag, run.max_tokens, search.opening)
        answers = yield from self._answers(run, row, chosen)
        self._report(run, dag, search, answers)
        deliver(run, [hypothesis for _, hypothesis in answers[: self.results]])

    def _children(self, run: Run, hypothesis: Hypothesis) -> list[Hypothesis]:
        children = likeliest(run, hypothesis, self.k)
        if self.variants or run.lm.tokenizer is None:
            return children
        seen: set[str] = set()
        found = []
        for child in children:
            word = run.lm.decode(child.tokens[-1:]).strip().lower()
            if not word or word not in seen:
                found.append(child)
            seen.add(word)
        return found

    def _worth(self, logp: float, length: int) -> float:
        worth: float = logp / length**self.length_penalty
        return worth

    def _chosen(self, dag: Dag, most: int, greedy: Hypothesis | None) -> dict[tuple[int, ...], float]:
        """The texts to be read once more, with the log-probability that the lattice states of each."""
        chosen: dict[tuple[int, ...], float] = {}
        if greedy is not None and greedy.reason is not None:
            chosen[tuple(greedy.tokens)] = greedy.logp
        wanted, count = self.results + len(chosen), self.results + 1
        while len(chosen) < wanted:
            paths: list[Path] = dag.best(count, most, self._worth)
            for path in paths:  # several paths may be spelled alike: the best comes first
                if len(chosen) < wanted:
                    chosen.setdefault(path.tokens, path.logp)
            if len(paths) < count:
                break
            count *= 2
        return chosen

    def _answers(
        self, run: Run, row: Tensor, chosen: dict[tuple[int, ...], float]
    ) -> Decoder[list[tuple[float, Hypothesis]]]:
        """The chosen texts that the request allows, the best first, each with what the lattice stated of it."""
        read = yield from reread(run, row, chosen)
        answers = [(stated, h) for stated, h in zip(chosen.values(), read, strict=True) if h is not None]
        for _, hypothesis in answers:
            hypothesis.score = self._worth(hypothesis.logp, len(hypothesis.tokens))
        return sorted(answers, key=lambda pair: -pair[1].score)

    def _report(self, run: Run, dag: Dag, search: BestFirst, answers: list[tuple[float, Hypothesis]]) -> None:
        """What was found, for the trace: the lattice itself, its size, and how far off the stated figures are."""
        most = run.max_tokens
        paths, texts = dag.paths(most), dag.texts(most)
        off = [abs(stated - h.logp) for stated, h in answers]
        run.trace.append(
            {
                "texts": texts,
                "paths": paths,
                "nodes": len(dag) - 1,
                "merges": dag.merges,
                "calls": search.calls,
                "finished": len(search.finished),
                "open": search.most_open,
                "stated": [{"stated": stated, "logp": h.logp} for stated, h in answers],
                "off_mean": sum(off) / max(len(off), 1),
                "most": most,
                "lattice": dag.as_dict(most),
            }
        )
        told = f"{texts} texts" if texts is not None else f"{paths} paths"
        run.stats.note = f"{told} on {len(dag) - 1} nodes, {dag.merges} merges"
