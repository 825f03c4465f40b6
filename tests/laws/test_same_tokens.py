"""The law finds what is wrong, and forgives only what rounding explains."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from segue.data import DraftTree, Settings, TokenLogprob, Want
from segue.decode.plain import Plain
from segue.decode.speculative import base
from segue.decode.speculative.base import Budget
from segue.decode.speculative.prompt_lookup import Index, PromptLookup
from segue.laws.base import LawBroken
from segue.laws.oracle import Answer
from segue.laws.same_tokens import same_tokens
from segue.laws.worlds import World, toy_world
from segue.models.run import Decoder, Run

SHORT = Settings(max_tokens=12)


@dataclass(frozen=True)
class Careless(PromptLookup):
    """Emits the second token of every draft without looking at it."""

    def propose(self, run: Run, state: Index, budget: Budget) -> DraftTree:
        tree = super().propose(run, state, budget)
        run.ids[-1:] = [*tree.tokens[1:2], run.ids[-1]] if len(tree) > 1 else [run.ids[-1]]
        return tree


@dataclass(frozen=True)
class OneTooMany(Plain):
    """Forgets the length limit once in a while."""

    def run(self, run: Run) -> Decoder[None]:
        run.max_tokens += len(run.ids) % 2
        return super().run(run)


@dataclass(frozen=True)
class WrongLogprobs(Plain):
    """Tells the log-probabilities of the token before."""

    def run(self, run: Run) -> Decoder[None]:
        yield from super().run(run)
        assert run.logprobs is not None
        run.logprobs = [TokenLogprob(e.token, e.logprob - 0.01, e.top) for e in run.logprobs]


def test_a_right_method_is_counted(llama: World) -> None:
    report = same_tokens(Plain(), llama.lm, llama.oracle, llama.prompts, SHORT)
    assert (report.answers, report.tokens, report.near_ties) == (8, 96, [])


@pytest.mark.parametrize("cls", [Careless, OneTooMany])
def test_a_wrong_method_is_found(cls: type, llama: World) -> None:
    for world in (llama, toy_world(3)):
        with pytest.raises(LawBroken, match=r"instead of|does not fit"):
            same_tokens(cls(), world.lm, world.oracle, [[1, 2, 1, 2, 1], [0]], SHORT)


def test_wrong_log_probabilities_are_found(llama: World) -> None:
    settings = Settings(max_tokens=4, logprobs=1)
    same_tokens(Plain(), llama.lm, llama.oracle, llama.prompts, settings)
    with pytest.raises(LawBroken, match="log-probability"):
        same_tokens(WrongLogprobs(), llama.lm, llama.oracle, llama.prompts, settings)


def test_a_wrong_greedy_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    world = toy_world(3)
    right = base.accept_greedy
    monkeypatch.setattr(base, "accept_greedy", lambda tree, argmax: (list(range(len(tree))), right(tree, argmax)[1]))
    with pytest.raises(LawBroken):
        same_tokens(PromptLookup(), world.lm, world.oracle, world.prompts, SHORT)


@dataclass(frozen=True)
class Biased:
    """An oracle that would rather have written another last token, by a small margin."""

    world: World
    gap: float

    def answer(self, prompt: list[int], settings: Settings) -> Answer:
        own = self.world.oracle.answer(prompt, settings)
        scores = own.scores.clone()
        other = int(scores[-1].argsort()[-2])
        scores[-1, other] = scores[-1].max() + self.gap
        return Answer([*own.tokens[:-1], other], own.reason, own.logits, scores)


def test_near_ties_are_forgiven_and_reported(llama: World) -> None:
    report = same_tokens(Plain(), llama.lm, Biased(llama, 5e-5), llama.prompts, SHORT)
    assert len(report.near_ties) == 8
    assert all(tie.place == 11 and 0 < tie.gap < 1e-4 for tie in report.near_ties)
    with pytest.raises(LawBroken, match="rounding explains"):
        same_tokens(Plain(), llama.lm, Biased(llama, 2e-4), llama.prompts, SHORT)
    with pytest.raises(LawBroken, match="rounding explains"):  # float64 excuses less
        same_tokens(Plain(), toy_world(3).lm, Biased(toy_world(3), 5e-5), [[0]], SHORT)


def test_rounding_is_below_what_is_forgiven(llama: World) -> None:
    """The error of a packed tree against single forwards, measured where the number 1e-4 comes from."""
    lm = llama.lm
    sequence = lm.sequence()
    prompt = llama.prompts[-1]
    tree = DraftTree.from_paths(prompt[-1], [(1, 2, 3), (1, 5), (4, 2)])
    (_,) = lm.forward([(sequence, DraftTree.chain(prompt[:-1]), Want(logits="none"))])
    sequence.commit(list(range(len(prompt) - 1)))
    (scores,) = lm.forward([(sequence, tree, Want())])
    worst = 0.0
    for node in range(len(tree)):
        text = prompt[:-1] + [tree.tokens[i] for i in tree.path(node)]
        reference = llama.oracle.answer(text, Settings(max_tokens=1)).logits[0]
        worst = max(worst, float((scores.row(node) - reference).abs().max()))
    assert 0 < worst < 2e-5
    assert torch.isfinite(scores.logits).all()
