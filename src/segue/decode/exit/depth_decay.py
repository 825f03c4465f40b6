"""Depth decay (D^3): the later a token is generated, the fewer layers it runs.

The perplexity of later tokens is lower, so they need less depth. For the i-th generated token:
1. n_i = max(n_min, floor(L * alpha^i)) layers run.
2. The L - n_i layers from layer s on are skipped; the first s and the last ones always run.
3. n_i never rises and s stays, so the skipped sets are nested: every layer that a later token runs has the rows of all
   earlier tokens, and no state is copied.
4. With gamma = 0 the token is taken as it comes: the paper's lossy decoder.
5. With gamma > 0 so many tokens are drafted at their decayed depth and verified by all layers: lossless.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from segue.card import Card, Claim, Limit, Paper
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Speculative
from segue.models.draft import by_layers, chain, drafting
from segue.models.run import Decoder, Forward, Request, Run


@dataclass(frozen=True)
class DepthDecay(Speculative):
    """Fewer layers for later tokens: training-free, lossy, and lossless as its own draft; saves in long answers."""

    card = Card(
        paper=Paper(
            id="2503.08524",
            title="Position-Aware Depth Decay Decoding (D^3): Boosting Large Language Model Inference Efficiency",
            year=2025,
        ),
        claim=Claim(value=1.5, unit="speed-up", baseline="all layers", setting="Llama 7B to 70B, average"),
        exact=(Limit(knob="alpha", exact_at=1.0),),
        needs=("logits", "a choice of layers"),
        departs="the least depth and the drafting mode are ours; the prompt is read at full depth",
        check="spec",
    )

    free = False

    alpha: float = 0.99  # decay per generated token; 1 keeps all layers
    start_layer: int = 1  # s: layers before it always run
    n_min: int = 2  # layers that run at least
    gamma: int = 0  # tokens drafted per round and verified at full depth; 0: taken unverified (lossy)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} is not allowed: above 0 and at most 1 (1 is exact)")
        for name, least in (("start_layer", 0), ("n_min", 1), ("gamma", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {least}")

    def price(self, run: Run, tokens: int) -> float:
        return tokens * run.step_seconds(1)

    def start(self, run: Run) -> None:
        return None

    def depth(self, layers: int, place: int) -> tuple[int, ...] | None:
        """The layers that generated token number `place` runs, of so many; None for all of them."""
        # The first and the last layers are core: what is skipped ends before the last one.
        count = max(self.n_min, self.start_layer + 1, int(layers * self.alpha**place + 1e-9))
        if count >= layers:
            return None
        return (*range(self.start_layer), *range(self.start_layer + layers - count, layers))

    def run(self, run: Run) -> Decoder[None]:
        if self.gamma:
            yield from super().run(run)
            return
        scores = yield from run.prefill()
        going = run.emit([run.pick(scores, -1)], scores, [-1])
        while going:
            want = Want(layers=self.depth(run.lm.layers, run.stats.tokens))
            scores = yield Forward(run.sequence, DraftTree.root(run.ids[-1]), want)
            token = run.pick(scores, 0)
            run.sequence.commit([0], token)
            going = run.emit([token], scores, [0])

    def propose(self, run: Run, state: None, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        place = run.stats.tokens - len(run.ids)  # of the token behind so many ids
        read = by_layers(run.sequence, lambda ids: self.depth(run.lm.layers, place + len(ids)))
        with drafting(run.sequence):
            return (yield from chain(run, min(self.gamma, budget.depth, budget.nodes), read, "depth_decay"))
