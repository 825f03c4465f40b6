from __future__ import annotations

import itertools

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.decode.parallel.set_block import SetBlock, revealed
from segue.laws.base import decode
from segue.laws.tuned import MASK, tuned
from segue.laws.worlds import network_world
from segue.models.tuning.set_block import layout

SETTINGS = Settings(max_tokens=24, ignore_eos=True)


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_set_within_gamma_is_revealed(seed: int) -> None:
    entropies = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    for gamma in (0.0, 0.2, 0.7, 2.0, 9.0):
        chosen = revealed(entropies, gamma)
        allowed = [
            set(part)
            for size in range(1, 7)
            for part in itertools.combinations(range(6), size)
            if size == 1 or float(entropies[list(part)].sum() - entropies[list(part)].max()) <= gamma
        ]
        # No allowed set is larger, and of those of its size none has less entropy.
        assert len(chosen) == max(map(len, allowed))
        assert set(chosen) == set(entropies.argsort()[: len(chosen)].tolist())


def test_forwards_fall_as_gamma_grows_and_at_0_there_is_one_a_token() -> None:
    world = tuned("llama", "set_block")
    forwards = []
    for gamma in (0.0, 0.2, 1.0, 99.0):
        (answer,) = decode(world.lm, SetBlock(block=6, gamma=gamma), world.prompts, SETTINGS)
        forwards.append(answer.stats.target_forwards - answer.stats.prefill_forwards)
        assert len(answer.tokens) == 24
    assert forwards[0] == 23  # the prompt's forward gave the first token
    assert forwards == sorted(forwards, reverse=True)
    assert forwards[-1] == 4  # a block of six, three times, and of five


def test_a_tuned_model_fills_in_what_it_learned() -> None:
    world = tuned("llama", "set_block")
    (answer,) = decode(world.lm, SetBlock(block=4, gamma=0.1), world.prompts, SETTINGS)
    expected = world.oracle.answer(world.prompts[0], SETTINGS).tokens
    right = sum(a == b for a, b in zip(answer.tokens, expected, strict=True))
    assert right >= 20
    assert answer.stats.target_forwards < 24


def test_training_lays_the_text_out_as_decoding_does() -> None:
    """The noisy copy's rows are those of a block of masks behind the clean text; the clean copy's are causal."""
    lm, net = network_world("llama").lm, network_world("llama").lm.network  # type: ignore[attr-defined]
    from transformers import LlamaForCausalLM

    plain = LlamaForCausalLM(net.config).eval()
    plain.load_state_dict(net.state_dict())
    plain.set_attn_implementation("eager")
    ids = torch.tensor([[5, 9, 33, 71, 8, 40, 2, 66]])
    visible = layout(8, 4, 0)
    seen = torch.zeros(16, 16).masked_fill(~visible, torch.finfo(torch.float32).min)
    noisy = ids.clone()
    noisy[0, 4:] = MASK
    places = torch.arange(8)
    with torch.no_grad():
        logits = plain(
            input_ids=torch.cat([ids, noisy], 1),
            position_ids=torch.cat([places, places])[None],
            attention_mask=seen[None, None],
        ).logits[0]
    sequence = lm.sequence()
    (causal,) = lm.forward([(sequence, DraftTree.chain(ids[0].tolist()), Want())])
    torch.testing.assert_close(logits[:8], causal.logits, atol=1e-4, rtol=1e-4)
    tree = DraftTree.chain([5, 9, 33, 71])
    last = 3
    for _ in range(4):
        last = tree.add(last, MASK, scored_only=True)
    tree.see_each_other()
    (block,) = lm.forward([(lm.sequence(), tree, Want())])
    torch.testing.assert_close(logits[12:], block.logits[4:], atol=1e-4, rtol=1e-4)


def test_blocks_see_themselves_and_the_clean_text_before() -> None:
    seen = layout(5, 2, 1)  # blocks: 0 | 1 2 | 3 4
    assert seen[:5, :5].tolist() == torch.ones(5, 5).tril().bool().tolist()
    assert not seen[:5, 5:].any()
    assert seen[5 + 2, :5].tolist() == [True, False, False, False, False]
    assert seen[5 + 2, 5:].tolist() == [False, True, True, False, False]
    assert seen[5 + 3, :5].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize(("field", "value"), [("block", -1), ("gamma", -0.5), ("gamma", float("nan"))])
def test_bad_fields_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value} is not allowed"):
        SetBlock(**{field: value})  # type: ignore[arg-type]
