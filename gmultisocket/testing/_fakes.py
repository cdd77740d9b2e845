"""Fakes: a stream whose peer is a script, and a transport that gives such streams to a Socket.

They replace a network in a test that says exactly what arrives when: half a frame, a reset, a kernel that takes three
bytes and then no more. Otherwise they keep the contracts in ``gmultisocket.transport.base``.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar

from gevent.event import Event

from ..address import Address
from ..errors import Closed, ConnectionFailed, ConnectionRefused
from ..options import Options
from ..transport import (
    Connection,
    StreamConnection,
    Transport,
    TransportDialer,
    TransportListener,
    register,
    unregister,
)

__all__ = ["FakeStream", "FakeTransport"]


class FakeStream(StreamConnection):
    """A stream connection whose peer is a script.

    Args:
        script: the steps of ``recv``, one after the other. Bytes are returned (by several reads if they are more than
            the reader asks for), ``b""`` is the end of the stream, an exception is raised. After the last step ``recv``
            waits for :meth:`feed`.
        takes: the steps of ``send``: how many bytes the kernel takes, 0 for ``BlockingIOError``, or an exception to
            raise. After the last step every ``send`` takes all bytes.

    Attributes:
        sent: all bytes that ``send`` has taken, in order.
        closed: whether ``close()`` was called.
        abandoned: whether ``abandon()`` was called.
        write_ended: whether ``shutdown_write()`` was called.
    """

    __slots__ = ("_arrival", "_script", "_takes", "_writable", "abandoned", "closed", "sent", "write_ended")

    def __init__(self, script: Iterable[bytes | Exception] = (), takes: Iterable[int | Exception] = ()) -> None:
        self._script = deque(script)
        self._takes = deque(takes)
        self._arrival = Event()
        self._writable = Event()
        self._writable.set()
        self.sent = bytearray()
        self.closed = False
        self.abandoned = False
        self.write_ended = False

    @property
    def local_address(self) -> str:
        return "fake://here"

    @property
    def peer_address(self) -> str:
        return "fake://there"

    # For the test

    def feed(self, *steps: bytes | Exception) -> None:
        """Add steps to the script, and wake a waiting ``recv``. Does not block."""
        self._script.extend(steps)
        self._arrival.set()

    def block(self) -> None:
        """Take no bytes in ``send`` until :meth:`unblock`. Does not block."""
        self._writable.clear()

    def unblock(self) -> None:
        """Take bytes in ``send`` again, and wake a waiting ``wait_writable``. Does not block."""
        self._writable.set()

    # For the pipe

    def send(self, data: bytes | memoryview, /) -> int:
        self._check_open()
        if not self._writable.is_set():
            raise BlockingIOError(errno.EAGAIN, "the fake takes nothing")
        step = self._takes.popleft() if self._takes else len(data)
        if isinstance(step, Exception):
            raise step
        if not step:
            raise BlockingIOError(errno.EAGAIN, "the script says 0")
        taken = bytes(data[:step])
        self.sent += taken
        return len(taken)

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        return self.send(b"".join(buffers))

    def wait_writable(self) -> None:
        self._check_open()
        self._writable.wait()
        self._check_open()

    def recv(self, size: int, /) -> bytes:
        while not self._script:
            self._check_open()
            self._arrival.clear()
            self._arrival.wait()
        self._check_open()
        step = self._script.popleft()
        if isinstance(step, Exception):
            raise step
        if not step:
            # The next read finds the end again.
            self._script.appendleft(step)
        elif len(step) > size:
            self._script.appendleft(step[size:])
        return step[:size]

    def shutdown_write(self) -> None:
        self.write_ended = True

    def close(self) -> None:
        self.closed = True
        self._arrival.set()
        self._writable.set()

    def abandon(self) -> None:
        self.closed = self.abandoned = True

    def _check_open(self) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "the connection was closed")


class FakeTransport(Transport):
    """A transport with connections from the test. A context manager: Sockets can use it inside the ``with`` statement.

    ::

        stream = FakeStream([b"\\x00\\x10", b"\\x00\\x00", ConnectionResetError()])
        with FakeTransport([stream]) as fake, Socket() as sock:
            sock.dial(fake.address)

    Args:
        connections: each dial takes the next one; an exception is raised. After the last one dials are refused.

    Attributes:
        address: the address to dial or to listen at.
        attempts: the number of dials.
        given: the connections that dials and listeners have taken.
    """

    __slots__ = ("_accepted", "_arrival", "_listening", "_to_dial", "attempts", "given")

    schemes: ClassVar[tuple[str, ...]] = ("fake",)
    address: ClassVar[str] = "fake://there"

    def __init__(self, connections: Iterable[Connection | Exception] = ()) -> None:
        self._to_dial = deque(connections)
        self._accepted: deque[Connection] = deque()
        self._arrival = Event()
        self._listening = False
        self.attempts = 0
        self.given: list[Connection] = []

    def __enter__(self) -> FakeTransport:
        register(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        unregister(self)

    def will_connect(self, connection: Connection | Exception) -> None:
        """Add a connection, or an exception, for a dial after the others."""
        self._to_dial.append(connection)

    def arrive(self, connection: Connection) -> None:
        """Give a connection to the listener, as from a peer that connects. Does not block."""
        self._accepted.append(connection)
        self._arrival.set()

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return _FakeDialer(self, address)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return _FakeListener(self, address)


class _FakeDialer(TransportDialer):
    __slots__ = ("_address", "_transport")

    def __init__(self, transport: FakeTransport, address: Address) -> None:
        self._transport = transport
        self._address = address.bare

    def connect(self) -> Connection:
        transport = self._transport
        transport.attempts += 1
        if not transport._to_dial:
            raise ConnectionRefused(self._address, "no connection is left in the script")
        step = transport._to_dial.popleft()
        if isinstance(step, OSError) and not isinstance(step, ConnectionFailed):
            raise ConnectionFailed(self._address, str(step)) from step
        if isinstance(step, Exception):
            raise step
        transport.given.append(step)
        return step


class _FakeListener(TransportListener):
    __slots__ = ("_address", "_closed", "_transport")

    def __init__(self, transport: FakeTransport, address: Address) -> None:
        self._transport = transport
        self._address = address.bare
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        """Do nothing: a fake address is never in use."""

    def accept(self) -> Connection:
        transport = self._transport
        while not transport._accepted:
            if self._closed:
                raise Closed("listener")
            transport._arrival.clear()
            transport._arrival.wait()
        connection = transport._accepted.popleft()
        transport.given.append(connection)
        return connection

    def close(self) -> None:
        self._closed = True
        self._transport._arrival.set()

    def abandon(self) -> None:
        self._closed = True
