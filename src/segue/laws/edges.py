"""Where decoders go wrong: the first and the last token, ends inside a draft, full contexts, penalties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from segue.data import Automaton, Settings
from segue.laws.oracle import Oracle, TableOracle
from segue.models.lm import LM
from segue.ops.automaton import Avoid, Phrases, Substring, Trie


@dataclass(frozen=True)
class Edge:
    """A request, with the end-of-text ids that the model has meanwhile."""

    name: str
    prompt: list[int]
    settings: Settings
    eos: frozenset[int] = field(default_factory=frozenset)


@contextmanager
def ending_at(lm: LM, eos: frozenset[int]) -> Iterator[None]:
    """Within the context these are the model's end-of-text ids."""
    before, lm.eos_ids = lm.eos_ids, eos
    try:
        yield
    finally:
        lm.eos_ids = before


def edges(lm: LM, oracle: Oracle, prompt: Sequence[int]) -> list[Edge]:
    """The edge requests for a model; a prompt that the model continues in a repetitive way makes drafts cross them."""
    text = list(prompt)
    with ending_at(lm, frozenset()):
        plain = oracle.answer(text, Settings(max_tokens=14)).tokens
    first, last = plain[0], plain[-1]
    # Tokens that come for the first time where a first draft is under way, and as late as possible.
    late = max(set(plain), key=plain.index)
    early = next((token for token in plain[2:5] if plain.index(token) >= 2), late)
    found = [
        Edge("one token", text, Settings(max_tokens=1)),
        Edge("two tokens", text, Settings(max_tokens=2)),
        Edge("end of text at once", text, Settings(max_tokens=14), frozenset([first])),
        Edge("end of text in the first draft", text, Settings(max_tokens=14), frozenset([early])),
        Edge("end of text late", text, Settings(max_tokens=14), frozenset([late])),
        Edge("end of text ignored", text, Settings(max_tokens=14, ignore_eos=True), frozenset([first, late])),
        Edge("end of text not yet", text, Settings(max_tokens=14, min_tokens=6), frozenset([first, late])),
        Edge("end of text at the limit", text, Settings(max_tokens=plain.index(late) + 1), frozenset([late])),
        Edge("stop token", text, Settings(max_tokens=14, stop_tokens=(late,))),
        Edge("stop token not yet", text, Settings(max_tokens=14, stop_tokens=(late,), min_tokens=14)),
        Edge("prompt of one token", text[-1:], Settings(max_tokens=8)),
        Edge("repetition penalty", text, Settings(max_tokens=14, repetition_penalty=1.3)),
        Edge("bias against a token", text, Settings(max_tokens=14, logit_bias={last: -20.0})),
        Edge("bias and penalty", text, Settings(max_tokens=10, logit_bias={first: 2.5}, repetition_penalty=0.8)),
        Edge("log-probabilities", text, Settings(max_tokens=14, logprobs=2)),
        Edge("log-probabilities before penalties", text, Settings(max_tokens=8, logprobs=0, repetition_penalty=1.3)),
    ]
    if not lm.start_ids:  # some force tokens of their own, which a constraint may not allow
        found += _constrained(lm, text, plain, late)
    if isinstance(oracle, TableOracle):
        penalties = Settings(max_tokens=14, presence_penalty=0.7, frequency_penalty=0.4)
        found.append(Edge("presence and frequency penalties", text, penalties))
    if lm.start_ids and lm.context_length <= 256:
        found.append(Edge("the decoder filled to the last row", text, Settings(max_tokens=500)))
    if lm.context_length <= 256:
        full = (text * lm.context_length)[-lm.context_length :]
        found.append(Edge("context filled to the last row", full[:-5], Settings(max_tokens=5)))
        found.append(Edge("context too short for the request", full[:-5], Settings(max_tokens=50)))
        found.append(Edge("room for one token", full[:-1], Settings(max_tokens=50)))
    return found


def _constrained(lm: LM, text: list[int], plain: list[int], late: int) -> list[Edge]:
    """Constraints that the model's own text keeps for a while and then breaks, within drafts that know of none."""
    size, ends = lm.vocab_size, frozenset([late])
    rare = [token for token in range(size) if token != late]
    other = next((token for token in rare if token not in plain), rare[0])
    own = [token for token in plain if token != late] or [other]
    lists = [own[:3] + [other] * 3, own[:7], [*own[:7], other], own[:2] + own[:5]]
    demanded = [(other,), tuple(own[1:3]) or (other,)]
    source = (own * 9)[: len(own) + 8]
    cases: list[tuple[str, frozenset[int], Automaton]] = [
        ("a closed list", ends, Trie(size, ends, lists)),
        ("a closed list without ends", frozenset(), Trie(size, (), lists)),
        ("demanded phrases", ends, Phrases(size, ends, demanded)),
        ("demanded phrases to the last token", frozenset(), Phrases(size, (), demanded)),
        ("banned phrases", frozenset(), Avoid(size, (), [tuple(plain[2:5]), tuple(plain[-2:])])),
        ("verbatim substrings", ends, Substring(size, ends, [source], 5, 9)),
    ]
    return [Edge(name, text, Settings(max_tokens=14, constraint=automaton), eos) for name, eos, automaton in cases]
