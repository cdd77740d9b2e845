"""Compressed WebSocket messages (RFC 7692, permessage-deflate): the negotiation, and codecs for connections with it.

Computes only: no I/O, no gevent, no clock. Loaded only by an endpoint with ``transport.ws.compress_over``. The
``websockets`` package negotiates; messages are compressed and decompressed here, because that package has a compressor
for each peer.

Each message is compressed by itself, in both directions: there is no *context takeover*, so nothing is kept for a peer
between two messages. So a message is the same for all peers with the same window, and is compressed once, however many
take it: the fan-out does it once for each key, and :class:`Deflater` remembers its last message for all others. Short
messages are sent as they are, and so are those that would not get shorter and those that would take too long.

A received message is decompressed when all of it has arrived, :data:`PORTION` bytes at a call of ``feed``. Then the
pipe delivers, and lets others run. A few bytes may stand for megabytes: a message may grow to the longest content with
its paths and no further, and above :data:`FREE_SIZE` bytes only :data:`MAX_RATIO`-fold.

Compression tells the length of what is repeated. Do not compress a secret together with text that an attacker chooses.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final

from websockets.extensions.base import Extension
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    PerMessageDeflate,
    ServerPerMessageDeflateFactory,
)
from websockets.frames import CloseCode

from ..errors import BadPacket, InflatedTooLong
from ..wire import MAX_CONTENT
from .wsframes import BINARY, OVERHEAD, TEXT, ClientFrames, FrameCodec, ServerFrames, is_utf8

__all__ = ["DeflatedClientFrames", "DeflatedServerFrames", "client_extension", "server_extension", "window_bits"]

_FIN: Final = 0x80
#: The bit of a message's first frame that says that the message is compressed.
_COMPRESSED: Final = 0x40
_OPCODE: Final = 0x0F
_CONTROL: Final = 0x08

#: The end of every compressed message, which is not sent (RFC 7692, section 7.2.1).
_END: Final = b"\x00\x00\xff\xff"
#: The same, and an empty last block behind it: then zlib says whether the message ended where a block ends.
_END_AND_LAST: Final = _END + b"\x01\x00\x00\xff\xff"
#: What is left of that behind a message whose sender has marked the last block itself (section 7.2.3.4).
_LEFT_OF_END: Final = (_END_AND_LAST, b"\x00" + _END_AND_LAST)

#: Above this size a message is compressed faster and less: 1 MiB of JSON takes 8 ms then, and not 24. And first a part
#: of it is tried: 1 MiB of a picture would take 43 ms, for nothing.
_LONG: Final = 1 << 16
#: So many bytes are tried, and must lose this part of their length.
_SAMPLE: Final = 1 << 12
_WORTH: Final = 1 / 8
#: Above this size a message is not compressed: no other greenlet runs meanwhile.
MAX_DEFLATED: Final = 1 << 20
#: Compressing a byte takes about as long as sending so many: so it counts for the budget of the greenlet that sends.
_COST: Final = 16

#: Bytes that one call of ``feed`` decompresses, and bytes that are given to zlib at a time for that.
PORTION: Final = 1 << 18
_INPUT: Final = 1 << 14
#: A compressed message may be longer than a plain one may, by this power of two of its length.
_GROWTH: Final = 6
#: Above this size a message may be so many times as long as what has arrived of it.
FREE_SIZE: Final = 1 << 20
MAX_RATIO: Final = 256


# Negotiation


def server_extension() -> ServerPerMessageDeflateFactory:
    """Return what a listener agrees to: any window that the peer asks for, except 8 bits, which zlib has not."""
    return ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)


def client_extension() -> ClientPerMessageDeflateFactory:
    """Return what a dialer offers. It does not offer to limit its own window: a listener might want 8 bits."""
    return ClientPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True, client_max_window_bits=None
    )


def window_bits(extensions: list[Extension]) -> int:
    """Return the window of what this side compresses, in bits: 9 to 15. 0 if compression was not agreed on."""
    for extension in extensions:
        if isinstance(extension, PerMessageDeflate):
            return extension.local_max_window_bits
    return 0


# Compressing


class Deflater:
    """Compresses for all peers with the same window, and remembers its last message.

    Args:
        bits: the window, 9 to 15.
    """

    __slots__ = ("_bits", "_last")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        #: A message and its compressed form, as one object: threads share the deflater.
        self._last = (b"", b"")

    def last(self, message: bytes) -> bytes | None:
        """Return what :meth:`deflate` returned for a message, if that was the last one."""
        last, deflated = self._last
        return deflated if last == message else None

    def deflate(self, message: bytes) -> bytes:
        """Return a compressed message without its end, b"" if it would not be shorter."""
        deflated = b""
        if len(message) <= _LONG:
            deflated = self._compress(message, zlib.Z_DEFAULT_COMPRESSION)
        elif self._is_worth_it(message):
            deflated = self._compress(message, zlib.Z_BEST_SPEED)
        if len(deflated) >= len(message):
            deflated = b""
        self._last = (message, deflated)
        return deflated

    def _is_worth_it(self, message: bytes) -> bool:
        """Return whether the middle of a message can be compressed: its beginning may be only a header."""
        middle = len(message) // 2
        sample = self._compress(message[middle : middle + _SAMPLE], zlib.Z_BEST_SPEED)
        return len(sample) <= _SAMPLE * (1 - _WORTH)

    def _compress(self, data: bytes, level: int) -> bytes:
        deflater = zlib.compressobj(level, zlib.DEFLATED, -self._bits)
        return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[: -len(_END)]


#: By the bits of their windows.
_deflaters = {bits: Deflater(bits) for bits in range(9, 16)}


# Decompressing


class Inflation:
    """A compressed message that has arrived, and as much of it as is decompressed.

    Args:
        data: the payload of all its frames.
        opcode: of the message.
        limit: the longest content, 0 for no limit.
    """

    __slots__ = ("_data", "_inflater", "_limit", "_max_content", "_position", "_rest", "chunks", "opcode", "size")

    def __init__(self, data: bytes, opcode: int, limit: int) -> None:
        self._data = data + _END_AND_LAST
        self._position = 0
        #: Of what zlib was given, what it has not looked at.
        self._rest = b""
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._max_content = limit or MAX_CONTENT
        self._limit = self._max_content + OVERHEAD
        if len(data) * MAX_RATIO < self._limit:
            self._limit = min(self._limit, max(len(data) * MAX_RATIO, FREE_SIZE))
        self.opcode = opcode
        self.chunks: list[bytes] = []
        self.size = 0

    def advance(self, budget: int) -> bool:
        """Decompress about ``budget`` bytes more. Return whether the message is complete.

        Raises:
            BadPacket: the data are damaged.
            InflatedTooLong: it grows too long.
        """
        end = self.size + budget
        stop = self._position + PORTION
        inflater = self._inflater
        while not inflater.eof:
            if self.size >= end:
                return False
            data = self._rest
            if not data:
                if self._position >= stop:
                    # A peer may send any number of blocks with nothing in them.
                    return False
                data = self._data[self._position : self._position + _INPUT]
                self._position += len(data)
            if not data:
                raise BadPacket("a compressed message is cut off", CloseCode.INVALID_DATA)
            # One byte more than it may have shows that it is too long.
            most = min(end, self._limit + 1) - self.size
            try:
                chunk = inflater.decompress(data, most)
            except zlib.error as error:
                raise BadPacket(f"a compressed message is damaged: {error}", CloseCode.INVALID_DATA) from error
            self._rest = inflater.unconsumed_tail
            self.size += len(chunk)
            if self.size > self._limit:
                raise InflatedTooLong(len(self._data) - len(_END_AND_LAST), self._limit, self._max_content)
            self.chunks.append(chunk)
        left = inflater.unused_data + self._data[self._position :]
        if left and left not in _LEFT_OF_END:
            raise BadPacket("a compressed message goes on behind its end", CloseCode.INVALID_DATA)
        return True


class _Deflated(FrameCodec):
    """What the codecs of both sides have in common.

    Args:
        bits: the window of what this side compresses, 9 to 15.
        over: messages of more than so many bytes are compressed.
        text, max_content, whole: as for :class:`FrameCodec`.
    """

    __slots__ = ("_compressed", "_deflater", "_inflation", "_left", "_over", "_spend")

    def __init__(self, bits: int, over: int, text: bool = False, max_content: int = 131072, whole: bool = True) -> None:
        super().__init__(text, max_content, whole)
        if self.key is not None:
            self.key = f"{self.key}-deflate-{bits}-{over}"
        self._over = over
        self._deflater = _deflaters[bits]
        #: Counts the work of compressing; see ``WriteScheduler.spend``.
        self._spend: Callable[[int, int], object] | None = None
        #: The opcode of the compressed message whose frames arrive, 0 if it is not compressed.
        self._compressed = 0
        #: The message that is being decompressed, and how many bytes this call of ``feed`` may still decompress.
        self._inflation: Inflation | None = None
        self._left = 0

    def account(self, spend: Callable[[int, int], object]) -> None:
        self._spend = spend

    # Sending

    def wrap(self, frame: bytes) -> bytes:
        if self._over < len(frame) <= MAX_DEFLATED:
            deflated = self._deflater.last(frame)
            if deflated is None:
                deflated = self._deflater.deflate(frame)
                if self._spend is not None:
                    self._spend(0, len(frame) * _COST)
            if deflated:
                return self._encode(_COMPRESSED | self._opcode_for(frame), deflated)
        return super().wrap(frame)

    def prefix(self, size: int) -> bytes | None:
        return None if self._over < size <= MAX_DEFLATED else super().prefix(size)

    def unwrap(self, packet: bytes) -> bytes:
        payload = super().unwrap(packet)
        if not packet[0] & _COMPRESSED:
            return payload
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(payload + _END)

    # Receiving

    def _forget(self) -> None:
        super()._forget()
        self._inflation = None

    def _take(self, data: bytes, packets: list[bytes]) -> None:
        self._left = PORTION
        if self._inflation is not None:
            self._inflate(packets)
        super()._take(data, packets)
        if self._inflation is not None:
            self.more = True

    def _take_frame(self, data: bytes, position: int, packets: list[bytes]) -> int:
        if self._left <= 0 or self._inflation is not None:
            # The frame waits for the next call.
            self.more = True
            return -1
        return super()._take_frame(data, position, packets)

    def _check_head(self, first: int, second: int) -> None:
        if first & _COMPRESSED:
            if first & _CONTROL or not first & _OPCODE:
                why = "only the first frame of a message can say that it is compressed"
                raise BadPacket(why, CloseCode.PROTOCOL_ERROR)
            first ^= _COMPRESSED
        super()._check_head(first, second)

    def _check_size(self, first: int, size: int) -> None:
        if not size >> 63 and (first & _COMPRESSED or (self._compressed and not first & _OPCODE)):
            # What cannot be compressed grows a little.
            size -= size >> _GROWTH
        super()._check_size(first, size)

    def _take_payload(self, first: int, payload: bytes, packets: list[bytes]) -> None:
        opcode = first & _OPCODE
        if opcode & _CONTROL:
            super()._take_payload(first, payload, packets)
            return
        if opcode:
            self._compressed = opcode if first & _COMPRESSED else 0
        if not self._compressed:
            super()._take_payload(first, payload, packets)
            return
        # As binary: what is compressed is not UTF-8.
        whole: list[bytes] = []
        super()._take_payload((first & _FIN) | (BINARY if opcode else 0), payload, whole)
        if whole:
            self._inflation = Inflation(whole[0], self._compressed, self.max_content)
            # No frame that follows is a message of its own before this one is complete.
            self._message = bytearray()
            self._inflate(packets)

    def _inflate(self, packets: list[bytes]) -> None:
        """Decompress as much as this call of ``feed`` may. Append the message if it is complete then."""
        inflation = self._inflation
        assert inflation is not None
        before = inflation.size
        complete = inflation.advance(self._left)
        self._left -= inflation.size - before
        if not complete:
            return
        self._inflation = self._message = None
        message = inflation.chunks[0] if len(inflation.chunks) == 1 else b"".join(inflation.chunks)
        if inflation.opcode == TEXT and not is_utf8(message):
            raise BadPacket("a text message is not UTF-8", CloseCode.INVALID_DATA)
        packets.append(message)


class DeflatedServerFrames(_Deflated, ServerFrames):
    """The codec of the accepting side."""

    __slots__ = ()


class DeflatedClientFrames(_Deflated, ClientFrames):
    """The codec of the dialing side."""

    __slots__ = ()
