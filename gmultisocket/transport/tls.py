"""tls+tcp: byte streams between hosts that nobody on the way can read or change.

Addresses are those of tcp with the scheme ``tls+tcp`` or ``tls``. A dialer verifies the listener's certificate and its
host name, unless ``transport.tls.insecure`` is set. A listener needs a certificate. With ``transport.tls.cafile`` it
also requires certificates of its peers (mutual TLS), and puts them in the identities of the pipes.

This module has the TLS connection, :class:`TLSConnection`, which wss uses too, and the transport. Certificates,
contexts and the names of errors are in ``tlscontext.py``. One undocumented name of gevent's TLS socket is used here,
``_sslobj``, which reads and writes without waiting; ``stream.py`` lists the others.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gevent import sleep
from gevent import socket as gsocket
from gevent.ssl import SSLSocket

from ..address import Address
from ..loop.owner import stop_abandoned
from ..loop.yielding import turn_of
from ..options import Options
from .base import Connection, StreamConnection, Transport, TransportDialer, TransportListener
from .stream import abandon_socket, has_hung_up
from .tcp import TCPDialer, TCPListener, broken_by, format_address, host_of, socket_names, unacknowledged, vanished
from .tlscontext import ClientSide, ServerSide, explain

__all__ = ["TRANSPORT", "TLSConnection", "TLSDialer", "TLSListener"]

#: The maximum number of bytes in one TLS record. OpenSSL reads and writes one record at a time.
_RECORD = 16384

#: Seconds between two checks whether the other direction has done what TLS needs first (see `_needs_read`).
_NEEDS_READ_PAUSE = 0.01


class TLSConnection(StreamConnection):
    """A TLS socket, before or after its handshake.

    When the kernel takes only a part of an encrypted record, OpenSSL must be given the same record again until all of
    it is written, before any other data. But the pipe may drop the data meanwhile. So the connection keeps the record
    as unfinished, counts it as sent, and writes the rest in the event loop as soon as the kernel takes it. Until then
    it takes no other data.

    The end of the stream may come with the close message of TLS or, from many peers, without it. Both count as the end.
    A frame contains its length, so a frame that an attacker has cut is noticed. A stream that was cut between two
    frames is not noticed.

    Args:
        sock: made by ``ClientSide.wrap`` or ``ServerSide.wrap``, or any connected gevent TLS socket; belongs to this
            object from now on.
        scheme: of the addresses.
        address: the dialed address, for errors; "" on the listening side.
        wrap: makes the TLS socket when the handshake begins; ``sock`` is a plain one until then. So a peer that has
            sent nothing costs no TLS state. Closes the socket if it fails.
    """

    __slots__ = (
        "_address",
        "_dry",
        "_failed",
        "_identity",
        "_names",
        "_needs_read",
        "_read",
        "_scheme",
        "_sock",
        "_unfinished",
        "_wait",
        "_watcher",
        "_wrap",
        "_write",
    )

    needs_handshake: ClassVar[bool] = True

    def __init__(
        self, sock: Any, scheme: str = "tls+tcp", address: str = "", wrap: Callable[[Any], SSLSocket] | None = None
    ) -> None:
        self._sock = sock
        self._scheme = scheme
        self._address = address
        self._names = socket_names(sock)
        self._wait = turn_of(sock.hub).wait_for
        #: Makes the TLS socket; None if it is made.
        self._wrap = wrap
        self._read: Callable[[int], bytes] = _use_closed
        self._write: Callable[[bytes | memoryview], int] = _use_closed
        #: Whether the last read has emptied the buffers, so that another read would return nothing.
        self._dry = True
        #: An error that came after good data. The next read raises it.
        self._failed: OSError | None = None
        #: The rest of the record that OpenSSL has begun to write, and the watcher that finishes it.
        self._unfinished: bytes | memoryview | None = None
        self._watcher: Any = None
        #: Whether OpenSSL must read before it can write: a renegotiation, which only a program's own context allows.
        self._needs_read = False
        self._identity: Mapping[str, Any] = {}
        if wrap is None:
            self._use(sock)

    def _use(self, sock: SSLSocket) -> None:
        """Use a TLS socket from now on."""
        secure: Any = sock
        self._sock = secure
        # Calls of OpenSSL that never wait: the C socket is non-blocking.
        self._read = secure._sslobj.read
        self._write = secure._sslobj.write
        self._identity = self._peer_identity()

    # Addresses and identity

    @property
    def local_address(self) -> str:
        return format_address(self._scheme, self._names[0])

    @property
    def peer_address(self) -> str:
        return format_address(self._scheme, self._names[1])

    @property
    def peer_host(self) -> str:
        return host_of(self._names[1])

    @property
    def identity(self) -> Mapping[str, Any]:
        """The peer's ``certificate`` in the form of ``ssl.SSLSocket.getpeercert()``, ``tls_version`` and ``cipher``.

        The certificate is None if the peer has sent none, and empty if it was not verified.
        """
        return self._identity

    def _peer_identity(self) -> Mapping[str, Any]:
        """Return the identity, empty before the handshake. Stored, because a closed socket has none."""
        sock = self._sock
        version = sock.version()
        if version is None:
            return {}
        return {"certificate": sock.getpeercert(), "tls_version": version, "cipher": sock.cipher()[0]}

    # The handshake

    def wait_for_hello(self) -> None:
        if self._wrap is None:
            return
        try:
            if self._sock.closed:
                raise _closed()
            self._wait(self._sock._read_event)
        except OSError as error:
            raise explain(error, self.peer_address) from error

    def handshake(self) -> None:
        """Do the handshake of this side. Blocks; the caller limits the time.

        Raises:
            TLSError: the handshake failed; the class says why.
        """
        try:
            if self._sock.closed:
                raise _closed()
            if self._wrap is not None:
                wrap, self._wrap = self._wrap, None
                self._use(wrap(self._sock))
            try:
                self._sock.do_handshake()
            except AttributeError:
                # gevent uses what is None since another greenlet has closed the socket.
                if self._sock.closed:
                    raise _closed() from None
                raise
        except OSError as error:
            raise explain(error, self._address or self.peer_address, self._sock if self._address else None) from error
        self._identity = self._peer_identity()

    # Sending

    def send(self, data: bytes | memoryview, /) -> int:
        if self._unfinished is not None and not self._finish():
            raise BlockingIOError(errno.EAGAIN, "the TLS connection takes no data now")
        taken = 0
        record = data
        try:
            if len(data) <= _RECORD:
                return self._write(data)
            view = memoryview(data)
            while taken < len(view):
                record = view[taken : taken + _RECORD]
                taken += self._write(record)
            return taken
        except ssl.SSLWantWriteError:
            self._finish_later(record)
        except ssl.SSLWantReadError:
            self._needs_read = True
            self._finish_later(record)
        except ssl.SSLError as error:
            raise self._broken(error) from error
        return taken + len(record)

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        # Only the first record is joined. The rest of a large content after a header is not copied.
        last = memoryview(buffers[-1])
        space = _RECORD - sum(map(len, buffers[:-1]))
        if not 0 < space < len(last):
            return self.send(b"".join(buffers))
        taken = self.send(b"".join((*buffers[:-1], last[:space])))
        if taken == _RECORD and self._unfinished is None:
            taken += self.send(last[space:])
        return taken

    def _finish_later(self, record: bytes | memoryview) -> None:
        """Store a record that the kernel has not taken whole, and finish it in the event loop."""
        self._unfinished = record
        if self._watcher is None:
            # The socket's own watcher is for the greenlet that may wait.
            self._watcher = self._sock.hub.loop.io(self._sock.fileno(), 2)
        if not self._needs_read:
            self._watcher.start(self._finish_in_hub)

    def _finish_in_hub(self) -> None:
        try:
            self._finish()
        except OSError:
            # The next send raises it again, and so does the reader.
            self._watcher.stop()

    def _finish(self) -> bool:
        """Continue to write the unfinished record. Return whether all of it is written."""
        try:
            while self._unfinished:
                # Runs once, as Python does not ask OpenSSL for partial writes.
                taken = self._write(self._unfinished)
                self._unfinished = self._unfinished[taken:]
        except ssl.SSLWantWriteError:
            return False
        except ssl.SSLWantReadError:
            # The socket is writable, so the watcher would call this without end.
            self._needs_read = True
            self._watcher.stop()
            return False
        except ssl.SSLError as error:
            raise self._broken(error) from error
        self._unfinished = None
        self._watcher.stop()
        return True

    def _broken(self, error: ssl.SSLError) -> OSError:
        """Return the error for a failed write. Its text becomes the reason of the pipe."""
        if isinstance(error, ssl.SSLEOFError) and (lost := broken_by(self._sock)) is not None:
            return lost
        return ConnectionError(explain(error, self.peer_address).why)

    def wait_writable(self) -> None:
        sock = self._sock
        while True:
            if sock.closed:
                raise _closed()
            if self._needs_read:
                sleep(_NEEDS_READ_PAUSE)
                continue
            if self._wait(sock._write_event) and sock.closed:
                raise _closed()
            if self._unfinished is None or self._finish():
                return

    def unacknowledged(self) -> int:
        return unacknowledged(self._sock) + (len(self._unfinished) if self._unfinished is not None else 0)

    def vanished(self) -> float:
        return vanished(self._sock)

    # Receiving

    def recv(self, size: int, /) -> bytes:
        # OpenSSL reads one record at a time: read also those that have arrived behind the first one.
        records = [self._recv_record(size)]
        while records[-1] and (size := size - len(records[-1])) > 0:
            try:
                records.append(self._read(min(size, _RECORD)))
            except ssl.SSLWantReadError:
                self._dry = True
                break
            except ssl.SSLWantWriteError:
                # The next call waits for that.
                break
            except OSError as error:
                self._failed = error
                break
        return b"".join(records)

    def _recv_record(self, size: int) -> bytes:
        """Block until there is a record, and return its content, but at most ``size`` bytes of it."""
        try:
            while True:
                if self._failed is not None:
                    raise self._failed
                if self._dry:
                    self._wait_readable()
                try:
                    # Asking for more than a record would only allocate memory.
                    data = self._read(size if size < _RECORD else _RECORD)
                except ssl.SSLWantReadError:
                    self._dry = True
                except ssl.SSLWantWriteError:
                    sleep(_NEEDS_READ_PAUSE)
                else:
                    # OpenSSL may have more data, of this record or the next one, that the kernel no longer has.
                    self._dry = False
                    return data
        except ssl.SSLEOFError as error:
            # Python 3.10 to 3.12 make this also of a failed system call, and lose its error.
            self._failed = broken_by(self._sock) or error
            if self._failed is error:
                return b""
            raise self._failed from error
        except ssl.SSLError as error:
            raise explain(error, self.peer_address) from error

    def _wait_readable(self) -> None:
        if self._sock.closed:
            raise _closed()
        if self._needs_read:
            # All that OpenSSL needed has been read.
            self._needs_read = False
            if self._unfinished is not None:
                self._watcher.start(self._finish_in_hub)
        self._wait(self._sock._read_event)

    # The end

    def close(self) -> None:
        sock = self._sock
        if sock.closed:
            return
        unfinished = self._unfinished
        wrapped = self._wrap is None
        self._free()
        if wrapped and unfinished is None:
            # Sends the close message if the kernel takes it at once, and does not wait for the peer's.
            try:
                sock._sslobj.shutdown()
            except OSError:
                pass
        self._release()

    def hung_up(self, may_half_close: bool = True) -> bool:
        # TLS ends in both directions at once.
        return has_hung_up(self._sock, may_half_close=False)

    def _release(self) -> None:
        """Close the socket, after TLS has closed."""
        self._sock.close()

    def abandon(self) -> None:
        stop_abandoned(self._watcher)
        self._watcher = None
        self._free()
        abandon_socket(self._sock)

    def _free(self) -> None:
        """Drop the references to OpenSSL's objects: they are large, and a program may keep closed pipes for long."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        self._watcher = self._unfinished = self._wrap = None
        self._read = self._write = _use_closed


