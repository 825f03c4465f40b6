"""What laws of rerankers share: whole answers drawn independently, written down as plain loops over all texts."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from segue.data import Candidate, Completion, Settings
from segue.laws.base import LawBroken, decode
from segue.laws.edges import edges, ending_at
from segue.laws.enumerate import Law, distribution, total_variation
from segue.laws.oracle import TableOracle
from segue.laws.worlds import World

Text = tuple[int, ...]
CLOSE = 1e-3  # of log-probabilities of a whole text: the method's rows are float32, of several forwards in one pack
TOLERANCE = 1e-6
SAMPLED = (
    Settings(max_tokens=2),  # greedy: sampled at the method's own temperature
    Settings(temperature=0.7, top_k=2, max_tokens=2),
    Settings(temperature=1.0, max_tokens=2, min_tokens=2, logit_bias={1: 0.75}),
)


def words(tokens: Sequence[int]) -> str:
    """How scorers read the texts of a model without a tokenizer."""
    return " ".join(str(token) for token in tokens)


def sampled(settings: Settings, temperature: float) -> Settings:
    """A greedy request is sampled at the method's temperature."""
    return replace(settings, temperature=settings.temperature or temperature)


def best(texts: Sequence[Text], scores: Sequence[float], logp: Callable[[Text], float]) -> Text:
    """The text with the largest score; of equal ones the likelier."""
    most = max(scores)
    level = {text for text, score in zip(texts, scores, strict=True) if score > most - 1e-9 * max(1.0, abs(most))}
    return max(level, key=lambda text: (logp(text), [-t for t in text]))


def model_logp(world: World, prompt: Sequence[int], text: Sequence[int]) -> float:
    """Log-probability of a text under the model alone, by one full forward (or look-up) a token."""
    total = 0.0
    for place, token in enumerate(text):
        total += float(world.oracle.logits_after(prompt, text[:place]).double().log_softmax(-1)[token])
    return total


def samples_hold(
    method: Any, world: World, pick: Callable[[list[Text], Callable[[Text], float]], dict[Text, float]]
) -> float:
    """On a table: the law of the method's answer is that of `pick` over all tuples of independent draws. `pick` gives
    the probability of each answer for one tuple. Returns the largest total variation."""
    assert isinstance(world.oracle, TableOracle)
    prompt, largest = world.prompts[-1], 0.0
    logp: dict[Text, float] = {}
    for settings in SAMPLED:
        law = world.oracle.law(prompt, sampled(settings, method.temperature))
        logp |= {text: model_logp(world, prompt, text) for text in law}
        expected: Law = defaultdict(float)
        for texts in itertools.product(law, repeat=method.samples):
            weight = math.prod(law[text] for text in texts)
            for text, share in pick(list(texts), logp.__getitem__).items():
                expected[text] += weight * share
        seen = distribution(world.lm, method, prompt, settings)
        apart = total_variation(seen.p, expected)
        if not apart <= TOLERANCE:
            raise LawBroken(f"{method} with {settings}: its law is {apart:.3g} from its target's in total variation")
        largest = max(largest, apart)
    return largest


def answers(method: Any, world: World, settings: Settings) -> Iterator[tuple[list[int], Completion]]:
    """Answers on a network, alone and in a batch, which must agree."""
    together = decode(world.lm, method, world.prompts, settings)
    for prompt, other in zip(world.prompts, together, strict=True):
        (alone,) = decode(world.lm, method, [prompt], settings)
        if alone.tokens != other.tokens:
            raise LawBroken(f"{method} on {prompt}: {alone.tokens} alone and {other.tokens} in a batch")
        yield prompt, alone


def candidates_hold(method: Any, world: World, prompt: Sequence[int], answer: Completion) -> list[Candidate]:
    """The answer is the first of its candidates, which stand in the order of their scores; their log-probabilities are
    the model's."""
    found = answer.candidates or []
    if not found or found[0].tokens != answer.tokens:
        raise LawBroken(f"{method} gives {answer.tokens}, and its candidates are {found}")
    for candidate in found:
        logp = model_logp(world, prompt, candidate.tokens)
        if abs(logp - candidate.logp) > CLOSE * max(1.0, abs(logp)):
            raise LawBroken(f"{method}: {candidate} has a log-probability of {logp:.6g}")
    return found


def edges_hold(method: Any, world: World) -> int:
    """Where one token is left to draw from, every draw is the greedy text: its ends, limits and penalties are held to
    transformers. Returns the tokens that were compared."""
    compared = 0
    for edge in edges(world.lm, world.oracle, world.prompts[0]):
        settings = replace(edge.settings, temperature=1.0, top_k=1)
        with ending_at(world.lm, edge.eos):
            (answer,) = decode(world.lm, method, [edge.prompt], settings)
            expected = world.oracle.answer(edge.prompt, edge.settings)
        if (answer.tokens, answer.finish_reason) != (expected.tokens, expected.reason):
            raise LawBroken(f"{method} at the edge {edge.name!r}: {answer.tokens} instead of {expected.tokens}")
        if settings.logprobs is not None and [t.token for t in answer.logprobs or []] != answer.tokens:
            raise LawBroken(f"{method} at the edge {edge.name!r}: its log-probabilities are not those of its answer")
        compared += len(answer.tokens)
    return compared
