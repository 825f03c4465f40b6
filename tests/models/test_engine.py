"""Packing, chunked prefill, budgets, and failures that stay alone."""

from __future__ import annotations

from typing import Any

import pytest

from segue.data import DraftTree, Settings, Want
from segue.decode.plain import Plain
from segue.decode.speculative.draft_model import DraftModel
from segue.decode.speculative.lookahead import Lookahead
from segue.decode.speculative.prompt_lookup import PromptLookup
from segue.decode.speculative.token_recycling import TokenRecycling
from segue.models.engine import Engine
from segue.models.job import TREE_ROWS
from segue.models.run import Decoder, Forward, Run
from segue.models.toy import ToyLM
from tests.models.families import Twins, twins

PROMPTS = [[5, 9, 17, 33, 5, 9], [40] * 30, [3], [7, 8, 9, 10] * 12, [61, 3, 61]]


@pytest.fixture(scope="module")
def pair() -> Twins:
    return twins("llama")


@pytest.fixture(scope="module")
def expected(pair: Twins) -> list[list[int]]:
    return [pair.greedy(p, 20) for p in PROMPTS]


def start(engine: Engine, lm: Any, prompt: list[int], method: Any = None, **settings: Any) -> Any:
    run = Run(lm, prompt, Settings(**{"max_tokens": 20, **settings}))
    return engine.add(run, (method or Plain()).run(run))


def outputs(jobs: list[Any]) -> list[list[int]]:
    return [job.run.output for job in jobs]


@pytest.mark.parametrize("token_budget", [1, 7, 64, 512])
def test_any_token_budget_gives_the_same_tokens(pair: Twins, expected: list[list[int]], token_budget: int) -> None:
    engine = Engine(token_budget=token_budget)
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    engine.drain()
    assert outputs(jobs) == expected
    assert all(job.finished and job.error is None for job in jobs)


def test_prompts_are_read_in_chunks_of_the_budget(pair: Twins) -> None:
    engine = Engine(token_budget=16)
    job = start(engine, pair.lm, [7, 8, 9, 10] * 12, ignore_eos=True)
    engine.drain()
    assert job.run.stats.prefill_forwards == 3
    assert job.run.stats.target_forwards == 3 + 19
    assert job.run.stats.tokens_per_forward == 1.0


def test_different_methods_share_forwards(pair: Twins, expected: list[list[int]]) -> None:
    methods = [Plain(), PromptLookup(), TokenRecycling(), Lookahead(), DraftModel(draft=twins("llama", seed=3).lm)]
    engine = Engine()
    calls = []
    hook = pair.lm.network.register_forward_hook(lambda *_: calls.append(1))
    jobs = [start(engine, pair.lm, p, m) for p, m in zip(PROMPTS, methods, strict=True)]
    engine.drain()
    hook.remove()
    assert outputs(jobs) == expected
    assert len(calls) <= max(job.run.stats.target_forwards for job in jobs) + 2


def test_a_batch_needs_as_many_forwards_as_its_longest_run(pair: Twins) -> None:
    engine = Engine()
    calls = []
    hook = pair.lm.network.register_forward_hook(lambda *_: calls.append(1))
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    engine.drain()
    hook.remove()
    assert len(calls) == engine.forwards == max(len(o) for o in outputs(jobs))


def test_prompts_are_not_starved_by_decoding(pair: Twins) -> None:
    engine = Engine(token_budget=8)
    jobs = [start(engine, pair.lm, [5, 6], max_tokens=120, ignore_eos=True) for _ in range(8)]
    for _ in range(8):
        engine.step()
    late = start(engine, pair.lm, [7] * 40, max_tokens=1)
    for _ in range(60):
        engine.step()
    assert late.finished
    assert not any(job.finished for job in jobs)


