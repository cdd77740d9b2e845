"""Listeners: make pipes of the peers that connect to one address.

One greenlet accepts. A connection that needs a handshake (TLS, WebSocket, a negotiator) has it in its own greenlet,
with a time limit and in a bounded number at a time, so that a slow or hostile peer delays nobody. While the pipe limit
is reached nothing is accepted: peers wait in the kernel's backlog. With ``connector.listener.over_limit`` set to
``refuse`` they are accepted and closed instead.

Source: the Go code's connector/listener.go.
"""

from __future__ import annotations

from enum import Enum
from time import monotonic
from typing import Any, Final

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ... import options as opts
from ...address import Address
from ...errors import Closed, HandshakeFailed, MultiSocketError, PipeRefused
from ...loop.accepting import AcceptLoop
from ...loop.owner import check_thread
from ...options import Options
from ...state import StateMachine
from ...transport import Connection, TransportListener
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import Pipe
from .connector import Connector
from .endpoint import Endpoint

__all__ = ["Listener", "ListenerState"]

#: Seconds. A handshake that has taken longer is cancelled when another one waits for its place: peers that connect and
#: say nothing must not keep others out until their time limit. This is enough for three round trips around the world.
_PATIENCE: Final = 1.0


class ListenerState(Enum):
    """The states of a listener."""

    NEW = "new"
    LISTENING = "listening"
    CLOSED = "closed"


