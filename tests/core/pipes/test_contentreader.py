"""Large contents that are read to where a protocol wants them: by the pipe's reader, and by others in its place."""

from __future__ import annotations

import errno
import os
import random
from itertools import pairwise

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.core.pipes.pipe import Pipe
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.testing._bench import never_switches
from gmultisocket.wire import INTERNAL, TO_DEST, pack_id
from tests.core.streams import frame
from tests.peers import only_pipe

PING = b"\1"
PEER, PIECE = pack_id(9 << 8), 40_000


class IntoStream(FakeStream):
    """A stream that can be read into memory. A step of its script is what one call finds."""

    __slots__ = ()

    reads_into = True

    def recv_into(self, buffers: list[memoryview | bytearray], /) -> int:
        self._check_open()
        if not self._script:
            raise BlockingIOError
        found = self._script.popleft()
        if isinstance(found, OSError):
            raise found
        assert isinstance(found, bytes)
        size = 0
        for buffer in buffers:
            part = found[size : size + len(buffer)]
            buffer[: len(part)] = part
            size += len(part)
        if size < len(found) or not found:
            self._script.appendleft(found[size:])
        return size

    def wait_readable(self) -> None:
        while not self._script:
            self._check_open()
            self._arrival.clear()
            self._arrival.wait()
        self._check_open()


class Contents:
    """What a protocol gets: what comes for ``PEER``, joined, and everything else.

    Args:
        space: bytes of memory for contents; the memory is new for each read.
    """

    def __init__(self, space: int) -> None:
        self.space_left = space
        self.memory = bytearray()
        self.in_memory = 0
        self.joined = bytearray()
        self.others: list[Message] = []

    def on_message(self, message: Message) -> bool:
        if message.destination == PEER:
            self.joined += message.content
        else:
            self.others.append(message.replace(source=b"", pipe_id=0))
        return True

    def on_content(self, flags: int, source: bytes, destination: bytes) -> Contents | None:
        assert len(source) == 4 * (1 + bool(destination)) and source[4:] in (b"", pack_id(5))
        return self if self.space_left and (flags, destination) == (TO_DEST, PEER) else None

    def space(self, size: int) -> memoryview:
        self.memory = bytearray(min(size, self.space_left))
        return memoryview(self.memory)

    def filled(self, size: int, ends: bool) -> bool:
        # Raises if the pipe still has a view of it.
        del self.memory[size:]
        self.joined += self.memory
        self.in_memory += size
        self.space_left -= size
        return self.space_left > 0


def large(content: bytes, destination: bytes = PEER) -> bytes:
    """Return a frame along a path."""
    return frame(content, TO_DEST, 16, pack_id(5), pack_id(7) + destination)


LARGE_FRAMES = (
    large(random.Random(4).randbytes(PIECE)),
    large(random.Random(5).randbytes(PIECE)),
    large(random.Random(6).randbytes(2 * PIECE)),
    large(random.Random(7).randbytes(PIECE), pack_id(10)),
    large(b"small"),
    frame(PING, INTERNAL),
    frame(b"to one"),
    frame(random.Random(8).randbytes(PIECE)),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(range(len(LARGE_FRAMES))), max_size=12),
    st.lists(st.integers(1, 3 * PIECE), max_size=40),
    st.integers(0, 12 * PIECE),
    st.booleans(),
)
def test_contents_that_are_read_into_memory_are_those_that_messages_have(
    numbers: list[int], cuts: list[int], space: int, others_read: bool
) -> None:
    frames = [LARGE_FRAMES[number] for number in numbers]
    stream = b"".join(frames)
    script = []
    start = 0
    # The first frame always comes in two parts, as otherwise nothing would be read into memory.
    for cut in [20, *cuts]:
        script.append(stream[start : start + cut])
        start += cut
    script = [part for part in [*script, stream[start:]] if part]
    results = []
    for kind, memory in ((IntoStream, space), (IntoStream, 0), (FakeStream, space)):
        contents = Contents(memory)
        with FakeTransport([fake := kind(script)]) as transport, Socket() as client:
            core = client._for_protocol()
            core.on_message(contents.on_message)
            core.on_content(contents.on_content)
            client.dial(transport.address, {"connector.dialer.reconnect": False})
            pipe = only_pipe(client)
            while pipe.counters.bytes_received < len(stream):
                if others_read:
                    core.read_now(pipe, contents)
                gevent.sleep(0)
            gevent.sleep(0)
            results.append((bytes(contents.joined), contents.others, pipe.counters, bytes(fake.sent)))
        if memory and kind is IntoStream and numbers and numbers[0] < 3:
            assert contents.in_memory
    assert results[0] == results[1] == results[2]


def test_a_content_that_ends_in_the_middle_was_read_as_far_as_it_came() -> None:
    contents = Contents(10 * PIECE)
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        client._for_protocol().on_content(contents.on_content)
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = only_pipe(client)
        stream.feed(LARGE_FRAMES[0][:20], LARGE_FRAMES[0][20:30_000])
        wait_until(lambda: pipe.counters.bytes_received == 30_000)
        assert pipe.counters.messages_received == 0
        stream.feed(b"")
        wait_until(lambda: pipe.reason)
        assert pipe.reason == "the peer closed the connection in the middle of a message"
    assert contents.joined == LARGE_FRAMES[0][20:30_000]


