"""Greenlets that yield, and many that are woken at once: the loop looks at sockets and timers in between."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from itertools import chain

import gevent
import pytest

from gmultisocket.loop import yielding
from gmultisocket.loop.owner import original
from gmultisocket.loop.yielding import keep_to_turn, turn_of, yield_to_loop
from gmultisocket.testing._fork import in_forked_child
from tests.looks import Looks


@pytest.fixture
def every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greenlets may not run at all before the loop looks again."""
    monkeypatch.setattr(yielding, "MAX_TURN", 0.0)


@pytest.mark.usefixtures("every_time")
def test_each_yield_lets_the_loop_look_at_sockets_and_timers() -> None:
    with Looks() as looks:
        for _ in range(100):
            yield_to_loop()
        # The first may be in a turn in which the loop has looked already.
        assert looks.count >= 99


@pytest.mark.usefixtures("every_time")
def test_a_timer_and_a_socket_are_served_beside_a_greenlet_that_only_yields() -> None:
    reader, writer = gevent.socket.socketpair()
    with reader, writer:
        served: list[str] = []
        busy = gevent.spawn(lambda: [yield_to_loop() for _ in range(1_000_000)])
        others = [
            gevent.spawn(lambda: (gevent.sleep(0.001), served.append("timer"))),
            gevent.spawn(lambda: (reader.recv(1), served.append("socket"))),
        ]
        writer.send(b"x")
        gevent.joinall(others, timeout=20)
        assert sorted(served) == ["socket", "timer"] and not busy.ready()
        busy.kill()


def test_a_greenlet_that_only_yields_lets_the_loop_look_with_the_usual_turn_as_well() -> None:
    with Looks() as looks:
        for _ in range(1_000_000):
            yield_to_loop()
            if looks.count >= 3:
                break
        assert looks.count >= 3


@pytest.mark.usefixtures("every_time")
def test_greenlets_go_on_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    def work(number: int) -> None:
        for _ in range(3):
            yield_to_loop()
            order.append(number)

    gevent.joinall([gevent.spawn(work, number) for number in range(5)])
    assert order == [0, 1, 2, 3, 4] * 3


@pytest.mark.usefixtures("every_time")
def test_killed_and_timed_out_greenlets_leave_the_others_in_line() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        yield_to_loop()
        done.append(number)

    greenlets = [gevent.spawn(work, number) for number in range(5)]
    gevent.sleep(0)
    greenlets[1].kill(block=False)
    greenlets[3].kill(block=False)
    gevent.joinall(greenlets)
    assert done == [0, 2, 4]
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
        while True:
            yield_to_loop()
    yield_to_loop()


@pytest.mark.usefixtures("every_time")
def test_nothing_runs_for_a_program_in_which_nobody_waits() -> None:
    yield_to_loop()
    with Looks() as looks:
        gevent.sleep(0.05)
        assert looks.count < 20


@pytest.mark.usefixtures("every_time")
def test_a_forked_child_does_not_go_on_with_greenlets_of_its_parent() -> None:
    went_on: list[int] = []

    def work() -> None:
        yield_to_loop()
        went_on.append(os.getpid())

    greenlet = gevent.spawn(work)
    gevent.sleep(0)
    child = os.fork()
    if not child:
        yield_to_loop()
        os._exit(len(went_on))
    _, status = os.waitpid(child, 0)
    greenlet.join()
    assert status == 0 and went_on == [os.getpid()]


def test_a_forked_child_lets_go_of_the_loop_of_a_thread_that_has_ended() -> None:
    turns = []
    # Not a Thread: with gevent's locks, to join one that was not made by gevent needs its loop.
    ended = original("_thread", "allocate_lock")()
    ended.acquire()

    def thread() -> None:
        hub = gevent.get_hub()
        turns.append(turn_of(hub))
        yield_to_loop()
        hub.destroy(destroy_loop=True)
        ended.release()

    original("_thread", "start_new_thread")(thread, ())
    ended.acquire()
    in_forked_child(lambda report: turns[0]._abandon())


# Many greenlets that are woken by one look of the loop. The first 32 or so go on before the time is checked twice.

_MANY = 200
_AT_ONCE = 40


def woken(work: Callable[[int], object], looks: Looks) -> list[int]:
    """Make many sockets readable at once. Return for each the number of looks when its greenlet went on, sorted."""
    went_on: list[int] = []

    def wait(number: int, reader: gevent.socket.socket) -> None:
        turn_of(gevent.get_hub()).wait_for(reader._read_event)
        went_on.append(looks.count)
        work(number)

    pairs = [gevent.socket.socketpair() for _ in range(_MANY)]
    greenlets = [gevent.spawn(wait, number, reader) for number, (reader, _) in enumerate(pairs)]
    gevent.sleep(0)
    for _, writer in pairs:
        writer.send(b"x")
    gevent.joinall(greenlets, timeout=20)
    for each in chain.from_iterable(pairs):
        each.close()
    return sorted(went_on)


@pytest.mark.usefixtures("every_time")
def test_the_loop_looks_between_greenlets_that_were_woken_at_once() -> None:
    with Looks() as looks:
        went_on = woken(lambda number: None, looks)
    assert len(went_on) == _MANY
    assert max(Counter(went_on).values()) <= _AT_ONCE


