"""The connecting third of a socket: its dialers, its listeners, and the pipes that come of them.

The connector knows every pipe, counts places under ``connector.pipe_limit``, runs negotiations, and closes everything.
Nothing in it blocks while it holds anything that another greenlet needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import gevent
from gevent.hub import Hub

from .. import options as opts
from ..address import Address
from ..counters import Counters
from ..errors import (
    Closed,
    ConnectionFailed,
    ContentTooLong,
    HandshakeFailed,
    MultiSocketError,
    NotSupported,
    PipeRefused,
    Timeout,
    snippet,
)
from ..loop.waiting import Deadline, WaitList
from ..options import Options
from ..transport import Connection, MessageConnection, PacketConnection, StreamConnection, TransportDialer, find
from ..transport.stream import describe_os_error
from ..wire import Message
from .bytespipe import BytesPipe
from .dialer import Dialer
from .endpoint import Endpoint
from .events import PipeEvents, Teller
from .framedpipe import FramedPipe
from .heartbeat import Heartbeat
from .ids import next_pipe_id
from .inprocpipe import InprocPipe
from .listener import Listener
from .negotiation import Negotiation, Negotiator
from .packetpipe import PacketPipe, RawPacketPipe
from .pipe import Pipe, PipeState
from .rawpipe import RawPipe
from .receiver import Receiver
from .sender import Sender

__all__ = ["Connector", "time_limit"]

logger = logging.getLogger("gmultisocket.connector")

#: How long a closed pipe waits for its peer's goodbye, where there is such a thing, in seconds.
_FAREWELL = 1.0
#: A fault of the same kind is logged at most this often, in seconds.
_LOG_INTERVAL = 10.0


@contextmanager
def time_limit(seconds: float, error: MultiSocketError) -> Iterator[gevent.Timeout]:
    """Raise an error if the body takes longer; other people's ``gevent.Timeout`` passes through."""
    timeout = gevent.Timeout.start_new(seconds)
    try:
        yield timeout
    except gevent.Timeout as expired:
        if expired is timeout:
            raise error from None
        raise
    finally:
        timeout.close()


