"""From a name to a language model, by the backend that can read it."""

from __future__ import annotations

import os
from typing import Any

from segue.models.lm import LM


def load(source: str | os.PathLike[str] | None = None, **options: Any) -> LM:
    """Load a model; `options` are those of the backend's own loader."""
    from segue.models.transformers.load import load as load_transformers

    return load_transformers(source, **options)
