"""From raw logits to the distribution that the next token is drawn from: transformers' processors in its own order."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from segue.data import Settings
from segue.models.constraint import Constraint
from segue.models.lm import LM
from segue.ops.accept import one_hot


class OccurrencePenalty(hf.LogitsProcessor):  # type: ignore[misc]
    """Presence and frequency penalties over the output, as in the OpenAI API: transformers has neither."""

    def __init__(self, prompt_length: int, presence: float, frequency: float) -> None:
        self.prompt_length = prompt_length
        self.presence = presence
        self.frequency = frequency

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> (B, V)."""
        counts = torch.zeros_like(scores)
        output = input_ids[:, self.prompt_length :]
        counts.scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


class Target:
    """p of one request: what a token is drawn from after a prefix. Also applied to draft models, as exactness asks.
    `own` are the processors that the model itself asks for; a constraint masks what they leave."""

    def __init__(
        self,
        settings: Settings,
        lm: LM,
        prompt_length: int,
        own: Iterable[hf.LogitsProcessor] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.greedy = settings.temperature == 0
        self.constraint = constraint
        self._prompt_length = prompt_length
        self._vocab_size = lm.vocab_size
        self._history = hf.LogitsProcessorList()
        self._add_history(settings, lm, prompt_length)
        self._history.extend(own)  # what is forced comes last, as in transformers
        self._local = hf.LogitsProcessorList()
        if not self.greedy:
            self._add_warpers(settings)

    @property
    def argmax(self) -> bool:
        """The next token is the arg-max of the raw logits: nothing else has to be computed."""
        return self.greedy and not self._history and self.constraint is None

    @property
    def free(self) -> Target:
        """The same without the constraint: what is drawn from where tokens are checked one by one."""
        other = copy.copy(self)
        other.constraint = None
        return other

    def p(self, logits: Tensor, prefix: list[int]) -> Tensor:
        """Probabilities (V,) after `prefix` (all token ids so far) from raw logits (V,)."""
        processed = self.processed(logits, prefix)
        if self.greedy:
            return one_hot(int(processed.argmax()), processed.shape[0], processed.device)
        return torch.softmax(processed, -1)

    def processed(self, logits: Tensor, prefix: list[int], *, warp: bool = True) -> Tensor:
        """Logits (V,) after penalties, constraints and (when sampling, unless `warp` is off) warpers; at least
        float32."""
        # Always a copy, since some processors write in place.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)[None]
        if self._history:
            scores = self._history(torch.tensor([prefix], device=logits.device), scores)
        if self.constraint is not None:
            scores = self.constraint.apply(scores[0], tuple(prefix[self._prompt_length :]))[None]
        if self._local and warp:
            scores = self._local(torch.empty(1, 0, dtype=torch.long, device=logits.device), scores)
        return scores[0]

    def _add_history(self, settings: Settings, lm: LM, prompt_length: int) -> None:
        add = self._history.append
        if settings.logit_bias:
            bad = next((t for t in settings.logit_bias if t >= lm.vocab_size), None)
            if bad is not None:
                raise ValueError(f"logit_bias names token {bad}, but the vocabulary ends at {lm.vocab_size - 1}")
            add(hf.SequenceBiasLogitsProcessor({(t,): b for t, b in settings.logit_bias.items()}))
        if settings.repetition_penalty != 1:
            add(hf.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        if settings.presence_penalty or settings.frequency_penalty:
            add(OccurrencePenalty(prompt_length, settings.presence_penalty, settings.frequency_penalty))
        if settings.bad_words:
            add(hf.NoBadWordsLogitsProcessor(_spellings(settings.bad_words, lm), sorted(lm.eos_ids) or None))
        ends = sorted(lm.eos_ids | set(settings.stop_tokens))
        if settings.min_tokens and ends:
            add(hf.MinNewTokensLengthLogitsProcessor(prompt_length, settings.min_tokens, ends))

    def _add_warpers(self, settings: Settings) -> None:
        add = self._local.append
        if settings.temperature != 1:
            add(hf.TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k:
            add(hf.TopKLogitsWarper(min(settings.top_k, self._vocab_size)))
        if settings.top_p < 1:
            add(hf.TopPLogitsWarper(float(settings.top_p)))
        if settings.min_p > 0:
            add(hf.MinPLogitsWarper(float(settings.min_p)))
        if settings.typical_p < 1:
            add(hf.TypicalLogitsWarper(float(settings.typical_p)))


def _spellings(words: tuple[str, ...], lm: LM) -> list[list[int]]:
    """Token sequences of every bad word, at the start of a text and after a space."""
    if lm.tokenizer is None:
        raise ValueError(f"bad_words needs a tokenizer, and {lm.name} has none: use logit_bias with token ids")
    found = []
    for word in words:
        for text in (word, " " + word):
            ids = lm.encode(text, special=False)
            if ids and ids not in found:
                found.append(ids)
    return found
