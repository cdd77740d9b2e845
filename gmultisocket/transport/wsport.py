"""Ports that accept WebSocket requests; the listeners of several paths share one port.

A port reads each request and hands it to the listener of its path, which answers it. A peer that sends half a request,
or nothing, therefore never reaches a listener.

A listener joins the open port of another listener with the same host and port, if one of any Socket of its thread has
one. The first listener's options decide how the port is made. A listener with other options cannot join: it could be
less protected than its options say.
"""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from http import HTTPStatus
from time import monotonic
from typing import Any, Final, Protocol

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event
from gevent.hub import Hub
from websockets.http11 import Request

from .. import options as opts
from ..address import Address
from ..errors import AddressInUse, Closed, MultiSocketError, PipeRefused, RequestRefused, snippet
from ..log import ThrottledLog, get_logger
from ..loop.accepting import AcceptLoop
from ..loop.ending import LOG_INTERVAL, Ended, end, survive
from ..loop.yielding import yield_to_loop
from ..options import Options
from .base import Connection, StreamConnection, TransportListener
from .peerlimits import AcceptPace, Admission, PeerLimits
from .wsconnection import answer, answer_with_refusal, refusal_for
from .wshandshake import client_script, health_check, healthy, parse_request, read_head

__all__ = ["Port", "Route", "join_port"]

logger = get_logger("gmultisocket.ws")

#: A peer that has not sent its request after so many seconds is refused when there are more than
#: connector.listener.max_handshaking of them.
_PATIENCE: Final = 1.0
#: The port accepts no more while it has so many pending requests, or connector.listener.max_handshaking if that is
#: larger. Further peers wait in the backlog.
_MAX_PENDING: Final = 1024
#: Seconds between two checks whether a port with too many pending requests may accept again.
_CHECK_INTERVAL: Final = 0.05
#: Seconds that a refused peer has to read the answer before the connection is closed.
_CLOSE_TIMEOUT: Final = 1.0
#: The options that decide how a port is made, by its scheme.
_PORT_OPTIONS: Final = {"ws": ("transport.tcp.",), "wss": ("transport.tcp.", "transport.tls.")}


class Route(Protocol):
    """A listener, as its port sees it."""

    @property
    @abstractmethod
    def path(self) -> str:
        """The path whose requests it takes."""

    @property
    @abstractmethod
    def client_path(self) -> str:
        """The path at which the port serves the client for browsers, "" for none."""

    def hand_over(self, stream: StreamConnection, request: Request, early: bytes) -> None:
        """Take a request; the stream belongs to the route from then on. Blocks while too many requests wait.

        Raises:
            Closed: it takes no more; the stream was not taken.
        """

    def refuse(self, stream: StreamConnection, request: Request, error: RequestRefused) -> bool:
        """Refuse a request that it has not taken. Return False if an HTTP status is to refuse it."""


class PendingRequest:
    """A peer that was accepted and whose request no listener has yet.

    Attributes:
        stream: its connection; None once it belongs to a listener, or is closed.
        greenlet: reads the request.
        began: when it was accepted.
        admission: what it is counted under.
        answered: whether it was sent the only answer, and may read it before the connection closes.
    """

    __slots__ = ("admission", "answered", "began", "greenlet", "stream")

    def __init__(self, stream: StreamConnection) -> None:
        self.stream: StreamConnection | None = stream
        self.greenlet: Greenlet[..., Any] | None = None
        self.admission: Admission | None = None
        self.answered = False
        self.began = monotonic()


