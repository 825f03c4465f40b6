"""Methods as the decoding loop of transformers' own `generate`, in place of the one that it would choose.

What `generate` prepared (texts, processors, stopping criteria, lengths) is honoured or refused by name. The model is
driven for the time of a call: only the name of its attention function changes, and that is put back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import logits_process as hf
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import (
    GenerateBeamDecoderOnlyOutput,
    GenerateBeamEncoderDecoderOutput,
    GenerateDecoderOnlyOutput,
    GenerateEncoderDecoderOutput,
)

from segue.data import Candidate, Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method, sequences_of
from segue.models.run import Run
from segue.models.transformers.load import wrap
from segue.models.warp import Target

# What generate hands to every loop, and what it says of texts that are not padded.
EXPECTED = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", "encoder_outputs", "cache_position"}
CACHES = ("cache", "past_key_values")
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
# Processors that know the rows of a batch by their number, or keep a second text for each.
ROWS = (hf.EncoderNoRepeatNGramLogitsProcessor, hf.EncoderRepetitionPenaltyLogitsProcessor)
STREAMS = (hf.ClassifierFreeGuidanceLogitsProcessor, hf.UnbatchedClassifierFreeGuidanceLogitsProcessor)


class Generate:
    """What `generate(custom_generate=...)` takes. Holds the model that it drove last, nothing else between calls."""

    def __init__(self, name: str, build: Callable[[GenerationConfig], Method], tokenizer: Any = None) -> None:
        """`build` makes the method for a call, of which the generation config may set some fields."""
        self.name = name
        self.tokenizer = tokenizer
        self._build = build
        self._driven: tuple[tuple[Any, ...], LM, list[tuple[Any, str | None]]] | None = None

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        inputs_tensor: Tensor | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """The sequences (B * num_return_sequences, T), as ids or in an output of transformers."""
        method = self._build(generation_config)
        self._check(model, inputs_tensor, generation_config, model_kwargs)
        with self._driving(model) as lm:
            asked = _Asked(lm, input_ids, inputs_tensor, generation_config, model_kwargs)
            answers = [
                self._answer(asked, row, method, logits_processor, stopping_criteria) for row in range(len(asked.texts))
            ]
            engine = Engine()
            runs = [run for group in answers for run in group]
            jobs = [engine.add(run, method.run(run)) for run in runs]
            engine.drain(jobs)
        return asked.output(self.name, [[_candidates(run) for run in group] for group in answers])

    def _check(self, model: Any, inputs: Tensor | None, config: GenerationConfig, given: dict[str, Any]) -> None:
        """Raise ValueError, by name, for what cannot be honoured."""
        if model.training:
            raise ValueError(
                f"{self.name}: the model is in training mode, where it drops parts at random: model.eval()"
            )
        if inputs is None or inputs.ndim != 2 or inputs.is_floating_point():
            raise ValueError(f"{self.name} reads token ids: give input_ids, not inputs_embeds or another input")
        strange = sorted(k for k, v in given.items() if v is not None and k not in (*EXPECTED, *CACHES))
        if strange:
            raise ValueError(f"{self.name} does not know what {', '.join(strange)} means to the model: leave it out")
        if any(given.get(name) is not None and given[name].get_seq_length() for name in CACHES):
            raise ValueError(f"{self.name} reads a text from its start: give no cache that holds a part of it")
        wanted = [name for name in OUTPUTS if getattr(config, name, None)]
        if config.return_dict_in_generate and wanted:
            raise ValueError(f"{self.name} returns sequences only: leave out {', '.join(wanted)}")

    def _answer(
        self,
        asked: _Asked,
        row: int,
        method: Method,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
    ) -> list[Run]:
        """The runs of a text: one, or as many as samples are asked for."""
        settings = asked.settings()
        count = asked.count if settings.temperature else 1
        runs = []
        for _ in range(count):
            run = Run(asked.lm, asked.texts[row], asked.settings(), method=self.name)
            run.width = sequences_of(method)
            own = _own(processors, asked, row, self.name)
            run.target = Target(settings, asked.lm, run.prompt_length, [own] if own is not None else [])
            others = [c for c in criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)]
            if others:
                run.halts = _Halts(StoppingCriteriaList(others), asked.padded[row])
            runs.append(run)
        return runs

    @contextmanager
    def _driving(self, model: Any) -> Iterator[LM]:
        """Within the context Segue's attention is the model's."""
        before = _attentions(model)
        key = (id(model), model.device, model.dtype)
        try:
            if self._driven is None or self._driven[0] != key:
                lm = wrap(model, self.tokenizer)
                self._driven = key, lm, _attentions(model)
            _set(self._driven[2])
            yield self._driven[1]
        finally:
            _set(before)


def _attentions(model: Any) -> list[tuple[Any, str | None]]:
    """Every configuration of a model, the outer before the inner, with the attention that it names."""
    configs = [m.config for m in model.modules() if hasattr(m, "config") and hasattr(m.config, "_attn_implementation")]
    return [(c, c._attn_implementation) for c in {id(c): c for c in configs}.values()]


def _set(attentions: list[tuple[Any, str | None]]) -> None:
    for config, name in attentions:
        config._attn_implementation = name


class _Asked:
    """A batch as generate prepared it, with its texts freed of padding and repetition."""

    def __init__(
        self, lm: LM, ids: Tensor, inputs: Tensor | None, config: GenerationConfig, given: dict[str, Any]
    ) -> None:
        assert inputs is not None
        self.lm, self.config, self.ids = lm, config, ids
        self.count = int(config.num_return_sequences or 1)
        self.copies = len(ids) // len(inputs)  # generate repeats every text for its beams
        self.padded = ids[:: self.copies]
        mask = given.get("attention_mask")
        if lm.start_ids:
            starts = {tuple(row) for row in self.padded.tolist()}
            if starts != {lm.start_ids}:
                raise ValueError(
                    f"the decoder is to start with {sorted(starts)}, and that of {lm.name} starts with {lm.start_ids}: "
                    "leave decoder_input_ids and decoder_start_token_id out"
                )
        rows = inputs if lm.start_ids else self.padded
        masks = torch.ones_like(rows) if mask is None else mask[:: self.copies]
        self.texts = [_unpadded(row, own, bool(lm.start_ids)) for row, own in zip(rows, masks, strict=True)]
        if not lm.start_ids and given.get("position_ids") is not None:
            ordinary = (masks.long().cumsum(-1) - 1).clamp(min=0)
            own = given["position_ids"][:: self.copies].to(ordinary)
            if own.shape != ordinary.shape or bool(((own != ordinary) & (masks != 0)).any()):
                raise ValueError("position_ids other than those of the texts cannot be honoured: leave them out")
        self.room = int(config.max_length) - ids.shape[1]
        longest = max(len(lm.start_ids) or len(text) for text in self.texts)
        if longest + self.room > lm.context_length:
            raise ValueError(
                f"{longest} tokens and {self.room} new ones go beyond the context of {lm.name} ({lm.context_length}): "
                "lower max_new_tokens or max_length"
            )

    def settings(self) -> Settings:
        """What a request is without the processors of generate; samples follow torch's own generator."""
        ends = self.config.eos_token_id
        return Settings(
            max_tokens=self.room,
            temperature=1.0 if self.config.do_sample else 0.0,
            stop_tokens=() if ends is None else (ends,) if isinstance(ends, int) else tuple(ends),
            ignore_eos=True,
            seed=int(torch.randint(2**62, ())) if self.config.do_sample else None,
        )

    def output(self, name: str, answers: list[list[list[Candidate]]]) -> Any:
        """What generate returns. `answers`: per text and run the candidates, best first."""
        chosen: list[Candidate] = []
        for group in answers:
            found = group[0][: self.count] if len(group) == 1 else [run[0] for run in group]
            if len(found) < self.count:
                raise ValueError(
                    f"num_return_sequences={self.count} is not allowed: {name} gives {len(found)} here; ask for fewer, "
                    "or sample (do_sample=True)"
                )
            chosen += found
        width = max(len(c.tokens) for c in chosen)
        pad = self.config.pad_token_id
        pad = pad if pad is not None else next(iter(self.settings().stop_tokens), 0)
        new = torch.full((len(chosen), width), pad, dtype=self.ids.dtype, device=self.ids.device)
        for row, candidate in zip(new, chosen, strict=True):
            row[: len(candidate.tokens)] = torch.tensor(candidate.tokens, dtype=new.dtype)
        sequences = torch.cat([self.padded.repeat_interleave(self.count, 0), new], 1)
        if not self.config.return_dict_in_generate:
            return sequences
        if any(len(run) > 1 for group in answers for run in group):
            kind = GenerateBeamEncoderDecoderOutput if self.lm.start_ids else GenerateBeamDecoderOnlyOutput
            scores = torch.tensor([c.score for c in chosen], device=sequences.device)
            return kind(sequences=sequences, sequences_scores=scores)
        return (GenerateEncoderDecoderOutput if self.lm.start_ids else GenerateDecoderOnlyOutput)(sequences=sequences)


