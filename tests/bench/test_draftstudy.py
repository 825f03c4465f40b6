"""Draft studies: replay against live decoding, the formula against plain sums, files that are not as they should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segue.api import Model
from segue.bench.draftstudy import Study, answer_seconds, break_even, compare, measure, round_seconds, study
from segue.bench.drafttrace import Answer, Round, Trace, fingerprint, hits, read, record, rounds
from segue.data import Settings, Stats
from segue.decode.speculative.draft_model import DraftModel
from segue.laws.base import decode
from segue.laws.oracle import NetworkOracle
from segue.laws.worlds import World, neighbour, network_world, toy_world
from segue.models.cost import Cost
from segue.models.lm import LM
from segue.models.toy import ToyLM

FAMILIES = ("llama", "gpt2", "gemma2", "qwen3")
TOKENS = 40


@pytest.fixture(scope="module", params=FAMILIES)
def world(request: pytest.FixtureRequest) -> World:
    return network_world(request.param)


def recorded(world: World, max_tokens: int = TOKENS, path: Path | None = None) -> Trace:
    return record(Model(world.lm), world.prompts, max_tokens, path=path)


def live(
    lm: LM, draft: LM, prompt: list[int], gamma: int, monkeypatch: pytest.MonkeyPatch, tokens: int = TOKENS
) -> tuple[list[Round], Stats, list[int]]:
    """What draft_model really does, round by round."""
    booked: list[Round] = []
    book = Stats.book_round

    def noted(stats: Stats, offered: int, kept: int) -> None:
        booked.append(Round(offered, kept))
        book(stats, offered, kept)

    with monkeypatch.context() as patch:
        patch.setattr(Stats, "book_round", noted)
        (answer,) = decode(lm, DraftModel(draft=draft, gamma=gamma), [prompt], Settings(max_tokens=tokens))
    return booked, answer.stats, answer.tokens


@pytest.mark.parametrize("gamma", [1, 2, 3, 7])
def test_replay_is_live_decoding_round_for_round(world: World, gamma: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, draft = recorded(world), neighbour(world.lm)
    kept = 0
    for answer in trace.answers:
        told = rounds(trace, answer, hits(draft, answer, trace.vocab_size), gamma, draft.context_length)
        booked, stats, tokens = live(world.lm, draft, answer.prompt, gamma, monkeypatch)
        assert tokens == answer.tokens
        # A round without room for a draft is a plain one, which books no depth.
        assert [r for r in told if r.offered] == booked
        assert (len(told), sum(r.kept for r in told)) == (stats.rounds, stats.accepted)
        assert sum(r.offered for r in told) == stats.drafted
        kept += stats.accepted
    assert kept > 0


def test_replay_knows_the_edges_of_both_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that end at the target's context, drafts that cannot read on or cannot read the prompt at all."""
    world = network_world("llama")
    for context in (world.lm.context_length, 30, 20, 8):
        draft = neighbour(world.lm)
        draft.context_length = context
        trace = recorded(world, 200)
        assert any(len(a.tokens) < 200 for a in trace.answers)
        for answer in trace.answers:
            told = rounds(trace, answer, hits(draft, answer, trace.vocab_size), 4, context)
            booked, stats, tokens = live(world.lm, draft, answer.prompt, 4, monkeypatch, 200)
            assert tokens == answer.tokens
            assert ([r for r in told if r.offered], len(told)) == (booked, stats.rounds)


