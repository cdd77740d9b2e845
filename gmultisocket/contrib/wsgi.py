"""WebSocket pipes inside a WSGI server: gevent.pywsgi, or gunicorn with gevent workers.

:func:`mount` returns a WSGI application. Requests for a WebSocket at one path become pipes of a Socket, all others go
to another application. Browsers get the client, ``gmultisocket.js``, below the path::

    sock = Socket()
    application = mount(sock, "/ws", app)

The request's greenlet reads from the pipe, so the server counts the pipe among its connections and ends it with them.
This cannot work on gunicorn's sync and gthread workers, and on other servers without gevent: there such requests are
answered with 501 and the reason. A Socket belongs to one process. If the application is loaded before the fork
(``--preload``), give :func:`mount` a function that makes the Socket; it is called at the first request.

All differences between servers are in ``servers.py``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

from gevent.lock import Semaphore
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from .. import options as opts
from ..core.connecting.listener import Listener
from ..core.socket import Socket
from ..errors import Closed, HandshakeFailed, PipeRefused, RequestRefused, WrongThread
from ..log import Logger, get_logger
from ..loop.apart import call_apart
from ..options import OptionValues, is_header
from ..transport.ws import WSListener
from ..transport.wsconnection import AcceptedWS, refusal_for
from ..transport.wshandshake import client_path, refusal, replace_host, split_target
from .servers import NO_GEVENT, Environ, StartResponse, Upgrade

__all__ = ["Application", "Mount", "mount", "mounts", "path_of", "read_request", "refuse"]

logger = get_logger("gmultisocket.contrib.wsgi", at_once=True)

#: The characters of a path that are not percent-encoded, beside letters and digits (RFC 3986, section 3.3).
_PLAIN_IN_PATHS = "/!$&'()*+,;=:@-._~"


class HasSocket(Protocol):
    """A protocol: ``gmultisocket.protocol.ProtocolBase``."""

    @property
    def socket(self) -> Socket:
        """The Socket underneath."""


Mountable = Socket | HasSocket
#: A WSGI application.
Application = Callable[[Any, Any], Iterable[bytes]]


class Mount:
    """A WSGI application whose WebSocket requests become pipes; made by :func:`mount`."""

    def __init__(
        self,
        sock: Mountable | Callable[[], Mountable],
        path: str = "/ws",
        app: Application | None = None,
        options: OptionValues | None = None,
    ) -> None:
        if not path.startswith("/") or "?" in path:
            raise ValueError(f"a path starts with a slash and has no query, like /ws: not {path!r}")
        # A wrong option raises now, and not when the first peer comes.
        checked = opts.ListenerOptions(options)
        self._options = checked.own() | {opts.transport.ws.listener.external_listen.name: True}
        self._make = sock if callable(sock) else None
        #: The Socket or protocol that was given or made, and the Socket in it.
        self._mounted: Mountable | None = None
        self._sock: Socket | None = None
        if not callable(sock):
            self._take(sock)
        # A WSGI server percent-decodes the path of a request, and gives each byte as a character.
        raw = unquote_to_bytes(path)
        self._path = raw.decode("latin-1")
        self._client_path = client_path(self._path, checked)
        self._address = f"ws://wsgi{quote(raw, _PLAIN_IN_PATHS)}"
        self._app = app
        self._listener: Listener | None = None
        #: Held while the Socket is made: the function may block, and a second request may come meanwhile.
        self._making = Semaphore()
        self._stopped = False
        _mounts.add(self)

    @property
    def listener(self) -> Listener | None:
        """The Socket's listener that the pipes belong to; None before the first request for a WebSocket."""
        return self._listener

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request. For a WebSocket, blocks until its pipe has closed."""
        try:
            if "websocket" in environ.get("HTTP_UPGRADE", "").lower() and path_of(environ) == self._path:
                return self._upgrade(environ, start_response)
            if self._client_path and environ.get("PATH_INFO") == self._client_path:
                return _serve_client(environ, start_response)
            if self._app is None:
                raise RequestRefused(HTTPStatus.NOT_FOUND)
        except RequestRefused as error:
            if error.why == NO_GEVENT:
                # Browsers show the answer to nobody. gunicorn's own error log: nobody may have configured another one.
                log = get_logger("gunicorn.error", at_once=True) if "gunicorn.socket" in environ else logger
                _warn_once(log, f"a request for a WebSocket got a 501: {NO_GEVENT}")
            return refuse(start_response, error)
        return self._app(environ, start_response)

    def stop(self, reason: str = "it is stopping") -> None:
        """Refuse further requests for a WebSocket, and close the pipes: their peers receive 1001, going away.

        Never blocks. The Socket stays open. May be repeated.
        """
        self._stopped = True
        if self._listener is not None and self._sock is not None:
            self._listener.close()
            for pipe in list(self._sock.pipes.values()):
                if pipe.endpoint is self._listener:
                    pipe.close(Closed("server", reason))

    def _take(self, mounted: Mountable) -> None:
        self._mounted = mounted
        self._sock = mounted if isinstance(mounted, Socket) else mounted.socket

    # Requests for a WebSocket

    def _upgrade(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request for a WebSocket. Blocks until the pipe has closed.

        Raises:
            RequestRefused: the request is refused, and was not answered yet.
        """
        _check(environ)
        upgrade = Upgrade(environ, start_response)
        try:
            self._serve(environ, upgrade)
        finally:
            upgrade.stream.close()
        return upgrade.result()

    def _serve(self, environ: Environ, upgrade: Upgrade) -> None:
        """Make a pipe of the request's connection. Blocks until the pipe has closed."""
        if upgrade.in_gunicorn:
            _warn_without_hooks()
        listener = self._listen()
        try:
            # No local variable here keeps what only the handshake needs: this frame lives as long as the pipe.
            listener.serve(self._connection(listener, environ, upgrade))
        except (Closed, HandshakeFailed, PipeRefused) as error:
            if upgrade.accepted:
                # By a negotiator, or as transport.ws.listener.refuse_with says: the peer was told by a close frame.
                logger.debug("a peer was refused: %s", error)
            elif isinstance(error, RequestRefused):
                raise
            else:
                raise refusal_for(error) from error
        except OSError as error:
            if not upgrade.accepted:
                raise
            logger.debug("a peer closed its connection before it had its answer: %s", error)

    def _connection(self, listener: Listener, environ: Environ, upgrade: Upgrade) -> AcceptedWS:
        def respond(response: Response) -> None:
            if self._stopped:
                # stop() was called while the authorize function ran.
                raise refusal_for(None)
            upgrade.accept(response)

        transport = listener.transport
        assert isinstance(transport, WSListener)
        request, early = read_request(environ), upgrade.early
        return transport.connection(
            upgrade.stream, request, early, secure=upgrade.secure, respond=respond, environ=environ
        )

    def _listen(self) -> Listener:
        """Return the listener. The first call makes it; other errors of the Socket are for the server to log.

        Raises:
            RequestRefused: this application is stopping, or the Socket is closed or belongs to another thread.
        """
        with self._making:
            if self._sock is None:
                assert self._make is not None
                self._take(call_apart(self._make))
            if self._stopped:
                raise refusal_for(None)
            try:
                assert self._sock is not None
                if self._listener is None:
                    self._listener = self._sock.listen(self._address, self._options)
            except Closed as error:
                raise refusal_for(None) from error
            except WrongThread as error:
                raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, NO_GEVENT) from error
            return self._listener


