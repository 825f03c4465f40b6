"""Decoding dependency graph: which tokens of an iterated guess were right before their turn (DDGviz).

The matrix D[t, i] says whether token i of the iterate y^t is the one of the final text. Iteration 0 reads the prompt,
which gives token 0; plain decoding gives token i in iteration i. The idea is of Santilli et al. 2023 (2305.10427).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from segue.data import Completion, Scores, Settings
from segue.models.engine import Engine
from segue.models.lm import LM
from segue.models.method import Method
from segue.models.run import Decoder, Forward, Run


@dataclass(slots=True)
class Iterate:
    """y^t: the settled tokens, then guesses; None where nothing is guessed yet."""

    settled: int
    tokens: list[int | None]
    p: list[float | None]  # of each token under the model, given y^(t-1); None where the model was not asked


@dataclass(slots=True)
class Graph:
    """The iterates of one answer, each as long as the answer."""

    answer: Completion
    iterates: list[Iterate] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """Forwards after the one that reads the prompt."""
        return len(self.iterates) - 1

    @property
    def saved(self) -> int:
        """Iterations fewer than plain decoding takes."""
        return len(self.answer.tokens) - 1 - self.iterations

    @property
    def right(self) -> list[list[bool]]:
        """D, by iteration and position."""
        final = self.answer.tokens
        return [[token == last for token, last in zip(y.tokens, final, strict=True)] for y in self.iterates]

    @property
    def early(self) -> list[int]:
        """Positions that were right before their turn: in the iterate before the one that settled them."""
        found = []
        for before, after, right in zip(self.iterates, self.iterates[1:], self.right, strict=False):
            found += [i for i in range(before.settled, after.settled) if right[i]]
        return found


def trace(
    lm: LM,
    method: Method,
    prompt: list[int],
    settings: Settings,
    *,
    name: str = "",
    progress: Callable[[int], None] = lambda tokens: None,
) -> Graph:
    """Decode one prompt and note every iterate. `progress` is told the number of settled tokens after each forward."""
    run = Run(lm, prompt, settings, method=name)
    seen: list[Iterate] = []
    engine = Engine()
    job = engine.add(run, _watched(run, method.run(run), seen))
    for _ in engine.steps():
        progress(len(run.output))
    if job.error is not None:
        raise job.error
    answer = run.completion()
    size = len(answer.tokens)
    for y in seen:
        missing = max(size - len(y.tokens), 0)
        y.tokens = y.tokens[:size] + [None] * missing
        y.p = y.p[:size] + [None] * missing
    return Graph(answer, seen)


def _watched(run: Run, decoder: Decoder[None], seen: list[Iterate]) -> Decoder[None]:
    """The same decoder; what it asks and what it is told is noted on the way."""
    request = next(decoder)
    settled: list[float | None] = []  # probabilities of the settled tokens
    while True:
        scores = yield request
        start = len(run.output)  # the first position that this forward speaks of
        try:
            request = decoder.send(scores)
        except StopIteration:
            seen.append(_iterate(run, [], start, scores, settled))
            return
        if not isinstance(request, Forward) or not request.tree.is_chain:
            raise ValueError(f"{run.stats.method or 'this method'} iterates on no guess: only chains can be shown")
        seen.append(_iterate(run, request.tree.tokens[1:], start, scores, settled))


def _iterate(run: Run, guess: list[int], start: int, scores: Scores, settled: list[float | None]) -> Iterate:
    """The iterate after a forward whose rows speak of the positions from `start` on, and before one over `guess`."""
    # Of the prompt only the last row speaks of an answer.
    rows = scores.logits if start else scores.logits[-1:]
    said = scores.argmax()[-len(rows) :]
    tokens: list[int | None] = [*run.output, *guess]
    tokens += said[len(tokens) - start :]  # the last position of a block is in no guess, since no row needs it
    p: list[float | None] = list(settled)
    for place in range(len(settled), len(tokens)):
        token, row = tokens[place], place - start
        known = row < len(said) and (place < len(run.output) or token == said[row])
        p.append(float(torch.softmax(rows[row].float(), -1)[token]) if known else None)
    settled[:] = p[: len(run.output)]
    return Iterate(len(run.output), tokens, p)


def data(graph: Graph, lm: LM, prompt: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that is shown, for JSON."""
    answer = graph.answer
    return {
        "model": lm.name,
        "settings": settings,
        "prompt": lm.decode(prompt) or " ".join(map(str, prompt)),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "tokens": answer.tokens,
        "texts": [shown(lm, token) for token in answer.tokens],
        "iterations": graph.iterations,
        "plain_iterations": len(answer.tokens) - 1,
        "saved": graph.saved,
        "early": graph.early,
        "iterates": [
            {
                "settled": y.settled,
                "tokens": y.tokens,
                "texts": [None if token is None else shown(lm, token) for token in y.tokens],
                "p": [None if p is None else round(p, 4) for p in y.p],
                "right": right,
            }
            for y, right in zip(graph.iterates, graph.right, strict=True)
        ],
    }


def shown(lm: LM, token: int) -> str:
    """A token as a person can see it: blanks and line ends as signs, one without text by its name or number."""
    text = lm.decode([token])
    if not text and hasattr(lm.tokenizer, "convert_ids_to_tokens"):
        text = str(lm.tokenizer.convert_ids_to_tokens(token))
    return text.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥") or f"#{token}"
