"""Legal outputs from a file: a line each, perhaps with a tag before it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from segue.models.constraint import spelling
from segue.models.run import Run
from segue.ops.automaton import Minimal

KEPT = 32  # graphs (and compiled grammars) kept per model


def listed(run: Run, path: str, tag: str = "") -> Minimal:
    """The graph of the outputs in a file, made once per model, each in the tokenizer's own spelling and in no other.
    A tag is written before its output, with a space between. ValueError that names the line where one is not as it
    should be."""
    ends = run.lm.eos_ids | set(run.settings.stop_tokens)
    try:
        stamp = os.stat(path).st_mtime_ns
    except OSError as trouble:
        raise ValueError(f"file={path!r} cannot be read: {trouble.strerror}") from None
    kept: Any = run.lm.compiled
    key = "outputs", os.path.abspath(path), stamp, tag, ends
    if key not in kept:
        spelled = []
        for number, text in read_outputs(path, tag):
            try:
                spelled.append(spelling(text, run.lm))
            except ValueError as trouble:
                raise ValueError(f"{path} line {number}: {trouble}") from None
        kept[key] = Minimal(run.lm.vocab_size, ends, spelled)
        if len(kept) > KEPT:
            kept.popitem(last=False)
    found: Minimal = kept[key]
    return found


def read_outputs(path: str, tag: str = "") -> list[tuple[int, str]]:
    """(line number, text) of every legal output, those with another tag left out."""
    lines = []
    for number, raw in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        try:
            line = raw.decode().removesuffix("\r")
        except UnicodeDecodeError as trouble:
            raise ValueError(f"{path} line {number} is not UTF-8: byte 0x{raw[trouble.start]:02x}") from None
        if not line.strip():
            continue
        mark, tab, output = line.rpartition("\t")
        if (tab and not (mark.strip() and output.strip())) or "\t" in mark:
            raise ValueError(f"{path} line {number}: {line!r} is not an output, nor a tag, one tab and an output")
        lines.append((number, mark, output))
    if not lines:
        raise ValueError(f"{path} has no legal output: one a line is needed")
    tags = sorted({mark for _, mark, _ in lines if mark})
    if tag and tag not in tags:
        raise ValueError(f"tag={tag!r} is on no line of {path}: it has {', '.join(tags) or 'no tags'}")
    return [(n, f"{mark} {output}" if mark else output) for n, mark, output in lines if not tag or mark == tag]