def test_greenlets_that_take_no_time_go_on_at_once() -> None:
    with Looks() as looks:
        went_on = woken(lambda number: None, looks)
    # The kernel may tell of them in some portions.
    assert len(went_on) == _MANY and len({*went_on}) < _MANY / 8


@pytest.mark.usefixtures("every_time")
def test_the_loop_looks_between_greenlets_whose_timers_are_due_at_once() -> None:
    went_on: list[int] = []
    with Looks() as looks:

        def wait() -> None:
            gevent.sleep(0.01)
            keep_to_turn()
            went_on.append(looks.count)

        gevent.joinall([gevent.spawn(wait) for _ in range(_MANY)], timeout=20)
    assert len(went_on) == _MANY and max(Counter(went_on).values()) <= _AT_ONCE


@pytest.mark.usefixtures("every_time")
def test_a_greenlet_that_is_killed_while_it_waits_for_its_turn_leaves_the_others_in_line() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        keep_to_turn()
        done.append(number)
        if number == 0:
            greenlets[-1].kill(block=False)

    def begin(number: int) -> None:
        gevent.sleep(0.01)
        work(number)

    greenlets = [gevent.spawn(begin, number) for number in range(_MANY)]
    gevent.joinall(greenlets, timeout=20)
    assert sorted(done) == [*range(_MANY - 1)]


# Reading in the hub while a greenlet waits


class Offers:
    """A socket that a greenlet reads by ``read_for``; its callback takes what begins with a plus.

    Attributes:
        taken: what the callback has taken.
        greenlet: returns what ``read_for`` returned.
    """

    def __init__(self, take: Callable[[bytes], bool] | None = None) -> None:
        self.taken: list[bytes] = []
        self.reader, self.writer = gevent.socket.socketpair()
        self._callback = take or self._take
        self.greenlet = gevent.spawn(self._read)
        gevent.sleep(0)

    def _take(self, data: bytes) -> bool:
        if data[:1] == b"+":
            self.taken.append(data)
            return True
        return False

    def _read(self) -> bytes | None:
        watcher = self.reader._read_event
        return turn_of(gevent.get_hub()).read_for(watcher, self.reader._sock.recv, 100, self._callback)

    def send(self, data: bytes) -> None:
        self.writer.send(data)
        gevent.sleep(0.005)

    def close(self) -> None:
        assert not self.reader._read_event.active
        self.reader.close()
        self.writer.close()


def test_a_wait_goes_on_while_the_callback_takes_what_is_read() -> None:
    offers = Offers()
    for number in range(40):
        offers.send(b"+%d" % number)
    assert offers.taken == [b"+%d" % number for number in range(40)] and not offers.greenlet.ready()
    offers.send(b"-")
    assert offers.greenlet.get(timeout=5) == b"-" and len(offers.taken) == 40
    offers.close()


def test_the_end_of_a_stream_is_offered_as_well() -> None:
    offers = Offers()
    offers.writer.shutdown(1)
    assert offers.greenlet.get(timeout=5) == b"" and offers.taken == []
    offers.close()


def test_what_the_callback_raises_is_raised_in_the_greenlet_that_waits() -> None:
    def fail(data: bytes) -> bool:
        raise ValueError(data)

    offers = Offers(fail)
    offers.send(b"x")
    with pytest.raises(ValueError, match="x"):
        offers.greenlet.get(timeout=5)
    offers.close()


def test_what_a_read_raises_is_raised_in_the_greenlet_that_waits() -> None:
    with gevent.socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        peer = gevent.socket.create_connection(server.getsockname())
        offers = Offers()
        offers.greenlet.kill()
        offers.close()
        offers.reader, _ = server.accept()
        offers.writer = peer
        offers.greenlet = gevent.spawn(offers._read)
        gevent.sleep(0)
        # Closed so, it resets the connection.
        peer.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        peer.close()
        with pytest.raises(ConnectionResetError):
            offers.greenlet.get(timeout=5)
        offers.close()


def test_a_greenlet_that_is_killed_while_it_waits_to_read_leaves_nothing_behind() -> None:
    offers = Offers()
    offers.send(b"+one")
    offers.greenlet.kill()
    offers.send(b"+two")
    assert offers.taken == [b"+one"]
    offers.close()


def test_a_socket_that_closes_ends_the_wait_to_read() -> None:
    offers = Offers()
    offers.reader.close()
    with pytest.raises(OSError, match="closed|Bad file"):
        offers.greenlet.get(timeout=5)
    offers.writer.close()


@pytest.mark.usefixtures("every_time")
def test_the_loop_looks_between_sockets_that_are_read_at_once() -> None:
    read: list[int] = []

    def take(data: bytes) -> bool:
        read.append(looks.count)
        return True

    with Looks() as looks:
        many = [Offers(take) for _ in range(_MANY)]
        for each in many:
            each.writer.send(b"x")
        # Those whose turn was too long return None and would read for themselves.
        gevent.joinall([each.greenlet for each in many], timeout=0.5)
    left = [each.greenlet.value for each in many if each.greenlet.ready()]
    assert left and {*left} == {None} and len(left) + len(read) == _MANY
    assert max(Counter(read).values()) <= _AT_ONCE
    for each in many:
        each.greenlet.kill()
        each.close()
