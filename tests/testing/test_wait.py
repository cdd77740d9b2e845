"""wait_until: waits cooperatively, gives up by name."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket.testing import wait_until


def test_a_true_condition_returns_without_a_turn_of_the_loop() -> None:
    ran: list[bool] = []
    other = gevent.spawn(ran.append, True)
    wait_until(lambda: True)
    assert not ran
    other.join()


def test_other_greenlets_run_while_it_waits() -> None:
    done: list[int] = []

    def work() -> None:
        for i in range(5):
            gevent.sleep(0.001)
            done.append(i)

    worker = gevent.spawn(work)
    wait_until(lambda: len(done) == 5, what="five steps of the other greenlet")
    assert done == [0, 1, 2, 3, 4]
    worker.join()


def test_a_condition_that_stays_false_is_named() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: the moon to fall"):
        wait_until(lambda: False, timeout=0.01, what="the moon to fall")


def test_a_nameless_condition_is_found_by_its_place() -> None:
    with pytest.raises(AssertionError, match=r"test_wait\.py:\d+"):
        wait_until(lambda: False, timeout=0)
    with pytest.raises(AssertionError, match="list"):
        wait_until([].__len__, timeout=0)


def test_no_time_asks_once() -> None:
    asked: list[None] = []
    with pytest.raises(AssertionError):
        wait_until(lambda: asked.append(None), timeout=0)
    assert len(asked) == 1


def test_an_error_of_the_condition_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0)
