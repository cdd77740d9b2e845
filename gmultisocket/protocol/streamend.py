"""One end of a stream as seen from the wire: its data, its control messages, and the credit that bounds both buffers.

Data are messages to a destination: the path to the other end, whose last id is that end's own id. This end's id is the
last one of their source. Control messages (flag 0x20) go the same way:

* 0x00: keepalive, to be answered. 0x01: the answer.
* 0x02: end: no more data comes from here.
* 0x03 and 4 bytes, big-endian: credit: this number of further bytes may be sent. Credit counts from the start of the
  stream, so the first credit includes what was sent before it came. An end that has got no credit sends at most
  ``FIRST_CREDIT`` bytes and then a keepalive. If the answer comes and no credit came before it, or no answer comes in
  time, it takes its peer for one that knows no credit: a Go program, to which any number of bytes may be sent.
* 0x04: reset: there is no such stream, or not any more. Sent once for each end that asks. (Go programs drop this and
  the two above unread, and take each for a sign of life.)

So a reader that does not read stops its own stream, and no other. The data of a peer that knows no credit cannot be
stopped that way: what exceeds the window stays in the socket's receive queue, which blocks the whole pipe when it is
full.

The methods for programs are in :mod:`.streamsocket`; :mod:`.stream` delivers the messages.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from enum import Enum
from time import monotonic
from typing import Final

from gevent.hub import Hub

from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import MultiSocketError, StreamReset, Timeout
from ..loop.waiting import Deadline, WaitList
from ..state import StateMachine
from ..wire import CONTROL, TO_DEST, Message
from .bytequeue import ByteQueue
from .outbox import Outbox

__all__ = [
    "ANSWER",
    "CREDIT",
    "END",
    "FIRST_CREDIT",
    "KEEP_ALIVE",
    "MAX_PIECE",
    "RESET",
    "EndState",
    "ReaderBuffer",
    "ReceivingState",
    "SendingState",
    "StreamContext",
    "StreamEnd",
]

KEEP_ALIVE: Final = b"\x00"
ANSWER: Final = b"\x01"
END: Final = b"\x02"
CREDIT: Final = b"\x03"
RESET: Final = b"\x04"

#: Bytes that may be sent to a peer before its first credit.
FIRST_CREDIT: Final = 65536

#: The longest content of a data message, in bytes, if the socket sends that much: what any peer takes by default.
MAX_PIECE: Final = 131072


#: Credit is sent for a third of the window. With a half, the next credit would often be late: a stream whose reads end
#: a little behind the half has to wait for data that it sends by this credit, behind those of all other streams.
_PORTIONS: Final = 3

#: More bytes than are ever sent.
_ANY: Final = 1 << 62

#: The highest number that a credit's 4 bytes can hold.
_MAX_CREDIT: Final = 2**32 - 1


class EndState(Enum):
    """The states of an end as a whole."""

    #: The other end has not answered yet.
    CONNECTING = "connecting"
    OPEN = "open"
    #: Closed on this side.
    CLOSED = "closed"


class SendingState(Enum):
    """The states of the sending half: whether the peer gives credit, until nothing more is sent."""

    #: The peer has given no credit yet.
    UNKNOWN = "unknown"
    #: Nor has it when a keepalive was sent, whose answer shows whether it knows credit.
    ASKED = "asked"
    #: The peer knows no credit.
    UNLIMITED = "unlimited"
    #: The peer has given credit.
    GRANTED = "granted"
    #: The other end was told that no more data comes.
    SHUT = "shut"
    #: The end was closed or has failed.
    OVER = "over"


class ReceivingState(Enum):
    """The states of the receiving half."""

    OPEN = "open"
    #: This end drops what comes.
    READ_SHUT = "read shut"
    #: The other end has said that no more data comes.
    ENDED = "ended"
    #: The end was closed or has failed.
    OVER = "over"


_ASKED, _GRANTED, _SHUT, _OVER = SendingState.ASKED, SendingState.GRANTED, SendingState.SHUT, SendingState.OVER
_RECEIVING, _READ_SHUT, _ENDED = ReceivingState.OPEN, ReceivingState.READ_SHUT, ReceivingState.ENDED


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What an end of a stream needs of its Stream.

    Attributes:
        core: of its socket.
        outbox: for control messages.
        hub: of its thread.
        forget: called with an end that needs no more messages; perhaps more than once.
        window: bytes that are kept for a reader.
    """

    core: ProtocolSocket
    outbox: Outbox
    hub: Hub
    forget: Callable[[StreamEnd], object]
    window: int


