"""One end of a stream as seen from the wire: what comes and goes for it, and the credit that bounds it.

Data are messages to a destination: along the path to the other end, whose last id is that end's own id; this end's id
is the last of their source. Control messages (flag 0x20) go the same way:

* 0x00: are you there? 0x01: yes.
* 0x02: no more data will come from here.
* 0x03 and 4 bytes, big-endian: so many more bytes may be sent. Counted from the start of the stream, so that what was
  sent before the first of these came counts too. Who has heard none sends at most ``FIRST_CREDIT`` bytes, asks (0x00),
  and takes an answer that no credit has come before, or none in time, for a sign of a peer that knows no credit: a Go
  program, to which any number of bytes may be sent.
* 0x04: there is no such stream, or not any more. (Go programs drop this and the two above unread.)

A reader that does not read stops so its own stream, and no other. The data of a peer that knows no credit cannot be
stopped that way: what is over the window is left in the socket's receive queue, whose being full holds up the pipe.

What programs do with an end is in :mod:`.connection`, what brings the messages here in :mod:`.stream`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Final

from gevent.hub import Hub

from ..core.pipe import Pipe
from ..core.seam import Seam
from ..errors import MultiSocketError, StreamReset, Timeout
from ..loop.waiting import Deadline, WaitList
from ..wire import CONTROL, TO_DEST, Message
from .bytequeue import ByteQueue
from .outbox import Outbox

__all__ = ["ANSWER", "CREDIT", "END", "FIRST_CREDIT", "KEEP_ALIVE", "PIECE", "RESET", "Carrier", "Link", "LinkState"]

KEEP_ALIVE: Final = b"\x00"
ANSWER: Final = b"\x01"
END: Final = b"\x02"
CREDIT: Final = b"\x03"
RESET: Final = b"\x04"

#: Bytes that may be sent to a peer that has not said how many.
FIRST_CREDIT: Final = 65536

#: The longest content of a data message, in bytes, where the socket sends such: what any peer takes unless told not to.
PIECE: Final = 131072


class LinkState(Enum):
    """Where one end stands."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSED = "closed"


_MOVES = {
    LinkState.CONNECTING: {LinkState.OPEN, LinkState.CLOSED},
    LinkState.OPEN: {LinkState.CLOSED},
    LinkState.CLOSED: frozenset[LinkState](),
}


@dataclass(frozen=True, slots=True)
class Carrier:
    """What the ends of streams need of the Stream that carries them.

    Attributes:
        seam: to its socket.
        outbox: for control messages.
        hub: of its thread.
        gone: told when an end wants nothing more of what comes for it; perhaps more than once.
        window: as many bytes are held for a reader.
    """

    seam: Seam
    outbox: Outbox
    hub: Hub
    gone: Callable[[Link], object]
    window: int


