"""The driver that reads candidates ahead: what it shows its method, what it keeps, and what a step costs."""

from __future__ import annotations

import pytest
import torch

from segue.choose.parts.lookahead import Past, Step, look_ahead
from segue.data import CapabilityError, ConstraintError, DraftTree, Settings
from segue.laws.oracle import room
from segue.laws.states import States
from segue.laws.worlds import network_world, toy_world
from segue.models.engine import Engine
from segue.models.run import Run
from segue.ops.automaton import Trie

LLAMA = network_world("llama")


def drive(prompt: list[int], choose: object, width: int = 3, *, budget: int | None = None, **settings: object) -> Run:
    run = Run(LLAMA.lm, prompt, Settings(**{"max_tokens": 6} | settings))  # type: ignore[arg-type]
    engine = Engine(token_budget=budget)
    job = engine.add(run, look_ahead(run, "mine", width, choose))  # type: ignore[arg-type]
    engine.drain()
    if job.error is not None:
        raise job.error
    return run


@pytest.mark.parametrize("budget", [8, 512])
def test_states_are_those_of_a_whole_reading_however_the_prompt_was_cut(budget: int) -> None:
    """The third candidate is kept at every step, so that neither rows nor states are those of greedy decoding."""
    prompt, states = LLAMA.prompts[-1], States(LLAMA)
    seen = []

    def third(step: Step) -> int:
        output = step.run.output
        past = states.after(prompt, output)[-1]
        torch.testing.assert_close(step.past, past, atol=1e-4, rtol=1e-4)
        for place, token in enumerate(step.tokens):
            ahead = states.after(prompt, [*output, token])[-1][-1]
            torch.testing.assert_close(step.ahead[place], ahead, atol=1e-4, rtol=1e-4)
            cosines = torch.cosine_similarity(past, ahead[None])
            torch.testing.assert_close(step.cosines()[place], cosines, atol=1e-4, rtol=1e-4)
        p = LLAMA.oracle.logits_after(prompt, output).softmax(-1)
        torch.testing.assert_close(step.p, p[step.tokens], atol=1e-5, rtol=1e-4)
        assert step.tokens == p.topk(3).indices.tolist()
        seen.append(len(step.past))
        return 2

    run = drive(prompt, third, budget=budget)
    assert seen == [len(prompt) + i for i in range(6)]
    assert run.stats.target_forwards - run.stats.prefill_forwards == 6
    assert run.stats.rows == len(prompt) + 6 * 3


def test_cosines_with_some_rows_only() -> None:
    past = Past(torch.randn(5, 8), 5)
    step = Step(None, [1, 2], torch.ones(2), torch.randn(2, 8), past.states, past.norms)  # type: ignore[arg-type]
    torch.testing.assert_close(step.cosines(slice(2, 4)), step.cosines()[:, 2:4])


def test_what_a_request_forbids_is_no_candidate() -> None:
    world = toy_world(3, 2)
    run = Run(world.lm, [0], Settings(max_tokens=4, min_tokens=4))
    widths = []

    def last(step: Step) -> int:
        widths.append(len(step.tokens))
        assert 2 not in step.tokens or len(step.run.output) >= 4
        return len(step.tokens) - 1

    engine = Engine()
    engine.add(run, look_ahead(run, "mine", 3, last))
    engine.drain()
    assert widths == [2] * 4
    assert len(run.output) == 4


def test_a_closed_list_is_kept_to() -> None:
    choices = Trie(LLAMA.lm.vocab_size, (), [[5, 6, 7], [5, 8]])
    run = drive(LLAMA.prompts[0], lambda step: len(step.tokens) - 1, constraint=choices)
    assert run.output in ([5, 6, 7], [5, 8])
    with pytest.raises(ConstraintError):
        drive(LLAMA.prompts[0], lambda step: 0, constraint=choices, max_tokens=1)


def test_it_ends_where_the_context_does() -> None:
    prompt = (LLAMA.prompts[-1] * 9)[: LLAMA.lm.context_length - 2]
    run = drive(prompt, lambda step: 0, max_tokens=50)
    assert len(run.output) == room(LLAMA.lm, prompt, Settings(max_tokens=50)) == 2


def test_a_model_without_hidden_states_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLAMA.lm, "lacking", frozenset({"hidden states"}), raising=False)
    with pytest.raises(CapabilityError, match="mine needs hidden states"):
        drive(LLAMA.prompts[0], lambda step: 0)


def test_alternatives_do_not_see_each_other() -> None:
    tree = DraftTree.alternatives([4, 5, 6])
    assert tree.depths == [0, 0, 0]
    assert torch.equal(tree.ancestors(), torch.eye(3, dtype=torch.bool))
    assert DraftTree.alternatives([4]).is_chain
