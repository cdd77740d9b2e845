"""Channels: several pipes over one WebSocket (the subprotocol ``multisocket.session``).

Each WebSocket message is the number of a channel, one byte, and what belongs to it: one message frame. Messages of
channel 0 are about the channels themselves; ``protocol/session.py`` reads and writes them.

Every channel is a :class:`ChannelConnection` to its pipe. The pipes of all channels write to the same stream, each from
its own queue. They share it as a :class:`SharedStream`, which takes whole packets only.

Loaded with the first session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EAGAIN, ECONNABORTED
from typing import Any, Final, NoReturn

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event

from ..errors import BadMessage, MultiSocketError
from .base import PacketCodec, PacketConnection, SharedWrites, StreamConnection

__all__ = ["MAX_CHANNELS", "ChannelConnection", "SharedStream"]

#: The highest number of a channel.
MAX_CHANNELS: Final = 255
#: Packets about channels that wait for the kernel. A peer that causes more does not read.
_MAX_WAITING: Final = 1024


class SharedStream(SharedWrites):
    """A stream to which several pipes write. A call of ``send`` or ``sendmsg`` is taken as a whole, or not at all.

    What the kernel does not take of a call waits here, at most the rest of one call. Until it has left, the stream
    takes nothing more. So no pipe has half a packet on the wire, and the others need not wait until it goes on.

    Args:
        stream: the stream below; belongs to this object from now on.
    """

    __slots__ = ("_blocked", "_error", "_notices", "_rest", "_send", "_stream", "_waiting", "_writer", "recv", "taken")

    recv: Callable[[int], bytes]

    def __init__(self, stream: StreamConnection) -> None:
        self._stream = stream
        self._send = stream.send
        self._rest: list[memoryview] = []
        #: Packets in ``_rest`` that :meth:`put` has taken.
        self._notices = 0
        self._error: OSError | None = None
        #: Whether nothing is taken now: something waits for the kernel, or the stream is broken.
        self._blocked = False
        #: Waits for the kernel.
        self._writer: Greenlet[..., Any] | None = None
        #: What wakes the greenlets that wait until the stream is writable.
        self._waiting: list[Event] = []
        self.taken = 0
        self.recv = stream.recv

    # Writing

    def send(self, data: bytes | memoryview, /) -> int:
        if self._blocked:
            self._refuse()
        try:
            taken = self._send(data)
        except BlockingIOError:
            self._block()
            raise
        size = len(data)
        self.taken += size
        if taken != size:
            self._rest.append(memoryview(data)[taken:])
            self._block()
        return size

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        if self._blocked:
            self._refuse()
        try:
            taken = self._stream.sendmsg(buffers)
        except BlockingIOError:
            self._block()
            raise
        size = sum(map(len, buffers))
        self.taken += size
        if taken != size:
            for data in buffers:
                if taken < len(data):
                    self._rest.append(memoryview(data)[taken:])
                taken = max(0, taken - len(data))
            self._block()
        return size

    def put(self, packet: bytes) -> bool:
        """Send a packet, now or as soon as the kernel takes it. Never blocks, and never fails if the stream is broken.

        Returns:
            Whether it was taken. If not, the peer does not read, and too many packets wait for it.
        """
        if not self._blocked:
            try:
                self.send(packet)
                return True
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(error)
        if self._error is not None:
            return True
        if self._notices >= _MAX_WAITING:
            return False
        self._notices += 1
        self._rest.append(memoryview(packet))
        self.taken += len(packet)
        return True

    def _refuse(self) -> NoReturn:
        if self._error is not None:
            raise OSError(*self._error.args)
        raise BlockingIOError(EAGAIN, "the kernel takes no more")

    def _block(self) -> None:
        """Wait in a greenlet until the kernel takes more."""
        self._blocked = True
        self._writer = gevent.spawn(self._write_rest)

    def _write_rest(self) -> None:
        """Write what waits, then let the pipes write again (a greenlet)."""
        try:
            while True:
                self._stream.wait_writable()
                if self._write_some():
                    return
        except OSError as error:
            self._fail(error)
        finally:
            self._writer = None
            self._notices = 0
            self._blocked = self._error is not None
            self._wake()

    def _fail(self, error: OSError) -> None:
        """Take nothing any more: the stream is broken."""
        self._error = self._error or error
        self._blocked = True
        self._rest.clear()

    def _write_some(self) -> bool:
        """Give what waits to the kernel. Return whether it took all of it."""
        rest = self._rest
        try:
            while rest:
                data = rest[0]
                taken = self._stream.send(data)
                if taken < len(data):
                    rest[0] = data[taken:]
                    return False
                del rest[0]
        except BlockingIOError:
            return False
        return True

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()

    def wait(self, event: Event) -> None:
        """Block until the stream may be writable, or is broken, or somebody sets the event.

        Any number of greenlets may wait, each with its own event.
        """
        if self._blocked and self._error is None:
            self._waiting.append(event)
            try:
                event.wait()
            finally:
                if event in self._waiting:
                    self._waiting.remove(event)

    def wait_writable(self) -> None:
        self.wait(Event())

    def join(self) -> None:
        """Block until no greenlet works for the closed stream, except the caller."""
        if self._writer is not None and self._writer is not getcurrent():
            self._writer.join()

    # Passed on

    @property
    def local_address(self) -> str:
        return self._stream.local_address

    @property
    def peer_address(self) -> str:
        return self._stream.peer_address

    @property
    def peer_host(self) -> str:
        return self._stream.peer_host

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._stream.identity

    def shutdown_write(self) -> None:
        self._stream.shutdown_write()

    def unacknowledged(self) -> int:
        return self._stream.unacknowledged() + sum(map(len, self._rest))

    def vanished(self) -> float:
        return self._stream.vanished()

    def hung_up(self, may_half_close: bool = True) -> bool:
        return self._stream.hung_up(may_half_close)

    def close(self) -> None:
        self._fail(OSError(ECONNABORTED, "the connection is closed"))
        self._stream.close()
        self._wake()

    def abandon(self) -> None:
        self._stream.abandon()


class _ChannelCodec:
    """The packets of one channel: those of the WebSocket, with the number of the channel in front of each frame.

    It only sends: the session reads, and gives the frames to the pipe.
    """

    __slots__ = ("_carrier", "_codec", "_number", "error", "key", "max_content", "more", "spend", "whole")

    pending = False
    read_size = 0

    def __init__(self, carrier: PacketConnection, number: int) -> None:
        self._carrier = carrier
        self._codec = codec = carrier.codec
        #: Counts the work of compressing for the socket of this channel.
        self.spend: Callable[[int, int], object] | None = None
        self._number = bytes((number,))
        self.key = None if codec.key is None else f"{codec.key} {number}"
        self.whole = True
        self.more = False
        self.max_content = 0
        self.error: BadMessage | None = None

    def wrap(self, frame: bytes) -> bytes:
        if self.spend is not None:
            # The sockets of all channels compress with one codec.
            self._carrier.account(self.spend)
        return self._codec.wrap(self._number + frame)

    def prefix(self, size: int) -> bytes | None:
        before = self._codec.prefix(size + 1)
        return None if before is None else before + self._number

    def unwrap(self, packet: bytes) -> bytes:
        return self._codec.unwrap(packet)[1:]

    def feed(self, data: bytes) -> list[bytes]:
        raise NotImplementedError("the session reads")

    def replies(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        return b""

    def pong(self) -> bytes:
        return b""

    def goodbye(self, reason: MultiSocketError | None) -> bytes:
        return b""

    def end(self) -> str:
        return ""


class ChannelConnection(PacketConnection):
    """One channel of a WebSocket. Addresses and identity are those of the WebSocket.

    Closing it leaves the WebSocket open.

    Args:
        carrier: the WebSocket.
        stream: its stream.
        number: of the channel.
        on_close: called once, when it has closed.
    """

    __slots__ = ("_carrier", "_codec", "_on_close", "_stream", "_waiting", "number", "send", "sendmsg")

    send: Callable[[bytes | memoryview], int]
    sendmsg: Callable[[list[bytes | memoryview]], int]

    def __init__(
        self, carrier: PacketConnection, stream: SharedWrites, number: int, on_close: Callable[[int], object]
    ) -> None:
        self._carrier = carrier
        self._stream = stream
        self._codec = _ChannelCodec(carrier, number)
        self._on_close: Callable[[int], object] | None = on_close
        self._waiting: Event | None = None
        self.number = number
        self.send = stream.send
        self.sendmsg = stream.sendmsg

    @property
    def codec(self) -> PacketCodec:
        return self._codec

    def account(self, spend: Callable[[int, int], object]) -> None:
        self._codec.spend = spend

    @property
    def local_address(self) -> str:
        return self._carrier.local_address

    @property
    def peer_address(self) -> str:
        return self._carrier.peer_address

    @property
    def peer_host(self) -> str:
        return self._carrier.peer_host

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._carrier.identity

    def wait_writable(self) -> None:
        if self._on_close is not None:
            self._waiting = Event()
            try:
                self._stream.wait(self._waiting)
            finally:
                self._waiting = None
        if self._on_close is None:
            raise OSError(ECONNABORTED, "the channel is closed")

    def recv(self, size: int, /) -> bytes:
        raise NotImplementedError("the session reads")

    def unread(self, data: bytes) -> None:
        raise NotImplementedError("the session reads")

    def unacknowledged(self) -> int:
        return self._carrier.unacknowledged()

    def hung_up(self, may_half_close: bool = True) -> bool:
        return self._carrier.hung_up(may_half_close)

    def close(self) -> None:
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            if self._waiting is not None:
                self._waiting.set()
            on_close(self.number)

    def abandon(self) -> None:
        self._on_close = None
