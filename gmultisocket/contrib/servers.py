"""Where WSGI servers differ when a request becomes a WebSocket. All code that depends on the server is here.

WSGI cannot express a connection that stops being HTTP. So an :class:`Upgrade` takes the connection from the place where
the server keeps it, together with the bytes that the server has read behind the request. It also makes the server send
the 101 and leave the connection alone after it:

==========================  =========================  =======================  ======================================
server                      connection                 read ahead               the 101
==========================  =========================  =======================  ======================================
gevent.pywsgi               ``_sock`` below the file   the file's own buffer    ``write(b"")``; the server ignores the
                            in ``wsgi.input``                                   application's result if it is empty
gunicorn -k gevent          ``gunicorn.socket``        the parser's unreader    ``write(b"")``; before 26.1 directly on
                                                                                the socket, as the server would add
                                                                                "Transfer-Encoding: chunked"
gunicorn -k gevent_pywsgi   as pywsgi                  as pywsgi                as pywsgi
others, sync and gthread    none of gevent's           -                        501, with the reason
==========================  =========================  =======================  ======================================

The server still owns the connection: its request greenlet is blocked until the pipe has closed. So the server counts
the connection, ends it when the server stops, and closes it. Nothing here closes a socket. A stream is closed by
shutting it down; the server then reads the end where it expects the next request.
"""

from __future__ import annotations

import logging
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from gevent import socket as gsocket
from gevent.ssl import SSLSocket
from websockets.http11 import Response

from ..errors import RequestRefused
from ..log import ThrottledLog, get_logger
from ..transport.tcp import TCPConnection, socket_names
from ..transport.tls import TLSConnection

__all__ = ["NO_GEVENT", "Environ", "StartResponse", "Upgrade", "peer_name"]

_log = ThrottledLog(get_logger("gmultisocket.contrib.wsgi", at_once=True), 60.0)

Environ = Mapping[str, Any]
StartResponse = Callable[..., Any]

NO_GEVENT: Final = (
    "a WebSocket needs a server that runs on gevent: gevent.pywsgi, or gunicorn with -k gevent; "
    "gunicorn's sync and gthread workers do not"
)
_BLOCKING_TLS: Final = (
    "the server's TLS context is one of the standard library, which stops the whole process at each handshake: "
    "use gevent.ssl.SSLContext; ssl.create_default_context() and gevent.ssl.create_default_context() make no such one"
)
#: How many bytes are read at a time when they are only dropped.
_READ_SIZE: Final = 1 << 16
#: The first gunicorn that does not add "Transfer-Encoding: chunked" to a 101.
_GUNICORN_WITH_PLAIN_101: Final = (26, 1)


class _ServerStream:
    """What the two kinds of stream share: the server closes the socket, so ``close`` only ends the stream.

    Attributes:
        upgraded: whether ``close`` has a stream to end: True from the 101 until then.
    """

    # The classes below have the slots, because Python cannot join two bases that both have some. Not written as ():
    # with that mypy would refuse to assign the attributes here.
    __slots__ = tuple()

    upgraded: bool
    _names: tuple[Any, Any]

    def __init__(self, sock: Any, names: tuple[Any, Any]) -> None:
        super().__init__(sock)  # type: ignore[call-arg]  # the next base class is a connection
        self._names = names
        self.upgraded = False

    def close(self) -> None:
        if self.upgraded:
            self.upgraded = False
            self._end()

    def _end(self) -> None:
        raise NotImplementedError


class _PlainStream(_ServerStream, TCPConnection):
    __slots__ = ("upgraded",)

    def _end(self) -> None:
        _shut_down(self._sock, self._raw_recv)


class _SecureStream(_ServerStream, TLSConnection):
    __slots__ = ("upgraded",)

    def _end(self) -> None:
        TLSConnection.close(self)

    def _release(self) -> None:
        # Not by the TLS socket's own shutdown: that removes TLS, and the server still reads from the socket.
        _shut_down(self._sock._sock, self._sock._sslobj.read)


def _shut_down(sock: Any, read: Callable[[int], bytes]) -> None:
    """Shut a socket down, and drop what was received and not read: the server would take it for the next request.

    The kernel refuses what comes later.
    """
    try:
        sock.shutdown(gsocket.SHUT_RDWR)
        while read(_READ_SIZE):
            pass
    except OSError:
        # The connection has ended already.
        pass


