from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event
from gevent.socket import socketpair
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.loop.waiting import Deadline, WaitList


class Shop:
    """Things that greenlets wait for: what a WaitList is for, in its simplest form."""

    def __init__(self) -> None:
        self.things: deque[object] = deque()
        self.line = WaitList(get_hub(), lambda: self.things)

    def put(self, thing: object) -> None:
        self.things.append(thing)
        self.line.wake()

    def take(self, timeout: float | None = None) -> object:
        woken = False
        while not self.things or (self.line.waiters and not woken):
            woken = self.line.wait(timeout)
            if not woken:
                raise TimeoutError
        return self.things.popleft()


def wait_until_waiting(line: WaitList, count: int) -> None:
    while len(line.waiters) < count:
        gevent.sleep(0)


def test_waiters_are_woken_in_the_order_in_which_they_came() -> None:
    shop = Shop()
    got: list[tuple[int, object]] = []
    takers = [gevent.spawn(lambda number=number: got.append((number, shop.take()))) for number in range(20)]
    wait_until_waiting(shop.line, 20)
    for thing in range(20):
        shop.put(thing)
    gevent.joinall(takers, raise_error=True)
    assert got == [(number, number) for number in range(20)]


def test_a_wait_with_no_time_left_does_not_wait() -> None:
    shop = Shop()
    assert shop.line.wait(0) is False
    assert shop.line.wait(-1.0) is False
    assert not shop.line.waiters


def test_who_polls_in_a_loop_lets_others_run() -> None:
    shop = Shop()
    gevent.spawn(shop.put, "thing")
    polls = 0
    while True:
        try:
            assert shop.take(timeout=0) == "thing"
            break
        except TimeoutError:
            polls += 1
            assert polls < 1000


def test_a_wait_ends_when_its_time_is_up_and_leaves_the_line() -> None:
    shop = Shop()
    assert shop.line.wait(0.001) is False
    assert not shop.line.waiters


def test_the_time_that_the_loop_was_busy_before_is_not_part_of_a_wait() -> None:
    shop = Shop()
    gevent.sleep(0.001)
    end = monotonic() + 0.1
    while monotonic() < end:
        pass
    # The loop's clock still stands where it was before: a timer that is set by it would be over already.
    start = monotonic()
    assert shop.line.wait(0.08) is False
    assert monotonic() - start >= 0.07  # at least: how much longer is the machine's business


def test_a_wake_without_anything_to_have_wakes_nobody() -> None:
    shop = Shop()
    taker = gevent.spawn(shop.take)
    wait_until_waiting(shop.line, 1)
    shop.line.wake()
    gevent.sleep(0)
    gevent.sleep(0)
    assert len(shop.line.waiters) == 1
    shop.put("thing")
    assert taker.get(timeout=5) == "thing"


def test_only_as_many_are_woken_as_there_are_things() -> None:
    shop = Shop()
    takers = [gevent.spawn(shop.take) for _ in range(3)]
    wait_until_waiting(shop.line, 3)
    shop.put("a")
    shop.put("b")
    assert [taker.get(timeout=5) for taker in takers[:2]] == ["a", "b"]
    assert len(shop.line.waiters) == 1
    takers[2].kill()


@pytest.mark.parametrize("wake_first", [True, False])
def test_a_waiter_that_is_killed_with_its_wake_up_on_the_way_leaves_the_thing_to_the_next(wake_first: bool) -> None:
    shop = Shop()
    first, second = gevent.spawn(shop.take), gevent.spawn(shop.take)
    wait_until_waiting(shop.line, 2)
    if wake_first:
        shop.put("thing")
        first.kill(block=False)
    else:
        first.kill(block=False)
        shop.put("thing")
    gevent.joinall([first])
    # The first had it before the kill reached it, or never: in no case is it lost.
    if first.value == "thing":
        shop.put("another")
        assert second.get(timeout=5) == "another"
    else:
        assert second.get(timeout=5) == "thing"
    assert not shop.things


def test_a_waiter_that_is_killed_after_wake_all_passes_the_turn_on() -> None:
    shop = Shop()
    first, second = gevent.spawn(shop.take), gevent.spawn(shop.take)
    wait_until_waiting(shop.line, 1)
    first.kill(block=False)
    shop.line.wake_all()
    shop.put("thing")
    assert second.get(timeout=5) == "thing"
    first.join()


def test_wake_all_wakes_everybody_whatever_the_condition_says() -> None:
    line = WaitList(get_hub(), lambda: False)
    waiters = [gevent.spawn(line.wait, None) for _ in range(5)]
    wait_until_waiting(line, 5)
    line.wake_all()
    assert [waiter.get(timeout=5) for waiter in waiters] == [True] * 5
    assert not line.waiters


