"""Pipes over anything that carries bytes: how they write and read. What the bytes mean is their subclasses' business,
in ``framedpipe.py``, ``rawpipe.py`` and ``packetpipe.py``.

Writing. The first frame that an idle pipe gets in a turn of the loop is given to the kernel at once, in the
greenlet that sends. What follows in that turn is queued and leaves in one system call: when the turn ends, or when the
queue is full. Only when the kernel takes no more is a greenlet made, which waits for it and ends when all has left: an
idle pipe has no writer. Nobody else ever waits for the connection, so a killed or timed-out sender tears no frame.

Reading. One greenlet a pipe reads, decodes, and hands whole batches to the receiver, which holds it up while its
queue is full; the kernel's buffers then hold up the peer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import gevent
from gevent import Greenlet, GreenletExit, getcurrent
from greenlet import greenlet

from .. import options as opts
from ..errors import Closed, MultiSocketError
from ..transport import StreamConnection
from ..transport.stream import describe_os_error
from ..wire import INTERNAL, SEND_TYPE_MASK, TO_ONE, Fields, Message
from .pipe import Pipe, PipeState

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint
    from .fanout import FanOut

__all__ = ["BytesPipe", "LARGE", "LargeFrame"]

#: What sockets tell each other by internal messages: the first byte of the content. Others may follow in ping and pong.
CLOSE, PING, PONG = b"\x00", b"\x01", b"\x02"

#: As many queued bytes leave without waiting for the end of the turn, and as many are joined for one system call.
FLUSH_BYTES = 1 << 18

#: After so many bytes a reader lets others run. Receivers then free large contents while the allocator still has their
#: memory at hand: with 1 MiB instead, 64 KiB contents cost twice as much, all of it in page faults.
_READ_BUDGET = 1 << 17

#: A content of this size is not copied behind its header.
LARGE = 1 << 15

#: While the receiver has no room, a pipe decodes so many bytes at a time: the smallest frames take a dozen times the
#: memory once they are messages, and a peer may make a thousand connections.
_PORTION = 4096

#: How long, in seconds, a pipe that can send no more stays for what its peer had sent, while nothing of that is read.
DEAF_TIME = 5.0


class _Busy(IntEnum):
    """What a pipe does with the next frame."""

    IDLE = 0  # gives it to the kernel
    TURN = 1  # queues it: something was sent in this turn, and the turn's end sends the rest
    BLOCKED = 2  # queues it: the writer waits for the kernel


_IDLE, _TURN, _BLOCKED = _Busy.IDLE, _Busy.TURN, _Busy.BLOCKED


class _StopReading(BaseException):
    """Thrown into a reader that waits for room, to end it."""


class _NobodyReceives(_StopReading):
    """Thrown into the reader of a deaf pipe that waits for room in vain."""


class _Note(bytes):
    """Bytes between frames that the pipe itself owes the peer: not a message, never offered to another pipe."""


class LargeFrame:
    """A frame that is queued in two parts, because its content is too large to be copied behind its header."""

    __slots__ = ("content", "head")

    def __init__(self, head: bytes, content: bytes) -> None:
        self.head = head
        self.content = content

    def __len__(self) -> int:
        return len(self.head) + len(self.content)

    def joined(self) -> bytes:
        """Return the whole frame."""
        return self.head + self.content

    def rest(self, taken: int) -> memoryview:
        """Return what is left of the frame after its first bytes."""
        if taken >= len(self.head):
            return memoryview(self.content)[taken - len(self.head) :]
        return memoryview(self.joined())[taken:]


#: What a pipe queues.
_Frame = bytes | LargeFrame


class BytesPipe(Pipe):
    """A pipe that writes bytes."""

    __slots__ = (
        "_busy",
        "_deafness",
        "_decoder",
        "_error",
        "_goodbye",
        "_partial",
        "_queue",
        "_queued_bytes",
        "_reader",
        "_send",
        "_sender",
        "_waits_for_room",
        "_writer",
        "bytes_received",
        "beat",
        "fan_out",
        "pinged",
        "messages_received",
    )

    connection: StreamConnection

    def __init__(self, pipe_id: int, connection: StreamConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self._sender = connector.sender
        self._send = connection.send
        self.messages_received = 0
        self.bytes_received = 0
        self._queue: list[_Frame] = []
        self._queued_bytes = 0
        #: What the kernel has not yet taken of a frame that it has begun to take.
        self._partial: memoryview | None = None
        self._busy = _IDLE
        self._reader: greenlet | None = None
        self._writer: Greenlet[..., Any] | None = None
        self._waits_for_room = False
        #: The timer that looks after a deaf pipe.
        self._deafness: Any = None
        self._error: MultiSocketError | None = None
        #: Whether the peer has said that nothing more comes.
        self._goodbye = False
        #: The fan-out that this pipe is in step with: all that it was given has left, or waits in the fan-out.
        self.fan_out: FanOut | None = None
        #: For the heartbeat: what showed the peer alive when it last looked, and when that last changed.
        self.beat = (0, 0.0)
        self.pinged = False

    # Writing

    @property
    def queued(self) -> int:
        """How many messages wait to leave, one that is half gone included."""
        waiting = len(self._queue) + (self._partial is not None)
        if self.fan_out is not None:
            waiting += len(self.fan_out.pending)
        return waiting

    def _push(self, frame: bytes) -> None:
        """Send one frame, or queue it."""
        if self.fan_out is not None and (self._busy or self.fan_out.pending):
            self.leave_fan_out()
        if self._busy:
            queue = self._queue
            queue.append(frame)
            self._queued_bytes += len(frame)
            sender = self._sender
            if len(queue) >= sender.queue_limit or self._queued_bytes >= sender.flush_bytes:
                self._queue_is_long()
            return
        self._busy = _TURN
        self._sender.mark(self)
        try:
            taken = self._send(frame)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self.lose([frame], error)
            return
        if taken == len(frame):
            self.messages_sent += 1
            self.bytes_sent += taken
            return
        self.leave_fan_out()
        self.take_back([frame], taken)

    def _queue_is_long(self) -> None:
        """Ask the kernel before anybody has to wait; and have a sender that never waits yield."""
        if self._busy == _BLOCKED:
            self._check_full()
        else:
            self._sender.spend(len(self._queue), self._queued_bytes)
            self._flush()

    def _push_large(self, frame: LargeFrame) -> None:
        """Send one large frame after what is queued, at once if the kernel takes it."""
        if self.fan_out is not None:
            self.leave_fan_out()
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        if self._busy == _BLOCKED:
            self._check_full()
            return
        if not self._busy:
            self._busy = _TURN
            self._sender.mark(self)
        self._sender.spend(1, len(frame))
        self._flush()

    def _note(self, data: bytes) -> None:
        """Send bytes that are no message, in their place between the frames and however full the queue is."""
        if self.state is PipeState.OPEN:
            # A note leaves as a frame does, and would be counted as one.
            self.messages_sent -= 1
            self._push(_Note(data))

    def _answer(self, data: bytes) -> None:
        """Send what a protocol owes the peer, unless that does not read: its answers would pile up here."""
        if not self.full:
            self._note(data)

    def _last_words(self, data: bytes) -> bool:
        """Send the last bytes of all, which are no message, if the kernel takes them now. Return whether it did."""
        # Where it takes no more, a frame may be half gone.
        if self._busy == _BLOCKED:
            return False
        try:
            self.connection.send(data)
        except OSError:
            return False
        return True

    def leave_fan_out(self) -> None:
        """Take over what the fan-out still holds for this pipe, and go on alone."""
        fan_out = self.fan_out
        if fan_out is not None:
            fan_out.remove(self)
            if fan_out.pending:
                self._queue += fan_out.pending
                self._queued_bytes += fan_out.pending_bytes
                if not self._busy:
                    self._busy = _TURN
                    self._sender.mark(self)

    def take_back(self, frames: Sequence[_Frame], taken: int) -> None:
        """Queue what the kernel did not take of these frames, ``taken`` bytes of which it took; then wait for it."""
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
        """Have a greenlet wait until the kernel takes more."""
        self._busy = _BLOCKED
        if self._writer is None:
            self._writer = gevent.spawn(self._write_loop)
        self._check_full()

    def _check_full(self) -> None:
        sender = self._sender
        waiting = self._queue or self._partial is not None
        limit = sender.queue_bytes
        if waiting and (len(self._queue) >= sender.queue_limit or (limit and self._queued_bytes >= limit)):
            if not self.full:
                self._became_full()
        elif self.full and self.state is PipeState.OPEN:
            self._has_room()

    def _flush(self) -> bool:
        """Give the kernel what is queued. Return whether it took all; if not, the writer waits for it."""
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
                    self.take_back(frames, taken)
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
            self._check_full()
        return True

    def _write(self, frames: list[_Frame]) -> tuple[int, int]:
        """Give frames to the kernel, joined. Return their size, and how much of it was taken."""
        first = frames[0]
        if len(frames) > 1:
            data = b"".join(cast("list[bytes]", frames))
        elif isinstance(first, bytes):
            data = first
        else:
            return len(first), self.connection.sendmsg([first.head, first.content])
        return len(data), self._send(data)

    def _first_frames(self) -> list[_Frame]:
        """Return as many queued frames as one system call should take; a large one goes alone, and is not copied."""
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

    def end_turn(self) -> None:
        if self._busy == _TURN and self.state is PipeState.OPEN:
            if self._queue and not self._flush():
                return
            self._busy = _IDLE
            if self.fan_out is None:
                self._sender.rejoin(self)

    def _write_loop(self) -> None:
        """Wait for the kernel until all has left (the writer greenlet)."""
        try:
            while self.state is PipeState.OPEN:
                self.connection.wait_writable()
                if self.state is PipeState.OPEN and self._flush():
                    # As at the end of a turn: in order, and after what the fan-out holds.
                    self._busy = _TURN
                    self._sender.mark(self)
                    return
        except OSError as error:
            if self.state is PipeState.OPEN:
                self._broken(error)
        finally:
            self._writer = None

    def _broken(self, error: OSError) -> None:
        """Go deaf: the connection takes no more. The pipe closes once all is read that the peer had sent before."""
        reason = f"sending failed: {describe_os_error(error)}"
        if self._reader is None:
            self._close(reason)
        elif self._move(PipeState.DEAF):
            self.reason = reason
            self._stop_sending()
            if self.state is PipeState.DEAF:
                self._deafness = self._connector.hub.loop.timer(DEAF_TIME, DEAF_TIME)
                self._deafness.start(self._look_deaf, self.bytes_received)

    def _look_deaf(self, received: int) -> None:
        """Close a deaf pipe if nothing was read since: its peer has not gone, or nobody takes what it had sent."""
        if self.bytes_received != received:
            self._deafness.start(self._look_deaf, self.bytes_received)
        elif self._waits_for_room and self._reader is not None:
            self._reader.throw(_NobodyReceives)
        else:
            self._close(self.reason)

    def lose(self, frames: list[bytes], error: OSError) -> None:
        """Go deaf with these frames unsent."""
        self._queue += frames
        self._broken(error)

    def limits_changed(self) -> None:
        self._check_full()

    def drop_oldest(self) -> bool:
        for index, entry in enumerate(self._queue):
            if not isinstance(entry, _Note):
                del self._queue[index]
                self._queued_bytes -= len(entry)
                self.drop("overflow")
                return True
        return False

    def _take_queue(self) -> tuple[list[Message], int]:
        self.leave_fan_out()
        queue, self._queue = self._queue, []
        half_gone, self._partial = self._partial, None
        self._queued_bytes = 0
        again = []
        lost = int(half_gone is not None and not isinstance(half_gone.obj, _Note))
        for entry in queue:
            if isinstance(entry, _Note):
                self.messages_sent += 1
                continue
            message = self._unframe(entry.joined() if isinstance(entry, LargeFrame) else entry)
            if message is not None and message.flags & (SEND_TYPE_MASK | INTERNAL) == TO_ONE:
                again.append(message)
            else:
                lost += 1
        return again, lost

    def _unframe(self, entry: bytes) -> Message | None:
        """Return the message that a queued frame was made of, None where it can be for no other pipe."""
        return None

    # Keeping alive; see the heartbeat

    def life(self) -> int:
        """Return a number that changes whenever the peer shows that it is there."""
        # A peer that takes what waits for it has no reason to say anything.
        return self.bytes_received + self.bytes_sent if self._busy == _BLOCKED else self.bytes_received

    def held_up(self) -> bool:
        """Return whether nothing is read because nobody here receives: the peer's silence is ours then."""
        return self._waits_for_room

    def silence(self) -> tuple[float, float]:
        """Return after how many seconds of silence to ask whether the peer is there, and to give it up; 0 for never."""
        options = self._options or self._endpoint.options
        interval = options.get(opts.connector.pipe.heartbeat_interval)
        return interval, options.get(opts.connector.pipe.heartbeat_timeout) or 2 * interval

    def ask(self) -> None:
        """Ask the peer whether it is there."""

    def answers(self) -> bool:
        """Return whether the peer can be held to answer."""
        return False

    # Reading

    def start(self) -> None:
        self._reader = gevent.spawn(self._read_loop)

    def run(self) -> None:
        """Do the reader's work in the calling greenlet; blocks until the pipe closes."""
        self._reader = getcurrent()
        self._read_loop()

    def receiving(self) -> bool:
        return self._reader is not None or self._writer is not None

    def join(self) -> None:
        current = getcurrent()
        workers: tuple[greenlet | None, ...] = (self._reader, self._writer)
        for worker in workers:
            if isinstance(worker, Greenlet) and worker is not current:
                worker.join()

    def _read_loop(self) -> None:
        """Receive until the connection or the pipe ends (the reader greenlet)."""
        reason: str | MultiSocketError | None = "closed"
        try:
            if self.state is not PipeState.CLOSED:
                reason = self._read_all()
        except _StopReading:
            pass
        except MultiSocketError as error:
            reason = error
            self._connector.peer_fault(self, error)
        except OSError as error:
            reason = f"receiving failed: {describe_os_error(error)}"
        except GreenletExit:
            # Nobody here kills a reader: this one is the greenlet of somebody's server, which stops.
            reason = Closed("server", "it is stopping")
            raise
        finally:
            if self.state is PipeState.DEAF and not isinstance(reason, MultiSocketError):
                # An error with a name is the peer's own word on why it takes no more: a certificate that it refused.
                reason = self.reason
            if reason is not None:
                self._close(reason)
            try:
                self._see_off()
            finally:
                self._reader = None

    def _see_off(self) -> None:
        """Do what the reader has still to do when the pipe has closed."""

    def _read_all(self) -> str | None:
        """Hand to the receiver what comes, until the peer ends the stream.

        Returns:
            Why the pipe is to close now; None if it stays open for sending.
        """
        connection = self.connection
        connector = self._connector
        receiver = connector.receiver
        budget = min(connector.sender.yield_bytes, _READ_BUDGET)
        spent = 0
        while True:
            data = connection.recv(self._read_size())
            if not data:
                return self._end_of_stream()
            size = len(data)
            self.bytes_received += size
            for portion in (data,) if size <= _PORTION or receiver.has_room() else self._portions(data):
                messages = self._decode(portion)
                if messages:
                    self.messages_received += len(messages)
                    self._deliver(messages)
                if self._error is not None:
                    raise self._error
                if self._goodbye:
                    return "the peer said goodbye"
            if self.state is PipeState.CLOSED:
                return self.reason
            spent += size
            if spent >= budget:
                # A peer that always has more must not keep the loop from the others, nor from those who receive.
                spent = 0
                gevent.sleep(0)

    def _deliver(self, messages: Sequence[Fields]) -> None:
        receiver = self._connector.receiver
        rest = receiver.take(messages)
        try:
            while rest:
                self._waits_for_room = True
                receiver.room.wait(None)
                self._waits_for_room = False
                rest = receiver.take(rest, in_turn=True, past_limit=receiver.closed)
        except _NobodyReceives:
            # One peer after another could bring its share past the limit, and go.
            self._waits_for_room = False
            self.drop("unread", len(rest))
            raise
        except BaseException:
            # These had arrived before whatever ended the wait: they are not lost.
            self._waits_for_room = False
            receiver.take(rest, past_limit=True)
            raise

    def _read_size(self) -> int:
        """Return how many bytes to ask the kernel for."""
        raise NotImplementedError

    def _decode(self, data: bytes) -> list[Fields]:
        """Return the messages that are complete with these bytes.

        What breaks the rules after good messages is left in ``_error``, so that those are delivered first.
        """
        raise NotImplementedError

    def _portions(self, data: bytes) -> Iterable[bytes]:
        """Return in portions what has been read, each to be decoded when the one before has been taken."""
        return (data[start : start + _PORTION] for start in range(0, len(data), _PORTION))

    def _end_of_stream(self) -> str | None:
        return "the peer closed the connection"

    def _close(self, reason: str | MultiSocketError) -> None:
        super()._close(reason)
        if self._deafness is not None:
            self._deafness.close()
            self._deafness = None
        if self._waits_for_room:
            # Every other wait of a reader or writer ends by the connection's closing.
            self._connector.hub.loop.run_callback(self._stop_reader)

    def _stop_reader(self) -> None:
        if self._waits_for_room and self._reader is not None:
            self._reader.throw(_StopReading)
