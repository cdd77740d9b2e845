"""The wire format: messages, paths, and the frames that carry them, byte for byte as in the Go implementation.

A frame, all integers big-endian::

    offset  size          field
    0       1             flags: bits 0-1 the send type, bits 2-7 flags
    1       1             ttl: hops that the message may still make
    2       1             hops: ids in source
    3       1             distance: ids in destination
    4       4             length: bytes of content
    8       4 * hops      source: pipe ids, nearest first: the way back to the origin
    ..      4 * distance  destination: pipe ids, nearest first: the rest of the way
    ..      length        content

A message changes when it is received, by :class:`Decoder` from a byte stream or by :func:`receive` within a process:
the id of the receiving pipe is put in front of ``source``, ``ttl`` goes down by one, and the first id of the
``destination`` of a TO_DEST message is removed. So ``source`` is always a complete way back.

These are bad messages, and the pipe that receives one closes: a ttl of 0; send type 3; TO_DEST without a destination;
more than ``MAX_IDS`` ids in ``source`` and ``destination`` together once received. The Go code adds the two counts in 8
bits: forwarded to it, a message with more ids would make it misread every following frame. No honest path is so long:
``source`` grows by one id when ``destination`` loses one, and ttl is at most 255.

This module only computes. It has no I/O, no event loop and no clock. The socket decides what happens to a message next:
whether it is forwarded, to which pipe, and whether a flag that a peer has set is trusted.

Source: message.go of the Go code; it checks none of these bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache
from itertools import repeat
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Final, NamedTuple

from .errors import BadMessage, BadPath, ContentTooLong, MessageTooLong, MultiSocketError, snippet

if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from typing_extensions import Buffer

    class _Fields(TypedDict, total=False):
        flags: int
        ttl: int
        source: bytes
        destination: bytes
        content: bytes
        pipe_id: int


__all__ = [
    "CONTROL",
    "DEFAULT_TTL",
    "HEADER_SIZE",
    "INTERNAL",
    "MAX_CONTENT",
    "MAX_IDS",
    "NO_SOURCE",
    "RAW",
    "SEND_TYPE_MASK",
    "TO_ALL",
    "TO_DEST",
    "TO_ONE",
    "Decoder",
    "Fields",
    "Message",
    "check_path",
    "contents_of",
    "count_equal",
    "encode",
    "encode_frame",
    "encode_header",
    "first_id",
    "layout",
    "pack_bare_header",
    "pack_id",
    "path_ids",
    "receive",
]

#: Bytes of a frame before its paths.
HEADER_SIZE: Final = 8
#: Hops that a message may make if its sender sets no ttl, or the ttl 0.
DEFAULT_TTL: Final = 16
#: The maximum number of ids in a path.
MAX_IDS: Final = 255
#: The maximum number of bytes in a content.
MAX_CONTENT: Final = 2**32 - 1

#: Send types: the two low bits of the flags. 3 is not a send type.
TO_ONE: Final = 0
TO_ALL: Final = 1
TO_DEST: Final = 2
SEND_TYPE_MASK: Final = 0x03

#: Sent by a socket to a socket; the user never receives it.
INTERNAL: Final = 0x04
#: Reserved.
NO_SOURCE: Final = 0x08
#: Received from a raw pipe.
RAW: Final = 0x10
#: A control message of a protocol.
CONTROL: Final = 0x20

_FLAGGED: Final = INTERNAL | RAW

_ID_SIZE: Final = 4

# Sizes of reads that a decoder proposes: enough for many small frames in one system call, and bounded, so that an
# announced length never decides how much memory is allocated.
_READ_SIZE: Final = 64 * 1024
_MAX_READ_SIZE: Final = 256 * 1024
# Reading a frame of at least this size by itself is faster: it costs a system call and saves a copy.
_LARGE: Final = 32 * 1024

# Pieces of a content that are smaller are copied into one buffer as they arrive. Otherwise a peer that sends single
# bytes would cost one Python object per byte, and a few bytes would keep the whole chunk alive that they arrived in.
_SMALL_PIECE: Final = 4096

# A row: at least so many frames, one behind the other, that differ in their contents only. They are decoded together.
# Rows are not looked for in reads of fewer bytes than the second number.
_ROW: Final = 16
_ROW_BYTES: Final = 1024
# How many frames are compared at once: the first number, then more, and at most the last one.
_FIRST_STEP: Final = 64
_LAST_STEP: Final = 256

_pack_id = Struct(">I").pack
_pack_header = Struct(">BBBBI").pack
#: Returns the header of a frame without paths, given flags, ttl, 0 and the length: a faster way than encode_frame().
pack_bare_header = Struct(">BBHI").pack
# The first four bytes of a frame as one int, its shape, and the length.
_unpack_header = Struct(">II").unpack_from
_iter_ids = Struct(">I").iter_unpack

_new = tuple.__new__


class Message(NamedTuple):
    """A message. Immutable: many pipes may share one.

    ``tuple.__new__(Message, (flags, ttl, source, destination, content, pipe_id))`` takes two thirds of the time of
    ``Message(...)`` and has no defaults. The library makes received messages in this way.

    Attributes:
        flags: the whole first byte of the frame, including the send type.
        ttl: hops that the message may still make, 0 to 255.
        source: ids, nearest first, 4 bytes each: the way back to the origin, complete in a received message. The first
            id is a pipe of this socket; the following ids are the peer's claim.
        destination: ids, nearest first, 4 bytes each: the rest of the way.
        content: the bytes. None in one case only: at the end of a raw pipe's stream, with
            ``connector.pipe.close_on_eof`` off. The type leaves this out, so that no other program has to check for it.
        pipe_id: the local pipe that received it; 0 for a message made here.
    """

    flags: int = 0
    ttl: int = DEFAULT_TTL
    source: bytes = b""
    destination: bytes = b""
    content: bytes = b""
    pipe_id: int = 0

    @property
    def send_type(self) -> int:
        """TO_ONE, TO_ALL or TO_DEST."""
        return self.flags & SEND_TYPE_MASK

    @property
    def hops(self) -> int:
        """The number of ids in ``source``: the pipes that the message has passed."""
        return len(self.source) // _ID_SIZE

    @property
    def distance(self) -> int:
        """The number of ids in ``destination``: the pipes that the message has yet to pass."""
        return len(self.destination) // _ID_SIZE

    def replace(self, **fields: Unpack[_Fields]) -> Message:
        """Return the message with some fields changed."""
        return self._replace(**fields)

    def __repr__(self) -> str:
        # A content may be large and come from anybody: a log must not contain all of it.
        content = self.content if self.content is None else self.content[:64]
        return (
            f"<Message flags={self.flags} ttl={self.ttl} hops={self.hops} distance={self.distance} "
            f"pipe_id={self.pipe_id} content={snippet(content)}>"
        )


#: The fields of a message, in the order of :class:`Message`, which is such a tuple itself. Making a plain tuple takes a
#: third of the time, and ``recv`` needs no more.
Fields = tuple[int, int, bytes, bytes, bytes, int]


# Paths


def pack_id(pipe_id: int) -> bytes:
    """Return a pipe id as the 4 bytes that it has in a path.

    Raises:
        BadPath: the id is not a number that fits into 4 bytes.
    """
    try:
        return _pack_id(pipe_id)
    except StructError:
        raise BadPath(pipe_id, "an id is a whole number from 1 to 2^31-1") from None


def first_id(path: bytes) -> int:
    """Return the nearest id of a path. For an empty path return 0, which is no pipe's id."""
    return int.from_bytes(path[:_ID_SIZE], "big")


