"""One connection to a broker, as bytes: what both engines for brokers need of the network.

A :class:`Line` gathers what is written in a turn of the loop and gives it to the kernel in one call, reads in a
greenlet of its own, and finds out when the server has gone or says nothing. An :class:`Opener` makes connections. What
the bytes mean is in ``natslink.py`` and ``redislink.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import gevent
from gevent import Greenlet, GreenletExit, get_hub, getcurrent
from gevent import socket as gsocket

from ..address import Address
from ..errors import BadMessage, Closed, ConnectionFailed, HandshakeFailed, MultiSocketError
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, Ended, survive
from ..loop.periodic import Periodic
from ..loop.yielding import yield_to_loop
from ..options import Options
from ..transport import ipc
from ..transport.base import StreamConnection
from ..transport.stream import abandon_socket, describe_os_error
from ..transport.tcp import TCPDialer
from ..transport.tls import TLSConnection, TLSDialer
from .brokerurl import Server
from .engine import SILENCE

__all__ = ["Line", "Opener", "login_errors"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: Bytes of one read.
_READ: Final = 1 << 16
#: Seconds between two looks whether the server is silent.
_STEP: Final = SILENCE / 4
_NOTHING: Final = memoryview(b"")


class Line:
    """A connection, from its login to its end.

    Args:
        connection: belongs to this object from now on.
        name: of the server, for errors.
        received: called with bytes that have come, in the reader's greenlet. May block for a moment. An error of it
            ends the line.
        ask: called when the server was silent for a while: writes something that it must answer. In a greenlet.
        excuse: called as ``excuse(seconds)`` when the server was asked and says nothing. Returns whether there is a
            good reason for that, and this side waits on. May block.
        last: called in the hub before a turn's bytes are written; returns more of them.
        ended: called once, in a greenlet of this line or of who closes it, with the reason. Must not block.
    """

    __slots__ = (
        "_ask",
        "_asked",
        "_connection",
        "_ended",
        "_excuse",
        "_heard",
        "_keepalive",
        "_last",
        "_loop",
        "_name",
        "_out",
        "_reader",
        "_received",
        "_receiving",
        "_rest",
        "_scheduled",
        "_silent",
        "_writer",
        "closed",
        "reason",
    )

    def __init__(
        self,
        connection: StreamConnection,
        name: str,
        *,
        received: Callable[[bytes], object],
        ask: Callable[[], object],
        ended: Callable[[MultiSocketError], object],
        excuse: Callable[[float], bool] = lambda seconds: False,
        last: Callable[[], bytes] = bytes,
    ) -> None:
        self._connection = connection
        self._name = name
        self._received = received
        self._ask = ask
        self._excuse = excuse
        self._last = last
        self._ended = ended
        self._loop = get_hub().loop
        #: What this turn has written, and what the kernel has not taken of the turns before.
        self._out: list[bytes] = []
        self._rest = _NOTHING
        self._scheduled = False
        self._writer: Greenlet[..., Any] | None = None
        self._reader: Greenlet[..., Any] | None = None
        #: Whether bytes have come since the last look, or are being taken now; for how long none have come, and since
        #: when an answer is due.
        self._heard = False
        self._receiving = False
        self._silent = 0.0
        self._asked = -1.0
        self._keepalive = Periodic(lambda: 0.0 if self.closed else _STEP, self._look)
        self.closed = False
        #: Set by who knows better than the kernel why the line will end.
        self.reason: MultiSocketError | None = None

    def start(self) -> None:
        """Begin to read."""
        self._reader = gevent.spawn(self._read)
        self._keepalive.start()

    # Writing

    def write(self, data: bytes) -> None:
        """Send bytes, together with all others of this turn. Never blocks. Does nothing when the line has ended."""
        self._out.append(data)
        if not self._scheduled:
            self._scheduled = True
            self._loop.run_callback(self._end_turn)

    def _end_turn(self) -> None:
        """Write what the turn has gathered (in the hub)."""
        self._scheduled = False
        if self.closed:
            self._out.clear()
            return
        self._out.append(self._last())
        if self._writer is None and not self._write_some():
            self._writer = gevent.spawn(self._write)

    def _write_some(self) -> bool:
        """Write until the kernel takes no more. Return whether it has taken everything."""
        send, out = self._connection.send, self._out
        rest = self._rest
        try:
            while rest or out:
                if not rest:
                    rest = memoryview(b"".join(out))
                    out.clear()
                # Nothing to send is an error with TLS.
                rest = rest[send(rest) :] if rest else rest
        except BlockingIOError:
            self._rest = rest
            return False
        except OSError:
            # Nothing can be written any more. The reader reads what the server still had to say, and then the end.
            out.clear()
        self._rest = _NOTHING
        return True

    def _write(self) -> None:
        """Write while the kernel takes no more at once (the writer's greenlet)."""
        try:
            while not self.closed and not self._write_some():
                self._connection.wait_writable()
        except OSError:
            pass
        finally:
            self._writer = None

    # Reading

    def _read(self) -> None:
        """Read until the connection ends (the reader's greenlet)."""
        why: MultiSocketError = ConnectionFailed(self._name, "the server has closed the connection")
        recv, received = self._connection.recv, self._received
        try:
            while not self.closed:
                data = recv(_READ)
                if not data:
                    break
                self._heard = self._receiving = True
                received(data)
                self._receiving = False
                yield_to_loop()
        except Ended:
            return
        except MultiSocketError as error:
            why = error
        except OSError as error:
            why = ConnectionFailed(self._name, describe_os_error(error))
        except GreenletExit:
            why = ConnectionFailed(self._name, "something killed the greenlet that reads from the server")
        except BaseException as error:
            survive(_log, "read", error, "what %s has sent could not be taken", self._name)
            why = ConnectionFailed(self._name, f"unexpected {type(error).__name__}: {error}")
        self.close(self.reason or why)

    # Silence

    def _look(self, elapsed: float, late: float) -> None:
        if self._heard or self._receiving:
            # What this side does not read, the server may have said.
            self._heard = False
            self._silent, self._asked = 0.0, -1.0
            return
        # A process that was stopped itself has heard nobody in that time.
        self._silent += elapsed - late
        if self._asked < 0:
            if self._silent >= SILENCE / 2:
                self._asked = self._silent
                self._ask()
        elif self._silent - self._asked >= SILENCE:
            if self._excuse(self._silent):
                self._asked = self._silent
                return
            self.close(ConnectionFailed(self._name, f"the server says nothing, for {self._silent:.1f} s"))

    # The end

    def close(self, reason: MultiSocketError) -> None:
        """Close the connection. What the kernel has not taken is lost. Never blocks; may be repeated.

        Args:
            reason: if it is not Closed, the line is lost, and so is what the server has not acknowledged. Otherwise it
                might keep an old value that comes after a newer one of the next line.
        """
        if self.closed:
            return
        self.closed = True
        if not isinstance(reason, Closed):
            self._connection.discard_unsent()
        self._connection.close()
        self._keepalive.stop()
        for greenlet in (self._reader, self._writer):
            if greenlet is not None and greenlet is not getcurrent():
                greenlet.kill(Ended, block=False)
        self._ended(reason)

    def join(self) -> None:
        """Block until the greenlets of the closed line have ended, except the caller."""
        self._keepalive.join()
        for greenlet in (self._reader, self._writer):
            if greenlet is not None and greenlet is not getcurrent():
                greenlet.join()

    def abandon(self) -> None:
        """Close the descriptor in a forked child."""
        self.closed = True
        self._connection.abandon()


# Opening


class Opener:
    """Makes connections. All its methods but :meth:`abandon` block; the caller limits the time.

    Args:
        options: of the transports.
    """

    __slots__ = ("_options", "_pending")

    def __init__(self, options: Options) -> None:
        self._options = options
        #: Close the descriptors of connections that belong to nobody else yet, in a forked child.
        self._pending: list[Callable[[], object]] = []

    def socket(self, server: Server) -> gsocket.socket:
        """Return a connected socket.

        Raises:
            ConnectionFailed: nothing is left open.
        """
        dialer = TCPDialer(Address(server.scheme, server.location), self._options)
        self._pending.append(dialer.abandon)
        sock = dialer.connect_socket()
        self._pending.append(partial(abandon_socket, sock))
        return sock

    def start_tls(self, sock: gsocket.socket, server: Server) -> TLSConnection:
        """Return a TLS connection that takes over a connected socket, after its handshake.

        Raises:
            TLSError: the socket is closed.
        """
        try:
            dialer = TLSDialer(Address(server.scheme, server.location), self._options)
        except BaseException:
            sock.close()
            raise
        self._pending.append(dialer.abandon)
        connection = dialer.secure(sock)
        self._pending.append(connection.abandon)
        return connection

    def unix(self, server: Server) -> StreamConnection:
        """Return a connection to a unix socket.

        Raises:
            ConnectionFailed: nothing is left open.
        """
        connection = ipc.TRANSPORT.dialer(Address("ipc", server.location), self._options).connect()
        assert isinstance(connection, StreamConnection)
        self._pending.append(connection.abandon)
        return connection

    def done(self) -> None:
        """All connections belong to somebody else, or are closed."""
        self._pending.clear()

    def abandon(self) -> None:
        """Close the descriptors of connections that are being made, in a forked child."""
        for abandon in self._pending:
            abandon()


@contextmanager
def login_errors(server: Server) -> Iterator[None]:
    """Translate the errors of a login.

    Raises:
        HandshakeFailed: what has answered speaks another protocol.
        ConnectionFailed: the connection is broken.
    """
    try:
        yield
    except BadMessage as error:
        raise HandshakeFailed(server.name, f"this is no such server: {error.why}") from error
    except MultiSocketError:
        raise
    except OSError as error:
        raise ConnectionFailed(server.name, f"the login failed: {describe_os_error(error)}") from error
