"""Pipes over connections that have packets of their own: WebSockets, framed and raw.

A packet protocol has a word of its own for "are you there", and one for goodbye, which both sides say.

Closing. A pipe that closes says goodbye, ends its half of the connection, and leaves its reader to drop what still
comes until the peer has said goodbye too, at most for ``connector.farewell`` seconds. A connection that is closed while
bytes are on their way here is reset, and a reset may overtake the goodbye and the last messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gevent

from .. import options as opts
from ..errors import BadMessage, Closed, MultiSocketError
from ..options import Option
from ..transport import PacketCodec, PacketConnection
from ..wire import (
    RAW,
    SEND_TYPE_MASK,
    TO_ONE,
    Fields,
    Message,
    encode_frame,
    encode_header,
    pack_bare_header,
)
from .bytespipe import LARGE, BytesPipe, LargeFrame
from .framedpipe import FramedPipe
from .pipe import PipeState
from .rawpipe import RawPipe

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint

__all__ = ["PacketPipe", "RawPacketPipe"]

#: How much a reader drops at a time while it sees the peer off.
_DROPPED = 1 << 16


class _Goodbye(MultiSocketError):
    """The peer has ended the packet protocol."""


class _Packets(BytesPipe):
    """What framed and raw pipes over packets have in common."""

    __slots__ = ()

    connection: PacketConnection
    _codec: PacketCodec
    #: The timer that ends the closing handshake, None while there is none.
    _farewell: Any

    # Reading

    def _feed(self, data: bytes) -> list[bytes]:
        """Return the packets that these bytes complete; what comes after them is left in ``_error``."""
        codec = self._codec
        packets = codec.feed(data)
        if self.state is PipeState.CLOSED:
            # What comes while the peer is seen off is for nobody.
            packets = []
        elif owed := codec.replies():
            self._answer(owed)
        self._error = codec.error
        if self._error is None and codec.end():
            self._error = _Goodbye()
        return packets

    def _read_all(self) -> str | None:
        try:
            return super()._read_all()
        except _Goodbye:
            # A packet protocol ends for both directions at once.
            self._end_of_stream()
            return self._codec.end()

    def option_changed(self, option: Option[Any]) -> None:
        super().option_changed(option)
        if option is opts.connector.pipe.max_recv_content_length:
            self._codec.max_content = self.options.get(option)

    def _end_of_stream(self) -> str | None:
        reason = super()._end_of_stream()
        if self._codec.pending:
            return "the peer closed the connection in the middle of a message"
        # A raw pipe that has only heard the end of what comes would go on sending; but nothing is half closed here.
        return reason or "the peer closed the connection"

    # Keeping alive

    def silence(self) -> tuple[float, float]:
        asked = super().silence()
        return asked if asked[0] else self.connection.keepalive

    def ask(self) -> None:
        ping = self._codec.ping()
        if ping:
            self._note(ping)

    def answers(self) -> bool:
        return True

    # Closing

    def _end(self, reason: str | MultiSocketError) -> bool:
        connector = self._connector
        told = reason if isinstance(reason, MultiSocketError) else None if connector.dials else Closed("socket")
        data = self._codec.goodbye(told)
        if not data or not self._last_words(data):
            return False
        if self._codec.end() or self._reader is None or not connector.farewell:
            return False
        self.connection.shutdown_write()
        self._farewell = connector.hub.loop.timer(connector.farewell)
        self._farewell.start(self.connection.close)
        connector.leaving.add(self)
        return True

    def _see_off(self) -> None:
        if self._farewell is None:
            return
        codec = self._codec
        try:
            while not codec.end():
                data = self.connection.recv(_DROPPED)
                if not data:
                    break
                if codec.error is None:
                    codec.feed(data)
                gevent.sleep(0)
        except (OSError, BadMessage):
            # It hung up, its time is up, or it talks nonsense to the last.
            pass
        finally:
            self._farewell.close()
            self.connection.close()
            self._connector.leaving.discard(self)


class PacketPipe(_Packets, FramedPipe):
    """A pipe on which every message is one packet of the transport's own: ws."""

    __slots__ = ("_codec", "_farewell")

    def __init__(self, pipe_id: int, connection: PacketConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self._codec = connection.codec
        self._farewell = None
        self.fan_out_key = self._codec.key

    def put_one(self, ttl: int, content: bytes) -> None:
        if len(content) >= LARGE:
            self.put(TO_ONE, ttl, b"", b"", content)
            return
        # What put() does, in one frame of the interpreter.
        self._push(self._codec.wrap(pack_bare_header(TO_ONE, ttl, 0, len(content)) + content))

    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & RAW:
            self.drop("flags")
            return
        if len(content) >= LARGE:
            head = encode_header(flags, ttl, source, destination, len(content))
            prefix = self._codec.prefix(len(head) + len(content))
            if prefix is not None:
                self._push_large(LargeFrame(prefix + head, content))
                return
        self._push(self._codec.wrap(encode_frame(flags, ttl, source, destination, content)))

    def wrap(self, frame: bytes) -> bytes:
        return self._codec.wrap(frame)

    def _read_size(self) -> int:
        return self._read_buffer or self._codec.read_size

    def _unframe(self, entry: bytes) -> Message | None:
        return super()._unframe(self._codec.unwrap(entry))

    def _decode(self, data: bytes) -> list[Fields]:
        packets = self._feed(data)
        if not packets:
            return []
        broken = self._error
        decoder = self._decoder
        messages: list[Fields] = []
        try:
            if self._codec.whole:
                messages = decoder.feed_packets(packets)
            else:
                messages = decoder.feed_fields(b"".join(packets))
        except BadMessage as error:
            broken = error
        self._error = decoder.error or broken
        if decoder.flagged:
            decoder.flagged = False
            messages = self._sift(messages)
        return messages


class RawPacketPipe(_Packets, RawPipe):
    """A raw pipe over packets: what one holds is a chunk."""

    __slots__ = ("_codec", "_farewell")

    def __init__(self, pipe_id: int, connection: PacketConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self._codec = connection.codec
        self._farewell = None

    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & ~SEND_TYPE_MASK:
            self.drop("flags")
        elif content:
            self._push(self._codec.wrap(content))

    def _read_size(self) -> int:
        return self._codec.read_size

    def _decode(self, data: bytes) -> list[Fields]:
        # An empty content is how a raw pipe announces itself.
        return [self._message(chunk) for chunk in self._feed(data) if chunk]
