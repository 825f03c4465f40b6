"""transformers' generate with our processors writes what our own decoders write."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import LogitsProcessorList

import segue
from segue.choose.sample.bregman_topk import BregmanTopk
from segue.choose.sample.instructive import Instructive
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.targets.bregman import Watched
from segue.laws.worlds import network
from segue.models.transformers.load import wrap

PROMPT, NOISY = [5, 9, 33, 2, 7], [60, 61, 62, 33, 2, 7]
METHOD = Instructive(eps=0.4, instruction=2, noisy=(60, 61, 62))


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def original(request: pytest.FixtureRequest) -> Any:
    return network(request.param)


def generate(model: Any, prompts: list[list[int]], *processors: Any, **options: Any) -> Any:
    ids = torch.tensor(prompts)
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), pad_token_id=0, logits_processor=LogitsProcessorList(processors),
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip


def naive(model: Any, prompt: list[int], output: list[int], eps: float) -> torch.Tensor:
    """The mixed scores by two full forwards."""
    with torch.no_grad():
        right, noisy = (model(torch.tensor([[*p, *output]])).logits[0, -1] for p in (prompt, NOISY))
    return right - eps * noisy


def test_instructive_equals_our_decoder_under_greedy(original: Any) -> None:
    lm = wrap(copy.deepcopy(original), name="own")
    processor = segue.processors.InstructiveLogitsProcessor(original, [PROMPT], [NOISY], eps=0.4)
    theirs = generate(original, [PROMPT], processor, do_sample=False, max_new_tokens=20)
    (ours,) = decode(lm, METHOD, [PROMPT], Settings(max_tokens=20))
    assert theirs.sequences[0, 5:].tolist() == ours.tokens


def test_instructive_scores_of_every_beam_are_those_of_its_text(original: Any) -> None:
    """Beams change places between the calls; scores are log-probabilities there, so a constant is left open."""
    other = [8, 8, 1, 0, 3]
    seen = []
    processor = segue.processors.InstructiveLogitsProcessor(original, [PROMPT, other], [NOISY, NOISY], eps=0.4)

    def watched(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mixed = processor(input_ids, scores)
        seen.append((input_ids.clone(), mixed))
        return mixed

    generate(original, [PROMPT, other], watched, do_sample=False, num_beams=3, max_new_tokens=8)
    moved = 0
    for step, (ids, mixed) in enumerate(seen):
        for place, (row, got) in enumerate(zip(ids.tolist(), mixed, strict=True)):
            expected = naive(original, row[:5], row[5:], 0.4)
            assert torch.allclose(got.log_softmax(-1), expected.log_softmax(-1), atol=2e-4)
            moved += step > 0 and row[:-1] != seen[step - 1][0][place].tolist()
    assert moved
    assert len(seen) == 8


def test_the_second_stream_reads_a_token_a_row_and_call(original: Any) -> None:
    rows = []
    handle = original.get_input_embeddings().register_forward_hook(lambda _, args, __: rows.append(args[0].shape))
    try:
        processor = segue.processors.InstructiveLogitsProcessor(original, [PROMPT], [NOISY])
        generate(original, [PROMPT], processor, do_sample=False, max_new_tokens=6)
    finally:
        handle.remove()
    assert sorted(tuple(shape) for shape in rows) == sorted([(1, 5), (1, 6), *[(1, 1)] * 10])


@pytest.mark.parametrize(
    "form", [{}, {"alpha": 1.0, "price": 0.1}, {"alpha": 2.5, "price": 0.05, "dual": True}, {"alpha": 1.0, "k": 3}]
)
def test_bregman_draws_from_the_same_distributions(original: Any, form: dict[str, Any]) -> None:
    lm = wrap(copy.deepcopy(original), name="own")
    chance = Watched()
    (ours,) = decode(lm, BregmanTopk(**form), [PROMPT], Settings(temperature=0.7, max_tokens=6), source=chance)
    warper = segue.processors.BregmanTopKLogitsWarper(**form, temperature=0.7)
    for place, q in enumerate(chance.seen):
        text = [*PROMPT, *ours.tokens[:place]]
        theirs = generate(original, [text], warper, do_sample=True, top_k=0, max_new_tokens=1)
        assert theirs.scores[0][0].softmax(-1).tolist() == pytest.approx(q, abs=2e-5)
        assert q[int(theirs.sequences[0, -1])] > 0
    # The same from log-probabilities, which beam search gives.
    logits = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(warper(None, logits).exp(), warper(None, logits.log_softmax(-1)).exp(), atol=1e-6)


def test_bregman_in_beam_search_keeps_the_support(original: Any) -> None:
    warper = segue.processors.BregmanTopKLogitsWarper(alpha=1.0, k=2)
    theirs = generate(original, [PROMPT], warper, do_sample=False, num_beams=2, max_new_tokens=6)
    for place in range(6):
        text = torch.tensor([theirs.sequences[0, : 5 + place].tolist()])
        with torch.no_grad():
            best = original(text).logits[0, -1].topk(2).indices.tolist()
        assert int(theirs.sequences[0, 5 + place]) in best


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_instructive_with_an_encoder(family: str) -> None:
    model = network(family)
    lm = wrap(copy.deepcopy(model), name="own")
    model.generation_config.forced_bos_token_id = None if family == "t5" else 5
    (ours,) = decode(lm, METHOD, [PROMPT], Settings(max_tokens=12))
    processor = segue.processors.InstructiveLogitsProcessor(model, [PROMPT], [NOISY], eps=0.4)
    theirs = generate(model, [PROMPT], processor, do_sample=False, max_new_tokens=12)
    start = len(lm.start_ids)
    forced = 1 if family == "bart" else 0  # what is forced, transformers forces before a user's processors
    assert theirs.sequences[0, start : start + 12].tolist()[forced:] == ours.tokens[forced:]


def test_bad_values_name_the_way_out() -> None:
    model = network("llama")
    make = segue.processors.InstructiveLogitsProcessor
    with pytest.raises(ValueError, match="eps=1 is not allowed"):
        make(model, [PROMPT], [NOISY], eps=1)
    with pytest.raises(ValueError, match="1 prompts and 2 distorted ones"):
        make(model, [PROMPT], [NOISY, NOISY])
    with pytest.raises(ValueError, match="padded to one length"):
        make(model, [PROMPT, [1]], [NOISY, NOISY])
    with pytest.raises(ValueError, match="none of the prompts"):
        make(model, [PROMPT], [NOISY])(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 96))
    with pytest.raises(ValueError, match=r"alpha=0\.5"):
        segue.processors.BregmanTopKLogitsWarper(0.5, dual=True)


def test_importing_segue_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, segue; assert not {'torch', 'transformers'} & set(sys.modules); "
        "assert segue.processors.BregmanTopKLogitsWarper; assert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
