"""The WSGI application: the page and its files, its WebSocket, health checks and metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from http import HTTPStatus
from importlib import resources
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from ... import options as opts
from ... import usercode
from ...core.socket import Socket
from ...errors import RequestRefused, snippet
from ...options import ListenerOptions, OptionValues
from ...transport.tcp import format_address
from ...transport.wshandshake import UpgradeRequest
from ...transport.wshandshake import authorize as call_authorize
from ..reports import reports_in
from ..servers import Environ, StartResponse, peer_name
from ..wsgi import Application, mount, path_of, read_request, refuse
from .samples import PeerNames, Sampler

__all__ = ["Monitor"]

#: By path below the page: the file, and its type.
_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
#: Nothing from elsewhere, and nothing in the page itself: what a peer has put into a name can neither run nor load.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", _POLICY),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)
_TEXT: Final = "text/plain; charset=utf-8"

#: Status, type and body; and further headers.
_Answer = tuple[HTTPStatus, str, bytes] | tuple[HTTPStatus, str, bytes, tuple[str, str]]


class Monitor:
    """A WSGI application that shows what the sockets of a program do.

    ====================  =========================================================
    ``/monitor/``         the page
    ``/monitor/ws``       its WebSocket, with the client for browsers below it
    ``/monitor/metrics``  for Prometheus, if ``prometheus_client`` is there
    ``/monitor/healthz``  200 as long as the process answers
    ``/monitor/readyz``   200 while it should get work, 503 otherwise
    ====================  =========================================================

    It runs where :func:`~gmultisocket.contrib.wsgi.mount` does. It may be made before a fork, and measures only while
    a page is open, and half a minute longer.

    Args:
        path: where it is, as in a URL. "" if a dispatcher takes the path off before it calls this application.
        app: gets all requests for other paths; without one they are answered with 404.
        authorize: called as ``authorize(request)`` for all of it but the health checks; returns and raises what
            ``transport.ws.listener.authorize`` does. None: everybody may see it.
        ready: called without arguments by ``readyz``; returns True, or False, or why not (a str). If it fails, that
            is reported, and means no.
        folder: shared by the workers of a server; the page and the metrics are of all of them. See
            :func:`~gmultisocket.contrib.reports.reports_in`.
        peer_names: called as ``peer_names(pipe)`` for the slowest pipes; returns what to call the peer on the page.
            Identities are personal data: without it the page shows only addresses.
        registry: a ``CollectorRegistry`` for ``metrics``, in place of one with the library's numbers alone.
        options: for the page's WebSocket, such as ``transport.ws.listener.hosts``.

    Raises:
        OptionError: an option is wrong.
        ValueError: the path is wrong.
    """

    def __init__(
        self,
        path: str = "/monitor",
        app: Application | None = None,
        *,
        authorize: Callable[[UpgradeRequest], Any] | None,
        ready: Callable[[], bool | str] | None = None,
        folder: str | os.PathLike[str] | None = None,
        peer_names: PeerNames | None = None,
        registry: Any = None,
        options: OptionValues | None = None,
    ) -> None:
        self._path = unquote_to_bytes(path.rstrip("/")).decode("latin-1")
        self._app = app
        self._ready = ready
        self._folder = folder
        self._registry = registry
        self._options = ListenerOptions(options)
        self._options.set(opts.transport.ws.listener.authorize, authorize)
        self._sampler = Sampler(None if folder is None else reports_in(folder), peer_names)
        self._mount = mount(self._make_socket, f"{path.rstrip('/')}/ws", self._answer, self._options.own())

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request. For the WebSocket of a page, blocks until the page is closed."""
        return self._mount(environ, start_response)

    def stop(self, reason: str = "it is stopping") -> None:
        """Close the WebSockets of the pages, and be ready no more. Never blocks. May be repeated."""
        self._mount.stop(reason)
        self._sampler.close()

    def _make_socket(self) -> Socket:
        return self._sampler.pub().socket

    # Requests

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request that is not for the WebSocket."""
        # Without a path the request is for what this application is mounted at, without a slash behind it.
        path = path_of(environ) if environ.get("PATH_INFO") else ""
        inside = path.removeprefix(self._path)
        if not path.startswith(self._path) or inside[:1] not in ("", "/"):
            if self._app is None:
                return refuse(start_response, RequestRefused(HTTPStatus.NOT_FOUND))
            return self._app(environ, start_response)
        method = environ.get("REQUEST_METHOD")
        try:
            if method not in ("GET", "HEAD"):
                raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD", {"Allow": "GET, HEAD"})
            status, kind, body, *more = self._page(inside, environ)
        except RequestRefused as error:
            return refuse(start_response, error)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), *_HEADERS, *more]
        start_response(f"{status.value} {status.phrase}", headers)
        return [] if method == "HEAD" else [body]

    def _page(self, path: str, environ: Environ) -> _Answer:
        """Return the answer to a request for something below the path.

        Raises:
            RequestRefused: it is refused.
        """
        if path == "/healthz":
            return HTTPStatus.OK, _TEXT, b"ok\n"
        if path == "/readyz":
            why = self._why_not_ready()
            if why is None:
                return HTTPStatus.OK, _TEXT, b"ready\n"
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{why}\n".encode()
        self._authorize(environ)
        if not path:
            # Relative, so it is right below every path to which a server or a proxy maps this.
            name = quote((environ.get("SCRIPT_NAME", "") + self._path).rpartition("/")[2].encode("latin-1"))
            return HTTPStatus.PERMANENT_REDIRECT, _TEXT, b"", ("Location", f"{name}/")
        if path == "/metrics":
            return self._metrics(environ)
        if path not in _FILES:
            raise RequestRefused(HTTPStatus.NOT_FOUND)
        name, kind = _FILES[path]
        return HTTPStatus.OK, kind, resources.files(__package__).joinpath(name).read_bytes()

    def _authorize(self, environ: Environ) -> None:
        request = read_request(environ)
        path, _, query = request.path.partition("?")
        name = peer_name(environ)
        peer = "" if name is None else format_address("", name).removeprefix("://")
        call_authorize(UpgradeRequest(path, query, request.headers, peer, {}, environ), self._options)

    def _why_not_ready(self) -> str | None:
        if self._mount.stopped:
            return "stopping"
        try:
            verdict = True if self._ready is None else self._ready()
        except Exception as error:
            usercode.report("gmultisocket.contrib.monitor", "the ready function failed", error, self)
            verdict = False
        return None if verdict is True else snippet(verdict) if isinstance(verdict, str) else "not ready"

    def _metrics(self, environ: Environ) -> _Answer:
        try:
            from prometheus_client import CollectorRegistry
            from prometheus_client.exposition import choose_encoder
        except ImportError:
            raise RequestRefused(HTTPStatus.NOT_IMPLEMENTED, "install gmultisocket[prometheus]") from None
        if self._registry is None:
            from ..prometheus import Collector

            self._registry = CollectorRegistry()
            self._registry.register(Collector(self._folder))
        encoder, kind = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        return HTTPStatus.OK, kind, encoder(self._registry)
