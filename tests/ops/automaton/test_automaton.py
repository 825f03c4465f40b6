"""Every automaton against brute force: all texts over a small vocabulary, judged by list search, `re` or a listing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from segue.data import NEVER, Automaton
from segue.ops.automaton import (
    Avoid,
    Concatenation,
    Graph,
    Intersection,
    Phrases,
    Substring,
    Trie,
    Union,
    permits,
    within,
)
from segue.ops.automaton import phrases as phrases_module

V = 4  # tokens 0 to 2, and 3, which ends the text
END = 3
ENDS = frozenset([END])
LONGEST = 4
TEXTS = [text for n in range(LONGEST + 1) for text in itertools.product(range(END), repeat=n)]
Language = Callable[[tuple[int, ...]], bool]

token = st.integers(0, END - 1)
sequence = st.lists(token, min_size=1, max_size=4).map(tuple)
sequences = st.lists(sequence, min_size=1, max_size=4)
# Texts are so small that shrinking, which takes minutes, would tell no more.
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],
)


def has(text: tuple[int, ...], phrase: tuple[int, ...]) -> bool:
    return any(text[i : i + len(phrase)] == phrase for i in range(len(text) - len(phrase) + 1))


def walk(automaton: Automaton, text: Iterable[int]) -> Any:
    return reduce(lambda s, t: None if s is None else automaton.step(s, t), text, automaton.start())


def holds(automaton: Automaton, language: Language, *, live: bool = True) -> None:
    """The automaton accepts exactly the language's texts; all it says of every state fits what follows. `live`: no way
    that is open leads nowhere."""
    assert isinstance(automaton, Automaton)
    accepted = {text for text in TEXTS if language(text)}
    states = {text: walk(automaton, text) for text in TEXTS}
    assert {text for text, s in states.items() if s is not None and automaton.accepting(s)} == accepted
    for text, state in states.items():
        rest = [len(other) - len(text) for other in accepted if other[: len(text)] == text]
        if state is None:
            assert not rest
            continue
        hash(state)
        mask = automaton.allowed(state)
        assert mask.shape == (V,)
        assert mask.dtype == torch.bool
        for t in range(V):
            assert bool(mask[t]) == automaton.check(state, t) == (automaton.step(state, t) is not None)
        assert bool(mask[END]) == automaton.accepting(state)
        assert not any(automaton.check(state, t) for t in (-1, V))
        far = automaton.shortest(state)
        if rest:  # longer texts may be shorter to reach from here only where none of these is
            assert far is None or far == min(rest) or not live
            assert far is None or far <= min(rest)
        elif live and far is not None:
            assert far > LONGEST - len(text)
        if mask[END]:
            ended = automaton.step(state, END)
            assert ended is not None
            assert automaton.accepting(ended)
            assert automaton.shortest(ended) == 0
            assert not automaton.allowed(ended).any()
            assert automaton.progress(ended) == automaton.progress(state)
        if far is not None:
            for budget in (0, 1, 2, 4):
                left = within(automaton, state, budget)
                for t in range(END):
                    after = automaton.step(state, t)
                    reach = NEVER if after is None else automaton.shortest(after)
                    assert reach is not None
                    assert bool(left[t]) == (reach < budget)
                assert bool(left[END]) == automaton.accepting(state)
                assert left.tolist() == [permits(automaton, state, t, budget) for t in range(V)]
                if 0 < far <= budget:
                    assert left.any()  # who keeps to it always finishes


@quick
@given(sequences)
def test_a_trie_is_a_closed_list(listed: list[tuple[int, ...]]) -> None:
    holds(Trie(V, ENDS, listed), lambda text: text in listed)


@quick
@given(sequences)
def test_banned_phrases_occur_nowhere(banned: list[tuple[int, ...]]) -> None:
    holds(Avoid(V, ENDS, banned), lambda text: not any(has(text, p) for p in banned))


@quick
@given(st.lists(sequence, max_size=3))
def test_demanded_phrases_all_occur(demanded: list[tuple[int, ...]]) -> None:
    automaton = Phrases(V, ENDS, demanded)
    holds(automaton, lambda text: all(has(text, p) for p in demanded))
    for text in TEXTS:
        assert automaton.progress(walk(automaton, text)) == bank(text, set(demanded))


def bank(text: tuple[int, ...], demanded: set[tuple[int, ...]]) -> int:
    """Tokens of phrases that occur, and the longest beginning of another one that the text ends with."""
    unmet = [p for p in demanded if not has(text, p)]
    begun = [n for p in unmet for n in range(len(p)) if text[len(text) - n :] == p[:n]]
    return sum(len(p) for p in demanded if has(text, p)) + max(begun, default=0)


def test_a_broken_match_falls_back_to_the_longest_beginning() -> None:
    automaton = Phrases(V, ENDS, [(0, 0, 1)])
    assert [automaton.progress(walk(automaton, (0, 0, 0, 1)[:n])) for n in range(5)] == [0, 1, 2, 2, 3]
    assert automaton.accepting(walk(automaton, (0, 0, 0, 1)))


@quick
@given(st.lists(sequence, min_size=1, max_size=3))
def test_many_phrases_have_a_distance_that_can_be_kept(demanded: list[tuple[int, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phrases_module, "MOST", 0)
        automaton = Phrases(V, ENDS, demanded)
    for text in TEXTS:
        state = walk(automaton, text)
        far = automaton.shortest(state)
        assert far is not None
        assert (far == 0) == automaton.accepting(state) == all(has(text, p) for p in demanded)
        if far:
            assert min(automaton.distance(automaton.next(state, t)) for t in range(END)) < far  # type: ignore[type-var]


@quick
@given(sequences, st.integers(0, 3), st.none() | st.integers(3, 4))
def test_substrings_are_verbatim(sources: list[tuple[int, ...]], least: int, most: int | None) -> None:
    def language(text: tuple[int, ...]) -> bool:
        return least <= len(text) <= (LONGEST if most is None else most) and any(has(s, text) for s in sources)

    holds(Substring(V, ENDS, sources, least, most), language)


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.lists(token, max_size=2), st.integers(0, 4)), min_size=1, max_size=6),
       st.sets(st.integers(1, 4), min_size=1))  # fmt: skip
def test_a_graph_writes_its_labels(edges: list[tuple[int, list[int], int]], finals: set[int]) -> None:
    found = paths(edges, finals)
    try:
        automaton = Graph(V, ENDS, edges, 0, finals)
    except ValueError as error:
        assert "no path leads" in str(error)  # noqa: PT017
        assert not found
        return
    holds(automaton, lambda text: text in found)


def paths(edges: list[tuple[int, list[int], int]], finals: set[int]) -> set[tuple[int, ...]]:
    """All texts up to the longest one, by following edges from all pairs of node and text until nothing is new."""
    seen: set[tuple[int, tuple[int, ...]]] = {(0, ())}
    while True:
        more = {(goal, (*text, *label)) for at, text in seen for origin, label, goal in edges if at == origin}
        more = {(at, text) for at, text in more if len(text) <= LONGEST} - seen
        if not more:
            return {text for at, text in seen if at in finals}
        seen |= more


@quick
@given(sequences, sequences, st.lists(sequence, min_size=1, max_size=2))
def test_an_intersection_is_both(listed: list[tuple[int, ...]], banned: list[tuple[int, ...]], demanded: Any) -> None:
    avoid, phrases = Avoid(V, ENDS, banned), Phrases(V, ENDS, demanded)

    def both(text: tuple[int, ...]) -> bool:
        return not any(has(text, p) for p in banned) and all(has(text, p) for p in demanded)

    holds(Intersection(avoid, phrases), both)
    holds(Intersection(avoid, phrases, Trie(V, ENDS, listed)), lambda text: both(text) and text in listed)
    holds(Intersection(avoid, Hidden(phrases)), both, live=False)


@quick
@given(sequences, st.lists(sequence, min_size=1, max_size=2))
def test_a_union_is_either(listed: list[tuple[int, ...]], demanded: list[tuple[int, ...]]) -> None:
    parts = Trie(V, ENDS, listed), Phrases(V, ENDS, demanded)

    def either(text: tuple[int, ...]) -> bool:
        return text in listed or all(has(text, p) for p in demanded)

    holds(Union(*parts), either)
    holds(Union(parts[0], Hidden(parts[1])), either)


@quick
@given(sequences, st.lists(sequence, min_size=1, max_size=2), sequences)
def test_a_concatenation_is_one_behind_the_other(first: Any, demanded: list[tuple[int, ...]], last: Any) -> None:
    def cut(text: tuple[int, ...]) -> bool:
        return any(text[:i] in first and all(has(text[i:], p) for p in demanded) for i in range(len(text) + 1))

    holds(Concatenation(Trie(V, ENDS, first), Phrases(V, ENDS, demanded)), cut)
    holds(Concatenation(Trie(V, ENDS, first), Hidden(Phrases(V, ENDS, demanded))), cut)
    three = Concatenation(Trie(V, ENDS, first), Substring(V, ENDS, first, 0), Trie(V, ENDS, last))
    holds(three, lambda text: any(
        text[:i] in first and (i == j or any(has(s, text[i:j]) for s in first)) and text[j:] in last
        for i in range(len(text) + 1) for j in range(i, len(text) + 1)
    ))  # fmt: skip


class Hidden:
    """An automaton of somebody else, which cannot list its moves."""

    def __init__(self, inner: Automaton) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name in ("within", "moves", "distance"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_regular_expressions_over_token_letters() -> None:
    """The combinators make what `re` makes of the same expression."""
    one = [Trie(V, ENDS, [(t,)]) for t in range(END)]
    loop = Graph(V, ENDS, [("s", [0, 1], "s"), ("s", [2], "s"), ("s", [], "f")], "s", ["f"])  # (ab|c)*
    cases: list[tuple[Automaton, str]] = [
        (loop, "(ab|c)*"),
        (Concatenation(one[0], loop, one[1]), "a(ab|c)*b"),
        (Union(Concatenation(one[2], loop), one[1]), "c(ab|c)*|b"),
        (Intersection(loop, Avoid(V, ENDS, [(2, 2)])), "(?!.*cc)(ab|c)*"),
    ]
    for automaton, pattern in cases:
        compiled = re.compile(pattern)
        holds(automaton, lambda text: compiled.fullmatch("".join("abc"[t] for t in text)) is not None)  # noqa: B023


def test_what_can_never_be_satisfied_is_known_at_the_start() -> None:
    nothing = Intersection(Trie(V, ENDS, [(0, 1)]), Avoid(V, ENDS, [(1,)]))
    assert nothing.shortest(nothing.start()) == NEVER
    assert not nothing.allowed(nothing.start()).any()
    behind = Concatenation(Trie(V, ENDS, [(0,)]), nothing)
    assert behind.shortest(behind.start()) == NEVER
    assert not behind.allowed(behind.start()).any()
    short = Substring(V, ENDS, [(0, 1)], 3)
    assert short.shortest(short.start()) == NEVER


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Trie(V, ENDS, []), "at least one sequence"),
        (lambda: Trie(V, ENDS, [(0, 7)]), r"\[0, 7\] has token 7, but there are 4"),
        (lambda: Phrases(V, ENDS, [(END,)]), "token 3, which ends the text"),
        (lambda: Avoid(V, ENDS, [()]), "empty phrase"),
        (lambda: Avoid(V, [9], [(0,)]), "end_ids names token 9"),
        (lambda: Substring(V, ENDS, [(0,)], 3, 2), "a text of 3 to 2 tokens"),
        (lambda: Graph(V, ENDS, [(0, [1], 1)], 0, [2]), "no path leads from 0"),
        (lambda: Union(Avoid(V, ENDS, [(0,)])), "at least two"),
        (lambda: Union(Avoid(V, ENDS, [(0,)]), Avoid(V, [], [(0,)])), "do not fit together"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
