"""What is read of published EAGLE heads, under which names, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import segue
from segue.cli import main
from segue.laws.worlds import network, network_world
from segue.models.heads import trained
from segue.models.heads.speculator import Speculator
from segue.models.lm import LM
from tests.models.heads.published_eagle import PROMPT, THETA, Published, agrees, drafted_rows, read, write


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture
def base() -> Any:
    """The same network for transformers alone."""
    return network("llama")


@pytest.mark.parametrize("names", ["speculators", "vllm", "transformers 5"])
def test_other_names_for_the_same_heads(lm: LM, base: Any, tmp_path: Path, names: str) -> None:
    """speculators keeps no tables; vLLM's converted files have the base model's head beside its table."""
    theirs = Published(base, bias=True)
    config, weights = theirs.config(), theirs.weights()
    if names == "speculators":
        config = {"speculators_model_type": "eagle", "architectures": ["EagleSpeculator"], "fusion_bias": True,
                  "layernorms": False, "transformer_layer_config": config}  # fmt: skip
        weights = {
            name.replace("fc.", "fusion_fc.").replace("layers.0.", "transformer."): w for name, w in weights.items()
        }
    elif names == "vllm":
        config = {"model_type": "eagle", "model": config, "eagle_fc_bias": True}
        weights["embed_tokens.weight"] = base.get_input_embeddings().weight.clone().half()
        weights["model.lm_head.weight"] = base.lm_head.weight.clone().bfloat16()
        weights["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    else:
        del config["rope_theta"]
        config |= {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}, "rope_scaling": None}
        config |= {"head_dim": None, "dtype": "float16"}
    heads = read(lm, write(tmp_path / "eagle", config, weights))
    assert agrees(drafted_rows(lm, heads, PROMPT, [50]), theirs.rows(PROMPT, [50]))


def test_the_command_line_takes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = segue.model("mini-draft", dtype="float32").lm
    width, draw = lm.width, torch.Generator().manual_seed(0)
    sizes = {"fc": (width, 2 * width)} | {f"layers.0.self_attn.{part}_proj": (width, width) for part in "qkvo"}
    sizes |= {f"layers.0.mlp.{part}_proj": (40, width) for part in ("gate", "up")}
    sizes["layers.0.mlp.down_proj"] = (width, 40)
    weights = {f"{name}.weight": torch.randn(size, generator=draw) * size[1] ** -0.5 for name, size in sizes.items()}
    weights["layers.0.post_attention_layernorm.weight"] = torch.ones(width)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1,
              "hidden_size": width, "intermediate_size": 40, "vocab_size": lm.vocab_size,
              "num_attention_heads": 4}  # fmt: skip
    folder = write(tmp_path / "eagle", config, weights)
    arguments = ["generate", "Once upon a time", "-m", "mini-draft", "--dtype", "float32", "--max-tokens", "12"]
    assert main([*arguments, "--method", "plain"]) == 0
    expected = capsys.readouterr().out
    assert main([*arguments, "--method", "jakiro", "--set", f"heads={folder}"]) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rotary positions .*'llama3'.* is not read"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary positions .*'linear'.* is not read"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rotary positions .* is not read"),
        ({"rope_theta": "high"}, "rope_theta of published heads is high in their"),
        ({"rms_norm_eps": 0}, "rms_norm_eps of published heads is 0 in their"),
        ({"partial_rotary_factor": 0.5}, r"rotates 0\.5 of a head is not read"),
        ({"num_hidden_layers": 2, "model_type": "eagle"}, "an EAGLE drafter of 2 layers with silu is not read"),
        ({"hidden_act": "gelu"}, "an EAGLE drafter of 1 layers with gelu is not read"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "EAGLE-3 drafter, which is not read: .* three layers"),
        ({"speculators_model_type": "eagle3"}, "EAGLE-3 drafter, which is not read"),
        ({"draft_vocab_size": 50}, "EAGLE-3 drafter, which is not read: .* a vocabulary of its own"),
        ({"num_key_value_heads": 3}, "4 heads of 8 numbers with 3 heads of keys are not allowed"),
        ({"head_dim": 16}, r"not what their config\.json says: .*size mismatch for attention"),
        ({"num_attention_heads": None}, "num_attention_heads of published heads is None"),
        ({"vocab_size": 97}, "a drafter for states of 32 numbers and 97 tokens cannot draft for tiny-llama-0"),
    ],
)
def test_what_is_not_read_is_named(lm: LM, base: Any, tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    theirs = Published(base)
    with pytest.raises(ValueError, match=fragment):
        read(lm, write(tmp_path / "eagle", theirs.config() | changes, theirs.weights()))


def test_weights_that_the_layer_has_no_place_for_are_named(lm: LM, base: Any, tmp_path: Path) -> None:
    theirs = Published(base)
    for name in ("layers.0.input_layernorm.weight", "embed_layernorm.weight", "d2t", "layers.0.self_attn.o_proj.bias"):
        folder = write(tmp_path / name, theirs.config(), theirs.weights() | {name: torch.ones(32)})
        with pytest.raises(ValueError, match=f"an EAGLE drafter with {name} is not read"):
            read(lm, folder)
    weights = theirs.weights()
    del weights["fc.weight"]
    with pytest.raises(ValueError, match=r"incomplete: fc\.weight is missing"):
        read(lm, write(tmp_path / "short", theirs.config(), weights))


@pytest.mark.parametrize("table", ["embed_tokens.weight", "lm_head.weight"])
def test_a_table_of_another_model_is_refused(lm: LM, base: Any, tmp_path: Path, table: str) -> None:
    """The model's own tables are used, so a copy must be one."""
    theirs, other = Published(base), network("llama", seed=1)
    copies = {"embed_tokens.weight": other.get_input_embeddings().weight, "lm_head.weight": other.lm_head.weight}
    for name, copy in (("other", copies[table]), ("short", copies[table][:50])):
        folder = write(tmp_path / name, theirs.config(), theirs.weights() | {table: copy.detach().clone()})
        with pytest.raises(ValueError, match=rf"trained for another model: their {table} is not that of tiny-llama-0"):
            read(lm, folder)


def test_they_are_for_one_method(lm: LM, base: Any, tmp_path: Path) -> None:
    theirs = Published(base)
    folder = write(tmp_path / "eagle", theirs.config(), theirs.weights())
    with pytest.raises(ValueError, match="holds heads for jakiro, not for mlp_speculator: choose --method jakiro"):
        trained(lm, Speculator, folder)
