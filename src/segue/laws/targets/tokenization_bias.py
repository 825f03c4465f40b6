"""The target of decoding from a string: sums over all spellings that the tokenizer makes, one by one.

Worlds have no tokenizer, so their tokens are given bytes here, and two tokenizers: longest prefixes, and byte pairs.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import NetworkOracle, TableOracle
from segue.laws.warped import softmax, warped
from segue.laws.worlds import World
from segue.models.spelling import BytePairs, LongestPrefix
from segue.models.toy import ToyLM

TOKENS, BYTE_TOKENS = 14, 5
GAP, TOLERANCE = 1e-4, 1e-6
CHAIN = ("a", "b", "aa", "ba", "aaba")
Encode = Callable[[str], list[int]]
Row = Callable[[list[int]], list[float]]  # logits after tokens


def hold(method: Any, world: World) -> dict[str, float]:
    """Greedy tokens and bytes on networks, laws of whole outputs on tables."""
    if world.lm.start_ids:
        return _refuses(method, world)
    found = 0.0
    table = isinstance(world.oracle, TableOracle)
    own: Any = world.lm
    if table:  # with the tokens of a Markov chain for which the prompt's tokens say the wrong thing
        end = len(CHAIN) if world.lm.eos_ids else None
        own = ToyLM(len(CHAIN) + (end is not None), 2, world.lm.vocab_size, eos=end)
    for kind in ("longest prefixes", "byte pairs"):
        lm, texts, encode = spelled(own, kind)
        for unit, mask in itertools.product(("token", "byte"), (False, True)):
            form = replace(method, unit=unit, mask=mask)
            if table and (unit == "token" or mask):
                found = max(found, *(_law(form, lm, texts, encode, prompt) for prompt in ([1, 0], [0, 1, 2])))
            elif not table and unit == "token" and mask == (kind == "byte pairs"):
                found += sum(_tokens(form, world, lm, texts, encode, prompt) for prompt in world.prompts[1:3])
            elif not table and unit == "byte" and not mask:
                found += _bytes(form, world, lm, texts, encode, world.prompts[1])
    return {"total variation": found} if table else {"tokens": found}


def _refuses(method: Any, world: World) -> dict[str, float]:
    """An encoder reads the prompt, so no token goes across its end: that is said, and nothing is decoded."""
    try:
        decode(world.lm, method, [world.prompts[0]], Settings(max_tokens=2))
    except ValueError as error:
        if "encoder" in str(error):
            return {"tokens": math.inf}
        raise
    raise LawBroken(f"{method} decodes with an encoder, where it has nothing to do")


def spelled(lm: Any, kind: str) -> tuple[Any, list[str], Encode]:
    """A copy of a world's model whose tokens are texts, the texts, and a tokenizer that is written here."""
    size = lm.vocab_size - len(lm.eos_ids)
    texts = ["".join(word) for n in range(1, 5) for word in itertools.product("abc", repeat=n)][:size]
    texts = list(CHAIN) if size == len(CHAIN) else texts
    texts += [""] * (lm.vocab_size - size)  # ends are the last rows
    ids = {text: number for number, text in enumerate(texts) if text}
    merges = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts if len(text) > 1]
    merges.sort(key=lambda pair: (len(pair[0] + pair[1]), sum(map(ord, pair[0])) * 7 % 5))
    other = copy.copy(lm)
    pieces = [text.encode() for text in texts]
    if kind == "byte pairs":
        vars(other)["spelling"] = BytePairs(pieces, merges, ids, lambda text: [list(text.decode())])
        return other, texts, lambda text: _merge(text, merges, ids)
    vars(other)["spelling"] = LongestPrefix(pieces)
    return other, texts, lambda text: _match(text, ids)


def _match(text: str, ids: dict[str, int]) -> list[int]:
    if not text:
        return []
    size = max(n for n in range(1, len(text) + 1) if text[:n] in ids)
    return [ids[text[:size]], *_match(text[size:], ids)]


def _merge(text: str, merges: list[tuple[str, str]], ids: dict[str, int]) -> list[int]:
    symbols = list(text)
    for first, second in merges:  # every pair in the order it was learned, from the left, as it was learned
        merged, i = [], 0
        while i < len(symbols):
            if symbols[i : i + 2] == [first, second]:
                merged.append(first + second)
                i += 2
            else:
                merged.append(symbols[i])
                i += 1
        symbols = merged
    return [ids[symbol] for symbol in symbols]


class Spellings:
    """All that a model may write, spelled as its tokenizer would, after a first token that is given."""

    def __init__(self, row: Row, texts: list[str], encode: Encode, mask: bool, ends: set[int]) -> None:
        self.row, self.texts, self.mask, self.ends = row, texts, mask, ends
        self.encode = functools.cache(encode)
        self._known: dict[tuple[int, ...], dict[int, float]] = {}

    def after(self, tokens: list[int]) -> dict[int, float]:
        """Probability of every token that keeps the spelling the tokenizer's own."""
        key = tuple(tokens)
        if key not in self._known:
            p = softmax(self.row(tokens))
            text = self.text(tokens)
            made = (self.texts[t] and self.encode(text + self.texts[t]) == [*tokens, t] for t in range(len(p)))
            good = {t: p[t] for t, own in enumerate(made) if own or t in self.ends}
            total = sum(good.values()) if self.mask else 1.0
            self._known[key] = {t: share / total for t, share in good.items()}
        return self._known[key]

    def text(self, tokens: list[int]) -> str:
        return "".join(self.texts[t] for t in tokens)

    def covers(self, text: str) -> Iterator[tuple[list[int], float]]:
        """The shortest spellings of all texts that begin with `text`, with their probabilities."""
        running = [([self.encode(text)[0]], 1.0)]
        while running:
            tokens, weight = running.pop()
            written = self.text(tokens)
            if len(written) >= len(text):
                yield tokens, weight
                continue
            for t, share in self.after(tokens).items():
                more = written + self.texts[t]
                if self.texts[t] and (more.startswith(text) or text.startswith(more)):
                    running.append(([*tokens, t], weight * share))


