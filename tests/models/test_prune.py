"""Drafts that keep some of a teacher's layers: the teacher with the others skipped is the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen2Config

import segue
from segue.models.prune import keep_layers, spread
from segue.models.shape import shape_of
from segue.models.toy import ToyLM
from tests.models.families import BASE, VOCAB, network

IDS = torch.randint(VOCAB, (1, 20), generator=torch.Generator().manual_seed(5))
FAMILIES = ("llama", "qwen3", "gpt2", "qwen2-window", "gemma2", "gemma3", "smollm3", "deepseek-v3")


def saved(teacher: Any, folder: Path) -> Path:
    teacher.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=IDS, use_cache=False).logits[0]
    return out


@torch.no_grad()
def by_hand(teacher: Any, keep: list[int]) -> torch.Tensor:
    """The teacher's logits with the other layers taken out by hooks: what a layer gives is replaced by what it got."""
    layers = teacher.transformer.h if hasattr(teacher, "transformer") else teacher.model.layers

    def undo(module: Any, arguments: Any, keywords: Any, out: Any) -> Any:
        got = arguments[0] if arguments else keywords["hidden_states"]
        return (got, *out[1:]) if isinstance(out, tuple) else got

    hooks = [layer.register_forward_hook(undo, with_kwargs=True) for i, layer in enumerate(layers) if i not in keep]
    try:
        return logits(teacher)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("keep", [[0], [2], [0, 2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_draft_is_the_teacher_without_the_other_layers(family: str, keep: list[int], tmp_path: Path) -> None:
    teacher = network(family)
    facts = keep_layers(saved(teacher, tmp_path / "teacher"), keep, tmp_path / "draft")
    draft = AutoModelForCausalLM.from_pretrained(tmp_path / "draft", attn_implementation="eager").eval()
    expected = by_hand(teacher, keep)
    assert torch.allclose(logits(draft), expected, atol=1e-5)
    # A control: another choice of layers gives something else.
    assert not torch.allclose(by_hand(teacher, [(keep[0] + 1) % 3]), expected, atol=1e-3) or keep == [0, 1, 2]
    text = draft.config.get_text_config()
    assert text.num_hidden_layers == len(keep)
    if getattr(text, "layer_types", None) is not None:
        old = teacher.config.get_text_config().layer_types
        assert text.layer_types == [old[i] for i in keep]
    assert facts["kept"] == keep
    assert facts["parameters"] == sum(p.numel() for p in draft.parameters())
    assert {f.suffix for f in (tmp_path / "draft").iterdir()} == {".json", ".safetensors"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["draft", "teacher"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_segue_drives_it_and_drafts_with_it(family: str, tmp_path: Path) -> None:
    folder = saved(network(family), tmp_path / "teacher")
    keep_layers(folder, [0, 2], tmp_path / "draft")
    teacher, draft = segue.model(str(folder)), segue.model(str(tmp_path / "draft"))
    expected = by_hand(network(family), [0, 2])[-1].argmax()
    prompt = IDS[0].tolist()
    assert draft.generate(prompt, "plain", max_tokens=1).tokens == [int(expected)]
    plain = teacher.generate(prompt, "plain", max_tokens=16)
    drafted = teacher.generate(prompt, segue.method("draft_model", draft=str(tmp_path / "draft")), max_tokens=16)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.draft_forwards > 0


@pytest.mark.parametrize(
    ("layers", "count", "expected"),
    [(6, 1, [0]), (6, 2, [0, 5]), (6, 3, [0, 2, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (12, 4, [0, 4, 7, 11]), (1, 1, [0])],
)
def test_spread(layers: int, count: int, expected: list[int]) -> None:
    assert spread(layers, count) == expected


def test_bad_choices_leave_nothing_behind(tmp_path: Path) -> None:
    folder = saved(network("llama"), tmp_path / "teacher")
    cases: list[tuple[Any, str]] = [
        ([3], "layer 3 does not exist: teacher has 3 layers"),
        ([-1], "layer -1 does not exist"),
        ([1, 0], "1,0 cannot be kept: name at least one layer, each once, in ascending order"),
        ([1, 1], "1,1 cannot be kept"),
        ([], "no layer cannot be kept"),
        (0, "0 of 3 layers cannot be kept"),
        (4, "4 of 3 layers cannot be kept: give a number from 1 to 3"),
    ]
    for keep, message in cases:
        with pytest.raises(ValueError, match=message):
            keep_layers(folder, keep, tmp_path / "draft")
    with pytest.raises(ValueError, match="is there already"):
        keep_layers(folder, [0], folder)
    with pytest.raises(ValueError, match="there is no folder"):
        keep_layers(folder, [0], tmp_path / "no" / "draft")
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_layers_that_depend_on_their_place_are_refused(tmp_path: Path) -> None:
    """gpt2 may divide its attention by the number of the layer: then layer 2 in place 1 is another layer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
        scale_attn_by_inverse_layer_idx=True, eos_token_id=1,
    )  # fmt: skip
    folder = saved(GPT2LMHeadModel(config), tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"teacher cannot be cut: .* its layers depend on where they stand"):
        keep_layers(folder, [0, 2], tmp_path / "draft")
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_bfloat16_stays(tmp_path: Path) -> None:
    folder = saved(network("llama").to(torch.bfloat16), tmp_path / "teacher")
    keep_layers(folder, [0, 2], tmp_path / "draft")
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mixtral"])
def test_shapes_are_counted_on_the_untouched_network(family: str, tmp_path: Path) -> None:
    untouched = network(family)
    shape = shape_of(segue.model(str(saved(untouched, tmp_path / "m"))).lm)
    assert shape is not None
    layers = untouched.transformer.h if family == "gpt2" else untouched.model.layers
    assert (shape.layers, shape.width) == (3, 32)
    assert shape.parameters == sum(p.numel() for p in untouched.parameters())
    assert shape.layer_parameters == sum(p.numel() for p in layers.parameters())
    assert shape_of(ToyLM(3)) is None


def test_windows_move_with_their_layers(tmp_path: Path) -> None:
    """Of layers whose first so many attend to everything, the kept ones still know which they are."""
    torch.manual_seed(0)
    config = Qwen2Config(
        **{**BASE, "num_hidden_layers": 4}, use_sliding_window=True, sliding_window=4, max_window_layers=2
    )
    teacher = AutoModelForCausalLM.from_config(config).eval()
    assert config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    keep_layers(saved(teacher, tmp_path / "teacher"), [1, 3], tmp_path / "draft")
    draft = AutoModelForCausalLM.from_pretrained(tmp_path / "draft").eval()
    assert draft.config.layer_types == ["full_attention", "sliding_attention"]
    assert draft.config.max_window_layers == 1
    assert torch.allclose(logits(draft), by_hand(teacher, [1, 3]), atol=1e-5)