@pytest.mark.parametrize("rest", [1, 100, 30_000])
def test_the_rest_of_a_content_is_read_into_memory_however_short_it_is(rest: int) -> None:
    contents = Contents(10 * PIECE)
    data = LARGE_FRAMES[0] * 4
    cut = 3 * len(LARGE_FRAMES[0]) - rest
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        client._for_protocol().on_content(contents.on_content)
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = only_pipe(client)
        stream.feed(data[:20], data[20:cut], data[cut:])
        wait_until(lambda: pipe.counters.messages_received == 4)
    assert contents.in_memory == 4 * PIECE and not contents.others


def test_a_header_repeats_only_if_all_of_it_has_come() -> None:
    # It ends with a zero, as new memory does.
    data = [random.Random(seed).randbytes(PIECE) for seed in (1, 2, 3)]
    frames = [frame(content, TO_DEST, 16, b"", pack_id(7) + bytes(4)) for content in data]
    received = bytearray()
    contents = Contents(10 * PIECE)
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        core = client._for_protocol()
        core.on_content(lambda flags, source, destination: contents)
        core.on_message(lambda message: not received.extend(message.content))
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = only_pipe(client)
        whole = b"".join(frames)
        cuts = [0, 16, PIECE + 32, 2 * PIECE + 47, len(whole)]
        for start, end in pairwise(cuts):
            stream.feed(whole[start:end])
        wait_until(lambda: pipe.counters.bytes_received == len(whole))
        wait_until(lambda: pipe.counters.messages_received == 3)
    assert bytes(contents.joined + received) == b"".join(data)


def test_a_header_that_repeats_is_checked_against_a_limit_that_has_changed() -> None:
    contents = Contents(10 * PIECE)
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        client._for_protocol().on_content(contents.on_content)
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = only_pipe(client)
        one = LARGE_FRAMES[0]
        stream.feed(one[:20], one[20:] + one[:20], one[20:] + one[:20])
        wait_until(lambda: pipe.counters.messages_received == 2)
        pipe.options.set("connector.pipe.max_recv_content_length", PIECE - 1)
        stream.feed(one[20:] + one[:20])
        wait_until(lambda: pipe.reason)
        assert "40000" in pipe.reason and "39999" in pipe.reason
    assert contents.joined == one[20:] * 3 and client.counters.messages_received == 3


def pipe_that_waits(client: Socket, address: str, stream: FakeStream, contents: Contents) -> Pipe:
    """Connect, and return the pipe when its reader waits in the middle of a content, with one in memory before it."""
    core = client._for_protocol()
    core.on_message(contents.on_message)
    core.on_content(contents.on_content)
    client.dial(address, {"connector.dialer.reconnect": False})
    one = LARGE_FRAMES[0]
    stream.feed(one[:20], one[20:] + one[:20])
    wait_until(lambda: contents.in_memory == PIECE and not stream._script)
    gevent.sleep(0)
    return only_pipe(client)


def test_another_greenlet_reads_what_has_come_without_a_switch() -> None:
    contents = Contents(10 * PIECE)
    one = LARGE_FRAMES[0]
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        pipe = pipe_that_waits(client, fake.address, stream, contents)
        core = client._for_protocol()
        with never_switches("read_now()"):
            core.read_now(pipe, contents)
            assert contents.in_memory == PIECE
            stream._script.append(one[20:] + one + one[:20])
            core.read_now(pipe, Contents(PIECE))
            assert contents.in_memory == PIECE
            core.read_now(pipe, contents)
            assert contents.in_memory == 3 * PIECE
        assert pipe.counters.messages_received == 3
    assert contents.joined == one[20:] * 3


def test_what_another_greenlet_finds_behind_a_content_is_decoded_by_the_reader_at_once() -> None:
    contents = Contents(10 * PIECE)
    one, other = LARGE_FRAMES[0], frame(b"to one")
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        pipe = pipe_that_waits(client, fake.address, stream, contents)
        # Nothing that comes later wakes the reader.
        stream._script.append(one[20:] + other)
        client._for_protocol().read_now(pipe, contents)
        assert not contents.others
        wait_until(lambda: [message.content for message in contents.others] == [b"to one"])
        stream.feed(one)
        wait_until(lambda: pipe.counters.messages_received == 4)
    assert contents.joined == one[20:] * 3


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ETIMEDOUT])
def test_an_error_that_another_greenlet_finds_is_the_reason_of_the_pipe(number: int) -> None:
    contents = Contents(10 * PIECE)
    with FakeTransport([stream := IntoStream()]) as fake, Socket() as client:
        pipe = pipe_that_waits(client, fake.address, stream, contents)
        stream._script.append(OSError(number, "broken"))
        client._for_protocol().read_now(pipe, contents)
        assert not pipe.reason
        wait_until(lambda: pipe.reason)
        assert pipe.reason == f"receiving failed: {os.strerror(number).lower()}"
        client._for_protocol().read_now(pipe, contents)
    assert contents.in_memory == PIECE