def _law(method: Any, lm: Any, texts: list[str], encode: Encode, prompt: list[int]) -> float:
    ends, largest = set(lm.eos_ids), 0.0
    prompt = [t for t in prompt if texts[t]]
    text = "".join(texts[t] for t in prompt)
    spellings = Spellings(lambda ids: lm.logits_after(ids).tolist(), texts, encode, method.mask, ends)
    cases = [Settings(temperature=1.0, max_tokens=2)]
    if method.unit == "token":
        cases.append(Settings(temperature=0.6, max_tokens=2))
    for settings in cases:
        found = list(spellings.covers(text))
        shares = softmax([math.log(weight) / settings.temperature for _, weight in found])
        law: Law = defaultdict(float)
        for (tokens, _), share in zip(found, shares, strict=True):
            begin = len(tokens) - (len(spellings.text(tokens)) > len(text))
            running = [(tokens, share)]
            while running:
                ids, weight = running.pop()
                new = tuple(ids[begin:])
                if len(new) == settings.max_tokens or (new and new[-1] in ends):
                    law[new] += weight
                    continue
                if method.unit == "byte":
                    p = spellings.after(ids)
                else:
                    p = dict(enumerate(warped(lm.logits_after(ids).tolist(), settings)))
                running += [([*ids, t], weight * m) for t, m in p.items() if m > 0]
        apart = total_variation(distribution(lm, method, prompt, settings).p, law)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings} on {text!r}: {apart:.3g} in total variation from its target")
        largest = max(largest, apart)
    return largest


def _spellings(world: World, texts: list[str], encode: Encode, mask: bool) -> Spellings:
    assert isinstance(world.oracle, NetworkOracle)
    oracle = world.oracle
    return Spellings(lambda ids: oracle.logits_after(ids, []).double().tolist(), texts, encode, mask, set())


def _tokens(method: Any, world: World, lm: Any, texts: list[str], encode: Encode, prompt: list[int]) -> int:
    """The likeliest cover, then the likeliest token each time; alone and beside others."""
    text = "".join(texts[t] for t in prompt)
    spellings = _spellings(world, texts, encode, method.mask)
    covers = list(spellings.covers(text))
    compared = 0
    settings = Settings(max_tokens=TOKENS)
    answers = [decode(lm, method, [prompt], settings)[0], decode(lm, method, [prompt, *world.prompts], settings)[0]]
    for answer in answers:
        best = max(weight for _, weight in covers)
        fits = []
        for tokens, weight in covers:
            across = len(spellings.text(tokens)) > len(text)
            if weight > best * (1 - GAP) and (not across or tokens[-1] == answer.tokens[0]):
                fits.append((tokens, across))
        if not fits or len(answer.tokens) != TOKENS:
            raise LawBroken(f"{method} on {text!r}: {answer.tokens} begins with no likeliest cover of {covers}")
        tokens, across = fits[0]
        rest = answer.tokens[across:]
        for place, token in enumerate(rest):
            row = spellings.row([*tokens, *rest[:place]])
            if max(row) - row[token] > GAP * max(1.0, max(row)):
                raise LawBroken(f"{method} on {text!r}: token {place} of {rest} is not the likeliest")
        compared += len(answer.tokens)
    return compared


def _bytes(method: Any, world: World, lm: Any, texts: list[str], encode: Encode, prompt: list[int]) -> int:
    """The likeliest byte each time, by the probabilities of the strings."""
    text = "".join(texts[t] for t in prompt)
    spellings = _spellings(world, texts, encode, method.mask)
    (answer,) = decode(lm, method, [prompt], Settings(max_tokens=BYTE_TOKENS))
    left = next(tokens for tokens, _ in spellings.covers(text) if _continues(spellings, tokens, answer.tokens, text))
    written = spellings.text([*left, *answer.tokens])
    for place in range(len(text), len(written)):
        p: dict[str, float] = defaultdict(float)
        for letter in "abc":
            p[letter] = sum(weight for _, weight in spellings.covers(written[:place] + letter))
        if p[written[place]] < max(p.values()) * (1 - GAP):
            raise LawBroken(f"{method} on {text!r}: byte {place} of {written!r} is not the likeliest of {dict(p)}")
    return len(answer.tokens)


def _continues(spellings: Spellings, tokens: list[int], output: list[int], text: str) -> bool:
    """Removes a last token that goes across the end of the text, where the output repeats it."""
    if len(spellings.text(tokens)) > len(text):
        if tokens[-1] != output[0]:
            return False
        tokens.pop()
    return spellings.encode(spellings.text([*tokens, *output])) == [*tokens, *output]
