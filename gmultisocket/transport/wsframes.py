"""WebSocket frames (RFC 6455, section 5): the packet protocol of the ws transport, as a :class:`PacketCodec`.

Computes only: no I/O, no gevent, no clock. The opening handshake is in ``wshandshake.py``. The ``websockets`` package
checks the contents of close frames, and masks and unmasks, in C if its C code was built. Frames are encoded and decoded
here, because this codec takes a fifth of the time of that package's.

Opcodes and UTF-8. With the subprotocol ``multisocket.text`` messages are sent as text messages. But a message that is
not UTF-8, in its header or content, is sent as a binary message: any strict peer would close the connection when it
reads a wrong text. (The Go code sends all of them as text, and reads both kinds.) Both kinds are received. A received
text message that is not UTF-8 closes the pipe with 1007, as the RFC requires. Go peers offer both subprotocols; binary
is chosen then, so they never send text.

Limits. A message may be as long as the longest content with the longest paths, and have at most 16,384 fragments. No
memory is allocated for an announced length: buffers grow with the bytes that have arrived. Of the pings in one read
only the last few are answered, so a flood of pings costs its sender more than this side.

Compressed messages are in ``wsdeflate.py``. Here a frame with the bit for them is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from struct import Struct
from typing import ClassVar, Final

from websockets.exceptions import ProtocolError
from websockets.frames import Close, CloseCode

from ..errors import BadMessage, BadPacket, Closed, ContentTooLong, Disconnected, MultiSocketError, Timeout, snippet
from ..wire import HEADER_SIZE, MAX_CONTENT, MAX_IDS

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

__all__ = ["BINARY", "MAX_FRAGMENTS", "OVERHEAD", "TEXT", "ClientFrames", "FrameCodec", "ServerFrames", "is_utf8"]

#: The maximum number of frames of one message.
MAX_FRAGMENTS: Final = 16384

#: Frames that one call of ``feed`` decodes, except for short messages of one frame. A peer may send 10,000 control
#: frames in 64 KiB, each of which takes 2 us.
_MAX_FRAMES: Final = 512

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_OPCODE: Final = 0x0F
#: The bit of the opcodes of control frames.
_CONTROL: Final = 0x08
_MASKED: Final = 0x80

_WHOLE_BINARY: Final = _FIN | BINARY
#: The longest payload whose length fits into the second byte. Also the longest payload of a control frame.
_SHORT: Final = 125
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127

# The headers of whole, binary and short frames by size, without and with the mask bit: nearly all sent frames.
_PLAIN: Final = tuple(bytes((_WHOLE_BINARY, size)) for size in range(_SHORT + 1))
_TO_MASK: Final = tuple(bytes((_WHOLE_BINARY, _MASKED | size)) for size in range(_SHORT + 1))

_pack_16 = Struct(">BBH").pack
_pack_64 = Struct(">BBQ").pack
_get_16 = Struct(">H").unpack_from
_get_64 = Struct(">Q").unpack_from

#: The maximum number of bytes in a packet in addition to the content.
OVERHEAD: Final = HEADER_SIZE + 4 * MAX_IDS
#: This number of pings in one read are answered, the last ones.
_MAX_PONGS: Final = 16
#: The longest text in a close frame, in bytes.
_MAX_REASON: Final = 123
# Sizes of reads that a codec proposes; see wire.Decoder.
_READ_SIZE: Final = 64 * 1024
_MAX_READ_SIZE: Final = 256 * 1024


# Masks made in advance: asking the kernel for four bytes at a time would take longer than the rest of a short frame.
_masks: list[bytes] = []
# A forked child must not use the masks of its parent.
os.register_at_fork(after_in_child=_masks.clear)


def _new_mask() -> bytes:
    """Return four unpredictable bytes."""
    while True:
        try:
            return _masks.pop()
        except IndexError:
            random = os.urandom(4096)
            _masks.extend([random[start : start + 4] for start in range(0, len(random), 4)])


def _header(first: int, mask_bit: int, size: int) -> bytes:
    """Return a frame's header, without its mask."""
    if size <= _SHORT:
        return bytes((first, mask_bit | size))
    if size < 1 << 16:
        return _pack_16(first, mask_bit | _LENGTH_16, size)
    return _pack_64(first, mask_bit | _LENGTH_64, size)


