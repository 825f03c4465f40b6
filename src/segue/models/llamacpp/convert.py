"""Llama-family checkpoints as GGUF, the file format of llama.cpp.

llama.cpp turns neighbouring pairs of a Llama head where transformers turns halves, so the rows of the query and key
projections are reordered; everything else is renamed. Source: the GGUF specification (ggml/docs/gguf.md).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segue.models.llamacpp.architecture import Array, architecture, rope_factors, write_header
from segue.models.llamacpp.names import ROPE_FACTORS, check, gguf_name
from segue.models.llamacpp.vocabulary import write_vocabulary

BLOCK = 32  # numbers that share a scale in q8_0 and q4_0
LARGEST_F16 = 65504.0
LARGE_TABLES = ("token_embd.weight", "output.weight")  # of q4_0 they are kept in q8_0
METADATA = 32 << 20  # bytes that vocabulary and header take at most, for the check of free space
Watch = Callable[[int, int], None]  # tensors written, of how many


def convert(
    network: Any, tokenizer: Any, out: Path, kind: str = "f16", watch: Watch = lambda done, total: None
) -> Path:
    """Write a transformers model in memory (linears not packed) as one file, whole or not at all.

    Matrices are written in `kind`, those whose rows it does not fit in f16, vectors in f32. Without a tokenizer the
    file has no vocabulary. Raises ValueError where llama.cpp would not give what transformers gives.
    """
    check(kind)
    import gguf

    config = network.config
    name = architecture(config)
    weights = {gguf_name(key): value for key, value in network.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("output.weight", None)
    factors = rope_factors(config)
    if factors is not None:
        weights[ROPE_FACTORS] = torch.from_numpy(factors)
    kinds = {key: _kind(key, tuple(value.shape), kind) for key, value in weights.items()}
    staging = out.with_name(out.name + ".tmp")
    writer = gguf.GGUFWriter(staging, name)
    writer.add_name(out.stem)
    writer.add_file_type({"F32": 0, "F16": 1, "Q8_0": 7, "Q4_0": 2}[kind.upper()])  # LlamaFileType
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_header(writer, config)
    write_vocabulary(writer, tokenizer, config.vocab_size, _ends(network))
    try:
        _write(writer, weights, kinds, config, watch)
        staging.replace(out)
    finally:
        writer.close()
        staging.unlink(missing_ok=True)
    return out


def _write(writer: Any, weights: dict[str, Tensor], kinds: dict[str, Any], config: Any, watch: Watch) -> None:
    """First the places of all tensors, then one tensor after the other, so that memory holds one of them."""
    import gguf

    total = 0
    for name, value in weights.items():
        shape = gguf.quants.quant_shape_to_byte_shape(tuple(value.shape), kinds[name])
        size = int(np.prod(shape))
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw_dtype=kinds[name])
        total += size
    folder = writer.path.parent
    free = shutil.disk_usage(folder).free
    if total + METADATA > free:
        needed, there = ((size + 2**20 - 1) >> 20 for size in (total + METADATA, free))
        raise ValueError(f"the file needs up to {needed:,} MiB, and {folder} has {there:,} MiB free")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for done, (name, value) in enumerate(weights.items()):
        watch(done, len(weights))
        array = _array(name, value, config)
        if kinds[name] == gguf.GGMLQuantizationType.F16 and np.abs(array).max() > LARGEST_F16:
            raise ValueError(f"{name} has numbers beyond {LARGEST_F16:g}, which f16 cannot hold: write f32")
        writer.write_tensor_data(gguf.quants.quantize(array, kinds[name]).view(np.uint8))
    writer.close()  # before the file takes its place: what is still to be written may not fit the disk
    watch(len(weights), len(weights))


def _kind(name: str, shape: tuple[int, ...], kind: str) -> Any:
    from gguf import GGMLQuantizationType as Types

    if len(shape) < 2:
        return Types.F32
    if kind == "q4_0" and name in LARGE_TABLES:
        kind = "q8_0"
    return Types.F16 if kind.startswith("q") and shape[1] % BLOCK else Types[kind.upper()]


def _array(name: str, value: Tensor, config: Any) -> Array:
    """(out, in) or (out,) in float32; query and key rows of a Llama reordered from halves to pairs."""
    array: Array = value.detach().to("cpu", torch.float32).numpy()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if count is None or architecture(config) != "llama":
        return array
    halves = array.reshape(count, 2, array.shape[0] // count // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _ends(network: Any) -> list[int]:
    """The tokens that end an answer of this model, by what it generates with."""
    for config in (getattr(network, "generation_config", None), network.config):
        ends = getattr(config, "eos_token_id", None)
        if ends is not None:
            return list(ends) if isinstance(ends, list) else [ends]
    return []
