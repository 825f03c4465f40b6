"""Prompts that end anywhere: the law of what follows a *string*, where tokens would only give that of its tokens.

After the tokens of "hel" a model does not expect "lo": text with "hello" would have been spelled otherwise.
1. x is the prompt's text in bytes, enc the tokenizer (byte pairs, or longest prefixes).
2. A cover of x is enc(x[:i]) + [t] where t spells x[i:] and maybe more, and the tokens are what the tokenizer makes of
   their own bytes. Every spelling of every text that begins with x begins with exactly one cover.
3. The left parts enc(x[:i]) differ only near the end: what they share is read once, the rest as one tree.
4. P(x) is the sum of P(cover); draw a cover by its share (temperature 0: take the likeliest).
5. unit=token: from there on decode token by token; the new text begins behind x, wherever in a token that is.
6. unit=byte: P(next byte c | x) = P(xc) / P(x). Of the covers keep those that go on with c; the one that ends at x is
   replaced by its continuations, from one more forward. A token is given out once all covers agree on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from segue.card import Card, Claim, Paper, SameTarget
from segue.choose.sample.base import common, reach, read
from segue.data import CapabilityError, DraftTree, Settings, TokenLogprob, Want
from segue.models.run import Decoder, Forward, Run
from segue.models.spelling import Spelling, spelling_of
from segue.models.warp import Target

UNITS = ("token", "byte")
END = 256  # behind the bytes: the text ends


@dataclass(frozen=True)
class TokenizationBias:
    """Exact where the model writes canonical spellings only; in tokens it costs a forward or two more."""

    card = Card(
        paper=Paper(
            id="2406.16829",
            title="Understanding and Mitigating Tokenization Bias in Language Models",
            year=2024,
        ),
        claim=Claim(value=None, unit="none", baseline="the prompt's tokens", setting="recovers a Markov chain's law"),
        exact=(SameTarget(target="tokenization_bias"),),
        needs=("logits", "tree attention", "a tokenizer of byte pairs or longest prefixes"),
        departs="what a model leaks to spellings that its tokenizer never makes is left out of covers, with mask of "
        "every step; without a begin-of-text token the first token of the prompt is taken as given; a character that "
        "is not complete counts as a letter where it may be one",
        check="spec",
    )

    unit: str = "token"  # token: exact where the prompt ends, then tokens; byte: every byte is chosen
    mask: bool = False  # renormalise over the tokens that may follow, at every token of a cover (slower)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r} is not allowed: {' or '.join(UNITS)}")

    def run(self, run: Run) -> Decoder[None]:
        state = _start(run, self.mask)
        if self.unit == "byte":
            groups = yield from _read_covers(run, state)
            yield from _bytes(run, state, groups)
            return
        going = True
        if state.text:
            groups = yield from _read_covers(run, state)
            covers = [(*group.left, int(token)) for group in groups for token in group.tokens]
            place = _choose(run, state, np.concatenate([group.logp for group in groups]))
            going = _settle(run, state, covers[place])
        while going:
            scores = yield from read(run, run.ids)
            going = run.emit([run.pick(scores, -1)], scores, [-1])


@dataclass(eq=False, slots=True)
class _Group:
    """Covers with one left part: each token spells what is left of x, and `depth` bytes of it are spoken for."""

    left: tuple[int, ...]
    tokens: Any  # (n,) ids; of tokens, or of ends of the text
    logp: Any  # (n,) of left part and token
    depth: int


@dataclass(eq=False, slots=True)
class _State:
    """Of one run."""

    spelling: Spelling
    head: list[int]  # the prompt up to its last token that is no text
    text: bytes  # x: the rest, and what is drawn
    asked: int  # bytes of the prompt in it
    mask: bool
    ruled: Target  # the request's penalties and biases alone
    warped: Target  # its temperature and truncations alone, over any options
    given: int = 0  # tokens behind the head that are prompt or given out
    started: bool = False
    details: dict[tuple[int, ...], Any] = field(default_factory=dict)  # left part -> its row, where asked for


def _start(run: Run, mask: bool) -> _State:
    lm, settings = run.lm, run.settings
    if run.source:
        raise CapabilityError(f"{lm.name} reads its prompt with an encoder: no token of its output goes across its end")
    if getattr(settings, "constrained", False):
        raise ValueError(
            "a constraint begins where the prompt ends, which may lie within a token here: use another method"
        )
    spelling = spelling_of(lm)
    ids = run.ids[: run.prompt_length]
    cut = max((i + 1 for i, t in enumerate(ids) if not spelling.pieces[t]), default=0)
    head, text = ids[:cut], spelling.bytes_of(ids[cut:])
    if not head and spelling.begin is not None:
        head = [spelling.begin]
    penalties = replace(settings, temperature=0.0)
    warpers = Settings(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        typical_p=settings.typical_p,
    )
    ruled, warped = Target(penalties, lm, run.prompt_length), Target(warpers, lm, 0)
    return _State(spelling, head, text, len(text), mask, ruled, warped)


def _lefts(state: _State) -> dict[tuple[int, ...], list[int]]:
    """The left parts of all covers, with the tokens that complete them."""
    spelling, text = state.spelling, state.text
    if not text:
        return {}
    whole = spelling.encode(text)
    start = max(0, len(text) - spelling.longest)
    kept = whole[: spelling.stable(whole, start)]
    place = len(spelling.bytes_of(kept))
    found: dict[tuple[int, ...], list[int]] = {}
    for i in range(max(place, start), len(text)):
        tokens = spelling.starting(text[i:])
        if not tokens:
            continue
        left = (*kept, *spelling.encode(text[place:i]))
        if not state.head and (not left or left[0] != whole[0]):
            continue
        tokens = [t for t in tokens if spelling.follows(left, t)]
        if tokens:
            found[left] = tokens
    return found


def _read_covers(run: Run, state: _State) -> Decoder[list[_Group]]:
    """All covers with their log-probabilities, up to a constant: what they share is read, then one tree of the rest."""
    lefts = _lefts(state)
    if not lefts:  # no text yet, or one token that nothing stands before: nothing goes across
        whole = tuple(state.spelling.encode(state.text))
        lefts = {whole[:-1]: [whole[-1]]} if whole else {}
    contexts = {left: [*state.head, *left] for left in lefts} or {(): list(state.head)}
    if not all(contexts.values()):  # the first token alone: it is given
        return [_Group((), np.array([whole[0]]), np.zeros(1), len(state.text))]
    shared = common(list(contexts.values()))
    yield from reach(run, shared[:-1])
    tree = DraftTree.from_paths(shared[-1], [context[len(shared) :] for context in contexts.values()])
    scores = yield Forward(run.sequence, tree, Want())
    run.sequence.scored = None  # which of them is kept is seen later: read again from there, which is a few rows
    children = tree.children()
    groups = []
    for left, context in contexts.items():
        node, behind, logp = 0, len(shared) - len(state.head), 0.0
        for token in context[len(shared) :]:
            logp += float(_log_p(run, state, scores.row(node), left[:behind], plain=True)[token])
            node, behind = next(c for c in children[node] if tree.tokens[c] == token), behind + 1
        row = scores.row(node)
        _note(run, state, left, row)
        if left not in lefts:
            groups.append(_expanded(run, state, left, row, 0.0))
            continue
        tokens = np.array(lefts[left])
        own = _log_p(run, state, row, left).numpy()[tokens]
        depth = len(state.text) - len(state.spelling.bytes_of(left))
        groups.append(_Group(left, tokens, logp + own, depth))
    return groups


def _log_p(run: Run, state: _State, row: torch.Tensor, left: tuple[int, ...], *, plain: bool = False) -> torch.Tensor:
    """(V,) log-probabilities after a left part, in float64. The prompt's own tokens are `plain`: no penalty keeps them
    from having been written."""
    scores = row.double()
    if not plain:
        scores = state.ruled.processed(scores, [*state.head, *left]).double()
    if state.mask:
        allowed = torch.full_like(scores, float("-inf"))
        follow = torch.from_numpy(state.spelling.successors(left)).to(row.device)
        allowed[follow] = 0.0
        others = torch.tensor([t for t, piece in enumerate(state.spelling.pieces) if not piece], dtype=torch.long)
        allowed[others.to(row.device)] = 0.0
        scores = scores + allowed
    return scores.log_softmax(-1).cpu()


def _choose(run: Run, state: _State, logp: Any) -> int:
    """An option by its log-probability, with the temperature and the truncations of the request."""
    scores = torch.from_numpy(np.asarray(logp, dtype=np.float64)).log_softmax(-1)
    if state.warped.greedy:
        return int(scores.argmax())
    return run.chance.index(state.warped.p(scores, []))


def _note(run: Run, state: _State, left: tuple[int, ...], row: torch.Tensor) -> None:
    if run.logprobs is not None:
        state.details[left] = row


def _settle(run: Run, state: _State, tokens: tuple[int, ...]) -> bool:
    """Give out what is certain of the tokens behind the head. Those within the prompt are its spelling from now on."""
    spelling = state.spelling
    if not state.started:
        size, count = 0, 0
        while size < state.asked:
            if count == len(tokens):
                return True  # not beyond the prompt yet
            size += len(spelling.pieces[tokens[count]])
            count += 1
        across = size > state.asked
        left = tokens[: count - across]
        before, whole = (
            run.lm.decode([*state.head, *part]) for part in (left, spelling.encode(state.text[: state.asked]))
        )
        run.respell([*state.head, *left], len(whole) - len(before) if across else 0)
        state.started, state.given = True, len(left)
        if run.max_tokens < 1:
            raise ValueError(f"{len(run.ids)} tokens leave no room in the context of {run.lm.name}: shorten the prompt")
    new = list(tokens[state.given :])
    details: list[TokenLogprob] | None = None
    if run.logprobs is not None:
        details = [run.detail(t, state.details[tokens[: state.given + i]]) for i, t in enumerate(new)]
    state.given += len(new)
    return run.give(new, details)


def _bytes(run: Run, state: _State, groups: list[_Group]) -> Decoder[None]:
    """Byte after byte, until the run ends."""
    pieces = state.spelling.pieces
    while True:
        for group in list(groups):  # the cover that ends here goes on
            ends = [i for i, t in enumerate(group.tokens) if pieces[t] and len(pieces[t]) == group.depth]
            for i in ends:
                whole = (*group.left, int(group.tokens[i]))
                scores = yield from read(run, [*state.head, *whole])
                _note(run, state, whole, scores.row(-1))
                groups.append(_expanded(run, state, whole, scores.row(-1), float(group.logp[i])))
            _keep(group, np.array([i for i in range(len(group.tokens)) if i not in ends], dtype=np.int64))
        groups = [group for group in groups if len(group.tokens)]
        nexts = [np.array([pieces[t][g.depth] if pieces[t] else END for t in g.tokens]) for g in groups]
        logp = np.full(END + 1, -np.inf)
        for group, following in zip(groups, nexts, strict=True):
            np.logaddexp.at(logp, following, group.logp)
        byte = _choose(run, state, logp)
        for group, following in zip(groups, nexts, strict=True):
            _keep(group, np.flatnonzero(following == byte))
            group.depth += 1
        groups = [group for group in groups if len(group.tokens)]
        state.text += bytes([byte]) if byte != END else b""
        settled = tuple(common([list(group.left) for group in groups]))
        if len(groups) == 1 and len(groups[0].tokens) == 1:
            settled = (*groups[0].left, int(groups[0].tokens[0]))
        elif byte == END:  # which of several ends it is
            ends_here = np.concatenate([g.logp for g in groups])
            settled = (*settled, int(np.concatenate([g.tokens for g in groups])[_choose(run, state, ends_here)]))
        if not _settle(run, state, settled):
            return


def _expanded(run: Run, state: _State, left: tuple[int, ...], row: torch.Tensor, logp: float) -> _Group:
    """All that may follow a text whose last token ends here: tokens, and ends of the text."""
    ends = [t for t in range(len(state.spelling.pieces)) if not state.spelling.pieces[t] and run.is_end(t)]
    tokens = np.concatenate([state.spelling.successors(left), np.array(ends, dtype=np.int64)])
    return _Group(left, tokens, logp + _log_p(run, state, row, left).numpy()[tokens], 0)


def _keep(group: _Group, places: Any) -> None:
    group.tokens, group.logp = group.tokens[places], group.logp[places]
