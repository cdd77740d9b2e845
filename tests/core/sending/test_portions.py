"""To-all messages for so many pipes that they leave in portions, with a look of the loop between two of them.

Here a fan-out has two pipes, and one fan-out or one pipe is a portion.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Socket
from gmultisocket.core.pipes import scheduler
from gmultisocket.core.sending import fanout
from gmultisocket.errors import Timeout
from gmultisocket.loop.yielding import _Call, turn_of
from gmultisocket.protocol import Pub, Sub
from gmultisocket.testing import FakeStream, wait_until
from tests.core.sending.test_fanout import FIRST, check_script, in_step
from tests.core.streams import contents
from tests.looks import Looks


@pytest.fixture(autouse=True, scope="module")
def portions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fanout, "AT_ONCE", 2)
        patch.setattr(fanout, "_MEMBERS", 2)
        patch.setattr(scheduler, "MAX_TURN", -1.0)
        yield


def have(streams: list[FakeStream], content: bytes) -> int:
    return sum(content in contents(stream.sent) for stream in streams)


def settle(streams: list[FakeStream], content: bytes) -> None:
    wait_until(lambda: have(streams, content) == len(streams), timeout=5)
    # Pipes that wrote alone are in step again when their turn has ended.
    for _ in streams:
        gevent.sleep(0.001)


def test_the_first_pipes_get_a_message_at_once_and_the_others_with_looks_in_between() -> None:
    streams = [FakeStream() for _ in range(20)]
    with in_step(streams) as (server, _, _), Looks() as looks:
        settle(streams, FIRST)
        began = looks.count
        assert server.send_all(b"one") == 20
        assert have(streams, b"one") == 2
        other = gevent.spawn(lambda: have(streams, b"one"))
        settle(streams, b"one")
        assert other.get() < 20
        assert looks.count - began >= 8


def test_what_is_sent_meanwhile_is_written_together() -> None:
    streams = [FakeStream() for _ in range(10)]
    with in_step(streams) as (server, pipes, _):
        settle(streams, FIRST)
        for number in range(10):
            assert server.send_all(b"%d" % number) == 10
        server.send_to(pipes[7].path, b"alone")
        settle(streams, b"9")
        wait_until(lambda: b"alone" in contents(streams[7].sent))
        sent = [FIRST, *(b"%d" % number for number in range(10))]
        assert contents(streams[7].sent) == [*sent, b"alone"]
        assert all(contents(stream.sent) == sent for stream in streams if stream is not streams[7])


@pytest.mark.parametrize("ends", ["flush", "close"])
def test_a_flush_and_a_close_do_not_wait_for_portions(ends: str) -> None:
    streams = [FakeStream() for _ in range(10)]
    with in_step(streams) as (server, _, _):
        settle(streams, FIRST)
        server.send_all(b"one")
        server.send_all(b"two")
        assert have(streams, b"two") < 10
        if ends == "flush":
            server.flush(timeout=5)
        else:
            server.close(linger=5)
        assert have(streams, b"one") == have(streams, b"two") == 10


def test_a_pipe_that_closes_before_its_portion_is_counted_and_the_others_have_theirs() -> None:
    streams = [FakeStream() for _ in range(10)]
    with in_step(streams) as (server, pipes, _):
        settle(streams, FIRST)
        server.send_all(b"one")
        pipes[9].close()
        assert pipes[9].counters.drops == {"disconnect": 1}
        wait_until(lambda: have(streams, b"one") == 9, timeout=5)
        assert contents(streams[9].sent) == [FIRST]


_STEPS = st.tuples(
    st.sampled_from(["all", "all", "dest", "block", "unblock", "turn", "look"]), st.integers(0, 6), st.integers(0, 300)
)


_TAKES = st.lists(st.integers(0, 400), max_size=6)


@given(script=st.lists(_STEPS, max_size=30), takes=st.lists(_TAKES, min_size=7, max_size=7))
@settings(deadline=None, max_examples=60)
def test_each_pipe_gets_everything_in_order(script: list[tuple[str, int, int]], takes: list[list[int]]) -> None:
    check_script(script, takes)


@pytest.mark.parametrize("transport", ["tcp", "ipc", "ws"])
def test_subscribers_get_what_a_pub_publishes_in_order(transport: str, address: str) -> None:
    with Pub() as pub:
        listening = pub.listen(address).address
        subs = [Sub() for _ in range(9)]
        for number, sub in enumerate(subs):
            sub.dial(listening)
            sub.subscribe("news" if number else "*")
        pub.wait_subscribers("news", 9, timeout=5)
        for number in range(100):
            assert pub.publish("news", b"%d" % number) == 9
        for sub in subs:
            assert [sub.recv(timeout=5) for _ in range(100)] == [("news", b"%d" % number) for number in range(100)]
            sub.close()


def test_what_is_for_one_pipe_does_not_wait_for_ever_behind_what_is_for_all() -> None:
    streams = [FakeStream() for _ in range(20)]
    with in_step(streams, send_queue_size=60_000) as (server, pipes, _):
        settle(streams, FIRST)

        def publish() -> None:
            # More often than all fan-outs can be written.
            while True:
                server.send_all(b"for all")
                gevent.sleep(0)

        publishing = gevent.spawn(publish)
        for _ in range(20):
            gevent.sleep(0.001)
        # The first of its turn leaves at once, and the second when the turn ends.
        server.send_to(pipes[3].path, b"alone 1")
        server.send_to(pipes[3].path, b"alone 2")
        with Looks() as looks:
            wait_until(lambda: b"alone 2" in contents(streams[3].sent), timeout=5)
            assert looks.count < 100
        publishing.kill()


def test_what_is_marked_while_a_turn_ends_does_not_end_the_next_turn_at_once() -> None:
    writes = scheduler.WriteScheduler(gevent.get_hub(), Socket().options)
    ended: list[object] = []

    class Marks:
        def __init__(self, name: int) -> None:
            self.name = name

        def _end_turn(self) -> None:
            ended.append(self.name)
            if self.name < 100:
                writes.mark(Marks(self.name + 100))

    with Looks() as looks:
        for number in range(4):
            writes.mark(Marks(number))
        while len(ended) < 8:
            before = looks.count
            ended_before = len(ended)
            gevent.sleep(0.001)
            assert len(ended) - ended_before <= max(1, looks.count - before) + 1
    assert ended == [0, 1, 2, 3, 100, 101, 102, 103]


def test_flushes_between_portions_leave_nothing_behind_that_ends_turns() -> None:
    streams = [FakeStream() for _ in range(20)]
    with in_step(streams, send_queue_size=60_000) as (server, _, _):
        settle(streams, FIRST)
        ends = 0
        end = scheduler.WriteScheduler._end_turn

        def counted(self: scheduler.WriteScheduler) -> None:
            nonlocal ends
            ends += 1
            end(self)

        def publish() -> None:
            # More often than all fan-outs can be written.
            while True:
                server.send_all(b"for all")
                gevent.sleep(0)

        publishing = gevent.spawn(publish)
        with pytest.MonkeyPatch.context() as patch, Looks() as looks:
            patch.setattr(scheduler.WriteScheduler, "_end_turn", counted)
            for _ in range(20):
                gevent.sleep(0.001)
                with suppress(Timeout):
                    server.flush(timeout=0)
            ends = looks.count = 0
            for _ in range(20):
                gevent.sleep(0.001)
            # Each of them is in the line of those who wait for the next turn.
            assert ends <= 2 * looks.count
            assert sum(isinstance(each, _Call) for each in turn_of(gevent.get_hub())._waiters) <= 1
        publishing.kill()


def test_who_waits_for_what_is_written_is_called_behind_all_portions() -> None:
    streams = [FakeStream() for _ in range(10)]
    with in_step(streams) as (server, pipes, _):
        settle(streams, FIRST)
        assert isinstance(server, Socket)
        core = server._for_protocol()
        seen: list[int] = []
        server.send_all(b"one")
        server.send_to(pipes[9].path, b"alone")
        core.when_written(lambda: seen.append(sum(pipe.queued for pipe in pipes)))
        streams[0].block()
        wait_until(lambda: seen, timeout=5)
        assert seen == [0] and have(streams, b"one") == 10


class Interrupting(FakeStream):
    """Raises KeyboardInterrupt once, where a message that has this in it would be sent."""

    def __init__(self, at: bytes) -> None:
        super().__init__()
        self._at: bytes | None = at

    def send(self, data: bytes | memoryview, /) -> int:
        if self._at is not None and self._at in bytes(data):
            self._at = None
            raise KeyboardInterrupt
        return super().send(data)


@pytest.mark.parametrize("place", [1, 5, 7])
def test_what_interrupts_a_fan_out_costs_its_other_pipes_nothing(place: int) -> None:
    streams = [FakeStream() for _ in range(10)]
    streams[place] = Interrupting(b"interrupted")
    with in_step(streams, send_queue_size=1000) as (server, _, _):
        settle(streams, FIRST)
        # In the call, or in the hub, which raises it in the main greenlet: here.
        with pytest.raises(KeyboardInterrupt):
            server.send_all(b"interrupted")
            for _ in range(20):
                gevent.sleep(0.001)
        for number in range(3):
            assert server.send_all(b"%d" % number) == 10
        server.flush(timeout=5)
        sent = [FIRST, b"interrupted", b"0", b"1", b"2"]
        assert all(contents(stream.sent)[-3:] == sent[-3:] for stream in streams)
        # The call itself may have been interrupted, before the message was given to the other fan-outs.
        reached = [streams[0]] if place == 1 else [stream for stream in streams if stream is not streams[place]]
        assert all(contents(stream.sent) == sent for stream in reached)


def test_a_socket_that_goes_out_of_use_between_two_portions_still_sends_them() -> None:
    streams = [FakeStream() for _ in range(6)]
    with in_step(streams) as (server, _, _):
        settle(streams, FIRST)
        server.send_all(b"last")
        assert isinstance(server, Socket) and server._unsent() == 4
        server._push_now()
        assert have(streams, b"last") == 6 and server._unsent() == 0
