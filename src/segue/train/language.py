"""Training of a language model: packed windows of a mixture of sources, with or without a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from segue.models.build import END_OF_TEXT, PADDING, fresh_llama, load_llama, project_embeddings, save_model
from segue.train.batches import Reader, prepare, sequences_per
from segue.train.evaluate import heldout
from segue.train.recipes import LanguageModel
from segue.train.record import FILE, Record
from segue.train.task import Pass
from segue.train.tokenizer import special_id

SMALL_EVALUATION = 8192  # tokens per source


class LanguageTask:
    """A `LanguageModel` recipe at work in the folder `out`; with `start`, the folder of a model of the same shape, it
    goes on from that model's weights and from the place in the data where the model's own training ended."""

    told = ("perplexity",)

    def __init__(
        self, recipe: LanguageModel, data: Path, out: Path, teacher: Path | None, start: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.folder = out / "tokens"
        self.record = Record.of(start, recipe) if start else Record()
        source = start or teacher
        shared = source / "tokenizer.json" if source else None
        self.tokenizer_file = prepare(data, self.folder, recipe.mixture, recipe.shape.vocab_size, recipe.seed, shared)
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        self.model: Any = fresh_llama(
            recipe.shape,
            torch.Generator().manual_seed(recipe.seed),
            end_of_text=special_id(tokenizer, END_OF_TEXT),
            padding=special_id(tokenizer, PADDING),
        )
        self.guide = load_llama(teacher) if teacher else None
        self.reader = Reader(self.folder, recipe.mixture, recipe.seed)
        if start is not None:
            self.model.load_state_dict(load_llama(start).state_dict())
            self.reader.taken = dict(self.record.read)
        elif self.guide is not None:
            project_embeddings(self.guide, self.model)

    @property
    def place(self) -> dict[str, int]:
        """Tokens read of each source."""
        return self.reader.taken

    @place.setter
    def place(self, taken: dict[str, int]) -> None:
        self.reader.taken = taken

    def passes(self, spent: float) -> Iterator[Pass]:
        recipe = self.recipe
        length = recipe.long_length if spent >= recipe.long_from else recipe.length
        micro = sequences_per(recipe.micro_tokens, length)
        count = sequences_per(recipe.batch_tokens, length * micro)
        for _ in range(count):
            loss, entropy = self._loss(self.reader.batch(micro, length))
            yield Pass(loss, entropy, 1 / count, micro * length)

    def _loss(self, batch: torch.Tensor) -> tuple[torch.Tensor, float]:
        """The loss to minimise on a batch (B, T + 1), and the cross-entropy on the data alone."""
        inputs, targets = batch[:, :-1], batch[:, 1:].flatten()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float()  # (B * T, V)
        if self.guide is None:
            entropy = F.cross_entropy(logits, targets)
            return entropy, entropy.item()
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            wanted = self.guide(input_ids=inputs, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
        logp = logits.log_softmax(-1)
        entropy = F.nll_loss(logp, targets)
        divergence = F.kl_div(logp, wanted.clone(), log_target=True, reduction="batchmean")
        distil = self.recipe.distil
        return distil * divergence + (1 - distil) * entropy, entropy.item()

    def evaluate(self, *, quick: bool) -> dict[str, dict[str, float]]:
        return heldout(self.model, self.folder, self.recipe.mixture, limit=SMALL_EVALUATION if quick else None)

    def export(self, folder: Path, facts: Mapping[str, Any]) -> None:
        legs = [*self.record.legs, {**facts, "seed": self.recipe.seed}]
        record = Record(legs, self.reader.taken)
        save_model(self.model, self.tokenizer_file, folder, {FILE: record.text()})

    def facts(self) -> Mapping[str, Any]:
        epochs = {name: round(value, 2) for name, value in self.reader.epochs().items()}
        return {"epochs": epochs} | ({"earlier": self.record.legs} if self.record.legs else {})
