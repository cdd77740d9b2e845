"""Pipes whose peers send frames back to back: tcp, tls and ipc.

Sockets tell each other a few things by internal messages (flag 0x04), which the Go code drops unread: 0x01 ping and
0x02 pong, each with at most 125 bytes that come back, and 0x00 close. Those with send type 2 are for a protocol, and go
through switches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from ... import options as opts
from ...errors import BadMessage
from ...loop.yielding import yield_to_loop
from ...transport import StreamConnection
from ...wire import (
    HEADER_SIZE,
    INTERNAL,
    MAX_CONTENT,
    RAW,
    SEND_TYPE_MASK,
    TO_DEST,
    TO_ONE,
    Decoder,
    Fields,
    Message,
    encode_frame,
    encode_header,
)
from ..receiving.receiver import ContentBuffer, Relay
from .bytespipe import BATCH, LITTLE, BytesPipe, Taken
from .pipe import Headers, PipeEndpoint, PipeOwner, PipeState
from .writepipe import _BLOCKED, _TURN, LARGE, Frame, LargeFrame

if TYPE_CHECKING:
    from ...frames import Batch
    from .contentreader import ContentReader

__all__ = ["FramedPipe"]

#: The first byte of an internal message's content.
_CLOSE, _PING, _PONG = b"\x00", b"\x01", b"\x02"
#: Large messages of one stream that are written in one system call. With more of them, streams that share a pipe would
#: drift apart further.
_PIECES: Final = 2
#: Bytes that a switch passes on and that may wait for the end of the turn. With more, one more write costs little.
_SMALL_BATCH: Final = 1 << 14
#: Bytes that a ping may carry. A longer one is not answered.
_MAX_ECHO: Final = 125


def _first(frames: Iterator[Frame], size: int) -> list[Frame]:
    """Take so many frames that they have at least ``size`` bytes, which is not more than all have."""
    taken = []
    while size > 0:
        taken.append(next(frames))
        size -= len(taken[-1])
    return taken


class FramedPipe(BytesPipe):
    """A pipe whose peer sends and takes frames back to back."""

    __slots__ = ("_contents", "_knows_internal", "_read_buffer")

    _takes_batches = True
    _decoder: Decoder
    _copied = {
        opts.connector.pipe.read_buffer: "_read_buffer",
        opts.connector.pipe.max_recv_content_length: "_max_content",
    }

    def __init__(self, pipe_id: int, connection: StreamConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._fan_out_key = ""
        self._read_buffer: int = endpoint.options.get(opts.connector.pipe.read_buffer)
        self._decoder = Decoder(pipe_id, endpoint.options.get(opts.connector.pipe.max_recv_content_length))
        #: Whether the peer has shown that it understands internal messages, so that it can be expected to answer.
        self._knows_internal = False
        self._contents: ContentReader | None = None

    @property
    def _may_be_nobody(self) -> bool:  # type: ignore[override]
        return not self._connection.needs_handshake

    @property
    def _max_content(self) -> int:
        return self._decoder.max_content

    @_max_content.setter
    def _max_content(self, value: int) -> None:
        self._decoder.max_content = value

    # Writing

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & RAW:
            self._drop("flags")
        elif len(content) < LARGE:
            self._push(encode_frame(flags, ttl, source, destination, content))
        else:
            self._push_large(LargeFrame(encode_header(flags, ttl, source, destination, len(content)), content))

    def _put_pieces(self, ttl: int, source: bytes, destination: bytes, data: memoryview, size: int) -> int:
        if len(data) < 2 * size or size < LARGE or type(data.obj) is not bytes or not self._takes_batches:
            return super()._put_pieces(ttl, source, destination, data, size)
        if self._fan_out is not None:
            self._leave_fan_out()
        if self._busy == _TURN and self._queue:
            self._flush()
            if self.state is not PipeState.OPEN:
                return 0
        head = encode_header(TO_DEST, ttl, source, destination, size)
        end = min(len(data) // size, _PIECES) * size
        buffers: list[bytes | memoryview] = []
        for start in range(0, end, size):
            buffers += head, data[start : start + size]
        # Frames are made of them only if the kernel does not take all.
        frames = (LargeFrame(head, content) for content in buffers[1::2])
        count = end // size
        write = partial(self._connection.sendmsg, buffers)
        return size * self._write_batch(frames, count, end + count * len(head), write)

    def _push_batch(self, batch: Batch) -> int:
        """Send frames that a switch passes on, as many as the kernel and the queue take now. Return their number."""
        if self._fan_out is not None and (self._busy or self._fan_out.pending):
            self._leave_fan_out()
        scheduler, count, size = self._scheduler, batch.count, batch.size
        if self._busy == _TURN:
            most = min(scheduler.flush_bytes, _SMALL_BATCH)
            if len(self._queue) + count < scheduler.queue_limit and self._queued_bytes + size < most:
                self._queue += batch
                self._queued_bytes += size
                return count
            self._flush()
            if self.state is not PipeState.OPEN:
                return 0
        return self._write_batch(batch, count, size, lambda: self._send_buffers(batch.buffers()))

    def _send_buffers(self, buffers: list[bytes | memoryview]) -> int:
        return self._send(buffers[0]) if len(buffers) == 1 else self._connection.sendmsg(buffers)

    def _write_batch(self, batch: Iterable[Frame], count: int, size: int, write: Callable[[], int]) -> int:
        """Send frames, none of which waits for the end of the turn, as many as the kernel and the queue take now.

        Args:
            batch: the frames.
            count: how many these are.
            size: how many bytes.
            write: gives all of them to the kernel, and returns the number of bytes that it took.

        Returns:
            The number of frames that were sent or queued.
        """
        scheduler = self._scheduler
        scheduler.spend(count, size)
        frames = iter(batch)
        if self._busy == _BLOCKED:
            return self._queue_until_full(frames)
        if not self._busy:
            self._busy = _TURN
            scheduler.mark(self)
        try:
            taken = write()
        except BlockingIOError:
            taken = 0
        except OSError as error:
            self._break(list(islice(frames, scheduler.queue_limit)), error)
            return min(count, scheduler.queue_limit)
        if taken == size:
            self.messages_sent += count
            self.bytes_sent += taken
            return count
        self._leave_fan_out()
        begun = _first(frames, taken + 1)
        self._put_back(begun, taken)
        return len(begun) + self._queue_until_full(frames)

    def _queue_until_full(self, frames: Iterator[Frame]) -> int:
        """Queue frames while the kernel takes none. Return how many the queue has taken."""
        count = 0
        while not self.full and (frame := next(frames, b"")):
            self._queue.append(frame)
            self._queued_bytes += len(frame)
            self._update_full()
            count += 1
        return count

    def _put_one(self, headers: Headers, content: bytes) -> None:
        size = len(content)
        if size >= LARGE:
            self._put(TO_ONE, headers.ttl, b"", b"", content)
            return
        frame = headers[size] + content
        if not self._busy or self._fan_out is not None:
            self._push(frame)
            return
        # The second and all further messages of a turn: what _push() does, without its call (10 %).
        queue = self._queue
        queue.append(frame)
        queued = self._queued_bytes = self._queued_bytes + HEADER_SIZE + size
        scheduler = self._scheduler
        if len(queue) >= scheduler.queue_limit or queued >= scheduler.flush_bytes:
            self._flush_early()

    def _wrap(self, frame: bytes) -> bytes:
        """Return a frame as it is written on this connection, and on all with the same ``_fan_out_key``."""
        return frame

    def _put_frame(self, frame: bytes) -> None:
        """Take one message to send, as :meth:`_wrap` of this pipe or of another one with the same key returned it."""
        self._push(frame)

    def _put_internal(self, content: bytes) -> None:
        """Send an internal message, however full the queue is."""
        self._push_control(self._wrap(_internal_frame(content)))

    def _unframe(self, entry: bytes) -> Message | None:
        flags, ttl, hops, distance = entry[0], entry[1], entry[2], entry[3]
        middle = 8 + 4 * hops
        end = middle + 4 * distance
        return Message(flags, ttl, entry[8:middle], entry[middle:end], entry[end:], self.id)

    # Keepalive

    def _unfinished_frame(self) -> int | None:
        # Where in the stream the frame begins.
        pending = self._decoder.pending
        return self.bytes_received - pending if pending else None

    def _ping(self) -> None:
        self._put_internal(_PING)

    def _can_pong(self) -> bool:
        return self._knows_internal

    def _pong(self) -> bytes:
        return _internal_frame(_PONG) if self._knows_internal else b""

    # Reading

    def _read_size(self) -> int:
        return self._read_buffer or self._decoder.read_size

    def _take_little(self, data: bytes) -> bool:
        receiver, size = self._owner.receiver, len(data)
        if not 0 < size <= LITTLE or receiver.relay is not None or self._rates is not None:
            return False
        self.bytes_received += size
        messages = self._decode(data)
        rest: Sequence[Fields] = ()
        if messages:
            if not self.messages_received:
                self._owner.pipe_heard(self)
            self.messages_received += len(messages)
            rest = receiver.deliver(messages, wake=False)
        if rest or self._error is not None or self._ended_by_peer or self._decoder.missing:
            receiver.not_empty.wake()
            raise Taken(rest)
        if receiver.get_waiters:
            # Anything may run now, and close this pipe.
            receiver.not_empty.wake_now()
        return True

    def _read_contents(self) -> None:
        decoder = self._decoder
        if decoder.missing < LARGE or not decoder.holds_nothing:
            return
        if self._read_buffer or not self._connection.reads_into:
            return
        if self._contents is None:
            # Few programs need it.
            from .contentreader import ContentReader

            self._contents = ContentReader(self, self._decoder)
        self._contents.read()

    def _read_now(self, target: ContentBuffer) -> None:
        if self._contents is not None:
            self._contents.read_now(target)

    def _pass_on(self, data: bytes) -> bytes:
        decoder, receiver = self._decoder, self._owner.receiver
        max_content = decoder.max_content or MAX_CONTENT
        missing = decoder.missing
        if missing >= len(data):
            return data
        if missing:
            self._receive(data[:missing])
            data = data[missing:]
        else:
            data = decoder.take_kept() + data
        position = 0
        while position < len(data) and (relay := receiver.relay) is not None:
            self._prepare(relay, data, position)
            if receiver.relay is not relay:
                # The switch has stopped.
                continue
            position, count, slow = relay.forward(data, position, self.path, max_content)
            if count:
                self._count_received(count)
            if slow:
                start, position = position, relay.skip(data, position, slow)
                if start == position:
                    if relay.is_beginning(data, position, max_content):
                        decoder.keep(data[position:])
                        return b""
                    break
                self._receive(data[start:position])
                if self._ended_by_peer:
                    return b""
        return data[position:]

    def _prepare(self, relay: Relay, data: bytes, position: int) -> None:
        """Block until a relay may take what follows. If this reader is stopped, deliver it: it has arrived."""
        self._reading_paused = True
        try:
            relay.prepare(self.id)
        except BaseException as error:
            rest = self._decode(data[position:])
            self.messages_received += len(rest)
            self._deliver_late(rest, error)
            raise
        finally:
            self._reading_paused = False

    def _decode(self, data: bytes) -> list[Fields]:
        decoder = self._decoder
        try:
            messages = decoder.feed_fields(data)
        except BadMessage:
            # As a header, that of some lengths means too long a content.
            self._check_tls(data)
            raise
        if decoder.flagged:
            decoder.flagged = False
            self._check_tls(data)
            messages = self._filter(messages)
        self._error = decoder.error
        return messages

    def _check_tls(self, data: bytes) -> None:
        """Raise BadMessage if these are the first bytes of the connection, and TLS."""
        if self.bytes_received == len(data) and _begins_tls(data):
            raise BadMessage("the peer speaks TLS, as over tls+tcp or wss, and this is a plain connection")

    def _filter(self, messages: list[Fields]) -> list[Fields]:
        """Remove internal messages, and the flag of raw pipes, which only this side may set."""
        kept: list[Fields] = []
        for number, message in enumerate(map(Message._make, messages), 1):
            if number % BATCH == 0:
                yield_to_loop()
            if message.flags & (INTERNAL | SEND_TYPE_MASK) == INTERNAL | TO_DEST:
                self._internal_along_path(message)
            elif message.flags & INTERNAL:
                self._internal(message.content[:1], message.content[1:])
                if self._ended_by_peer:
                    break
            elif message.flags & RAW:
                kept.append(message.replace(flags=message.flags & ~RAW))
            else:
                kept.append(message)
        return kept

    def _internal(self, kind: bytes, rest: bytes) -> None:
        """Act on an internal message from the peer."""
        if not self.messages_received:
            self._owner.pipe_heard(self)
        if kind == _PING and len(rest) <= _MAX_ECHO:
            if not self._knows_internal:
                self._knows_internal = True
                self._owner.peer_pings(self)
            if not self.full:
                # If the peer does not read, the answers would pile up here.
                self._put_internal(_PONG + rest)
        elif kind == _PONG:
            self._knows_internal = True
        elif kind == _CLOSE:
            # What it sent before is delivered first, as at the end of a stream.
            self._ended_by_peer = True
        else:
            self._count_useless("internal")

    def _internal_along_path(self, message: Message) -> None:
        """Give an internal message that came along a path to the protocol or switch that it is for."""
        callback = self._owner.receiver.on_internal
        if callback is not None and callback(message):
            self.messages_received += 1
        else:
            self._count_useless("internal")

    def _end_of_stream(self) -> str | None:
        if self._decoder.pending:
            return "the peer closed the connection in the middle of a message"
        return "the peer closed the connection"


def _internal_frame(content: bytes) -> bytes:
    return encode_frame(INTERNAL | TO_ONE, 1, b"", b"", content)


def _begins_tls(data: bytes) -> bool:
    """Return whether a connection's first bytes are those of a TLS handshake.

    As a header they would mean a message of 64 KiB that is flagged both as internal and as raw. No peer sends that, and
    both sides would wait for the rest.
    """
    return data[0] == 0x16 and data[1] == 3 and data[2] <= 4
