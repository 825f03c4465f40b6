"""Methods in transformers' own generate: its greedy and beam outputs, its inputs, a model left as it was."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.utils import ModelOutput

import segue
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.worlds import FAMILIES, TEXT_TO_TEXT, network
from segue.models.transformers.load import wrap

EVERY = [*FAMILIES, *TEXT_TO_TEXT]


@functools.cache
def net(family: str) -> Any:
    return network(family)


@functools.cache
def lm(family: str) -> Any:
    """The same network, driven by Segue from the start."""
    return wrap(network(family))


def batch(family: str) -> dict[str, Any]:
    """Two texts of different length, padded as generate wants it: sources on the right, other texts on the left."""
    rows = [[5, 6, 7, 0, 0, 0] if family in TEXT_TO_TEXT else [0, 0, 0, 5, 6, 7], [3, 4, 5, 6, 7, 8]]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "pad_token_id": 1}


def both(family: str, method: str, inputs: dict[str, Any] | None = None, /, **options: Any) -> tuple[Tensor, Tensor]:
    """What generate gives by its own loop and by a method."""
    inputs = batch(family) if inputs is None else inputs
    options = {"max_new_tokens": 9, "do_sample": False} | options
    own = net(family).generate(**inputs, **options)
    return own, net(family).generate(**inputs, **options, custom_generate=segue.for_transformers(method))


@pytest.mark.parametrize("family", EVERY)
def test_greedy_and_drafted_texts_are_those_of_generate_and_the_model_stays_as_it_was(family: str) -> None:
    model = net(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attention = [(m, m.config._attn_implementation) for m in model.modules() if hasattr(m, "config")]
    kinds = [type(m) for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()]
    first, *_ = both(family, "plain", eos_token_id=[9, 11])
    for method in ("plain", "prompt_lookup"):
        own, ours = both(family, method, eos_token_id=[9, 11])
        assert torch.equal(own, first)
        assert torch.equal(own, ours), (method, own, ours)
    assert all(m.config._attn_implementation == name != "segue" for m, name in attention)
    assert kinds == [type(m) for m in model.modules()]
    assert hooks == [
        len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules()
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", EVERY)
def test_beams_are_those_of_generate(family: str) -> None:
    for form in (
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "length_penalty": 0.3, "early_stopping": True, "eos_token_id": [9, 11, 20]},
    ):
        own, ours = both(family, "beam", **form)
        assert torch.equal(own, ours), (form, own, ours)


@pytest.mark.parametrize("family", EVERY)
def test_diverse_beams_are_segues_own_by_either_names_of_its_fields(family: str) -> None:
    inputs = batch(family)
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 7, "eos_token_id": None}
    named = {"num_beam_groups": 2, "diversity_penalty": 1.5}
    loop = segue.for_transformers("diverse_beam")
    first = net(family).generate(**inputs, **options, **named, custom_generate=loop)
    mine = segue.for_transformers("diverse_beam", groups=2, strength=1.5)
    out = net(family).generate(**inputs, **options, custom_generate=mine, return_dict_in_generate=True)
    assert torch.equal(first, out.sequences)
    method = segue.method("diverse_beam", beams=4, groups=2, strength=1.5)
    start = 6 if family in FAMILIES else 1
    for row, prompt in enumerate(([5, 6, 7], [3, 4, 5, 6, 7, 8])):
        (answer,) = decode(lm(family), method, [prompt], Settings(max_tokens=7, ignore_eos=True))
        assert answer.candidates is not None
        found = out.sequences[row * 4 : row * 4 + 4, start:].tolist()
        assert found == [c.tokens + [1] * (7 - len(c.tokens)) for c in answer.candidates]
        scores = out.sequences_scores[row * 4 : row * 4 + 4].tolist()
        assert scores == pytest.approx([c.score for c in answer.candidates], abs=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "fields"),
    [
        ("contrastive_search", {"penalty_alpha": 0.4, "top_k": 5}, {"alpha": 0.4, "k": 5}),
        ("contrastive_search", {}, {}),
        ("dola", {"dola_layers": "high", "repetition_penalty": 1.2}, {"layers": "high"}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gemma2", "bart"])
def test_what_transformers_moved_out_is_segues_own(
    family: str, method: str, options: dict[str, Any], fields: dict[str, Any]
) -> None:
    ids = torch.tensor([[3, 4, 5, 6, 7, 8]])
    loop = segue.for_transformers(method)
    found = net(family).generate(ids, **options, max_new_tokens=7, pad_token_id=0, custom_generate=loop)
    settings = Settings(max_tokens=7, repetition_penalty=options.get("repetition_penalty", 1.0))
    (answer,) = decode(lm(family), segue.method(method, **fields), [ids[0].tolist()], settings)
    assert found[0, 6 if family == "llama" or family == "gemma2" else 1 :].tolist() == answer.tokens


class Forbid(LogitsProcessor):  # type: ignore[misc]
    """Forbids a token that depends on how long a row is, padding included."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, input_ids.shape[1] % 7 :: 7] = -torch.inf
        return scores


class Twice(StoppingCriteria):  # type: ignore[misc]
    """Ends where some token has come twice since the prompt."""

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([len(set(row[6:])) < len(row[6:]) for row in input_ids.tolist()])