class Listener(StateMachine, Endpoint):
    """Listens at one address.

    Attributes:
        state: a :class:`ListenerState`.
        accepted: how many connections were accepted.
        refused: how many of them did not become pipes.
    """

    dials = False

    _moves = {
        ListenerState.NEW: {ListenerState.LISTENING, ListenerState.CLOSED},
        ListenerState.LISTENING: {ListenerState.CLOSED},
        ListenerState.CLOSED: (),
    }

    def __init__(self, connector: Connector, address: Address, options: Options, transport: TransportListener) -> None:
        super().__init__(address, options, connector.pipes)
        self._connector = connector
        self._transport = transport
        self.state = ListenerState.NEW
        self.accepted = 0
        self.refused = 0
        self._loop = AcceptLoop(transport.accept, self._take, lambda: transport.address, self._wait_before_accept)
        #: The connections in their handshake, the oldest first, and when it began.
        self._handshakes: dict[Greenlet[..., Any], tuple[Connection, float]] = {}
        self._handshake_places = BoundedSemaphore(options.get(opts.connector.listener.max_handshaking))
        self._below_pipe_limit = Event()

    def __repr__(self) -> str:
        return f"<Listener {self.address} {self.state.value}>"

    @property
    def address(self) -> str:
        """The address that peers can dial; with the real port after port 0."""
        return self._transport.address

    @property
    def transport(self) -> TransportListener:
        """The transport's listener."""
        return self._transport

    @property
    def closed(self) -> bool:
        return self.state is ListenerState.CLOSED

    def _listen(self) -> None:
        """Bind the address, and begin to accept. Blocks only to look a host name up.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
            Closed: the listener was closed while a name was looked up.
        """
        self._transport.listen()
        if not self._move(ListenerState.LISTENING):
            self._transport.close()
            raise Closed("listener")
        self._loop.start()

    # Accepting

    def _refuses(self) -> bool:
        """Return whether a peer over the pipe limit is accepted and closed."""
        return self.options.get(opts.connector.listener.over_limit) == "refuse"

    def _wait_before_accept(self) -> None:
        if not self._refuses():
            self._wait_below_limit()

    def _wait_below_limit(self) -> None:
        """Block while the socket has as many pipes as it may have."""
        while not self._connector.places.below_pipe_limit:
            self._below_pipe_limit.clear()
            self._below_pipe_limit.wait()

    def _take(self, connection: Connection) -> None:
        """Make a pipe of a connection, at once or in a greenlet."""
        self.accepted += 1
        connector = self._connector
        try:
            # Another listener or a dialer may have taken the last place meanwhile: the peer waits, as in the backlog.
            while not connector.places.reserve():
                if self._refuses():
                    connector.refused(connection, PipeRefused("the socket has its connector.pipe_limit of pipes"))
                    connection.close()
                    self.refused += 1
                    return
                self._wait_below_limit()
        except BaseException:
            connection.close()
            raise
        if not connection.needs_handshake and connector.maker.negotiator is None:
            try:
                connector.add(connector.maker.make(connection, self))
            finally:
                connector.places.release()
            return
        try:
            self._take_handshake_place()
        except BaseException:
            connection.close()
            connector.places.release()
            raise
        greenlet = gevent.spawn(self._shake_hands, connection)
        self._handshakes[greenlet] = connection, monotonic()
        # A link, not a finally clause: a greenlet that is killed before it began runs no code of its own.
        greenlet.rawlink(lambda ended: self._handshake_ended(ended, connection))

    def _take_handshake_place(self) -> None:
        """Block until one more handshake may begin. A handshake older than ``_PATIENCE`` is cancelled for it."""
        if self._handshake_places.acquire(blocking=False):
            return
        greenlet, (connection, began) = next(iter(self._handshakes.items()))
        if not self._handshake_places.acquire(timeout=max(0.0, began + _PATIENCE - monotonic())):
            self._connector.refused(connection, HandshakeFailed(connection.peer_address, "too slow, and others wait"))
            greenlet.kill(block=False)
            self._handshake_places.acquire()

    def _shake_hands(self, connection: Connection) -> Pipe | None:
        """Do one connection's handshake and negotiation (a greenlet for each connection that needs it)."""
        try:
            pipe = self._connector.maker.open(connection, self)
        except MultiSocketError as error:
            self._connector.refused(connection, error)
            return None
        self._connector.add(pipe)
        return pipe

    def _handshake_ended(self, greenlet: Greenlet[..., Any], connection: Connection) -> None:
        if not isinstance(greenlet.value, Pipe):
            self.refused += 1
            connection.close()
        self._handshakes.pop(greenlet, None)
        self._handshake_places.release()
        self._connector.places.release()

    def serve(self, connection: Connection) -> None:
        """Make a pipe of a connection that somebody else has accepted, and read from it in the calling greenlet.

        For servers whose own greenlet must last as long as the connection. Blocks until the pipe has closed.

        Raises:
            Closed: the listener is closed. After this and the other errors the connection is closed as well.
            PipeRefused: the socket has as many pipes as it may, or a negotiator said no.
            HandshakeFailed: the handshake failed.
        """
        connector = self._connector
        try:
            if self.closed:
                raise Closed("listener")
            if not connector.places.reserve():
                raise PipeRefused("the socket has its connector.pipe_limit of pipes")
            self.accepted += 1
            try:
                pipe = connector.maker.open(connection, self)
                connector.adopt(pipe)
            finally:
                connector.places.release()
        except BaseException:
            self.refused += 1
            connection.close()
            raise
        assert isinstance(pipe, BytesPipe)
        if not pipe.closed:
            pipe._run()

    def _pipe_closed(self, pipe: Pipe) -> None:
        """Do nothing: peers connect again by themselves."""

    def _place_free(self) -> None:
        if self._connector.places.below_pipe_limit:
            self._below_pipe_limit.set()

    # Closing

    def close(self) -> None:
        """Stop listening. Pipes stay open; connections that are still in their handshake are closed. Never blocks.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._connector.hub)
        if not self._move(ListenerState.CLOSED):
            return
        self._transport.close()
        self._loop.stop()
        for greenlet in [*self._handshakes]:
            if greenlet is not getcurrent():
                greenlet.kill(block=False)
        self._connector.remove_endpoint(self)

    def _join(self) -> None:
        self._loop.join()
        for greenlet in [*self._handshakes]:
            if greenlet is not getcurrent():
                greenlet.join()
        self._transport.join()

    def _abandon(self) -> None:
        self.state = ListenerState.CLOSED
        self._transport.abandon()
        for connection, _ in self._handshakes.values():
            connection.abandon()
