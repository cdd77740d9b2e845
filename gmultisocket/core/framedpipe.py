"""Pipes whose peers send and take frames back to back, as tcp, tls and ipc carry them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import options as opts
from ..errors import BadMessage
from ..options import Option
from ..transport import StreamConnection
from ..wire import (
    HEADER_SIZE,
    INTERNAL,
    RAW,
    TO_ONE,
    Decoder,
    Fields,
    Message,
    encode_frame,
    encode_header,
    pack_bare_header,
)
from .bytespipe import LARGE, PING, BytesPipe, LargeFrame

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint

__all__ = ["FramedPipe"]


class FramedPipe(BytesPipe):
    """A pipe whose peer sends and takes frames back to back: tcp, tls, ipc."""

    __slots__ = ("_read_buffer", "knows_internal")

    def __init__(self, pipe_id: int, connection: StreamConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self.fan_out_key = ""
        self._read_buffer: int = endpoint.options.get(opts.connector.pipe.read_buffer)
        limit = endpoint.options.get(opts.connector.pipe.max_recv_content_length)
        self._decoder = Decoder(pipe_id, limit)
        #: Whether the peer has shown that it understands internal messages, and so can be held to answer them.
        self.knows_internal = False

    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & RAW:
            self.drop("flags")
        elif len(content) < LARGE:
            self._push(encode_frame(flags, ttl, source, destination, content))
        else:
            self._push_large(LargeFrame(encode_header(flags, ttl, source, destination, len(content)), content))

    def put_one(self, ttl: int, content: bytes) -> None:
        size = len(content)
        if size >= LARGE or not self._busy or self.fan_out is not None:
            self.put(TO_ONE, ttl, b"", b"", content)
            return
        # The second and every further message of a turn: what put() and _push() do, in one frame of the interpreter.
        queue = self._queue
        queue.append(pack_bare_header(TO_ONE, ttl, 0, size) + content)
        queued = self._queued_bytes = self._queued_bytes + HEADER_SIZE + size
        sender = self._sender
        if len(queue) >= sender.queue_limit or queued >= sender.flush_bytes:
            self._queue_is_long()

    def wrap(self, frame: bytes) -> bytes:
        """Return the bytes that stand for a frame on this connection, and on all with the same ``fan_out_key``."""
        return frame

    def put_frame(self, frame: bytes) -> None:
        """Take one message to send, as :meth:`wrap` returned it for this or another pipe of the same key."""
        self._push(frame)

    def end_with_goodbye(self) -> None:
        """Hear that the peer ends the pipe: what it sent before is delivered first, as at the end of a stream."""
        self._goodbye = True

    def put_internal(self, content: bytes) -> None:
        """Send an internal message, however full the queue is."""
        self._note(self.wrap(encode_frame(INTERNAL | TO_ONE, 1, b"", b"", content)))

    def ask(self) -> None:
        self.put_internal(PING)

    def answers(self) -> bool:
        return self.knows_internal

    def _unframe(self, entry: bytes) -> Message | None:
        flags, ttl, hops, distance = entry[0], entry[1], entry[2], entry[3]
        middle = 8 + 4 * hops
        end = middle + 4 * distance
        return Message(flags, ttl, entry[8:middle], entry[middle:end], entry[end:], self.id)

    def _read_size(self) -> int:
        return self._read_buffer or self._decoder.read_size

    def _decode(self, data: bytes) -> list[Fields]:
        decoder = self._decoder
        messages = decoder.feed_fields(data)
        if decoder.flagged:
            decoder.flagged = False
            if self.bytes_received == len(data) and _begins_tls(data):
                raise BadMessage("the peer speaks TLS, as over tls+tcp or wss, and this is a plain connection")
            messages = self._sift(messages)
        self._error = decoder.error
        return messages

    def _sift(self, messages: list[Fields]) -> list[Fields]:
        """Take out internal messages, and the flag of raw pipes, which only this side may set."""
        kept: list[Fields] = []
        for message in map(Message._make, messages):
            if message.flags & INTERNAL:
                self._connector.internal_message(self, message)
                if self._goodbye:
                    break
            elif message.flags & RAW:
                kept.append(message.replace(flags=message.flags & ~RAW))
            else:
                kept.append(message)
        return kept

    def _end_of_stream(self) -> str | None:
        if self._decoder.pending:
            return "the peer closed the connection in the middle of a message"
        return "the peer closed the connection"

    def option_changed(self, option: Option[Any]) -> None:
        if option is opts.connector.pipe.max_recv_content_length:
            self._decoder.max_content = self.options.get(option)
        elif option is opts.connector.pipe.read_buffer:
            self._read_buffer = self.options.get(option)


def _begins_tls(data: bytes) -> bool:
    """Tell whether a connection's first bytes are those of a TLS handshake.

    As a header they mean a message of 64 KiB that is flagged both as internal and as raw, which no peer sends, and both
    sides would wait for the rest.
    """
    return data[0] == 0x16 and data[1] == 3 and data[2] <= 4
