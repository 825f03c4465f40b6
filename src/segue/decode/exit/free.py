"""FREE: tokens that the first layers are sure of are given out early, and read by the others in one forward later on.

1. A token runs through the first `exit` layers; the model's norm and head make a shallow guess of what follows. The
   model was tuned to guess well there.
2. Where the guess's probability is more than `threshold` above the second best, it is the next token; its state waits.
3. Otherwise all states that wait run through the other layers together (synchronized parallel decoding): the rows of
   all layers are computed, never copied, and the last one's logits give the next token.
4. threshold=0 adapts: every deep forward shows which shallow guesses were right; two Beta distributions of their
   confidences say from where on a guess is right with a chance above `zeta`.
5. exact=true holds the early tokens back until the deep forward has agreed with them: then it is lossless.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

from torch import Tensor

from segue.card import Card, Claim, Limit, Paper
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.draft import FirstLayers
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Request, Run
from segue.ops.confidence import threshold

MOST_SEEN = 300  # guesses that the threshold is learned from
BEGIN = 0.9  # the threshold until enough is known
LONGEST = 16  # tokens that wait at a time


@dataclass
class Shallow:
    """Of one run: where it exits, what its guesses were worth, and the round's draft."""

    exit: int
    bar: float
    confidences: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    draft: FirstLayers | None = None
    guessed: list[float] = field(default_factory=list)  # confidences of the round's guesses

    def learn(self, confidences: list[float], right: list[bool], zeta: float) -> None:
        if len(self.right) < MOST_SEEN:
            self.confidences += confidences
            self.right += right
            self.bar = threshold(self.confidences, self.right, zeta) or self.bar


@dataclass(frozen=True)
class Free(Speculative):
    """Early exits without missing rows: lossy and adaptive, or lossless as its own draft."""

    card = Card(
        paper=Paper(
            id="2310.05424",
            title="Fast and Robust Early-Exiting Framework for Autoregressive Language Models with Synchronized "
            "Parallel Decoding",
            year=2023,
        ),
        claim=Claim(value=None, unit="none", baseline="CALM", setting="much faster at equal quality, T5 to 3B"),
        exact=(Limit(knob="threshold", exact_at=1.0),),
        trains="the model",
        needs=("logits", "hidden states", "a choice of layers"),
        departs="decoders alone; the lossless mode is ours; the mixture is of what was seen to be right and wrong; the "
        "tuning's distance of states is relative to their size",
        check="spec",
    )

    free = False

    exit: int = 0  # layers before the exit; 0: those that the model was tuned with, or a third
    threshold: float = 0.9  # margin of the best guess from which it is taken; 1 takes none (exact), 0 adapts
    zeta: float = 0.4  # chance of being right that an adapted threshold stands for
    exact: bool = False  # early tokens wait until all layers agree

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit < 0:
            raise ValueError(f"exit={self.exit} is not allowed: a number of layers, or 0 for the model's own")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is not allowed: from 0 (adapts) to 1 (exact)")
        if not 0 < self.zeta < 1:
            raise ValueError(f"zeta={self.zeta} is not allowed: between 0 and 1")

    def layers(self, lm: LM) -> int:
        """Layers before the exit on a model."""
        own = lm.tuned.get("exit", 0) if lm.tuned.get("kind") == "free" else 0
        count = self.exit or own or max(1, lm.layers // 3)
        if count >= lm.layers:
            raise ValueError(f"exit={count} is not allowed: {lm.name} has {lm.layers} layers, and some must be left")
        return int(count)

    def price(self, run: Run, tokens: int) -> float:
        return (tokens + 1) * self.layers(run.lm) / run.lm.layers * run.step_seconds(1)

    def start(self, run: Run) -> Shallow:
        return Shallow(self.layers(run.lm), self.threshold or BEGIN)

    def run(self, run: Run) -> Decoder[None]:
        if self.exact:
            yield from super().run(run)
            return
        state = self.start(run)
        scores = yield from run.prefill()
        going = run.emit([run.pick(scores, -1)], scores, [-1])
        while going and self.threshold == 1:  # nothing is ever that sure
            scores = yield Forward(run.sequence, DraftTree.root(run.ids[-1]), Want())
            run.sequence.commit([0])
            run.stats.rounds += 1
            going = run.emit([run.pick(scores, 0)], scores, [0])
        waiting = FirstLayers(run.sequence, state.exit)
        guesses: list[tuple[int, float]] = []
        while going:
            scores = yield from waiting.read(run.ids[-1], logits=True)
            guesses.append(margin(scores.row(0)))
            if guesses[-1][1] > state.bar and len(guesses) < LONGEST:
                going = run.emit([run.pick(scores, 0)], scores, [0])
                continue
            waiting.close()
            scores = yield Forward(run.sequence, DraftTree.chain(waiting.tokens), waiting.rest())
            last = len(waiting.tokens) - 1
            run.sequence.commit(list(range(last + 1)))
            if self.threshold == 0:
                deep = scores.argmax()
                right = [token == deep[node] for node, (token, _) in enumerate(guesses)]
                state.learn([sure for _, sure in guesses], right, self.zeta)
            run.stats.rounds += 1
            going = run.emit([run.pick(scores, last)], scores, [last])
            waiting, guesses = FirstLayers(run.sequence, state.exit), []

    def propose(self, run: Run, state: Shallow, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        steps = min(LONGEST, budget.depth, budget.nodes, run.lm.context_length - len(run.ids) - 1)
        state.draft, state.guessed = None, []
        if steps < 1:
            return DraftTree.root(run.ids[-1])
        first = FirstLayers(run.sequence, state.exit)

        def read(ids: list[int]) -> Generator[Request, Scores, Tensor]:
            scores = yield from first.read(ids[-1], logits=True)
            return scores.row(0)

        def sure(row: Tensor) -> bool:
            state.guessed.append(margin(row)[1])
            return state.guessed[-1] > state.bar

        tree = yield from first.chain(run, steps, read, self.name, sure)
        state.draft = first
        return tree

    def verifying(self, state: Shallow, tree: DraftTree) -> Want:
        assert state.draft is not None
        return state.draft.rest(len(tree))

    def observe(self, run: Run, state: Shallow, outcome: Outcome) -> None:
        if self.threshold == 0 and state.guessed and len(outcome.tree) > 1:
            deep = outcome.scores.argmax()
            count = min(len(state.guessed), len(outcome.tree) - 1)
            right = [outcome.tree.tokens[node + 1] == deep[node] for node in range(count)]
            state.learn(state.guessed[:count], right, self.zeta)


def margin(row: Tensor) -> tuple[int, float]:
    """The likeliest token of a row (V,), and how much more probable it is than the second."""
    best = row.float().softmax(-1).topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])
