"""Signals: remembered while work is done, raised where only waiting is."""

from __future__ import annotations

import os
import signal
import time

import pytest

from segue.cli.interrupt import Signals, Stopped


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)  # Python runs handlers between two of its own instructions


def test_one_that_comes_at_work_is_raised_at_the_next_wait() -> None:
    with Signals(signal.SIGTERM) as signals:
        with signals.waiting():
            pass
        send()
        done = True
        with pytest.raises(Stopped) as stop, signals.waiting():
            done = False
    assert done
    assert stop.value.number == signal.SIGTERM


def test_one_that_comes_while_waiting_ends_the_wait() -> None:
    begun = time.monotonic()

    def wait() -> None:
        with signals.waiting():
            send()
            time.sleep(60)

    with Signals(signal.SIGTERM) as signals, pytest.raises(Stopped):
        wait()
    assert time.monotonic() - begun < 30
    assert signals.received == signal.SIGTERM


def test_a_second_one_is_raised_at_once() -> None:
    with Signals(signal.SIGTERM) as signals:
        send()
        with pytest.raises(Stopped):
            send()
    assert signals.received == signal.SIGTERM