@dataclass(slots=True)
class Liveness:
    """Signs of life of the other end, for the keepalive.

    Attributes:
        alive: whether a message has come since the last check.
        since: the time of the last check that found one, put off by the time in which none could come.
        probes: keepalives sent since then.
    """

    alive: bool = True
    since: float = field(default_factory=monotonic)
    probes: int = 0


class SendingHalf(StateMachine):
    """The sending half of an end: its credit.

    Attributes:
        state: a :class:`SendingState`.
        sent: bytes sent from the start.
        knows_credit: whether credit has come: then the peer is no Go program, and also knows the end of data.
        credit: bytes that may be sent now.
        writers: greenlets that wait for credit.
    """

    __slots__ = ("credit", "knows_credit", "sent", "state", "writers")

    _moves = {
        SendingState.UNKNOWN: {
            SendingState.ASKED,
            SendingState.UNLIMITED,
            SendingState.GRANTED,
            SendingState.SHUT,
            SendingState.OVER,
        },
        SendingState.ASKED: {SendingState.UNLIMITED, SendingState.GRANTED, SendingState.SHUT, SendingState.OVER},
        # A credit may come late.
        SendingState.UNLIMITED: {SendingState.GRANTED, SendingState.SHUT, SendingState.OVER},
        SendingState.GRANTED: {SendingState.SHUT, SendingState.OVER},
        SendingState.SHUT: {SendingState.OVER},
        SendingState.OVER: frozenset[SendingState](),
    }

    def __init__(self, hub: Hub) -> None:
        self.state = SendingState.UNKNOWN
        self.sent = 0
        self.knows_credit = False
        self.credit = FIRST_CREDIT
        self.writers = WaitList(hub, self._may_write)

    def _may_write(self) -> bool:
        return self.credit > 0 or self.state is _SHUT or self.state is _OVER

    def ask(self) -> bool:
        """Record that a keepalive is sent. Return whether it is the first one, and there is no credit yet."""
        return self._move(SendingState.ASKED)

    def grant(self, size: int) -> None:
        """Add credit that has come."""
        self.knows_credit = True
        if self.state is _GRANTED:
            self.credit += size
        elif self._move(SendingState.GRANTED):
            self.credit = size - self.sent
        self.writers.wake()

    def lift_limit(self) -> None:
        """Allow any number of bytes: the peer knows no credit."""
        if self._move(SendingState.UNLIMITED):
            self.credit = _ANY
            self.writers.wake()

    def shut(self) -> bool:
        """Send nothing more. Return False if that was decided before."""
        if not self._move(SendingState.SHUT):
            return False
        self.credit = 0
        self.writers.wake_all()
        return True

    def end(self) -> None:
        """Wake all writers: the end was closed or has failed."""
        self._move(SendingState.OVER)
        self.credit = 0
        self.writers.wake_all()


class ReaderBuffer:
    """The memory of a reader: large pieces of data are read into it as they come, until :meth:`end` is called.

    What has come by then and was not taken goes to the front of the half's buffer: so a reader that is killed, or whose
    time is over, loses nothing.

    Args:
        half: the receiving half. Its buffer is empty, and no other memory is lent to it.
        view: the memory, to be written to.

    Attributes:
        size: bytes that have come and were not taken.
        full: whether no memory is left.
    """

    __slots__ = ("_half", "_view", "full", "size")

    def __init__(self, half: ReceivingHalf, view: memoryview) -> None:
        self._half = half
        self._view = view
        self.size = 0
        self.full = not view
        half.reader_buffer = self

    # For the pipe

    def space(self, size: int) -> memoryview:
        return self._view[self.size : self.size + size]

    def filled(self, size: int, ends: bool) -> bool:
        self.size += size
        full = self.full = self.size == len(self._view)
        if (ends or full) and self._half.readers.waiters:
            self._half.readers.wake()
        return not full

    # For the reader

    def take(self) -> int:
        """Return how many bytes have come. Nothing more comes."""
        size, self.size = self.size, 0
        self.end()
        return size

    def end(self) -> None:
        """Read nothing more into the memory. May be repeated."""
        half = self._half
        if half.reader_buffer is self:
            half.reader_buffer = None
            if self.size:
                half.buffer.put_first(bytes(self._view[: self.size]))
                self.size = 0