def _unpadded(row: Tensor, mask: Tensor, source: bool) -> list[int]:
    """The tokens of a row that its mask keeps: a text in one piece, padded on the left, a source on the right."""
    kept = mask.nonzero()[:, 0].tolist()
    at = 0 if source else len(row) - len(kept)
    if not kept or kept != list(range(at, at + len(kept))):
        side, why = ("right", "an encoder counts from its first row") if source else ("left", "the text goes on behind")
        raise ValueError(
            f"attention_mask keeps {mask.tolist()}: pad on the {side}, where {why} (tokenizer.padding_side={side!r})"
        )
    tokens: list[int] = row[kept].tolist()
    return tokens


@dataclass(frozen=True)
class _Halts:
    """Further criteria that end an output."""

    criteria: StoppingCriteriaList
    prompt: Tensor  # (T,) as generate was given it, padding included

    def __call__(self, output: list[int]) -> bool:
        ids = torch.cat([self.prompt, torch.tensor(output, dtype=self.prompt.dtype, device=self.prompt.device)])
        return bool(self.criteria(ids[None], None)[0])


class _Padded(hf.LogitsProcessor):  # type: ignore[misc]
    """The processors of generate for one row: they count from the padded prompt."""

    def __init__(self, processors: LogitsProcessorList, prompt: Tensor, length: int) -> None:
        self.processors = processors
        self.prompt = prompt  # (T,) padding included
        self.length = length  # of the prompt without it

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        whole = torch.cat([self.prompt[None], input_ids[:, self.length :].to(self.prompt)], 1)
        processed: Tensor = self.processors(whole.to(scores.device), scores)
        return processed


