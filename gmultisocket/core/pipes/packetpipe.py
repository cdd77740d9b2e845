"""Pipes over connections that have packets of their own: WebSockets, framed and raw.

A packet protocol has its own ping, and its own close frame, which both sides send.

Closing. A pipe that closes sends its close frame and ends its half of the connection. Its reader then reads and drops
what still arrives until the peer's close frame, for at most ``close_timeout`` seconds. If a connection is closed while
bytes are on their way here, the kernel resets it, and the reset may overtake the close frame and the last messages.
"""

from __future__ import annotations

from typing import Any, Final

from ... import options as opts
from ...errors import BadMessage, Closed, MultiSocketError
from ...loop.yielding import yield_to_loop
from ...transport import PacketCodec, PacketConnection
from ...wire import (
    RAW,
    SEND_TYPE_MASK,
    TO_ONE,
    Fields,
    Message,
    encode_frame,
    encode_header,
)
from .bytespipe import BytesPipe, Taken
from .framedpipe import FramedPipe
from .pipe import Headers, PipeEndpoint, PipeOwner, PipeState
from .rawpipe import RawPipe
from .writepipe import LARGE, LargeFrame

__all__ = ["PacketPipe", "Packets", "RawPacketPipe"]

#: Bytes that a reader drops at a time while it waits for the peer's close frame.
_DROP_SIZE: Final = 1 << 16
#: Bytes that are dealt with while the reader waits: the codec decodes all of them at once.
_LITTLE: Final = 1024


class _EndedByPeer(MultiSocketError):
    """The peer has ended the packet protocol."""


class Packets(BytesPipe):
    """What framed and raw pipes over packets have in common: reading packets, keepalive, closing.

    A base class beside FramedPipe and RawPipe, which say what a packet holds. (An object that the pipe holds instead
    needs as many methods that only forward, and costs memory for each idle peer.)
    """

    __slots__ = ()

    _connection: PacketConnection
    _codec: PacketCodec
    #: The timer that ends the closing handshake, None while there is none.
    _close_timer: Any

    def _pass_on(self, data: bytes) -> bytes:
        return data

    # Reading

    def _decode(self, data: bytes) -> list[Fields]:
        packets = self._feed(data)
        return self._messages_of(packets) if packets else []

    def _feed(self, data: bytes) -> list[bytes]:
        """Return the packets that these bytes complete. An error behind them is left in ``_error``."""
        codec = self._codec
        packets = codec.feed(data)
        while codec.more:
            # A few compressed bytes may be a lot of messages: those that are complete are delivered first.
            if packets:
                self._hand_on(self._messages_of(packets))
            yield_to_loop()
            if self._error is not None or self._ended_by_peer or self.state is PipeState.CLOSED:
                return []
            packets = codec.feed(b"")
        if self.state is PipeState.CLOSED:
            packets = []
        elif owed := codec.replies():
            self._push_reply(owed)
            self._owner.peer_pings(self)
        self._error = codec.error
        if self._error is None and codec.end():
            self._error = _EndedByPeer()
        return packets

    def _messages_of(self, packets: list[bytes]) -> list[Fields]:
        """Return the messages in some packets. An error behind them is left in ``_error``."""
        raise NotImplementedError

    def _read_all(self) -> str | None:
        try:
            return super()._read_all()
        except _EndedByPeer:
            # A packet protocol ends for both directions at once.
            self._end_of_stream()
            return self._codec.end()

    def _end_of_stream(self) -> str | None:
        reason = super()._end_of_stream()
        if self._codec.pending:
            return "the peer closed the connection in the middle of a message"
        # A raw pipe could go on sending after the end of what it reads, but a packet protocol is never half closed.
        return reason or "the peer closed the connection"

    # Keepalive

    def _keepalive_times(self) -> tuple[float, float]:
        times = super()._keepalive_times()
        return times if times[0] else self._connection.keepalive

    def _ping(self) -> None:
        ping = self._codec.ping()
        if ping:
            self._push_control(ping)

    def _can_pong(self) -> bool:
        return True

    def _pong(self) -> bytes:
        return self._codec.pong()

    def _unfinished_frame(self) -> int | None:
        # Pings may arrive between the pieces of a message.
        return self.messages_received if self._codec.pending or super()._unfinished_frame() is not None else None

    # Closing

    def _send_final(self, reason: str | MultiSocketError) -> bool:
        owner = self._owner
        error = reason if isinstance(reason, MultiSocketError) else Closed("socket") if owner.closing else None
        data = self._codec.goodbye(error)
        if not data or not self._push_last(data):
            return False
        if self._codec.end() or self._reader is None or not owner.close_timeout:
            return False
        self._connection.shutdown_write()
        self._close_timer = owner.hub.loop.timer(owner.close_timeout)
        self._close_timer.start(self._connection.close)
        owner.closing_pipes.add(self)
        return True

    def _drain(self) -> None:
        if self._close_timer is None:
            return
        codec = self._codec
        try:
            while not codec.end():
                data = self._connection.recv(_DROP_SIZE)
                if not data:
                    break
                if codec.error is None:
                    codec.feed(data)
                yield_to_loop()
                while codec.more and not codec.end():
                    codec.feed(b"")
                    yield_to_loop()
        except (OSError, BadMessage):
            # The peer hung up, its time is over, or it still breaks the rules.
            pass
        finally:
            self._close_timer.close()
            self._connection.close()
            self._owner.closing_pipes.discard(self)


