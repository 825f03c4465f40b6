"""MBR with a judge: the law holds every grade to full forwards; here a scripted judge, its costs and its prompt."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from typing import Any

import pytest
import torch
from torch import Tensor

import segue
from segue.api import Model
from segue.choose.parts import judge as judging
from segue.choose.parts.judge import Judge
from segue.laws.base import LawBroken, decode
from segue.laws.targets.mbr_judge import hold
from segue.laws.worlds import network_world, toy_world
from segue.models.toy import ToyLM

PROMPT = "Once upon a time"
TASK, REFERENCE, ANSWER, QUESTION = (7, 7), (6, 6), (5, 5), (4, 4)


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


class Scripted(ToyLM):
    """A judge that grades 5 where answer and reference share their first token, and 1 elsewhere; 4 for any answer of an
    even first token where it sees no reference."""

    def __init__(self) -> None:
        super().__init__(vocab_size=8, order=1)
        self.read: list[tuple[int, ...]] = []

    def logits_after(self, context: Seq[int]) -> Tensor:
        row = torch.full((8,), -50.0, dtype=torch.float64)
        text = tuple(context)
        if text[-2:] == QUESTION and ANSWER in itertools.pairwise(text):
            self.read.append(text)
            answer = text[self._after(text, ANSWER)]
            if REFERENCE in itertools.pairwise(text):
                grade = 3 if text[self._after(text, REFERENCE)] == answer else 0
            else:
                grade = 2 if answer % 2 == 0 else 1
            row[grade] = 50.0
        return row

    @staticmethod
    def _after(text: tuple[int, ...], mark: tuple[int, int]) -> int:
        return next(i + 2 for i in range(len(text)) if text[i : i + 2] == mark)


def scripted(**fields: Any) -> tuple[Scripted, Any]:
    lm = Scripted()
    judge = Judge(lm, TASK, REFERENCE, ANSWER, QUESTION, ((0,), (1,), (2,), (3,)))
    return lm, segue.method("mbr_judge", judge=judge, **fields)


def test_a_judge_that_prefers_the_consensus_is_obeyed() -> None:
    """Tokens 0 to 3 are written. The commonest first token wins, however likely the texts are."""
    world, judged = toy_world(4), 0
    for seed in range(6):
        settings = segue.api.make_settings(max_tokens=3, temperature=1.0, seed=seed)
        judge, method = scripted(samples=7)
        (answer,) = decode(world.lm, method, [world.prompts[0]], settings)
        draws = [
            c.tokens[0]
            for c, n in zip(answer.candidates or [], answer.trace[0]["counts"], strict=True)
            for _ in range(n)
        ]
        assert len(draws) == 7
        assert draws.count(answer.tokens[0]) == max(map(draws.count, draws))
        share = (draws.count(answer.tokens[0]) - 1) / 6  # of the other draws, graded 4; 1 elsewhere
        assert answer.candidates is not None
        chosen_among = len(answer.candidates) > 1
        assert answer.candidates[0].score == pytest.approx(chosen_among * (1 + 3 * share), abs=1e-9)
        judged += chosen_among
        assert len(judge.read) == (0 if not chosen_among else answer.stats.scorer_calls)
        assert all(text[:2] == TASK and text[2 : 2 + len(world.prompts[0])] == (0,) for text in judge.read)
    assert judged >= 3


def test_best_of_n_shows_the_judge_no_reference() -> None:
    world = toy_world(4)
    settings = segue.api.make_settings(max_tokens=3, temperature=1.0, seed=2)
    judge, method = scripted(samples=7, against="nothing")
    (answer,) = decode(world.lm, method, [world.prompts[0]], settings)
    assert answer.candidates is not None
    assert {c.tokens[0] % 2 for c in answer.candidates} == {0, 1}
    assert [c.score for c in answer.candidates] == [pytest.approx(3 - c.tokens[0] % 2) for c in answer.candidates]
    assert answer.stats.scorer_calls == len(answer.candidates) == len(judge.read)


def test_pairs_cost_a_grade_each_and_references_lower_them(model: Model) -> None:
    full = model.generate(PROMPT, method=segue.method("mbr_judge", samples=5), max_tokens=6, seed=2, ignore_eos=True)
    assert full.stats.scorer_calls == 20  # N (N - 1)
    few = segue.method("mbr_judge", samples=5, references=2)
    fewer = model.generate(PROMPT, method=few, max_tokens=6, seed=2, ignore_eos=True)
    assert fewer.stats.scorer_calls == 8  # 2 N, less each reference's own
    assert fewer.stats.rows < full.stats.rows
    # The task and the request are read once, a reference once, an answer once a pair: together, in three forwards.
    written = 6
    assert full.stats.target_forwards <= written + 3
    task = model.lm.encode(judging.TASK + PROMPT)
    assert full.stats.rows < full.stats.prompt_tokens + 5 * 5 + len(task) + 10 + 5 * 24 + 20 * 24


def test_grades_are_expectations_read_off_one_forward_of_the_whole_prompt() -> None:
    model = segue.model(dtype="float32")
    method = segue.method("mbr_judge", samples=3, show=True)
    answer = model.generate(PROMPT, method=method, max_tokens=6, seed=3)
    lm = model.lm
    texts, grades = answer.trace[1]["texts"], answer.trace[1]["utilities"]
    judge = Judge()
    pieces = [judge.task, PROMPT, judge.reference, texts[1], judge.answer, texts[0]]
    ids = [token for piece in pieces for token in lm.encode(str(piece), special=False)]
    options = [lm.encode(f"{judge.question}{grade}", special=False) for grade in judge.grades]
    assert len({tuple(o[:-1]) for o in options}) == 1
    (scores,) = lm.forward([_ask(lm, ids + options[0][:-1])])
    p = scores.row(-1).double()[[o[-1] for o in options]].softmax(-1)
    assert grades[0][1] == pytest.approx(float((p * torch.arange(1, 6)).sum()), abs=1e-4)


def _ask(lm: Any, ids: list[int]) -> Any:
    from segue.data import DraftTree, Want

    return lm.sequence(), DraftTree.chain(ids), Want(logits="last")


def test_one_answer_needs_no_judge(model: Model) -> None:
    answer = model.generate(PROMPT, method=segue.method("mbr_judge", samples=1), max_tokens=4, seed=1)
    assert answer.stats.scorer_calls == 0
    assert answer.trace[0]["counts"] == [1]


def test_a_judge_that_cannot_read_the_pair_is_refused() -> None:
    world = network_world("llama")
    judge = Judge(None, (1,) * 60, (2,), (3,), (4,), ((5,), (6,)))
    with pytest.raises(
        ValueError, match=r"the judge tiny-llama-0 would have to read \d+ tokens, and its context has 96"
    ):
        Model(world.lm).generate(world.prompts[3], method=segue.method("mbr_judge", judge=judge), max_tokens=8)


def test_grades_that_one_token_does_not_tell_apart_are_refused(model: Model) -> None:
    judge = Judge(grades=(" 11", " 12", " 21"))
    with pytest.raises(ValueError, match="are not told apart by one token of mini"):
        model.generate(PROMPT, method=segue.method("mbr_judge", judge=judge), max_tokens=4, seed=1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"against": "all"}, "against='all' is not allowed"), ({"references": -1}, "references=-1 is not allowed")],
)
def test_bad_fields_name_the_value_and_the_way_out(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        segue.method("mbr_judge", **fields)


def test_best_of_n_by_a_comparison_is_refused() -> None:
    from segue.choose.parts.utility import Chrf

    with pytest.raises(ValueError, match="compares two texts"):
        segue.method("mbr_judge", against="nothing", judge=Chrf())


def test_a_judge_that_reads_the_wrong_answer_breaks_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = judging._rows

    def swapped(judge: Any, root: Any, shared: Any, shown: Any, asked: Any, pairs: Any) -> Any:
        return rows(judge, root, shared, shown, asked, [(i, (j + 1) % len(shown)) for i, j in pairs])

    monkeypatch.setattr(judging, "_rows", swapped)
    with pytest.raises(LawBroken):
        hold(segue.method("mbr_judge"), toy_world(3, 2))
