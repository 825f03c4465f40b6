"""Texts with states on disk: what a forward gives, whole or not at all, and the same lessons in the same order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from segue.data import DraftTree, Settings, Want
from segue.laws.worlds import network_world
from segue.models.lm import LM
from segue.train import states
from segue.train.states import Gathering, States, gather, windows

HOW = Gathering((-1,), prompt=4, length=6, temperature=1.0, top_k=5)


@pytest.fixture(scope="module")
def lm() -> LM:
    return network_world("llama").lm


@pytest.fixture(scope="module")
def texts(lm: LM) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return windows(lm, [torch.randint(lm.vocab_size, (300,), generator=generator).tolist()], HOW, 25)


def test_windows_are_taken_evenly(lm: LM) -> None:
    text = [i % 96 for i in range(10 * 40)]
    assert windows(lm, [text], HOW, 100) == [text[i : i + 10] for i in range(0, 400, 10)]
    assert windows(lm, [text], HOW, 20) == [text[i : i + 10] for i in range(0, 400, 20)]
    assert windows(lm, [text[:197], text[:14]], HOW, 100)[19:] == [text[190:197], text[:10]]
    with pytest.raises(ValueError, match=r"19 windows of up to 4 \+ 6 tokens are too few"):
        windows(lm, [text[:194]], HOW, 100)


@pytest.mark.parametrize("own", [False, True])
def test_states_are_those_of_a_forward(lm: LM, texts: list[list[int]], own: bool, tmp_path: Path) -> None:
    folder = gather(lm, texts, dataclasses.replace(HOW, own=own), tmp_path)
    lesson = States(folder, (-1,), 3, 0).next()
    for ids, mine, rows in zip(lesson.ids, lesson.own, lesson.states[-1], strict=True):
        (scores,) = lm.forward([(lm.sequence(), DraftTree.chain(ids.tolist()), Want(logits="none", hidden=(-1,)))])
        seen = len(ids) - 1 if own else len(ids)  # nobody reads what is written last
        torch.testing.assert_close(rows[:seen].float(), scores.hidden[-1][:seen], atol=2e-2, rtol=2e-2)
        assert mine.tolist() == ([False] * 4 + [True] * 6 if own else [False] + [True] * 9)
    assert (lesson.ids[:, :4].tolist() in [[t[:4] for t in texts[i : i + 1]] for i in range(25)]) or own


def test_the_model_writes_what_a_run_of_its_own_would(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    from segue import catalog
    from segue.laws.base import decode

    how = dataclasses.replace(HOW, temperature=0.0)
    folder = gather(lm, texts, how, tmp_path)
    plain = decode(lm, catalog.build("plain"), [texts[0][:4]], Settings(max_tokens=6))
    part = States(folder, (-1,), 1, 0)
    first = part._lesson(part._shard(part.train[0]), [0])
    assert first.ids[0].tolist() == [*texts[0][:4], *plain[0].tokens]


def test_what_was_cut_short_goes_on_and_gives_the_same(
    lm: LM, texts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gather(lm, texts, HOW, tmp_path / "whole")
    real, made = states._shard, 0

    def dying(*arguments: object) -> dict[str, torch.Tensor]:
        nonlocal made
        made += 1
        if made == 4:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(states, "_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        gather(lm, texts, HOW, tmp_path / "cut")
    seen: list[int] = []
    gather(lm, texts, HOW, tmp_path / "cut", lambda done, total: seen.append(done))
    assert seen[-1] == 25
    assert made == 4 + 25 - 3
    for path in whole.glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes()


def test_other_texts_or_settings_are_refused(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    gather(lm, texts, HOW, tmp_path)
    for changed in (texts[::-1], texts[:24]):
        with pytest.raises(ValueError, match="name another --out"):
            gather(lm, changed, HOW, tmp_path)
    with pytest.raises(ValueError, match="name another --out"):
        gather(lm, texts, dataclasses.replace(HOW, seed=1), tmp_path)


def test_lessons_cover_the_training_part_and_never_what_is_held_out(
    lm: LM, texts: list[list[int]], tmp_path: Path
) -> None:
    part = States(gather(lm, texts, HOW, tmp_path), (-1,), 1, seed=3)
    assert (len(part.train), len(part.held), part.held_texts) == (24, 1, 1)
    once = [part.next().ids[0].tolist() for _ in range(24)]
    assert sorted(text[:4] for text in once) == sorted(text[:4] for text in texts[:24])
    assert part.place == {"epoch": 1, "shard": 0, "text": 0}
    assert part.heldout()[0].ids[0].tolist()[:4] == texts[24][:4]
    again = [part.next().ids[0].tolist() for _ in range(24)]
    assert once != again
    assert sorted(once) == sorted(again)
    other = States(tmp_path, (-1,), 1, seed=3)
    other.place = {"epoch": 0, "shard": 7, "text": 0}
    assert other.next().ids[0].tolist() == once[7]


def test_what_is_held_out_is_counted_by_shards(lm: LM, texts: list[list[int]], tmp_path: Path) -> None:
    """A last shard that is not full: the texts before it were trained on."""
    many = (texts * 4)[:41]  # shards of two, and one of one
    part = States(gather(lm, many, HOW, tmp_path), (-1,), 1, seed=3)
    assert (len(part.train), len(part.held), part.held_texts) == (20, 1, 1)
    assert [lesson.ids[0].tolist()[:4] for lesson in part.heldout()] == [text[:4] for text in many[-1:]]