def is_utf8(data: bytes | bytearray) -> bool:
    """Return whether some bytes are a text."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class FrameCodec:
    """Encodes and decodes the frames of one connection. Its subclasses differ in masking.

    Args:
        text: send text messages (``multisocket.text``).
        max_content: the longest content of a message in bytes; 0 sets no limit. May be changed at any time.
        whole: whether each WebSocket message is one message frame. Otherwise WebSocket messages are pieces of one
            stream of message frames (``ws.rw``).
    """

    __slots__ = (
        "_close",
        "_ended",
        "_fragments",
        "_head",
        "_message",
        "_missing",
        "_opcode",
        "_payload",
        "_pings",
        "_rest",
        "_text",
        "error",
        "key",
        "max_content",
        "more",
        "whole",
    )

    #: The highest bit that the second byte of a received frame must have.
    _mask_bit: ClassVar[int]

    def __init__(self, text: bool = False, max_content: int = 131072, whole: bool = True) -> None:
        self.key: str | None = None
        self.max_content = max_content
        self.whole = whole
        self.error: BadMessage | None = None
        self.more = False
        self._text = text
        #: The payload of the peer's close frame, None if it has not arrived.
        self._close: bytes | None = None
        #: Whether this side has made its close frame.
        self._ended = False
        #: Payloads of pings that are not answered yet.
        self._pings: list[bytes] | None = None
        # An incomplete message in fragments: its payload so far (None between messages), their number, and its opcode.
        self._message: bytearray | None = None
        self._fragments = 0
        self._opcode = 0
        # Between two calls a frame may be incomplete. If it ends in its header or a short payload, `_rest` is all that
        # has arrived of it. If it ends in a long payload, `_head` has its first byte and the mask, `_payload` is the
        # payload so far, and `_missing` bytes of the payload are missing.
        self._rest = b""
        self._head = (0, b"")
        self._payload: bytearray | None = None
        self._missing = 0

    # Sending

    def account(self, spend: Callable[[int, int], object]) -> None:
        """Report work that takes much longer than sending; see :meth:`PacketConnection.account`. Here there is none."""

    def wrap(self, frame: bytes) -> bytes:
        """Return the packet of one message frame."""
        raise NotImplementedError

    def prefix(self, size: int) -> bytes | None:
        """Return the bytes that a packet has before a frame of this size; None if packet and frame differ in more."""
        return None

    def unwrap(self, packet: bytes) -> bytes:
        """Return the frame of a packet that :meth:`wrap` made."""
        raise NotImplementedError

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        """Return a whole WebSocket frame of any kind."""
        raise NotImplementedError

    def _opcode_for(self, payload: bytes) -> int:
        return TEXT if self._text and is_utf8(payload) else BINARY

    def ping(self) -> bytes:
        """Return a ping. It needs no payload: any byte from the peer counts as the answer."""
        return self._encode(PING, b"")

    def pong(self) -> bytes:
        """Return a pong that no ping asked for (RFC 6455, 5.5.3)."""
        return self._encode(PONG, b"")

    def replies(self) -> bytes:
        """Return the pongs for the received pings."""
        if self._pings is None:
            return b""
        pings, self._pings = self._pings, None
        return b"".join([self._encode(PONG, payload) for payload in pings])

    def goodbye(self, reason: MultiSocketError | None) -> bytes:
        """Return a close frame at the first call: the answer to the peer's close frame, if that has arrived."""
        return self.goodbye_with(_close_code(reason), "" if reason is None else str(reason))

    def goodbye_with(self, code: int, text: str) -> bytes:
        """Return a close frame as :meth:`goodbye` does, with this code and text."""
        if self._ended:
            return b""
        self._ended = True
        if self._close is not None:
            # The answer repeats the code.
            return self._encode(CLOSE, self._close[:2])
        return self._encode(CLOSE, Close(code, snippet(text, _MAX_REASON)).serialize())

    def end(self) -> str:
        """Return why the peer has closed the connection, "" if it has not."""
        if self._close is None:
            return ""
        return f"the peer closed the connection: {snippet(str(Close.parse(self._close)), 200)}"

    # Receiving

    @property
    def read_size(self) -> int:
        """How many bytes the pipe should ask the kernel for next."""
        return min(max(self._missing, _READ_SIZE), _MAX_READ_SIZE)

    @property
    def pending(self) -> bool:
        """Whether an incomplete message has arrived."""
        return bool(self._rest) or self._payload is not None or self._message is not None

    def feed(self, data: bytes) -> list[bytes]:
        """Decode received bytes and return the messages that they complete. Bytes after a close frame are ignored.

        Raises:
            BadPacket: the peer broke a rule of RFC 6455, or sent a message in too many fragments.
            ContentTooLong: a message is longer than a message with ``max_content`` bytes of content can be.
        """
        if self.error is not None:
            raise copy(self.error)
        packets: list[bytes] = []
        try:
            self._take(data, packets)
        except BadMessage as error:
            self.error = copy(error)
            self._forget()
            if not packets:
                raise
        return packets

    def _forget(self) -> None:
        """Drop the incomplete message."""
        self._message = self._payload = self._pings = None
        self.more = False
        self._rest = b""
        self._missing = 0

    def _take(self, data: bytes, packets: list[bytes]) -> None:
        """Decode all complete frames, and keep the beginning of the next one."""
        position = 0
        budget = _MAX_FRAMES
        self.more = False
        if self._close is not None:
            return
        if self._missing:
            position = self._continue_payload(data, packets)
        elif self._rest:
            data = self._rest + data
            self._rest = b""
        mask_bit = self._mask_bit
        start_of_short = 6 if mask_bit else 2
        append = packets.append
        end = len(data)
        while position + 1 < end:
            size = data[position + 1] ^ mask_bit
            # Nearly all frames are short, and a whole message.
            if size <= _SHORT and data[position] == _WHOLE_BINARY and self._message is None:
                start = position + start_of_short
                stop = start + size
                if stop > end:
                    break
                payload = data[start:stop]
                append(apply_mask(payload, data[start - 4 : start]) if mask_bit else payload)
                position = stop
                continue
            if not budget:
                self.more = True
                break
            budget -= 1
            stop = self._take_frame(data, position, packets)
            if stop < 0:
                break
            position = stop
            if self._close is not None:
                self._forget()
                return
        if position < end:
            self._rest = data[position:]

    def _take_frame(self, data: bytes, position: int, packets: list[bytes]) -> int:
        """Decode one frame of any kind. Return where it ends, or -1 if more bytes are needed."""
        first, second = data[position], data[position + 1] ^ self._mask_bit
        self._check_head(first, second)
        start, size = position + 2, second
        if size > _SHORT:
            get, width = (_get_16, 2) if size == _LENGTH_16 else (_get_64, 8)
            if start + width > len(data):
                return -1
            (size,) = get(data, start)
            start += width
        self._check_size(first, size)
        mask = b""
        if self._mask_bit:
            mask = data[start : start + 4]
            start += 4
        stop = start + size
        if stop <= len(data):
            payload = data[start:stop]
            self._take_payload(first, apply_mask(payload, mask) if mask else payload, packets)
            return stop
        if size <= _SHORT or start > len(data):
            return -1
        self._head = (first, mask)
        self._payload = bytearray(memoryview(data)[start:])
        self._missing = stop - len(data)
        return len(data)

    def _continue_payload(self, data: bytes, packets: list[bytes]) -> int:
        """Add bytes to a long payload, and return how many of them belong to it."""
        assert self._payload is not None
        taken = min(self._missing, len(data))
        self._payload += memoryview(data)[:taken]
        self._missing -= taken
        if not self._missing:
            payload, self._payload = self._payload, None
            first, mask = self._head
            self._take_payload(first, apply_mask(payload, mask) if mask else bytes(payload), packets)
        return taken

    def _check_head(self, first: int, second: int) -> None:
        """Check the first two bytes of a frame, the second one without its mask bit."""
        opcode = first & _OPCODE
        if first & _RESERVED:
            raise BadPacket("a reserved bit is set", CloseCode.PROTOCOL_ERROR)
        if second & _MASKED:
            wrong = "is not masked" if self._mask_bit else "is masked"
            raise BadPacket(f"a frame {wrong}", CloseCode.PROTOCOL_ERROR)
        if opcode & _CONTROL:
            if opcode > PONG:
                raise BadPacket(f"there is no opcode {opcode}", CloseCode.PROTOCOL_ERROR)
            if not first & _FIN:
                raise BadPacket("a control frame is fragmented", CloseCode.PROTOCOL_ERROR)
            if second > _SHORT:
                raise BadPacket(f"a control frame has more than {_SHORT} bytes", CloseCode.PROTOCOL_ERROR)
        elif opcode == CONTINUATION:
            if self._message is None:
                raise BadPacket("there is nothing to continue", CloseCode.PROTOCOL_ERROR)
            if self._fragments >= MAX_FRAGMENTS:
                raise BadPacket(f"a message has more than {MAX_FRAGMENTS} fragments", CloseCode.POLICY_VIOLATION)
        elif opcode > BINARY:
            raise BadPacket(f"there is no opcode {opcode}", CloseCode.PROTOCOL_ERROR)
        elif self._message is not None:
            raise BadPacket("a message begins before the last one has ended", CloseCode.PROTOCOL_ERROR)

    def _check_size(self, first: int, size: int) -> None:
        """Check the announced size of a frame, before any memory is used for it."""
        if size >> 63:
            raise BadPacket("the highest bit of a length is set", CloseCode.PROTOCOL_ERROR)
        if not first & _CONTROL:
            if self._message is not None:
                size += len(self._message)
            limit = self.max_content or MAX_CONTENT
            if size > limit + OVERHEAD:
                raise ContentTooLong(size - HEADER_SIZE, limit)

    def _take_payload(self, first: int, payload: bytes, packets: list[bytes]) -> None:
        """Process a complete frame."""
        opcode = first & _OPCODE
        if opcode & _CONTROL:
            self._take_control(opcode, payload)
            return
        if self._message is not None:
            self._message += payload
            self._fragments += 1
            if not first & _FIN:
                return
            payload, opcode = bytes(self._message), self._opcode
            self._message = None
        elif not first & _FIN:
            self._message = bytearray(payload)
            self._fragments = 1
            self._opcode = opcode
            return
        if opcode == TEXT and not is_utf8(payload):
            raise BadPacket("a text message is not UTF-8", CloseCode.INVALID_DATA)
        packets.append(payload)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            pings = self._pings = self._pings or []
            pings.append(payload)
            del pings[:-_MAX_PONGS]
        elif opcode == CLOSE:
            try:
                Close.parse(payload)
            except ProtocolError as error:
                raise BadPacket(f"a close frame is wrong: {error}", CloseCode.PROTOCOL_ERROR) from error
            except UnicodeDecodeError as error:
                raise BadPacket("the text of a close frame is not UTF-8", CloseCode.INVALID_DATA) from error
            self._close = payload


