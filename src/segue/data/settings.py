"""How a request is decoded, checked when it is made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from segue.data.automaton import Automaton


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


CONSTRAINTS = ("json_schema", "regex", "grammar", "constraint")  # each of the whole text, beside `choices`


@dataclass(frozen=True)
class Settings:
    """How one request is decoded. Temperature 0 is greedy."""

    max_tokens: int = 128  # new tokens at most
    min_tokens: int = 0  # no end-of-text before this many new tokens
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the smallest set of this mass
    min_p: float = 0.0  # keep tokens above this share of the likeliest
    typical_p: float = 1.0  # keep the locally typical set of this mass
    repetition_penalty: float = 1.0  # divide (multiply) logits of tokens seen in prompt or output
    presence_penalty: float = 0.0  # subtract once from tokens of the output
    frequency_penalty: float = 0.0  # subtract per occurrence in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id -> added to its logit
    bad_words: tuple[str, ...] = ()  # strings that must not appear as token sequences
    stop: tuple[str, ...] = ()  # strings that end the text (and are left out of it)
    stop_tokens: tuple[int, ...] = ()  # further end-of-text ids
    ignore_eos: bool = False  # decode on after end-of-text
    logprobs: int | None = None  # log-probabilities of each token and of this many alternatives
    seed: int | None = None  # seed of this request's own generator
    json_schema: str | Mapping[str, Any] | bool | None = None  # the text is JSON of this schema; true for any JSON
    regex: str | None = None  # the whole text matches this regular expression
    grammar: str | None = None  # the whole text follows this Lark grammar
    choices: tuple[str, ...] = ()  # the text is one of these
    constraint: Automaton | None = None  # the text is one that this automaton accepts

    def __post_init__(self) -> None:
        for name in ("stop", "bad_words", "choices"):
            value = getattr(self, name)
            strings = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ("",)
            _check(name, value, all(isinstance(s, str) and s for s in strings), "non-empty strings")
            object.__setattr__(self, name, strings)
        value = self.stop_tokens
        ids = tuple(value) if isinstance(value, Iterable) else (-1,)
        ok = all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
        _check("stop_tokens", value, ok, "token ids")
        object.__setattr__(self, "stop_tokens", ids)
        whole = {"max_tokens": 1, "min_tokens": 0, "top_k": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
            _check(name, value, ok, f"a whole number of at least {least}")
        unit_interval = "a number above 0 and at most 1 (1 switches it off)"
        for name in ("top_p", "typical_p"):
            value = getattr(self, name)
            _check(name, value, _number(value) and 0 < value <= 1, unit_interval)
        low, high = "a number from 0 (off) to 1", "a number from 0 (greedy) to 100"
        _check("min_p", self.min_p, _number(self.min_p) and 0 <= self.min_p <= 1, low)
        t = self.temperature
        _check("temperature", t, _number(t) and (t == 0 or 1e-4 <= t <= 100), high + ", not closer to 0 than 0.0001")
        r = self.repetition_penalty
        _check("repetition_penalty", r, _number(r) and 0.01 <= r <= 100, "a number from 0.01 to 100 (1 is off)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(name, value, _number(value) and -100 <= value <= 100, "a number from -100 to 100 (0 is off)")
        k = self.logprobs
        ok = k is None or (isinstance(k, int) and not isinstance(k, bool) and 0 <= k <= 1000)
        _check("logprobs", k, ok, "a whole number from 0 to 1000")
        s = self.seed
        ok = s is None or (isinstance(s, int) and not isinstance(s, bool) and -(2**63) <= s < 2**63)
        _check("seed", s, ok, "a whole number of 64 bits")
        _check(
            "min_tokens", self.min_tokens, self.min_tokens <= self.max_tokens, f"at most max_tokens={self.max_tokens}"
        )
        try:
            bias = {int(token): float(value) for token, value in dict(self.logit_bias).items()}
        except (TypeError, ValueError):
            bias = {-1: 0.0}
        _check("logit_bias", self.logit_bias, all(i >= 0 for i in bias), "a mapping of token ids to numbers")
        _check("logit_bias", self.logit_bias, all(b == b and abs(b) <= 1e4 for b in bias.values()), "finite numbers")
        object.__setattr__(self, "logit_bias", bias)
        self._check_constraint()

    @property
    def constrained(self) -> bool:
        """Whether the text is constrained as a whole."""
        return bool(self._constraints)

    @property
    def unconstrained(self) -> Settings:
        """The same request, for a text that may be anything."""
        none: dict[str, Any] = dict.fromkeys(CONSTRAINTS)
        return replace(self, **none, choices=()) if self.constrained else self

    @property
    def _constraints(self) -> list[str]:
        return [name for name in (*CONSTRAINTS, "choices") if getattr(self, name) not in (None, ())]

    def _check_constraint(self) -> None:
        given = self._constraints
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are {len(given)} constraints of one text: give one of them")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            _check(name, value, value is None or (isinstance(value, str) and value != ""), "a text")
        schema = self.json_schema
        _check(
            "json_schema", schema, schema is None or isinstance(schema, str | Mapping | bool), "a schema, or its JSON"
        )
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            json.dumps(None if isinstance(schema, Mapping) and not isinstance(schema, dict) else schema)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"json_schema={str(self.json_schema)[:60]!r} is not JSON: {error}") from None
        whole = schema is None or isinstance(schema, Mapping | bool)
        _check("json_schema", self.json_schema, whole, "a schema is an object, true or false")
        _check("json_schema", self.json_schema, schema is not False, "no text satisfies false")
        own = self.constraint
        _check("constraint", own, own is None or isinstance(own, Automaton), "an automaton (see segue.ops.automaton)")
        for name in ("stop", "ignore_eos"):
            if given and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} cannot be combined with {given[0]}: the text would be cut, or go "
                    f"on behind its end, and no longer satisfy it; leave {name} out"
                )

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]
