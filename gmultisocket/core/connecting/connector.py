"""The connector of a socket: knows its pipes, dialers and listeners, and everything that pipes report.

It is the :class:`~..pipes.pipe.PipeOwner` of the socket's pipes, passes on to sender, receiver and events what they
need to know, and closes everything. Nothing in it blocks while it holds anything that another greenlet needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import gevent
from gevent.hub import Hub

from ... import options as opts
from ...counters import Counters, add_drops
from ...errors import Closed, ConnectionFailed, ContentTooLong, MultiSocketError, NotSupported, Timeout, snippet
from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, survive
from ...loop.waiting import Deadline, WaitList
from ...options import Options
from ...transport import Connection, StreamConnection
from ...wire import Message
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import Pipe, PipeState
from ..pipes.scheduler import WriteScheduler
from ..receiving.receiver import Receiver
from ..sending.sender import Sender
from .endpoint import Endpoint
from .events import PipeEvents
from .heartbeat import Heartbeat
from .opening import PipeMaker
from .places import Places
from .vanished import VanishedPeers

__all__ = ["ENDPOINT_TOTALS", "Connector"]

logger = get_logger("gmultisocket.connector")

#: Seconds that a closed pipe waits for its peer's close frame. Over TLS, which ends in both directions at once, a peer
#: that sends none and waits for the end waits so long: closing at once could reset the connection, and lose this side's
#: close frame.
_CLOSE_TIMEOUT: Final = 1.0
#: What listeners and dialers count: two of these each.
ENDPOINT_TOTALS: Final = ("accepted", "refused", "attempts", "reconnects")
#: What a content that is too long is about.
_SIZE_OPTIONS: Final = (
    "to allow it raise connector.pipe.max_recv_content_length here; the peer's own limit is its "
    "socket.max_send_content_length"
)


class Connector:
    """Holds the parts of one socket together.

    Attributes:
        pipes: the open pipes by id.
        endpoints: the dialers and listeners that are not closed.
        scheduler, sender, receiver, events, places, maker: the parts.
        closing: whether the socket has begun to close: no pipe is made any more.
        sealed: why this socket neither dials nor listens, "" if it does.
        gone: what closed pipes had counted.
        gone_endpoints: what closed dialers and listeners had counted, by the names in :data:`ENDPOINT_TOTALS`.
        close_timeout: seconds that a closed pipe may wait for its peer's close frame.
        closing_pipes: the closed pipes that wait for it.
        lost_hook: a protocol's callback, see ``ProtocolSocket.on_lost``; None without one.
    """

    __slots__ = (
        "__weakref__",
        "_heartbeat",
        "_log",
        "_pipe_waiters",
        "_vanished",
        "close_timeout",
        "closing",
        "closing_pipes",
        "endpoints",
        "events",
        "gone",
        "gone_endpoints",
        "hub",
        "lost_hook",
        "maker",
        "pipes",
        "places",
        "receiver",
        "scheduler",
        "sealed",
        "sender",
    )

    def __init__(self, hub: Hub, options: Options) -> None:
        self.hub = hub
        self.pipes: dict[int, Pipe] = {}
        self.endpoints: dict[Endpoint, None] = {}
        self.scheduler = WriteScheduler(hub, options)
        self.sender = Sender(hub, options, self.pipes, self.scheduler)
        self.receiver = Receiver(hub, options)
        self.events = PipeEvents()
        self.places = Places(hub, options, self.pipes, self._place_free)
        self.maker = PipeMaker(self)
        self.lost_hook: Callable[[Message], bool] | None = None
        self.closing = False
        self.sealed = ""
        self.gone = Counters()
        self.gone_endpoints: dict[str, int] = {}
        self.close_timeout = _CLOSE_TIMEOUT
        self.closing_pipes: set[Pipe] = set()
        #: Greenlets in ``wait_pipes``. Made when first needed.
        self._pipe_waiters: WaitList | None = None
        self._heartbeat = Heartbeat()
        self._vanished = VanishedPeers(hub, self.pipes)
        self._log = ThrottledLog(logger, LOG_INTERVAL)

    # Dialers and listeners

    def check_open(self, operation: str) -> None:
        """Raise unless a dialer or listener may be made."""
        if self.closing:
            raise Closed("socket")
        if self.sealed:
            raise NotSupported(operation, self.sealed)

    def remove_endpoint(self, endpoint: Endpoint) -> None:
        """Forget a dialer or listener that has closed."""
        if endpoint in self.endpoints:
            del self.endpoints[endpoint]
            for name in ENDPOINT_TOTALS:
                self.gone_endpoints[name] = self.gone_endpoints.get(name, 0) + getattr(endpoint, name, 0)

    def _place_free(self) -> None:
        for endpoint in [*self.endpoints]:
            endpoint._place_free()

    def refused(self, connection: Connection, error: MultiSocketError) -> None:
        """Log that a peer was not let in."""
        cause = str(_cause(error))
        self._warn(f"refused: {snippet(cause)}", "refused %s: %s", snippet(connection.peer_address), cause)

    def survive(self, kind: str, error: BaseException, text: str, *args: object) -> None:
        """Report an unexpected error that ends neither a dialer nor a listener; see ``loop/ending.py``."""
        survive(self._log, f"{kind} {type(error).__name__}", error, text, *args)

    # Pipes

    def add(self, pipe: Pipe) -> None:
        """Add a pipe, and start to read from it. Does not block."""
        self.adopt(pipe)
        if not pipe.closed:
            pipe._start()

    def adopt(self, pipe: Pipe) -> None:
        """Add a pipe that another greenlet reads from. Does not block."""
        if self.closing:
            pipe._discard("the socket is closing")
            return
        self.pipes[pipe.id] = pipe
        held = pipe._may_be_nobody and pipe.endpoint.options.get(opts.connector.pipe.hold_until_heard)
        self.sender.add(pipe, held)
        self.events.emit("add", pipe)
        if self._pipe_waiters is not None:
            self._pipe_waiters.wake_all()
        if isinstance(pipe, BytesPipe):
            self._heartbeat.watch(pipe)
            self._vanished.watch(pipe)
            if held:
                pipe._ping()

    def wait_pipes(self, count: int, timeout: float | None) -> None:
        """Block until there are that many pipes; see ``Socket.wait_pipes``."""
        if self._pipe_waiters is None:
            # Waiters for different numbers share the list, so each of them looks itself.
            self._pipe_waiters = WaitList(self.hub, lambda: True)
        deadline = Deadline(timeout)
        while len(self.pipes) < count:
            if self.closing:
                raise Closed("socket")
            if not self._pipe_waiters.wait(deadline.left()):
                raise Timeout("wait_pipes", timeout)

    # What pipes report; see PipeOwner

    def pipe_full(self, pipe: Pipe) -> None:
        self.sender.pipe_full(pipe)

    def pipe_writable(self, pipe: Pipe) -> None:
        self.sender.pipe_writable(pipe)

    def pipe_heard(self, pipe: Pipe) -> None:
        self.sender.pipe_heard(pipe)

    def pipe_idle(self, pipe: Pipe) -> None:
        self.sender.pipe_idle(pipe)

    def pipe_broken(self, pipe: Pipe) -> None:
        self.sender.remove(pipe)

    def requeue(self, messages: list[Message]) -> None:
        self.sender.requeue.add(messages)

    def is_loss(self, message: Message) -> bool:
        return self.lost_hook is None or self.lost_hook(message)

    def may_drop(self, message: Message) -> bool:
        # What nobody misses when its peer has gone is about the peer's state: while it is there, it waits for that.
        return self.is_loss(message)

    def lose(self, reason: str, count: int) -> None:
        self.sender.counters.drop(reason, count)

    def peer_pings(self, pipe: Pipe) -> None:
        if isinstance(pipe, BytesPipe):
            self._heartbeat.show_life(pipe)

    def time_limit_changed(self, pipe: Pipe) -> None:
        if isinstance(pipe, BytesPipe):
            self._heartbeat.watch(pipe)

    def pipe_closing(self, pipe: Pipe) -> None:
        self.pipes.pop(pipe.id, None)

    def pipe_closed(self, pipe: Pipe) -> None:
        self.gone.add(pipe.counters)
        self.events.emit("remove", pipe)
        pipe.endpoint._pipe_closed(pipe)
        self.places.freed()

    def peer_error(self, pipe: Pipe, error: MultiSocketError) -> None:
        too_long = isinstance(error, ContentTooLong)
        hint = f" ({_SIZE_OPTIONS})" if too_long else ""
        self._warn(
            type(error).__name__, "pipe %d to %s: %s%s", pipe.id, snippet(pipe.peer_address), _cause(error), hint
        )

    def first_drop(self, pipe: Pipe, reason: str) -> None:
        self._warn(f"drop {reason}", "pipe %d to %s drops messages: %s", pipe.id, snippet(pipe.peer_address), reason)

    def _warn(self, kind: str, text: str, *args: object) -> None:
        self._log.log(kind, logging.WARNING, text, *args)

    # Counters

    def counters(self) -> Counters:
        """Return what all pipes, open and closed, and the socket itself have counted."""
        total = Counters()
        total.add(self.gone)
        total.add(self.sender.counters)
        total.add(self.receiver.counters)
        # Not by the counters of each pipe: for 10,000 of them that takes five times as long. A copy, because another
        # thread may ask.
        for pipe in [*self.pipes.values()]:
            total.messages_sent += pipe.messages_sent
            total.bytes_sent += pipe.bytes_sent
            total.messages_received += pipe.messages_received
            total.bytes_received += pipe.bytes_received
            if pipe._drops:
                add_drops(total.drops, pipe._drops)
        return total

    def endpoint_totals(self) -> dict[str, int]:
        """Return what all dialers and listeners, open and closed, have counted."""
        endpoints = [*self.endpoints]
        return {
            name: self.gone_endpoints.get(name, 0) + sum(getattr(endpoint, name, 0) for endpoint in endpoints)
            for name in ENDPOINT_TOTALS
        }

    def lost(self) -> int:
        """Return how many accepted messages were lost with their pipe, or because no pipe was left."""
        counters = [self.gone, self.sender.counters, *(pipe.counters for pipe in self.pipes.values())]
        return sum(each.drops.get(reason, 0) for each in counters for reason in ("disconnect", "refused", "closed"))

    # Closing

    def stop(self) -> list[Endpoint]:
        """Close all dialers and listeners. Return them, to be joined."""
        self.closing = True
        stopped = [*self.endpoints]
        for endpoint in stopped:
            endpoint.close()
        if self._pipe_waiters is not None:
            self._pipe_waiters.wake_all()
        return stopped

    @property
    def in_use(self) -> bool:
        """Whether there is anything that must be closed."""
        return bool(self.endpoints or self.pipes or self.sender.requeue.pending)

    def unsent(self) -> int:
        """Return how many messages wait to leave."""
        return sum(pipe.queued for pipe in [*self.pipes.values()]) + len(self.sender.requeue.pending)

    def flush(self, deadline: Deadline, requeued: bool = False) -> bool:
        """Block until everything that is queued has left for the peers, or the time is up.

        Args:
            deadline: when the time is up.
            requeued: whether to wait for messages that no pipe takes at present.

        Returns:
            Whether everything has left.
        """
        pause = 0.0
        self.scheduler.end_turn()
        waiting: list[Pipe] = []
        while True:
            waiting = [pipe for pipe in waiting if not _is_flushed(pipe)]
            # At the end all pipes once more: what one pipe could not send was requeued to others.
            waiting = waiting or [pipe for pipe in self.pipes.values() if not _is_flushed(pipe)]
            if not waiting and not (requeued and self.sender.requeue.pending):
                return True
            left = deadline.left()
            if left is not None and left <= 0:
                return False
            gevent.sleep(pause if left is None else min(pause, left))
            pause = min(0.02, pause + 0.001)

    def close_pipes(self, reason: str, deadline: Deadline) -> list[Pipe]:
        """Close every pipe. Return the pipes, to be joined: they wait for close frames until the deadline."""
        left = deadline.left()
        self.close_timeout = _CLOSE_TIMEOUT if left is None else min(_CLOSE_TIMEOUT, left)
        pipes = list(self.pipes.values())
        for pipe in pipes:
            pipe.close(reason)
        self.sender.lose_requeued()
        self._heartbeat.stop()
        self._vanished.stop()
        return pipes

    def join(self) -> None:
        """Block until no greenlet works for the socket any more. The caller may be one of its callbacks."""
        self._heartbeat.join()
        self._vanished.join()
        for pipe in [*self.closing_pipes]:
            pipe._join()
        self.events.join()

    def abandon(self) -> None:
        """Release everything in a forked child, without switching greenlets and without a close frame."""
        self.closing = True
        for endpoint in self.endpoints:
            endpoint._abandon()
        for pipe in (*self.pipes.values(), *self.closing_pipes):
            pipe._abandon()


def _cause(error: MultiSocketError) -> object:
    """Return the text of an error for a log line that has the address already."""
    return error.why or error if isinstance(error, ConnectionFailed) else error


def _is_flushed(pipe: Pipe) -> bool:
    """Return whether nothing that was sent is lost if the pipe closes now."""
    if pipe.state is not PipeState.OPEN:
        return True
    if pipe.queued:
        return False
    return not isinstance(pipe._connection, StreamConnection) or not pipe._connection.unacknowledged()
