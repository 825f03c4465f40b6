"""From a path or hub id to a transformers model driven by Segue."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from segue.data import CapabilityError
from segue.models.source import place
from segue.models.transformers.identity import identity
from segue.models.transformers.invariant import check as check_rows
from segue.models.transformers.invariant import invariant as in_buckets
from segue.models.transformers.lean import make_lean
from segue.models.transformers.linear import Make, maker
from segue.models.transformers.lm import TransformersLM
from segue.models.transformers.probe import probe
from segue.models.transformers.seq2seq_probe import wrap_seq2seq
from segue.models.transformers.stack import find_stack
from segue.models.tuning import read_sheet

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | None = None,
    device_map: Any = None,
    tp_plan: Any = None,
    check: bool = True,
    lean: bool = True,
    quantize: str | None = None,
    invariant: bool = False,
    **options: Any,
) -> TransformersLM:
    """Load a causal language model, or an encoder-decoder: there the prompt is what the encoder reads.

    `source` is a local folder, a hub id, the name of an embedded model ("mini", "mini-draft", and "mt-mini", which
    translates German sentences), or None for "mini".
    `dtype` defaults to the checkpoint's own, or float32 where the device has no fast bfloat16 (float16 on a CPU counts
    as slow). `device_map` and `tp_plan` go to transformers as they are, and so do `options` (revision, token, ...).
    `check=False` skips the comparison with the model's own attention; `lean=False` leaves the network's modules as they
    are (the exchanged ones are faster and cannot be trained). `quantize` is "int8" or "int4": lossy, on a CPU.
    `invariant` makes every row's logits independent of the rows scored with it, bit for bit, at some cost: greedy
    output is then that of plain decoding in any precision. Raises ValueError (CapabilityError where the model is whole
    but cannot be driven, or not in that way).
    """
    name, path = place(source)
    if device is not None and (device_map is not None or tp_plan is not None):
        raise ValueError(f"device={device!r} cannot be combined with device_map or tp_plan: give one of them")
    where = _device(device)
    make = maker(quantize)
    whole = device_map is None and tp_plan is None
    if quantize is not None and not (whole and lean and where.type == "cpu"):
        raise ValueError(f"quantize={quantize!r} runs on one CPU, with device='cpu' and lean=True")
    if invariant and not (whole and lean):
        raise ValueError("invariant=True needs the whole model on one device and lean=True")
    config = _guard(name, lambda: AutoConfig.from_pretrained(path, **options))
    if quantize is not None and dtype is None:  # of the activations
        dtype = torch.bfloat16 if fast_bfloat16(where) else torch.float32
    chosen = _dtype(dtype, config, where)
    how = {"dtype": chosen, "device_map": device_map, "tp_plan": tp_plan}
    network, tokenizer = _read(name, path, how, options)
    if whole:
        network = network.to(where)
    # Parts that lie on several devices carry hooks of their own, which an exchange would lose.
    used = make if lean and whole else None
    lm = wrap(network, tokenizer, name=name, check=check, make=used, quantize=quantize, invariant=invariant)
    lm.tuned = read_sheet(path)
    return lm


def wrap(
    network: Any,
    tokenizer: Any = None,
    *,
    name: str | None = None,
    check: bool = True,
    make: Make | None = None,
    quantize: str | None = None,
    invariant: bool = False,
) -> TransformersLM:
    """Drive a transformers model that is already in memory. It is switched to Segue's attention; with `make`
    (linear.py) its parts are exchanged for lean ones. `quantize` only names what `make` does to the weights."""
    _check_tokenizer(network, tokenizer)
    weights = identity(network)  # before anything is exchanged
    if network.config.is_encoder_decoder:
        if invariant:
            raise CapabilityError(f"{network.config.model_type} is an encoder-decoder: leave invariant out")
        own = name or type(network).__name__
        both = wrap_seq2seq(network, make=make, check=check, name=own, tokenizer=tokenizer, quantize=quantize)
        both.identity = weights
        return both
    layout, context = probe(network, check)
    stack = None
    if make is not None:
        make_lean(network, in_buckets(make) if invariant else make)
        stack = find_stack(network)
    label = name or type(network).__name__
    lm = TransformersLM(
        network,
        layout,
        name=label,
        tokenizer=tokenizer,
        context_length=context,
        quantize=quantize,
        stack=stack,
        alone=invariant,
        identity=weights,
    )
    if invariant:
        check_rows(lm)
    return lm


def bare(source: str | os.PathLike[str] | None = None) -> tuple[str, Any, Any]:
    """The label, the plain transformers model in the checkpoint's own dtype, and the tokenizer, for other uses."""
    name, path = place(source)
    network, tokenizer = _read(name, path, {"dtype": "auto"}, {})
    _check_tokenizer(network, tokenizer)
    return name, network, tokenizer


def _read(name: str, path: str, how: dict[str, Any], options: dict[str, Any]) -> tuple[Any, Any]:
    """Weights and tokenizer, without a word from transformers."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        config = _guard(name, lambda: AutoConfig.from_pretrained(path, **options))
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        network, report = _guard(name, lambda: kind.from_pretrained(path, output_loading_info=True, **how, **options))
        tokenizer = _tokenizer(path, options)
    finally:
        transformers_logging.set_verbosity(level)
    _check_report(name, report)
    return network.eval(), tokenizer


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used here ({str(error).splitlines()[0]}): try 'cpu'") from None
    return place


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is at least as fast as float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type != "cpu" or bool(supported())


def _dtype(dtype: str | torch.dtype | None, config: Any, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    own = getattr(config.get_text_config(), "dtype", None) or torch.float32
    own = DTYPES.get(own, torch.float32) if isinstance(own, str) else own
    slow = (own == torch.bfloat16 and not fast_bfloat16(device)) or (own == torch.float16 and device.type == "cpu")
    return torch.float32 if slow else own


def _guard(name: str, load_it: Any) -> Any:
    """Turn the many ways loading fails into one clear ValueError."""
    try:
        return load_it()
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged ({error}): copy or download them again") from None
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError, EOFError) as error:
        if isinstance(error, CapabilityError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load {name}: {reason}") from error


def _check_report(name: str, report: dict[str, Any]) -> None:
    missing = sorted(report.get("missing_keys") or [])
    mismatched = sorted(str(k) for k in report.get("mismatched_keys") or [])
    for what, keys in (("are missing from the checkpoint", missing), ("have another shape there", mismatched)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(f"weights of {name} {what}: {', '.join(keys[:3])}{more}; the checkpoint is incomplete")


def _tokenizer(path: str, options: dict[str, Any]) -> Any:
    """The tokenizer, or None where the folder has none: such a model takes token ids."""
    folder = Path(path)
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if folder.is_dir() and not any((folder / n).is_file() for n in names):
        return None
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        return AutoTokenizer.from_pretrained(path, **options)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"cannot load the tokenizer of {path}: {reason}") from error


def _check_tokenizer(network: Any, tokenizer: Any) -> None:
    rows = network.get_input_embeddings().weight.shape[0]
    if tokenizer is not None and len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer knows {len(tokenizer)} tokens, but the model has embeddings for {rows}: "
            "the folder mixes files of two models"
        )
