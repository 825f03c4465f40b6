"""Staged speculation: the draft model does not draft token by token, it is itself decoded speculatively.

1. The inner drafter, any drafter whose text may be cut back, proposes a tree for the draft model.
2. The draft model scores it in one forward; its tokens are accepted by the ordinary rule, so what it commits is what it
   would have written alone, and for each token the row q it was drawn from is at hand.
3. Inner rounds go on until gamma tokens are drafted.
4. Those tokens are the proposal to the target, sampled from q; the inner drafter may be staged again.
5. Greedy runs may add the `siblings` next likeliest tokens at every place: their rows cost nothing more.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from segue.card import Card, Claim, Paper, SameDistribution, SameTokens
from segue.data import DraftTree, Scores, Want
from segue.decode.speculative.base import Budget, Drafter, Outcome, Speculative, WithDraft, held, whole
from segue.models.companion import companion, fit
from segue.models.draft import cut_back, prefix
from segue.models.run import Forward, Prefill, Request, Run
from segue.ops.accept import accept


@dataclass(slots=True)
class Stage:
    """The draft model's own run, and what its drafter keeps."""

    run: Run
    inner: Any


@dataclass(frozen=True)
class Staged(WithDraft):
    """A draft model with a drafter of its own: pays where the draft model is costly and its text repeats."""

    card = Card(
        paper=Paper(id="2308.04623", title="Accelerating LLM Inference with Staged Speculative Decoding", year=2023),
        claim=Claim(value=3.16, unit="speed-up", baseline="greedy", setting="GPT-2-L 762M, HumanEval, RTX 4090"),
        exact=(SameTokens(), SameDistribution()),
        needs=("logits", "a draft model", "tree attention"),
        departs="the inner drafter is any drafter, where the paper has a trigram model; siblings only when greedy",
        check="spec",
    )

    inner: Drafter = "prompt_lookup"  # who drafts for the draft model, by name or as an object
    gamma: int = 5  # tokens drafted per round, at most
    siblings: int = 0  # further likeliest tokens at every place (greedy)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("gamma", 1), ("siblings", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed: at least {least}")

    def start(self, run: Run) -> Stage:
        lm = companion(run.lm, self.draft)
        prompt = run.source or run.ids
        free = replace(run.settings.unconstrained, stop=(), logprobs=None, logit_bias={}, bad_words=())
        own = Run(lm, prompt[: lm.context_length - 1], free, source=run.chance)
        own.target = run.target  # the draft's rows are warped as the target's are
        own.sequence.drafts = True
        self._show(run, own)
        return Stage(own, self._inner().start(own))

    def _inner(self) -> Speculative:
        return held("staged", "inner", self.inner)

    def propose(self, run: Run, state: Stage, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        own, tree = state.run, DraftTree.root(run.ids[-1])
        self._show(run, own)
        count = min(self.gamma, budget.depth, budget.nodes, own.lm.context_length - len(run.ids))
        if count < 1:
            return tree
        if len(own.sequence) == 0 and len(own.ids) > 1:
            yield Prefill(own.sequence, own.ids[:-1], Want(logits="none"))
        spine = [0]  # the nodes of the chain
        while len(spine) <= count:
            rows, tokens = yield from self._round(run, state, count - len(spine) + 1)
            for row, token in zip(rows, tokens, strict=True):
                spine.append(self._place(run, tree, spine[-1], row, token))
        return tree

    def observe(self, run: Run, state: Stage, outcome: Outcome) -> None:
        self.rewind(run, state)

    def rewind(self, run: Run, state: Stage) -> None:
        own = state.run
        cut_back(own.sequence, run.sequence.tokens)  # a sibling may have been accepted in place of its own chain
        self._show(run, own)
        self._inner().rewind(own, state.inner)

    def _show(self, run: Run, own: Run) -> None:
        """Let the draft's run have the text so far: of what it drafts now its drafter learns nothing."""
        own.ids = list(run.ids)
        own.seen = [*run.source, *own.ids] if run.source else own.ids
        own.firm = run.settled

    def _round(self, run: Run, state: Stage, most: int) -> Generator[Request, Scores, tuple[list[Tensor], list[int]]]:
        """One inner round: up to `most` tokens that the draft model commits, and the rows they come from."""
        own, inner = state.run, self._inner()
        alone = DraftTree.root(own.ids[-1])
        proposal = inner.propose(own, state.inner, Budget(most - 1, most - 1)) if most > 1 else alone
        if not isinstance(proposal, DraftTree):
            yield from _catch_up(own)  # who drafts by forwards may draft with this very sequence
        found = (yield from whole(proposal)).truncate(most, most - 1).narrow(own.lm.most_leaves)
        # What the draft model lacks of the text is read in the same forward.
        missing = own.ids[len(own.sequence) : -1]
        behind, want = _behind(missing, found, inner.wanted(state.inner))
        scores = _without(len(missing), (yield Forward(own.sequence, behind, want)))
        rows = {n: fit(scores.row(n), run.lm.vocab_size) for n in range(len(found))}
        path, token = accept(found, lambda n: run.target.p(rows[n], prefix(own, found, n)), run.chance)
        assert token is not None
        own.sequence.commit([*range(len(missing)), *(len(missing) + node for node in path)], token)
        tokens = [*(found.tokens[node] for node in path[1:]), token]
        own.ids += tokens
        if own.seen is not own.ids:
            own.seen += tokens
        inner.observe(own, state.inner, Outcome(found, scores, path, token))
        return [rows[node] for node in path], tokens

    def _place(self, run: Run, tree: DraftTree, parent: int, row: Tensor, token: int) -> int:
        """Add a drafted token behind the chain, and its siblings."""
        tree.rows[parent] = row
        if not run.target.greedy:
            tree.q[parent] = run.target.p(row, prefix(run, tree, parent))
            return tree.add(parent, token, sampled=True, source="staged")
        node = tree.add(parent, token, source="staged")
        if self.siblings:
            best = run.target.processed(row, prefix(run, tree, parent)).softmax(-1).topk(self.siblings + 1)
            for share, other in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                if other != token and share > 0:
                    tree.add(parent, other, score=share, source="staged")
        return node


def _catch_up(own: Run) -> Generator[Request, Scores, None]:
    """Read what the draft model lacks before the pending token."""
    missing = own.ids[len(own.sequence) : -1]
    if missing:
        yield Forward(own.sequence, DraftTree.chain(missing), Want(logits="none"))
        own.sequence.commit(list(range(len(missing))))


def _behind(text: list[int], tree: DraftTree, want: Want) -> tuple[DraftTree, Want]:
    """A tree with unread text before its root, and what is wanted of its own nodes there."""
    count = len(text)
    if not count:
        return tree, want
    longer = DraftTree.chain([*text, tree.tokens[0]])
    for node in range(1, len(tree)):
        longer.add(count + tree.parents[node], tree.tokens[node], scored_only=tree.scored_only[node])
    watched = want.attention
    if watched is not None:
        nodes = range(len(tree)) if watched[1] is None else watched[1]
        watched = watched[0], tuple(node + count if node >= 0 else node for node in nodes)
    return longer, replace(want, logits=tuple(range(count, len(longer))), attention=watched)


def _without(count: int, scores: Scores) -> Scores:
    """Scores as if the first `count` nodes had not been there."""
    if not count:
        return scores
    skipped = sum(node < count for node in scores.nodes)
    return Scores(
        scores.packed,
        scores.start + skipped,
        [node - count for node in scores.nodes[skipped:]],
        None if scores.topk is None else scores.topk[count:],
        {state: rows[count:] for state, rows in scores.hidden.items()},
        scores.attention,
    )
