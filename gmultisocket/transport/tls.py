"""tls+tcp: byte streams between hosts that nobody on the way can read or change.

Addresses are those of tcp, with the scheme ``tls+tcp`` or ``tls``. A dialer verifies the listener's certificate, and
that it was issued for the dialed host, unless ``transport.tls.insecure`` is spelled out. A listener needs a
certificate, and with ``transport.tls.cafile`` it requires one of its peers as well (mutual TLS); the pipe then has it
in its identity.

Here is what TLS does on a connection: :class:`TLSConnection`, which wss uses too, and the transport around it.
Certificates, contexts and the names of errors are in ``tlscontext.py``. Of gevent's TLS socket a name is used that is
not in its manual, ``_sslobj``: what reads and writes without waiting. ``stream.py`` has the others.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gevent import sleep
from gevent.ssl import SSLSocket

from ..address import Address
from ..options import Options
from .base import Connection, StreamConnection, Transport, TransportDialer, TransportListener
from .stream import abandon_socket
from .tcp import TCPDialer, TCPListener, format_address, socket_names, unacknowledged
from .tlscontext import ClientSide, ServerSide, explain

__all__ = ["TRANSPORT", "TLSConnection", "TLSDialer", "TLSListener"]

#: The most bytes that one TLS record carries. OpenSSL reads and writes one of them at a time.
_RECORD = 16384

#: How often a side that writes looks whether the other direction has done what TLS wants first (see `_crossed`).
_CROSSED_PAUSE = 0.01


class TLSConnection(StreamConnection):
    """A TLS socket, before or after its handshake.

    OpenSSL finishes what it has begun: a record that was encrypted, and of which the kernel took no more than a part,
    must leave before anything else can, and be given to it again until it has. A pipe may have dropped it by then. So
    the connection keeps such a record, counts it as sent, and has the loop write the rest as soon as the kernel takes
    it; until then it takes nothing more.

    The end of the stream may come with TLS' own goodbye or, from many peers, without; both are an end. Frames say
    how long they are, so that one that an attacker cut off is noticed; a stream that is cut between two is not.

    Args:
        sock: made by ``ClientSide.wrap`` or ``ServerSide.wrap``, or any connected gevent TLS socket; belongs to this
            object from now on.
        scheme: of the addresses.
        address: what was dialed, for errors; "" on the listening side.
    """

    __slots__ = (
        "_address",
        "_begun",
        "_crossed",
        "_dry",
        "_failed",
        "_identity",
        "_names",
        "_read",
        "_scheme",
        "_sock",
        "_wait",
        "_watcher",
        "_write",
    )

    needs_handshake: ClassVar[bool] = True

    def __init__(self, sock: SSLSocket, scheme: str = "tls+tcp", address: str = "") -> None:
        secure: Any = sock
        self._sock = secure
        self._scheme = scheme
        self._address = address
        self._names = socket_names(sock)
        self._wait = secure.hub.wait
        # OpenSSL's own calls, which never wait: the C socket below is non-blocking.
        self._read: Callable[[int], bytes] = secure._sslobj.read
        self._write: Callable[[bytes | memoryview], int] = secure._sslobj.write
        #: Whether the last read took all there was, so that another try would find nothing.
        self._dry = True
        #: An error that was met behind good data, for the next read.
        self._failed: OSError | None = None
        #: What is left of the record that OpenSSL has begun to write, and what finishes it.
        self._begun: bytes | memoryview | None = None
        self._watcher: Any = None
        #: Whether OpenSSL must read before it can write on: a renegotiation, which only other people's contexts allow.
        self._crossed = False
        self._identity: Mapping[str, Any] = self._look_at_peer()

    # Who and where

    @property
    def local_address(self) -> str:
        return format_address(self._scheme, self._names[0])

    @property
    def peer_address(self) -> str:
        return format_address(self._scheme, self._names[1])

    @property
    def identity(self) -> Mapping[str, Any]:
        """The peer's ``certificate`` as ``ssl.SSLSocket.getpeercert()`` has it, ``tls_version`` and ``cipher``.

        The certificate is None where the peer has shown none, and empty where it was not verified.
        """
        return self._identity

    def _look_at_peer(self) -> Mapping[str, Any]:
        """Return the identity, which a closed socket has forgotten; nothing before the handshake."""
        sock = self._sock
        version = sock.version()
        if version is None:
            return {}
        return {"certificate": sock.getpeercert(), "tls_version": version, "cipher": sock.cipher()[0]}

    # The handshake

    def handshake(self) -> None:
        """Do this side's handshake, whichever it is. Blocks; the caller bounds the time.

        Raises:
            TLSError: it failed; the class says why.
        """
        try:
            if self._sock.closed:
                raise _closed()
            self._sock.do_handshake()
        except OSError as error:
            raise explain(error, self._address or self.peer_address, dialing=bool(self._address)) from error
        self._identity = self._look_at_peer()

    # Sending

    def send(self, data: bytes | memoryview, /) -> int:
        if self._begun is not None and not self._finish():
            raise BlockingIOError(errno.EAGAIN, "the TLS connection takes no more for now")
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
            self._begin(record)
        except ssl.SSLWantReadError:
            self._crossed = True
            self._begin(record)
        except ssl.SSLError as error:
            raise self._broken(error) from error
        return taken + len(record)

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        # As much as the first record takes is joined; a large content behind a header is not copied.
        last = memoryview(buffers[-1])
        room = _RECORD - sum(map(len, buffers[:-1]))
        if not 0 < room < len(last):
            return self.send(b"".join(buffers))
        taken = self.send(b"".join((*buffers[:-1], last[:room])))
        if taken == _RECORD and self._begun is None:
            taken += self.send(last[room:])
        return taken

    def _begin(self, record: bytes | memoryview) -> None:
        """Have the loop finish a record that the kernel did not take whole."""
        self._begun = record
        if self._watcher is None:
            # The socket's own watcher is for the greenlet that may wait.
            self._watcher = self._sock.hub.loop.io(self._sock.fileno(), 2)
        if not self._crossed:
            self._watcher.start(self._finish_in_hub)

    def _finish_in_hub(self) -> None:
        try:
            self._finish()
        except OSError:
            # The next send meets it again, and so does the reader.
            self._watcher.stop()

    def _finish(self) -> bool:
        """Write on at the record that was begun. Return whether it is out."""
        try:
            while self._begun:
                # Once, as long as Python does not ask OpenSSL for partial writes.
                taken = self._write(self._begun)
                self._begun = self._begun[taken:]
        except ssl.SSLWantWriteError:
            return False
        except ssl.SSLWantReadError:
            # The socket is writable, and the loop would try for ever.
            self._crossed = True
            self._watcher.stop()
            return False
        except ssl.SSLError as error:
            raise self._broken(error) from error
        self._begun = None
        self._watcher.stop()
        return True

    def _broken(self, error: ssl.SSLError) -> ConnectionError:
        """Return the error for a write that failed, in words for the reason of the pipe."""
        return ConnectionError(explain(error, self.peer_address).why)

    def wait_writable(self) -> None:
        sock = self._sock
        while True:
            if sock.closed:
                raise _closed()
            if self._crossed:
                sleep(_CROSSED_PAUSE)
                continue
            self._wait(sock._write_event)
            if self._begun is None or self._finish():
                return

    def unacknowledged(self) -> int:
        return unacknowledged(self._sock) + (len(self._begun) if self._begun is not None else 0)

    # Receiving

    def recv(self, size: int, /) -> bytes:
        data = self._recv_record(size)
        if len(data) < _RECORD:
            return data
        # A full record comes from a peer that sends much: whatever is there already comes along.
        records = [data]
        size -= len(data)
        while size > 0 and data:
            try:
                data = self._read(min(size, _RECORD))
            except ssl.SSLWantReadError:
                self._dry = True
                break
            except OSError as error:
                self._failed = error
                break
            records.append(data)
            size -= len(data)
        return b"".join(records)

    def _recv_record(self, size: int) -> bytes:
        """Block until there is a record, and return its content or, where that is more than ``size``, a part of it."""
        try:
            while True:
                if self._failed is not None:
                    raise self._failed
                if self._dry:
                    self._wait_readable()
                try:
                    # Asking for more than a record has would only allocate it.
                    data = self._read(size if size < _RECORD else _RECORD)
                except ssl.SSLWantReadError:
                    self._dry = True
                except ssl.SSLWantWriteError:
                    sleep(_CROSSED_PAUSE)
                else:
                    # OpenSSL may have more, of this record or the next, without the kernel knowing of it.
                    self._dry = False
                    return data
        except ssl.SSLEOFError as error:
            self._failed = error
            return b""
        except ssl.SSLError as error:
            raise explain(error, self.peer_address) from error

    def _wait_readable(self) -> None:
        if self._sock.closed:
            raise _closed()
        if self._crossed:
            # What had to be read has been.
            self._crossed = False
            if self._begun is not None:
                self._watcher.start(self._finish_in_hub)
        self._wait(self._sock._read_event)

    # The end

    def close(self) -> None:
        sock = self._sock
        if sock.closed:
            return
        begun = self._begun
        self._drop()
        if begun is None:
            # Says goodbye if the kernel takes it at once, and does not wait for the peer's.
            try:
                sock._sslobj.shutdown()
            except OSError:
                pass
        self._release()

    def _release(self) -> None:
        """Let go of the socket, once TLS is done with it."""
        self._sock.close()

    def abandon(self) -> None:
        self._drop()
        abandon_socket(self._sock)

    def _drop(self) -> None:
        """Let go of what is OpenSSL's: it is large, and people may hold closed pipes for long."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
        self._watcher = self._begun = None
        self._read = self._write = _use_closed


