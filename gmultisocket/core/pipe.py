"""Pipes: one connected peer each, seen from the socket.

:class:`Pipe` is what users hold, and the part that all kinds share: identity, state, counters, closing. Its
subclasses move messages: those of :class:`~.bytespipe.BytesPipe` over anything that carries bytes,
:class:`~.inprocpipe.InprocPipe` by handing whole messages over.

What the sender relies on:

* ``full`` says whether the pipe takes another message. It changes only through ``_became_full`` and ``_has_room``,
  which keep the sender's list of pipes for to-one messages right.
* ``put`` takes one message and never blocks, never switches greenlets and never fails: a pipe whose connection turns
  out to be broken keeps the message with what else it has queued, and gives it back when it closes.

Closing never blocks either. It may be asked for from anywhere: a reader, the writer, a callback, the hub.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from .. import options as opts
from ..counters import Counters
from ..errors import MultiSocketError, snippet
from ..loop.owner import check_thread
from ..loop.waiting import WaitList
from ..options import Option, Options
from ..transport import Connection
from ..wire import TO_ONE, Message, pack_id

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint

__all__ = ["COPIED", "Pipe", "PipeState"]

logger = logging.getLogger("gmultisocket.pipe")


class PipeState(Enum):
    """Where a pipe stands."""

    OPEN = "open"
    #: What is sent does not arrive any more; what had arrived before is still being read.
    DEAF = "deaf"
    CLOSED = "closed"


_MOVES = {
    PipeState.OPEN: {PipeState.DEAF, PipeState.CLOSED},
    PipeState.DEAF: {PipeState.CLOSED},
    PipeState.CLOSED: frozenset[PipeState](),
}


def _tell(option: Option[Any]) -> Callable[[Pipe | Endpoint, Any], object]:
    return lambda told, value: told.option_changed(option)


#: Options of which some kind of pipe keeps a copy, and has to be told about.
COPIED: Final = {
    option: _tell(option)
    for option in (
        opts.connector.pipe.max_recv_content_length,
        opts.connector.pipe.read_buffer,
        opts.connector.pipe.raw_recv_buf_size,
    )
}


class Pipe(ABC):
    """One connected peer.

    Attributes:
        id: 1 to 2^31-1, never used twice in a process; the first id of every path through this pipe.
        path: ``id`` as the 4 bytes that stand for it in paths.
        raw: whether the peer speaks plain bytes instead of messages (``connector.pipe.raw``).
        full: whether its send queue is full.
        reason: why it closed, "" while it is open.
    """

    __slots__ = (
        "__weakref__",
        "_connector",
        "_drops",
        "_endpoint",
        "_options",
        "_room",
        "bytes_sent",
        "connection",
        "fan_out_key",
        "full",
        "id",
        "messages_sent",
        "path",
        "reason",
        "state",
        "turn",
    )

    messages_received: int
    bytes_received: int
    raw = False
    #: Whether to-one messages may go here.
    takes_to_one = True

    def __init__(self, pipe_id: int, connection: Connection, connector: Connector, endpoint: Endpoint) -> None:
        self.id = pipe_id
        self.path = pack_id(pipe_id)
        self.connection = connection
        self._connector = connector
        self._endpoint = endpoint
        self._options: Options | None = None
        self._room: WaitList | None = None
        #: Whose turn it is when there is room; for the sender.
        self.turn = 0
        self._drops: dict[str, int] | None = None
        self.messages_sent = 0
        self.bytes_sent = 0
        self.full = False
        #: Pipes with the same key write the same bytes for a to-all message; None for one that shares them with none.
        self.fan_out_key: str | None = None
        self.state = PipeState.OPEN
        self.reason = ""

    # What users may look at

    def __repr__(self) -> str:
        where = f"{self.local_address} <-> {self.peer_address}"
        return f"<{type(self).__name__} {self.id} {where} {self.state.value}>"

    @property
    def local_address(self) -> str:
        """This end's address."""
        return self.connection.local_address

    @property
    def peer_address(self) -> str:
        """The peer's address."""
        return self.connection.peer_address

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the transport knows for sure about the peer (uid, certificate, ...)."""
        return self.connection.identity

    @property
    def dialed(self) -> bool:
        """Whether this side made the connection."""
        return self._endpoint.dials

    @property
    def endpoint(self) -> Endpoint:
        """The dialer or listener that the pipe came from."""
        return self._endpoint

    @property
    def closed(self) -> bool:
        """Whether the pipe has closed."""
        return self.state is PipeState.CLOSED

    @property
    def options(self) -> Options:
        """The pipe's options; what is not set here comes from its dialer or listener, and then from the socket."""
        if self._options is None:
            self._options = Options(parent=self._endpoint.options)
            self._options.watch(self, COPIED)
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
        )

    @property
    @abstractmethod
    def queued(self) -> int:
        """How many messages wait to leave."""

    def close(self, reason: str | MultiSocketError = "closed by the user") -> None:
        """Close the pipe; to-one messages that wait to leave go to other pipes. Never blocks; may be repeated.

        Args:
            reason: what :attr:`reason` then says. Of an error the peer is told, where the transport has words for it:
                a :class:`~gmultisocket.errors.Closed` says that this side is going away.

        Raises:
            WrongThread: the socket belongs to another thread.
        """
        check_thread(self._connector.hub)
        self._close(reason)

    # For the sender

    @abstractmethod
    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        """Take one message to send."""

    def put_one(self, ttl: int, content: bytes) -> None:
        """Take one to-one message of this socket's own to send: :meth:`put` for the most common case."""
        self.put(TO_ONE, ttl, b"", b"", content)

    @abstractmethod
    def drop_oldest(self) -> bool:
        """Drop the message that has waited longest, and count it. False when none waits whole."""

    @abstractmethod
    def limits_changed(self) -> None:
        """Find out anew whether the pipe is full."""

    def wake_next(self) -> None:
        """Wake the first of those who wait for room in this pipe, if there is room."""
        if self._room is not None:
            self._room.wake()

    def wake_senders(self) -> None:
        """Wake those who wait for room in this pipe, to let them see that the socket has closed."""
        if self._room is not None:
            self._room.wake_all()

    def room(self) -> WaitList:
        """Return those who wait for this very pipe to take another message."""
        if self._room is None:
            self._room = WaitList(self._connector.hub, lambda: not self.full or self.state is not PipeState.OPEN)
        return self._room

    def drop(self, reason: str, count: int = 1) -> None:
        """Count messages that this pipe lost; the first loss of a pipe is logged."""
        if not count:
            return
        if self._drops is None:
            self._drops = {}
            self._connector.first_drop(self, reason)
        self._drops[reason] = self._drops.get(reason, 0) + count

    def count_drop(self, reason: str) -> None:
        """Count a message that was of no use to anybody: no loss that should be logged."""
        if self._drops is None:
            self._drops = {}
        self._drops[reason] = self._drops.get(reason, 0) + 1

    def _became_full(self) -> None:
        self.full = True
        self._connector.sender.pipe_is_full(self)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for room in this very pipe."""
        return self._room is not None and bool(self._room.waiters)

    def _has_room(self) -> None:
        self.full = False
        self._connector.sender.pipe_has_room(self)

    # For the connector

    @abstractmethod
    def start(self) -> None:
        """Begin to receive."""

    @abstractmethod
    def receiving(self) -> bool:
        """Return whether a greenlet still works for this pipe."""

    @abstractmethod
    def join(self) -> None:
        """Block until no greenlet works for this closed pipe any more; the caller may be one of them."""

    @abstractmethod
    def _take_queue(self) -> tuple[list[Message], int]:
        """Empty the send queue; return its to-one messages and the number of others, which are lost."""

    def option_changed(self, option: Option[Any]) -> None:  # noqa: B027
        """Hear that an option in :data:`COPIED` changed, for this pipe or for all of its dialer or listener."""

    def abandon(self) -> None:
        """Let go of everything in a forked child, without switching greenlets."""
        self.state = PipeState.CLOSED
        self.reason = "forked"
        self.connection.abandon()

    def _move(self, state: PipeState) -> bool:
        """Change the state if that is allowed; False when the pipe was there or beyond already."""
        if state not in _MOVES[self.state]:
            return False
        self.state = state
        return True

    def _stop_sending(self) -> None:
        """Take nothing more to send; give what waits to other pipes, or count it."""
        sender = self._connector.sender
        sender.remove(self)
        again, lost = self._take_queue()
        self.drop("disconnect", lost)
        self.full = True
        self.wake_senders()
        sender.offer_again(again)

    def _close(self, reason: str | MultiSocketError) -> None:
        was_open = self.state is PipeState.OPEN
        if not self._move(PipeState.CLOSED):
            return
        self.reason = str(reason)
        self._connector.forget(self)
        if was_open:
            self._stop_sending()
        stays = False
        try:
            stays = self._end(reason)
        finally:
            if not stays:
                self.connection.close()
        logger.debug("pipe %d to %s closed: %s", self.id, snippet(self.peer_address), snippet(self.reason, 200))
        self._connector.pipe_closed(self)

    def discard(self, reason: str) -> None:
        """Close a pipe that nobody has heard of yet."""
        self._move(PipeState.CLOSED)
        self.reason = reason
        self.connection.close()

    def _end(self, reason: str | MultiSocketError) -> bool:
        """Say goodbye to the peer where the transport has words for it. Never blocks.

        Returns:
            Whether the pipe's reader closes the connection later, when the peer has said goodbye too.
        """
        return False
