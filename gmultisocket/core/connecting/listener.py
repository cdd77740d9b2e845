"""Listeners: make pipes of the peers that connect to one address.

One greenlet accepts. A connection that needs a handshake (TLS, WebSocket, a negotiator) has it in its own greenlet; the
waiting room says when, and for how long. It takes a place of ``connector.pipe_limit`` only when its peer is in. While
the limit is reached nothing is accepted: peers wait in the kernel's backlog. With ``connector.listener.over_limit`` set
to ``refuse`` they are accepted and closed instead.

Source: the Go code's connector/listener.go.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any

import gevent
from gevent import Greenlet, getcurrent

from ... import options as opts
from ...address import Address
from ...errors import Closed, HandshakeFailed, MultiSocketError, PipeRefused, snippet
from ...loop.accepting import AcceptLoop
from ...loop.apart import call_apart
from ...loop.ending import Ended, end
from ...loop.owner import check_thread
from ...options import Options
from ...state import StateMachine
from ...transport import Connection, TransportListener
from ...transport.peerlimits import AcceptPace, Admission, PeerLimits
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import Pipe
from .connector import Connector
from .endpoint import Endpoint
from .waitingroom import Visitor, WaitingRoom

__all__ = ["Listener", "ListenerState"]


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
        refused: how many of them did not become pipes. A ws or wss port refuses others before it knows whose they
            are: see ``refused_by_port`` of :attr:`transport`.
    """

    __slots__ = (
        "_accept_pace",
        "_admissions",
        "_connector",
        "_handshakes",
        "_limits",
        "_loop",
        "_room",
        "_transport",
        "accepted",
        "refused",
        "state",
    )

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
        #: The connections in their handshake, by their greenlets.
        self._handshakes: dict[Greenlet[..., Any], Connection] = {}
        self._room = WaitingRoom(connector.hub, options)
        self._limits = PeerLimits(options)
        self._accept_pace = AcceptPace()
        #: What pipes are counted under, if a limit for one peer is set.
        self._admissions: dict[Pipe, Admission] = {}

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
            self._connector.places.wait_below_limit()
        self._room.wait_not_full()
        self._accept_pace.wait(self.options)

    def _take(self, connection: Connection) -> None:
        """Make a pipe of a connection, at once or in a greenlet."""
        self.accepted += 1
        self._accept_pace.count()
        connector = self._connector
        visitor = self._visitor(connection)
        try:
            visitor.admission = self._limits.admit(connection.peer_host)
            if _waits(connection) or connector.maker.negotiator is not None:
                # Another connection may have taken the last place meanwhile: the peer waits, as in the backlog.
                if self._refuses():
                    connector.places.check_below_limit()
                connector.places.wait_below_limit()
                self._start(self._shake_hands, connection, visitor)
            else:
                self._add(connector.maker.open(connection, self, visitor), visitor, connector.add)
        except (PipeRefused, HandshakeFailed) as error:
            connection.turn_away(error)
            connector.refused(connection, error)
            if connection.refusal_unread:
                self._start(self._wait_refusal_read, connection, visitor)
            else:
                self._fail(connection, visitor)
        except BaseException:
            self._fail(connection, visitor)
            raise

    def _visitor(self, connection: Connection, *, waits_at_limit: bool = True) -> Visitor:
        waits = not self._refuses() and waits_at_limit
        return Visitor(connection, self._connector.places, self._room.functions, waits_at_limit=waits)

    def _add(self, pipe: Pipe, visitor: Visitor, add: Callable[[Pipe], object]) -> None:
        """Add the pipe of a connection to the socket, and give back what the connection held until now."""
        if visitor.admission is not None and visitor.admission.counted:
            self._admissions[pipe] = visitor.admission
        try:
            add(pipe)
        except BaseException:
            pipe.close("it could not be added")
            raise
        if pipe.closed:
            # The socket is closing, and has never had it.
            self._pipe_closed(pipe)
        visitor.end()

    def _fail(self, connection: Connection, visitor: Visitor) -> None:
        """Close a connection that becomes no pipe, and give back what it held."""
        self.refused += 1
        connection.close()
        if visitor.admission is not None:
            visitor.admission.leave()
        visitor.end()

    def _start(
        self, work: Callable[[Connection, Visitor], Pipe | None], connection: Connection, visitor: Visitor
    ) -> None:
        """Do what a connection needs in a greenlet of its own. If that returns no pipe, the connection is closed."""
        visitor.room = self._room
        self._room.enter(visitor)
        greenlet = gevent.spawn(work, connection, visitor)
        visitor.evict = partial(self._evict, greenlet, connection)
        self._handshakes[greenlet] = connection
        # A link, not a finally clause: a greenlet that is killed before it began runs no code of its own.
        greenlet.rawlink(lambda ended: self._handshake_ended(ended, connection, visitor))

    def _shake_hands(self, connection: Connection, visitor: Visitor) -> Pipe | None:
        """Do one connection's handshake and negotiation (a greenlet for each connection that needs it)."""
        try:
            pipe = self._connector.maker.open(connection, self, visitor)
            self._add(pipe, visitor, self._connector.add)
            return pipe
        except Ended:
            raise
        except MultiSocketError as error:
            connection.turn_away(error)
            self._connector.refused(connection, error)
            connection.wait_refusal_read()
        except BaseException as error:
            peer = snippet(connection.peer_address)
            self._connector.survive("handshake", error, "refused %s because of an unexpected error", peer)
        return None

    def _wait_refusal_read(self, connection: Connection, visitor: Visitor) -> None:
        """Wait until a refused peer has read the reason or its time is over (a greenlet each). Its visitor counts."""
        connection.wait_refusal_read()

    def _evict(self, greenlet: Greenlet[..., Any], connection: Connection) -> None:
        """Close a connection whose peer is slow."""
        self._connector.refused(connection, HandshakeFailed(connection.peer_address, "too slow, and others wait"))
        end(greenlet)

    def _handshake_ended(self, greenlet: Greenlet[..., Any], connection: Connection, visitor: Visitor) -> None:
        if not isinstance(greenlet.value, Pipe):
            self._fail(connection, visitor)
        self._handshakes.pop(greenlet, None)
        self._room.leave(visitor)

    def serve(self, connection: Connection) -> None:
        """Make a pipe of a connection that somebody else has accepted, and read from it in the calling greenlet.

        For servers whose own greenlet must last as long as the connection. Blocks until the pipe has closed. The
        functions of this side's user run in a greenlet of their own, which ends before that.

        Raises:
            Closed: the listener is closed. After this and the other errors the connection is closed as well.
            PipeRefused: the socket has as many pipes as it may, or a negotiator said no.
            HandshakeFailed: the handshake failed.
        """
        pipe = self._let_in(connection)
        if not pipe.closed:
            pipe._run()

    def _let_in(self, connection: Connection) -> BytesPipe:
        """Return the new pipe of a connection. A function of its own: its locals must not last as long as the pipe."""
        connector = self._connector
        visitor = self._visitor(connection, waits_at_limit=False)
        try:
            if self.closed:
                raise Closed("listener")
            visitor.admission = self._limits.admit(connection.peer_host)
            connector.places.check_below_limit()
            self.accepted += 1
            pipe = call_apart(connector.maker.open, connection, self, visitor)
            self._add(pipe, visitor, connector.adopt)
        except MultiSocketError as error:
            connection.turn_away(error)
            connection.wait_refusal_read()
            self._fail(connection, visitor)
            raise
        except BaseException:
            self._fail(connection, visitor)
            raise
        assert isinstance(pipe, BytesPipe)
        return pipe

    def _pipe_closed(self, pipe: Pipe) -> None:
        """Forget the pipe. Its peer connects again by itself."""
        admission = self._admissions.pop(pipe, None)
        if admission is not None:
            admission.leave()

    def _place_free(self) -> None:
        """Do nothing: connections wait for places themselves."""

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
            end(greenlet)
        self._room.stop()
        self._connector.remove_endpoint(self)

    def _join(self) -> None:
        self._loop.join()
        for greenlet in [*self._handshakes]:
            if greenlet is not getcurrent():
                greenlet.join()
        self._room.join()
        self._transport.join()

    def _abandon(self) -> None:
        self.state = ListenerState.CLOSED
        self._transport.abandon()
        for connection in self._handshakes.values():
            connection.abandon()


def _waits(connection: Connection) -> bool:
    """Return whether the handshake may wait for the peer, or for a function of this side's user."""
    return connection.needs_handshake and (connection.handshake_waits or connection.may_block_to_decide)
