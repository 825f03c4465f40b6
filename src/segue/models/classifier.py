"""A sequence classifier that judges texts: a reward model with one output, or any classifier by one of its labels."""

from __future__ import annotations

import functools
from collections.abc import Sequence as Seq
from pathlib import Path

import torch

from segue.models import pretrained

UNLIMITED = 10**9  # what tokenizers state as their longest text where they know none


class Classifier:
    """Reads one text at a time, so that a score does not depend on its company."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification

        self.network, self.tokenizer = pretrained.read(AutoModelForSequenceClassification, folder)
        self.tokenizer.truncation_side = "left"  # the newest words count
        stated = getattr(self.network.config, "max_position_embeddings", UNLIMITED)
        self.longest = min(int(stated), int(self.tokenizer.model_max_length))
        self.labels = [str(self.network.config.id2label[i]) for i in range(self.network.config.num_labels)]

    @torch.inference_mode()
    def __call__(self, texts: Seq[str], label: str = "") -> list[float]:
        """A score for each text; a text that is too long loses its beginning.

        One output: its value. A `label`: the log-probability of that one. Two labels and none named: the log-odds of
        the second. ValueError for a label that there is not, and where one of more than two has to be named."""
        place = self._place(label)
        found = []
        for text in texts:
            limits = {"truncation": True, "max_length": self.longest} if self.longest < UNLIMITED else {}
            ids = self.tokenizer(text, return_tensors="pt", **limits)
            logits = self.network(**ids).logits[0].double()  # (labels,)
            if len(self.labels) == 1:
                found.append(float(logits[0]))
            elif label:
                found.append(float(logits.log_softmax(-1)[place]))
            else:
                found.append(float(logits[1] - logits[0]))
        return found

    def _place(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        if label or len(self.labels) > 2:
            named = f"label {label!r} is not known" if label else f"one of {len(self.labels)} labels is to be named"
            raise ValueError(f"the classifier's {named}: classifier:PATH#LABEL with one of {', '.join(self.labels)}")
        return 0


@functools.lru_cache(maxsize=2)
def classifier(folder: str) -> Classifier:
    """The classifier in a folder; loaded once. ValueError where there is none."""
    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise ValueError(f"no classifier in {folder}: give the folder of a transformers sequence classification model")
    return Classifier(place)
