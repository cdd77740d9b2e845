"""Pipes: one connected peer each, seen from the socket.

:class:`Pipe` is what users hold, and the part that all kinds share: identity, state, counters, closing. Its subclasses
move messages: those of :class:`~.bytespipe.BytesPipe` over anything that carries bytes,
:class:`~.inprocpipe.InprocPipe` inside the process.

A pipe knows nothing of the socket beyond :class:`PipeOwner` and :class:`PipeEndpoint`. Names without an underscore are
for users; those with one are for the modules of ``core``. Senders rely on this:

* ``full`` says whether the queue is full. It changes only in ``_set_full`` and ``_set_writable``, which tell the owner.
* ``_put`` takes one message. It never blocks, never switches greenlets and never fails: if the connection turns out to
  be broken, the pipe keeps the message in its queue, and gives the queue back when it closes.

Closing never blocks, and may be asked for from anywhere: a reader, the writer, a callback, the hub.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Final, Protocol

from gevent.hub import Hub

from ... import options as opts
from ...counters import Counters, as_dict
from ...errors import MultiSocketError, snippet
from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, survive
from ...loop.owner import check_thread
from ...loop.waiting import WaitList
from ...options import Option, Options, PipeOptions
from ...state import StateMachine
from ...transport import Connection
from ...wire import TO_DEST, TO_ONE, Message, pack_bare_header, pack_id
from ..receiving.receiver import ContentBuffer, Receiver
from .readrates import RATE_OPTIONS
from .scheduler import WriteScheduler

__all__ = ["PUSHED", "TIME_LIMITS", "Headers", "Pipe", "PipeEndpoint", "PipeOwner", "PipeState", "headers_of"]

#: Lengths whose headers are kept.
_MAX_HEADERS: Final = 4096

logger = get_logger("gmultisocket.pipe")
_log: Final = ThrottledLog(logger, LOG_INTERVAL)


class Headers(dict[int, bytes]):
    """The headers of to-one messages that begin here, by the length of the content: most lengths come again.

    Attributes:
        ttl: of the messages.
    """

    __slots__ = ("ttl",)

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl

    def __missing__(self, length: int) -> bytes:
        header = pack_bare_header(TO_ONE, self.ttl, 0, length)
        if len(self) < _MAX_HEADERS:
            self[length] = header
        return header


#: Returns the headers with a ttl. All sockets share them.
headers_of = lru_cache(maxsize=256)(Headers)


class PipeState(Enum):
    """The states of a pipe."""

    OPEN = "open"
    #: The connection cannot be written to any more. What the peer has already sent is read, then the pipe closes.
    DRAINING = "draining"
    CLOSED = "closed"


class PipeEndpoint(Protocol):
    """The dialer or listener that a pipe came from."""

    dials: bool
    options: Options

    @property
    def address(self) -> str:
        """The address, without its options."""

    @property
    def given_address(self) -> str:
        """The address as it was given, without its options."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def close(self) -> None:
        """Stop dialing or listening. Its pipes stay open."""

    def _pipe_closed(self, pipe: Pipe) -> None:
        """One of its pipes has closed."""


class PipeOwner(Protocol):
    """All that a pipe may ask of its socket, and all that it reports to it. No method blocks."""

    @property
    def hub(self) -> Hub:
        """The hub of the socket's thread."""

    @property
    def scheduler(self) -> WriteScheduler:
        """Queue limits, and when to write."""

    @property
    def receiver(self) -> Receiver:
        """Where messages are delivered."""

    @property
    def closing_pipes(self) -> set[Pipe]:
        """Closed pipes that still wait for their peer's close frame."""

    @property
    def close_timeout(self) -> float:
        """Seconds that a closed pipe may wait for that; 0 for no wait."""

    @property
    def closing(self) -> bool:
        """Whether the socket has begun to close."""

    def pipe_full(self, pipe: Pipe) -> None:
        """The pipe's queue has become full."""

    def pipe_writable(self, pipe: Pipe) -> None:
        """The pipe's queue is not full any more."""

    def pipe_heard(self, pipe: Pipe) -> None:
        """The first message of a pipe has arrived, an internal one included. May be reported again."""

    def pipe_idle(self, pipe: Pipe) -> None:
        """A turn has ended, and the pipe has nothing queued."""

    def pipe_broken(self, pipe: Pipe) -> None:
        """The pipe cannot send any more. Called before its queue is emptied."""

    def requeue(self, messages: list[Message]) -> None:
        """Send these to-one messages, which a pipe could not send, to other pipes."""

    def is_loss(self, message: Message) -> bool:
        """Return whether anybody misses this message, which a pipe could not send. Must not raise."""

    @property
    def lost_hook(self) -> Callable[[Message], bool] | None:
        """What :meth:`is_loss` asks; None if all messages are missed."""

    def lose(self, reason: str, count: int) -> None:
        """Count messages that are lost, and that no pipe can count."""

    def peer_pings(self, pipe: Pipe) -> None:
        """The peer has sent a ping: it wants to know that this side lives."""

    def time_limit_changed(self, pipe: Pipe) -> None:
        """One of :data:`TIME_LIMITS` has changed for the pipe."""

    def pipe_closing(self, pipe: Pipe) -> None:
        """The pipe is about to close."""

    def pipe_closed(self, pipe: Pipe) -> None:
        """The pipe has closed."""

    def peer_error(self, pipe: Pipe, error: MultiSocketError) -> None:
        """The peer has broken a rule."""

    def first_drop(self, pipe: Pipe, reason: str) -> None:
        """The pipe has dropped its first message."""


