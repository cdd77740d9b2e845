from __future__ import annotations

import errno
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gmultisocket import log
from gmultisocket.errors import Closed, MultiSocketError
from gmultisocket.loop import accepting
from gmultisocket.loop.accepting import AcceptLoop
from gmultisocket.testing import wait_until

PASSING = [errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENOTCONN, errno.ETIMEDOUT]
STAYING = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EINVAL, errno.EPERM, errno.EBADF]


class Backlog:
    """What a loop accepts: connections (any objects) and errors, in order; after them ``accept`` blocks."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.more = Event()
        self.waits = 0

    def accept(self) -> object:
        while not self.script:
            self.waits += 1
            self.more.clear()
            self.more.wait()
        outcome = self.script.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def add(self, *script: object) -> None:
        self.script.extend(script)
        self.more.set()


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make loops only note how long they would sleep, and yield."""
    found: list[float] = []

    def sleep(seconds: float) -> None:
        found.append(seconds)
        gevent.sleep(0)

    monkeypatch.setattr(accepting, "gevent", SimpleNamespace(sleep=sleep, spawn=gevent.spawn))
    monkeypatch.setattr(accepting, "yield_to_loop", lambda: sleep(0))
    return found


@pytest.fixture
def run() -> Iterator[Callable[..., AcceptLoop[Any]]]:
    """Start a loop, which is stopped after the test."""
    loops: list[AcceptLoop[Any]] = []

    def start(backlog: Backlog, take: Callable[[Any], object], **options: Any) -> AcceptLoop[Any]:
        loop = AcceptLoop(backlog.accept, take, lambda: "tcp://here:1", **options)
        loops.append(loop)
        loop.start()
        return loop

    yield start
    for loop in loops:
        loop.stop()
        assert loop.join(timeout=5)


Run = Callable[..., AcceptLoop[Any]]


def test_connections_are_taken_in_the_order_in_which_they_come(run: Run) -> None:
    taken: list[object] = []
    run(Backlog(*range(100)), taken.append)
    wait_until(lambda: len(taken) == 100)
    assert taken == list(range(100))


def test_after_a_batch_of_connections_others_run(run: Run) -> None:
    taken: list[object] = []
    seen: list[int] = []
    run(Backlog(*range(50)), taken.append)
    while len(taken) < 50:
        gevent.sleep(0)
        seen.append(len(taken))
    assert max(after - before for before, after in zip([0, *seen], seen, strict=False)) == accepting._BATCH


def test_the_next_connection_is_accepted_after_take_has_returned(run: Run) -> None:
    go = Event()
    taken: list[object] = []

    def take(connection: object) -> None:
        taken.append(connection)
        go.wait()

    backlog = Backlog(1, 2)
    run(backlog, take)
    wait_until(lambda: taken)
    gevent.sleep(0.01)
    assert taken == [1] and backlog.script == [2]
    go.set()
    wait_until(lambda: taken == [1, 2])


def test_nothing_is_accepted_while_wait_blocks(run: Run) -> None:
    go = Event()
    taken: list[object] = []
    backlog = Backlog(1)
    run(backlog, taken.append, wait=go.wait)
    gevent.sleep(0.01)
    assert backlog.script == [1]
    go.set()
    wait_until(lambda: taken == [1])