class ReceivingHalf(StateMachine):
    """The receiving half of an end: its buffer.

    Attributes:
        state: a :class:`ReceivingState`.
        buffer: bytes that have come and nobody has read.
        reader_buffer: where more of them may be read to while ``buffer`` is empty, None if no reader waits.
        limit: bytes that the peer may send beyond what was read.
        owed: bytes that were read, and for which the peer has got no credit yet.
        readers: greenlets that wait for something to read.
        queued_in_socket: whether messages for this end go through the socket's receive queue, as some are there.
        pipe_lost: while ``queued_in_socket``: why the pipe has closed, "" if it has not.
        not_full: the greenlet that waits to deliver a message from the socket's receive queue.
    """

    __slots__ = ("buffer", "limit", "not_full", "owed", "pipe_lost", "queued_in_socket", "reader_buffer", "readers",
                 "state")  # fmt: skip

    _moves = {
        ReceivingState.OPEN: {ReceivingState.READ_SHUT, ReceivingState.ENDED, ReceivingState.OVER},
        # In READ_SHUT and ENDED readers get the end of data, also if the end fails: they have no OVER after them.
        ReceivingState.READ_SHUT: {ReceivingState.ENDED},
        ReceivingState.ENDED: frozenset[ReceivingState](),
        ReceivingState.OVER: {ReceivingState.READ_SHUT},
    }

    def __init__(self, hub: Hub) -> None:
        self.state = ReceivingState.OPEN
        self.buffer = ByteQueue()
        self.reader_buffer: ReaderBuffer | None = None
        self.limit = FIRST_CREDIT
        self.owed = 0
        self.readers = WaitList(hub, self._may_read)
        self.queued_in_socket = False
        self.pipe_lost = ""
        self.not_full = WaitList(hub, self.takes_more)

    def _may_read(self) -> bool:
        filled = self.reader_buffer
        return bool(self.buffer.size or (filled is not None and filled.size)) or self.state is not _RECEIVING

    def takes_more(self) -> bool:
        """Return whether a message from the socket's receive queue may be delivered."""
        return len(self.buffer) < self.limit or self.state is not _RECEIVING

    def shut(self) -> int:
        """Drop what has come and what will come. Return the number of bytes dropped now."""
        self._move(ReceivingState.READ_SHUT)
        self.readers.wake_all()
        return self.buffer.clear()

    def finish(self) -> None:
        """Record that no more data comes."""
        self._move(ReceivingState.ENDED)
        self.readers.wake_all()

    def end(self) -> None:
        """Wake all that wait: the end was closed or has failed. What has come can still be read."""
        self._move(ReceivingState.OVER)
        self.readers.wake_all()
        self.not_full.wake_all()


