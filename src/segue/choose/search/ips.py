"""Isotropic and proximal search: an answer that keeps to itself, and away from what was said before it.

1. Find the tokens that end the earlier utterances of the dialogue; e_j is the last hidden state at the j-th of them.
2. The first n tokens are decoded as usual.
3. V_m are the m likeliest next tokens; read them all in one forward, which gives the last hidden state h_v of each v.
4. prox(v) is the mean cosine of h_v with the states h_1 .. h_{t-1} of the answer so far.
5. iso(v) is the mean over j of the cosine of e_j with the mean of h_1 .. h_{t-1}, h_v: of the answer as a whole.
6. Take the v with the largest alpha * p(v) + (1 - alpha) * (prox(v) - iso(v)); go on from 3 with h_v as h_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.parts.lookahead import LAST, Step, check_width, look_ahead
from segue.choose.parts.utterances import check_mark, utterance_ends
from segue.models.run import Decoder, Run


@dataclass(frozen=True)
class IPS:
    """For dialogue: answers that stick to one thing without saying the last ones again."""

    card = Card(
        paper=Paper(
            id="2310.08130",
            title="Fine-grained Conversational Decoding via Isotropic and Proximal Search",
            year=2023,
        ),
        claim=Claim(
            value=None,
            unit="none",
            baseline="greedy, beam, top-k, nucleus and contrastive search",
            setting="better BERTScore, MAUVE, G-Eval and human ratings on DailyDialog and LCCC; slower",
        ),
        exact=(SameTarget(target="ips"),),
        needs=("logits", "hidden states", "tree attention"),
        departs="the formula, where the released code normalises the answer's state over an axis of length 1, mixes in "
        "raw logits, draws by softmax (`drawn`) and forbids repeated bigrams; a sampled start is drawn from the m "
        "likeliest",
        check="spec",
    )

    alpha: float = 0.6  # weight of the probability beside prox - iso; 1 is greedy decoding
    m: int = 5  # candidates at a step; 1 is greedy decoding
    start: int = 2  # n, first tokens that are decoded as usual
    eou: Any = ""  # what ends an utterance: text, a token id or several; "": end-of-turn tokens, else line breaks
    drawn: bool = False  # draw from the softmax of the scores instead of taking the largest
    show: bool = False  # the candidates of every step with p, prox, iso and score go into the trace

    needs = LAST

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not allowed: from 0 (the states alone) to 1 (greedy)")
        check_width("m", self.m)
        if self.start < 0:
            raise ValueError(f"start={self.start} is not allowed: at least 0 tokens")
        check_mark(self.eou)

    def run(self, run: Run) -> Decoder[None]:
        ends = utterance_ends(run.lm, run.prompt, self.eou)
        # What was said before is the source of an encoder-decoder: its states are the encoder's.
        source = run.lm.source_states(run.source)[ends] if run.source and ends else None

        def choose(step: Step) -> int:
            if len(run.output) < self.start:
                return 0 if run.target.greedy else run.chance.index(step.p)
            return self._choose(step, step.past[ends] if source is None else source.to(step.past))

        run.trace.append({"utterances": len(ends)})
        yield from look_ahead(run, "ips", self.m, choose)

    def _choose(self, step: Step, earlier: Tensor) -> int:
        """The place of the candidate that is kept; `earlier` (J, D) are the states at the ends of utterances."""
        own = slice(step.run.prompt_length, None)
        prox = step.cosines(own).mean(-1) if step.run.output else torch.zeros_like(step.p)  # (m,)
        whole = step.past[own].sum(0) + step.ahead  # (m, D), the answer's mean times its length
        iso = _cosines(whole, earlier).mean(-1) if len(earlier) else torch.zeros_like(step.p)
        scores = self.alpha * step.p + (1 - self.alpha) * (prox - iso)
        if self.show:
            figures = {"p": step.p, "prox": prox, "iso": iso, "scores": scores}
            step.run.trace.append({"tokens": step.tokens, **{name: row.tolist() for name, row in figures.items()}})
        return step.run.chance.index(scores.softmax(-1)) if self.drawn else int(scores.argmax())


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(m, J) of the rows of a (m, D) and b (J, D)."""
    found: Tensor = (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).T
    return found