class PacketPipe(Packets, FramedPipe):
    """A pipe on which every message is one packet of the transport's own: ws."""

    __slots__ = ("_close_timer", "_codec")

    _may_be_nobody = False
    _takes_batches = False

    def __init__(self, pipe_id: int, connection: PacketConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._codec = connection.codec
        connection.account(owner.scheduler.spend)
        self._close_timer = None
        self._fan_out_key = self._codec.key

    @property
    def _max_content(self) -> int:
        return self._decoder.max_content

    @_max_content.setter
    def _max_content(self, value: int) -> None:
        self._decoder.max_content = value
        self._codec.max_content = value

    def _put_one(self, headers: Headers, content: bytes) -> None:
        if len(content) >= LARGE:
            self._put(TO_ONE, headers.ttl, b"", b"", content)
            return
        # What _put() does, without its calls.
        self._push(self._codec.wrap(headers[len(content)] + content))

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & RAW:
            self._drop("flags")
            return
        if len(content) >= LARGE:
            head = encode_header(flags, ttl, source, destination, len(content))
            prefix = self._codec.prefix(len(head) + len(content))
            if prefix is not None:
                self._push_large(LargeFrame(prefix + head, content))
                return
        self._push(self._codec.wrap(encode_frame(flags, ttl, source, destination, content)))

    def _wrap(self, frame: bytes) -> bytes:
        return self._codec.wrap(frame)

    def _read_size(self) -> int:
        return self._read_buffer or self._codec.read_size

    def _take_little(self, data: bytes) -> bool:
        if len(data) > _LITTLE or not super()._take_little(data):
            return False
        if self._codec.pending:
            raise Taken(())
        return True

    def _unframe(self, entry: bytes) -> Message | None:
        return super()._unframe(self._codec.unwrap(entry))

    def _messages_of(self, packets: list[bytes]) -> list[Fields]:
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
            messages = self._filter(messages)
        return messages


class RawPacketPipe(Packets, RawPipe):
    """A raw pipe over packets: what one packet holds is a chunk."""

    __slots__ = ("_close_timer", "_codec")

    _copied = {**RawPipe._copied, opts.connector.pipe.max_recv_content_length: "_max_packet"}

    def __init__(self, pipe_id: int, connection: PacketConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._codec = connection.codec
        connection.account(owner.scheduler.spend)
        self._close_timer = None

    @property
    def _max_packet(self) -> int:
        return self._codec.max_content

    @_max_packet.setter
    def _max_packet(self, value: int) -> None:
        self._codec.max_content = value

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & ~SEND_TYPE_MASK:
            self._drop("flags")
        elif content:
            self._push(self._codec.wrap(content))

    def _read_size(self) -> int:
        return self._codec.read_size

    def _messages_of(self, packets: list[bytes]) -> list[Fields]:
        # An empty content is how a raw pipe announces itself.
        return [self._message(chunk) for chunk in packets if chunk]
