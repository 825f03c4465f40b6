"""A cross-encoder: a sequence classifier that reads a query and a document together and says how well they fit."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from segue.models.pretrained import read


class CrossEncoder:
    """Reads one pair at a time, so that a score does not depend on its company."""

    scored_by = "cross-encoder"  # as a ranking names it

    def __init__(self, folder: Path) -> None:
        """ValueError for a classifier whose labels do not say which of them means relevant."""
        from transformers import AutoModelForSequenceClassification

        self.name = folder.name
        self.network, self.tokenizer = read(AutoModelForSequenceClassification, folder)
        config = self.network.config
        if config.num_labels > 2:
            raise ValueError(
                f"{folder} has {config.num_labels} labels: a reranker has one output, or two of which the second means "
                "relevant"
            )
        self.longest = min(int(config.max_position_embeddings), int(self.tokenizer.model_max_length))

    def tokens(self, query: str, document: str, *, cut: bool = False) -> dict[str, list[int]]:
        """What the network reads of a pair: ids and what else its tokenizer gives. ValueError where they are more than
        `longest`, unless the document's end may be `cut`."""
        for text in (query, document):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"the text is not Unicode: half a surrogate pair at character {error.start}") from None
        found = {name: list(row) for name, row in self.tokenizer(query, document, verbose=False).items()}
        size = len(found["input_ids"])
        if size <= self.longest:
            return found
        if not cut:
            raise ValueError(
                f"a query and a document of {size} tokens together are longer than {self.name} reads ({self.longest}): "
                "shorten them, or let documents be cut by truncate"
            )
        around = size - len(self.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"])
        if around >= self.longest:
            raise ValueError(f"the query leaves no room for a document: {self.name} reads {self.longest} tokens")
        kept = self.tokenizer(query, document, truncation="only_second", max_length=self.longest)
        return {name: list(row) for name, row in kept.items()}

    @torch.inference_mode()
    def score(self, pair: dict[str, list[int]]) -> float:
        """The log-odds of being relevant: the one output, or the second against the first of two."""
        logits = self.network(**{name: torch.tensor([row]) for name, row in pair.items()}).logits[0].double()
        return float(logits[0] if len(logits) == 1 else logits[1] - logits[0])


@functools.lru_cache(maxsize=2)
def cross_encoder(folder: str) -> CrossEncoder:
    """The cross-encoder in a folder; loaded once. ValueError where there is none."""
    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise ValueError(f"no reranker in {folder}: give the folder of a transformers sequence classification model")
    return CrossEncoder(place.resolve())
