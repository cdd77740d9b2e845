"""The short way through a switch: it must do what the long way does, byte for byte and count for count.

A middleware that changes nothing makes a switch take the long way for every message.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Pipe, Socket, Switch
from gmultisocket.core.pipes.pipe import PipeState
from gmultisocket.switch import Middleware
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import CONTROL, INTERNAL, RAW, TO_ALL, TO_DEST, TO_ONE, pack_id, path_ids
from tests.core.streams import CountingStream, PartsStream, frame

ONCE = {"connector.dialer.reconnect": False}
#: Seconds: for many messages, on a machine with much else to do.
LONG = 30.0
#: No pipe has this id: ids are smaller.
NOBODY = pack_id(2**31)


def unchanged(message: Message) -> Message:
    return message


class Joined:
    """A switch between two sockets over fakes: what the front's pipes read, the back's pipes write.

    Attributes:
        readers, writers: the fakes at the front and at the back.
        front, back: their pipes.
        fake: the transport that they come from.
    """

    def __init__(
        self, stack: ExitStack, readers: int, writers: Sequence[FakeStream], middleware: Middleware | None, limit: int
    ) -> None:
        self.readers = [FakeStream() for _ in range(readers)]
        self.writers = list(writers)
        self.front_socket = stack.enter_context(Socket({"connector.pipe.max_recv_content_length": 1 << 20}))
        # No patience: what a busy machine does late must not become a loss.
        self.back_socket = stack.enter_context(
            Socket(
                {
                    "socket.send_queue_size": limit,
                    "socket.send_to_patience": 0,
                    "connector.pipe.max_recv_content_length": 1 << 20,
                }
            )
        )
        self.switch = stack.enter_context(Switch(self.back_socket, self.front_socket, middleware))
        self.fake = stack.enter_context(FakeTransport([*self.readers, *self.writers]))
        self.front = [self._dial(self.front_socket) for _ in self.readers]
        self.back = [self._dial(self.back_socket) for _ in self.writers]

    def _dial(self, sock: Socket) -> Pipe:
        pipe = sock.dial(self.fake.address, ONCE).pipe
        assert pipe is not None
        return pipe

    def names(self) -> dict[int, str]:
        """Return a name for the id of each pipe."""
        named = {pipe.id: f"front {index}" for index, pipe in enumerate(self.front)}
        return named | {pipe.id: f"back {index}" for index, pipe in enumerate(self.back)}

    def sent(self, index: int) -> list[tuple[int, int, tuple[object, ...], tuple[object, ...], bytes]]:
        """Return the fields of the frames that a writer has sent, with names in the place of ids."""
        names, data, found = self.names(), bytes(self.writers[index].sent), []
        position = 0
        while position < len(data):
            flags, ttl, hops, distance, length = struct.unpack_from(">BBBBI", data, position)
            middle = position + 8 + 4 * hops
            start = middle + 4 * distance
            source = tuple(names.get(each, each) for each in path_ids(data[position + 8 : middle]))
            destination = tuple(names.get(each, each) for each in path_ids(data[middle:start]))
            position = start + length
            assert position <= len(data), "it ends in the middle of a frame"
            found.append((flags, ttl, source, destination, data[start:position]))
        return found

    def state(self) -> dict[str, object]:
        """Return everything that both ways must do alike."""
        return {
            "sent": [self.sent(index) for index in range(len(self.writers))],
            "forwarded": self.switch.forwarded,
            "drops": self.switch.drops,
            "read": [(pipe.counters.messages_received, pipe.counters.drops) for pipe in self.front],
            "written": [
                (pipe.counters.messages_sent, pipe.counters.bytes_sent, pipe.counters.drops) for pipe in self.back
            ],
            "closed": [pipe.closed for pipe in self.front],
        }


@contextmanager
def joined(
    readers: int = 1, writers: Sequence[FakeStream] = (), middleware: Middleware | None = None, limit: int = 64
) -> Iterator[Joined]:
    with ExitStack() as stack:
        yield Joined(stack, readers, writers or [FakeStream()], middleware, limit)


#: Flags, ttl, ids of the source, the destination (a writer's number; -1: nobody; further ids), the content's size, and
#: how often.
Spec = tuple[int, int, int, tuple[int, int], int, int]

specs = st.tuples(
    st.sampled_from([TO_ONE, TO_ONE, TO_ALL, TO_DEST, TO_DEST, TO_ONE | CONTROL, TO_ALL | INTERNAL, TO_ONE | RAW]),
    st.sampled_from([16, 16, 16, 1, 2, 64, 65, 66, 255]),
    st.sampled_from([0, 0, 1, 2, 125, 252, 253]),
    st.tuples(st.sampled_from([0, 0, 1, 2, -1]), st.sampled_from([0, 1, 2])),
    st.sampled_from([0, 1, 8, 64, 64, 300, 5000, 40_000]),
    st.sampled_from([1, 1, 2, 5, 30, 100]),
)


def build(setup: Joined, spec: Spec, number: Iterator[int]) -> list[bytes]:
    """Return the frames of a spec."""
    flags, ttl, hops, (to, more), size, count = spec
    if flags & INTERNAL:
        # A ping: it is answered, and goes nowhere.
        return [frame(b"\1", TO_ONE | INTERNAL)]
    near = NOBODY if to < 0 else setup.back[to % len(setup.back)].path
    destination = setup.front[0].path + near + NOBODY * more if flags & 3 == TO_DEST else b""
    if to < 0 and flags & 3 == TO_DEST:
        # More of them, and the peer is cut off.
        count = 1
    source = b"\0\0\0\7" * hops
    if flags & 3 == TO_DEST:
        source = source[: 4 * (254 - len(destination) // 4)]
    return [frame(b"%d " % next(number) + bytes(size), flags, ttl, source, destination) for _ in range(count)]


def run(
    readers: int,
    writers: Sequence[FakeStream],
    middleware: Middleware | None,
    limit: int,
    script: Sequence[tuple[int, Spec, int]],
) -> dict[str, object]:
    """Feed a script, wait until all of it went through, and return what came of it."""
    with joined(readers, writers, middleware, limit) as setup:
        number = iter(range(10**6))
        fed: list[bytes] = []

        def is_through() -> bool:
            read = sum(pipe.counters.bytes_received for pipe in setup.front)
            done = setup.switch.forwarded + sum(setup.switch.drops.values())
            return read == sum(map(len, fed)) and done == sum(not each[0] & INTERNAL for each in fed)

        for reader, spec, piece in script:
            frames = build(setup, spec, number)
            data = b"".join(frames)
            setup.readers[reader % readers].feed(*(data[start : start + piece] for start in range(0, len(data), piece)))
            fed += frames
            # Nothing promises the order of what two peers send at the same time.
            wait_until(is_through, LONG)
        wait_until(lambda: not any(pipe.queued for pipe in setup.back), LONG)
        gevent.sleep(0)
        return setup.state()


@settings(max_examples=120)
@given(
    script=st.lists(st.tuples(st.integers(0, 1), specs, st.sampled_from([1000, 4096, 65536, 7])), max_size=8).filter(
        # In pieces of 7 bytes only what is short.
        lambda script: all(piece > 7 or spec[4] * spec[5] < 3000 for _, spec, piece in script)
    ),
    writers=st.integers(1, 3),
    limit=st.sampled_from([1, 5, 64, 1000]),
)
def test_both_ways_send_the_same_bytes_to_each_pipe_and_count_the_same(
    script: list[tuple[int, Spec, int]], writers: int, limit: int
) -> None:
    outcomes = [
        run(2, [FakeStream() for _ in range(writers)], middleware, limit, script) for middleware in (None, unchanged)
    ]
    assert outcomes[0] == outcomes[1]


@settings(max_examples=120)
@given(
    script=st.lists(
        st.tuples(st.integers(0, 1), specs.filter(lambda spec: spec[0] != TO_ONE | RAW), st.just(65536)), max_size=8
    ),
    takes=st.lists(st.sampled_from([0, 1, 7, 12, 72, 100, 1000, 10_000]), max_size=60),
    limit=st.sampled_from([1, 5, 64]),
)
def test_what_the_kernel_takes_piece_by_piece_is_the_same_too(
    script: list[tuple[int, Spec, int]], takes: list[int], limit: int
) -> None:
    outcomes = [run(2, [FakeStream(takes=takes)], middleware, limit, script) for middleware in (None, unchanged)]
    assert outcomes[0] == outcomes[1]


# What takes the short way, and what it costs


def test_what_is_read_at_once_is_written_at_once() -> None:
    writer = CountingStream()
    with joined(1, [writer]) as setup:
        setup.readers[0].feed(frame(b"x" * 92) * 300)
        wait_until(lambda: setup.switch.forwarded == 300)
        assert writer.sizes == [300 * 104]


@pytest.mark.parametrize("flags", [TO_ONE, TO_ALL])
def test_nothing_waits_for_the_end_of_the_turn_once_as_many_wait_as_a_queue_holds(flags: int) -> None:
    writer = CountingStream()
    with joined(1, [writer], limit=5) as setup:
        data = frame(b"x" * 92, flags) * 3
        setup.readers[0].feed(data, data, data)
        wait_until(lambda: setup.switch.forwarded == 9)
        # The first three leave at once, the next three wait for the end of the turn, and more would be too many.
        assert writer.sizes == [3 * 104] * 3


@pytest.mark.parametrize(("size", "queue_bytes"), [(92, 500), (7000, 0)])
def test_nor_once_many_bytes_wait(size: int, queue_bytes: int) -> None:
    writer = CountingStream()
    with joined(1, [writer]) as setup:
        setup.back_socket.set_option("socket.send_queue_bytes", queue_bytes)
        data = frame(b"x" * size) * 3
        setup.readers[0].feed(data, data, data)
        wait_until(lambda: setup.switch.forwarded == 9)
        assert writer.sizes == [3 * (size + 12)] * 3


def test_a_frame_in_two_reads_is_not_held_up_and_holds_up_nothing() -> None:
    writer = CountingStream()
    data = frame(b"x" * 92)
    with joined(1, [writer]) as setup:
        setup.readers[0].feed(data * 3 + data[:50])
        wait_until(lambda: setup.switch.forwarded == 3)
        setup.readers[0].feed(data[50:] + data * 2 + data[:3])
        wait_until(lambda: setup.switch.forwarded == 6)
        setup.readers[0].feed(data[3:])
        wait_until(lambda: setup.switch.forwarded == 7)
        assert sum(writer.sizes) == 7 * 104
        assert setup.front[0].counters.bytes_received == 700


def test_a_large_content_is_given_to_the_kernel_where_it_was_read() -> None:
    writer = PartsStream()
    with joined(1, [writer]) as setup:
        setup.readers[0].feed(data := frame(b"a" * 20_000) + frame(b"b" * 20_000))
        wait_until(lambda: setup.switch.forwarded == 2)
        assert [len(part) for part in writer.parts] == [12, 20_000] * 2
        assert all(isinstance(part, memoryview) and part.obj is data for part in writer.parts[1::2])


@pytest.mark.parametrize("size", [1000, 30_000, 100_000])
def test_after_a_frame_in_two_reads_further_reads_end_where_a_frame_ends(size: int) -> None:
    reader = PartsStream()
    with joined() as setup:
        setup.fake.will_connect(reader)
        setup.front_socket.dial(setup.fake.address, ONCE)
        data = frame(bytes(size))
        reader.feed(data * (1_000_000 // len(data) + 1))
        wait_until(lambda: setup.switch.forwarded == 1_000_000 // len(data) + 1)
        assert len(reader.read_sizes) > 3
        assert all(sum(reader.read_sizes[:count]) % len(data) == 0 for count in range(2, len(reader.read_sizes)))


def test_a_full_peer_stops_the_reader_and_no_more_than_the_queue_waits() -> None:
    writer = FakeStream()
    with joined(1, [writer], limit=10) as setup:
        writer.block()
        setup.readers[0].feed(frame(b"x") * 1000)
        wait_until(lambda: setup.back[0].full)
        gevent.sleep(0)
        # The one that waits is the message that the switch holds.
        assert setup.back[0].queued == 10
        assert setup.switch.forwarded == 10
        setup.readers[0].feed(frame(b"y"))
        gevent.sleep(0)
        assert setup.front[0].counters.bytes_received == 9000
        writer.unblock()
        wait_until(lambda: setup.switch.forwarded == 1001)
        assert [content for *_, content in setup.sent(0)] == [b"x"] * 1000 + [b"y"]


def test_the_bytes_that_a_pipe_queues_are_bounded_too() -> None:
    writer = FakeStream()
    with joined(1, [writer], limit=1000) as setup:
        setup.back_socket.set_option("socket.send_queue_bytes", 5000)
        writer.block()
        setup.readers[0].feed(frame(b"x" * 988) * 100)
        wait_until(lambda: setup.back[0].full)
        assert setup.back[0].queued == 5
        writer.unblock()
        wait_until(lambda: setup.switch.forwarded == 100)


def test_one_full_peer_holds_up_only_those_who_send_along_paths_to_it() -> None:
    writers = [FakeStream(), FakeStream()]
    with joined(2, writers, limit=10) as setup:
        stuck, free = (frame(b"x", TO_DEST, destination=NOBODY + pipe.path) for pipe in setup.back)
        writers[0].block()
        setup.readers[0].feed(stuck * 20)
        wait_until(lambda: setup.back[0].full)
        setup.readers[1].feed(free * 500)
        wait_until(lambda: len(setup.sent(1)) == 500)
        assert setup.back[0].queued == 10
        writers[0].unblock()
        wait_until(lambda: setup.switch.forwarded == 520)


# Order between the two ways


@pytest.mark.parametrize("odd", [frame(b"long", ttl=200), frame(b"long " + bytes(140_000))], ids=["ttl", "long"])
def test_nothing_of_a_peer_overtakes_what_takes_the_long_way(odd: bytes) -> None:
    with joined() as setup:
        data = b"".join(frame(b"%d" % number) * 3 + odd for number in range(50))
        setup.readers[0].feed(data)
        wait_until(lambda: setup.switch.forwarded == 200)
        expected = [each for number in range(50) for each in [b"%d" % number] * 3 + [b"long"]]
        assert [content.split(b" ")[0] for *_, content in setup.sent(0)] == expected


def test_what_was_there_before_the_switch_is_forwarded_first() -> None:
    with joined() as setup:
        setup.switch.stop()
        setup.readers[0].feed(frame(b"old") * 100)
        wait_until(lambda: setup.front_socket.queued == 64)
        setup.switch.start()
        setup.readers[0].feed(frame(b"new") * 100)
        wait_until(lambda: setup.switch.forwarded == 200)
        assert [content for *_, content in setup.sent(0)] == [b"old"] * 100 + [b"new"] * 100


# Endings


def test_a_reader_that_waits_when_its_pipe_closes_loses_nothing() -> None:
    writer = FakeStream()
    with joined(1, [writer], limit=10) as setup:
        writer.block()
        setup.readers[0].feed(frame(b"x") * 500)
        wait_until(lambda: setup.back[0].full)
        setup.front[0].close()
        writer.unblock()
        wait_until(lambda: setup.switch.forwarded == 500)
        assert len(setup.sent(0)) == 500
        assert setup.front[0].counters.messages_received == 500


def test_what_a_reader_holds_when_the_switch_stops_stays_in_its_socket() -> None:
    writer = FakeStream()
    with joined(1, [writer], limit=10) as setup:
        writer.block()
        setup.readers[0].feed(frame(b"x") * 500)
        wait_until(lambda: setup.back[0].full)
        setup.switch.stop()
        assert setup.switch.drops == {"stopped": 1}
        left = [setup.front_socket.recv(timeout=5) for _ in range(500 - 10 - 1)]
        assert left == [b"x"] * 489
        assert setup.front_socket.queued == 0
        writer.unblock()


def test_a_peer_that_breaks_gives_its_frames_to_another_one() -> None:
    with joined(1, [FakeStream(takes=[ConnectionResetError()]), FakeStream()]) as setup:
        setup.readers[0].feed(b"".join(frame(b"%d" % number) for number in range(300)))
        wait_until(lambda: len(setup.sent(1)) == 300)
        assert sorted(int(content) for *_, content in setup.sent(1)) == list(range(300))


def test_the_only_peer_breaks_and_the_next_one_gets_everything() -> None:
    with joined(1, [FakeStream(takes=[10_000, ConnectionResetError()])]) as setup:
        setup.readers[0].feed(frame(b"x" * 88) * 300)
        wait_until(lambda: setup.back[0].state is not PipeState.OPEN)
        again = FakeStream()
        setup.fake.will_connect(again)
        setup.back_socket.dial(setup.fake.address, ONCE)
        # 100 left, and nobody knows whether they have arrived.
        wait_until(lambda: len(again.sent) == 200 * 100)
        assert setup.switch.forwarded == 300


def test_a_closed_target_ends_the_switch_and_what_comes_then_is_received() -> None:
    with joined() as setup:
        setup.back_socket.close()
        setup.readers[0].feed(frame(b"first") + frame(b"second"))
        wait_until(lambda: setup.switch.drops == {"closed": 1})
        assert setup.front_socket.recv(timeout=5) == b"second"


# Guards


def test_a_peer_that_guesses_paths_is_cut_off_on_the_short_way_too() -> None:
    outcomes = []
    for middleware in (None, unchanged):
        with joined(2, middleware=middleware) as setup:
            good = frame(b"x", TO_DEST, destination=NOBODY + setup.back[0].path)
            bad = frame(b"?", TO_DEST, destination=NOBODY + NOBODY)
            setup.readers[0].feed(*[good + bad] * 16)
            wait_until(lambda: setup.front[0].closed)
            setup.readers[1].feed(good * 10)
            wait_until(lambda: setup.switch.forwarded == 26)
            assert "paths that never were" in setup.front[0].reason
            outcomes.append(setup.state())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["drops"] == {"BrokenPath": 16}


def test_a_limited_peer_is_slowed_down_on_the_short_way_too() -> None:
    with joined() as setup:
        setup.front[0].options.set("connector.pipe.max_message_rate", 1000)
        setup.readers[0].feed(*[frame(b"x" * 92) * 10] * 400)
        wait_until(lambda: setup.switch.forwarded >= 1000)
        assert setup.switch.forwarded < 4000


def test_messages_for_a_protocol_are_not_passed_by_it() -> None:
    seen = Counter[bytes]()

    def see(message: Message) -> bool:
        seen[message.content] += 1
        return message.content == b"mine"

    with joined() as setup:
        setup.front_socket._for_protocol().on_message(see)
        setup.readers[0].feed(frame(b"mine") * 3 + frame(b"yours") * 2)
        wait_until(lambda: setup.switch.forwarded == 2)
        assert seen[b"mine"] == 3
        assert [content for *_, content in setup.sent(0)] == [b"yours"] * 2
