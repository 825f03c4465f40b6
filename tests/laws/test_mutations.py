"""A law that no error can break proves nothing: every wrong rule here must move the output law by a stated distance."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from segue.data import DraftTree, Scores, Settings
from segue.decode.speculative import base
from segue.decode.speculative.base import Budget, Speculative
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.laws.base import LawBroken
from segue.laws.same_distribution import divergence, same_distribution
from segue.laws.worlds import neighbour, toy_world
from segue.models.lm import LM
from segue.models.method import Method
from segue.models.run import Request, Run
from segue.models.sequence import Sequence
from segue.ops import accept as rule
from tests.mutation import mutate

PLAIN = Settings(temperature=1.0, max_tokens=3)
PENALTY = Settings(temperature=1.0, max_tokens=3, frequency_penalty=1.5)
MASS = Settings(temperature=1.0, max_tokens=3, top_p=0.7)


def drafted(lm: LM) -> DraftModel:
    return DraftModel(draft=neighbour(lm), gamma=2)


def recycled(lm: LM) -> TokenRecycling:
    return TokenRecycling(width=2, nodes=6, depth=2)


@dataclass(frozen=True)
class Mixed(DraftModel):
    """A retrieved guess before every drawn token."""

    def propose(self, run: Run, state: Sequence, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        drawn = yield from super().propose(run, state, budget)
        tree, at = DraftTree.root(drawn.tokens[0]), 0
        for node in range(1, len(drawn)):
            tree.add(at, (drawn.tokens[node - 1] + 1) % run.lm.vocab_size)
            if drawn.q:
                tree.q[at] = drawn.q[node - 1]
            at = tree.add(at, drawn.tokens[node], sampled=bool(drawn.q))
        return tree


def mixed(lm: LM) -> Mixed:
    return Mixed(draft=neighbour(lm), gamma=2)


def looked_up(lm: LM) -> PromptLookup:
    return PromptLookup()


@dataclass(frozen=True)
class Mutation:
    """A line of the verification, replaced."""

    owner: Any  # module or class that holds the function
    function: str
    old: str
    new: str
    method: Callable[[LM], Method]
    distance: float  # the law must move at least so far, in total variation
    settings: Settings = PLAIN

    def put(self, patch: pytest.MonkeyPatch) -> None:
        mutate(patch, self.owner, self.function, self.old, self.new)


KEEP_SAMPLED = "chance.keeps(float(p[token]), lenience * float(q[token]))"
KEEP_DELTA = "chance.keeps(float(p[token]), 1.0)"
BONUS = "return path, chance.index(p)"
MATCH = "next((child for child in children[node] if tree.tokens[child] == token), None)"
MISS = "return path, token"
PREFIX = "prefix(run, tree, node)"

MUTATIONS = {
    "residual not subtracted": Mutation(rule, "residual", "(p - q).clamp_(min=0)", "p.clone()", drafted, 0.1),
    "residual the wrong way round": Mutation(rule, "residual", "(p - q)", "(q - p)", drafted, 0.3),
    "drawn tokens always kept": Mutation(base, "accept", KEEP_SAMPLED, "True", drafted, 0.3),
    "drawn tokens kept with p": Mutation(base, "accept", KEEP_SAMPLED, KEEP_DELTA, drafted, 0.2),
    "ratio upside down": Mutation(
        base, "accept", KEEP_SAMPLED, "chance.keeps(float(q[token]), float(p[token]))", drafted, 0.3
    ),
    "rejection drawn from q": Mutation(
        base, "accept", BONUS, "return path, chance.index(p if q is None else q)", drafted, 0.2
    ),
    "retrieved tokens always kept": Mutation(base, "accept", MATCH, "next(iter(children[node]), None)", looked_up, 0.8),
    "a second draw after a miss": Mutation(base, "accept", MISS, "return path, chance.index(p)", recycled, 0.1),
    "the draw is not the match": Mutation(base, "accept", "== token)", "!= token)", recycled, 0.3),
    "drawn behind a mix: refused token stays in p": Mutation(rule, "without", "rest[token] = 0", "pass", mixed, 0.05),
    "behind a mix: siblings tested against the first p": Mutation(
        base, "accept", "p = without(p, token)", "pass", mixed, 0.05
    ),
    "behind a mix: retrieved tokens always kept": Mutation(base, "accept", KEEP_DELTA, "True", mixed, 0.1),
    "penalties of the round's first prefix": Mutation(Speculative, "decide", PREFIX, "run.ids", drafted, 0.2, PENALTY),
    "penalties without the drafted path": Mutation(Speculative, "decide", PREFIX, "run.ids", recycled, 0.2, PENALTY),
}


def farthest(make: Callable[[LM], Method], settings: Settings) -> float:
    worlds = [toy_world(3, seed=seed) for seed in range(3)]
    return max(divergence(make(w.lm), w.lm, w.prompts[-1], settings) for w in worlds)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_breaks_the_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = MUTATIONS[name]
    assert farthest(mutation.method, mutation.settings) < 1e-9
    mutation.put(monkeypatch)
    moved = farthest(mutation.method, mutation.settings)
    print(f"{name}: {moved:.3f}")
    assert moved > mutation.distance


@dataclass(frozen=True)
class LikeliestAsDrawn(DraftModel):
    """Drafts the arg-max and says it was drawn from q."""

    def propose(self, run: Run, state: Sequence, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        honest = yield from super().propose(run, state, budget)
        tree = DraftTree.root(honest.tokens[0])
        for node, q in honest.q.items():
            tree.q[node] = q
            tree.add(node, int(q.argmax()), sampled=True)
        return tree


@dataclass(frozen=True)
class OtherRow(DraftModel):
    """Keeps the row before top-p, but draws from the one behind it."""

    def propose(self, run: Run, state: Sequence, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        tree = yield from super().propose(run, state, budget)
        for node, q in tree.q.items():
            tree.q[node] = (q + 0.1) / (q + 0.1).sum()
        return tree


@dataclass(frozen=True)
class Choosy(DraftModel):
    """Throws away a drawn token because its own probability was low."""

    def propose(self, run: Run, state: Sequence, budget: Budget) -> Generator[Request, Scores, DraftTree]:
        tree = yield from super().propose(run, state, budget)
        for node in range(1, len(tree) if tree.q else 0):
            if float(tree.q[node - 1][tree.tokens[node]]) < 0.5:
                cut = DraftTree.root(tree.tokens[0])
                for kept in range(1, node):
                    cut.add(kept - 1, tree.tokens[kept], sampled=True)
                cut.q = {i: q for i, q in tree.q.items() if i < node - 1}
                return cut
        return tree


@pytest.mark.parametrize(
    ("cls", "settings", "distance"), [(LikeliestAsDrawn, PLAIN, 0.2), (OtherRow, MASS, 0.03), (Choosy, PLAIN, 0.15)]
)
def test_a_wrong_construction_breaks_the_law(cls: type[DraftModel], settings: Settings, distance: float) -> None:
    moved = farthest(lambda lm: cls(draft=neighbour(lm), gamma=2), settings)
    print(f"{cls.__name__}: {moved:.3f}")
    assert moved > distance
    world = toy_world(3)
    with pytest.raises(LawBroken, match="in total variation"):
        same_distribution(
            cls(draft=neighbour(world.lm), gamma=2), world.lm, world.prompts[-1], replace(settings, max_tokens=3)
        )