def _own(processors: LogitsProcessorList, asked: _Asked, row: int, name: str) -> _Padded | None:
    """The processors for one row of the batch; None where there are none."""
    own = LogitsProcessorList()
    for processor in processors:
        kind = type(processor).__name__
        if isinstance(processor, STREAMS) or (isinstance(processor, ROWS) and len(asked.texts) > 1):
            raise ValueError(f"{name} cannot run with {kind}, which reads the batch as a whole: leave its option out")
        if isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
            allowed = processor._prefix_allowed_tokens_fn
            processor = hf.PrefixConstrainedLogitsProcessor(lambda _, ids, f=allowed: f(row, ids), 1)
        ignored = getattr(processor, "prompt_ignore_length", None)
        if isinstance(ignored, Tensor):  # of every row the padding
            processor = copy.copy(processor)
            processor.prompt_ignore_length = ignored[:: len(ignored) // len(asked.texts)][row : row + 1]
        own.append(processor)
    length = len(asked.lm.start_ids) or len(asked.texts[row])
    return _Padded(own, asked.padded[row], length) if own else None


def _candidates(run: Run) -> list[Candidate]:
    """The answers of a run, best first."""
    if run.candidates is not None:
        return run.candidates
    return [Candidate("", run.output, 0.0, 0.0, run.finish_reason or "length")]
