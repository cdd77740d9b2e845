"""Listeners: make pipes of the peers that connect to one address.

One greenlet accepts. A connection that needs a handshake (TLS, WebSocket, a negotiator) has it in a greenlet of its
own, with a time limit and a bounded number at a time, so that a slow or hostile peer holds up nobody. While the pipe
limit is reached nothing is accepted: peers wait in the kernel's backlog instead of being let in and thrown out,
unless ``connector.listener.over_limit`` says otherwise.

Source: the Go code's connector/listener.go.
"""

from __future__ import annotations

import errno
import logging
from enum import Enum
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from .. import options as opts
from ..address import Address
from ..errors import Closed, HandshakeFailed, MultiSocketError, PipeRefused
from ..loop.owner import check_thread
from ..options import Options
from ..transport import Connection, TransportListener
from .bytespipe import BytesPipe
from .endpoint import Endpoint
from .pipe import Pipe

if TYPE_CHECKING:
    from .connector import Connector

__all__ = ["Listener", "ListenerState"]

logger = logging.getLogger("gmultisocket.listener")

#: As many connections are accepted before others get their turn, however many wait.
_MOST_AT_ONCE = 16

#: Errors of accept() that came with one connection and are gone with it. After any other there is no use in trying
#: again at once: descriptors or memory have run out, or the listening socket is of no use any more.
_WITH_CONNECTION = {
    errno.ECONNABORTED, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENONET, errno.ENOPROTOOPT, errno.ENOTCONN, errno.EOPNOTSUPP, errno.EPIPE, errno.EPROTO, errno.ETIMEDOUT,
}  # fmt: skip
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0
_LOG_INTERVAL = 60.0

#: A handshake that has taken so long, in seconds, is ended when another one needs its place: peers that connect and say
#: nothing must not keep others out until their time is up. It is time for three round trips around the world.
_PATIENCE = 1.0


class ListenerState(Enum):
    """Where a listener stands."""

    NEW = "new"
    LISTENING = "listening"
    CLOSED = "closed"


_MOVES = {
    ListenerState.NEW: {ListenerState.LISTENING, ListenerState.CLOSED},
    ListenerState.LISTENING: {ListenerState.CLOSED},
    ListenerState.CLOSED: frozenset[ListenerState](),
}


