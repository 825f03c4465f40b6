"""The constraint of one request: which tokens may follow each prefix, and whether what was written is right.

States belong to prefixes of token ids, never to rows: so nodes of a draft tree, rows of a draft model, beams and what
is written after a refused draft each get the mask of their own text, and there is nothing to roll back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch
from torch import Tensor

from segue.data import NEVER, Automaton, ConstraintError, Settings
from segue.models.grammar import grammar, kept, shown, source
from segue.models.lm import LM
from segue.ops.automaton import Trie, permits, within

GRAMMARS = ("json_schema", "regex", "grammar")
ANCHORS = ("\n", ":", "a")  # texts behind which a choice is tokenised, so that no space is put before it
STATES = 20_000  # prefixes whose state is kept
MASKS = 16  # prefixes whose mask is kept


def check(settings: Settings) -> None:
    """ValueError where a grammar cannot be read; needs no model."""
    for kind in GRAMMARS:
        text = getattr(settings, kind)
        if text is not None:
            source(kind, text)


def constraint(settings: Settings, lm: LM, max_tokens: int) -> Constraint | None:
    """What the settings of a request constrain its text to, if they do. ValueError where that does not fit the model,
    ConstraintError where no text of so many tokens satisfies it."""
    ends = lm.eos_ids | set(settings.stop_tokens)
    compiled = prepare(settings, lm)
    if compiled is not None:
        return Constraint(*compiled, lm, max_tokens)
    if settings.constraint is None:
        return None
    own = settings.constraint
    if own.vocab_size > lm.vocab_size:
        raise ValueError(f"the constraint is over {own.vocab_size} tokens, and {lm.name} has {lm.vocab_size}")
    missing = sorted(ends - own.end_ids)
    if missing:
        raise ValueError(
            f"a text of {lm.name} ends with {missing}, which the constraint's end_ids={sorted(own.end_ids)} lack: "
            f"make it with end_ids={sorted(ends)}"
        )
    return Constraint(own, f"constraint={shown(own)}", lm, max_tokens)


def prepare(settings: Settings, lm: LM) -> tuple[Automaton, str] | None:
    """The automaton of a grammar or of choices, and its name; None where the settings have neither. It is made once and
    kept with the model: a server does so beside the thread that decodes, as it may take a second."""
    lm.check_vocabulary(settings.stop_tokens)
    ends = lm.eos_ids | set(settings.stop_tokens)
    kind = next((kind for kind in GRAMMARS if getattr(settings, kind) is not None), None)
    if kind is not None:
        text = getattr(settings, kind)
        return grammar(lm, kind, text, ends), f"{kind}={shown(text)}"
    choices = settings.choices
    if not choices:
        return None

    def spelled() -> Trie:
        return Trie(lm.vocab_size, ends, [spelling(choice, lm) for choice in choices])

    return kept(lm, ("choices", tuple(choices), frozenset(ends)), spelled), f"choices={shown(choices)}"


def spelling(text: str, lm: LM) -> list[int]:
    """The token ids with which a text is written in the middle of another. ValueError where that cannot be done."""
    if lm.tokenizer is None:
        raise ValueError(
            f"{text!r} needs a tokenizer to be tokens, and {lm.name} has none: give token ids (for choices "
            "constraint=Trie(...))"
        )
    for anchor in ANCHORS:
        before, whole = lm.encode(anchor, special=False), lm.encode(anchor + text, special=False)
        rest = whole[len(before) :]
        if rest and whole[: len(before)] == before and lm.decode(whole) == lm.decode(before) + text:
            return rest
    alone = lm.encode(text, special=False)
    if alone and lm.decode(alone) == text:
        return alone
    raise ValueError(f"the tokenizer of {lm.name} cannot write {text!r} exactly: it gives {lm.decode(alone)!r}")


class Constraint:
    """An automaton on one request, asked by prefixes of the output."""

    def __init__(self, automaton: Automaton, name: str, lm: LM, max_tokens: int) -> None:
        self.automaton = automaton
        self.end_ids = automaton.end_ids
        self.name = name
        self.checks = 0  # masks that were made, and single tokens asked about
        self._lm = lm
        self._max_tokens = max_tokens
        self._start = automaton.start()
        self._states: dict[tuple[int, ...], Hashable | None] = {}
        self._stuck: set[tuple[int, ...]] = set()  # prefixes behind which nothing may follow
        self._masks: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        least = automaton.shortest(self._start)
        if least is not None and least > max_tokens:
            needs = "no text satisfies it" if least >= NEVER else f"its shortest text has {least} tokens"
            raise ConstraintError(f"{name} cannot be satisfied within max_tokens={max_tokens}: {needs}")

    def state(self, output: tuple[int, ...]) -> Hashable | None:
        """The state behind some output; None where that is not allowed."""
        length = len(output)
        while length and output[:length] not in self._states:
            length -= 1
        state = self._states[output[:length]] if length else self._start
        if len(self._states) > STATES:
            self._states.clear()
        for end in range(length, len(output)):
            state = None if state is None else self.automaton.step(state, output[end])
            self._states[output[: end + 1]] = state
        return state

    def mask(self, output: tuple[int, ...]) -> Tensor:
        """(V,) bool on the model's device: what may follow; nothing behind an end, a mistake or a dead end."""
        mask = self._masks.get(output)
        if mask is None:
            self.checks += 1
            mask = torch.zeros(self._lm.vocab_size, dtype=torch.bool)
            state = self.state(output)
            if state is not None:
                budget = max(self._max_tokens - len(output), 0)
                mask[: self.automaton.vocab_size] = within(self.automaton, state, budget)
            mask = self._masks[output] = mask.to(self._lm.device)
            if len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return mask

    def permits(self, output: tuple[int, ...], token: int) -> bool:
        """Whether one token may follow: `mask(output)[token]` without the rest of the mask."""
        self.checks += 1
        state = self.state(output)
        budget = max(self._max_tokens - len(output), 0)
        return state is not None and permits(self.automaton, state, token, budget)

    def apply(self, scores: Tensor, output: tuple[int, ...]) -> Tensor:
        """Scores (V,) with -inf for all that may not follow. Where nothing may, a token is left that `take` refuses:
        drafts go on behind ends and mistakes, and there one must be able to draw something."""
        mask = self.mask(output).to(scores.device)
        masked = scores.masked_fill(~mask, float("-inf"))
        if bool((masked > float("-inf")).any()):
            return masked
        if len(self._stuck) > STATES:
            self._stuck.clear()
        self._stuck.add(output)
        masked[0] = 0.0
        return masked

    def stuck(self, output: tuple[int, ...]) -> bool:
        """Whether `apply` was asked about an output behind which nothing may follow, and left the token that `take`
        refuses."""
        return output in self._stuck

    def accepts(self, output: tuple[int, ...]) -> bool:
        """Whether some output is a whole text."""
        state = self.state(output)
        return state is not None and self.automaton.accepting(state)

    def complete(self, output: tuple[int, ...]) -> bool:
        """Whether some output is a whole text that nothing can follow, not even an end."""
        state = self.state(output)
        return (
            state is not None
            and not self.end_ids
            and self.automaton.accepting(state)
            and not bool(self.automaton.allowed(state).any())
        )

    def take(self, output: tuple[int, ...], last: bool) -> bool:
        """Check output that is given out, whose last token is new, and the `last` one if there is no room for more.
        True where nothing can follow it, though it has no end. Raises ConstraintError where it does not satisfy the
        constraint."""
        state = self.state(output)
        if state is None or output[:-1] in self._stuck:
            raise self._dead_end(output[:-1])
        if self.automaton.accepting(state):
            return self.complete(output)
        if last:
            raise ConstraintError(
                f"{self.name}: no text that satisfies it was found within max_tokens={self._max_tokens}; raise it "
                f"(the text so far: {self._text(output)})"
            )
        return False

    def _dead_end(self, output: tuple[int, ...]) -> ConstraintError:
        state = self.state(output)
        trouble = getattr(self.automaton, "trouble", "")
        if state is not None and not trouble and bool(self.automaton.allowed(state).any()):
            trouble = "what it allows, other settings forbid (min_tokens, bad_words) or the method did not keep to"
        why = f" ({trouble})" if trouble else ""
        return ConstraintError(f"{self.name} allows no token here{why}; the text so far: {self._text(output)}")

    def _text(self, output: tuple[int, ...]) -> str:
        return repr(self._lm.decode(output)) if self._lm.tokenizer is not None else f"tokens {list(output)}"
