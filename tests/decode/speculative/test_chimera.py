from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.speculative.auto import Auto
from segue.decode.speculative.base import Outcome
from segue.decode.speculative.chimera import Chimera
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.staged import Staged
from segue.laws.base import decode
from segue.laws.worlds import World, network_world
from segue.models.engine import Engine
from segue.models.heads.chimera import ChimeraNetwork
from segue.models.heads.context import Context
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM
from segue.models.run import Run

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


@dataclass(frozen=True)
class Checked(Chimera):
    """Looks, before every draft, at what is kept: the states of the text as one forward gives them."""

    forgets: int = 0  # of so many rounds one is not seen
    seen: list[int] = field(default_factory=lambda: [0])
    checked: list[int] = field(default_factory=lambda: [0])

    def catch_up(self, run: Run, state: Any) -> Any:
        yield from super().catch_up(run, state)
        ids = run.ids[:-1]
        expected = states(run.lm, run.source, ids)
        assert state.length == len(ids)
        assert torch.allclose(state._states[: len(ids)], expected, atol=1e-4)
        fresh = Context(state.network, run.lm)
        fresh.add(expected, len(ids))
        for mine, other in zip(state.rows(run.ids), fresh.rows(run.ids), strict=True):
            assert torch.allclose(mine, other, atol=1e-4)
        self.checked[0] += 1

    def observe(self, run: Run, state: Any, outcome: Outcome) -> None:
        self.seen[0] += 1
        if not self.forgets or self.seen[0] % self.forgets:
            super().observe(run, state, outcome)


def drafter(world: World, **numbers: Any) -> ChimeraNetwork:
    made = ChimeraNetwork.fresh(world.lm, heads=3, inner=16, **numbers).eval().requires_grad_(False)
    made.up.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    return made


def states(lm: LM, source: list[int], ids: list[int]) -> torch.Tensor:
    """(T, D) behind every token, from one forward."""
    (scores,) = lm.forward([(lm.reading(source), DraftTree.chain(ids), Want(logits="none", hidden=(-1,)))])
    return scores.hidden[-1].clone()


@pytest.mark.parametrize("numbers", [{}, {"near": True}, {"grams": 1}])
def test_a_draft_says_what_training_says_of_its_tokens(world: World, numbers: dict[str, Any], first_tree: Any) -> None:
    """Every node's probability, in a tree and from rows that were kept, is that of the whole text read at once."""
    network, prompt = drafter(world, **numbers), world.prompts[0]
    tree = first_tree(world.lm, Chimera(heads=network, widths="3,5,4"), prompt, SETTINGS)
    assert len(tree) == 1 + 3 + 5 + 4
    assert max(tree.depths) == 3
    for node in range(1, len(tree)):
        text = [*prompt, *(tree.tokens[i] for i in tree.path(node))]
        own = torch.tensor([[False] * (len(text) - 1) + [True]])
        lesson = Lesson(torch.tensor([text]), own, {-1: states(world.lm, [], text)[None]})
        loss = network.learn(world.lm, lesson).losses[tree.depths[node] - 1]
        assert float((-loss).exp()) == pytest.approx(tree.score[node], abs=1e-4)


def test_the_tree_holds_the_best_of_every_depth(world: World, first_tree: Any) -> None:
    network, prompt = drafter(world), world.prompts[0]
    wide = first_tree(world.lm, Chimera(heads=network, widths="3,96"), prompt, SETTINGS)
    slim = first_tree(world.lm, Chimera(heads=network, widths="3,4"), prompt, SETTINGS)

    def second(tree: DraftTree) -> dict[tuple[int, ...], float]:
        found = {}
        for node in range(1, len(tree)):
            if tree.depths[node] == 2:
                path = tree.path(node)[1:]
                found[tuple(tree.tokens[i] for i in path)] = tree.score[path[0]] * tree.score[path[1]]
        return found

    best = sorted(second(wide).items(), key=lambda pair: -pair[1])[:4]
    assert set(second(slim)) == {path for path, _ in best}


@pytest.mark.parametrize("family", ["gpt2", "t5"])
@pytest.mark.parametrize("forgets", [0, 1, 2])
def test_what_is_kept_is_what_the_model_says(family: str, forgets: int) -> None:
    """Also where rounds were not seen; in a batch, where every request has a text of its own."""
    world = network_world(family)
    method = Checked(heads=drafter(world), forgets=forgets)
    answers = decode(world.lm, method, world.prompts[:3], SETTINGS)
    for prompt, answer in zip(world.prompts, answers, strict=False):
        assert answer.tokens == world.oracle.answer(prompt, SETTINGS).tokens
    rounds = sum(answer.stats.target_forwards - answer.stats.prefill_forwards for answer in answers)
    assert method.checked[0] >= rounds - len(answers)  # the last round of each may have no room for a draft
    assert (sum(answer.stats.draft_forwards for answer in answers) > 0) == bool(forgets)


def test_a_long_prompt_is_read_in_pieces(world: World) -> None:
    method, prompt = Checked(heads=drafter(world)), world.prompts[0] * 12
    (answer,) = decode(world.lm, method, [prompt], SETTINGS, engine=Engine(token_budget=8))
    assert answer.stats.prefill_forwards > 1
    assert answer.stats.draft_forwards == 0
    assert method.checked[0] > 0


def test_what_is_taken_back_is_forgotten(world: World) -> None:
    """As the drafter of a draft model, whose text the target cuts back."""
    inner = Checked(heads=drafter(world))
    method = Staged(draft=world.lm, inner=inner, gamma=4)
    settings = Settings(max_tokens=16, ignore_eos=True, temperature=1.0, seed=3)
    decode(world.lm, method, world.prompts[:1], settings)
    assert inner.checked[0] > 4
    (answer,) = decode(world.lm, method, world.prompts[:1], SETTINGS)
    assert answer.tokens == world.oracle.answer(world.prompts[0], SETTINGS).tokens


def test_among_other_drafters_it_reads_what_it_has_not_seen(world: World) -> None:
    inner = Checked(heads=drafter(world))
    method = Auto(drafters=(PromptLookup(), inner))
    settings = Settings(max_tokens=80, ignore_eos=True)
    (answer,) = decode(world.lm, method, world.prompts[:1], settings)
    assert answer.tokens == world.oracle.answer(world.prompts[0], settings).tokens


@pytest.mark.parametrize("widths", ["", "4,0", "many"])
def test_bad_fields_are_named(widths: str) -> None:
    with pytest.raises(ValueError, match=f"widths='{widths}' is not allowed"):
        Chimera(widths=widths)
