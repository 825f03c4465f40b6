"""`segue convert`: a transformers checkpoint as a GGUF file for llama.cpp."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from segue.cli import flags, report


def convert(
    output: Annotated[Path, typer.Option("-o", "--output", help="The GGUF file to write.")],
    model: flags.Model = None,
    kind: Annotated[str, typer.Option("--type", help="Numbers of the matrices: f32, f16, q8_0 or q4_0.")] = "f16",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    json: flags.Json = False,
) -> None:
    """Write a Llama, Mistral or Qwen checkpoint as one GGUF file, whole or not at all.

    What llama.cpp would compute or tokenize otherwise than transformers is refused.
    """
    from segue.models.llamacpp.names import check

    check(kind)
    flags.check_output(output, force=force)
    if model is not None and Path(model).suffix == ".gguf":
        raise ValueError(f"{model} is GGUF already: give the checkpoint it was made from")
    from segue.models.llamacpp.convert import convert as write
    from segue.models.transformers.load import bare

    start = time.perf_counter()
    name, network, tokenizer = bare(model)
    with report.progress() as show:
        write(network, tokenizer, output, kind, partial(show, "writing tensors"))
    size = output.stat().st_size
    if json:
        facts = {"model": name, "family": network.config.model_type, "file": str(output), "type": kind, "bytes": size}
        print(report.as_json(facts | {"seconds": round(time.perf_counter() - start, 3)}))
        return
    print(f"{name} as {kind} is in {output}, {size / 2**20:,.1f} MiB")