def _check(environ: Environ) -> None:
    """Check those parts of a request that our own listeners check in its head, and that a WSGI server has parsed.

    Raises:
        RequestRefused: the request cannot be one for a WebSocket.
    """
    if environ.get("REQUEST_METHOD") != "GET":
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is allowed", {"Allow": "GET"})
    if environ.get("SERVER_PROTOCOL", "HTTP/1.1") != "HTTP/1.1":
        raise RequestRefused(HTTPStatus.UPGRADE_REQUIRED, "only HTTP/1.1 is upgraded")
    # Some programs send a Content-Length of 0.
    if environ.get("CONTENT_LENGTH") not in (None, "", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the request has a body")


def path_of(environ: Environ) -> str:
    """Return the path of a request, as in ``PATH_INFO``. Some servers put a whole URL there, if that was the target."""
    path: str = environ.get("PATH_INFO", "")
    return path if path.startswith("/") else split_target(path or "/")[0]


def read_request(environ: Environ) -> Request:
    """Return the request that a WSGI server has parsed.

    Raises:
        RequestRefused: a header contains a control character, which not every server refuses.
    """
    headers = Headers()
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = key[5:].replace("_", "-").title()
            if not is_header(name, value):
                raise RequestRefused(HTTPStatus.BAD_REQUEST, "a header contains a character that is not allowed")
            headers[name] = value
    if "," in headers.get("Host", ","):
        # There is none, or the server has joined several to one.
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "there must be exactly one Host header")
    # RAW_URI is gunicorn's: its PATH_INFO is always a path.
    for target in (environ.get("PATH_INFO") or "/", environ.get("RAW_URI") or "/"):
        replace_host(headers, split_target(target)[1])
    query = environ.get("QUERY_STRING", "")
    path = quote(path_of(environ).encode("latin-1"), _PLAIN_IN_PATHS)
    return Request(f"{path}?{query}" if query else path, headers)