def _closed() -> OSError:
    return OSError(errno.EBADF, "the connection was closed")


def _use_closed(_: object) -> Any:
    raise _closed()


class TLSDialer(TCPDialer):
    """Connects to one host and port, and speaks TLS there."""

    __slots__ = ("_scheme", "_side")

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._scheme = address.scheme
        self._side = ClientSide(address, self._host, options)

    def connect(self) -> Connection:
        return self.connect_tls()

    def connect_tls(self) -> TLSConnection:
        """Return a connection after its handshake. Blocks; the caller bounds the time.

        Raises:
            ConnectionFailed: and nothing is left open. A TLSError says what is wrong with the peer.
        """
        sock = self.connect_socket()
        try:
            connection = TLSConnection(self._side.wrap(sock), self._scheme, self._address)
        except OSError as error:
            raise explain(error, self._address) from error
        self._let_go = connection.abandon
        try:
            connection.handshake()
        except BaseException:
            # The time may be up, or the dialer closed.
            connection.close()
            raise
        finally:
            self._let_go = None
        return connection


class TLSListener(TCPListener):
    """Listens at one host and port for peers that speak TLS."""

    __slots__ = ("_side",)

    def __init__(self, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._side = ServerSide(options)

    def accept(self) -> Connection:
        return self.accept_tls()

    def accept_tls(self) -> TLSConnection:
        """Block until a peer connects, and return the connection before its handshake."""
        return TLSConnection(self._side.wrap(self.accept_socket()), self._scheme)


class TLSTransport(Transport):
    """The tls+tcp transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("tls+tcp", "tls")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TLSDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return TLSListener(address, options)


TRANSPORT = TLSTransport()
