"""The writing half of a pipe over anything that carries bytes. What the bytes mean is for the subclasses.

The first frame that an idle pipe gets in a turn of the loop is given to the kernel at once, in the greenlet that sends.
The following frames of that turn are queued and leave in one system call: when the turn ends, or when the queue is
full. Only when the kernel takes no more does the pipe start a writer greenlet, which waits for the kernel and ends when
everything has left: an idle pipe has no writer. No other greenlet ever waits for the connection, so a sender that is
killed or times out never leaves half a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, Protocol, cast

import gevent
from gevent import Greenlet, getcurrent

from ...errors import MultiSocketError
from ...transport import StreamConnection
from ...wire import INTERNAL, SEND_TYPE_MASK, TO_DEST, TO_ONE, Message
from .pipe import Pipe, PipeEndpoint, PipeOwner, PipeState
from .scheduler import FLUSH_BYTES

__all__ = ["LARGE", "Frame", "LargeFrame", "SharedQueue", "WritePipe"]

#: A content of this size in bytes is not copied behind its header.
LARGE: Final = 1 << 15


class _Busy(IntEnum):
    """What a pipe does with the next frame."""

    IDLE = 0  # gives it to the kernel
    TURN = 1  # queues it: something was sent in this turn, and the end of the turn sends the rest
    BLOCKED = 2  # queues it: the writer waits for the kernel


_IDLE, _TURN, _BLOCKED = _Busy.IDLE, _Busy.TURN, _Busy.BLOCKED


class _Control(bytes):
    """Bytes between frames that the pipe itself owes the peer: not a message, never requeued."""


class LargeFrame:
    """A frame that is queued in two parts, because its content is too large to be copied behind its header."""

    __slots__ = ("content", "head")

    def __init__(self, head: bytes, content: bytes | memoryview) -> None:
        self.head = head
        self.content = content

    def __len__(self) -> int:
        return len(self.head) + len(self.content)

    def joined(self) -> bytes:
        """Return the whole frame."""
        return self.head + self.content

    def rest(self, taken: int) -> memoryview:
        """Return the frame without its first ``taken`` bytes."""
        if taken >= len(self.head):
            return memoryview(self.content)[taken - len(self.head) :]
        return memoryview(self.joined())[taken:]


#: What a pipe queues.
Frame = bytes | LargeFrame


class SharedQueue(Protocol):
    """The frames of this turn that several pipes write alike; see ``sending/fanout.py``."""

    pending: list[bytes]
    pending_bytes: int

    def remove(self, pipe: WritePipe) -> None:
        """Remove a pipe, which takes over the pending frames."""


class WritePipe(Pipe):
    """A pipe that writes bytes."""

    __slots__ = (
        "_busy",
        "_confirmed",
        "_fan_out",
        "_partial",
        "_queue",
        "_queued_bytes",
        "_scheduler",
        "_send",
        "_unconfirmed",
        "_writer",
    )

    _connection: StreamConnection

    def __init__(self, pipe_id: int, connection: StreamConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._scheduler = owner.scheduler
        self._send = connection.send
        self._queue: list[Frame] = []
        self._queued_bytes = 0
        #: The rest of a frame of which the kernel has taken only the beginning.
        self._partial: memoryview | None = None
        self._busy = _IDLE
        self._writer: Greenlet[..., Any] | None = None
        #: The fan-out that this pipe is in step with. All that the pipe was given has left, or waits in the fan-out.
        self._fan_out: SharedQueue | None = None
        #: Messages that are known to be acknowledged; there may be more.
        self._confirmed = 0
        self._unconfirmed = (0, 0)

    @property
    def unacknowledged(self) -> int:
        return self._connection.unacknowledged()

    def _backlog(self) -> tuple[int, int]:
        waiting, size, partial, fan_out = len(self._queue), self._queued_bytes, self._partial, self._fan_out
        if partial is not None:
            waiting += 1
            size += len(partial)
        if fan_out is not None:
            waiting += len(fan_out.pending)
            size += fan_out.pending_bytes
        return waiting, size

    # Frames from senders

    def _push(self, frame: bytes) -> None:
        """Send one frame, or queue it."""
        if self._fan_out is not None and (self._busy or self._fan_out.pending):
            self._leave_fan_out()
        if self._busy:
            queue = self._queue
            queue.append(frame)
            self._queued_bytes += len(frame)
            scheduler = self._scheduler
            if len(queue) >= scheduler.queue_limit or self._queued_bytes >= scheduler.flush_bytes:
                self._flush_early()
            return
        self._busy = _TURN
        scheduler = self._scheduler
        scheduler.mark(self)
        if scheduler.gathering:
            self._push(frame)
            return
        try:
            taken = self._send(frame)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._break([frame], error)
            return
        if taken == len(frame):
            self.messages_sent += 1
            self.bytes_sent += taken
            return
        self._leave_fan_out()
        self._put_back([frame], taken)

    def _push_later(self, frame: bytes) -> None:
        """Queue one frame, to be sent when the turn ends."""
        if not self._busy:
            if self._fan_out is not None:
                self._leave_fan_out()
            if not self._busy:
                self._busy = _TURN
                self._scheduler.mark(self)
        self._push(frame)

    def _put_pieces(self, ttl: int, source: bytes, destination: bytes, data: memoryview, size: int) -> int:
        if len(data) < LARGE or size < LARGE or type(data.obj) is not bytes:
            return super()._put_pieces(ttl, source, destination, data, size)
        # Nobody can change it: it is written from where it is.
        content = data[:size]
        self._put(TO_DEST, ttl, source, destination, cast(bytes, content))
        return len(content)

    def _push_large(self, frame: LargeFrame) -> None:
        """Send one large frame after the queued ones, at once if the kernel takes it."""
        if self._fan_out is not None:
            self._leave_fan_out()
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._busy == _BLOCKED:
            self._update_full()
            return
        if not self._busy:
            self._busy = _TURN
            self._scheduler.mark(self)
        self._scheduler.spend(1, len(frame))
        self._flush()

    def _flush_early(self) -> None:
        """Write before the end of the turn, because the queue is long, and count it for the sender's budget."""
        if self._busy == _BLOCKED:
            self._update_full()
        else:
            self._scheduler.spend(len(self._queue), self._queued_bytes)
            self._flush()

    def _push_control(self, data: bytes) -> None:
        """Send bytes that are no message, in order with the frames, however full the queue is."""
        if self.state is PipeState.OPEN:
            # It leaves as a frame does, and is counted as one then.
            self.messages_sent -= 1
            self._push(_Control(data))

    def _push_reply(self, data: bytes) -> None:
        """Send bytes that a protocol owes the peer, unless the peer does not read: they would pile up here."""
        if not self.full:
            self._push_control(data)

    def _push_last(self, data: bytes) -> bool:
        """Send the very last bytes, which are no message, if the kernel takes them now. Return whether it did."""
        # When the kernel takes no more, half a frame may have left.
        if self._busy == _BLOCKED:
            return False
        try:
            self._connection.send(data)
        except OSError:
            return False
        return True

    # The fan-out

    def _join_fan_out(self, fan_out: SharedQueue) -> None:
        """Write to-all messages in step with other pipes. Only while nothing is queued."""
        self._fan_out = fan_out

    def _send_shared(self, data: bytes, count: int) -> int:
        """Give ``count`` frames of the fan-out to the kernel, joined. Return how many bytes it took.

        Raises:
            OSError: the connection is broken.
        """
        try:
            taken = self._send(data)
        except BlockingIOError:
            return 0
        if taken == len(data):
            self.messages_sent += count
            self.bytes_sent += taken
        return taken

    def _leave_fan_out(self) -> None:
        """Take over the frames that the fan-out still holds for this pipe, and write alone."""
        fan_out = self._fan_out
        if fan_out is not None:
            self._fan_out = None
            fan_out.remove(self)
            if fan_out.pending:
                self._queue += fan_out.pending
                self._queued_bytes += fan_out.pending_bytes
                if not self._busy:
                    self._busy = _TURN
                    self._scheduler.mark(self)

    # The kernel

    def _put_back(self, frames: Sequence[Frame], taken: int) -> None:
        """Queue these frames, except for the first ``taken`` bytes, which the kernel has; then wait for the kernel."""
        self.bytes_sent += taken
        gone = 0
        while taken >= len(frames[gone]):
            taken -= len(frames[gone])
            gone += 1
        self.messages_sent += gone
        rest = list(frames[gone:])
        if taken:
            frame = rest.pop(0)
            self._partial = frame.rest(taken) if isinstance(frame, LargeFrame) else memoryview(frame)[taken:]
        self._queue[:0] = rest
        self._queued_bytes += sum(map(len, rest))
        self._block()

    def _block(self) -> None:
        """Wait in the writer greenlet until the kernel takes more."""
        self._busy = _BLOCKED
        if self._writer is None:
            self._writer = gevent.spawn(self._write_loop)
        self._update_full()

    def _update_full(self) -> None:
        scheduler = self._scheduler
        waiting = self._queue or self._partial is not None
        limit = scheduler.queue_bytes
        if waiting and (len(self._queue) >= scheduler.queue_limit or (limit and self._queued_bytes >= limit)):
            if not self.full:
                self._set_full()
        elif self.full and self.state is PipeState.OPEN:
            self._set_writable()

    def _flush(self) -> bool:
        """Give the queue to the kernel. Return whether the kernel took all of it; if not, the writer waits."""
        try:
            while self._partial is not None:
                taken = self._send(self._partial)
                self.bytes_sent += taken
                self._partial = self._partial[taken:] if taken < len(self._partial) else None
                self.messages_sent += self._partial is None
            queue = self._queue
            while queue:
                batch = queue if self._queued_bytes < LARGE else self._first_frames()
                size, taken = self._write(batch)
                self._queued_bytes -= size
                if taken < size:
                    frames = list(batch)
                    del queue[: len(frames)]
                    self._put_back(frames, taken)
                    return False
                self.messages_sent += len(batch)
                self.bytes_sent += taken
                del queue[: len(batch)]
        except BlockingIOError:
            self._block()
            return False
        except OSError as error:
            self._broken(error)
            return False
        if self.full:
            self._update_full()
        return True

    def _write(self, frames: list[Frame]) -> tuple[int, int]:
        """Give frames to the kernel, joined. Return their size, and how many bytes the kernel took."""
        first = frames[0]
        if len(frames) > 1:
            data = b"".join(cast("list[bytes]", frames))
        elif isinstance(first, bytes):
            data = first
        else:
            return len(first), self._connection.sendmsg([first.head, first.content])
        return len(data), self._send(data)

    def _first_frames(self) -> list[Frame]:
        """Return the queued frames for one system call. A large frame goes alone, and is not copied."""
        queue = self._queue
        size = count = 0
        for frame in queue:
            if len(frame) >= LARGE:
                count = count or 1
                break
            size += len(frame)
            count += 1
            if size >= FLUSH_BYTES:
                break
        return queue[:count]

    def _end_turn(self) -> None:
        if self._busy == _BLOCKED or self.state is not PipeState.OPEN:
            return
        try:
            if self._queue and not self._flush():
                return
        except BaseException:
            # ^C, say: once more in the next turn.
            self._scheduler.mark(self)
            raise
        self._busy = _IDLE
        if self._fan_out is None and self._fan_out_key is not None:
            self._owner.pipe_idle(self)

    def _write_loop(self) -> None:
        """Wait for the kernel until everything has left (the writer greenlet)."""
        try:
            while self.state is PipeState.OPEN:
                self._connection.wait_writable()
                if self.state is PipeState.OPEN and self._flush():
                    # As at the end of a turn: in order, and after the frames that the fan-out holds.
                    self._busy = _TURN
                    self._scheduler.mark(self)
                    return
        except OSError as error:
            if self.state is PipeState.OPEN:
                self._broken(error)
        except BaseException as error:
            # Nobody expects it. Without its writer the pipe would stay full forever.
            self._close(f"sending failed: {type(error).__name__}: {error}")
            raise
        finally:
            self._writer = None

    # A broken connection

    def _break(self, frames: Sequence[Frame], error: OSError) -> None:
        """Queue these frames, which were not sent because of an error of the connection, and stop sending."""
        self._queue += frames
        self._broken(error)

    def _broken(self, error: OSError) -> None:
        """Stop sending: the connection cannot be written to any more."""
        raise NotImplementedError

    def _drop_oldest(self) -> bool:
        for index, entry in enumerate(self._queue):
            if not isinstance(entry, _Control) and self._may_drop(entry):
                del self._queue[index]
                self._queued_bytes -= len(entry)
                self._drop("overflow")
                return True
        return False

    def _may_drop(self, entry: Frame) -> bool:
        # No protocol has control messages that are large.
        if self._owner.lost_hook is None or isinstance(entry, LargeFrame):
            return True
        message = self._unframe(entry)
        # What nobody misses when its peer has gone is about that peer's state: while it is there, it waits for that.
        return message is None or self._owner.is_loss(message)

    def _take_queue(self) -> tuple[list[Message], int, int]:
        self._leave_fan_out()
        queue, self._queue = self._queue, []
        half_sent, self._partial = self._partial, None
        self._queued_bytes = 0
        unsent = []
        lost, useless = int(half_sent is not None and not isinstance(half_sent.obj, _Control)), 0
        for entry in queue:
            if isinstance(entry, _Control):
                self.messages_sent += 1
                continue
            message = self._unframe(entry.joined() if isinstance(entry, LargeFrame) else entry)
            if message is not None and message.flags & (SEND_TYPE_MASK | INTERNAL) == TO_ONE:
                unsent.append(message)
            elif message is None or self._owner.is_loss(message):
                lost += 1
            else:
                useless += 1
        return unsent, lost, useless

    def _unframe(self, entry: bytes) -> Message | None:
        """Return the message of a queued frame, None if it cannot be sent by another pipe."""
        return None

    # What the peer acknowledges

    def _acknowledged(self) -> int:
        """Return how many sent bytes the peer's kernel has acknowledged.

        With TLS it is less by what TLS has added to the others; it only grows if the peer acknowledges more, or
        ``bytes_sent`` does.
        """
        missing = self._connection.unacknowledged()
        if not missing and not self._queue:
            self._confirmed = self.messages_sent
        return self.bytes_sent - missing

    def _end_of_queue(self) -> int:
        """Return the value that ``bytes_sent`` has when all that is queued has left."""
        return self.bytes_sent + self._queued_bytes + (len(self._partial) if self._partial is not None else 0)

    def _count_unconfirmed(self) -> None:
        """Count what was sent and not acknowledged, while the kernel still knows it."""
        missing = self._connection.unacknowledged()
        if missing:
            messages = max(0, self.messages_sent - self._confirmed)
            if messages:
                messages = min(messages, max(1, round(missing * self.messages_sent / self.bytes_sent)))
            self._unconfirmed = (messages, missing)

    def _close(self, reason: str | MultiSocketError) -> None:
        if self.state is not PipeState.CLOSED:
            self._count_unconfirmed()
        super()._close(reason)

    def _join(self) -> None:
        if self._writer is not None and self._writer is not getcurrent():
            self._writer.join()
