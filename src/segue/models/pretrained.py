"""Networks that are no language models of ours (encoders, classifiers), read from their folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def read(kind: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Network (float32) and tokenizer by one of transformers' Auto classes, without a word on stderr. ValueError where
    weights are missing: transformers would make them up."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        network, report = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None
    finally:
        logging.set_verbosity(level)
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)  # vectors do not use it
    if missing:
        raise ValueError(
            f"{folder} is not for this: {kind.__name__} finds no weights for {', '.join(missing[:3])}"
            + (" ..." if missing[3:] else "")
        )
    return network.eval(), tokenizer
