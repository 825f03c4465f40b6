"""From a GGUF file to a language model run by llama.cpp."""

from __future__ import annotations

import ctypes
import hashlib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from segue.data import CapabilityError
from segue.models.cost import cache_folder
from segue.models.llamacpp.names import LEAVES, check
from segue.models.lm import LM
from segue.models.source import place

EXTRA = "pip install 'segue[llamacpp]'"
ROWS = 1024  # cache rows beyond the context: drafts, and short requests beside a long one
FEWEST_ROWS = 4096
SEQUENCES, MOST_SEQUENCES = 64, 256
KV = {"float16": 1, "float32": 0}  # ggml's numbers
FILE_TYPES = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 32: "bf16"}
NO_TOKEN = 11  # what llama.cpp answers where a byte-level file names none


def load(
    path: str | os.PathLike[str],
    *,
    kv_dtype: str = "float16",
    kv_rows: int | None = None,
    sequences: int = SEQUENCES,
    threads: int | None = None,
) -> LM:
    """Load a GGUF file. `kv_dtype`: float16, or float32 where rows must not depend on how they were batched. `kv_rows`:
    cells of the cache that all requests share (at least 4096 and the context by default). `sequences`: requests,
    samples and branches of their trees at a time; more make every step a little slower. Raises ValueError."""
    if find_spec("llama_cpp") is None:
        raise ValueError(f"{path} is run by llama.cpp, which needs the package llama-cpp-python: {EXTRA}")
    if kv_dtype not in KV:
        raise ValueError(f"kv_dtype={kv_dtype!r} is unknown: choose from {', '.join(KV)}")
    if kv_rows is not None and kv_rows < 1:
        raise ValueError(f"kv_rows={kv_rows} is not allowed: at least 1")
    if not LEAVES < sequences <= MOST_SEQUENCES:
        raise ValueError(f"sequences={sequences} is not allowed: above {LEAVES} and at most {MOST_SEQUENCES}")
    file = Path(path).expanduser()
    with file.open("rb") as start:
        if start.read(4) != b"GGUF":
            raise ValueError(f"{path} is no GGUF file: its first bytes are not GGUF")
    return _open(file, kv_dtype, kv_rows, sequences, threads or torch.get_num_threads())


def open_checkpoint(source: str | os.PathLike[str] | None, *, quantize: str | None = None, **options: Any) -> LM:
    """A transformers checkpoint through llama.cpp: written as GGUF of kind `quantize` (f16 by default) where Segue's
    cache has it not yet, then loaded."""
    kind = quantize or "f16"
    check(kind)
    name, path = place(source)
    stamp = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(Path(path).glob("*")) if f.is_file()]
    digest = hashlib.sha256(repr((path, stamp)).encode()).hexdigest()[:16]
    file = cache_folder() / "gguf" / f"{digest}-{kind}" / f"{name.replace('/', '--')}.gguf"
    if not file.is_file():
        from segue.models.llamacpp.convert import convert
        from segue.models.transformers.load import bare

        _, network, tokenizer = bare(source)
        file.parent.mkdir(parents=True, exist_ok=True)
        convert(network, tokenizer, file, kind)
    return load(file, **options)


