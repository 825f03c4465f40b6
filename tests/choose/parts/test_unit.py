"""Units: where proposals end, read back from the answers, and that growing by units is plain sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import segue
from segue.api import Model
from segue.choose.parts.hypothesis import Hypothesis, deliver, first
from segue.choose.parts.unit import Unit, extend, sampling, uncertainty
from segue.data import Settings
from segue.laws.base import decode
from segue.laws.worlds import network_world, toy_world
from segue.models.run import Decoder, Run

SETTINGS = Settings(max_tokens=40, temperature=1.0, seed=3, ignore_eos=True)


@dataclass
class Walk:
    """Grows one text unit by unit and notes where they end; of several, the first goes on."""

    unit: Unit
    copies: int = 1
    ends: list[int] = field(default_factory=list)
    look: Callable[[Run, Hypothesis], None] = lambda run, text: None

    def run(self, run: Run) -> Decoder[None]:
        text = yield from first(run)
        draw = sampling(run, run.target)
        while text.reason is None:
            grown = yield from extend(run, [text] * self.copies, self.unit, draw)
            for other in grown[1:]:
                assert other is not None
                other.release()
            assert grown[0] is not None
            text = grown[0]
            self.ends.append(len(text.tokens))
            self.look(run, text)
        deliver(run, [text])


@pytest.fixture(scope="module")
def model() -> Model:
    return segue.model()


@pytest.mark.parametrize("kind", ["token", "entropy", "whole"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "t5"])
def test_growing_by_units_is_plain_sampling(kind: str, family: str) -> None:
    world = network_world(family)
    settings = Settings(max_tokens=20, temperature=0.9, top_k=20, seed=5, repetition_penalty=1.2)
    (plain,) = decode(world.lm, segue.method("plain"), world.prompts[:1], settings)
    walk: Any = Walk(Unit(kind, limit=2.0))
    (answer,) = decode(world.lm, walk, world.prompts[:1], settings)
    assert answer.tokens == plain.tokens
    assert walk.ends[-1] == len(plain.tokens)
    if kind != "entropy":
        assert walk.ends == (list(range(1, 21)) if kind == "token" else [len(plain.tokens)])
    assert answer.candidates is not None
    rows = [world.oracle.logits_after(world.prompts[0], answer.tokens[:i]) for i in range(len(answer.tokens))]
    logp = sum(float(row.log_softmax(-1)[token]) for row, token in zip(rows, answer.tokens, strict=True))
    assert answer.candidates[0].logp == pytest.approx(logp, abs=1e-3)


@pytest.mark.parametrize("measure", ["entropy", "doubt", "evidential"])
def test_segments_end_where_the_model_is_unsure(measure: str) -> None:
    """Every end is at the limit, at the greatest length, or at the end; no place before one would have done."""
    world = network_world("llama")
    rows = [world.oracle.logits_after(world.prompts[1], [i]).double() for i in range(9)]
    limit = sorted(uncertainty(row, measure) for row in rows)[4]
    for row in rows:  # the formulas, with lists
        p = row.softmax(-1).tolist()
        other = {
            "entropy": -math.fsum(x * math.log(x) for x in p if x > 0),
            "doubt": 1 - max(p),
            "evidential": len(p) / math.fsum(max(x, 0.0) + 1 for x in row.tolist()),
        }
        assert uncertainty(row, measure) == pytest.approx(other[measure], abs=1e-9)
    walk: Any = Walk(Unit("entropy", least=2, most=5, limit=limit, measure=measure))
    (answer,) = decode(world.lm, walk, world.prompts[1:2], SETTINGS)
    begin, stops = 0, 0
    for length in range(1, len(answer.tokens)):
        row = world.oracle.logits_after(world.prompts[1], answer.tokens[:length])
        unsure = uncertainty(row, measure) >= limit and length - begin >= 2
        assert (length in walk.ends) == (unsure or length - begin == 5)
        if length in walk.ends:
            begin, stops = length, stops + unsure
    assert 0 < stops < len(walk.ends)


def test_steps_and_sentences_end_in_the_text(model: Model) -> None:
    for kind, ends in (("step", "\n"), ("sentence", '.!?"\n')):
        pieces: list[str] = []
        begin = [0]

        def look(run: Run, text: Hypothesis, begin: list[int] = begin, pieces: list[str] = pieces) -> None:
            pieces.append(run.lm.decode(text.tokens[begin[0] :]))
            begin[0] = len(text.tokens)

        walk: Any = Walk(Unit(kind), look=look)
        prompt = model.lm.encode("Once upon a time")
        (mark,) = model.lm.encode(ends[0], special=False)  # made likelier: the small model writes long sentences
        settings = Settings(max_tokens=100, temperature=0.8, seed=1, ignore_eos=True, logit_bias={mark: 4.0})
        decode(model.lm, walk, [prompt], settings)
        assert len(pieces) > 2
        assert all(piece.rstrip(" ")[-1] in ends for piece in pieces[:-1])
        marks = "\n" if kind == "step" else ".!?\n"
        for piece in pieces:
            assert not any(mark in piece[: -3 if kind == "sentence" else -1] for mark in marks)


def test_several_copies_fork_one_past_and_share_forwards() -> None:
    world = network_world("llama")
    alone: Any = Walk(Unit("entropy", most=6, limit=3.0))
    many: Any = Walk(Unit("token"), copies=5)
    (one,) = decode(world.lm, alone, world.prompts[:1], Settings(max_tokens=12, temperature=1.0, seed=0))
    (five,) = decode(world.lm, many, world.prompts[:1], Settings(max_tokens=12, temperature=1.0, seed=0))
    assert one.stats.target_forwards == five.stats.target_forwards == 12
    assert five.stats.rows == len(world.prompts[0]) + 11 * 5


def test_marks_end_units_of_models_without_a_tokenizer() -> None:
    world = toy_world(3)
    walk: Any = Walk(Unit("step", marks=(1,)))
    (answer,) = decode(world.lm, walk, [[0]], SETTINGS)
    places = [i + 1 for i, token in enumerate(answer.tokens) if token == 1]
    assert [end for end in walk.ends if end < 40] == [place for place in places if place < 40]
    with pytest.raises(ValueError, match=r"has no tokenizer: give marks"):
        decode(world.lm, Walk(Unit("sentence")), [[0]], SETTINGS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "sentense"}, "did you mean sentence"),
        ({"kind": "token", "least": 0}, "least=0"),
        ({"kind": "token", "least": 5, "most": 4}, "most=4"),
        ({"kind": "entropy", "measure": "mood"}, "measure='mood'"),
    ],
)
def test_bad_units_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Unit(**fields)


def test_certain_rows_have_no_entropy() -> None:
    row = torch.tensor([0.0, -math.inf, -math.inf])
    assert uncertainty(row) == 0
    assert uncertainty(row, "doubt") == 0
