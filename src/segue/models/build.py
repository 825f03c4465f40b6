"""Fresh models from numbers, and checkpoint folders that plain transformers can load."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from segue.models.folder import replace_folder

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, T5ForConditionalGeneration


END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
LONGEST_SOURCE = 512  # tokens; where positions are relative, nothing ends before the memory does


@dataclass(frozen=True)
class LlamaShape:
    """The numbers that fix a Llama model with tied embeddings."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5


@dataclass(frozen=True)
class T5Shape:
    """The numbers that fix a T5 model with gated layers and tied embeddings."""

    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int  # of the encoder
    num_decoder_layers: int
    num_heads: int
    d_kv: int = 64
    dropout_rate: float = 0.1


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """What takes no generator draws from this one here; the global random state is left alone."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield


def fresh_llama(shape: LlamaShape, generator: torch.Generator, *, end_of_text: int, padding: int) -> LlamaForCausalLM:
    """A float32 Llama whose matrices are drawn from `generator`; the global random state is left alone."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **asdict(shape),
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        pad_token_id=padding,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    deep = (2 * shape.num_hidden_layers) ** -0.5  # the residual stream keeps its scale at any depth
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                scale = deep if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                weight.normal_(0.0, config.initializer_range * scale, generator=generator)
    return model


def project_embeddings(teacher: LlamaForCausalLM, student: LlamaForCausalLM) -> None:
    """Start the student's embeddings as the leading principal directions of the teacher's, at its own scale."""
    import torch

    with torch.no_grad():
        wide, narrow = teacher.get_input_embeddings().weight, student.get_input_embeddings().weight  # (V, D)
        directions = torch.linalg.eigh(wide.T @ wide).eigenvectors.flip(-1)  # largest variance first
        columns = min(wide.shape[1], narrow.shape[1])
        projected = wide @ directions[:, :columns]
        narrow[:, :columns] = projected * (narrow.std() / projected.std())


def load_llama(folder: Path) -> LlamaForCausalLM:
    """The float32 model saved in `folder`."""
    import torch
    from transformers import LlamaForCausalLM

    if not (folder / "config.json").is_file():
        raise ValueError(f"no model in {folder}: config.json is missing; give a folder that a training wrote")
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def fresh_t5(
    shape: T5Shape, generator: torch.Generator, *, end_of_text: int, padding: int
) -> T5ForConditionalGeneration:
    """A float32 T5 with its own kind of initial weights, drawn from `generator`."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        **asdict(shape),
        feed_forward_proj="gated-silu",
        tie_word_embeddings=True,
        eos_token_id=end_of_text,
        pad_token_id=padding,
        decoder_start_token_id=padding,
    )
    with drawing_from(generator):
        return T5ForConditionalGeneration(config)


def save_model(model: Any, tokenizer_file: Path, folder: Path, texts: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write `model` in bfloat16 with its tokenizer to `folder`, replacing what was there in one step; `texts` are
    files beside them, by their names."""
    import torch
    from transformers import PreTrainedTokenizerFast

    config = model.config
    with torch.random.fork_rng(devices=[]):
        rounded = type(model)(config).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    staging = folder.with_name(folder.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    rounded.save_pretrained(staging)
    special: dict[str, Any] = {"eos_token": END_OF_TEXT, "pad_token": PADDING}
    if not config.is_encoder_decoder:
        special["bos_token"] = END_OF_TEXT
    PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file),
        clean_up_tokenization_spaces=False,
        model_max_length=getattr(config, "max_position_embeddings", LONGEST_SOURCE),
        **special,
    ).save_pretrained(staging)
    for name, text in texts.items():
        (staging / name).write_text(text)
    replace_folder(staging, folder)
