"""From a connection to a pipe: connect, handshake, negotiation, and the pipe of the right kind."""

from __future__ import annotations

from gevent import GreenletExit

from ... import options as opts
from ... import usercode
from ...errors import ConnectionFailed, HandshakeFailed, MultiSocketError, PipeRefused
from ...loop.ending import Ended
from ...loop.timelimit import time_limit
from ...options import Options
from ...transport import Connection, MessageConnection, PacketConnection, StreamConnection, TransportDialer
from ...transport.stream import describe_os_error
from ...usercode import LibraryTimeout
from ..pipes.framedpipe import FramedPipe
from ..pipes.ids import next_pipe_id
from ..pipes.inprocpipe import InprocPipe
from ..pipes.packetpipe import PacketPipe, RawPacketPipe
from ..pipes.pipe import Pipe, PipeEndpoint, PipeOwner
from ..pipes.rawpipe import RawPipe
from .entry import Entry
from .negotiation import Negotiation, Negotiator

__all__ = ["PipeMaker"]


class PipeMaker:
    """Makes the pipes of one socket. They are not added to it here.

    Attributes:
        negotiator: decides who may connect; None lets everybody in.
    """

    __slots__ = (
        "_owner",
        "negotiator",
    )

    def __init__(self, owner: PipeOwner) -> None:
        self._owner = owner
        self.negotiator: Negotiator | None = None

    def connect(self, transport: TransportDialer, endpoint: PipeEndpoint, entry: Entry) -> Pipe:
        """Connect, and negotiate. Blocks within the dialer's time limits.

        Raises:
            ConnectionFailed, PipeRefused: nothing is left open.
        """
        seconds = endpoint.options.get(opts.connector.dialer.dial_timeout)
        late = ConnectionFailed(endpoint.address, f"no connection within {seconds} s")
        try:
            with time_limit(seconds, late):
                connection = transport.connect()
        except MultiSocketError as error:
            if error is late and transport.unfinished:
                raise ConnectionFailed(endpoint.address, f"{late.why}: {transport.unfinished}") from None
            raise
        except OSError as error:
            # Transports translate the errors that they expect. None expects that a socket cannot be made at all.
            raise ConnectionFailed(endpoint.address, describe_os_error(error)) from error
        try:
            return self.open(connection, endpoint, entry)
        except BaseException:
            connection.close()
            raise

    def open(self, connection: Connection, endpoint: PipeEndpoint, entry: Entry) -> Pipe:
        """Do the handshake and the negotiation, and return the pipe. Blocks; the peer's time has limits.

        Raises:
            HandshakeFailed, PipeRefused: the caller closes the connection.
        """
        accepted = connection.needs_handshake and not endpoint.dials
        try:
            if accepted:
                self._shake_hands(connection, endpoint.options, entry)
            if self.negotiator is None:
                entry.admit()
            if accepted:
                connection.confirm()
        except OSError as error:
            # The peer closed or reset the connection.
            raise HandshakeFailed(connection.peer_address, describe_os_error(error)) from error
        pipe_id = next_pipe_id()
        if self.negotiator is not None:
            try:
                negotiation = Negotiation(connection, pipe_id, endpoint.dials, entry)
                _negotiate(self.negotiator, negotiation, endpoint, entry)
                entry.admit()
            except MultiSocketError as error:
                _send_close_frame(connection, error)
                raise
        return self.make(connection, endpoint, pipe_id)

    def _shake_hands(self, connection: Connection, options: Options, entry: Entry) -> None:
        where = connection.peer_address
        seconds = options.get(opts.connector.listener.handshake_timeout)
        with entry.peer_time.limit(seconds, HandshakeFailed(where, f"no handshake within {seconds} s")):
            if connection.handshake_waits:
                with entry.peer():
                    connection.wait_for_hello()
                entry.begin()
                with entry.peer():
                    connection.handshake()
            else:
                entry.begin()
                connection.handshake()
        if not connection.may_block_to_decide:
            connection.decide()
            return
        seconds = options.get(opts.connector.pipe.decide_timeout)
        with entry.function(seconds, HandshakeFailed(where, f"no decision within {seconds} s")):
            connection.decide()

    def make(self, connection: Connection, endpoint: PipeEndpoint, pipe_id: int = 0) -> Pipe:
        """Return the pipe for a connection that needs nothing more."""
        pipe_id = pipe_id or next_pipe_id()
        if isinstance(connection, MessageConnection):
            return InprocPipe(pipe_id, connection, self._owner, endpoint)
        raw = endpoint.options.get(opts.connector.pipe.raw)
        if isinstance(connection, PacketConnection):
            if connection.channels is not None:
                # Most programs have no session.
                from ..pipes.channelpipe import CarrierPipe

                return CarrierPipe(pipe_id, connection, self._owner, endpoint)
            return (RawPacketPipe if raw else PacketPipe)(pipe_id, connection, self._owner, endpoint)
        if isinstance(connection, StreamConnection):
            return (RawPipe if raw else FramedPipe)(pipe_id, connection, self._owner, endpoint)
        raise TypeError(f"{type(connection).__name__} is none of the kinds of connection that transports may make")


def _negotiate(negotiator: Negotiator, negotiation: Negotiation, endpoint: PipeEndpoint, entry: Entry) -> None:
    options = endpoint.options
    peer_limit = options.get(opts.connector.pipe.negotiate_timeout)
    own_limit = options.get(opts.connector.pipe.decide_timeout)
    with (
        entry.peer_time.limit(peer_limit, PipeRefused(f"no end to the negotiation within {peer_limit} s")),
        entry.function(own_limit, PipeRefused(f"the negotiator took more than {own_limit} s")),
    ):
        try:
            negotiator(negotiation)
        except (MultiSocketError, LibraryTimeout, Ended):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and not entry.in_own_greenlet:
                # A server stops, or it has a timeout of its own.
                raise
            if isinstance(error, GreenletExit):
                # The library ends this greenlet by Ended: somebody has killed the negotiator.
                raise PipeRefused("the negotiator was killed") from error
            # No caller's timeout runs in this greenlet: any other gevent.Timeout is one that the negotiator did not
            # catch. What has failed is for the log: the reason may reach the peer.
            what, peer = "a negotiator failed", negotiation.peer_address
            usercode.report("gmultisocket.connector", what, error, options, pipe_id=negotiation.pipe_id, peer=peer)
            raise PipeRefused("the negotiator failed") from error


def _send_close_frame(connection: Connection, error: MultiSocketError) -> None:
    """Send a close frame to a refused connection, if its transport has one. Never blocks."""
    if isinstance(connection, PacketConnection):
        try:
            connection.send(connection.codec.goodbye(error))
        except OSError:
            # The peer hung up first.
            pass
