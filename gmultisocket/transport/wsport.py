"""Ports at which WebSockets are asked for, each shared by the listeners of several paths.

A port reads requests, and hands each to the listener of its path, in the state before the answer: whether it is
accepted is decided there. So a peer that sends half a request, or nothing, meets the port only.

A listener that listens where another one of the process, of whatever Socket, already does, joins its port.
The first one has decided how the port is made; one that would have it otherwise cannot join, or it could end up less
guarded than it believes.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from http import HTTPStatus
from time import monotonic
from typing import Any, Final, Protocol

import gevent
from gevent import Greenlet, getcurrent
from gevent.hub import Hub
from websockets.http11 import Request

from .. import options as opts
from ..address import Address
from ..errors import AddressInUse, Closed, MultiSocketError, RequestRefused, snippet
from ..options import Options
from .base import Connection, StreamConnection, TransportListener
from .wsconnection import answer_with_refusal
from .wshandshake import parse_request, read_head

__all__ = ["Port", "Route", "join_port"]

logger = logging.getLogger("gmultisocket.ws")

#: As many peers may dawdle over their requests; when there are more, those who do it longest are refused ...
_PATIENCE: Final = 1.0
#: ... but nobody is who is not yet late by this, in seconds. Beyond this number of peers, others wait in the backlog.
_MOST_GUESTS: Final = 1024
#: After so many connections accepted in a row the port lets others run.
_MOST_AT_ONCE: Final = 16
#: How long a refused peer may take to read why, in seconds, before the connection is closed.
_FAREWELL: Final = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
#: How often a port with too many guests looks whether some have gone, in seconds.
_LONGEST_WAIT: Final = 0.05
_LOG_INTERVAL: Final = 10.0

#: The options that decide how a port is made, by its scheme.
_OF_PORTS: Final = {"ws": ("transport.tcp.",), "wss": ("transport.tcp.", "transport.tls.")}


class Route(Protocol):
    """A listener, as its port knows it."""

    @property
    @abstractmethod
    def path(self) -> str:
        """The path whose requests it takes."""

    def hand_over(self, stream: StreamConnection, request: Request, early: bytes) -> None:
        """Take a request; the stream belongs to the route from then on. May block while many wait.

        Raises:
            Closed: it takes no more; the stream was not taken.
        """


class _Guest:
    """A peer whose request has not been handed over yet."""

    __slots__ = ("came", "greenlet", "stream")

    def __init__(self, stream: StreamConnection) -> None:
        self.stream: StreamConnection | None = stream
        self.greenlet: Greenlet[..., Any] | None = None
        self.came = monotonic()


class Port:
    """One port of this thread.

    Args:
        scheme: ws or wss.
        carrier: the tcp or TLS listener below.
        options: of the first listener.

    Attributes:
        routes: the listeners by path.
    """

    def __init__(self, scheme: str, carrier: TransportListener, options: Options) -> None:
        self._scheme = scheme
        self._carrier = carrier
        self._options = options
        self._places: int = options.get(opts.connector.listener.max_handshaking)
        self.routes: dict[str, Route] = {}
        #: Those whose request has not come, who came first in front; and those who wait for their listener.
        self._guests: dict[_Guest, None] = {}
        self._in_line: dict[_Guest, None] = {}
        self._greenlet: Greenlet[..., Any] | None = None
        self._key: Any = None
        self._logged_at = -_LOG_INTERVAL

    @property
    def location(self) -> str:
        """Host and real port."""
        return self._carrier.address.partition("://")[2]

    # Listeners

    def join(self, route: Route, options: Options, address: str) -> None:
        """Take a listener in.

        Raises:
            AddressInUse: another one has the path, or the port is made otherwise.
        """
        if route.path in self.routes:
            raise AddressInUse(address, "another listener has the port and the path")
        for option in opts.describe():
            if option.name.startswith(_OF_PORTS[self._scheme]) and options.get(option) != self._options.get(option):
                raise AddressInUse(address, f"another listener has the port, with another {option.name}")
        self.routes[route.path] = route

    def leave(self, route: Route) -> None:
        """Let go of a listener; the last one closes the port. Never blocks."""
        if self.routes.get(route.path) is route:
            del self.routes[route.path]
            if not self.routes:
                self._close()

    def open(self, hub: Hub) -> None:
        """Bind the port and begin to accept. Blocks while a host name is looked up.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
        """
        self._carrier.listen()
        self._key = hub, self._scheme, self.location
        _ports[self._key] = self
        self._greenlet = gevent.spawn(self._accept_loop)

    def _close(self) -> None:
        _ports.pop(self._key, None)
        self._carrier.close()
        for guest in (*self._guests, *self._in_line):
            # Here, as a greenlet that is killed before it began runs no code of its own.
            if guest.stream is not None:
                guest.stream.close()
        for greenlet in self._greenlets():
            greenlet.kill(block=False)

    def wait_closed(self) -> None:
        """Block until no greenlet works for the port any more, if it was closed; the caller may be one."""
        if not self.routes:
            for greenlet in self._greenlets():
                greenlet.join()

    def _greenlets(self) -> list[Greenlet[..., Any]]:
        """Return those who work for the port, the caller excepted."""
        found = [self._greenlet, *(guest.greenlet for guest in (*self._guests, *self._in_line))]
        return [greenlet for greenlet in found if greenlet is not None and greenlet is not getcurrent()]

    def abandon(self) -> None:
        """Let go of the descriptors in a forked child; switch to nobody."""
        _ports.pop(self._key, None)
        self._carrier.abandon()
        for guest in (*self._guests, *self._in_line):
            if guest.stream is not None:
                guest.stream.abandon()

    # Peers

    def _accept_loop(self) -> None:
        """Accept until closed (the port's greenlet)."""
        pause = _FIRST_PAUSE
        accepted = 0
        while self.routes:
            try:
                connection = self._carrier.accept()
                pause = _FIRST_PAUSE
                self._receive(connection)
                self._make_way()
                accepted += 1
                if accepted % _MOST_AT_ONCE == 0:
                    gevent.sleep(0)
            except Closed:
                return
            except OSError as error:
                if not self.routes:
                    return
                self._note(logging.ERROR, "%s cannot accept a connection: %s", self.location, error)
                gevent.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _make_way(self) -> None:
        """Have the peer that dawdles longest leave, where there are many; wait where there are too many."""
        while len(self._guests) + len(self._in_line) > self._places:
            guest = next(iter(self._guests), None)
            left = _PATIENCE if guest is None else guest.came + _PATIENCE - monotonic()
            if guest is not None and left <= 0:
                self._part_with(guest)
            elif len(self._guests) + len(self._in_line) < _MOST_GUESTS:
                return
            else:
                gevent.sleep(min(left, _LONGEST_WAIT))

    def _part_with(self, guest: _Guest) -> None:
        del self._guests[guest]
        stream, guest.stream = guest.stream, None
        if stream is not None:
            answer_with_refusal(stream, RequestRefused(HTTPStatus.REQUEST_TIMEOUT, "others wait"))
            stream.close()
        if guest.greenlet is not None:
            guest.greenlet.kill(block=False)

    def _receive(self, connection: Connection) -> None:
        assert isinstance(connection, StreamConnection)
        guest = _Guest(connection)
        self._guests[guest] = None
        guest.greenlet = gevent.spawn(self._attend, guest)
        guest.greenlet.rawlink(lambda greenlet: self._gone(guest))

    def _gone(self, guest: _Guest) -> None:
        self._guests.pop(guest, None)
        self._in_line.pop(guest, None)
        if guest.stream is not None:
            guest.stream.close()

    def _attend(self, guest: _Guest) -> None:
        """Read one peer's request and hand it over, or refuse it (a greenlet for each peer)."""
        stream = guest.stream
        assert stream is not None
        try:
            self._serve(guest, stream)
        except RequestRefused as error:
            self._refused(stream, error)
            answer_with_refusal(stream, error)
            _see_off(stream)
        except (MultiSocketError, OSError) as error:
            if guest.stream is not None:
                self._refused(stream, error)

    def _serve(self, guest: _Guest, stream: StreamConnection) -> None:
        seconds = self._options.get(opts.connector.listener.handshake_timeout)
        with gevent.Timeout(seconds, RequestRefused(HTTPStatus.REQUEST_TIMEOUT, f"no request within {seconds} s")):
            if stream.needs_handshake:
                stream.handshake()
            head, early = read_head(stream)
        request = parse_request(head)
        route = self.routes.get(request.path.partition("?")[0])
        if route is None:
            raise RequestRefused(HTTPStatus.NOT_FOUND, "nobody listens at this path")
        if guest not in self._guests:
            # Parted with at this very moment.
            return
        del self._guests[guest]
        self._in_line[guest] = None
        with gevent.Timeout(seconds, RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "too many wait already")):
            route.hand_over(stream, request, early)
            guest.stream = None

    def _refused(self, stream: StreamConnection, error: Exception) -> None:
        if self.routes:
            self._note(logging.WARNING, "refused %s: %s", snippet(stream.peer_address), snippet(str(error), 200))

    def _note(self, level: int, text: str, *args: object) -> None:
        """Log what peers do, at most every few seconds: they must not fill the disk."""
        now = monotonic()
        if now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
        else:
            level = logging.DEBUG
        logger.log(level, text, *args)


def _see_off(stream: StreamConnection) -> None:
    """Drop what a refused peer still sends: closing before it is read would reset the connection, answer and all."""
    try:
        with gevent.Timeout(_FAREWELL, TimeoutError()):
            while stream.recv(1 << 16):
                pass
    except OSError:
        # Its time is up, or it hung up.
        pass


#: The open ports, by the hub that they belong to, what carries them, and host and port.
_ports: dict[tuple[Hub, str, str], Port] = {}


def join_port(
    route: Route, carrier: TransportListener, address: Address, shown: str, options: Options
) -> Port:
    """Have a listener take the requests for its path, at a port that is open or that is opened for it.

    Blocks while a host name is looked up.

    Args:
        route: the listener.
        carrier: a listener of the transport below, not yet listening.
        address: its address, ``ws`` or ``wss`` with host and port only.
        shown: its address, for errors.
        options: of the listener.

    Raises:
        AddressInUse, ConnectionFailed: nothing is left bound.
    """
    hub = gevent.get_hub()
    port = _ports.get((hub, address.scheme, address.location))
    if port is None:
        port = Port(address.scheme, carrier, options)
        port.join(route, options, shown)
        port.open(hub)
    else:
        port.join(route, options, shown)
    return port