def test_where_greenlets_wait_for_different_things_one_that_is_killed_wakes_no_other() -> None:
    line, wakes = WaitList(get_hub()), 0

    def wait() -> None:
        nonlocal wakes
        while line.wait(None):
            wakes += 1

    stays = gevent.spawn(wait)
    wait_until_waiting(line, 1)
    # Between the two: when it is called, the first one waits again, and the other one's wake-up is on its way.
    line.waiters.append(lambda woken: killed.throw(gevent.GreenletExit))
    killed = gevent.spawn(wait)
    wait_until_waiting(line, 3)
    line.wake_all()
    for _ in range(10):
        gevent.sleep(0)
    assert killed.ready() and wakes == 1 and len(line.waiters) == 1
    stays.kill()


def test_a_function_in_the_line_is_called() -> None:
    told: list[bool] = []
    line = WaitList(get_hub(), lambda: True)
    line.waiters.append(told.append)
    line.wake()
    gevent.sleep(0)
    assert told == [True]


def test_one_that_comes_back_to_the_line_again_and_again_does_not_keep_the_loop() -> None:
    line = WaitList(get_hub(), lambda: True)
    rounds = 0

    def come_back() -> None:
        nonlocal rounds
        while True:
            line.wait(None)
            line.wake()
            rounds += 1

    greenlet = gevent.spawn(come_back)
    wait_until_waiting(line, 1)
    line.wake()
    done = Event()
    gevent.spawn_later(0.001, done.set)
    assert done.wait(5)
    greenlet.kill()
    assert rounds


def test_a_deadline_counts_down_and_never_below_zero() -> None:
    assert Deadline(None).left() is None
    assert Deadline(0).left() == 0.0
    assert Deadline(-5).left() == 0.0
    left = Deadline(60).left()
    assert left is not None and 0 < left <= 60


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["take", "take_timed", "put", "kill", "turn"]), max_size=60))
def test_nothing_is_lost_and_nobody_waits_beside_a_thing_whatever_happens(script: list[str]) -> None:
    shop = Shop()
    greenlets: list[gevent.Greenlet] = []
    put = 0
    for step in script:
        match step:
            case "take":
                greenlets.append(gevent.spawn(shop.take))
            case "take_timed":
                greenlets.append(gevent.spawn(_take_if_in_time, shop))
            case "put":
                shop.put(put)
                put += 1
            case "kill":
                alive = [greenlet for greenlet in greenlets if not greenlet.dead]
                if alive:
                    alive[len(alive) // 2].kill(block=False)
            case "turn":
                gevent.sleep(0)
    for _ in range(6):
        gevent.sleep(0)
    taken = [greenlet.value for greenlet in greenlets if isinstance(greenlet.value, int)]
    assert sorted([*taken, *shop.things]) == list(range(put))
    assert not (shop.things and shop.line.waiters)
    gevent.killall(greenlets)


def _take_if_in_time(shop: Shop) -> object:
    try:
        return shop.take(timeout=0.00001)
    except TimeoutError:
        return None


def test_a_deadline_ends_when_what_it_is_for_ends_by_an_error() -> None:
    for deadline in (Deadline(60), Deadline(None)):
        with deadline.ending():
            pass
        assert deadline.left() != 0.0
        with pytest.raises(gevent.GreenletExit), deadline.ending():
            raise gevent.GreenletExit
        assert deadline.left() == 0.0


def test_wake_now_waits_for_the_other_watchers_of_a_look() -> None:
    loop: Any = get_hub().loop
    things: deque[str] = deque()
    line = WaitList(get_hub(), things.__len__)
    taken: list[list[str]] = []

    def take() -> None:
        while True:
            line.wait(None)
            taken.append([*things])
            things.clear()

    taker = gevent.spawn(take)
    wait_until_waiting(line, 1)
    pairs = [socketpair() for _ in range(3)]
    watchers = [loop.io(reader.fileno(), 1) for reader, _ in pairs]
    after: list[int] = []

    def ready(number: int) -> None:
        watchers[number].stop()
        things.append("thing")
        line.wake_now()
        after.append(len(taken))

    def look(count: int) -> None:
        for number in range(count):
            watchers[number].start(ready, number)
            pairs[number][1].send(b"x")
        gevent.sleep(0.01)
        gevent.sleep(0)

    look(3)
    # All three at once, and before anything else of the loop.
    assert taken == [["thing"] * 3] and after == [0, 0, 1]
    look(1)
    assert taken[1:] == [["thing"]] and after[3:] == [2]
    taker.kill()
    for watcher, pair in zip(watchers, pairs, strict=True):
        watcher.close()
        for end in pair:
            end.close()