def path_ids(path: bytes) -> tuple[int, ...]:
    """Return the ids of a path, nearest first; an empty tuple for an empty path.

    Raises:
        BadPath: its length is not a multiple of 4.
    """
    try:
        return tuple([pipe_id for (pipe_id,) in _iter_ids(path)])
    except StructError:
        raise BadPath(path, "its length is not a multiple of 4") from None


def check_path(path: Buffer) -> bytes:
    """Return a destination as bytes.

    Args:
        path: bytes-like.

    Raises:
        BadPath: it is empty, not a multiple of 4 bytes, longer than MAX_IDS ids, or not bytes-like.
    """
    if not isinstance(path, bytes):
        try:
            path = bytes(memoryview(path))
        except TypeError:
            raise BadPath(path, f"a path must be bytes-like, not {type(path).__name__}") from None
    if not path:
        raise BadPath(path, "it is empty: expected at least one id of 4 bytes")
    if len(path) % _ID_SIZE:
        raise BadPath(path, "its length is not a multiple of 4")
    if len(path) > MAX_IDS * _ID_SIZE:
        raise BadPath(path, f"it has more than {MAX_IDS} ids")
    return path


# Sending


def encode(message: Message) -> bytes:
    """Return the frame of a message.

    A ttl of 0 means DEFAULT_TTL in a message that was made here. In a received message it is written as 0.

    Raises:
        BadPath, BadMessage, MessageTooLong: as :func:`encode_frame` does.
    """
    flags, ttl, source, destination, content, pipe_id = message
    if not ttl and not pipe_id:
        ttl = DEFAULT_TTL
    return encode_frame(flags, ttl, source, destination, content)