@pytest.mark.parametrize("method", ["plain", "prompt_lookup", "beam"])
@pytest.mark.parametrize(
    "options",
    [
        {"min_new_tokens": 6, "eos_token_id": [9, 11, 20, 41]},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
        {"logits_processor": [Forbid()]},
        {"bad_words_ids": [[46], [17]], "max_new_tokens": None, "max_length": 12},
        {"prefix_allowed_tokens_fn": lambda row, ids: [row * 20 + i for i in range(1, 15)]},
    ],
    ids=["min_new_tokens", "penalties", "own processor", "max_length", "prefix function"],
)
def test_processors_and_lengths_are_honoured(method: str, options: dict[str, Any]) -> None:
    beams = {"num_beams": 3} if method == "beam" else {}
    own, ours = both("llama", method, **options, **beams)
    assert torch.equal(own, ours), (own, ours)


@pytest.mark.parametrize("method", ["plain", "prompt_lookup"])
def test_stopping_criteria_are_honoured(method: str) -> None:
    options = {"stopping_criteria": [Twice()], "max_new_tokens": 30}
    for row in range(2):  # generate stops padding a row only at an end-of-text id
        inputs = {k: v[row : row + 1] if isinstance(v, Tensor) else v for k, v in batch("llama").items()}
        own, ours = both("llama", method, inputs, **options)
        assert own.shape[1] < 36
        assert torch.equal(own, ours)


def test_samples_follow_torchs_generator_and_the_models_distribution() -> None:
    ids = torch.tensor([[3, 4, 5]])
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 1, "top_k": 3, "temperature": 1.5}
    loop = segue.for_transformers("plain")
    count = 1500
    torch.manual_seed(5)
    found = net("gpt2").generate(ids, num_return_sequences=count, **options, custom_generate=loop)[:, 3]
    torch.manual_seed(5)
    again = net("gpt2").generate(ids, num_return_sequences=count, **options, custom_generate=loop)[:, 3]
    assert torch.equal(found, again)
    with torch.no_grad():
        values, tokens = (net("gpt2")(ids).logits[0, -1] / 1.5).topk(3)
    for token, p in zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True):
        assert float((found == token).float().mean()) == pytest.approx(p, abs=4 * (p * (1 - p) / count) ** 0.5)


def test_one_loop_serves_several_models_and_calls() -> None:
    loop = segue.for_transformers("plain")
    for family in ("llama", "t5", "llama"):
        options = {"max_new_tokens": 5, "do_sample": False}
        expected = net(family).generate(**batch(family), **options)
        assert torch.equal(net(family).generate(**batch(family), **options, custom_generate=loop), expected)


def test_outputs_are_of_transformers_kinds() -> None:
    for family, name in (("gpt2", "GenerateDecoderOnlyOutput"), ("bart", "GenerateEncoderDecoderOutput")):
        _, out = both(family, "plain", return_dict_in_generate=True)
        assert isinstance(out, ModelOutput)
        assert type(out).__name__ == name


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no beams": ("plain", {"num_beams": 2}, "num_beams=2 means nothing to plain"),
    "groups": ("beam", {"num_beam_groups": 2, "num_beams": 2}, "num_beam_groups=2 means nothing to beam"),
    "a search does not sample": ("beam", {"do_sample": True}, "do_sample=True means nothing to beam"),
    "scores": ("plain", {"output_scores": True, "return_dict_in_generate": True}, "leave out output_scores"),
    "context": ("plain", {"max_new_tokens": 500}, "beyond the context"),
    "padding": ("plain", {"attention_mask": torch.tensor([[1, 1, 0]])}, "pad on the left"),
    "holes": ("plain", {"attention_mask": torch.tensor([[1, 0, 1]])}, "pad on the left"),
    "positions": ("plain", {"position_ids": torch.tensor([[4, 5, 6]])}, "position_ids other than"),
    "guidance": ("plain", {"guidance_scale": 2.0}, "ClassifierFreeGuidance"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(case: str) -> None:
    method, options, message = REFUSED[case]
    loop = segue.for_transformers(method)
    before = net("llama").config._attn_implementation
    with pytest.raises(ValueError, match=message):
        net("llama").generate(torch.tensor([[3, 4, 5]]), **{"max_new_tokens": 4} | options, custom_generate=loop)
    assert net("llama").config._attn_implementation == before


def test_sources_are_padded_on_the_right() -> None:
    ids = torch.tensor([[0, 0, 5]])
    loop = segue.for_transformers("plain")
    with pytest.raises(ValueError, match="pad on the right"):
        net("bart").generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=3, custom_generate=loop)
    with pytest.raises(ValueError, match="decoder_start_token_id out"):
        net("bart").generate(ids, decoder_start_token_id=7, max_new_tokens=3, custom_generate=loop)


def test_embeddings_and_training_mode_are_refused() -> None:
    loop = segue.for_transformers("plain")
    with pytest.raises(ValueError, match="not inputs_embeds"):
        net("llama").generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=3, custom_generate=loop)
    training = network("llama").train()
    with pytest.raises(ValueError, match="training mode"):
        training.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=3, custom_generate=loop)


def test_two_values_of_one_field_are_refused() -> None:
    loop = segue.for_transformers("beam", beams=3)
    with pytest.raises(ValueError, match="num_beams=4 and beams=3"):
        net("llama").generate(torch.tensor([[3, 4, 5]]), num_beams=4, max_new_tokens=3, custom_generate=loop)


def test_unknown_methods_and_fields_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="did you mean diverse_beam"):
        segue.for_transformers("diverse_beams")
    with pytest.raises(ValueError, match="has no field 'group'"):
        segue.for_transformers("diverse_beam", group=2)