@pytest.mark.parametrize("seed", range(4))
def test_replay_stops_where_the_text_ends(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = 0
    for eos in range(3):
        world = toy_world(3, eos=eos, seed=seed)
        trace, draft = recorded(world), neighbour(world.lm)
        for answer in trace.answers:
            told = rounds(trace, answer, hits(draft, answer, 3), 5, draft.context_length)
            booked, stats, tokens = live(world.lm, draft, answer.prompt, 5, monkeypatch)
            assert tokens == answer.tokens
            assert ([r for r in told if r.offered], len(told)) == (booked, stats.rounds)
            ended += tokens[-1] == eos
    assert ended


def test_hits_are_the_drafts_own_greedy_tokens(world: World) -> None:
    draft = neighbour(world.lm)
    oracle = NetworkOracle(draft)  # type: ignore[arg-type]
    answer = recorded(world).answers[1]
    ids = [*answer.prompt, *answer.tokens]
    expected = [False]
    for end in range(len(answer.prompt) + 1, len(ids)):
        expected.append(oracle.answer(ids[:end], Settings(max_tokens=1)).tokens == [ids[end]])
    assert hits(draft, answer, world.lm.vocab_size) == expected
    assert 0 < sum(expected) < len(expected)


class Timed(ToyLM):
    """A toy with a price."""

    curve: Cost

    @property
    def cost(self) -> Cost:
        return self.curve


def timed(lm: ToyLM, *seconds: float, overhead: float = 0.0) -> ToyLM:
    lm.__class__ = Timed
    lm.curve = Cost((1, 2, 4)[: len(seconds)], seconds, overhead)  # type: ignore[attr-defined]
    return lm


@pytest.fixture
def judged() -> tuple[Trace, ToyLM, Study]:
    world = toy_world(3)
    assert isinstance(world.lm, ToyLM)
    draft = neighbour(world.lm)
    assert isinstance(draft, ToyLM)
    timed(world.lm, 10.0, 11.0, 13.0, overhead=0.5)
    trace = recorded(world)
    timed(draft, 2.0, 2.5)
    return trace, draft, study(trace, draft, 4)


def test_the_formula(judged: tuple[Trace, ToyLM, Study]) -> None:
    trace, draft, found = judged
    assert [p.gamma for p in found.points] == [0, 1, 2, 3, 4]
    for point in found.points:
        runs = [rounds(trace, a, hits(draft, a, 3), point.gamma, 4096) for a in trace.answers]
        done = [r for run in runs for r in run]
        accepted = sum(r.kept for r in done) / len(done)
        verify = {1: 10.0, 2: 11.0, 3: 12.0, 4: 13.0, 5: 14.0}[point.gamma + 1]
        seconds = point.gamma * 2.0 + verify + (0.5 if point.gamma else 0)
        assert point.accepted == pytest.approx(accepted)
        assert point.throughput == pytest.approx((1 + accepted) / seconds)
        assert point.ratio == pytest.approx(10 * (1 + accepted) / seconds)
    assert found.points[0].ratio == found.points[0].answers_ratio == 1
    assert found.best.throughput == max(p.throughput for p in found.points)
    assert found.relative_latency == 0.2
    even = found.points[1].break_even
    assert even == pytest.approx((2 + 11 + 0.5) / 10 - 1)
    assert found.break_even == min(p.break_even for p in found.points if p.break_even is not None)


def test_acceptance_by_position_counts_places(judged: tuple[Trace, ToyLM, Study]) -> None:
    trace, draft, found = judged
    for depth, share in enumerate(found.acceptance, start=1):
        good = total = 0
        for answer in trace.answers:
            ids = [*answer.prompt, *answer.tokens]
            for at in range(len(answer.prompt) + 1, len(ids) - depth + 1):
                text = ids[:at]
                for _ in range(depth):
                    text = [*text, int(draft.logits_after(text).argmax())]
                good += text == ids[: at + depth]
                total += 1
        assert share == pytest.approx(good / total)
    assert sorted(found.acceptance, reverse=True) == found.acceptance


def test_whole_answers_count_what_the_draft_reads() -> None:
    target, draft = Cost((1, 2, 4), (10.0, 11.0, 13.0)), Cost((1, 2), (2.0, 3.0))
    answer = Answer([0, 0], [0] * 7)
    run = [Round(2, 2), Round(2, 0), Round(1, 0), Round(0, 0)]
    # The prompt by the target; prompt and first token by the draft; two tokens after the draft that was accepted whole.
    expected = 11 + (4 + 2 + 12) + (3 + 2 + 12) + (2 + 11) + 10
    assert answer_seconds(target, draft, answer, run) == pytest.approx(expected)
    assert round_seconds(target, draft, 3) == 6 + 13


@pytest.mark.parametrize("gamma", [1, 2, 5, 9])
def test_break_even_is_where_the_mean_pays(gamma: int) -> None:
    for cost in (1.0, 1.2, 1.9, gamma + 1.0):
        alpha = break_even(cost, gamma)
        assert alpha is not None
        assert sum(alpha**i for i in range(gamma + 1)) == pytest.approx(cost)
    assert break_even(gamma + 1.01, gamma) is None


def test_measured_beside_predicted(judged: tuple[Trace, ToyLM, Study]) -> None:
    trace, draft, found = judged
    target = toy_world(3).lm
    seen: list[tuple[int, int]] = []
    told = measure(
        Model(target), {found.draft: draft}, {found.draft: [1, 3]}, trace, 2, progress=lambda a, b: seen.append((a, b))
    )
    assert seen[-1] == (2 * 3 * 3, 2 * 3 * 3)
    for line, gamma in zip(compare([found], told), (1, 3), strict=True):
        assert (line["draft"], line["gamma"], line["equal"]) == (draft.name, gamma, 3)
        assert line["ratio"] > 0
        assert line["predicted"] == found.points[gamma].ratio
        assert line["error"] == pytest.approx(found.points[gamma].answers_ratio / line["ratio"] - 1)


def test_a_file_says_what_was_recorded(world: World, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    trace = recorded(world, path=path)
    again = read(path)
    assert again.answers == trace.answers
    assert (again.identity(), again.cost) == (trace.identity(), trace.cost)
    assert [a.prompt for a in again.answers] == world.prompts
    for answer in again.answers:
        assert answer.tokens == world.oracle.answer(answer.prompt, Settings(max_tokens=TOKENS)).tokens


def test_a_killed_recording_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = network_world("llama")
    path = tmp_path / "t.jsonl"
    whole = recorded(world, path=path)
    complete = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(complete) if byte == 10]
    asked: list[Any] = []
    generate = Model.generate
    monkeypatch.setattr(Model, "generate", lambda self, p, *a, **k: asked.append(p) or generate(self, p, *a, **k))
    for cut in (0, 5, ends[0] - 2, ends[0], ends[0] + 9, ends[2], ends[2] + 1, ends[3] - 1, len(complete)):
        path.write_bytes(complete[:cut])
        asked.clear()
        assert recorded(world, path=path).answers == whole.answers
        assert path.read_bytes() == complete
        done = max(0, sum(end <= cut for end in ends) - 1)
        assert asked == world.prompts[done:]


def test_another_recording_is_left_alone(tmp_path: Path) -> None:
    world = network_world("llama")
    path = tmp_path / "t.jsonl"
    recorded(world, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"of another recording \(max_tokens 40\)"):
        recorded(world, 20, path)
    with pytest.raises(ValueError, match="of another recording"):
        record(Model(world.lm), world.prompts[::-1], TOKENS, path=path)
    with pytest.raises(ValueError, match="of another recording"):
        recorded(network_world("gpt2"), path=path)
    assert path.read_bytes() == before
    for other in (b"precious", b'{"a": 1}\n'):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"t\.jsonl"):
            recorded(world, path=path)
        assert path.read_bytes() == other


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"prompt": [1]}',
        b'{"prompt": [], "tokens": [1]}',
        b'{"prompt": [1], "tokens": []}',
        b'{"prompt": [1], "tokens": [96]}',
        b'{"prompt": [1], "tokens": [-1]}',
        b'{"prompt": [1], "tokens": [true]}',
        b'{"prompt": [1], "tokens": ["a"]}',
        b'{"prompt": 5, "tokens": [1]}',
        b'{"prompt": [1], "tokens": [' + b"1, " * 40 + b"1]}",
        b"\xff",
    ],
)
def test_a_corrupt_line_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorded(network_world("llama"), path=path)
    lines = path.read_bytes().split(b"\n")
    lines[2] = line
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(ValueError, match=r"t.jsonl line 3 is not an answer of tiny-llama-0: record it again"):
        read(path)
    with pytest.raises(ValueError, match="line 3"):
        recorded(network_world("llama"), path=path)


