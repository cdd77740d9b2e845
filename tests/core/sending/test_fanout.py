"""To-all messages for many pipes at once: what is shared, and what becomes of pipes that fall out of step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gevent
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Pipe, Socket
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from tests.core.streams import CountingStream, contents

ONCE = {"connector.dialer.reconnect": False}


#: Sent to all pipes first.
FIRST = b"first"


@contextmanager
def in_step(streams: Sequence[FakeStream], **options: object) -> Iterator[tuple[Socket, list[Pipe], FakeTransport]]:
    """A socket with a pipe over each of these streams, in their order, in step by a first message."""
    with FakeTransport(streams) as fake, Socket({f"socket.{name}": value for name, value in options.items()}) as sock:
        pipes = []
        for _ in streams:
            pipe = sock.dial(fake.address, ONCE).pipe
            assert pipe is not None
            pipes.append(pipe)
        assert sock.send_all(FIRST) == len(streams)
        gevent.sleep(0)
        yield sock, pipes, fake
        sock.close(linger=0)


def check_script(script: Sequence[tuple[str, int, int]], takes: Sequence[Sequence[int]]) -> None:
    """Send as a script says, and check that each pipe gets what is for it, in order, and counts it.

    Args:
        script: steps: what is done, at which pipe, and how many bytes are sent.
        takes: for each pipe, how many bytes its stream takes of one write after the other.
    """
    streams = [FakeStream(takes=[*each]) for each in takes]
    expected = [[FIRST] for _ in streams]
    with in_step(streams, send_queue_size=1000) as (server, pipes, _):
        for number, (what, index, size) in enumerate(script):
            content = b"%d " % number + bytes(size)
            match what:
                case "all":
                    assert server.send_all(content, timeout=5) == len(streams)
                    for each in expected:
                        each.append(content)
                case "dest":
                    server.send_to(pipes[index].path, content, timeout=5)
                    expected[index].append(content)
                case "block":
                    streams[index].block()
                case "unblock":
                    streams[index].unblock()
                case "turn":
                    gevent.sleep(0)
                case "look":
                    gevent.sleep(0.0001)
        for stream in streams:
            stream.unblock()
        wait_until(lambda: not any(pipe.queued for pipe in pipes))
        gevent.sleep(0)
        assert [contents(stream.sent) for stream in streams] == expected
        assert [pipe.messages_sent for pipe in pipes] == [len(each) for each in expected]
        assert [pipe.bytes_sent for pipe in pipes] == [len(stream.sent) for stream in streams]


# In step


def test_a_to_all_message_leaves_at_once_too_and_is_made_once_for_all_pipes() -> None:
    streams = [CountingStream() for _ in range(5)]
    with FakeTransport(streams) as fake, Socket() as server:
        for _ in streams:
            server.dial(fake.address)
        for _ in range(2):
            for _ in range(10):
                assert server.send_all(b"x" * 92) == 5
            gevent.sleep(0)
        for stream in streams:
            assert stream.sizes == [100, 900] * 2


def test_what_is_gathered_leaves_when_the_turn_ends() -> None:
    streams = [CountingStream() for _ in range(5)]
    with FakeTransport(streams) as fake, Socket() as server:
        for _ in streams:
            server.dial(fake.address)
        core = server._for_protocol()
        pipes = [*server.pipes.values()]
        for _ in range(2):
            core.gather()
            for _ in range(5):
                core.put_group(pipes[:2], b"x" * 92)
            for _ in range(10):
                assert server.send_all(b"x" * 92) == 5
            gevent.sleep(0)
        # In the next turn a message leaves at once again.
        server.send_all(b"x" * 92)
        assert [stream.sizes for stream in streams] == [[1500] * 2 + [100]] * 2 + [[1000] * 2 + [100]] * 3


def test_a_burst_to_more_pipes_than_a_budget_has_messages_leaves_together_too() -> None:
    streams = [CountingStream() for _ in range(5)]
    with FakeTransport(streams) as fake, Socket({"socket.yield_messages": 3}) as server:
        for _ in streams:
            server.dial(fake.address)
        for _ in range(11):
            assert server.send_all(b"x" * 92) == 5
        gevent.sleep(0)
        assert [stream.sizes for stream in streams] == [[100, 1000]] * 5


def test_nobody_waits_for_the_end_of_the_turn_once_as_many_wait_as_a_queue_holds() -> None:
    streams = [CountingStream() for _ in range(3)]
    with in_step(streams, send_queue_size=5) as (server, _, _):
        for _ in range(6):
            server.send_all(b"x" * 92)
        assert [stream.sizes[1:] for stream in streams] == [[100, 500]] * 3


def test_messages_and_bytes_of_a_fan_out_are_counted_on_each_pipe() -> None:
    with in_step([FakeStream() for _ in range(3)]) as (server, pipes, _):
        for _ in range(10):
            assert server.send_all(b"x" * 87) == 3
        gevent.sleep(0)
        assert [(pipe.messages_sent, pipe.bytes_sent) for pipe in pipes] == [(11, 13 + 950)] * 3
        assert server.counters.messages_sent == 33


def test_what_waits_for_the_end_of_the_turn_counts_as_queued_at_each_pipe() -> None:
    with in_step([FakeStream() for _ in range(2)]) as (server, pipes, _):
        for _ in range(4):
            server.send_all(b"x")
        assert [pipe.queued for pipe in pipes] == [3, 3]
        gevent.sleep(0)
        assert [pipe.queued for pipe in pipes] == [0, 0]


# Out of step, and in again


@settings(max_examples=100)
@given(
    script=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["all", "turn"]), st.just(0), st.sampled_from([1, 100, 40_000])),
            st.tuples(st.just("dest"), st.integers(0, 2), st.sampled_from([1, 100, 40_000])),
            st.tuples(st.sampled_from(["block", "unblock"]), st.integers(0, 2), st.just(0)),
        ),
        max_size=40,
    ),
    takes=st.lists(st.lists(st.integers(0, 200), max_size=10), min_size=3, max_size=3),
)
def test_each_pipe_gets_what_is_for_all_and_what_is_for_it_alone_in_order(
    script: list[tuple[str, int, int]], takes: list[list[int]]
) -> None:
    check_script(script, takes)


def test_pipes_that_were_out_of_step_share_their_bytes_again() -> None:
    streams = [CountingStream() for _ in range(3)]
    with in_step(streams) as (server, pipes, _):
        server.send_to(pipes[0].path, b"alone")
        gevent.sleep(0)
        for _ in range(10):
            server.send_all(b"x" * 92)
        gevent.sleep(0)
        assert [stream.sizes[-2:] for stream in streams] == [[100, 900]] * 3
        # Not only as much: the same object.
        assert len({id(stream.given[-1]) for stream in streams}) == 1


def test_a_pipe_that_breaks_under_a_message_costs_the_others_nothing() -> None:
    streams = [FakeStream(), FakeStream(takes=[100, 100, ConnectionResetError(104, "reset")]), FakeStream()]
    with in_step(streams) as (server, pipes, _):
        assert [server.send_all(b"number %d" % number) for number in range(3)] == [3, 3, 3]
        gevent.sleep(0)
        assert server.send_all(b"number 3") == 2
        streams[1].feed(b"")
        wait_until(lambda: pipes[1].closed)
        assert "reset" in pipes[1].reason
        for stream in (streams[0], streams[2]):
            assert contents(stream.sent) == [FIRST, *(b"number %d" % number for number in range(4))]
        assert contents(streams[1].sent) == [FIRST, b"number 0"]
        assert server.counters.drops == pipes[1].counters.drops == {"disconnect": 2}


def test_a_pipe_that_is_closed_before_the_turn_ends_has_lost_what_waited_and_the_others_have_not() -> None:
    streams = [FakeStream() for _ in range(3)]
    with in_step(streams) as (server, pipes, _):
        for content in (b"at once", b"later", b"later still"):
            server.send_all(content)
        pipes[0].close()
        assert pipes[0].counters.drops == {"disconnect": 2}
        gevent.sleep(0)
        assert [contents(stream.sent) for stream in streams] == [
            [FIRST, b"at once"],
            *[[FIRST, b"at once", b"later", b"later still"]] * 2,
        ]


def test_a_pipe_that_comes_gets_what_is_sent_after_it_came_and_nothing_twice() -> None:
    streams = [FakeStream() for _ in range(2)]
    with in_step(streams) as (server, _, fake):
        sent: list[bytes] = []

        def send() -> None:
            for number in range(20):
                for part in range(3):
                    sent.append(b"%d.%d" % (number, part))
                    server.send_all(sent[-1])
                gevent.sleep(0)

        sending = gevent.spawn(send)
        while len(sent) < 12:
            gevent.sleep(0)
        late = FakeStream()
        fake.will_connect(late)
        server.dial(fake.address, ONCE)
        sending.get(timeout=5)
        gevent.sleep(0)
        for stream in streams:
            assert contents(stream.sent) == [FIRST, *sent]
        got = contents(late.sent)
        assert 3 < len(got) < 50 and got == sent[-len(got) :]


def test_a_new_pipe_is_in_step_when_its_turn_has_ended_before_anything_is_sent() -> None:
    streams = [CountingStream() for _ in range(3)]
    with FakeTransport(streams) as fake, Socket() as server:
        for _ in streams:
            server.dial(fake.address)
        gevent.sleep(0)
        fan_outs = {getattr(pipe, "_fan_out") for pipe in server.pipes.values()}  # noqa: B009
        assert len(fan_outs) == 1 and None not in fan_outs
        assert server.send_all(b"x") == 3