class Port:
    """One port of this thread.

    Args:
        scheme: ws or wss.
        listener: the tcp or TLS listener that accepts the connections.
        options: of the first WebSocket listener.

    Attributes:
        routes: the WebSocket listeners by path.
        refused: how many connections were closed before a listener had their request.
    """

    def __init__(self, scheme: str, listener: TransportListener, options: Options) -> None:
        self._scheme = scheme
        self._listener = listener
        self._options = options
        self._max_handshaking: int = options.get(opts.connector.listener.max_handshaking)
        self.routes: dict[str, Route] = {}
        self.refused = 0
        #: Where health checks are answered, by the path of the listener that asks for it.
        self._health_paths: dict[str, str] = {}
        #: Requests that have not arrived in full, the oldest first; and requests that wait for their listener.
        self._reading: dict[PendingRequest, None] = {}
        self._waiting: dict[PendingRequest, None] = {}
        self._accepting = AcceptLoop(listener.accept, self._take, lambda: self.location, self._wait_for_place)
        self._limits = PeerLimits(options)
        self._accept_pace = AcceptPace()
        self._key: Any = None
        self._log = ThrottledLog(logger, LOG_INTERVAL)

    @property
    def location(self) -> str:
        """Host and real port."""
        return self._listener.address.partition("://")[2]

    # Listeners

    def join(self, route: Route, options: Options, address: str) -> None:
        """Add a listener.

        Raises:
            AddressInUse: another one has the path, or the port was made with other options.
        """
        if route.path in self.routes:
            raise AddressInUse(address, "another listener has the port and the path")
        for option in opts.describe():
            if option.name.startswith(_PORT_OPTIONS[self._scheme]) and options.get(option) != self._options.get(option):
                raise AddressInUse(address, f"another listener has the port, with another {option.name}")
        self.routes[route.path] = route
        if health_path := options.get(opts.transport.ws.listener.health_path):
            self._health_paths[route.path] = health_path

    def leave(self, route: Route) -> None:
        """Remove a listener; the last one closes the port. Never blocks."""
        if self.routes.get(route.path) is route:
            del self.routes[route.path]
            self._health_paths.pop(route.path, None)
            if not self.routes:
                self._close()

    def open(self, hub: Hub) -> None:
        """Bind the port and begin to accept. Blocks while a host name is looked up.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
        """
        self._listener.listen()
        self._key = hub, self._scheme, self.location
        _ports[self._key] = self
        self._accepting.start()

    def _close(self) -> None:
        _ports.pop(self._key, None)
        self._listener.close()
        self._accepting.stop()
        pending = self._pending()
        for request in pending:
            # Here, as a greenlet that is killed before it began runs no code.
            if request.stream is not None:
                request.stream.close()
        for request in pending:
            end(request.greenlet)

    def wait_closed(self) -> None:
        """Block until the greenlets of a closed port have ended, except the caller. Return at once if it is open."""
        if not self.routes:
            self._accepting.join()
            for request in self._pending():
                if request.greenlet is not None and request.greenlet is not getcurrent():
                    request.greenlet.join()

    def _pending(self) -> list[PendingRequest]:
        return [*self._reading, *self._waiting]

    def abandon(self) -> None:
        """Drop the descriptors in a forked child, without switching greenlets."""
        _ports.pop(self._key, None)
        self._listener.abandon()
        for request in self._pending():
            if request.stream is not None:
                request.stream.abandon()

    # Peers

    def _wait_for_place(self) -> None:
        """Evict the slowest pending request if there are many; block while there are too many."""
        while len(self._reading) + len(self._waiting) > self._max_handshaking:
            slowest = next(iter(self._reading), None)
            left = _PATIENCE if slowest is None else slowest.began + _PATIENCE - monotonic()
            if slowest is not None and left <= 0:
                self._evict(slowest)
            elif len(self._reading) + len(self._waiting) < _MAX_PENDING:
                break
            else:
                gevent.sleep(min(left, _CHECK_INTERVAL))
        self._accept_pace.wait(self._options)

    def _evict(self, request: PendingRequest) -> None:
        del self._reading[request]
        stream, request.stream = request.stream, None
        if stream is not None:
            if not request.answered:
                self.refused += 1
                answer_with_refusal(stream, RequestRefused(HTTPStatus.REQUEST_TIMEOUT, "others wait"))
            stream.close()
        end(request.greenlet)

    def _take(self, connection: Connection) -> None:
        assert isinstance(connection, StreamConnection)
        self._accept_pace.count()
        request = PendingRequest(connection)
        try:
            request.admission = self._limits.admit(connection.peer_host)
        except PipeRefused as error:
            self._count_refused(connection, error)
            if not connection.needs_handshake:
                answer_with_refusal(connection, refusal_for(error))
            connection.close()
            return
        self._reading[request] = None
        request.greenlet = gevent.spawn(self._serve, request)
        request.greenlet.rawlink(lambda greenlet: self._served(request))

    def _served(self, request: PendingRequest) -> None:
        self._reading.pop(request, None)
        self._waiting.pop(request, None)
        if request.admission is not None:
            # From now on the listener counts the connection.
            request.admission.leave()
        if request.stream is not None:
            request.stream.close()

    def _serve(self, request: PendingRequest) -> None:
        """Read one peer's request and hand it over, or refuse it (a greenlet for each peer)."""
        stream = request.stream
        assert stream is not None
        try:
            self._hand_over(request, stream)
        except RequestRefused as error:
            self._count_refused(stream, error)
            if not request.answered:
                request.answered = True
                answer_with_refusal(stream, error)
            _drain(stream)
        except (MultiSocketError, OSError) as error:
            if request.stream is not None:
                self._count_refused(stream, error)
        except Ended:
            raise
        except BaseException as error:
            self.refused += 1
            peer = snippet(stream.peer_address)
            survive(self._log, "failed", error, "refused %s because of an unexpected error", peer)

    def _hand_over(self, pending: PendingRequest, stream: StreamConnection) -> None:
        seconds = self._options.get(opts.connector.listener.handshake_timeout)
        with gevent.Timeout(seconds, RequestRefused(HTTPStatus.REQUEST_TIMEOUT, f"no request within {seconds} s")):
            if stream.needs_handshake:
                stream.wait_for_hello()
                stream.handshake()
            head, early = read_head(stream)
        if (method := health_check(head, self._health_paths.values())) is not None:
            _answer(pending, stream, healthy(method))
            return
        request = parse_request(head)
        path = request.path.partition("?")[0]
        route = self.routes.get(path)
        if route is None and any(each.client_path == path for each in self.routes.values()):
            _answer(pending, stream, client_script(request))
            return
        if route is None:
            raise RequestRefused(HTTPStatus.NOT_FOUND, "nobody listens at this path")
        if pending not in self._reading:
            # It was evicted at this very moment.
            return
        del self._reading[pending]
        self._waiting[pending] = None
        try:
            with gevent.Timeout(seconds, RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "too many wait already")):
                route.hand_over(stream, request, early)
                pending.stream = None
        except (RequestRefused, Closed) as error:
            refused = error if isinstance(error, RequestRefused) else refusal_for(error)
            pending.answered = route.refuse(stream, request, refused)
            raise refused from None

    def _count_refused(self, stream: StreamConnection, error: Exception) -> None:
        self.refused += 1
        if self.routes:
            peer, why = snippet(stream.peer_address), snippet(str(error), 200)
            # Not with the peer's address.
            kind = snippet(str(getattr(error, "why", error)))
            self._log.log(kind, logging.WARNING, "refused %s: %s", peer, why)