def _closed() -> OSError:
    return OSError(errno.EBADF, "the connection was closed")


def _use_closed(_: object) -> Any:
    raise _closed()


class TLSDialer(TCPDialer):
    """Connects to one host and port with TLS."""

    __slots__ = ("_scheme", "_side")

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._scheme = address.scheme
        self._side = ClientSide(address, self._host, options)

    def connect(self) -> Connection:
        return self.connect_tls()

    def connect_tls(self) -> TLSConnection:
        """Return a connection after its handshake. Blocks; the caller limits the time.

        Raises:
            ConnectionFailed: nothing is left open. A TLSError says what is wrong with the peer.
        """
        return self.secure(self.connect_socket())

    def secure(self, sock: gsocket.socket) -> TLSConnection:
        """Return a connection after its handshake over a connected socket. Blocks; the caller limits the time.

        Raises:
            TLSError: what is wrong with the peer. The socket is closed.
        """
        try:
            connection = TLSConnection(self._side.wrap(sock), self._scheme, self._address)
        except OSError as error:
            raise explain(error, self._address) from error
        self._abandon = connection.abandon
        try:
            connection.handshake()
        except BaseException:
            # For example the time is up, or the dialer was closed.
            connection.close()
            raise
        finally:
            self._abandon = None
        return connection


class TLSListener(TCPListener):
    """Listens at one host and port for peers with TLS."""

    __slots__ = ("_side",)

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._side = ServerSide(options)

    def accept(self) -> Connection:
        return self.accept_tls()

    def accept_tls(self) -> TLSConnection:
        """Block until a peer connects, and return the connection before its handshake."""
        return TLSConnection(self.accept_socket(), self._scheme, wrap=self._side.wrap)


class TLSTransport(Transport):
    """The tls+tcp transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("tls+tcp", "tls")

    def families(self, scheme: str) -> tuple[str, ...]:
        return ("transport.tcp", "transport.tls")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TLSDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return TLSListener(address, options)


TRANSPORT = TLSTransport()
