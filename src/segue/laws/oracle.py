"""Independent answers: what the model itself would write, found without any code of the methods.

`NetworkOracle` asks transformers' own generate on a separate copy of the network, with the network's own attention.
`TableOracle` reads an enumerable model's table; its formulas are plain Python on lists, on purpose.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel

from segue.data import Automaton, FinishReason, Settings
from segue.laws.enumerate import Law
from segue.laws.warped import warped
from segue.models.lm import LM
from segue.models.transformers.lm import TransformersLM


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy output with the rows it was read from."""

    tokens: list[int]
    reason: FinishReason
    logits: Tensor  # (n, V) as the model gave them
    scores: Tensor  # (n, V) after penalties and constraints: every token is the arg-max of its row


class Oracle(Protocol):
    """Knows what greedy decoding gives, and the model's rows."""

    def answer(self, prompt: Sequence[int], settings: Settings) -> Answer: ...
    def logits_after(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor: ...


def endings(lm: LM, settings: Settings) -> set[int]:
    """Tokens that end a text."""
    own = set() if settings.constraint is None else set(settings.constraint.end_ids)
    return own | set(settings.stop_tokens) | (set() if settings.ignore_eos else set(lm.eos_ids))


def room(lm: LM, prompt: Sequence[int], settings: Settings) -> int:
    """Tokens that may be written after a prompt."""
    return min(settings.max_tokens, lm.context_length - len(getattr(lm, "start_ids", ()) or prompt))


class NetworkOracle:
    """transformers' generate(do_sample=False); answers are kept, since every method is held to the same ones.

    `network`: the same model, loaded a second time by transformers. Without it the first one is copied, which needs
    ordinary linear layers (load(..., pack_linears=False), or a network that was only wrapped).
    """

    def __init__(self, lm: LM, network: Any = None) -> None:
        self._lm = lm
        if network is None and not isinstance(lm, TransformersLM):
            raise ValueError(f"{lm.name} is no transformers network: give the one that it was made from")
        self.network: Any = copy.deepcopy(lm.network) if network is None else network  # type: ignore[attr-defined]
        for part in self.network.modules():  # an encoder or decoder may have a configuration of its own
            if isinstance(part, PreTrainedModel):
                part.set_attn_implementation("eager")
        # What an encoder-decoder's own configuration forces or forbids is part of the model; ends are given each time.
        self.network.generation_config = copy.deepcopy(self.network.generation_config) if lm.start_ids else None
        self.network.generation_config = self.network.generation_config or GenerationConfig()
        self.network.generation_config.eos_token_id = None
        self._known: dict[str, Answer] = {}

    def answer(self, prompt: Sequence[int], settings: Settings) -> Answer:
        return self.answers([prompt], settings)[0]

    def answers(self, prompts: Sequence[Sequence[int]], settings: Settings, together: int = 1) -> list[Answer]:
        """Answers to several prompts, so many in one batch of transformers. Its padding would count as text for
        penalties, and its length limit is one for all: such requests are asked one by one all the same."""
        if settings.presence_penalty or settings.frequency_penalty or settings.bad_words or settings.stop:
            raise ValueError("transformers has no presence or frequency penalty, and this oracle no strings")
        if settings.constrained and settings.constraint is None:
            raise ValueError("this oracle reads no grammars: give constraint=... instead")
        limits = {self._limit([prompt], settings) for prompt in prompts}
        alone = settings.repetition_penalty != 1 or settings.logit_bias or settings.min_tokens or settings.constrained
        if alone or self._lm.start_ids or len(limits) > 1:
            together = 1
        keys = [
            repr((list(prompt), self._limit([prompt], settings), self._ends(settings), settings)) for prompt in prompts
        ]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in self._known}
        # Prompts of one length need no padding, and others little, when they are sorted.
        order = sorted(missing, key=lambda key: len(missing[key]))
        for start in range(0, len(order), together):
            group = order[start : start + together]
            self._known |= zip(group, self._generate([missing[key] for key in group], settings), strict=True)
        return [self._known[key] for key in keys]

    @torch.no_grad()
    def logits_after(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """(V,) the model's raw logits after a prompt and some output, by one forward over all of it."""
        if self._lm.start_ids:
            texts = {"input_ids": prompt, "decoder_input_ids": [*self._lm.start_ids, *output]}
        else:
            texts = {"input_ids": [*prompt, *output]}
        ids = {name: torch.tensor([list(text)], device=self._lm.device) for name, text in texts.items()}
        row: Tensor = self.network(**ids, use_cache=False).logits[0, -1]
        return row

    def beams(self, prompt: Sequence[int], settings: Settings, **options: Any) -> list[tuple[list[int], float]]:
        """The finished texts of transformers' beam search with their scores, best first. `options` go to generate."""
        ids = torch.tensor([list(prompt)], device=self._lm.device)
        ends, limit = self._ends(settings), self._limit([prompt], settings)
        out = self.network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=limit,
            min_new_tokens=min(settings.min_tokens, limit) or None,
            repetition_penalty=settings.repetition_penalty,
            sequence_bias={(token,): bias for token, bias in settings.logit_bias.items()} or None,
            eos_token_id=ends or None,
            pad_token_id=0,
            num_return_sequences=options["num_beams"],
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
        first = len(self._lm.start_ids) or len(prompt)
        scores = [0.0] if options["num_beams"] == 1 else out.sequences_scores.tolist()
        lengths = [limit] if options["num_beams"] == 1 else (out.beam_indices >= 0).sum(1).tolist()
        texts = [text[first : first + n] for text, n in zip(out.sequences.tolist(), lengths, strict=True)]
        return [(text, score) for text, score in zip(texts, scores, strict=True) if score > -1e8]

    def _ends(self, settings: Settings) -> list[int]:
        return sorted(endings(self._lm, settings))

    def _limit(self, prompts: Sequence[Sequence[int]], settings: Settings) -> int:
        return min(room(self._lm, prompt, settings) for prompt in prompts)

    def _generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> list[Answer]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=self._lm.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._lm.device)
        ends, limit = self._ends(settings), self._limit(prompts, settings)
        start = len(self._lm.start_ids) or width
        out = self.network.generate(
            ids,
            attention_mask=mask,  # without it transformers takes tokens that equal the padding id for padding
            do_sample=False,
            max_new_tokens=limit,
            min_new_tokens=min(settings.min_tokens, limit) or None,
            repetition_penalty=settings.repetition_penalty,
            logits_processor=[_Masked(settings, start)] if settings.constraint is not None else None,
            sequence_bias={(token,): bias for token, bias in settings.logit_bias.items()} or None,
            eos_token_id=ends or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=True,
        )
        logits, scores = torch.stack(out.logits, 1), torch.stack(out.scores, 1)
        found = []
        for row, output in enumerate(out.sequences[:, start:].tolist()):
            last = next((i for i, t in enumerate(output) if t in ends or complete(settings, output[: i + 1])), None)
            tokens = output if last is None else output[: last + 1]
            reason: FinishReason = "length" if last is None else "stop"
            found.append(Answer(tokens, reason, logits[row, : len(tokens)], scores[row, : len(tokens)]))
        return found


