"""Grammars as automata over a model's tokens: JSON Schema, regular expressions and Lark grammars, by llguidance.

A state is the tuple of the tokens read. Parsers are kept for the states in use and copied where a text branches, so a
draft that is refused costs nothing to take back.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from segue.data import CapabilityError, ConstraintError
from segue.models.closing import closers, way_out
from segue.models.lm import LM
from segue.models.vocabulary import TokenBytes

T = TypeVar("T")
Prefix = tuple[int, ...]
PARSERS = 512  # parsers kept per grammar
MASKS = 64  # masks kept per grammar
CLOSING = 40  # tokens before the last one in which a way to the end is looked for
SLACK = 2  # tokens that may be left over when it is taken
GRAMMARS = 32  # compiled grammars kept per model
TOKENS = "tokenizer"  # what its tokens as bytes are kept under beside them
# White space between the parts of JSON is a loop without an end; a schema's own "x-guidance" overrules this.
COMPACT = {"whitespace_flexible": False}
# What llguidance may spend before it gives a grammar up. Masks are made between the forwards that many requests share:
# with its own limits (200,000, 50,000, 250,000) one mask of a hostile grammar took 80 ms and a grammar half a gigabyte.
LIMITS = {"step_lexer_fuel": 50_000, "step_max_items": 20_000, "max_lexer_states": 50_000, "verbose_errors": False}
_lock = threading.Lock()  # of what models keep: a server compiles beside the thread that decodes


def source(kind: str, text: Any) -> str:
    """llguidance's own form of a grammar: kind is "json_schema", "regex" or "grammar" (Lark). ValueError with its
    reason where it is none."""
    matcher = _library().LLMatcher
    try:
        if kind == "json_schema":
            schema = json.loads(text) if isinstance(text, str) else text
            # Everything satisfies `true`, which takes no options.
            form = matcher.grammar_from_json_schema({} if schema is True else schema, defaults=COMPACT)
        else:
            form = (matcher.grammar_from_regex if kind == "regex" else matcher.grammar_from_lark)(text)
        wrong, reasons = matcher.validate_grammar_with_warnings(form, limits=_limits())
    except (ValueError, TypeError, RecursionError) as error:
        wrong, reasons = True, [str(error)]
    if wrong:
        raise ValueError(f"{kind}={shown(text)} cannot be followed: {' '.join(reasons).strip()}")
    return str(form)


def grammar(lm: LM, kind: str, text: Any, end_ids: Collection[int]) -> Grammar:
    """The automaton of a grammar for a model; compiled once and kept with the model."""
    ends = frozenset(end_ids)
    key = kind, text if isinstance(text, str) else json.dumps(text), ends

    def compiled() -> Grammar:
        form = source(kind, text)
        reader, ids, longest = kept(lm, (TOKENS, ends), lambda: tokenizer(lm, ends))
        made = Grammar(reader, form, lm.vocab_size, ends, f"{kind}={shown(text)}", ids, longest)
        made.allowed(made.start())  # the first mask is the slowest
        return made

    return kept(lm, key, compiled)


def forget(lm: LM) -> None:
    """Drop the grammars compiled for a model, with the masks that they know by now. Its tokens as bytes are kept."""
    with _lock:
        for key in [key for key in lm.compiled if key[0] != TOKENS]:
            del lm.compiled[key]


class Grammar:
    """An `Automaton`. Its texts are compared byte for byte, in whatever tokens they are written."""

    def __init__(
        self,
        reader: Any,
        form: str,
        vocab_size: int,
        end_ids: Collection[int],
        name: str,
        ids: list[int],
        longest: int,
    ) -> None:
        """`reader`: llguidance's tokenizer; `form`: from `source`; `vocab_size` may be larger than the tokenizer's;
        `ids`: the tokens of `closers`; `longest`: bytes of the longest token."""
        self.vocab_size = vocab_size
        self.end_ids = frozenset(end_ids)
        self.name = name
        self.trouble = ""  # why llguidance gave up, if it did
        matcher = _library().LLMatcher(reader, form, log_level=0, limits=_limits())
        if matcher.is_error():
            raise ValueError(f"{name} cannot be followed: {matcher.get_error().strip()}")
        self._root = matcher
        self._closers = ids
        self._longest = longest
        self._ways: OrderedDict[tuple[Prefix, int], tuple[int, ...] | None] = OrderedDict()
        # It ends texts that the model does not end. Of a model without an end it is one behind the last row.
        self._foreign = sorted(i for i in set(reader.eos_tokens) - self.end_ids if i < vocab_size)
        self._parsers: OrderedDict[Prefix, Any] = OrderedDict()
        self._masks: OrderedDict[Prefix, Tensor] = OrderedDict()

    def __repr__(self) -> str:
        return self.name

    def start(self) -> Hashable:
        return ()

    def allowed(self, state: Hashable) -> Tensor:
        prefix = self._prefix(state)
        known = self._masks.get(prefix)
        if known is None:
            known = self._masks[prefix] = self._mask(prefix)
            if len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return known

    def check(self, state: Hashable, token: int) -> bool:
        prefix = self._prefix(state)
        if self._ended(prefix) or not 0 <= token < self.vocab_size or token in self._foreign:
            return False
        if token in self.end_ids:
            return self.accepting(state)
        return bool(self._parser(prefix).validate_tokens([token]) == 1)

    def step(self, state: Hashable, token: int) -> Hashable | None:
        return (*self._prefix(state), token) if self.check(state, token) else None

    def accepting(self, state: Hashable) -> bool:
        prefix = self._prefix(state)
        if self._ended(prefix):
            return True
        return _accepts(self._parser(prefix))

    def progress(self, state: Hashable) -> int:
        return len(self._prefix(state))

    def shortest(self, state: Hashable) -> int | None:
        return 0 if self._ended(self._prefix(state)) else None

    def within(self, state: Hashable, budget: int) -> Tensor:
        """(V,) bool: what is allowed; but where the tokens left are just enough for a way to the end that was found,
        only that way. A text may still not end in time: where no way is found, or a token took one away."""
        only = self._only(self._prefix(state), budget)
        if only is None:
            return self.allowed(state)
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        mask[only] = True
        return mask

    def permits(self, state: Hashable, token: int, budget: int) -> bool:
        """The same of one token, without the rest of the mask. What is forced has one spelling in masks, and here."""
        prefix = self._prefix(state)
        only = self._only(prefix, budget)
        if only is not None:
            return token in only
        if not self.check(state, token):
            return False
        forced = [] if token in self.end_ids else self._parser(prefix).compute_ff_tokens()
        return not forced or token == forced[0]

    def _only(self, prefix: Prefix, budget: int) -> list[int] | None:
        """The tokens that keep to the way to the end, where there is no room for another one."""
        if not self.end_ids or not 0 < budget <= CLOSING or self._ended(prefix):
            return None
        key = prefix, budget
        if key not in self._ways:
            self._ways[key] = way_out(self._parser(prefix), self._closers, _accepts, budget, self._longest)
            if len(self._ways) > PARSERS:
                self._ways.popitem(last=False)
        way = self._ways[key]
        if way is None or len(way) + SLACK < budget:
            return None
        return list(way[:1]) or sorted(self.end_ids)

    def _mask(self, prefix: Prefix) -> Tensor:
        mask = torch.zeros(self.vocab_size, dtype=torch.bool)
        if self._ended(prefix):
            return mask
        parser = self._parser(prefix)
        accepting = self.accepting(prefix)
        bits = np.unpackbits(np.frombuffer(parser.compute_bitmask(), dtype=np.uint8), bitorder="little")
        if parser.is_error():  # too complex: nothing is allowed, rather than anything
            self.trouble = str(parser.get_error()).strip()
            return mask
        count = min(len(bits), self.vocab_size)
        mask[:count] = torch.from_numpy(bits[:count].astype(bool))
        mask[self._foreign] = False
        mask[sorted(self.end_ids)] = accepting
        return mask

    def _parser(self, prefix: Prefix) -> Any:
        """The parser that has read `prefix`: a kept one, or a copy of the nearest one before it, read on."""
        known = self._parsers.get(prefix)
        if known is not None:
            self._parsers.move_to_end(prefix)
            return known
        start = next((n for n in range(len(prefix) - 1, 0, -1) if prefix[:n] in self._parsers), 0)
        parser = (self._parsers[prefix[:start]] if start else self._root).deep_copy()
        if start < len(prefix) and not parser.consume_tokens(list(prefix[start:])):
            self.trouble = str(parser.get_error()).strip()
        self._parsers[prefix] = parser
        if len(self._parsers) > PARSERS:
            self._parsers.popitem(last=False)
        return parser

    def _ended(self, prefix: Prefix) -> bool:
        return bool(prefix) and prefix[-1] in self.end_ids

    def _prefix(self, state: Hashable) -> Prefix:
        if not isinstance(state, tuple):
            raise ConstraintError(f"{state!r} is no state of {self.name}")
        return state


def tokenizer(lm: LM, end_ids: frozenset[int]) -> tuple[Any, list[int], int]:
    """llguidance's view of a model's tokens, each as the bytes that it writes; the tokens of `closers`; and the bytes
    of the longest token."""
    library = _library()
    if lm.tokenizer is None:
        raise ValueError(f"a grammar needs a tokenizer, and {lm.name} has none")
    tokens = TokenBytes(lm, end_ids)
    reader = library.LLTokenizer(library.TokenizerWrapper(tokens), n_vocab=len(tokens.tokens), eos_token=tokens.ends)
    return reader, closers(tokens.tokens), max(map(len, tokens.tokens))


def _accepts(parser: Any) -> bool:
    return bool(parser.is_accepting() and not parser.is_error())


def shown(text: Any, most: int = 120) -> str:
    """A grammar as it is named in an error."""
    try:
        short = json.dumps(text) if isinstance(text, Mapping) else repr(text)
    except RecursionError:
        return "a text nested more deeply than Python can follow"
    return short if len(short) <= most else short[: most - 4] + " ..."


def kept(lm: LM, key: Any, make: Callable[[], T]) -> T:
    """What a model keeps under a key, made where it is not there. Two threads may both make it; one of them counts."""
    with _lock:
        found = lm.compiled.get(key)
    if found is None:
        found = make()
    with _lock:
        found = lm.compiled.setdefault(key, found)
        lm.compiled.move_to_end(key)
        if len(lm.compiled) > GRAMMARS:
            lm.compiled.popitem(last=False)
    result: T = found
    return result


def _limits() -> Any:
    return _library().LLParserLimits(**LIMITS)


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise CapabilityError('grammars need llguidance: pip install "segue[constrain]"') from None
    return llguidance