def _serve_client(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer a request for the client for browsers.

    Raises:
        RequestRefused: it is neither GET nor HEAD.
    """
    from .. import browser

    method = environ.get("REQUEST_METHOD", "")
    if method not in ("GET", "HEAD"):
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are allowed", {"Allow": "GET, HEAD"})
    tag, encodings = environ.get("HTTP_IF_NONE_MATCH", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
    status, headers, body = browser.answer(method, tag, encodings)
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]


def refuse(start_response: StartResponse, error: RequestRefused) -> list[bytes]:
    """Answer a request with a refusal, as a WSGI application."""
    response = refusal(error)
    # The server decides whether the connection stays open.
    headers = [(name, value) for name, value in response.headers.raw_items() if name != "Connection"]
    start_response(f"{response.status_code} {response.reason_phrase}", headers)
    return [bytes(response.body)]


#: Whether gunicorn's worker stops the mounts of this process. Set by the hooks in ``gunicorn.py``.
worker_stops_mounts = False
#: The warnings that this process has logged.
_warned: set[str] = set()


def _warn_once(log: Logger, text: str) -> None:
    """Log a warning, once per process."""
    if text not in _warned:
        _warned.add(text)
        log.warning(text)


def _warn_without_hooks() -> None:
    """Warn if gunicorn's worker does not stop the mounts."""
    if worker_stops_mounts:
        return
    _warn_once(
        get_logger("gunicorn.error"),
        "gunicorn runs without the hooks of gmultisocket: when a worker stops, its WebSockets get no close frame, and "
        "gunicorn kills the worker after graceful_timeout. Add this line to gunicorn's configuration file: "
        "from gmultisocket.contrib.gunicorn import post_worker_init, worker_int",
    )


#: All mounts that are in use.
_mounts: weakref.WeakSet[Mount] = weakref.WeakSet()


def mounts() -> list[Mount]:
    """Return the applications that :func:`mount` has made in this process."""
    return list(_mounts)


def mount(
    sock: Mountable | Callable[[], Mountable],
    path: str = "/ws",
    app: Application | None = None,
    options: OptionValues | None = None,
) -> Mount:
    """Return a WSGI application that makes pipes of the WebSocket requests to a path.

    Nothing runs before the first such request.

    Args:
        sock: what gets the pipes: a Socket, or a protocol such as a Pub or a Session; or a function that makes it and
            is called at the first request.
        path: the path, as in a URL: characters outside of ASCII may be percent-encoded or not. A server that mounts
            the application itself below a path takes that path off.
        app: serves all other requests; without one they are answered with 404.
        options: for the pipes and their listener, such as ``transport.ws.listener.authorize``.

    Raises:
        OptionError: an option is wrong.
        ValueError: the path does not start with a slash, or has a query.
    """
    return Mount(sock, path, app, options)
