"""What the name of a model means: an embedded one, a folder, or a hub id."""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED = Path(__file__).parent / "embedded"
DRAFTERS = Path(__file__).parent / "heads" / "embedded"  # for the embedded models, by base model and kind


def place(source: str | os.PathLike[str] | None) -> tuple[str, str]:
    """Its label, and the folder or hub id to load; ValueError where there is no such model."""
    text = "mini" if source is None else os.fspath(source)
    if not text.strip():
        raise ValueError("the model path is empty: leave it out for the embedded model")
    embedded, path = EMBEDDED / text, Path(text).expanduser()
    # A model of one's own of that name goes first, but not any folder, as of a training in this place.
    own = source is not None and (path / "config.json").is_file()
    if os.sep not in text and not text.startswith(".") and embedded.is_dir() and not own:
        return text, str(embedded)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{text} has no config.json: a model folder holds config.json, weights and a tokenizer")
        return path.name or text, str(path)
    if path.exists():
        raise ValueError(f"{text} is a file; give the folder that holds config.json and the weights")
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        names = ", ".join(sorted(p.name for p in EMBEDDED.iterdir() if p.is_dir())) if EMBEDDED.is_dir() else "none"
        raise ValueError(f"no model at {text}: give a folder, a hub id like owner/name, or an embedded one ({names})")
    return text, text