class ServerFrames(FrameCodec):
    """The codec of the accepting side. Its frames are not masked: a frame is the same for every peer."""

    __slots__ = ()

    _mask_bit = _MASKED

    def __init__(self, text: bool = False, max_content: int = 131072, whole: bool = True) -> None:
        super().__init__(text, max_content, whole)
        self.key = "ws-text" if text else "ws-binary"

    def wrap(self, frame: bytes) -> bytes:
        size = len(frame)
        if size <= _SHORT and not self._text:
            return _PLAIN[size] + frame
        return self._encode(self._opcode_for(frame) if self._text else BINARY, frame)

    def prefix(self, size: int) -> bytes | None:
        # The opcode of a text message depends on its content.
        return None if self._text else _header(_FIN | BINARY, 0, size)

    def unwrap(self, packet: bytes) -> bytes:
        return packet[_payload_start(packet[1]) :]

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        return _header(_FIN | opcode, 0, len(payload)) + payload


class ClientFrames(FrameCodec):
    """The codec of the dialing side. Each frame is masked with unpredictable bytes."""

    __slots__ = ()

    _mask_bit = 0

    def wrap(self, frame: bytes) -> bytes:
        size = len(frame)
        if size <= _SHORT and not self._text:
            mask = _new_mask()
            return _TO_MASK[size] + mask + apply_mask(frame, mask)
        return self._encode(self._opcode_for(frame) if self._text else BINARY, frame)

    def unwrap(self, packet: bytes) -> bytes:
        start = _payload_start(packet[1] & ~_MASKED) + 4
        return apply_mask(packet[start:], packet[start - 4 : start])

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        mask = _new_mask()
        return _header(_FIN | opcode, _MASKED, len(payload)) + mask + apply_mask(payload, mask)


def _payload_start(size: int) -> int:
    """Return the position of the mask or payload, given the second byte of a header without its mask bit."""
    return 2 if size <= _SHORT else 4 if size == _LENGTH_16 else 10


def _close_code(reason: MultiSocketError | None) -> int:
    """Return the close code of RFC 6455 for the reason of a pipe."""
    match reason:
        case None:
            return CloseCode.NORMAL_CLOSURE
        case BadPacket() | Disconnected():
            return reason.code
        case ContentTooLong():
            return CloseCode.MESSAGE_TOO_BIG
        case BadMessage():
            # The WebSocket message is not a message of the subprotocol.
            return CloseCode.INVALID_DATA
        case Closed():
            return CloseCode.GOING_AWAY
        case Timeout():
            return CloseCode.INTERNAL_ERROR
    return CloseCode.POLICY_VIOLATION