class StreamEnd(StateMachine):
    """One end of a stream, to be read from, written to and closed by a StreamSocket.

    Attributes:
        id: this end's id, 4 bytes.
        path: the path to the other end, with its id at the end; empty until that has answered.
        pipe: the first pipe on that path.
        state: an :class:`EndState`.
        error: the error that readers get after what has come, None if there is none.
        by_peer: whether the other end has opened the stream.
        received_before: how many messages had come by the pipe when the stream was assigned to it.
        sending: the sending half.
        receiving: the receiving half.
        liveness: signs of life of the other end.
    """

    __slots__ = (
        "_context",
        "by_peer",
        "error",
        "id",
        "liveness",
        "path",
        "pipe",
        "received_before",
        "receiving",
        "sending",
        "state",
    )

    _moves = {
        EndState.CONNECTING: {EndState.OPEN, EndState.CLOSED},
        EndState.OPEN: {EndState.CLOSED},
        EndState.CLOSED: frozenset[EndState](),
    }

    def __init__(self, context: StreamContext, ident: bytes) -> None:
        self._context = context
        self.id = ident
        self.path = b""
        self.pipe: Pipe | None = None
        self.state = EndState.CONNECTING
        self.error: MultiSocketError | None = None
        self.by_peer = False
        self.received_before = 0
        self.sending = SendingHalf(context.hub)
        self.receiving = ReceivingHalf(context.hub)
        self.liveness = Liveness()

    # Opening

    @property
    def over(self) -> bool:
        """Whether the end was closed or has failed, so that nothing can be sent or received any more."""
        return self.sending.state is _OVER

    @property
    def connecting(self) -> bool:
        """Whether the other end has not answered yet."""
        return self.state is EndState.CONNECTING and self.error is None

    def open(self, pipe: Pipe, path: bytes) -> None:
        """Set the path to the other end, which has answered, or has opened the stream."""
        if self._move(EndState.OPEN):
            self.pipe = pipe
            self.path = path
            self.receiving.readers.wake_all()

    def wait_open(self, timeout: float | None) -> None:
        """Block until the other end has answered.

        Raises:
            Timeout, PeerGone, ConnectionRefused, Closed: it has not.
        """
        deadline = Deadline(timeout)
        while self.connecting:
            if not self.receiving.readers.wait(deadline.left()):
                raise Timeout("connect", timeout)
        if self.error is not None and not self.path:
            raise copy(self.error)

    def greet(self) -> None:
        """Tell a peer that its connection is open, and give it credit for the time until it is accepted."""
        self._post("open", ANSWER)
        self._grant(FIRST_CREDIT, self._context.outbox.post)

    def admit(self, greeted: bool) -> None:
        """Give the peer credit for the whole window: the program has the connection now."""
        self.receiving.limit = self._context.window
        rest = self.receiving.limit - (FIRST_CREDIT if greeted else 0)
        if rest and not self.over:
            self._grant(rest, self._context.outbox.post)
        self.receiving.not_full.wake()

    # Receiving

    def deliver(self, message: Message) -> bool:
        """Take a message; a callback of the core. Return False if it must wait in the socket's receive queue."""
        self.liveness.alive = True
        receiving = self.receiving
        if receiving.queued_in_socket:
            return False
        content = message.content
        if message.flags & CONTROL:
            self._control(content)
            return True
        held = len(receiving.buffer)
        if held and held + len(content) > receiving.limit:
            # A peer that keeps to its credit never comes here.
            receiving.queued_in_socket = True
            return False
        self._data(content)
        return True

    def deliver_queued(self, message: Message) -> None:
        """Take a message that has waited in the socket's receive queue. Blocks while the buffer is full."""
        while not self.receiving.takes_more():
            self.receiving.not_full.wait(None)
        if message.flags & CONTROL:
            self._control(message.content)
        else:
            self._data(message.content)

    def buffer_for_piece(self) -> ReaderBuffer | None:
        """Return where the pipe is to read a large piece of data to, or None: then it comes as a message."""
        receiving = self.receiving
        lent = receiving.reader_buffer
        if lent is None or lent.full or receiving.buffer.size or receiving.queued_in_socket:
            return None
        if receiving.state is not _RECEIVING:
            return None
        self.liveness.alive = True
        return lent

    def _data(self, content: bytes) -> None:
        receiving = self.receiving
        if receiving.state is _RECEIVING:
            receiving.buffer.append(content)
            receiving.readers.wake()
        elif receiving.state is _READ_SHUT:
            self._count_read(len(content), self._context.outbox.post)

    def _control(self, content: bytes) -> None:
        if content == KEEP_ALIVE:
            self._post(ANSWER, ANSWER)
        elif content == ANSWER:
            if self.sending.state is _ASKED:
                self.sending.lift_limit()
        elif content == END:
            self.receiving.finish()
            self._forget_if_done()
        elif content == RESET:
            self.fail(StreamReset(errno.ECONNRESET, "the other end has closed it"))
        elif content[:1] == CREDIT and len(content) == 5:
            self.sending.grant(int.from_bytes(content[1:], "big"))

    def was_read(self, size: int) -> None:
        """Give the peer credit for bytes that the program has read; it is sent in large portions."""
        self._count_read(size, self._context.outbox.send)

    def _count_read(self, size: int, send: Callable[[Pipe, object, Message], object]) -> None:
        receiving = self.receiving
        receiving.owed += size
        if receiving.owed >= receiving.limit // _PORTIONS and receiving.state is not _ENDED and not self.over:
            self._grant(receiving.owed, send)
            receiving.owed = 0
        if receiving.not_full.waiters:
            receiving.not_full.wake()

    def _grant(self, size: int, send: Callable[[Pipe, object, Message], object]) -> None:
        assert self.pipe is not None
        unsent = self._context.outbox.pending(self.pipe, (self.id, CREDIT))
        if unsent is not None:
            # One message for both: a peer that does not read must not pile them up. Only a peer that ignores its credit
            # can reach the limit.
            size = min(size + int.from_bytes(unsent.content[1:], "big"), _MAX_CREDIT)
        self._post(CREDIT, CREDIT + size.to_bytes(4, "big"), send)

    # Sending

    def send(self, data: memoryview, size: int) -> int:
        """Send data, for which there is credit, by the pipe, which is writable. Never blocks.

        Args:
            data: at least one byte.
            size: the most for one message, in bytes.

        Returns:
            How many bytes were sent. 0 only if the pipe has closed.
        """
        assert self.pipe is not None
        sent = self._context.core.put_pieces(self.pipe, self.id, self.path, data, size)
        sending = self.sending
        sending.sent += sent
        sending.credit -= sent
        return sent

    def ask_credit(self) -> None:
        """Send a keepalive to a peer that has given no credit, once; the answer shows whether it knows credit."""
        if self.sending.ask():
            self._post(KEEP_ALIVE, KEEP_ALIVE)

    def probe(self) -> None:
        """Send a keepalive."""
        assert self.pipe is not None
        if self._context.outbox.pending(self.pipe, (self.id, KEEP_ALIVE)) is None:
            self.liveness.probes += 1
            self.sending.ask()
            self._post(KEEP_ALIVE, KEEP_ALIVE)
        # Else the pipe is not writable, which says nothing about the other end.

    def _post(
        self, key: object, content: bytes, send: Callable[[Pipe, object, Message], object] | None = None
    ) -> None:
        assert self.pipe is not None
        message = Message(CONTROL | TO_DEST, source=self.id, destination=self.path, content=content)
        (send or self._context.outbox.post)(self.pipe, (self.id, key), message)

    # Ending

    def shut_write(self) -> None:
        """Tell the other end that no more data comes, once. It leaves after the data, which is queued in the pipe."""
        if self.sending.shut():
            self._post(END, END)
            self._forget_if_done()

    def shut_read(self) -> None:
        """Drop what has come and what will come."""
        self.was_read(self.receiving.shut())

    def _forget_if_done(self) -> None:
        """Leave the Stream when both halves have ended; what has come can still be read."""
        if self.receiving.state is _ENDED and self.sending.state is _SHUT:
            self._context.forget(self)

    def close(self, abort: bool = False) -> None:
        """Close this end. The other end reads what was sent and then the end; an error if this is an ``abort``."""
        was_open = self.state is EndState.OPEN and self.error is None
        if not self._move(EndState.CLOSED):
            return
        unread = self.receiving.buffer.clear()
        if was_open:
            abort = abort and self.sending.state is not _SHUT
            if not abort:
                self.shut_write()
            if abort or (unread and self.receiving.state is not _ENDED):
                self._post(RESET, RESET)
        self._end()

    def fail(self, error: MultiSocketError) -> None:
        """End both halves with an error, which readers get after what has come."""
        if not self.over:
            self.error = error
            self._end()

    def _end(self) -> None:
        self._context.forget(self)
        self.sending.end()
        self.receiving.end()
