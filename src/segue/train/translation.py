"""Training of a translator: padded sentence pairs, and BLEU and chrF of what it writes for held-out sentences."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, processors

from segue.models.build import END_OF_TEXT, PADDING, drawing_from, fresh_t5, save_model
from segue.train.pairs import Batch, Pair, PairReader, heldout_pairs, news_pairs, pad, training_pairs
from segue.train.recipes import Translation
from segue.train.task import Pass
from segue.train.tokenizer import special_id, train_tokenizer

SMALL_EVALUATION = 200  # sentences
TOGETHER = 64  # sentences translated at once
LONGEST = 64  # tokens of a translated sentence, and as many as the source has more than these
BEAMS = 4


class TranslationTask:
    """A `Translation` recipe at work in the folder `out`."""

    told = ("bleu", "chrf")

    def __init__(self, recipe: Translation, data: Path, out: Path) -> None:
        self.recipe, self.data = recipe, data
        _sacrebleu()  # a missing package is told before the training, not after it
        pairs = training_pairs(data)
        self.tokenizer_file = _prepare(pairs, recipe.shape.vocab_size, out / "tokens")
        self.tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        self.end, self.padding = (special_id(self.tokenizer, token) for token in (END_OF_TEXT, PADDING))
        first = torch.Generator().manual_seed(recipe.seed)
        self.model: Any = fresh_t5(recipe.shape, first, end_of_text=self.end, padding=self.padding)
        self.model.train()
        sources, targets = ([encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
                            for texts in ([p.source for p in pairs], [p.target for p in pairs]))  # fmt: skip
        self.reader = PairReader(sources, targets, recipe.micro_tokens, self.padding, recipe.seed)

    @property
    def place(self) -> dict[str, int]:
        """The epoch, and the batch in it."""
        return self.reader.place

    @place.setter
    def place(self, place: dict[str, int]) -> None:
        self.reader.place = place

    def passes(self, spent: float) -> Iterator[Pass]:
        """As many batches as come closest to the recipe's tokens of a step."""
        batches: list[Batch] = []
        counts: list[int] = []
        seed = self.recipe.seed + 1_000_003 * self.place["epoch"] + self.place["batch"]  # of what is dropped out
        while not counts or sum(counts) + counts[-1] / 2 < self.recipe.batch_tokens:
            batches.append(self.reader.batch())
            counts.append(int((batches[-1].target != self.padding).sum()))
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            loss, entropy = self._loss(batch, seed + number)
            yield Pass(loss, entropy, count / sum(counts), count)

    def _loss(self, batch: Batch, seed: int) -> tuple[torch.Tensor, float]:
        """The smoothed loss on a batch, and the cross-entropy."""
        start = torch.full((batch.rows, 1), self.padding)
        inputs = torch.cat([start, batch.target[:, :-1]], dim=1)  # (B, T)
        chances = torch.Generator().manual_seed(seed)
        with drawing_from(chances), torch.autocast("cpu", torch.bfloat16):
            logits = self.model(
                input_ids=batch.source, attention_mask=batch.seen, decoder_input_ids=inputs, use_cache=False
            ).logits  # (B, T, V)
        written = batch.target != self.padding
        logp = logits[written].float().log_softmax(-1)
        entropy = F.nll_loss(logp, batch.target[written])
        smoothing = self.recipe.smoothing
        return (1 - smoothing) * entropy - smoothing * logp.mean(), entropy.item()

    def evaluate(self, *, quick: bool) -> dict[str, dict[str, float]]:
        """BLEU and chrF of greedy translations; not in a hurry also with beams, and on news."""
        if quick:
            pairs = heldout_pairs(self.data, "valid")
            return {"valid": self.score(pairs[:: max(1, len(pairs) // SMALL_EVALUATION)])}
        test = heldout_pairs(self.data, "test")
        result = {"test": self.score(test), f"test, {BEAMS} beams": self.score(test, BEAMS)}
        news = news_pairs(self.data)
        return result | ({"news": self.score(news)} if news else {})

    def score(self, pairs: Sequence[Pair], beams: int = 1) -> dict[str, float]:
        """BLEU and chrF (sacrebleu's defaults, 0 to 100) of the model's translations."""
        measures = _sacrebleu()
        written = self.translate([pair.source for pair in pairs], beams)
        references = [[pair.target for pair in pairs]]
        return {
            "bleu": round(measures.corpus_bleu(written, references).score, 2),
            "chrf": round(measures.corpus_chrf(written, references).score, 2),
            "sentences": len(pairs),
        }

    @torch.inference_mode()
    def translate(self, texts: Sequence[str], beams: int = 1) -> list[str]:
        """What the model writes, by transformers' own generate."""
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        written = [""] * len(texts)
        self.model.eval()
        for start in range(0, len(order), TOGETHER):
            chosen = order[start : start + TOGETHER]
            source = pad([encoded[i] for i in chosen], self.padding)
            out = self.model.generate(
                input_ids=source, attention_mask=(source != self.padding).long(), do_sample=False, num_beams=beams,
                max_new_tokens=LONGEST + source.shape[1],
            )  # fmt: skip
            for i, line in zip(chosen, self.tokenizer.decode_batch(out.tolist()), strict=True):
                written[i] = line
        self.model.train()
        return written

    def export(self, folder: Path, facts: Mapping[str, Any]) -> None:
        save_model(self.model, self.tokenizer_file, folder)

    def facts(self) -> Mapping[str, Any]:
        return {"epochs": round(self.reader.epochs(), 2), "pairs": len(self.reader.sources)}


def _prepare(pairs: Sequence[Pair], vocabulary: int, folder: Path) -> Path:
    """Write tokenizer.json into `folder` where it is not there yet; it ends every text with the end of text."""
    kept = folder / "tokenizer.json"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = train_tokenizer((text for pair in pairs for text in (pair.source, pair.target)), vocabulary)
        end = special_id(tokenizer, END_OF_TEXT)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, end)]
        )
        staging = kept.with_suffix(".new")
        tokenizer.save(str(staging))
        os.replace(staging, kept)
    return kept


def _sacrebleu() -> Any:
    """The package that measures; ValueError where it is missing."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ValueError("translations are measured by the package sacrebleu; pip install 'segue[train]'") from error
    return sacrebleu
