"""Many pages, one model: order, places, and pages that are closed."""

from __future__ import annotations

import pytest

from segue.api import Model
from segue.ui.asked import Form, requests
from segue.ui.race import Race
from segue.ui.stage import MOST_SESSIONS, Stage
from tests.ui.conftest import PROMPT

LONG = 60  # seconds that a loaded machine may take


def raced(lm: Model, tokens: int = 8, **fields: str) -> Race:
    return Race(lm, requests(Form(PROMPT, ("prompt_lookup", "plain"), ("", ""), tokens, 0, 0), lm))


def test_races_of_several_sessions_run_one_after_the_other(lm: Model) -> None:
    stage = Stage(lm)
    races = [raced(lm) for _ in range(3)]
    for number, race in enumerate(races):
        stage.enter(str(number), race)
    assert all(race.finished.wait(LONG) for race in races)
    expected = lm.generate(PROMPT, "plain", max_tokens=8).text
    assert {side.text for race in races for side in race.sides} == {expected}
    assert all(stage.last(str(number)) is race for number, race in enumerate(races))


class Blocked(Race):
    """A race that ends when it is stopped."""

    def drive(self) -> None:
        self.begun = True
        while self.stopped is None:
            self.finished.wait(0.01)
        self.finished.set()


def blocked(lm: Model) -> Race:
    return Blocked(lm, raced(lm).requests)


def test_places_in_the_queue(lm: Model) -> None:
    stage = Stage(lm, most_waiting=2)
    first, second, third = blocked(lm), raced(lm), raced(lm)
    stage.enter("a", first)
    while not first.begun:
        first.finished.wait(0.01)
    stage.enter("b", second)
    stage.enter("c", third)
    assert [stage.ahead(race) for race in (first, second, third)] == [0, 1, 2]
    with pytest.raises(ValueError, match="2 runs wait"):
        stage.enter("d", raced(lm))
    stage.stop("b")  # one that waits leaves the queue at once
    assert second.finished.is_set()
    assert not second.begun
    assert stage.ahead(third) == 1
    stage.leave("a")  # the page of the one that runs is closed
    assert first.finished.wait(LONG)
    assert third.finished.wait(LONG)
    assert third.stopped is None
    assert stage.last("a") is None
    assert stage.last("b") is second


def test_a_new_run_of_a_session_ends_its_last_one(lm: Model) -> None:
    stage = Stage(lm)
    first, second = blocked(lm), raced(lm)
    stage.enter("a", first)
    stage.enter("a", second)
    assert first.finished.wait(LONG)
    assert second.finished.wait(LONG)
    assert first.stopped == "stopped"
    assert second.stopped is None


def test_a_race_whose_page_was_closed_while_it_waited_does_no_work(lm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(lm)
    first, second = blocked(lm), raced(lm)
    stage.enter("a", first)
    second._looked -= 1000
    stage.enter("b", second)
    first.stop()
    assert second.finished.wait(LONG)
    assert second.stopped == "stopped: the page was closed"
    assert second.sides[0].run is None


def test_sessions_are_forgotten_in_the_end(lm: Model) -> None:
    stage = Stage(lm, most_waiting=MOST_SESSIONS + 10)
    for number in range(MOST_SESSIONS + 3):
        stage.enter(str(number), blocked(lm))
    assert [stage.last(str(number)) is None for number in range(5)] == [True] * 3 + [False] * 2
    for number in range(MOST_SESSIONS + 3):
        stage.leave(str(number))