class Link:
    """One end of a stream, to be read from, written to and closed by a Connection.

    Attributes:
        id: this end's id, 4 bytes.
        path: the way to the other end, with its id at the end; empty until that has answered.
        pipe: the first pipe on that way.
        state: where it stands.
        error: why it has failed, raised once all is read that has come; None while it has not.
        buffer: what has come and nobody has read.
        ended: whether the other end has said that nothing more comes.
        deaf: whether this end wants to hear no more.
        said_end: whether the other end was told that nothing more comes.
        readers: greenlets that wait for something to read.
        writers: greenlets that wait for credit.
        knows_credit: whether the peer has shown that it does.
        alive: for the Stream: whether something came since it last looked;
        since: when that was;
        probes: how often the other end was asked since;
        spilled: whether what comes goes by way of the socket's receive queue;
        orphaned: why the pipe has closed meanwhile.
    """

    __slots__ = (
        "_allowed",
        "_asked",
        "_carrier",
        "_grants",
        "_limit",
        "_owed",
        "_room",
        "_sent",
        "alive",
        "buffer",
        "deaf",
        "ended",
        "error",
        "id",
        "knows_credit",
        "orphaned",
        "path",
        "pipe",
        "probes",
        "readers",
        "said_end",
        "since",
        "spilled",
        "state",
        "writers",
    )

    def __init__(self, carrier: Carrier, ident: bytes) -> None:
        self._carrier = carrier
        self.id = ident
        self.path = b""
        self.pipe: Pipe | None = None
        self.state = LinkState.CONNECTING
        self.error: MultiSocketError | None = None
        # Receiving
        self.buffer = ByteQueue()
        self._limit = FIRST_CREDIT
        self.readers = WaitList(carrier.hub, self._may_read)
        self.ended = False
        self.deaf = False
        #: Bytes that were read and not yet made up for by credit, and how often that was done.
        self._owed = self._grants = 0
        # Sending. Bytes that were sent, and that may be, both from the start; None for any number.
        self._sent = 0
        self._allowed: int | None = FIRST_CREDIT
        self.knows_credit = False
        self._asked = False
        self.writers = WaitList(carrier.hub, self._may_write)
        self.said_end = False
        # For the Stream
        self.alive = True
        self.since = monotonic()
        self.probes = 0
        self.spilled = False
        self.orphaned = ""
        self._room = WaitList(carrier.hub, self._has_room)

    # Where it stands

    @property
    def over(self) -> bool:
        """Whether nothing can be sent or received any more, by an error or because it was closed."""
        return self.error is not None or self.state is LinkState.CLOSED

    @property
    def connecting(self) -> bool:
        """Whether the other end is still to answer."""
        return self.state is LinkState.CONNECTING and self.error is None

    def _move(self, state: LinkState) -> bool:
        if state not in _MOVES[self.state]:
            return False
        self.state = state
        return True

    def open(self, pipe: Pipe, path: bytes) -> None:
        """Know where the other end is."""
        if self._move(LinkState.OPEN):
            self.pipe = pipe
            self.path = path
            self.readers.wake_all()

    def wait_open(self, timeout: float | None) -> None:
        """Block until the other end has answered.

        Raises:
            Timeout, PeerGone, ConnectionRefused, Closed: it has not.
        """
        deadline = Deadline(timeout)
        while self.connecting:
            if not self.readers.wait(deadline.left()):
                raise Timeout("connect", timeout)
        if self.error is not None and not self.path:
            raise copy(self.error)

    def admit(self, greeted: bool) -> None:
        """Grant the peer the whole window, now that somebody has the connection."""
        self._limit = self._carrier.window
        rest = self._limit - (FIRST_CREDIT if greeted else 0)
        if rest and not self.over:
            self._grant(rest)
        self._room.wake()

    def greet(self) -> None:
        """Tell a peer that its connection is open, and grant what it may send before anybody has accepted that."""
        self._post("open", ANSWER)
        self._grant(FIRST_CREDIT)

    # What comes

    def take(self, message: Message) -> bool:
        """Take what has come; a callback of the seam. False if it is to wait in the socket's receive queue."""
        self.alive = True
        if self.spilled:
            return False
        size = len(message.content)
        if not message.flags & CONTROL and self.buffer and len(self.buffer) + size > self._limit:
            # A peer that keeps to its credit never comes here.
            self.spilled = True
            return False
        self._arrived(message)
        return True

    def take_later(self, message: Message) -> None:
        """Take what has waited in the receive queue. Blocks until there is room."""
        while not self._has_room():
            self._room.wait(None)
        self._arrived(message)

    def _has_room(self) -> bool:
        return len(self.buffer) < self._limit or self.deaf or self.over

    def _arrived(self, message: Message) -> None:
        content = message.content
        if message.flags & CONTROL:
            self._control(content)
        elif self.over or self.ended:
            return
        elif self.deaf:
            self.was_read(len(content))
        else:
            self.buffer.append(content)
            self.readers.wake()

    def _control(self, content: bytes) -> None:
        if content == KEEP_ALIVE:
            self._post(ANSWER, ANSWER)
        elif content == ANSWER:
            if self._asked and not self.knows_credit:
                self.trust()
        elif content == END:
            self.ended = True
            self.readers.wake_all()
            self._is_done()
        elif content == RESET:
            self.fail(StreamReset(errno.ECONNRESET, "the other end has closed it"))
        elif content[:1] == CREDIT and len(content) == 5:
            size = int.from_bytes(content[1:], "big")
            self._allowed = (self._allowed or 0) + size if self.knows_credit else size
            self.knows_credit = True
            self.writers.wake()

    def _may_read(self) -> bool:
        return bool(self.buffer) or self.ended or self.deaf or self.over

    def was_read(self, size: int) -> None:
        """Let the peer send as much again; told in large portions."""
        self._owed += size
        if self._owed >= self._limit // 2 and not self.ended and not self.over:
            self._grant(self._owed)
            self._owed = 0
        if self._room.waiters:
            self._room.wake()

    def _grant(self, size: int) -> None:
        # Each under a key of its own: one that waits to leave must not be replaced by the next.
        self._grants += 1
        self._post(self._grants, CREDIT + size.to_bytes(4, "big"))

    # What goes

    @property
    def credit(self) -> int:
        """How many bytes may be sent now."""
        return PIECE if self._allowed is None else self._allowed - self._sent

    def _may_write(self) -> bool:
        return self.credit > 0 or self.said_end or self.over

    def send(self, data: bytes) -> None:
        """Send data for which there is credit, and room in the pipe. Never blocks."""
        assert self.pipe is not None
        self._sent += len(data)
        message = Message(TO_DEST, source=self.id, destination=self.path, content=data)
        self._carrier.seam.put(self.pipe, message)

    def ask_credit(self) -> None:
        """Ask a peer that has not shown yet whether it knows credit; the answer shows it."""
        if not self._asked:
            self._asked = True
            self._post(KEEP_ALIVE, KEEP_ALIVE)

    def trust(self) -> None:
        """Take the peer for one that knows no credit, and send what there is to send."""
        self._allowed = None
        self.writers.wake()

    def probe(self) -> None:
        """Ask whether the other end is there."""
        assert self.pipe is not None
        if self._carrier.outbox.pending(self.pipe, (self.id, KEEP_ALIVE)) is None:
            self.probes += 1
            self._asked = True
            self._post(KEEP_ALIVE, KEEP_ALIVE)
        # Else the pipe is held up, which says nothing about the other end.

    def _post(self, key: object, content: bytes) -> None:
        assert self.pipe is not None
        message = Message(CONTROL | TO_DEST, source=self.id, destination=self.path, content=content)
        self._carrier.outbox.post(self.pipe, (self.id, key), message)

    # Ending

    def say_end(self) -> None:
        """Say that no more data comes, once. It leaves after the data, which is in the pipe's queue by now."""
        if not self.said_end and self.error is None:
            self.said_end = True
            self._post(END, END)
            self.writers.wake_all()
            self._is_done()

    def listen_no_more(self) -> None:
        """Drop what has come and what will come."""
        self.deaf = True
        self.readers.wake_all()
        self.was_read(self.buffer.clear())

    def _is_done(self) -> None:
        """Leave the Stream when nothing more is to come or to be sent; what has come can still be read."""
        if self.ended and self.said_end:
            self._carrier.gone(self)

    def close(self, abort: bool = False) -> None:
        """Close this end. The other end reads what was sent and then the end, or an error if this is an ``abort``."""
        open_before = self.state is LinkState.OPEN and self.error is None
        if not self._move(LinkState.CLOSED):
            return
        unread = self.buffer.clear()
        if open_before:
            abort = abort and not self.said_end
            if not abort:
                self.say_end()
            if abort or (unread and not self.ended):
                self._post(RESET, RESET)
        self._leave()

    def fail(self, error: MultiSocketError) -> None:
        """End both directions with an error, which is raised once all is read that has come."""
        if not self.over:
            self.error = error
            self._leave()

    def _leave(self) -> None:
        self._carrier.gone(self)
        for waiting in (self.readers, self.writers, self._room):
            waiting.wake_all()
