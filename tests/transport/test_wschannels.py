"""Several pipes write to one stream: every packet leaves whole, and none waits for ever."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event

from gmultisocket.testing import wait_until
from gmultisocket.transport import StreamConnection
from gmultisocket.transport.wschannels import ChannelConnection, SharedStream
from gmultisocket.transport.wsframes import ClientFrames, ServerFrames


class Kernel(StreamConnection):
    """A stream whose kernel takes as many bytes as the test allows."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.got = b""
        self.error: OSError | None = None
        self._more = Event()

    def allow(self, room: int) -> None:
        self.room += room
        self._more.set()

    def fail(self) -> None:
        self.error = ConnectionResetError(104, "reset")
        self._more.set()

    def send(self, data: bytes | memoryview, /) -> int:
        if self.error is not None:
            raise self.error
        if not self.room:
            raise BlockingIOError
        taken = min(self.room, len(data))
        self.room -= taken
        self.got += bytes(data[:taken])
        return taken

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        return self.send(b"".join(buffers))

    def wait_writable(self) -> None:
        while not self.room and self.error is None:
            self._more.clear()
            self._more.wait()
        if self.error is not None:
            raise self.error

    def recv(self, size: int, /) -> bytes:
        return b""

    def unacknowledged(self) -> int:
        return 7

    @property
    def local_address(self) -> str:
        return "here"

    @property
    def peer_address(self) -> str:
        return "there"

    def close(self) -> None:
        self.fail()

    def abandon(self) -> None:
        pass


def test_what_the_kernel_leaves_of_a_packet_goes_before_everything_else() -> None:
    kernel = Kernel(8)
    stream = SharedStream(kernel)
    assert stream.send(b"one--") == 5
    assert stream.sendmsg([b"tw", b"o--", b"and more"]) == 13
    assert stream.unacknowledged() == 7 + 10
    for _ in range(2):
        with pytest.raises(BlockingIOError):
            stream.send(b"later")
        with pytest.raises(BlockingIOError):
            stream.sendmsg([b"later"])
    waiting = gevent.spawn(stream.wait_writable)
    kernel.allow(3)
    wait_until(lambda: not kernel.room)
    assert not waiting.ready()
    kernel.allow(100)
    waiting.get(timeout=5)
    assert stream.send(b"later") == 5
    assert kernel.got == b"one--two--and morelater"
    assert stream.taken == len(kernel.got)
    stream.close()


def test_a_kernel_that_takes_nothing_is_waited_for() -> None:
    kernel = Kernel(0)
    stream = SharedStream(kernel)
    for send in (lambda: stream.send(b"x"), lambda: stream.sendmsg([b"x"])):
        with pytest.raises(BlockingIOError):
            send()
        waiting = [gevent.spawn(stream.wait_writable) for _ in range(3)]
        kernel.allow(1)
        gevent.joinall(waiting, timeout=5, raise_error=True)
        assert send() == 1
    assert kernel.got == b"xx"
    stream.close()


def test_notices_wait_behind_what_was_taken_and_are_bounded() -> None:
    kernel = Kernel(3)
    stream = SharedStream(kernel)
    assert stream.put(b"1")
    stream.send(b"abcdef")
    assert stream.put(b"2")
    count = 1
    while stream.put(b"3"):
        count += 1
    assert count == 1024
    waiting = gevent.spawn(stream.wait_writable)
    kernel.allow(1 << 20)
    waiting.get(timeout=5)
    assert kernel.got == b"1abcdef2" + b"3" * 1023
    assert stream.put(b"4")
    stream.close()


def test_a_broken_stream_is_an_error_for_everybody_and_keeps_nothing() -> None:
    kernel = Kernel(2)
    stream = SharedStream(kernel)
    stream.send(b"abcdef")
    waiting = gevent.spawn(stream.wait_writable)
    gevent.sleep(0)
    kernel.fail()
    waiting.get(timeout=5)
    for send in (lambda: stream.send(b"x"), lambda: stream.sendmsg([b"x"])):
        with pytest.raises(ConnectionResetError):
            send()
    # The reader tells the socket; a notice is lost with all the rest.
    assert stream.put(b"x")
    assert stream.unacknowledged() == 7
    stream.join()


def test_closing_wakes_all_who_wait() -> None:
    stream = SharedStream(Kernel(0))
    with pytest.raises(BlockingIOError):
        stream.send(b"x")
    waiting = [gevent.spawn(stream.wait_writable) for _ in range(3)]
    gevent.sleep(0)
    stream.close()
    gevent.joinall(waiting, timeout=5, raise_error=True)
    stream.join()
    with pytest.raises(OSError, match="closed"):
        stream.send(b"x")


class Carrier(Kernel):
    """What stands for the WebSocket of a channel."""

    def __init__(self, codec: ServerFrames | ClientFrames) -> None:
        super().__init__(0)
        self.codec = codec


@pytest.mark.parametrize("kind", [ServerFrames, ClientFrames])
def test_a_packet_of_a_channel_begins_with_its_number(kind: type[ServerFrames] | type[ClientFrames]) -> None:
    codec = kind()
    channel = ChannelConnection(Carrier(codec), SharedStream(Kernel(0)), 7, lambda number: None)  # type: ignore[arg-type]
    packet = channel.codec.wrap(b"a frame")
    assert codec.unwrap(packet) == b"\7a frame"
    assert channel.codec.unwrap(packet) == b"a frame"
    prefix = channel.codec.prefix(40_000)
    if kind is ServerFrames:
        assert prefix is not None
        assert codec.unwrap(prefix + bytes(40_000)) == b"\7" + bytes(40_000)
        assert channel.codec.key == f"{codec.key} 7"
    else:
        assert prefix is channel.codec.key is None
    channel.close()


def test_a_closed_channel_wakes_its_writer_and_no_other_and_leaves_the_stream_open() -> None:
    kernel = Kernel(0)
    stream = SharedStream(kernel)
    closed: list[int] = []
    one, two = (ChannelConnection(Carrier(ServerFrames()), stream, n, closed.append) for n in (1, 2))  # type: ignore[arg-type]
    with pytest.raises(BlockingIOError):
        one.send(b"x")
    first, second = gevent.spawn(one.wait_writable), gevent.spawn(two.wait_writable)
    gevent.sleep(0)
    one.close()
    one.close()
    with pytest.raises(OSError, match="channel is closed"):
        first.get(timeout=5)
    assert closed == [1]
    assert not second.ready()
    kernel.allow(10)
    second.get(timeout=5)
    assert two.send(b"x") == 1
    with pytest.raises(OSError, match="channel is closed"):
        one.wait_writable()
    two.close()
    stream.close()