class Connector:
    """Connects one socket.

    Attributes:
        pipes: the open pipes by id.
        pipe_limit: as many pipes as there may be, -1 for any number.
        dials: whether dialers dial again: False once the socket has begun to close.
        negotiator: decides who may connect; None lets everybody in.
        sealed: why this socket neither dials nor listens, "" if it does.
        gone: what closed pipes had counted.
        farewell: for how many seconds a closed pipe may wait for its peer's goodbye.
        leaving: the closed pipes that do.
    """

    def __init__(self, hub: Hub, options: Options) -> None:
        self.hub = hub
        self.options = options
        self.pipes: dict[int, Pipe] = {}
        self.sender = Sender(hub, options, self.pipes)
        self.receiver = Receiver(hub, options)
        self.events = PipeEvents()
        self.dialers: list[Dialer] = []
        self.listeners: list[Listener] = []
        self.negotiator: Negotiator | None = None
        self.dials = True
        self.sealed = ""
        self.gone = Counters()
        self.farewell = _FAREWELL
        self.leaving: set[Pipe] = set()
        self.pipe_limit: int = options.get(opts.connector.pipe_limit)
        options.watch(self, {opts.connector.pipe_limit: Connector._set_limit})
        self._reserved = 0
        self._expected: WaitList | None = None
        self._heartbeat = Heartbeat()
        self._logged_at: dict[str, float] = {}

    # Dialing and listening

    def dial(self, address: Address, options: Options) -> Dialer:
        """Make a dialer and have it dial; see ``Socket.dial``."""
        self._check_open("dialing")
        dialer = Dialer(self, address, options, find(address.scheme, address).dialer(address, options))
        self.dialers.append(dialer)
        if options.get(opts.connector.dialer.dial_async):
            dialer.dial_later()
            return dialer
        try:
            dialer.dial_now()
        except BaseException:
            dialer.close()
            raise
        return dialer

    def listen(self, address: Address, options: Options) -> Listener:
        """Make a listener and have it listen; see ``Socket.listen``."""
        self._check_open("listening")
        listener = Listener(self, address, options, find(address.scheme, address).listener(address, options))
        self.listeners.append(listener)
        try:
            listener.start()
        except BaseException:
            listener.close()
            raise
        return listener

    def _check_open(self, operation: str) -> None:
        if not self.dials:
            raise Closed("socket")
        if self.sealed:
            raise NotSupported(operation, self.sealed)

    def dialer_closed(self, dialer: Dialer) -> None:
        """Forget a dialer."""
        if dialer in self.dialers:
            self.dialers.remove(dialer)

    def listener_closed(self, listener: Listener) -> None:
        """Forget a listener."""
        if listener in self.listeners:
            self.listeners.remove(listener)

    # Places under the pipe limit

    def has_room(self) -> bool:
        """Return whether one more pipe may come."""
        return self.pipe_limit < 0 or len(self.pipes) + self._reserved < self.pipe_limit

    def reserve(self) -> bool:
        """Take a place for a pipe in the making, if there is one."""
        if not self.has_room():
            return False
        self._reserved += 1
        return True

    def release(self) -> None:
        """Give the place back: the pipe is there and counts itself, or there will be none."""
        self._reserved -= 1
        self._place_is_free()

    def _set_limit(self, value: int) -> None:
        self.pipe_limit = value
        self._limit_changed()

    def _place_is_free(self) -> None:
        # Without a limit nobody waits for places: a thousand dialers that lose their pipes need not tell a thousand.
        if self.pipe_limit >= 0 and self.has_room():
            self._limit_changed()

    def _limit_changed(self) -> None:
        for endpoint in [*self.dialers, *self.listeners]:
            endpoint.limit_changed()

    # From connections to pipes

    def connect(self, transport: TransportDialer, dialer: Dialer) -> Pipe:
        """Connect, and negotiate. Blocks within the dialer's time limits.

        Raises:
            ConnectionFailed, PipeRefused: and nothing is left open.
        """
        seconds = dialer.options.get(opts.connector.dialer.dial_timeout)
        try:
            with time_limit(seconds, ConnectionFailed(dialer.address, f"no connection within {seconds} s")):
                connection = transport.connect()
        except MultiSocketError:
            raise
        except OSError as error:
            # Transports name what they expect to fail. That a socket cannot be made at all is expected nowhere.
            raise ConnectionFailed(dialer.address, describe_os_error(error)) from error
        try:
            return self.open(connection, dialer)
        except BaseException:
            connection.close()
            raise

    def open(self, connection: Connection, endpoint: Endpoint) -> Pipe:
        """Do what a connection needs before it may be a pipe. Blocks within the endpoint's time limits.

        Raises:
            HandshakeFailed, PipeRefused: the caller closes the connection.
        """
        options = endpoint.options
        if connection.needs_handshake and not endpoint.dials:
            seconds = options.get(opts.connector.listener.handshake_timeout)
            error = HandshakeFailed(connection.peer_address, f"no handshake within {seconds} s")
            with time_limit(seconds, error):
                connection.handshake()
        pipe_id = next_pipe_id()
        if self.negotiator is not None:
            seconds = options.get(opts.connector.pipe.negotiate_timeout)
            try:
                with time_limit(seconds, PipeRefused(f"no end to the negotiation within {seconds} s")) as limit:
                    self._negotiate(Negotiation(connection, pipe_id, endpoint.dials), limit)
            except MultiSocketError as error:
                say_goodbye(connection, error)
                raise
        return self.make_pipe(connection, endpoint, pipe_id)

    def _negotiate(self, negotiation: Negotiation, limit: gevent.Timeout) -> None:
        assert self.negotiator is not None
        try:
            self.negotiator(negotiation)
        except MultiSocketError:
            raise
        except (Exception, gevent.Timeout) as error:
            # No caller's time runs here: a timeout that is not ours is one that the negotiator did not catch.
            if error is limit:
                raise
            logger.debug("a negotiator refused %s", snippet(negotiation.peer_address), exc_info=True)
            raise PipeRefused(f"{type(error).__name__}: {error}") from error

    def make_pipe(self, connection: Connection, endpoint: Endpoint, pipe_id: int = 0) -> Pipe:
        """Return a pipe for a connection, not yet added."""
        pipe_id = pipe_id or next_pipe_id()
        if isinstance(connection, MessageConnection):
            return InprocPipe(pipe_id, connection, self, endpoint)
        raw = endpoint.options.get(opts.connector.pipe.raw)
        if isinstance(connection, PacketConnection):
            return (RawPacketPipe if raw else PacketPipe)(pipe_id, connection, self, endpoint)
        if isinstance(connection, StreamConnection):
            return (RawPipe if raw else FramedPipe)(pipe_id, connection, self, endpoint)
        raise TypeError(f"{type(connection).__name__} is none of the kinds of connection that transports may make")

    def add(self, pipe: Pipe) -> None:
        """Make a pipe one of the socket's. Does not block."""
        self.adopt(pipe)
        if not pipe.closed:
            pipe.start()

    def adopt(self, pipe: Pipe) -> None:
        """Make a pipe one of the socket's, whose reading is somebody else's business. Does not block."""
        if not self.dials:
            pipe.discard("the socket is closing")
            return
        self.pipes[pipe.id] = pipe
        self.sender.add(pipe)
        self.events.tell("add", pipe)
        if self._expected is not None:
            self._expected.wake_all()
        if isinstance(pipe, BytesPipe):
            self._heartbeat.watch(pipe)

    def refused(self, connection: Connection, error: MultiSocketError) -> None:
        """Note that a peer was not let in."""
        self._log_rarely(type(error).__name__, "refused %s: %s", snippet(connection.peer_address), _why(error))

    # From pipes

    def forget(self, pipe: Pipe) -> None:
        """Take a closing pipe out of the socket's."""
        self.pipes.pop(pipe.id, None)

    def pipe_closed(self, pipe: Pipe) -> None:
        """Hear that a pipe has closed, and let those know who care."""
        self.gone.add(pipe.counters)
        self.events.tell("remove", pipe)
        pipe.endpoint.pipe_closed(pipe, pipe.messages_received > 0)
        self._place_is_free()

    def peer_fault(self, pipe: Pipe, error: MultiSocketError) -> None:
        """Note that a peer broke the rules."""
        kind = type(error).__name__
        too_long = isinstance(error, ContentTooLong)
        hint = " (raise connector.pipe.max_recv_content_length to allow it)" if too_long else ""
        self._log_rarely(kind, "pipe %d to %s: %s%s", pipe.id, snippet(pipe.peer_address), _why(error), hint)

    def first_drop(self, pipe: Pipe, reason: str) -> None:
        """Note that a pipe has begun to lose messages."""
        peer = snippet(pipe.peer_address)
        self._log_rarely(f"drop {reason}", "pipe %d to %s drops messages: %s", pipe.id, peer, reason)

    def _log_rarely(self, kind: str, text: str, *args: object) -> None:
        """Warn of what a peer did, at most every few seconds for a kind: peers must not fill the disk."""
        now = monotonic()
        if now - self._logged_at.get(kind, -_LOG_INTERVAL) >= _LOG_INTERVAL:
            self._logged_at[kind] = now
            logger.warning(text, *args)
        else:
            logger.debug(text, *args)

    def internal_message(self, pipe: FramedPipe, message: Message) -> None:
        """Take an internal message that a peer sent."""
        if not Heartbeat.understand(pipe, message):
            pipe.count_drop("internal")

    # For users

    def wait_pipes(self, count: int, timeout: float | None) -> None:
        """Block until there are that many pipes; see ``Socket.wait_pipes``."""
        if self._expected is None:
            # Waiters for different numbers share the list, so each looks for itself.
            self._expected = WaitList(self.hub, lambda: True)
        deadline = Deadline(timeout)
        while len(self.pipes) < count:
            if not self.dials:
                raise Closed("socket")
            if not self._expected.wait(deadline.left()):
                raise Timeout("wait_pipes", timeout)

    def counters(self) -> Counters:
        """Return what all pipes, open and closed, and the socket itself have counted."""
        total = Counters()
        total.add(self.gone)
        total.add(self.sender.counters)
        total.add(self.receiver.counters)
        for pipe in self.pipes.values():
            total.add(pipe.counters)
        return total

    # Closing

    def stop(self) -> list[Dialer | Listener]:
        """Make no more pipes. Returns what was stopped, to be joined."""
        self.dials = False
        stopped: list[Dialer | Listener] = [*self.dialers, *self.listeners]
        for endpoint in stopped:
            endpoint.close()
        if self._expected is not None:
            self._expected.wake_all()
        return stopped

    def flush(self, deadline: Deadline) -> None:
        """Block until everything queued has left for the peers, or the time is up."""
        pause = 0.0
        self.sender.end_turn()
        waiting: list[Pipe] = []
        while True:
            waiting = [pipe for pipe in waiting if not _has_left(pipe)]
            # At the end all of them once more: what one could not send has been offered to the others.
            waiting = waiting or [pipe for pipe in self.pipes.values() if not _has_left(pipe)]
            left = deadline.left()
            if not waiting or (left is not None and left <= 0):
                return
            gevent.sleep(pause if left is None else min(pause, left))
            pause = min(0.02, pause + 0.001)

    def close_pipes(self, reason: str, deadline: Deadline) -> list[Pipe]:
        """Close every pipe. Returns the pipes, to be joined; those see their peers off for as long as there is time."""
        left = deadline.left()
        self.farewell = _FAREWELL if left is None else min(_FAREWELL, left)
        pipes = list(self.pipes.values())
        for pipe in pipes:
            pipe.close(reason)
        self.sender.lose_rest()
        self._heartbeat.stop()
        return pipes

    def join(self) -> None:
        """Block until nothing works for the socket any more, callbacks included; the caller may be one of them."""
        self._heartbeat.join()
        for pipe in [*self.leaving]:
            pipe.join()
        self.events.join()

    def lost(self) -> int:
        """Return how many accepted messages have been lost with their pipe, or for want of one."""
        counters = [self.gone, self.sender.counters, *(pipe.counters for pipe in self.pipes.values())]
        return sum(each.drops.get(reason, 0) for each in counters for reason in ("disconnect", "refused", "closed"))

    @staticmethod
    def is_mine(greenlet: object) -> bool:
        """Return whether a pipe callback runs in a greenlet, so that ``close()`` may not have it wait."""
        return isinstance(greenlet, Teller)

    def abandon(self) -> None:
        """Let go of everything in a forked child, without switching greenlets and without a goodbye."""
        self.dials = False
        for listener in self.listeners:
            listener.abandon()
        for dialer in self.dialers:
            dialer.abandon()
        for pipe in (*self.pipes.values(), *self.leaving):
            pipe.abandon()


def say_goodbye(connection: Connection, error: MultiSocketError) -> None:
    """Tell the peer of a connection that will be no pipe why, where the transport has words for it. Never blocks."""
    if isinstance(connection, PacketConnection):
        try:
            connection.send(connection.codec.goodbye(error))
        except OSError:
            # It hung up first.
            pass


def _why(error: MultiSocketError) -> object:
    """Return what a log line says of an error, whose address is in the line already."""
    return error.why if isinstance(error, ConnectionFailed) else error


def _has_left(pipe: Pipe) -> bool:
    """Return whether closing the pipe now loses nothing that was sent."""
    if pipe.state is not PipeState.OPEN:
        return True
    if pipe.queued:
        return False
    return not isinstance(pipe.connection, StreamConnection) or not pipe.connection.unacknowledged()
