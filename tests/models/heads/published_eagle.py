"""Published EAGLE heads by their formula, from transformers' own decoder layer, which shares no code with ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, Qwen2Config
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from segue.data import DraftTree, Want
from segue.models.heads import trained
from segue.models.heads.context import Context
from segue.models.heads.eagle import EagleNetwork
from segue.models.heads.jakiro import JakiroNetwork
from segue.models.heads.lean import beside
from segue.models.lm import LM

PROMPT = [3, 90, 17, 44, 8, 61]  # the last one is pending
THETA = 500.0
LAYERS = {"llama": (LlamaConfig, LlamaDecoderLayer), "qwen2": (Qwen2Config, Qwen2DecoderLayer)}


class Published(nn.Module):
    """As SafeAILab's cnets: fc over [embedding; state], a decoder layer whose first norm is not there, the base's head.
    qwen2's layer has biases of queries, keys and values. The weights are large enough that every part matters."""

    def __init__(self, base: Any, family: str = "llama", bias: bool = False, key_heads: int = 2) -> None:
        super().__init__()
        config_type, layer_type = LAYERS[family]
        self.sizes: dict[str, Any] = {
            "vocab_size": base.config.vocab_size, "hidden_size": 32, "intermediate_size": 23, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": key_heads, "rms_norm_eps": 1e-2, "hidden_act": "silu",
        }  # fmt: skip
        rotary = {"rope_type": "default", "rope_theta": THETA}
        config = config_type(**self.sizes, rope_parameters=rotary, attn_implementation="eager")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.fc = nn.Linear(64, 32, bias=bias)
            self.layers = nn.ModuleList([layer_type(config, 0)])
            for weight in self.parameters():
                weight.data = torch.randn(weight.shape) * (weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.7)
        self.layers[0].input_layernorm = nn.Identity()
        self.rotary = LlamaRotaryEmbedding(config)
        self.base = [base]  # not a part of this module
        self.eval().requires_grad_(False)

    def config(self) -> dict[str, Any]:
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_theta": THETA, **self.sizes}

    def weights(self) -> dict[str, Tensor]:
        return {name: weight.contiguous() for name, weight in self.state_dict().items() if "rotary" not in name}

    def states(self, states: Tensor, following: list[int]) -> Tensor:
        """(T, D) guesses behind states (T, D) and the tokens that follow them."""
        vectors = self.base[0].get_input_embeddings()(torch.tensor(following))
        x = self.fc(torch.cat([vectors, states], -1))[None]
        count = x.shape[1]
        mask = torch.full((count, count), -torch.inf).triu(1)[None, None]
        turns = self.rotary(x, torch.arange(count)[None])
        out = self.layers[0](x, attention_mask=mask, position_embeddings=turns)
        return (out[0] if isinstance(out, tuple) else out)[0]

    @torch.no_grad()
    def rows(self, prompt: list[int], drafted: list[int], *, normalised: bool = True) -> Tensor:
        """Logits (1 + drafted, V): behind the prompt and its pending token, and behind every drafted token."""
        ids, base = list(prompt), self.base[0]
        seen: list[Tensor] = []
        with base.model.norm.register_forward_hook(lambda _, entering, leaving: seen.extend([entering[0], leaving])):
            outputs = base.model(torch.tensor([prompt[:-1]]))
        assert torch.equal(outputs[0], seen[1])  # what ea_model takes is normalised
        states = seen[normalised][0]
        rows = []
        for token in [*drafted, -1]:
            guessed = self.states(states, ids[1:])[-1:]
            rows.append(base.lm_head(guessed[0]))
            states, ids = torch.cat([states, guessed]), [*ids, token]
        return torch.stack(rows)


def write(folder: Path, config: dict[str, Any], weights: dict[str, Tensor], file: str = "model.safetensors") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(weights, folder / file)
    else:
        torch.save(weights, folder / file)
    return folder


def read(lm: LM, folder: Path) -> EagleNetwork:
    lm.trained.clear()
    found = trained(lm, JakiroNetwork, folder)
    assert isinstance(found, EagleNetwork)
    return found


def known(lm: LM, prompt: list[int]) -> Tensor:
    """(T, D) of the states that drafters read, from one forward over all but the pending token."""
    tree = DraftTree.chain(prompt[:-1])
    (scores,) = lm.forward([(lm.sequence(), tree, Want(logits="none", hidden=(-1,)))])
    return scores.hidden[-1].clone()


@torch.inference_mode()
def drafted_rows(lm: LM, heads: EagleNetwork, prompt: list[int], drafted: list[int]) -> Tensor:
    """Logits (1 + drafted, V) of the drafting form, token by token as one branch of a tree."""
    context = Context(heads, lm)
    context.add(known(lm, prompt), len(prompt) - 1)
    lean, stop, bias = context.lean, len(prompt) - 1, None
    entering, queries = context.read(prompt)
    rows = []
    for token in [*drafted, -1]:
        guessed = lean.guesses(entering, queries, context.seen(stop), bias, False)
        rows.append(lean.logits(lm, guessed[0, 0]))
        if token < 0:
            break
        entering = lean.entering(lm, guessed[:, 0], torch.tensor([token]))
        queries, keys, values = lean.attention.project(entering, range(stop, stop + 1))
        context.put(stop, keys, values)
        stop, bias = stop + 1, beside(bias, torch.tensor([0]), guessed.dtype)
    return torch.stack(rows)


def agrees(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