def _answer(pending: PendingRequest, stream: StreamConnection, data: bytes) -> None:
    """Answer a request that is for no listener, and give the peer the time to read that."""
    pending.answered = True
    answer(stream, data)
    _drain(stream)


def _drain(stream: StreamConnection) -> None:
    """Read and drop what a refused peer still sends: closing before that would reset the connection and the answer.

    With plain ws the end of the stream follows the answer, and most peers close at once. With wss it does not: TLS ends
    in both directions at once, and with unread data on this side that would again be a reset. So a peer that waits for
    the end holds its connection for the whole time. That is harmless: the connection counts among those of
    ``connector.listener.max_handshaking``, and leaves when others need its place. The answer says ``Connection: close``
    and how long it is, so a peer need not wait.
    """
    try:
        with gevent.Timeout(_CLOSE_TIMEOUT, TimeoutError()):
            while stream.recv(1 << 16):
                # The next bytes may be there already, and reading them would not wait.
                yield_to_loop()
    except OSError:
        # Its time is up, or it closed the connection.
        pass


#: The open ports by hub, scheme, and host and port.
_ports: dict[tuple[Hub, str, str], Port] = {}
#: By the same: set when a listener has opened its port, or has failed. Looking its host name up may take long.
_opening: dict[tuple[Hub, str, str], Event] = {}
os.register_at_fork(after_in_child=_opening.clear)


def join_port(route: Route, listener: TransportListener, address: Address, shown: str, options: Options) -> Port:
    """Add a WebSocket listener to the open port at an address, or open one for it. Return the port.

    Blocks while a host name is looked up.

    Args:
        route: the WebSocket listener.
        listener: a tcp or TLS listener, not yet listening; used if the port is not open.
        address: its address, ``ws`` or ``wss`` with host and port only.
        shown: the WebSocket listener's address, for errors.
        options: of the WebSocket listener.

    Raises:
        AddressInUse, ConnectionFailed: nothing is left bound.
    """
    hub = gevent.get_hub()
    key = hub, address.scheme, address.location
    while key in _opening:
        # Another listener looks the same name up: perhaps its port will be open then.
        _opening[key].wait()
    port = _ports.get(key)
    if port is not None:
        port.join(route, options, shown)
        return port
    port = Port(address.scheme, listener, options)
    port.join(route, options, shown)
    _opening[key] = opening = Event()
    try:
        port.open(hub)
    finally:
        del _opening[key]
        opening.set()
    return port