def _open(file: Path, kv_dtype: str, kv_rows: int | None, sequences: int, threads: int) -> LM:
    import llama_cpp

    from segue.models.llamacpp.lm import BATCH, LlamaCppLM

    _quiet()
    options = model_options()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
    if not model:
        raise ValueError(f"llama.cpp cannot load {file}: the file is damaged or of a kind it does not know")
    try:
        context_length = _check(file, model, llama_cpp)
        rows = kv_rows or max(context_length + ROWS, FEWEST_ROWS)
        how = llama_cpp.llama_context_default_params()
        how.n_ctx, how.n_batch, how.n_ubatch = rows, BATCH, min(BATCH, 512)
        how.n_seq_max = sequences
        how.n_threads = how.n_threads_batch = threads
        how.type_k = how.type_v = KV[kv_dtype]
        if kv_dtype == "float32":  # the flash kernel computes in float16 all the same
            how.flash_attn_type = 0  # disabled
        how.kv_unified, how.swa_full, how.no_perf = True, True, True
        context = llama_cpp.llama_init_from_model(model, how)
        if not context:
            raise ValueError(f"llama.cpp cannot make a context of {rows} rows for {file}: try fewer kv_rows")
    except ValueError:
        llama_cpp.llama_model_free(model)
        raise
    tokenizer, eos_ids = _tokenizer(model, llama_cpp)
    return LlamaCppLM(
        model,
        context,
        name=file.stem,
        precision=_precision(model),
        context_length=context_length,
        kv_rows=rows,
        bytes_per_row=_bytes_per_row(model, llama_cpp, 2 if kv_dtype == "float16" else 4),
        tokenizer=tokenizer,
        eos_ids=eos_ids,
    )


def model_options(cpuinfo: Path = Path("/proc/cpuinfo")) -> Any:
    """llama.cpp's own, but that weights stay as they are on processors with AMX: quantized ones, laid out for it, end
    the process by a segmentation fault in the first forward (ggml-org/llama.cpp#20824, seen with llama-cpp-python
    0.3.36 on a Xeon)."""
    import llama_cpp

    options = llama_cpp.llama_model_default_params()
    if cpuinfo.is_file() and "amx_int8" in cpuinfo.read_text().split():
        options.use_extra_bufts = False
    return options


def _check(file: Path, model: Any, library: Any) -> int:
    """The context length; CapabilityError for a model that keeps no row per token."""
    for wrong, what in (
        (library.llama_model_is_recurrent(model) or library.llama_model_is_hybrid(model), "is recurrent"),
        (library.llama_model_has_encoder(model), "has an encoder"),
        (library.llama_model_is_diffusion(model), "is a diffusion model"),
        (not library.llama_model_has_decoder(model), "writes no text"),
    ):
        if wrong:
            raise CapabilityError(f"{file} {what}; Segue keeps a row per token: use llama.cpp's own programs for it")
    return int(library.llama_model_n_ctx_train(model))


def _tokenizer(model: Any, library: Any) -> tuple[Any, frozenset[int]]:
    """The tokenizer and the tokens that end a text; a file without a vocabulary takes token ids."""
    from segue.models.llamacpp.tokenizer import GGUFTokenizer

    try:
        tokenizer = GGUFTokenizer(model)
    except ValueError:
        return None, frozenset()
    vocab = library.llama_model_get_vocab(model)
    named = {tokenizer.eos_token_id, library.llama_vocab_eot(vocab)} - {None, -1}
    ends = {i for i in range(library.llama_vocab_n_tokens(vocab)) if library.llama_vocab_is_eog(vocab, i)}
    if tokenizer.eos_token_id != NO_TOKEN:
        ends -= {NO_TOKEN} - named
    return tokenizer, frozenset(int(i) for i in ends | named if i is not None)


def _precision(model: Any) -> str:
    from segue.models.llamacpp.vocab import meta

    number = meta(model, "general.file_type")
    return FILE_TYPES.get(int(number), f"type {number}") if number else "unknown"


def _bytes_per_row(model: Any, library: Any, size: int) -> int:
    from segue.models.llamacpp.vocab import meta

    heads, layers = library.llama_model_n_head_kv(model), library.llama_model_n_layer(model)
    family = meta(model, "general.architecture")
    width = library.llama_model_n_embd(model) // library.llama_model_n_head(model)
    keys = int(meta(model, f"{family}.attention.key_length") or width)
    values = int(meta(model, f"{family}.attention.value_length") or width)
    return int(layers * heads * (keys + values) * size)


_silence: Any = None


def _quiet() -> None:
    """Keep llama.cpp's own log off the terminal; errors reach us by return values."""
    global _silence
    if _silence is None:
        import llama_cpp

        _silence = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
