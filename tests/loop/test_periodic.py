from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import Greenlet
from gevent.event import Event

from gmultisocket.log import ThrottledLog, get_logger
from gmultisocket.loop import periodic
from gmultisocket.loop.ending import LOG_INTERVAL
from gmultisocket.loop.periodic import Periodic
from gmultisocket.testing import wait_until


class Work:
    """Something to do at intervals, as often as ``left`` says."""

    def __init__(self, left: float = float("inf"), pause: float = 0.001) -> None:
        self.left = left
        self.pause = pause
        self.done: list[tuple[float, float]] = []
        self.periodic = Periodic(self.interval, self.check)

    def interval(self) -> float:
        return self.pause if self.left > 0 else 0

    def check(self, elapsed: float, late: float) -> None:
        self.left -= 1
        self.done.append((elapsed, late))


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.periodic.stop()
    work.periodic.join()


def test_it_works_again_and_again_until_it_is_stopped(work: Work) -> None:
    work.periodic.start()
    wait_until(lambda: len(work.done) >= 3)
    work.periodic.stop()
    work.periodic.join()
    done = len(work.done)
    gevent.sleep(0.01)
    assert len(work.done) == done


def test_the_first_time_is_after_a_pause(work: Work) -> None:
    work.pause = 1000.0
    work.periodic.start()
    gevent.sleep(0.01)
    assert not work.done


def test_an_interval_of_0_ends_the_greenlet_and_start_begins_again(work: Work) -> None:
    work.left = 2
    work.periodic.start()
    work.periodic.join()
    assert len(work.done) == 2
    work.left = 1
    work.periodic.start()
    work.periodic.join()
    assert len(work.done) == 3


def test_a_second_start_makes_no_second_greenlet(monkeypatch: pytest.MonkeyPatch) -> None:
    spawned: list[Greenlet[..., Any]] = []

    def spawn(function: Any) -> Greenlet[..., Any]:
        spawned.append(gevent.spawn(function))
        return spawned[-1]

    work = Work(left=1)
    work.periodic = Periodic(work.interval, work.check, spawn)
    work.periodic.start()
    work.periodic.start()
    gevent.sleep(0)
    work.periodic.start()
    work.periodic.join()
    assert len(spawned) == 1


def test_the_interval_is_asked_for_before_every_pause(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(periodic.gevent, "sleep", pauses.append)
    intervals = iter([3.0, 1.0, 2.0, 0])
    Periodic(lambda: next(intervals), work.check)._run()
    assert pauses == [3.0, 1.0, 2.0] and len(work.done) == 3


def test_check_is_told_how_long_the_pause_was_and_how_late_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0, 200.0, 203.5, 300.0, 301.5])
    monkeypatch.setattr(periodic, "monotonic", lambda: next(times))
    monkeypatch.setattr(periodic.gevent, "sleep", lambda seconds: None)
    work = Work(left=3, pause=2.0)
    work.periodic._run()
    # The last pause was shorter than it should have been: a clock may be that inexact, and nobody was late.
    assert work.done == [(2.0, 0.0), (3.5, 1.5), (1.5, 0.0)]


def test_stop_before_start_and_after_the_end_does_nothing(work: Work) -> None:
    work.periodic.stop()
    work.periodic.join()
    work.left = 1
    work.periodic.start()
    work.periodic.join()
    work.periodic.stop()
    work.periodic.join()
    assert len(work.done) == 1


def test_check_may_stop_it_and_wait_for_it() -> None:
    done: list[float] = []

    def check(elapsed: float, late: float) -> None:
        done.append(elapsed)
        one.stop()
        one.join()

    one = Periodic(lambda: 0.001, check)
    one.start()
    one.join()
    gevent.sleep(0.01)
    assert len(done) == 1


def test_it_can_be_stopped_and_started_again_at_once(work: Work) -> None:
    work.periodic.start()
    wait_until(lambda: work.done)
    work.periodic.stop()
    work.periodic.start()
    done = len(work.done)
    wait_until(lambda: len(work.done) > done + 2)


def test_stopped_before_its_greenlet_has_run_it_can_be_started(work: Work) -> None:
    work.periodic.start()
    work.periodic.stop()
    work.periodic.join()
    work.periodic.start()
    wait_until(lambda: work.done)


@pytest.mark.parametrize("error", [ValueError, gevent.Timeout, gevent.GreenletExit, BaseException])
def test_an_error_of_the_check_is_logged_once_and_does_not_end_it(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(periodic, "_log", ThrottledLog(get_logger("gmultisocket.socket"), LOG_INTERVAL))
    calls = 0

    def check(*times: float) -> None:
        nonlocal calls
        calls += 1
        raise error

    failing = Periodic(lambda: 0.001 if calls < 5 else 0.0, check)
    failing.start()
    wait_until(lambda: calls == 5)
    failing.join()
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info and record.exc_info[0] is error


def test_something_that_kills_the_greenlet_does_not_end_the_work(work: Work) -> None:
    work.periodic.start()
    wait_until(lambda: bool(work.done))
    greenlet = work.periodic._greenlet
    assert greenlet is not None
    greenlet.kill(timeout=5)
    assert greenlet.dead
    done = len(work.done)
    wait_until(lambda: len(work.done) > done)


def test_a_stop_ends_a_check_that_is_at_work() -> None:
    inside = Event()

    def check(*times: float) -> None:
        inside.set()
        gevent.sleep(60)

    working = Periodic(lambda: 0.001, check)
    working.start()
    inside.wait(5)
    working.stop()
    working.join()
    assert working._greenlet is None