def encode_frame(flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> bytes:
    """Return the frame of a message with these fields. Each is written as it is, a ttl of 0 also.

    Raises:
        BadPath: a path is not a multiple of 4 bytes, or the two have more than MAX_IDS ids together.
        BadMessage: flags or ttl do not fit into a byte.
        MessageTooLong: the content is longer than MAX_CONTENT.
    """
    if source or destination:
        return encode_header(flags, ttl, source, destination, len(content)) + content
    try:
        return pack_bare_header(flags, ttl, 0, len(content)) + content
    except StructError:
        raise _misfit(flags, ttl, len(content)) from None


def encode_header(flags: int, ttl: int, source: bytes, destination: bytes, length: int) -> bytes:
    """Return a frame without its content, which has ``length`` bytes and may be too large to copy.

    Raises:
        BadPath, BadMessage, MessageTooLong: as :func:`encode_frame` does.
    """
    hops, distance = len(source) // _ID_SIZE, len(destination) // _ID_SIZE
    # Whole ids only: with one byte too many the peer would misread every following frame.
    if (len(source) | len(destination)) % _ID_SIZE or hops + distance > MAX_IDS:
        for path in (source, destination):
            if path:
                check_path(path)
        raise BadPath(source + destination, f"source and destination have more than {MAX_IDS} ids together")
    try:
        return _pack_header(flags, ttl, hops, distance, length) + source + destination
    except StructError:
        raise _misfit(flags, ttl, length) from None


def _misfit(flags: int, ttl: int, length: int) -> MultiSocketError:
    """Return the error for values that do not fit into the fields of a header."""
    if length > MAX_CONTENT:
        return MessageTooLong(length, MAX_CONTENT)
    return BadMessage(f"flags {snippet(flags)} and ttl {snippet(ttl)} must be whole numbers from 0 to 255")


# Receiving


def receive(message: Fields, pipe_id: int, local: bytes) -> Fields:
    """Return the fields of a message from a peer in this process, as its receiver sees them.

    Changes and checks the message as :class:`Decoder` does. The pipe checks the length of the content.

    Args:
        message: as it was sent.
        pipe_id: the local pipe that receives it.
        local: ``pack_id(pipe_id)``, which the pipe has already.

    Raises:
        BadMessage: as :class:`Decoder` does.
    """
    flags, ttl, source, destination, content, _ = message
    _check_bounds(flags, ttl, len(source) // _ID_SIZE, len(destination) // _ID_SIZE)
    if destination and flags & SEND_TYPE_MASK == TO_DEST:
        destination = destination[_ID_SIZE:]
    return flags, ttl - 1, local + source, destination, content, pipe_id


def _check_bounds(flags: int, ttl: int, hops: int, distance: int) -> None:
    """Raise BadMessage if the fields of a message that is being received break a rule. All are plain ints."""
    send_type = flags & SEND_TYPE_MASK
    if send_type > TO_DEST:
        raise BadMessage("3 is no send type")
    if ttl < 1:
        raise BadMessage("its ttl is 0")
    ids = hops + distance
    if send_type != TO_DEST:
        # The source grows by the id of this pipe. With TO_DEST the destination becomes shorter at the same time.
        ids += 1
    elif not distance:
        raise BadMessage("it is for a destination and has none")
    if ids > MAX_IDS:
        raise BadMessage(f"its paths have more than {MAX_IDS} ids together")


# The frames of all pipes together have only a few different shapes.
@lru_cache(maxsize=1024)
def layout(shape: int) -> tuple[int, int, int, int, int]:
    """Return the meaning of the first four bytes of a frame.

    Returns:
        The flags; the ttl once received; and the offsets in the frame at which the source ends, the destination begins
        once received, and the content begins.

    Raises:
        BadMessage: they break a rule.
    """
    flags, ttl, hops, distance = shape.to_bytes(4, "big")
    _check_bounds(flags, ttl, hops, distance)
    source_end = HEADER_SIZE + _ID_SIZE * hops
    taken = _ID_SIZE if flags & SEND_TYPE_MASK == TO_DEST else 0
    return flags, ttl - 1, source_end, source_end + taken, source_end + _ID_SIZE * distance


# Frames in a row that differ in their contents only, as most senders send them


def count_equal(data: bytes, position: int, head_size: int, stride: int, most: int) -> int:
    """Return how many frames of ``stride`` bytes in a row begin with the same ``head_size`` bytes, 1 at least.

    The first one begins at ``position``. At most ``most`` are counted, which must be whole.
    """
    head = data[position : position + head_size]
    count = equal = step = 0
    while equal == step and count < most:
        step = equal = min(max(_FIRST_STEP, step * 2), _LAST_STEP, most - count)
        begin = position + count * stride
        for offset in range(head_size):
            # The bytes at one place of the header in all these frames.
            column = data[begin + offset : begin + equal * stride : stride]
            byte = head[offset : offset + 1]
            if column != byte * equal:
                equal -= len(column.lstrip(byte))
        count += equal
    return count


def contents_of(data: bytes, position: int, head_size: int, length: int, count: int) -> list[bytes]:
    """Return the contents, each of ``length`` bytes behind ``head_size`` others, of ``count`` frames in a row."""
    contents: list[bytes] = []
    while count:
        step = min(1 << count.bit_length() - 1, _LAST_STEP)
        contents += _unpack_contents(head_size, length, step)(data, position)
        position += step * (head_size + length)
        count -= step
    return contents


@lru_cache(maxsize=64)
def _unpack_contents(head_size: int, length: int, count: int) -> Callable[[bytes, int], tuple[bytes, ...]]:
    """Return a function that takes the contents out of frames of one size; it costs more to make than to use."""
    return Struct(f"{head_size}x{length}s" * count).unpack_from


class Decoder:
    """Decodes the bytes that one pipe reads into messages, and changes and checks them as received messages.

    Memory grows with the bytes that have arrived, never with an announced length. Flags are returned as the peer has
    set them. The pipe decides whether INTERNAL or RAW is trusted, and needs to check that only if ``flagged`` is set.

    The decoder stops at the first bad frame. The messages before it are not lost: the :meth:`feed` that finds the bad
    frame returns them and stores the reason in ``error``. If there are none it raises, as does every later call. So a
    reader delivers what ``feed`` has returned, and then closes the pipe if ``error`` is set.

    Args:
        pipe_id: the local pipe that reads the bytes.
        max_content: the longest allowed content in bytes; 0 sets no limit.

    Attributes:
        max_content: may be changed at any time; applies to frames whose header is read later.
        error: why the decoder has stopped; None while it works.
        flagged: set by every :meth:`feed` that returns a message with INTERNAL or RAW; the pipe resets it.
        head: flags, ttl, source and destination of the message whose content has begun, or of the last such one.
        head_size: the size of header and paths of the last large frame, and probably of the next one.
        missing: how many bytes are missing of a content that has begun; 0 if none has. May be set while
            :attr:`holds_nothing`, to what is missing after bytes that were read elsewhere: of this content, or of
            another one with the same header, paths and :attr:`repeated_size`.
    """

    __slots__ = (
        "_frame_size",
        "_local",
        "_pieces",
        "_pipe_id",
        "_rest",
        "_whole_size",
        "error",
        "flagged",
        "head",
        "head_size",
        "max_content",
        "missing",
    )

    def __init__(self, pipe_id: int, max_content: int = 131072) -> None:
        self.max_content = max_content
        self.error: BadMessage | None = None
        self.flagged = False
        self._pipe_id = pipe_id
        self._local = pack_id(pipe_id)
        # Between two calls a frame may be incomplete. If its content has not begun, `_rest` is all that has arrived of
        # it. Otherwise `head` has the fields before the content, `_pieces` is the content so far, and `missing` bytes
        # of the content are missing.
        self._rest = b""
        self.head = (0, 0, b"", b"")
        self._pieces: list[bytes | bytearray | memoryview] = []
        self.missing = 0
        # Of the last frame whose content was incomplete: its size, and the size of its header and paths.
        self._frame_size = 0
        self.head_size = HEADER_SIZE
        # The size of the last frame whose beginning was kept, 0 if none was since.
        self._whole_size = 0

    @property
    def pending(self) -> int:
        """The number of bytes that have arrived of an incomplete frame; 0 between two frames."""
        return self._frame_size - self.missing if self.missing else len(self._rest)

    # A content that is read elsewhere

    @property
    def holds_nothing(self) -> bool:
        """Whether the decoder has no bytes of a message but, perhaps, its header and paths."""
        return not self._pieces and not self._rest

    @property
    def repeated_size(self) -> int:
        """The size of a content with the header of the last large one; 0 if ``max_content``, which may have changed,
        does not allow it."""
        size = self._frame_size - self.head_size
        return size if not self.max_content or size <= self.max_content else 0

    def keep(self, beginning: bytes) -> None:
        """Keep the beginning of a valid frame: the next bytes are decoded behind it. Only between two frames.

        From now on reads end where a frame of this size would end.
        """
        self._rest = beginning
        self._frame_size = 0
        if len(beginning) >= HEADER_SIZE:
            shape, length = _unpack_header(beginning)
            self._whole_size = layout(shape)[4] + length

    def take_kept(self) -> bytes:
        """Return the beginning of the frame of which no content has begun, and forget it."""
        rest, self._rest = self._rest, b""
        return rest

    @property
    def read_size(self) -> int:
        """How many bytes the pipe should ask the kernel for next.

        A large content is read to its end and no further. The next read then asks for as many bytes as its header and
        paths had. So the next large content can arrive in one read, and is passed on without a copy.
        """
        missing = self.missing
        if self._whole_size and not missing:
            # What is missing of the first frame, and further ones. Large ones are passed on without a copy.
            size = self._whole_size
            first, most = size - len(self._rest), _READ_SIZE if size < _SMALL_PIECE else _MAX_READ_SIZE
            return first + max(0, most - first) // size * size
        if self._frame_size < _LARGE or self._rest:
            return _READ_SIZE
        if not missing:
            return self.head_size
        return missing if missing < _MAX_READ_SIZE else _MAX_READ_SIZE

    def feed(self, data: Buffer) -> list[Message]:
        """Return the messages that are completed by the next bytes of the stream. See :meth:`feed_fields`."""
        return [_new(Message, fields) for fields in self.feed_fields(data)]

    def feed_fields(self, data: Buffer) -> list[Fields]:
        """Decode the next bytes of the stream and return the fields of the messages that they complete.

        Args:
            data: bytes-like, of any length. Contents are copied out of ``bytes`` once; another type is first converted.

        Raises:
            ContentTooLong: a frame announces more than ``max_content`` bytes; no memory was used for it.
            BadMessage: a frame breaks another rule of the module's docstring.
        """
        if self.error is not None:
            # A copy: the traceback of a raised error refers to this decoder, and a reference back would make a cycle.
            raise copy(self.error)
        if type(data) is not bytes:
            data = bytes(data)
        messages: list[Fields] = []
        position = 0
        if self.missing:
            position = self._continue_content(data, messages)
        elif self._rest:
            data = self._rest + data
        try:
            self._take_frames(data, position, messages)
        except BadMessage as error:
            self.error = copy(error)
            self._rest = b""
            if not messages:
                raise
        return messages

    def feed_packets(self, packets: list[bytes]) -> list[Fields]:
        """Return the fields of the messages in packets. Each packet must be exactly one frame.

        For a transport with packets. Do not mix it with :meth:`feed_fields`.

        Raises:
            ContentTooLong, BadMessage: as :meth:`feed_fields` does, and if a packet is not exactly one frame.
        """
        if self.error is not None:
            raise copy(self.error)
        messages: list[Fields] = []
        try:
            self._take_packets(packets, messages)
        except BadMessage as error:
            self.error = copy(error)
            if not messages:
                raise
        return messages

    def _take_packets(self, packets: list[bytes], messages: list[Fields]) -> None:
        append, unpack, local, pipe_id = messages.append, _unpack_header, self._local, self._pipe_id
        limit = self.max_content or MAX_CONTENT
        known = -1
        for packet in packets:
            if len(packet) < HEADER_SIZE:
                raise BadMessage("a packet is not one whole message")
            shape, length = unpack(packet)
            if shape != known:
                flags, ttl, source_end, destination_start, content_start = layout(shape)
                known = shape
                if flags & _FLAGGED:
                    self.flagged = True
            if length > limit:
                raise ContentTooLong(length, limit)
            if content_start + length != len(packet):
                raise BadMessage("a packet is not one whole message")
            if content_start == HEADER_SIZE:
                append((flags, ttl, local, b"", packet[HEADER_SIZE:], pipe_id))
            else:
                source = local + packet[HEADER_SIZE:source_end]
                append((flags, ttl, source, packet[destination_start:content_start], packet[content_start:], pipe_id))

    def _take_frames(self, data: bytes, position: int, messages: list[Fields]) -> None:
        """Decode all complete frames, and keep the beginning of the next one."""
        append, unpack, local, pipe_id = messages.append, _unpack_header, self._local, self._pipe_id
        limit = self.max_content or MAX_CONTENT
        begin = position
        end = len(data)
        last_header = end - HEADER_SIZE
        known = -1
        # Where to look next for frames in a row that are alike. For a few frames this would not be worth its time.
        probe = position if end - position >= _ROW_BYTES else end
        while position <= last_header:
            shape, length = unpack(data, position)
            # Most frames have the same shape as the one before: their first four bytes then cost one comparison.
            if shape != known:
                flags, ttl, source_end, destination_start, content_start = layout(shape)
                known = shape
                if flags & _FLAGGED:
                    self.flagged = True
            start = position + content_start
            stop = start + length
            if stop > end or length > limit:
                break
            if position >= probe:
                size = stop - position
                probe = position + _ROW * size
                if probe <= end and data.startswith(data[position:start], probe - size):
                    count = self._take_row(data, position, size, messages)
                    position += count * size
                    # What only looked like a row is not looked for again.
                    probe = position if count >= _ROW else end
                    continue
            if content_start == HEADER_SIZE:
                append((flags, ttl, local, b"", data[start:stop], pipe_id))
            else:
                source = local + data[position + HEADER_SIZE : position + source_end]
                destination = data[position + destination_start : start]
                append((flags, ttl, source, destination, data[start:stop], pipe_id))
            position = stop
        else:
            self._rest = data[position:]
            if position > begin:
                # All frames are whole: they are not large, or arrive faster than they are read.
                self._frame_size = 0
            return
        if length > limit:
            raise ContentTooLong(length, limit)
        if start > end:
            self._rest = data[position:]
            return
        source = local + data[position + HEADER_SIZE : position + source_end]
        self._rest = b""
        self.head = (flags, ttl, source, data[position + destination_start : start])
        self._frame_size = stop - position
        self._whole_size = 0
        self.head_size = content_start
        self.missing = length
        self._continue_content(memoryview(data)[start:], messages)

    def _take_row(self, data: bytes, position: int, size: int, messages: list[Fields]) -> int:
        """Decode all frames in a row of one size and with equal headers and paths. Return their number, 1 at least."""
        flags, ttl, source_end, destination_start, content_start = layout(_unpack_header(data, position)[0])
        count = count_equal(data, position, content_start, size, (len(data) - position) // size)
        contents = contents_of(data, position, content_start, size - content_start, count)
        source = self._local + data[position + HEADER_SIZE : position + source_end]
        destination = data[position + destination_start : position + content_start]
        same = repeat(flags), repeat(ttl), repeat(source), repeat(destination)
        messages += zip(*same, contents, repeat(self._pipe_id))
        return count

    def _continue_content(self, data: bytes | memoryview, messages: list[Fields]) -> int:
        """Add bytes to the incomplete content, and return how many of them belong to it."""
        size = len(data)
        missing = self.missing
        pieces = self._pieces
        if size < missing:
            self.missing = missing - size
            if size >= _SMALL_PIECE:
                pieces.append(data)
            elif pieces and isinstance(last := pieces[-1], bytearray):
                last += data
            elif size:
                pieces.append(bytearray(data))
            return size
        # If a piece is the whole content, join() returns it without a copy.
        pieces.append(data if size == missing else memoryview(data)[:missing])
        content = b"".join(pieces)
        pieces.clear()
        self.missing = 0
        # The header arrived in an earlier call; the pipe may have reset this since.
        if self.head[0] & _FLAGGED:
            self.flagged = True
        messages.append((*self.head, content, self._pipe_id))
        return missing
