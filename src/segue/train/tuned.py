"""Fine-tuning of a whole model for a method that needs a model of its own, and what that does to the model itself."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segue import catalog
from segue.models.folder import replace_folder
from segue.models.transformers.load import bare, wrap
from segue.models.tuning import SHEET, TUNINGS
from segue.train.recipes import Tuned
from segue.train.savings import PROMPTS, savings
from segue.train.states import PARTS
from segue.train.task import Pass

TOGETHER = 16  # texts of a forward that only measures


class TunedTask:
    """A `Tuned` recipe at work: texts of one length, in an order that depends on the seed alone."""

    told = ("perplexity", "tokens_per_forward")

    def __init__(self, recipe: Tuned, source: str | None, texts: list[list[int]]) -> None:
        self.recipe = recipe
        self.base, network, self.tokenizer = bare(source)
        if network.config.is_encoder_decoder:
            raise ValueError(f"{self.base} is an encoder-decoder, and {recipe.kind} tunes decoders alone")
        self.model: Any = network.float().train()
        kind = TUNINGS[recipe.kind]
        if recipe.mask >= 0 and not kind.masks:
            raise ValueError(f"mask={recipe.mask} is not for {recipe.kind}, which masks nothing: leave it out")
        most = getattr(network.config, "max_position_embeddings", None) or recipe.length
        if recipe.length > most:
            raise ValueError(f"length={recipe.length} is not allowed: {self.base} reads up to {most} tokens")
        numbers: dict[str, Any] = dict(recipe.numbers)
        self.objective = kind(mask=self._mask(recipe.mask), **numbers) if kind.masks else kind(**numbers)
        pieces = [t[i : i + recipe.length] for t in texts for i in range(0, len(t) - recipe.length + 1, recipe.length)]
        if len(pieces) < PARTS:
            raise ValueError(
                f"{len(pieces)} windows of {recipe.length} tokens are too few: at least {PARTS}; give more or longer "
                "texts, or lower --set length=..."
            )
        order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
        held = max(1, len(pieces) // PARTS)
        self.held = torch.tensor([pieces[i] for i in order[:held]])
        self.texts = torch.tensor([pieces[i] for i in order[held:]])
        self.place = {"step": 0}
        self.before = self.perplexity()

    def _mask(self, given: int) -> int:
        known = [getattr(self.tokenizer, name, None) for name in ("mask_token_id", "pad_token_id")]
        ends = self.model.config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        token = given if given >= 0 else next((t for t in known if t is not None and t not in ends), None)
        if token is None or token >= self.model.config.vocab_size:
            raise ValueError(
                f"{self.base} has no token to mask with: name one that its texts never have with --set mask=ID (below "
                f"{self.model.config.vocab_size})"
            )
        return int(token)

    def passes(self, spent: float) -> Iterator[Pass]:
        recipe, step = self.recipe, self.place["step"]
        self.place = {"step": step + 1}
        size = max(1, recipe.micro_tokens // recipe.length)
        parts = max(1, recipe.batch_tokens // recipe.micro_tokens)
        for part in range(parts):
            seed = recipe.seed + 1_000_003 * step + part
            generator = torch.Generator().manual_seed(seed)
            ids = self.texts[torch.randint(len(self.texts), (size,), generator=generator)]
            loss = self.objective.loss(self.model, ids, torch.ones_like(ids, dtype=torch.bool), generator)
            yield Pass(loss, loss.item(), 1 / parts, ids.numel())

    @torch.no_grad()
    def perplexity(self) -> float:
        """Of the held-out texts, token by token as an ordinary model."""
        total = 0.0
        self.model.eval()
        for start in range(0, len(self.held), TOGETHER):
            ids: Tensor = self.held[start : start + TOGETHER]
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float()
            total += float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
        self.model.train()
        return round(math.exp(total / (len(self.held) * (self.recipe.length - 1))), 3)

    def evaluate(self, *, quick: bool) -> dict[str, dict[str, float]]:
        """The model as an ordinary one, before and now; not in a hurry also what its method saves."""
        result = {"before": {"perplexity": self.before}, "now": {"perplexity": self.perplexity()}}
        if not quick:
            network = copy.deepcopy(self.model).eval().requires_grad_(False)
            lm = wrap(network, self.tokenizer, name=self.base)
            lm.tuned = self.objective.facts()
            prompts = self.held[:PROMPTS, : self.recipe.length // 4].tolist()
            result["greedy"] = savings(lm, catalog.build(self.recipe.kind), prompts)
            result["plain"] = savings(lm, catalog.build("plain"), prompts)
        return result

    def facts(self) -> Mapping[str, Any]:
        return {"kind": self.recipe.kind, "base": self.base, **self.objective.facts()}

    def export(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """A checkpoint that transformers loads as any other, and what it was tuned for."""
        staging = folder.with_name(folder.name + ".new")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(staging)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(staging)
        sheet = {**self.objective.facts(), "base": self.base, "training": dict(facts)}
        (staging / SHEET).write_text(json.dumps(sheet, indent=1) + "\n")
        replace_folder(staging, folder)
