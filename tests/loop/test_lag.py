"""How late an event loop is."""

from __future__ import annotations

import time

import gevent
import pytest
from gevent import get_hub
from gevent.monkey import get_original

from gmultisocket.loop import lag
from gmultisocket.loop.lag import BUCKETS, LoopLag, lag_of
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.faults.process import run_script

#: Blocks the whole thread.
block = get_original("time", "sleep")


@pytest.fixture
def measured() -> LoopLag:
    """A measurement of this thread's loop that has just begun, and that has looked once."""
    fresh = LoopLag(get_hub())
    wait_until(lambda: fresh.summary().looks)
    return fresh


def test_a_loop_that_stands_still_shows_in_all_numbers(measured: LoopLag) -> None:
    count = measured.summary().looks
    block(0.55)
    wait_until(lambda: measured.summary().looks > count)
    found = measured.summary()
    # A look was due within the first tenth of a second.
    assert 0.44 < found.maximum == found.last
    # Each look that was missed counts with the time that was left then: about 0.5, 0.4, 0.3, 0.2, 0.1.
    assert found.looks - count >= 5
    slow = found.looks - found.buckets[BUCKETS.index(0.1)]
    assert slow >= 3 and found.total > 0.44 + 0.34 + 0.24
    assert found.p99 > 0.3 >= found.p50
    assert list(found.buckets) == sorted(found.buckets) and found.buckets[-1] == found.looks


def test_it_looks_ten_times_a_second(measured: LoopLag) -> None:
    gevent.sleep(0.5)
    assert measured.summary().looks <= 8


def test_who_stops_the_loop_sees_it_at_once(measured: LoopLag) -> None:
    block(0.3)
    assert measured.summary().last > 0.15 and measured.summary().maximum > 0.15


def test_percentiles_are_of_the_last_looks_and_totals_of_all(measured: LoopLag) -> None:
    for number in range(1, 2001):
        measured._count(number / 1000)
    found = measured.summary()
    assert (found.p50, found.p99, found.maximum) == (1.7, 1.994, 2.0)
    assert found.looks >= 2000 and found.buckets[0] >= 1


def test_a_long_stop_counts_no_more_looks_than_are_kept(measured: LoopLag, monkeypatch: pytest.MonkeyPatch) -> None:
    count = measured.summary().looks
    asleep = time.monotonic() + 86_400
    monkeypatch.setattr(lag, "monotonic", lambda: asleep)
    measured._look()
    monkeypatch.undo()
    assert measured.summary().looks - count == 600


def test_it_keeps_no_program_from_ending() -> None:
    program = """
import gevent
from gmultisocket.loop.lag import lag_of
lag_of(gevent.get_hub())
gevent.wait()
print("done")
"""
    assert run_script(program, timeout=30) == "done\n"


def test_each_loop_is_measured_once() -> None:
    first = lag_of(get_hub())
    assert first is not None and lag_of(get_hub()) is first


def test_another_thread_may_ask_and_begin() -> None:
    hub = get_hub()
    lag._forget()
    assert hub.threadpool.apply(lag_of, (hub,)) is None
    wait_until(lambda: hub.threadpool.apply(lag_of, (hub,)) is not None)
    assert hub.threadpool.apply(lag_of, (hub,)) is lag_of(hub)


def test_a_loop_that_was_destroyed_with_its_thread_is_not_measured_and_is_no_error() -> None:
    """A thread of a pool ends so. Who still has one of its sockets may ask for all numbers."""
    program = """
import threading
import gevent
from gmultisocket import Socket
from gmultisocket.stats import process_stats

left = []

def work():
    left.append(Socket())
    gevent.get_hub().destroy()

thread = threading.Thread(target=work)
thread.start()
thread.join()
for _ in range(2):
    assert left[0].stats()["loop_lag"] is None
    print(process_stats()["groups"][0]["sockets"])
"""
    assert run_script(program, timeout=30) == "1\n1\n"


def test_a_forked_child_begins_anew() -> None:
    parents = lag_of(get_hub())
    assert parents is not None
    gevent.sleep(0.15)

    def in_child(report: int) -> None:
        assert not lag._measured and not parents._timer.active
        own = lag_of(get_hub())
        assert own is not None and own is not parents and own.summary().looks == 0

    in_forked_child(in_child)
    assert lag_of(get_hub()) is parents and parents._timer.active