class Upgrade:
    """A request for a WebSocket, and its connection.

    Attributes:
        stream: the request's connection. Its user must close it after the 101.
        secure: whether the connection uses TLS.
        early: the bytes that the server has read behind the request.
        accepted: whether :meth:`accept` was called: from then on no HTTP response is possible.
        in_gunicorn: whether the server is a worker of gunicorn, of any kind.

    Raises:
        RequestRefused: the server gives no access to the connection, or its socket is not gevent's.
    """

    # An upgrade lives as long as its pipe.
    __slots__ = (
        "_environ", "_is_gunicorn", "_past_server", "_start_response", "accepted", "early", "in_gunicorn", "secure",
        "stream",
    )  # fmt: skip

    def __init__(self, environ: Environ, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response
        self._is_gunicorn = "gunicorn.socket" in environ
        # The gevent_pywsgi worker has the other name.
        self.in_gunicorn = self._is_gunicorn or "gunicorn.sock" in environ
        sock, read_ahead = _from_gunicorn(environ) if self._is_gunicorn else _from_pywsgi(environ)
        if not isinstance(sock, gsocket.socket):
            if isinstance(sock, ssl.SSLSocket) and not self._is_gunicorn:
                _log.log("tls", logging.ERROR, _BLOCKING_TLS)
                raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, _BLOCKING_TLS)
            raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, NO_GEVENT)
        self.secure = isinstance(sock, SSLSocket)
        kind = _SecureStream if self.secure else _PlainStream
        self.stream: _PlainStream | _SecureStream = kind(sock, _names(environ, sock))
        self.early = read_ahead()
        self.accepted = False
        self._past_server = False

    def accept(self, response: Response) -> None:
        """Send the 101. Blocks until the kernel has taken it.

        Raises:
            OSError: the peer has closed the connection.
            RuntimeError: a middleware between the server and this application has lost the write function.
        """
        self.accepted = True
        if self._is_old_gunicorn():
            self._write_past_server(response)
            return
        headers = [(name, value) for name, value in response.headers.raw_items() if name != "Date"]
        write = self._start_response(f"{response.status_code} {response.reason_phrase}", headers)
        if callable(write):
            write(b"")
            self.stream.upgraded = True
        elif self._is_gunicorn:
            # A middleware has lost the write function. gunicorn works without it.
            self._write_past_server(response)
        else:
            raise RuntimeError("a WSGI middleware has lost the write function of start_response: mount outside of it")

    def _is_old_gunicorn(self) -> bool:
        found = re.search(r"gunicorn/(\d+)\.(\d+)", self._environ.get("SERVER_SOFTWARE", ""))
        return self._is_gunicorn and found is not None and tuple(map(int, found.groups())) < _GUNICORN_WITH_PLAIN_101

    def _write_past_server(self, response: Response) -> None:
        self._past_server = True
        self.stream.write_all(response.serialize())
        self.stream.upgraded = True

    def result(self) -> Iterable[bytes]:
        """Return the application's result for the server, after the pipe has closed.

        Raises:
            StopIteration: the 101 was written past gunicorn, which takes this exception for "answered already".
        """
        if self._past_server:
            raise StopIteration
        return []


def _names(environ: Environ, sock: Any) -> tuple[Any, Any]:
    """Return the names of both ends of a connection."""
    # The name of a unix socket is not a host and a port.
    local = None if sock.family == gsocket.AF_UNIX else socket_names(sock)[0]
    return local, peer_name(environ)


def peer_name(environ: Environ) -> tuple[str, str] | None:
    """Return the name of the peer, if it has one. Behind a proxy the server knows it better than the socket."""
    host = environ.get("REMOTE_ADDR")
    return (host, environ.get("REMOTE_PORT", "?")) if host else None


def _from_gunicorn(environ: Environ) -> tuple[Any, Callable[[], bytes]]:
    """Return the connection, or None if it is unusable, and a function that returns what was read ahead."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    # The sync worker's socket is gevent's if the application has monkey patched. That worker still serves one request
    # at a time, and gunicorn kills it when a request takes long.
    sock = environ["gunicorn.socket"] if environ.get("wsgi.multithread") else None
    return sock, lambda: _read_ahead_of_gunicorn(unreader)


def _read_ahead_of_gunicorn(unreader: Any) -> bytes:
    if unreader is None:
        return b""
    if hasattr(unreader, "take_buffered"):
        return bytes(unreader.take_buffered())
    data: bytes = unreader.buf.getvalue()
    unreader.buf.seek(0)
    unreader.buf.truncate()
    return data


def _from_pywsgi(environ: Environ) -> tuple[Any, Callable[[], bytes]]:
    """Return the same as :func:`_from_gunicorn`."""
    body = environ.get("wsgi.input")
    # The server wraps the file in another object if it did not recognize the upgrade: it knows only one spelling.
    file = getattr(body, "rfile", body)
    sock = getattr(getattr(file, "raw", None), "_sock", None)
    return sock, lambda: _read_ahead_of_pywsgi(file, sock)


def _read_ahead_of_pywsgi(file: Any, sock: Any) -> bytes:
    timeout = sock.gettimeout()
    # peek() reads from the socket if nothing is buffered, and must not wait.
    sock.settimeout(0.0)
    try:
        return bytes(file.read1(len(file.peek(1))))
    except OSError:
        return b""
    finally:
        sock.settimeout(timeout)
