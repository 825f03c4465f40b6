from __future__ import annotations

import itertools
import random
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, LlamaConfig

from segue.data import DraftTree, Scores, Settings, Want
from segue.decode.speculative.clasp import Clasp, choose, spread
from segue.laws.base import decode
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.run import Request, Run
from segue.models.toy import ToyLM
from segue.models.transformers.layers import decoder_layers
from segue.models.transformers.load import wrap

LAYERS = 6


@pytest.fixture(scope="module")
def deep() -> LM:
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return wrap(network, name="deep")


TEXT = [random.Random(1).randrange(60) for _ in range(25)]


def states_of(lm: LM, text: list[int]) -> Tensor:
    """(L + 1, D) of the last token."""
    want = Want(hidden=tuple(range(lm.layers + 1)))
    (scores,) = lm.forward([(lm.sequence(), DraftTree.chain(text), want)])
    return torch.stack([scores.hidden[i][-1] for i in range(lm.layers + 1)])


def chosen(lm: LM, count: int) -> tuple[int, ...]:
    run = Run(lm, TEXT, Settings(max_tokens=1))
    found: list[tuple[int, ...]] = []

    def work() -> Generator[Request, Scores, None]:
        yield from run.prefill()
        found.append((yield from choose(run, states_of(lm, TEXT), count)))

    engine = Engine()
    job = engine.add(run, work())
    engine.drain()
    assert job.error is None
    return found[0]


def end_state(lm: LM, kept: tuple[int, ...]) -> Tensor:
    """h_L of the last token when it alone runs only some layers over the full context."""
    sequence = lm.sequence()
    lm.forward([(sequence, DraftTree.chain(TEXT[:-1]), Want(logits="none"))])
    sequence.commit(list(range(len(TEXT) - 1)))
    (scores,) = lm.forward([(sequence, DraftTree.root(TEXT[-1]), Want(layers=kept, hidden=(len(kept),)))])
    return scores.hidden[len(kept)][0]


def programme(lm: LM, count: int) -> tuple[int, ...]:
    """The same programme state by state: every g is what its own layers make of the token."""
    full = states_of(lm, TEXT)
    best: dict[int, tuple[int, ...]] = {0: ()}
    for i in range(1, lm.layers + 1):
        ways: dict[int, tuple[int, ...]] = {}
        for j in range(min(i, count) + 1):
            options = [(*best[j], i - 1)] if j in best else []
            options += [best[j - 1]] if j and j - 1 in best else []
            # The first option keeps the layer, and wins ties.
            ways[j] = max(options, key=lambda kept: float(cosine_similarity(end_state(lm, kept), full[i], 0)))
        best = ways
    return best[count]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_batched_programme_is_the_naive_one(deep: LM, count: int) -> None:
    kept = chosen(deep, count)
    assert len(kept) == LAYERS - count
    assert kept == programme(deep, count)


@pytest.mark.parametrize("count", [2, 3])
def test_the_choice_beats_most_others(deep: LM, count: int) -> None:
    """The programme is greedy in the state it keeps, so the best set of all may be missed; chance is beaten."""
    target = states_of(deep, TEXT)[-1]
    sets = list(itertools.combinations(range(LAYERS), LAYERS - count))
    close = {kept: float(cosine_similarity(end_state(deep, kept), target, 0)) for kept in sets}
    ours = close[chosen(deep, count)]
    print(f"{count} of {LAYERS} skipped: {ours:.4f}, best {max(close.values()):.4f}")
    assert ours > sum(close.values()) / len(close)
    assert ours >= sorted(close.values())[int(0.8 * len(close))]


def test_a_draft_step_runs_the_kept_layers_only(deep: LM) -> None:
    calls = [0] * LAYERS
    hooks = [
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(decoder_layers(deep.network))  # type: ignore[attr-defined]
    ]
    method = Clasp(skip=0.5, gamma=4, threshold=0.0, interval=1000)
    forwards: list[Want] = []
    forward = deep.forward

    def listening(asks: Any) -> Any:
        forwards.append(asks[0][2])
        if asks[0][2].layers is not None and asks[0][2].states is None:
            before = list(calls)
            scores = forward(asks)
            # Skipped modules are called and hand on what they are given; the rows they would write stay unwritten.
            assert len(asks[0][2].layers) == LAYERS // 2
            assert max(c - b for c, b in zip(calls, before, strict=True)) == 1
            return scores
        return forward(asks)

    deep.forward = listening  # type: ignore[method-assign]
    try:
        (answer,) = decode(deep, method, [TEXT], Settings(max_tokens=20))
    finally:
        deep.forward = forward  # type: ignore[method-assign]
        for hook in hooks:
            hook.remove()
    drafts = [w for w in forwards if w.layers is not None and w.states is None]
    assert len(drafts) == answer.stats.drafted
    dp = [w for w in forwards if w.states is not None]
    assert len(dp) == LAYERS  # one choice, one forward per layer
    assert [w.layers for w in dp] == [(i,) for i in range(LAYERS)]
    assert answer.stats.draft_forwards == len(drafts) + len(dp)


def test_without_skipping_every_draft_is_accepted(deep: LM) -> None:
    (answer,) = decode(deep, Clasp(skip=0.0, gamma=4, threshold=0.0), [TEXT], Settings(max_tokens=21))
    assert answer.stats.acceptance == 1
    assert answer.stats.target_forwards == 1 + 4


def test_an_unsure_draft_ends_early(deep: LM) -> None:
    sure = decode(deep, Clasp(gamma=6, threshold=0.0), [TEXT], Settings(max_tokens=24))[0].stats
    unsure = decode(deep, Clasp(gamma=6, threshold=1.0), [TEXT], Settings(max_tokens=24))[0].stats
    assert max(len(sure.offered), 0) > 1
    assert len(unsure.offered) == 1  # the token itself is kept


def test_the_first_skips_are_spread() -> None:
    assert spread(6, 0) == (0, 1, 2, 3, 4, 5)
    assert len(spread(6, 3)) == 3
    assert 0 in spread(6, 3)
    for layers in range(1, 9):
        for count in range(layers):
            assert len(spread(layers, count)) == layers - count


def test_the_choice_is_renewed_after_so_many_tokens(deep: LM) -> None:
    often = decode(deep, Clasp(interval=4, threshold=0.0), [TEXT], Settings(max_tokens=40))[0].stats
    seldom = decode(deep, Clasp(interval=400, threshold=0.0), [TEXT], Settings(max_tokens=40))[0].stats
    assert often.draft_forwards - often.drafted > 2 * LAYERS > seldom.draft_forwards - seldom.drafted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skip": 1.0}, "skip=1.0 is not allowed"),
        ({"threshold": 1.5}, "threshold=1.5 is not allowed"),
        ({"gamma": 0}, "gamma=0 is not allowed: at least 1"),
        ({"interval": 0}, "interval=0 is not allowed: at least 1"),
    ],
)
def test_fields_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Clasp(**fields)


def test_what_a_backend_does_not_give_is_named() -> None:
    lm = ToyLM()
    assert Clasp().lacks(lm) == ""
    lm.lacking = frozenset({"a choice of layers", "attention weights"})
    assert Clasp().lacks(lm) == (
        "clasp needs a choice of layers, which toy does not give (toy-4-2-0): load the checkpoint with backend "
        "transformers, or choose a method that needs less"
    )