def test_a_head_that_is_none_and_a_torn_end_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorded(network_world("llama"), path=path)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match="line 5 is cut off: continue the recording with --record"):
        read(path)
    head = json.loads(data.split(b"\n")[0])
    broken_cost = {**head["cost"], "seconds": [0]}
    for other in ({}, {**head, "segue_trace": 9}, {**head, "more": 1}, {**head, "cost": broken_cost}):
        path.write_text(json.dumps(other) + "\n")
        with pytest.raises(ValueError, match="line 1 is not the head of a trace"):
            read(path)


def test_a_foreign_vocabulary_is_refused() -> None:
    trace = recorded(toy_world(3))
    with pytest.raises(ValueError, match="toy-4-2-0 cannot draft for toy-3-2-0: 4 tokens against 3"):
        study(trace, ToyLM(4), 3)
    with pytest.raises(ValueError, match="at most 0 drafted tokens is not allowed"):
        study(trace, ToyLM(3), 0)
    short = recorded(toy_world(3), 1)
    with pytest.raises(ValueError, match="there is nothing to draft"):
        study(short, ToyLM(3), 3)


def test_a_draft_may_know_more_words_but_not_others() -> None:
    class Words:
        def __init__(self, *words: str) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: i for i, word in enumerate(self.words)}

    def spelled(*words: str) -> ToyLM:
        lm = ToyLM(max(len(words), 3))
        lm.tokenizer = Words(*words)
        return lm

    entries, digest = fingerprint(spelled("a", "b", "c"))
    assert entries == 3
    assert fingerprint(spelled("a", "b", "c", "d"), entries)[1] == digest
    for words in (("a", "c", "b"), ("a", "b"), ("a", "b", "d")):
        assert fingerprint(spelled(*words), entries)[1] != digest