class Table(Protocol):
    """A model whose next-token logits can be looked up."""

    eos_ids: frozenset[int]
    context_length: int

    def logits_after(self, context: Sequence[int]) -> Tensor: ...


class TableOracle:
    """The exact law of an enumerable model, and its greedy output."""

    def __init__(self, lm: Any) -> None:
        if not hasattr(lm, "logits_after"):
            raise ValueError(f"{lm.name} is not enumerable: it has no logits_after(context)")
        self._lm = lm

    def logits_after(self, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
        """(V,) the model's raw logits after a prompt and some output, by look-up."""
        row: Tensor = self._lm.logits_after([*prompt, *output])
        return row

    def answer(self, prompt: Sequence[int], settings: Settings) -> Answer:
        ends = endings(self._lm, settings)
        ids, logits, scores = list(prompt), [], []
        reason: FinishReason = "length"
        for _ in range(room(self._lm, prompt, settings)):
            logits.append(self._lm.logits_after(ids).tolist())
            scores.append(self._scores(ids, len(prompt), settings))
            ids.append(scores[-1].index(max(scores[-1])))
            if ids[-1] in ends or complete(settings, ids[len(prompt) :]):
                reason = "stop"
                break
        return Answer(ids[len(prompt) :], reason, torch.tensor(logits).double(), torch.tensor(scores).double())

    def law(self, prompt: Sequence[int], settings: Settings) -> Law:
        """Probability of every output."""
        ends = endings(self._lm, settings)
        limit = room(self._lm, prompt, settings)
        finished: Law = {}
        open_texts: list[tuple[tuple[int, ...], float]] = [((), 1.0)]
        while open_texts:
            output, weight = open_texts.pop()
            p = warped(self._scores([*prompt, *output], len(prompt), settings), settings)
            for token, chance in enumerate(p):
                if chance > 0:
                    text = (*output, token)
                    if token in ends or len(text) == limit or complete(settings, text):
                        finished[text] = weight * chance
                    else:
                        open_texts.append((text, weight * chance))
        return finished

    def _scores(self, ids: list[int], prompt_length: int, settings: Settings) -> list[float]:
        """Logits after bias, repetition, presence and frequency penalties and the least length, in that order."""
        scores: list[float] = self._lm.logits_after(ids).tolist()
        output = ids[prompt_length:]
        for token in range(len(scores)):
            scores[token] += settings.logit_bias.get(token, 0.0)
            if token in ids:
                scores[token] *= settings.repetition_penalty ** (1 if scores[token] < 0 else -1)
            count = output.count(token)
            scores[token] -= settings.presence_penalty * (count > 0) + settings.frequency_penalty * count
        if len(output) < settings.min_tokens:
            for token in {*self._lm.eos_ids, *settings.stop_tokens}:
                scores[token] = -math.inf
        if settings.constraint is not None:
            allowed = followers(settings, output)
            scores = [score if token in allowed else -math.inf for token, score in enumerate(scores)]
        return scores


def complete(settings: Settings, output: Sequence[int]) -> bool:
    """Whether nothing can follow a constrained text, where the constraint knows no token that ends it."""
    automaton = settings.constraint
    if automaton is None or automaton.end_ids:
        return False
    state: Hashable | None = automaton.start()
    for token in output:
        state = None if state is None else automaton.step(state, token)
    return state is not None and all(automaton.step(state, token) is None for token in range(automaton.vocab_size))


def followers(settings: Settings, output: Sequence[int]) -> set[int]:
    """The tokens that a constraint lets follow, by trying out what can be written behind each of them. What is behind
    an end is of no interest: anything may follow."""
    automaton = settings.constraint
    assert automaton is not None
    state = automaton.start()
    for token in output:
        after = automaton.step(state, token)
        if after is None:
            return set(range(automaton.vocab_size))
        state = after
    left = settings.max_tokens - len(output) - 1
    found = set()
    known: dict[tuple[Hashable, int], bool] = {}
    for token in range(automaton.vocab_size):
        after = automaton.step(state, token)
        if after is not None and _completable(automaton, after, left, known):
            found.add(token)
    return found or set(range(automaton.vocab_size))


def _completable(automaton: Automaton, state: Hashable, left: int, known: dict[tuple[Hashable, int], bool]) -> bool:
    """Whether a text is accepted with at most so many tokens more, by a search through all of them."""
    key = state, left
    if key not in known:
        known[key] = automaton.accepting(state)
        if not known[key] and left > 0:
            steps = (automaton.step(state, token) for token in range(automaton.vocab_size))
            known[key] = any(s is not None and _completable(automaton, s, left - 1, known) for s in set(steps))
    return known[key]


class _Masked(LogitsProcessor):  # type: ignore[misc]
    """A constraint for transformers, whose generate goes token by token: no draft, nothing to take back."""

    def __init__(self, settings: Settings, start: int) -> None:
        self.settings = settings
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        allowed[list(followers(self.settings, input_ids[0, self.start :].tolist()))] = True
        return scores.masked_fill(~allowed, -math.inf)
