"""Lexical unit decoding: a model that was taught to finish what it is sure of writes whole units in one forward.

1. Spans that the model foresees with more than alpha each are lexical units. It was tuned to write a unit's tokens all
   at once, from k - 1 pads behind its beginning.
2. Every forward reads the tokens that were written last, and k - 1 pads behind them; the last token's row and those of
   the pads give k tokens.
3. The first is kept in any case, and further ones as long as each has a probability above beta and does not merely
   repeat the token before it. Nothing is verified: what is kept is the text.
4. The rows of the pads are dropped; the tokens that were kept are read by the next forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from segue.card import Card, Claim, Paper, SameTarget
from segue.data import CapabilityError, DraftTree, Want
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Run
from segue.models.tuning import mask_token


@dataclass(frozen=True)
class LexicalUnits:
    """Several tokens a forward without a verification: lossy, and as sure as beta asks."""

    card = Card(
        paper=Paper(
            id="2405.15208",
            title="Decoding at the Speed of Thought: Harnessing Parallel Decoding of Lexical Units for LLMs",
            year=2024,
        ),
        claim=Claim(value=1.33, unit="speed-up", baseline="greedy", setting="13B, text; code 1.30"),
        exact=(SameTarget(target="lexical_units"),),
        trains="the model",
        needs=("logits", "tree attention", "a model tuned by lexical_units"),
        departs="the published repository has no code: the loss follows the paper's description",
        check="spec",
    )

    k: int = 4  # tokens of a forward, at most
    beta: float = 0.8  # probability above which a token behind the first is kept; 1 keeps none: plain decoding
    mask: int = -1  # token id of the pads; -1: the one that the model was tuned with

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} is not allowed: at least 1")
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} is not allowed: from 0 (all tokens are kept) to 1 (exact)")

    def lacks(self, lm: LM) -> str:
        """Why it cannot run on a model, or nothing."""
        known = self.mask >= 0 or lm.tuned.get("kind") == "lexical_units"
        return "" if known else "the model was not tuned to write lexical units (segue train lexical_units)"

    def run(self, run: Run) -> Decoder[None]:
        if run.source:
            raise CapabilityError(f"{run.lm.name} is an encoder-decoder, and lexical_units tunes decoders alone")
        pad = mask_token(run.lm, "lexical_units", self.mask)
        scores = yield from run.prefill()
        written = [run.pick(scores, -1)]
        going = run.emit(written, scores, [-1])
        while going:
            tree = DraftTree.chain(written)
            last = len(written) - 1
            nodes = [last]
            for _ in range(min(self.k, run.remaining) - 1):
                nodes.append(tree.add(nodes[-1], pad, scored_only=True))
            scores = yield Forward(run.sequence, tree, Want())
            run.sequence.commit(list(range(last + 1)))
            written = [run.pick(scores, last)]
            for node in nodes[1:]:
                p = run.target.p(scores.row(node), [*run.ids, *written])
                token = int(p.argmax()) if run.target.greedy else run.chance.index(p)
                sure = float(scores.row(node).float().softmax(-1)[token])
                if sure <= self.beta or token == written[-1]:
                    break
                written.append(token)
            run.stats.rounds += 1
            going = run.emit(written, scores, nodes[: len(written)])
