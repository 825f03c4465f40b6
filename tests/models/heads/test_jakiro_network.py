from __future__ import annotations

import pytest
import torch

from segue.laws.worlds import network_world
from segue.models.heads import jakiro
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.lesson import Lesson
from segue.models.lm import LM


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture
def lesson(lm: LM) -> Lesson:
    """Eight tokens, of which the last but one alone is to be guessed."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(lm.vocab_size, (1, 8), generator=generator)
    own = torch.zeros(1, 8, dtype=torch.bool)
    own[0, 6] = True
    return Lesson(ids, own, {-1: torch.randn(1, 8, lm.width, generator=generator)})


def outputs(network: JakiroNetwork, lm: LM, lesson: Lesson) -> list[torch.Tensor]:
    entering = network.entering(lm, lesson.states[-1][:, :-1], lesson.ids[:, 1:])
    places = torch.arange(entering.shape[1])
    span = range(len(places))
    found = network(entering, span, network.attention.rows(entering, span), places[:, None] >= places)
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    ("gates", "expected"), [([0, 0, 2, 0], (0.5, 0.5, 0.88, -0.12)), ([1, 0, 0, 2], (0.73, 0.27, -0.12, 0.88))]
)
def test_experts_add_up_on_the_left_and_differ_on_the_right(
    lm: LM, gates: list[float], expected: tuple[float, float, float, float]
) -> None:
    """Softmax of 2 and 0 is .88 and .12, of 1 and 0 .73 and .27; the smaller one is taken off the larger."""
    network = JakiroNetwork.fresh(lm, inner=8).requires_grad_(False)
    network.attention.out.weight.zero_()
    entering = torch.randn(1, lm.width)
    inner = network.norm(entering)
    # A gate that gives these numbers for this input.
    assert network.gate is not None
    network.gate.weight.copy_(torch.tensor(gates)[:, None] * inner / inner.pow(2).sum())
    at = range(3, 4)
    left, right = network(entering, at, network.attention.rows(entering, at))
    first, second = (expert(inner) for expert in network.experts)
    assert torch.allclose(left, entering + expected[0] * first + expected[1] * second, atol=0.02)
    assert right is not None
    assert torch.allclose(right, entering + expected[2] * first + expected[3] * second, atol=0.02)


def test_one_expert_has_as_many_weights_and_one_output(lm: LM) -> None:
    one, two = JakiroNetwork.fresh(lm, experts=1, inner=8), JakiroNetwork.fresh(lm, inner=8)
    assert sum(w.numel() for w in two.parameters()) - sum(w.numel() for w in one.parameters()) == 4 * lm.width
    at = range(1)
    entering = torch.randn(1, lm.width)
    assert one(entering, at, one.attention.rows(entering, at))[1] is None


def test_three_experts_are_refused(lm: LM) -> None:
    with pytest.raises(ValueError, match="experts=3 is not allowed: 1 or 2"):
        JakiroNetwork.fresh(lm, experts=3)


@torch.no_grad()
def test_the_losses_are_distances_of_states_and_of_distributions(lm: LM, lesson: Lesson) -> None:
    network = JakiroNetwork.fresh(lm, inner=8)
    marks = network.learn(lm, lesson)
    left, right = outputs(network, lm, lesson)
    # The last but one token, 6, follows the states of tokens 4 and 3; what its logits come from is the state of 5.
    true = lesson.states[-1][0, 5]
    for loss, guess, weight in ((marks.losses[0], left[0, 4], 1.0), (marks.losses[1], right[0, 3], jakiro.SECOND)):
        apart = (guess - true).abs()
        distance = torch.where(apart < 1, apart.pow(2) / 2, apart - 0.5).mean()
        unlike = -(lm.head(true).softmax(-1) * lm.head(guess).log_softmax(-1)).sum()
        assert float(loss) == pytest.approx(float(weight * (distance + jakiro.LIKENESS * unlike)), abs=1e-5)
    assert marks.counts == [1, 1]


@torch.no_grad()
def test_an_output_sees_what_was_read_and_one_token_more(lm: LM, lesson: Lesson) -> None:
    network = JakiroNetwork.fresh(lm, inner=8)
    plain = torch.stack(outputs(network, lm, lesson))[:, 0]
    for place in range(8):
        states, ids = lesson.states[-1].clone(), lesson.ids.clone()
        states[0, place] += 1
        moved = torch.stack(outputs(network, lm, Lesson(lesson.ids, lesson.own, {-1: states})))[:, 0]
        changed = [bool((moved[:, t] != plain[:, t]).any()) for t in range(7)]
        assert changed == [t >= place for t in range(7)]
        ids[0, place] = (ids[0, place] + 1) % 90
        moved = torch.stack(outputs(network, lm, Lesson(ids, lesson.own, lesson.states)))[:, 0]
        changed = [bool((moved[:, t] != plain[:, t]).any()) for t in range(7)]
        assert changed == [place > 0 and t + 1 >= place for t in range(7)]


def test_noise_follows_from_the_texts_and_is_for_training_only(lm: LM, lesson: Lesson) -> None:
    network = JakiroNetwork.fresh(lm, inner=8)
    noisy = [float(loss.detach()) for loss in network.learn(lm, lesson).losses]
    assert noisy == [float(loss.detach()) for loss in network.learn(lm, lesson).losses]
    calm = [float(loss.detach()) for loss in network.eval().learn(lm, lesson).losses]
    assert noisy != calm
    states = lesson.states[-1]
    off = (network.train()._disturbed(states, lesson) - states).abs() / states.pow(2).mean().sqrt()
    assert 0.5 * jakiro.NOISE < float(off.max()) <= jakiro.NOISE + 1e-6


def test_every_weight_learns(lm: LM, lesson: Lesson) -> None:
    network = JakiroNetwork.fresh(lm, inner=8)
    torch.autograd.backward(network.learn(lm, lesson).loss)
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert bool(weight.grad.abs().sum() > 0), name