@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_after_an_error_that_passes_the_next_connection_is_accepted_at_once(
    number: int, run: Run, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[object] = []
    with caplog.at_level(logging.DEBUG, "gmultisocket"):
        run(Backlog(*[failure(number)] * 50, "next"), taken.append)
        wait_until(lambda: taken == ["next"])
    assert set(pauses) == {0}
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert os.strerror(number) in caplog.records[0].getMessage()


@pytest.mark.parametrize("number", STAYING, ids=errno.errorcode.get)
def test_after_an_error_that_stays_the_pauses_grow_to_the_longest(
    number: int, run: Run, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[object] = []
    with caplog.at_level(logging.INFO, "gmultisocket"):
        run(Backlog(*[failure(number)] * 10, "next"), taken.append)
        wait_until(lambda: taken == ["next"])
    assert pauses[:3] == [0.01, 0.02, 0.04] and pauses[-3:] == [1.0] * 3 and len(pauses) == 10
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.name == "gmultisocket.listener"
    assert record.getMessage().startswith("tcp://here:1 cannot accept") and os.strerror(number) in record.getMessage()


def test_a_connection_in_between_makes_the_pauses_short_again(run: Run, pauses: list[float]) -> None:
    taken: list[object] = []
    full = failure(errno.EMFILE)
    run(Backlog(full, full, full, "a", full, "b"), taken.append)
    wait_until(lambda: taken == ["a", "b"])
    assert pauses == [0.01, 0.02, 0.04, 0.01]


def test_errors_that_pass_leave_the_pauses_as_they_are(run: Run, pauses: list[float]) -> None:
    taken: list[object] = []
    full = failure(errno.EMFILE)
    run(Backlog(full, full, failure(errno.ECONNRESET), full, "a"), taken.append)
    wait_until(lambda: taken == ["a"])
    assert pauses == [0.01, 0.02, 0, 0.04]


def test_closed_ends_the_loop(run: Run) -> None:
    taken: list[object] = []
    loop = run(Backlog(1, Closed("listener"), 2), taken.append)
    assert loop.join(timeout=5)
    assert taken == [1]


def test_closed_out_of_wait_ends_the_loop(run: Run) -> None:
    def wait() -> None:
        raise Closed("listener")

    backlog = Backlog(1)
    assert run(backlog, print, wait=wait).join(timeout=5)
    assert backlog.script == [1]


def test_closed_out_of_take_is_about_the_connection(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    taken: list[object] = []

    def take(connection: object) -> None:
        taken.append(connection)
        raise Closed("pipe")

    with caplog.at_level(logging.INFO, "gmultisocket"):
        run(Backlog(1, 2), take)
        wait_until(lambda: taken == [1, 2])
    assert not caplog.records


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), MultiSocketError(), AssertionError()], ids=repr)
def test_any_exception_out_of_accept_is_logged_with_its_traceback_and_tried_again_with_pauses(
    error: Exception, run: Run, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[object] = []
    with caplog.at_level(logging.INFO, "gmultisocket"):
        run(Backlog(error, error, error, "next"), taken.append)
        wait_until(lambda: taken == ["next"])
    assert pauses == [0.01, 0.02, 0.04]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.exc_info and record.exc_info[1] is error
    assert "tcp://here:1" in record.getMessage()


@pytest.mark.parametrize("error", [ValueError("a bug"), failure(errno.EMFILE), failure(errno.ECONNRESET)], ids=repr)
def test_no_exception_out_of_take_makes_a_pause(error: Exception, run: Run, pauses: list[float]) -> None:
    taken: list[object] = []

    def take(connection: object) -> None:
        taken.append(connection)
        raise error

    run(Backlog(*range(5)), take)
    wait_until(lambda: len(taken) == 5)
    assert set(pauses) == {0}


def test_exceptions_out_of_take_are_logged_with_a_traceback_once_an_interval(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[object] = []

    def take(connection: int) -> None:
        taken.append(connection)
        raise ValueError(connection)

    backlog = Backlog(1, 2, 3)
    with caplog.at_level(logging.INFO, "gmultisocket"):
        run(backlog, take)
        wait_until(lambda: len(taken) == 3)
        (record,) = caplog.records
        assert record.exc_info and repr(record.exc_info[1]) == "ValueError(1)"
        later = monotonic() + accepting.LOG_INTERVAL
        monkeypatch.setattr(log, "monotonic", lambda: later)
        backlog.add(4, 5)
        wait_until(lambda: len(taken) == 5)
    errors = [repr(record.exc_info and record.exc_info[1]) for record in caplog.records]
    assert errors == ["ValueError(1)", "ValueError(4)"]


def test_a_stop_from_outside_ends_a_loop_that_waits_for_a_connection(run: Run) -> None:
    backlog = Backlog()
    loop = run(backlog, print)
    wait_until(lambda: backlog.waits)
    assert loop.join(timeout=0) is False
    loop.stop()
    assert loop.join(timeout=5)


def test_a_stop_from_outside_ends_a_take_that_blocks(run: Run) -> None:
    ended: list[str] = []
    begun = Event()

    def take(connection: object) -> None:
        try:
            begun.set()
            Event().wait()
        finally:
            ended.append("take")

    loop = run(Backlog(1, 2), take)
    assert begun.wait(5)
    loop.stop()
    assert loop.join(timeout=5)
    assert ended == ["take"]


def test_a_stop_from_outside_ends_a_pause(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accepting, "_FIRST_PAUSE", 1000.0)
    backlog = Backlog(failure(errno.EMFILE))
    loop = run(backlog, print)
    wait_until(lambda: not backlog.script)
    loop.stop()
    assert loop.join(timeout=5)


def test_a_stop_out_of_take_lets_take_finish_and_accepts_no_more() -> None:
    done: list[object] = []

    def take(connection: object) -> None:
        loop.stop()
        assert loop.join(), "the loop does not wait for itself"
        gevent.sleep(0)
        done.append(connection)

    backlog = Backlog(1, 2)
    loop = AcceptLoop(backlog.accept, take, lambda: "")
    loop.start()
    assert loop.join(timeout=5)
    assert done == [1] and backlog.script == [2]


def test_a_loop_that_was_stopped_before_it_ran_accepts_nothing() -> None:
    backlog = Backlog(1)
    loop = AcceptLoop(backlog.accept, print, lambda: "")
    loop.start()
    loop.stop()
    assert loop.join(timeout=5)
    assert backlog.script == [1]


def test_an_error_of_an_accept_that_a_stop_has_broken_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    def accept() -> object:
        loop.stop()
        raise failure(errno.EBADF)

    loop = AcceptLoop(accept, print, lambda: "")
    with caplog.at_level(logging.DEBUG, "gmultisocket"):
        loop.start()
        assert loop.join(timeout=5)
    assert not caplog.records


def test_stop_and_join_of_a_loop_that_was_never_started_do_nothing() -> None:
    loop = AcceptLoop(Backlog().accept, print, lambda: "")
    loop.stop()
    assert loop.join()


def test_a_connection_is_not_kept_alive_until_the_next_one(run: Run) -> None:
    class Connection:
        pass

    backlog = Backlog(Connection())
    connection = weakref.ref(backlog.script[0])
    run(backlog, lambda _: None)
    wait_until(lambda: backlog.waits)
    # Without gc.collect(): the loop makes no cycles, and this test would answer for the garbage of those before it.
    assert connection() is None


@pytest.mark.parametrize("error", [gevent.Timeout, gevent.GreenletExit, BaseException])
@pytest.mark.parametrize("where", ["accept", "wait", "take"])
def test_no_exception_of_any_kind_ends_the_loop(
    error: type[BaseException], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    left = 3
    taken: list[object] = []

    def may_fail(place: str) -> None:
        nonlocal left
        if place == where and left:
            left -= 1
            raise error

    def take(connection: object) -> None:
        may_fail("take")
        taken.append(connection)

    def accept() -> object:
        may_fail("accept")
        return backlog.accept()

    backlog = Backlog(*range(5))
    loop = AcceptLoop(accept, take, lambda: "tcp://here:1", lambda: may_fail("wait"))
    loop.start()
    wait_until(lambda: 4 in taken)
    assert taken == ([3, 4] if where == "take" else [0, 1, 2, 3, 4])
    assert len(caplog.records) == 1
    loop.stop()
    assert loop.join(5)
