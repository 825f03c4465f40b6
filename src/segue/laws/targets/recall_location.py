"""The target of recall: every title of a small store and every run of tokens of the recalled documents, scored by full
forwards, and what is on top."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from segue.data import Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import ending_at
from segue.laws.worlds import World

CLOSE = 1e-3
WIDE = 200  # beams that leave nothing out
Text = tuple[int, ...]
Rows = Callable[[Text], list[float]]  # output -> log-probabilities (V,) behind some words


class Document(NamedTuple):
    title: Text
    text: Text


class Place(NamedTuple):
    """A passage and what it is worth."""

    score: float
    title_score: float
    prefix_score: float
    title: Text
    start: int
    tokens: Text


def hold(method: Any, world: World) -> dict[str, float]:
    """With beams that leave nothing out the best passages are those of the exhaustive search; with narrow ones they
    stand where they are said to stand, at the scores they are said to have. Raises LawBroken."""
    from segue.choose.parts.documents import Document as Stored

    compared = 0
    size = world.lm.vocab_size
    for number, prompt in enumerate(world.prompts[:2]):
        for ends, mark in ((frozenset([size - 1]), ()), (frozenset[int](), (size - 1,)), (frozenset[int](), ())):
            closing = (*ends, *mark)  # what ends a title
            letters = [token for token in range(min(size, 6)) if token not in closing]
            store = documents(letters, bool(closing), number)
            held = tuple(Stored("", "", (d.title,), d.text) for d in store)
            form = replace(
                method, documents=held, titles=2, prefix=3, passage=6, passages=4, lam=0.6, ask_title=[0, 1],
                ask_passage=[1], title_end=mark,
            )  # fmt: skip
            with ending_at(world.lm, ends):
                behind = [rows(world, prompt, words) for words in (form.ask_title, form.ask_passage)]
                titles = sorted(title_scores(store, behind[0], closing), reverse=True)[: form.titles]
                best = sorted(places(form, store, titles, behind[1]), reverse=True)
                wide = replace(form, title_beams=WIDE, beams=WIDE)
                narrow = replace(form, title_beams=2, beams=2)
                for mine, exhaustive in ((wide, True), (narrow, False)):
                    for batch in ([prompt], [prompt, world.prompts[-1]]):
                        answer = decode(world.lm, mine, batch, Settings(max_tokens=8))[0]
                        compared += _compare(mine, prompt, answer, store, behind, closing, best if exhaustive else None)
    return {"tokens": compared}


def documents(letters: list[int], ended: bool, seed: int) -> list[Document]:
    """A few documents of random letters; where nothing ends a title none begins with another."""
    draw = random.Random(seed)
    titles = dict.fromkeys(tuple(draw.choices(letters, k=3 + (i % 2) * ended)) for i in range(4))
    texts = [tuple(draw.choices(letters, k=length)) for length in (9, 2, 12, 5)]
    return [Document(title, text) for title, text in zip(titles, texts, strict=False)]


def rows(world: World, prompt: list[int], words: list[int]) -> Rows:
    """Rows behind the prompt and some words, which an encoder reads before the end of its source."""
    last = prompt[-1:] if world.lm.start_ids and prompt[-1] in world.lm.eos_ids else []
    text = [*prompt[: len(prompt) - len(last)], *words, *last]

    @functools.cache
    def behind(output: Text) -> list[float]:
        found: list[float] = world.oracle.logits_after(text, output).double().log_softmax(-1).tolist()
        return found

    return behind


def mean(behind: Rows, text: Text) -> float:
    """Log-probability of a text, divided by its length."""
    return sum(behind(text[:i])[token] for i, token in enumerate(text)) / len(text)


def title_scores(store: list[Document], behind: Rows, closing: Text) -> Iterator[tuple[float, Text]]:
    for document in store:
        yield mean(behind, (*document.title, *closing)), document.title


def places(method: Any, store: list[Document], titles: list[tuple[float, Text]], behind: Rows) -> Iterator[Place]:
    """The passages behind the first place of every run of tokens in every recalled document."""
    recalled = [(score, d) for score, title in titles for d in store if d.title == title]
    for run in prefixes([document.text for _, document in recalled], method.prefix):
        prefix_score = mean(behind, run)
        for title_score, (title, text) in recalled:
            starts = [i for i in range(len(text)) if text[i : i + len(run)] == run]
            if starts:
                score = method.lam * title_score + (1 - method.lam) * prefix_score
                tokens = text[starts[0] : starts[0] + method.passage]
                yield Place(score, title_score, prefix_score, title, starts[0], tokens)


def prefixes(texts: list[Text], count: int) -> set[Text]:
    """All runs of so many tokens, and shorter ones at the end of a text that nothing follows anywhere."""
    whole = {text[i : i + count] for text in texts for i in range(len(text) - count + 1)}
    followed = {text[i:j] for text in texts for i in range(len(text)) for j in range(i + 1, len(text))}
    return whole | ({text[-n:] for text in texts for n in range(1, count) if n <= len(text)} - followed)


def _compare(
    method: Any,
    prompt: list[int],
    answer: Any,
    store: list[Document],
    behind: list[Rows],
    closing: Text,
    best: list[Place] | None,
) -> int:
    at_titles, at_passages = behind
    worth = {title: score for score, title in title_scores(store, at_titles, closing)}
    found = answer.trace
    if best is not None and not _near([p["score"] for p in found], [p.score for p in best[: method.passages]]):
        raise LawBroken(f"{method} on {prompt}: {found}, where an exhaustive search finds {best[: method.passages]}")
    for place, candidate in zip(found, answer.candidates, strict=True):
        title, (start, stop) = tuple(place["title"]), place["tokens"]
        text = dict(store)[title]
        passage = text[start:stop]
        prefix = passage[: method.prefix]
        expected = [worth[title], mean(at_passages, prefix)]
        expected.append(method.lam * expected[0] + (1 - method.lam) * expected[1])
        told = [place["title_score"], place["prefix_score"], place["score"]]
        logp = mean(at_passages, passage) * len(passage)
        if not _near([*told, candidate.score, candidate.logp], [*expected, expected[-1], logp]):
            raise LawBroken(f"{method} on {prompt}: {place} and {candidate}, where {expected} and {logp} are right")
        if tuple(candidate.tokens) != passage or stop != min(start + method.passage, len(text)):
            raise LawBroken(f"{method} on {prompt}: {candidate} does not stand at {place} in {text}")
    if answer.tokens != answer.candidates[0].tokens:
        raise LawBroken(f"{method} on {prompt}: {answer.tokens} is not the first of {answer.candidates}")
    return sum(len(candidate.tokens) for candidate in answer.candidates)


def _near(found: list[float], expected: list[float]) -> bool:
    apart = [abs(a - b) for a, b in zip(found, expected, strict=False)]
    return len(found) == len(expected) and max(apart) <= CLOSE
