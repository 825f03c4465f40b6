"""FastCoT: the answer need not wait for the whole chain of thought, a glance at its approximate future may do.

1. Behind the rationale lies a window of c guessed tokens. Each call scores the last token and the window.
2. Guesses that equal the row before them are settled, and so is the first that does not, as its row says: the settled
   rationale is what plain decoding writes. The rows behind are the window's next guesses (Jacobi iteration).
3. The window moves on by what was settled; its end is filled with its last token.
4. The rationale ends after a share of the calls that plain decoding may take, after a number of settled tokens, or with
   a phrase. A model that gives its answer, or ends the text, by itself is left alone.
5. One call reads the approximate tokens of the window (none where a phrase has ended the rationale) and the cue for the
   answer, as if they were text.
6. Decode the answer behind them plainly.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from segue.card import Card, Claim, Limit, Paper
from segue.data import DraftTree, Want
from segue.decode.speculative.base import Budget, Outcome, Speculative
from segue.models.run import Decoder, Forward, Request, Run


@dataclass(slots=True)
class Window:
    """State of one run: the model's guesses for the places behind the rationale."""

    first: int = 0  # place of the first, counted in ids of prompt and output
    guesses: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class FastCoT(Speculative):
    """Reasons for a part of the calls, then answers from a thought that it has only glanced to the end of.

    Lossy: approximate tokens and cue are part of the text, though the model did not write them. Without the glance, or
    with share at 1 and no other end of the rationale, the text is the model's own.
    """

    card = Card(
        paper=Paper(
            id="2311.08263",
            title="Fast Chain-of-Thought: A Glance of Future from Parallel Decoding Leads to Answers Faster",
            year=2023,
        ),
        claim=Claim(value=0.8, unit="latency ratio", baseline="autoregressive", setting="CSQA, StrategyQA, AQuA"),
        exact=(Limit(knob="share", exact_at=1.0),),
        needs=("logits", "a tokenizer"),
        departs="reconstructed from abstract and reviews, which do not tell when the rationale ends and how the window "
        "changes: here it is as wide all the time, but never past rationale_tokens; a model that writes the cue by "
        "itself goes on unhindered; when sampling, guesses are the arg-max and the settled rationale follows the "
        "model's distribution",
        check="spec",
    )

    share: float = 0.5  # of max_tokens: calls after which the rationale ends; 1 lets it go on for ever
    window: int = 16  # c: guessed tokens behind the rationale
    rationale_tokens: int = 0  # settled tokens after which the rationale ends; 0 for any number
    stop_phrase: str = ""  # text with which the rationale is complete
    cue: str = "\nSo the answer is"  # written between rationale and answer; empty for none
    glance: bool = True  # answer from approximate tokens; without it the rationale ends when the model ends it

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} is not allowed: a number above 0 and at most 1")
        for name in ("window", "rationale_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least 0")

    def run(self, run: Run) -> Decoder[None]:
        if run.constraint is not None and self.glance and (self.share < 1 or self.rationale_tokens or self.stop_phrase):
            raise ValueError(
                "fastcot writes its cue and guessed tokens into the text, which no constraint allows: glance=False, or "
                "another method"
            )
        cue, state = self._cue(run), self.start(run)
        rationale = self.rounds(run, state)
        try:
            request: Request = next(rationale)
            while not self._is_over(run, len(cue)):
                scores = yield request
                request = rationale.send(scores)
        except StopIteration:  # the model has ended the text, or there is no more room
            return
        rationale.close()
        guesses = [] if self._complete(run) else self._approximate(run, state)
        yield from self._answer(run, guesses[: max(run.remaining - len(cue) - 1, 0)], cue)

    def start(self, run: Run) -> Window:
        return Window()

    def propose(self, run: Run, state: Window, budget: Budget) -> DraftTree:
        size = self.window
        if self.glance and self.rationale_tokens:
            # A round settles one more than it guesses.
            size = max(min(size, self.rationale_tokens - len(run.output) - 1), 0)
        tokens = [run.ids[-1], *self._known(run, state)[:size]]
        return DraftTree.chain(tokens + tokens[-1:] * (size + 1 - len(tokens)), source="fastcot")

    def observe(self, run: Run, state: Window, outcome: Outcome) -> None:
        if not outcome.tree.is_chain:  # somebody else's tree
            return
        # Row j speaks of the token behind node j, and the path's last row has given the last token.
        rows = [self._guess(run, outcome, node) for node in range(len(outcome.path), len(outcome.tree))]
        state.guesses = rows + self._known(run, state)[len(rows) :]
        state.first = len(run.ids)

    def _guess(self, run: Run, outcome: Outcome, node: int) -> int:
        """The likeliest token after a node. Guesses may be given out, so penalties and bans hold for them too."""
        if run.target.argmax:
            return outcome.scores.argmax()[node]
        before = run.ids[: len(run.ids) - len(outcome.path) - 1]
        prefix = before + outcome.tree.tokens[: node + 1]
        return int(run.target.processed(outcome.scores.row(node), prefix).argmax())

    def _known(self, run: Run, state: Window) -> list[int]:
        """What the model has guessed of the places that come next."""
        return state.guesses[len(run.ids) - state.first :]

    def _cue(self, run: Run) -> list[int]:
        if not (self.glance and (self.cue or self.stop_phrase)):
            return []
        if run.lm.tokenizer is None:
            raise ValueError(f"cue and stop_phrase need a tokenizer, and {run.lm.name} has none: leave both empty")
        return run.lm.encode(self.cue, special=False) if self.cue else []

    def _is_over(self, run: Run, cue: int) -> bool:
        """Whether the answer is due: the rationale has had its share, and neither room nor the answer itself is there
        already."""
        # Under a constraint (share is 1 then) the text is the model's own to the end.
        if not self.glance or run.constraint is not None or not run.output or run.remaining <= cue:
            return False
        calls = run.stats.target_forwards - run.stats.prefill_forwards + 1
        over = calls >= max(int(self.share * run.max_tokens), 1) or 0 < self.rationale_tokens <= len(run.output)
        if not over and not self._complete(run):
            return False
        return not (self.cue.strip() and self.cue.strip() in run.lm.decode(run.output))

    def _complete(self, run: Run) -> bool:
        return bool(self.stop_phrase) and self.stop_phrase in run.lm.decode(run.output)

    def _approximate(self, run: Run, state: Window) -> list[int]:
        """What the model has guessed of the rationale's future, up to an end of text."""
        ends = {*run.lm.eos_ids, *run.settings.stop_tokens}
        guesses = list(itertools.takewhile(lambda token: token not in ends, self._known(run, state)))
        return guesses[: max(self.rationale_tokens - len(run.output), 0)] if self.rationale_tokens else guesses

    def _answer(self, run: Run, guesses: list[int], cue: list[int]) -> Decoder[None]:
        """Read what stands between rationale and answer in one call, give it out, and go on plainly."""
        between = guesses + cue
        run.stats.note = (
            f"answers after {len(run.output)} settled and {len(guesses)} approximate tokens and a cue of {len(cue)}"
        )
        scores = yield Forward(run.sequence, DraftTree.chain([run.ids[-1], *between]), Want())
        run.sequence.commit(list(range(len(between) + 1)))
        going = run.emit(between, scores, list(range(len(between))))
        node = len(between)
        while going:
            token = run.pick(scores, node)
            going = run.emit([token], scores, [node])
            if going:
                scores, node = (yield Forward(run.sequence, DraftTree.root(token), Want())), 0
                run.sequence.commit([0])