class Listener(Endpoint):
    """Listens at one address.

    Attributes:
        state: where it stands.
        accepted: how many connections were taken.
        refused: how many of those did not become pipes.
    """

    dials = False

    def __init__(self, connector: Connector, address: Address, options: Options, transport: TransportListener) -> None:
        super().__init__(connector, address, options)
        self._transport = transport
        self.state = ListenerState.NEW
        self.accepted = 0
        self.refused = 0
        self._greenlet: Greenlet[..., Any] | None = None
        #: The connections in their handshake, those that began it first in front, and when they did.
        self._handshakes: dict[Greenlet[..., Any], tuple[Connection, float]] = {}
        self._places = BoundedSemaphore(options.get(opts.connector.listener.max_handshaking))
        self._room = Event()
        self._logged_at = -_LOG_INTERVAL

    def __repr__(self) -> str:
        return f"<Listener {self.address} {self.state.value}>"

    @property
    def address(self) -> str:
        """The address that peers can dial; with the real port after port 0."""
        return self._transport.address

    @property
    def transport(self) -> TransportListener:
        """The transport's side of the listener."""
        return self._transport

    @property
    def closed(self) -> bool:
        return self.state is ListenerState.CLOSED

    def _move(self, state: ListenerState) -> bool:
        if state not in _MOVES[self.state]:
            return False
        self.state = state
        return True

    def start(self) -> None:
        """Bind the address and begin to accept. Does not block, except to look a host name up.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
            Closed: the listener was closed while a name was looked up.
        """
        self._transport.listen()
        if not self._move(ListenerState.LISTENING):
            self._transport.close()
            raise Closed("listener")
        self._greenlet = gevent.spawn(self._accept_loop)

    def _accept_loop(self) -> None:
        """Accept until closed (the listener greenlet)."""
        pause = _FIRST_PAUSE
        while not self.closed:
            try:
                if not self._refuses():
                    self._wait_for_room()
                connection = self._transport.accept()
                pause = _FIRST_PAUSE
                self.accepted += 1
                self._take(connection)
                if self.accepted % _MOST_AT_ONCE == 0:
                    gevent.sleep(0)
            except Closed:
                return
            except OSError as error:
                if self.closed:
                    return
                passing = error.errno in _WITH_CONNECTION
                self._log_accept_error(error, passing)
                gevent.sleep(0 if passing else pause)
                if not passing:
                    pause = min(pause * 2, _LONGEST_PAUSE)

    def _refuses(self) -> bool:
        """Return whether a peer over the pipe limit is thrown out."""
        return self.options.get(opts.connector.listener.over_limit) == "refuse"

    def _wait_for_room(self) -> None:
        """Block while the socket has as many pipes as it may."""
        while not self._connector.has_room():
            self._room.clear()
            self._room.wait()

    def _log_accept_error(self, error: OSError, passing: bool) -> None:
        now = monotonic()
        level = logging.DEBUG
        if not passing and now - self._logged_at >= _LOG_INTERVAL:
            self._logged_at = now
            level = logging.ERROR
        logger.log(level, "%s cannot accept a connection: %s", self.address, error)

    def _take(self, connection: Connection) -> None:
        """Make a pipe of a connection, or have a greenlet do so."""
        connector = self._connector
        try:
            # Another listener or a dialer may have taken the last place meanwhile: the peer waits, as in the backlog.
            while not connector.reserve():
                if self._refuses():
                    connector.refused(connection, PipeRefused("the socket has its connector.pipe_limit of pipes"))
                    connection.close()
                    self.refused += 1
                    return
                self._wait_for_room()
        except BaseException:
            connection.close()
            raise
        if not connection.needs_handshake and connector.negotiator is None:
            try:
                connector.add(connector.make_pipe(connection, self))
            finally:
                connector.release()
            return
        try:
            self._take_place()
        except BaseException:
            connection.close()
            connector.release()
            raise
        greenlet = gevent.spawn(self._shake_hands, connection)
        self._handshakes[greenlet] = connection, monotonic()
        # A link, not a finally clause: a greenlet that is killed before it began runs no code of its own.
        greenlet.rawlink(lambda ended: self._shaken(ended, connection))

    def _take_place(self) -> None:
        """Block until one more handshake may begin. Those who dawdle give their place up to those who wait."""
        if self._places.acquire(blocking=False):
            return
        greenlet, (connection, began) = next(iter(self._handshakes.items()))
        if not self._places.acquire(timeout=max(0.0, began + _PATIENCE - monotonic())):
            self._connector.refused(connection, HandshakeFailed(connection.peer_address, "too slow, and others wait"))
            greenlet.kill(block=False)
            self._places.acquire()

    def _shake_hands(self, connection: Connection) -> Pipe | None:
        """Do one connection's handshake and negotiation (a greenlet for each connection that needs it)."""
        try:
            pipe = self._connector.open(connection, self)
        except MultiSocketError as error:
            self._connector.refused(connection, error)
            return None
        self._connector.add(pipe)
        return pipe

    def _shaken(self, greenlet: Greenlet[..., Any], connection: Connection) -> None:
        if not isinstance(greenlet.value, Pipe):
            self.refused += 1
            connection.close()
        self._handshakes.pop(greenlet, None)
        self._places.release()
        self._connector.release()

    def serve(self, connection: Connection) -> None:
        """Make a pipe of a connection that somebody else has accepted, and do its reading in the calling greenlet.

        For servers that want their own greenlet held for as long as the connection is theirs to close. Blocks until the
        pipe has closed.

        Raises:
            Closed: the listener is closed. Here and below the connection is closed as well.
            PipeRefused: the socket has as many pipes as it may, or a negotiator said no.
            HandshakeFailed: the handshake failed.
        """
        connector = self._connector
        try:
            if self.closed:
                raise Closed("listener")
            if not connector.reserve():
                raise PipeRefused("the socket has its connector.pipe_limit of pipes")
            self.accepted += 1
            try:
                pipe = connector.open(connection, self)
                connector.adopt(pipe)
            finally:
                connector.release()
        except BaseException:
            self.refused += 1
            connection.close()
            raise
        assert isinstance(pipe, BytesPipe)
        if not pipe.closed:
            pipe.run()

    def pipe_closed(self, pipe: Pipe, lived: bool) -> None:
        """Nothing to do: peers come by themselves."""

    def limit_changed(self) -> None:
        if self._connector.has_room():
            self._room.set()

    def close(self) -> None:
        """Stop listening. Pipes stay open; connections that are still in their handshake are closed. Never blocks.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._connector.hub)
        if not self._move(ListenerState.CLOSED):
            return
        self._transport.close()
        workers = [self._greenlet, *self._handshakes]
        for greenlet in workers:
            if greenlet is not None and greenlet is not getcurrent():
                greenlet.kill(block=False)
        self._connector.listener_closed(self)

    def join(self) -> None:
        """Block until its greenlets have ended, the caller excepted."""
        for greenlet in [self._greenlet, *self._handshakes]:
            if greenlet is not None and greenlet is not getcurrent():
                greenlet.join()
        self._transport.join()

    def abandon(self) -> None:
        """Let go of everything in a forked child, without switching greenlets."""
        self.state = ListenerState.CLOSED
        self._transport.abandon()
        for connection, _ in self._handshakes.values():
            connection.abandon()