def _push(option: Option[Any]) -> Callable[[Any, Any], object]:
    return lambda target, value: target._option_changed(option, value)


#: Options that decide whether somebody looks at a pipe from time to time.
TIME_LIMITS: Final = (
    opts.connector.pipe.heartbeat_interval,
    opts.connector.pipe.heartbeat_timeout,
    opts.connector.pipe.idle_timeout,
    opts.connector.pipe.frame_timeout,
    opts.transport.ws.ping_interval,
)

#: What a scope of options calls for an endpoint or a pipe that watches it. All options are here that pipes keep
#: copies of, or that have an effect at once.
PUSHED: Final = {
    option: _push(option)
    for option in (
        opts.connector.pipe.max_recv_content_length,
        opts.connector.pipe.read_buffer,
        opts.connector.pipe.raw_recv_buf_size,
        *RATE_OPTIONS,
        *TIME_LIMITS,
    )
}


class _Drops(dict[str, int]):
    """How many messages a pipe has dropped, by reason.

    Attributes:
        logged: whether the first loss among them was logged.
    """

    __slots__ = ("logged",)

    def __init__(self) -> None:
        super().__init__()
        self.logged = False


class Pipe(StateMachine, ABC):
    """One connected peer.

    Attributes:
        id: 1 to 2^31-1, never used twice in a process; the first id of every path through this pipe.
        path: ``id`` as the 4 bytes that stand for it in paths.
        raw: whether the peer speaks plain bytes instead of messages (``connector.pipe.raw``).
        state: a :class:`PipeState`.
        full: whether its send queue is full.
        reason: why it closed, "" while it is open.
        messages_sent, bytes_sent: see :class:`~gmultisocket.Counters`.
    """

    __slots__ = (
        "__weakref__",
        "_connection",
        "_drops",
        "_endpoint",
        "_fan_out_key",
        "_options",
        "_owner",
        "_wake_order",
        "_writable",
        "bytes_sent",
        "full",
        "id",
        "messages_sent",
        "path",
        "reason",
        "state",
    )

    state: PipeState
    messages_received: int
    bytes_received: int
    raw = False

    _moves = {
        PipeState.OPEN: {PipeState.DRAINING, PipeState.CLOSED},
        PipeState.DRAINING: {PipeState.CLOSED},
        PipeState.CLOSED: (),
    }
    #: The messages and bytes of ``Counters`` that nobody had acknowledged when the pipe closed.
    _unconfirmed: tuple[int, int]
    #: Whether the peer may be in another process, and so may not be trusted to read.
    _remote = True
    #: Whether to-one messages may go to this pipe.
    _eligible = True
    #: Whether frames that a switch passes on can be written to it as they are; see ``FramedPipe._push_batch``.
    _takes_batches = False
    #: Whether anything can be connected without being a peer: there is no handshake, and the other side is unknown.
    _may_be_nobody = False
    #: The options that the pipe keeps a copy of, and the attribute that holds it. Each is in :data:`PUSHED`.
    _copied: ClassVar[Mapping[Option[Any], str]] = {}

    def __init__(self, pipe_id: int, connection: Connection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        self.id = pipe_id
        self.path = pack_id(pipe_id)
        self._connection = connection
        self._owner = owner
        self._endpoint = endpoint
        self._options: Options | None = None
        #: Greenlets that wait until this pipe is writable. Made when first needed.
        self._writable: WaitList | None = None
        #: Which kind of waiters the sender wakes first the next time.
        self._wake_order = 0
        self._drops: _Drops | None = None
        self.messages_sent = 0
        self.bytes_sent = 0
        self.full = False
        #: Pipes with the same key write the same bytes for a to-all message; None if no other pipe writes them.
        self._fan_out_key: str | None = None
        self.state = PipeState.OPEN
        self.reason = ""

    # For users

    def __repr__(self) -> str:
        where = f"{self.local_address} <-> {self.peer_address}"
        return f"<{type(self).__name__} {self.id} {where} {self.state.value}>"

    @property
    def local_address(self) -> str:
        """This end's address."""
        return self._connection.local_address

    @property
    def peer_address(self) -> str:
        """The peer's address."""
        return self._connection.peer_address

    @property
    def identity(self) -> Mapping[str, Any]:
        """What is known for sure about the peer: its uid, its certificate, or what ``authorize`` returned."""
        return self._connection.identity

    @property
    def dialed(self) -> bool:
        """Whether this side made the connection."""
        return self._endpoint.dials

    @property
    def endpoint(self) -> PipeEndpoint:
        """The dialer or listener that the pipe came from."""
        return self._endpoint

    @property
    def carrier(self) -> Pipe:
        """The pipe of the connection that it goes by: this one, or for a channel of a session the WebSocket's."""
        return self

    @property
    def closed(self) -> bool:
        """Whether the pipe has closed."""
        return self.state is PipeState.CLOSED

    @property
    def options(self) -> Options:
        """The pipe's options. A value that is not set here comes from its dialer or listener, then from the socket."""
        if self._options is None:
            self._options = PipeOptions(parent=self._endpoint.options)
            self._options.watch(self, PUSHED)
        return self._options

    @property
    def counters(self) -> Counters:
        """What has been counted on this pipe until now."""
        return Counters(
            self.messages_sent,
            self.bytes_sent,
            self.messages_received,
            self.bytes_received,
            dict(self._drops or {}),
            *self._unconfirmed,
        )

    @property
    def queued(self) -> int:
        """How many messages wait to leave, including one of which only a part has left."""
        return self._backlog()[0]

    @property
    def queued_bytes(self) -> int:
        """How many bytes these messages have; as in :attr:`counters`, for peers in this process only their contents."""
        return self._backlog()[1]

    @property
    def unacknowledged(self) -> int:
        """How many bytes have left that the peer's kernel has not taken. 0 where the system does not say it (ipc)."""
        return 0

    def stats(self) -> dict[str, Any]:
        """Return the numbers of the pipe as a plain dict; "Monitoring" in the documentation lists the keys.

        Never blocks. The counters are those of :attr:`counters`.
        """
        queued, queued_bytes = self._backlog()
        return {
            "id": self.id,
            "local_address": self.local_address,
            "peer_address": self.peer_address,
            "dialed": self.dialed,
            "state": self.state.value,
            "full": self.full,
            **as_dict(self.counters),
            "send_queue": queued,
            "send_queue_bytes": queued_bytes,
            "unacknowledged": 0 if self.closed else self.unacknowledged,
        }

    def close(self, reason: str | MultiSocketError = "closed by the user") -> None:
        """Close the pipe; to-one messages that wait to leave go to other pipes. Never blocks; may be repeated.

        Args:
            reason: the value of :attr:`reason` afterwards. An error is sent to the peer, if the transport has a close
                frame; :class:`~gmultisocket.errors.Closed` says that this side is going away, and
                :class:`~gmultisocket.errors.Disconnected` has a code of yours.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._owner.hub)
        self._close(reason)

    @abstractmethod
    def _backlog(self) -> tuple[int, int]:
        """Return how many messages wait to leave, and how many bytes they have."""

    # For senders

    @abstractmethod
    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        """Take one message to send."""

    def _put_one(self, headers: Headers, content: bytes) -> None:
        """Take one to-one message that begins here: :meth:`_put` for the most common case."""
        self._put(TO_ONE, headers.ttl, b"", b"", content)

    def _put_pieces(self, ttl: int, source: bytes, destination: bytes, data: memoryview, size: int) -> int:
        """Take one message or more along a path, each with the next ``size`` bytes of ``data``.

        Returns:
            How many bytes these are. 0 only if the pipe has closed.
        """
        content = bytes(data[:size])
        self._put(TO_DEST, ttl, source, destination, content)
        return len(content)

    def _read_now(self, target: ContentBuffer) -> None:
        """Read a large content into this memory, if it comes next. Never blocks. See ``ProtocolSocket.read_now``."""

    @abstractmethod
    def _drop_oldest(self) -> bool:
        """Drop the oldest message of the queue that may go, and count it. Return False if there is none."""

    @abstractmethod
    def _update_full(self) -> None:
        """Recompute ``full`` from the queue and the limits."""

    @property
    def _awaited(self) -> bool:
        """Whether a greenlet waits until this pipe is writable."""
        return self._writable is not None and bool(self._writable.waiters)

    def _waiters(self) -> WaitList:
        """Return the list of greenlets that wait until this pipe is writable."""
        if self._writable is None:
            self._writable = WaitList(self._owner.hub, lambda: not self.full or self.state is not PipeState.OPEN)
        return self._writable

    def _wake_waiters(self) -> None:
        """Wake the greenlets that wait for this pipe, in order, while it is writable."""
        if self._writable is not None:
            self._writable.wake()

    def _wake_all_waiters(self) -> None:
        """Wake all greenlets that wait for this pipe: its state, or that of the socket, has changed."""
        if self._writable is not None:
            self._writable.wake_all()

    def _drop(self, reason: str, count: int = 1) -> None:
        """Count messages that this pipe lost. The first loss of a pipe is logged."""
        self._count_useless(reason, count)
        if count and self._drops is not None and not self._drops.logged:
            self._drops.logged = True
            self._owner.first_drop(self, reason)

    def _count_useless(self, reason: str, count: int = 1) -> None:
        """Count messages that had no use for anybody. They are no loss, so nothing is logged."""
        if not count:
            return
        if self._drops is None:
            self._drops = _Drops()
        self._drops[reason] = self._drops.get(reason, 0) + count

    def _set_full(self) -> None:
        self.full = True
        self._owner.pipe_full(self)

    def _set_writable(self) -> None:
        self.full = False
        self._owner.pipe_writable(self)

    # For the owner

    @abstractmethod
    def _start(self) -> None:
        """Begin to receive."""

    @abstractmethod
    def _join(self) -> None:
        """Block until no greenlet works for this closed pipe any more. The caller may be one of them."""

    @abstractmethod
    def _take_queue(self) -> tuple[list[Message], int, int]:
        """Empty the send queue.

        Returns:
            Its to-one messages; the number of other messages that are lost; the number of those that nobody misses.
        """

    def _option_changed(self, option: Option[Any], value: Any) -> None:
        """Copy the new value of an option, if the pipe keeps a copy of it."""
        attribute = self._copied.get(option)
        if attribute is not None:
            setattr(self, attribute, value)

    def _abandon(self) -> None:
        """Release the connection in a forked child, without switching greenlets."""
        self.state = PipeState.CLOSED
        self.reason = "forked"
        self._connection.abandon()

    def _discard(self, reason: str) -> None:
        """Close a pipe that was never added to the socket."""
        self._move(PipeState.CLOSED)
        self.reason = reason
        self._connection.close()

    # Closing

    def _stop_sending(self) -> None:
        """Accept nothing more to send. Requeue what is queued, or count it as lost."""
        self._owner.pipe_broken(self)
        unsent, lost, useless = self._take_queue()
        self._drop("disconnect", lost)
        self._count_useless("disconnect", useless)
        self.full = True
        self._wake_all_waiters()
        self._owner.requeue(unsent)

    def _close(self, reason: str | MultiSocketError) -> None:
        was_open = self.state is PipeState.OPEN
        if not self._move(PipeState.CLOSED):
            return
        self.reason = str(reason)
        self._owner.pipe_closing(self)
        if was_open:
            self._stop_sending()
        try:
            self._close_connection(reason)
        except BaseException as error:
            # Of a transport that the program has registered. The rest of the socket must know that the pipe has closed.
            name = type(error).__name__
            survive(_log, f"close {name}", error, "pipe %d could not close its connection", self.id)
        logger.debug("pipe %d to %s closed: %s", self.id, snippet(self.peer_address), snippet(self.reason, 200))
        self._owner.pipe_closed(self)

    def _close_connection(self, reason: str | MultiSocketError) -> None:
        """Close the connection, now or after the peer's close frame."""
        draining = False
        try:
            draining = self._send_final(reason)
        finally:
            if not draining:
                self._connection.close()

    def _send_final(self, reason: str | MultiSocketError) -> bool:
        """Send a close frame, if the transport has one. Never blocks.

        Returns:
            Whether the pipe's reader closes the connection later, after the peer's own close frame.
        """
        return False
