"""What WSGI servers do otherwise than each other where a request becomes a WebSocket: all of it is here.

WSGI has no word for a connection that stops being HTTP. So an :class:`Upgrade` takes a request's connection from where
its server keeps it, and what the server's parser has read behind the request, and it knows how the server is made to
send the 101 and to leave the connection alone after it:

==========================  =========================  =======================  ======================================
server                      connection                 read ahead               the 101
==========================  =========================  =======================  ======================================
gevent.pywsgi               ``_sock`` below the file   the file's own buffer    ``write(b"")``: what an application
                            in ``wsgi.input``                                   returns is passed over while empty
gunicorn -k gevent          ``gunicorn.socket``        the parser's unreader    ``write(b"")``; before 26.1 past the
                                                                                server, which calls it chunked
gunicorn -k gevent_pywsgi   as pywsgi                  as pywsgi                as pywsgi
others, sync and gthread    none of gevent's           -                        501, with the reason
==========================  =========================  =======================  ======================================

The connection stays the server's: its request greenlet is held until the pipe has closed, so that it counts the
connection, ends it when it stops, and closes it. Nothing here closes one. To close a stream is to shut it down, after
which the server finds its end where it looks for the next request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from gevent import socket as gsocket
from gevent.ssl import SSLSocket
from websockets.http11 import Response

from ..errors import RequestRefused
from ..transport.tcp import TCPConnection, socket_names
from ..transport.tls import TLSConnection

__all__ = ["NO_GEVENT", "Environ", "StartResponse", "Upgrade"]

Environ = Mapping[str, Any]
StartResponse = Callable[..., Any]

NO_GEVENT: Final = (
    "a WebSocket needs a server that runs on gevent: gevent.pywsgi, or gunicorn with -k gevent; "
    "gunicorn's sync and gthread workers do not"
)
#: How much is dropped at a time.
_DROPPED: Final = 1 << 16
#: The first gunicorn that does not add "Transfer-Encoding: chunked" to a 101.
_GUNICORN_KNOWS_101: Final = (26, 1)


class _PlainStream(TCPConnection):
    """A socket that the server closes. To close it here is to end the stream, while that is ours.

    Attributes:
        upgraded: whether it is: from the 101 on, until it has ended.
    """

    __slots__ = ("upgraded",)

    def __init__(self, sock: Any, names: tuple[Any, Any]) -> None:
        super().__init__(sock)
        self._names = names
        self.upgraded = False

    def close(self) -> None:
        if self.upgraded:
            self.upgraded = False
            _end(self._sock, self._raw_recv)


class _SecureStream(TLSConnection):
    """As :class:`_PlainStream`, with TLS."""

    __slots__ = ("upgraded",)

    def __init__(self, sock: Any, names: tuple[Any, Any]) -> None:
        super().__init__(sock)
        self._names = names
        self.upgraded = False

    def close(self) -> None:
        if self.upgraded:
            self.upgraded = False
            super().close()

    def _release(self) -> None:
        # Not the TLS socket's own shutdown: that takes TLS off, and the server still reads from it.
        _end(self._sock._sock, self._sock._sslobj.read)


def _end(sock: Any, read: Callable[[int], bytes]) -> None:
    """Shut a socket down, and drop what nobody has read: the server would take it for the next request.

    What comes from now on the kernel refuses.
    """
    try:
        sock.shutdown(gsocket.SHUT_RDWR)
        while read(_DROPPED):
            pass
    except OSError:
        # The peer was faster.
        pass


class Upgrade:
    """A request that asks for a WebSocket, as its server has it.

    Attributes:
        stream: the request's connection; after the 101 to be closed by whoever has it.
        secure: whether that has TLS.
        early: what the server has read behind the request.
        accepted: whether the 101 was sent, or tried: HTTP is over.

    Raises:
        RequestRefused: the server has no connection to give, or none of gevent's.
    """

    def __init__(self, environ: Environ, start_response: StartResponse) -> None:
        self._environ = environ
        self._start_response = start_response
        self._is_gunicorn = "gunicorn.socket" in environ
        sock, read_ahead = _from_gunicorn(environ) if self._is_gunicorn else _from_pywsgi(environ)
        if not isinstance(sock, gsocket.socket):
            raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, NO_GEVENT)
        self.secure = isinstance(sock, SSLSocket)
        self.stream: _PlainStream | _SecureStream = (_SecureStream if self.secure else _PlainStream)(
            sock, _names(environ, sock)
        )
        self.early = read_ahead()
        self.accepted = False
        self._past_server = False

    def accept(self, response: Response) -> None:
        """Send the 101. Blocks until the kernel has it.

        Raises:
            OSError: the peer has gone.
            RuntimeError: something between the server and this application is in the way.
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
            # Sad, but no reason to fail: a middleware has lost the function.
            self._write_past_server(response)
        else:
            raise RuntimeError("a WSGI middleware has lost the write function of start_response: mount outside of it")

    def _is_old_gunicorn(self) -> bool:
        found = re.search(r"gunicorn/(\d+)\.(\d+)", self._environ.get("SERVER_SOFTWARE", ""))
        return self._is_gunicorn and found is not None and tuple(map(int, found.groups())) < _GUNICORN_KNOWS_101

    def _write_past_server(self, response: Response) -> None:
        self._past_server = True
        self.stream.write_all(response.serialize())
        self.stream.upgraded = True

    def result(self) -> Iterable[bytes]:
        """Return what the server is to be given when all is over.

        Raises:
            StopIteration: gunicorn takes that for "answered already", where the 101 went past it.
        """
        if self._past_server:
            raise StopIteration
        return []


def _names(environ: Environ, sock: Any) -> tuple[Any, Any]:
    """Return the names of both ends. Of the peer the server knows more than the socket, behind a proxy."""
    # A unix socket's name is no host and port.
    local = None if sock.family == gsocket.AF_UNIX else socket_names(sock)[0]
    host = environ.get("REMOTE_ADDR")
    return local, (host, environ.get("REMOTE_PORT", "?")) if host else None


def _from_gunicorn(environ: Environ) -> tuple[Any, Callable[[], bytes]]:
    """Return the connection, None if it cannot be used, and a function that returns what was read ahead."""
    unreader = getattr(getattr(environ.get("wsgi.input"), "reader", None), "unreader", None)
    # The sync worker's may be one of gevent's, where the application has patched: it serves one request at a time all
    # the same, and is killed when that takes long.
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
    """Do as :func:`_from_gunicorn` does."""
    body = environ.get("wsgi.input")
    # The file hides in another object where the server has not seen the upgrade coming: it knows one spelling of it.
    file = getattr(body, "rfile", body)
    sock = getattr(getattr(file, "raw", None), "_sock", None)
    return sock, lambda: _read_ahead_of_pywsgi(file, sock)


def _read_ahead_of_pywsgi(file: Any, sock: Any) -> bytes:
    timeout = sock.gettimeout()
    # peek() reads from the socket where nothing is buffered, and must not wait for it.
    sock.settimeout(0.0)
    try:
        return bytes(file.read1(len(file.peek(1))))
    except OSError:
        return b""
    finally:
        sock.settimeout(timeout)
