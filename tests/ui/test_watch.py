"""The log of a run against hand-made trees, and against what the run itself counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from segue import catalog
from segue.api import Model
from segue.data import DraftTree, Settings, Want
from segue.models.engine import Engine
from segue.models.run import Forward, Run
from segue.ui.watch import Log, Origin, watched
from tests.ui.conftest import PROMPT


def logged(model: Model, method: Any, **settings: Any) -> tuple[Run, Log]:
    run, log, engine = Run(model.lm, model.encode(PROMPT), Settings(**settings)), Log(), Engine()
    job = engine.add(run, watched(run, method.run(run), log))
    with torch.no_grad():
        engine.drain()
    assert job.error is None
    return run, log


@pytest.mark.parametrize("name", ["prompt_lookup", "token_recycling", "lookahead", "auto", "jacobi", "sparse_to_dense"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_steps_add_up_to_what_the_run_counts(lm: Model, name: str, temperature: float) -> None:
    run, log = logged(lm, catalog.build(name), max_tokens=40, temperature=temperature, seed=3, ignore_eos=True)
    assert len(log.origins) == len(run.output) == 40
    assert sum(step.drafted for step in log.steps) == run.stats.drafted
    assert sum(step.kept for step in log.steps) == run.stats.accepted
    assert sum(origin.source is not None for origin in log.origins) == run.stats.accepted
    assert len(log.steps) == run.stats.rounds
    assert log.origins[0] == Origin(None, None)  # the prompt's forward gives the first token
    for step in log.steps:
        tokens = run.output[step.first : step.first + step.count]
        assert [step.tokens[node] for node in step.path[1:]][: step.count] == tokens[: step.kept]
        assert step.own == (tokens[step.kept] if len(tokens) > step.kept else None)
        assert all(step.parents[node] == before for before, node in zip(step.path, step.path[1:], strict=False))
    if run.stats.drafted:
        assert any(origin.source for origin in log.origins) == (run.stats.accepted > 0)


def test_watching_changes_nothing(lm: Model) -> None:
    for name in ("token_recycling", "contrastive_search", "beam", "cards"):
        run, _ = logged(lm, catalog.build(name), max_tokens=12, seed=5)
        assert run.output == lm.generate(PROMPT, name, max_tokens=12, seed=5).tokens


class Scripted:
    """A method that asks for one tree it was given, and keeps of it what it was told."""

    def __init__(self, tree: DraftTree, path: list[int], own: int) -> None:
        self.tree, self.path, self.own = tree, path, own

    def run(self, run: Run) -> Iterator[Any]:
        scores = yield from run.prefill()
        run.emit([self.tree.tokens[0]], scores, [-1])
        scores = yield Forward(run.sequence, self.tree, Want())
        run.sequence.commit(self.path, self.own)
        run.emit([*(self.tree.tokens[node] for node in self.path[1:]), self.own], scores, self.path)
        run.finish("stop")


def test_a_path_worked_out_by_hand(lm: Model) -> None:
    # 5 -> 6 -> 8 (kept), and the rejected 7 beside 6, 9 beside 8; then the model says 9, which hangs elsewhere
    tree = DraftTree.root(5)
    six, seven = tree.add(0, 6, source="a", score=0.5), tree.add(0, 7, source="b")
    eight = tree.add(six, 8, source="")
    tree.add(seven, 9, source="b")
    _, log = logged(lm, Scripted(tree, [0, six, eight], 9), max_tokens=9)
    (step,) = log.steps
    assert (step.path, step.first, step.count, step.own) == ((0, 1, 3), 1, 3, 9)
    assert (step.drafted, step.kept) == (4, 2)
    assert log.origins == [Origin(None, None), Origin(0, "a"), Origin(0, "draft"), Origin(0, None)]


def test_nothing_accepted(lm: Model) -> None:
    tree = DraftTree.chain([5, 6, 7], source="a")
    _, log = logged(lm, Scripted(tree, [0], 8), max_tokens=9)
    assert (log.steps[0].path, log.steps[0].kept, log.steps[0].own) == ((0,), 0, 8)
    assert log.origins == [Origin(None, None), Origin(0, None)]


def test_a_run_that_is_given_up_closes_its_decoder(lm: Model) -> None:
    closed: list[bool] = []

    class Endless:
        def run(self, run: Run) -> Iterator[Any]:
            try:
                scores = yield from run.prefill()
                while True:
                    run.emit([5], scores, [-1])
                    scores = yield Forward(run.sequence, DraftTree.root(5), Want())
                    run.sequence.commit([0])
            finally:
                closed.append(True)

    run, log, engine = Run(lm.lm, lm.encode(PROMPT), Settings(max_tokens=99)), Log(), Engine()
    job = engine.add(run, watched(run, Endless().run(run), log))  # type: ignore[arg-type]
    for _ in range(4):
        engine.step()
    assert not closed
    engine.cancel(job)
    assert closed == [True]
    assert len(log.steps) == 3  # the prompt's forward is none
