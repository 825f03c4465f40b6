"""Samplers of the room choose/sample as processors for transformers' own `generate`, alone or with beams.

Both are right for raw logits, which transformers gives them when it samples, and for the log-probabilities of its beam
search.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers.generation import logits_process as hf
from transformers.modeling_outputs import BaseModelOutput

from segue.ops.bregman import truncate

Key = tuple[int, ...]


class BregmanTopKLogitsWarper(hf.LogitsProcessor):  # type: ignore[misc]
    """Scores to the logarithm of the Bregman-optimal distribution, as method bregman_topk. transformers applies its own
    temperature behind what a user passes; `temperature` here acts before, as it should."""

    def __init__(
        self,
        alpha: float = 1.5,
        price: float = 0.001,
        *,
        dual: bool = False,
        k: int = 0,
        k_max: int = 0,
        temperature: float = 1.0,
    ) -> None:
        if alpha < 0.05 or (dual and alpha <= 1) or price < 0 or k < 0 or k_max < 0 or temperature <= 0:
            raise ValueError(
                f"alpha={alpha}, price={price}, dual={dual}, k={k}, k_max={k_max}, temperature={temperature} are not "
                "allowed: alpha from 0.05 (dual: above 1), a temperature above 0, the others at least 0"
            )
        self.form: dict[str, Any] = {"alpha": alpha, "price": price, "dual": dual, "k": k, "k_max": k_max}
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> log q (B, V)."""
        p = (scores.double() / self.temperature).softmax(-1)
        q, _ = truncate(p, **self.form)
        return q.log().to(scores.dtype)


class InstructiveLogitsProcessor(hf.LogitsProcessor):  # type: ignore[misc]
    """z - eps * z', where z' are the model's scores after a distorted prompt, as method instructive.

    `prompts` are the rows that generate is given (padding included) and `noisy` the distorted prompt (ids) of each; of
    an encoder-decoder `noisy` are the sources that its encoder reads, one for all rows. What the second stream has read
    is found by the tokens of a row, never by its place: beams change places between calls.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], noisy: Sequence[Sequence[int]], eps: float = 0.3
    ) -> None:
        if not 0 <= eps < 1:
            raise ValueError(f"eps={eps} is not allowed: from 0 (ordinary decoding) to below 1")
        if len(prompts) != len(noisy) or not all(len(row) for row in noisy):
            raise ValueError(
                f"{len(prompts)} prompts and {len(noisy)} distorted ones: give one that is not empty for each"
            )
        lengths = {len(row) for row in prompts}
        if len(lengths) != 1:
            raise ValueError(
                f"prompts of {sorted(lengths)} tokens: give them as generate gets them, padded to one length"
            )
        self.eps = eps
        self.length = 0 if model.config.is_encoder_decoder else lengths.pop()
        if not self.length and len({tuple(row) for row in noisy}) > 1:
            raise ValueError("of an encoder-decoder all rows must have one distorted source: call generate for each")
        self._streams: dict[Key, _Stream] = {}
        for prompt, other in zip(prompts, noisy, strict=True):
            key = tuple(prompt) if self.length else ()
            known = self._streams.setdefault(key, _Stream(model, list(other)))
            if known.prompt != list(other):
                raise ValueError("two rows have one prompt and different distorted ones: call generate for each")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B, T), scores (B, V) -> (B, V)."""
        rows = input_ids.tolist()
        keys = [(tuple(row[: self.length]), tuple(row[self.length :])) for row in rows]
        noisy = torch.empty_like(scores)
        for prompt in dict.fromkeys(prompt for prompt, _ in keys):
            if prompt not in self._streams:
                raise ValueError(f"a row starts with {prompt}, which is none of the prompts that were given")
            mine = [i for i, (own, _) in enumerate(keys) if own == prompt]
            noisy[mine] = self._streams[prompt].scores([keys[i][1] for i in mine]).to(scores)
        return scores - self.eps * noisy.masked_fill(torch.isneginf(noisy), 0.0)


class _Stream:
    """A prompt followed by several outputs at a time. Keeps the past of those of the last call, by their tokens."""

    def __init__(self, model: Any, prompt: list[int]) -> None:
        self.model = model
        self.prompt = prompt
        self.known: dict[Key, int] = {}  # output -> its row in the cache
        self.cache: Any = None
        known = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in known else "past_key_values"  # as older transformers call it

    @torch.no_grad()
    def scores(self, outputs: list[Key]) -> Tensor:
        """Logits (B, V) after each output."""
        places = [self.known.get(output[:-1]) if output else None for output in outputs]
        device = self.model.device
        if self.cache is None or any(place is None for place in places):
            tokens = (
                outputs if self.model.config.is_encoder_decoder else [(*self.prompt, *output) for output in outputs]
            )
            self.cache = self._fresh()
        else:
            self.cache.reorder_cache(torch.tensor(places, device=device))
            tokens = [output[-1:] for output in outputs]
        self.known = {output: place for place, output in enumerate(outputs)}
        ids = torch.tensor([list(row) for row in tokens], device=device)
        if self.model.config.is_encoder_decoder:
            texts = {"encoder_outputs": self._encoded(len(outputs)), "decoder_input_ids": ids}
        else:
            texts = {"input_ids": ids}
        out = self.model(**texts, **{self._name: self.cache}, use_cache=True)
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def _fresh(self) -> Any:
        """An empty past. Layers that see a window must keep what a shorter beam may come back to, so none does."""
        if self.model.config.is_encoder_decoder:
            return EncoderDecoderCache(DynamicCache(), DynamicCache())
        return DynamicCache()

    def _encoded(self, rows: int) -> Any:
        if not hasattr(self, "_state"):
            source = torch.tensor([self.prompt], device=self.model.device)
            self._state = self.model.get_encoder()(input_ids=source).last_hidden_state  # (1, T, D)
        return BaseModelOutput(last_hidden_state=self._state.expand(rows, -1, -1))