def test_a_long_prompt_holds_up_writers_a_quarter_of_the_budget_at_a_time(
    pair: Twins, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []
    real = pair.lm.forward
    monkeypatch.setattr(pair.lm, "forward", lambda asks: rows.append([len(t) for _, t, _ in asks]) or real(asks))
    engine = Engine(token_budget=16)
    writer = start(engine, pair.lm, [5, 6], max_tokens=40, ignore_eos=True)
    engine.step()
    late = [start(engine, pair.lm, [7 + i] * 20, max_tokens=1) for i in range(2)]
    while not all(job.finished for job in late):
        engine.step()
    assert rows == [[2], *[[1, 4, 4]] * 5]
    assert len(writer.run.output) == 6  # it wrote with every forward
    engine.drain()
    rows.clear()
    start(engine, pair.lm, [9] * 20, max_tokens=1)
    engine.drain()
    assert rows == [[16], [4]]  # nobody waits: all of the budget


def test_kv_budget_admits_in_order_and_refuses_the_impossible(pair: Twins, expected: list[list[int]]) -> None:
    row = pair.lm.bytes_per_row
    engine = Engine(kv_budget=(48 + 20 + TREE_ROWS) * row)
    with pytest.raises(ValueError, match="more than the memory budget"):
        start(engine, pair.lm, [3] * 49)
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    held = []
    for _ in engine.steps():
        held.append(sum(len(j.run.sequence) > 0 for j in jobs))
    assert max(held) == 1  # one at a time fits
    assert outputs(jobs) == expected
    assert all(j.run.sequence.past.private_bytes == 0 for j in jobs)


def test_max_running(pair: Twins, expected: list[list[int]]) -> None:
    engine = Engine(max_running=2)
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    engine.step()
    assert sum(job.started for job in jobs) == 2
    engine.drain()
    assert outputs(jobs) == expected


def test_a_failing_decoder_fails_alone(pair: Twins, expected: list[list[int]]) -> None:
    class Breaks:
        def run(self, run: Run) -> Decoder[None]:
            yield from run.prefill()
            yield Forward(run.sequence, DraftTree.root(5), Want(layers=(0, 77)))

    class Raises:
        def run(self, run: Run) -> Decoder[None]:
            yield from run.prefill()
            raise RuntimeError("drafter broke")

    engine = Engine()
    good = [start(engine, pair.lm, p) for p in PROMPTS]
    bad = [start(engine, pair.lm, [3, 4, 5], Breaks()), start(engine, pair.lm, [3, 4, 5], Raises())]
    engine.drain()
    assert outputs(good) == expected
    assert "layer 77" in str(bad[0].error)
    assert "drafter broke" in str(bad[1].error)


def test_a_forward_that_fails_for_one_is_retried_for_the_others(
    pair: Twins, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pair.lm.forward

    def short_of_memory(asks: Any) -> Any:
        if any(len(s.tokens) == 0 and len(t) == 30 for s, t, _ in asks):
            raise RuntimeError("out of memory")
        return real(asks)

    monkeypatch.setattr(pair.lm, "forward", short_of_memory)
    engine = Engine()
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    engine.drain()
    assert str(jobs[1].error) == "out of memory"
    assert [o for i, o in enumerate(outputs(jobs)) if i != 1] == [e for i, e in enumerate(expected) if i != 1]


def test_nan_logits_stop_their_run_with_a_message() -> None:
    lm = ToyLM(seed=1)
    lm.table[5] = float("nan")
    engine = Engine()
    jobs = [start(engine, lm, [i % 4, i // 4], max_tokens=1) for i in range(16)]
    engine.drain()
    failed = [i for i, job in enumerate(jobs) if job.error is not None]
    assert len(failed) == 1
    assert "NaN or infinite logits" in str(jobs[failed[0]].error)


def test_cancel_frees_at_once(pair: Twins, expected: list[list[int]]) -> None:
    engine = Engine()
    jobs = [start(engine, pair.lm, p) for p in PROMPTS]
    for _ in range(5):
        engine.step()
    engine.cancel(jobs[1])
    assert jobs[1].run.sequence.past.private_bytes == 0
    engine.drain()
    assert outputs(jobs)[0] == expected[0]
    assert len(jobs[1].run.output) < 20


@pytest.mark.parametrize("name", ["token_budget", "kv_budget", "max_running"])
def test_budgets_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        Engine(**{name: 0})
