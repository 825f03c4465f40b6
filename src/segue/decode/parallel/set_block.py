"""Set block decoding: blocks of future tokens are filled in in any order, in few forwards, by a model tuned to it.

1. The model was tuned to predict the next token and, in a block of masks that see each other, the token of every mask.
2. A forward reads the last token and the block: its revealed tokens, and masks for the rest, which see each other and
   all of the text before.
3. Of the masks those with the least entropy are revealed, as many as the entropies' sum less the largest stays within
   gamma, and at least one; each is drawn from its own row. With gamma=0 that is one a forward.
4. A block without masks is the text; its rows are computed causally by the first forward of the next block. block=0
   is plain next-token decoding.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from segue.card import Card, Claim, Paper, SameTarget
from segue.data import CapabilityError, DraftTree, Scores, TokenLogprob, Want
from segue.models.lm import LM
from segue.models.run import Decoder, Forward, Request, Run
from segue.models.tuning import mask_token


@dataclass(frozen=True)
class SetBlock:
    """A diffusion-like sampler within blocks, with an exact cache behind them: lossy, few forwards."""

    card = Card(
        paper=Paper(id="2509.04185", title="Set Block Decoding is a Language Model Inference Accelerator", year=2025),
        claim=Claim(value=3.0, unit="tokens/forward", baseline="next-token twin", setting="3 to 5, 8B models"),
        exact=(SameTarget(target="set_block"),),
        trains="the model",
        needs=("logits", "tree attention", "masks that see each other", "a model tuned by set_block"),
        check="spec",
    )

    block: int = 8  # k: tokens filled in together; 0 is plain decoding
    gamma: float = 0.3  # nats that the masks revealed at once may share
    mask: int = -1  # token id of the masks; -1: the one that the model was tuned with

    def __post_init__(self) -> None:
        if self.block < 0:
            raise ValueError(f"block={self.block} is not allowed: at least 0 (0 is exact)")
        if not self.gamma >= 0:
            raise ValueError(f"gamma={self.gamma} is not allowed: at least 0 (one token a forward)")

    def lacks(self, lm: LM) -> str:
        """Why it cannot run on a model, or nothing."""
        known = self.mask >= 0 or lm.tuned.get("kind") == "set_block"
        return "" if known else "the model was not tuned to fill in blocks (segue train set_block)"

    def run(self, run: Run) -> Decoder[None]:
        if run.source:
            raise CapabilityError(f"{run.lm.name} is an encoder-decoder, and set_block tunes decoders alone")
        mask = mask_token(run.lm, "set_block", self.mask) if self.block else -1
        scores = yield from run.prefill()
        unread = [run.pick(scores, -1)]
        going = run.emit(unread, scores, [-1])
        while going and not self.block:
            scores = yield Forward(run.sequence, DraftTree.root(run.ids[-1]), Want())
            run.sequence.commit([0])
            going = run.emit([run.pick(scores, 0)], scores, [0])
        while going:
            written, details = yield from self._fill(run, unread, min(self.block, run.remaining), mask)
            run.stats.rounds += 1
            unread = [unread[-1], *written]
            going = run.give(written, details)

    def _fill(
        self, run: Run, unread: list[int], size: int, mask: int
    ) -> Generator[Request, Scores, tuple[list[int], list[TokenLogprob]]]:
        """The tokens of the next block, with what logprobs asks for. Of `unread`, the text that the cache has not, the
        last token is not read into it either, since every forward begins with one."""
        found: list[int | None] = [None] * size
        details: dict[int, TokenLogprob] = {}
        while None in found:
            tree = DraftTree.chain(unread)
            tip = last = len(unread) - 1
            nodes = []
            for token in found:
                last = tree.add(last, mask if token is None else token, scored_only=True)
                nodes.append(last)
            tree.see_each_other()
            scores = yield Forward(run.sequence, tree, Want())
            if tip:
                run.sequence.commit(list(range(tip)))
                unread = unread[-1:]
            hidden = [place for place in range(size) if found[place] is None]
            known = [token if token is not None else mask for token in found]
            rows = {p: run.target.p(scores.row(nodes[p]), [*run.ids, *known[:p]]) for p in hidden}
            entropies = torch.stack([entropy(scores.row(nodes[p])) for p in hidden])
            for place in (hidden[i] for i in revealed(entropies, self.gamma)):
                p = rows[place]
                token = int(p.argmax()) if run.target.greedy else run.chance.index(p)
                found[place] = token
                if run.logprobs is not None:
                    details[place] = run.detail(token, scores.row(nodes[place]))
        return [token for token in found if token is not None], [details[p] for p in sorted(details)]


def entropy(logits: Tensor) -> Tensor:
    """Of a row (V,), in nats."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp.clamp(min=-1e9)).sum()


def revealed(entropies: Tensor, gamma: float) -> list[int]:
    """Which of the masks (n,) are revealed: the largest set of least entropies whose sum less its largest member is at
    most gamma (the EB sampler, Ben-Hamu et al. 2025)."""
    order = entropies.argsort()
    ranked = entropies[order]
    count = int((ranked.cumsum(0) - ranked <= gamma).sum())
    chosen: list[int] = order[: max(count, 1)].tolist()
    return chosen
