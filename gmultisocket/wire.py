"""The wire: messages, paths, and the frames that carry them, byte for byte as the Go implementation speaks them.

A frame, all integers big-endian::

    offset  size          field
    0       1             flags: bits 0-1 the send type, bits 2-7 flags
    1       1             ttl: hops that the message may still make
    2       1             hops: ids in source
    3       1             distance: ids in destination
    4       4             length: bytes of content
    8       4 * hops      source: pipe ids, nearest first: the way back to the origin
    ..      4 * distance  destination: pipe ids, nearest first: the way still to go
    ..      length        content

Whoever receives a message, :class:`Decoder` from a byte stream or :func:`receive` in process, puts the id of the pipe
that it came in by in front of ``source``, takes one from ``ttl``, and takes the first id of the ``destination`` of a
TO_DEST message off. ``source`` is so always a complete way back.

These are bad messages, whoever receives them, and the pipe that they come from closes: a ttl of 0; send type 3; TO_DEST
without a destination; more ids than ``MAX_IDS`` in ``source`` and ``destination`` together once received. The Go code
adds the two counts in 8 bits, so that a message which passed here with more would throw the next peer out of step. No
path of honest traffic comes near: an id enters ``source`` for each that leaves ``destination``, and ttl ends at 255.

This module computes. It has no I/O, no event loop and no clock; what a message may do next (whether it is forwarded,
to which pipe, whether a flag that a peer set is believed) is for the socket to say.

Source: message.go of the Go code; it checks none of these bounds.
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from struct import Struct
from struct import error as StructError
from typing import TYPE_CHECKING, Final, NamedTuple, TypedDict, Unpack

from .errors import BadMessage, BadPath, ContentTooLong, MessageTooLong, MultiSocketError, snippet

if TYPE_CHECKING:
    from typing_extensions import Buffer

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
    "encode",
    "encode_frame",
    "encode_header",
    "first_id",
    "pack_bare_header",
    "pack_id",
    "path_ids",
    "receive",
]

#: Bytes of a frame before its paths.
HEADER_SIZE: Final = 8
#: Hops that a message may make when its sender does not say; also what a sender means by 0.
DEFAULT_TTL: Final = 16
#: The most ids that a path has on the wire.
MAX_IDS: Final = 255
#: The most bytes that a content has on the wire.
MAX_CONTENT: Final = 2**32 - 1

#: Send types, the two low bits of the flags. 3 is no send type.
TO_ONE: Final = 0
TO_ALL: Final = 1
TO_DEST: Final = 2
SEND_TYPE_MASK: Final = 0x03

#: From socket to socket, never shown to the user.
INTERNAL: Final = 0x04
#: Reserved.
NO_SOURCE: Final = 0x08
#: Came from a raw pipe.
RAW: Final = 0x10
#: A control message of the protocol on top.
CONTROL: Final = 0x20

_FLAGGED: Final = INTERNAL | RAW

_ID_SIZE: Final = 4

# What a decoder tells its reader to ask the kernel for: enough for many small frames in one system call, and never so
# much that a promised length decides what is allocated.
_READ_SIZE: Final = 64 * 1024
_MAX_READ_SIZE: Final = 256 * 1024
# From this size on it pays to read a frame by itself: one more system call instead of one more copy.
_LARGE: Final = 32 * 1024

# Pieces of a content below this size are copied together as they come: a peer that sends byte by byte must not cost a
# Python object a byte, nor a few bytes keep the whole chunk alive that they came in.
_SMALL_PIECE: Final = 4096

_pack_id = Struct(">I").pack
_pack_header = Struct(">BBBBI").pack
#: The header of a frame without paths, given flags, ttl, 0 and the length: for whoever cannot afford encode_frame().
pack_bare_header = Struct(">BBHI").pack
# The first four bytes of a frame as one int, its shape, and the length.
_unpack_header = Struct(">II").unpack_from
_iter_ids = Struct(">I").iter_unpack

_new = tuple.__new__


class _Fields(TypedDict, total=False):
    flags: int
    ttl: int
    source: bytes
    destination: bytes
    content: bytes
    pipe_id: int


class Message(NamedTuple):
    """A message, immutable: many pipes may share one.

    ``tuple.__new__(Message, (flags, ttl, source, destination, content, pipe_id))`` makes one in two thirds of the
    time of ``Message(...)``, without defaults; it is how the library makes those that it receives.

    Attributes:
        flags: the whole first byte of the frame, send type included.
        ttl: hops that the message may still make, 0 to 255.
        source: ids, nearest first, 4 bytes each: the way back to the origin, complete once received. Its first id is
            this socket's own; those after it are the peer's claim.
        destination: ids, nearest first: the way still to go.
        content: the bytes. None in one case only, the end of a raw pipe's stream (with
            ``connector.pipe.close_on_eof`` off); the type does not say so, to spare everybody else the question.
        pipe_id: the local pipe that it came in by; 0 for a message made here.
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
        """The number of ids in ``source``: pipes that the message has come by."""
        return len(self.source) // _ID_SIZE

    @property
    def distance(self) -> int:
        """The number of ids in ``destination``: pipes that the message has still to go by."""
        return len(self.destination) // _ID_SIZE

    def replace(self, **fields: Unpack[_Fields]) -> Message:
        """Return the message with some fields changed."""
        return self._replace(**fields)

    def __repr__(self) -> str:
        # A content may be megabytes, and anybody's: it does not belong whole into a log.
        content = self.content if self.content is None else self.content[:64]
        return (
            f"<Message flags={self.flags} ttl={self.ttl} hops={self.hops} distance={self.distance} "
            f"pipe_id={self.pipe_id} content={snippet(content)}>"
        )


#: What a message is made of, in the order of :class:`Message`, which is such a tuple itself. A plain one is made in a
#: third of the time, and is all that a receiver of contents needs.
Fields = tuple[int, int, bytes, bytes, bytes, int]


# Paths


def pack_id(pipe_id: int) -> bytes:
    """Return the 4 bytes that stand for a pipe id in a path.

    Raises:
        BadPath: the id is not a number that 4 bytes can hold.
    """
    try:
        return _pack_id(pipe_id)
    except StructError:
        raise BadPath(pipe_id, "an id is a whole number from 1 to 2^31-1") from None


def first_id(path: bytes) -> int:
    """Return the nearest id of a path; 0, which no pipe has, where the path is empty."""
    return int.from_bytes(path[:_ID_SIZE], "big")


def path_ids(path: bytes) -> tuple[int, ...]:
    """Return the ids of a path, nearest first; none where it is empty.

    Raises:
        BadPath: its length is not a multiple of 4.
    """
    try:
        return tuple([pipe_id for (pipe_id,) in _iter_ids(path)])
    except StructError:
        raise BadPath(path, "its length is not a multiple of 4") from None


def check_path(path: Buffer) -> bytes:
    """Return a destination as bytes, if it is one.

    Raises:
        BadPath: it is empty, not a multiple of 4 bytes, longer than MAX_IDS ids, or not bytes at all.
    """
    if not isinstance(path, bytes):
        try:
            path = bytes(memoryview(path))
        except TypeError:
            raise BadPath(path, f"a path is bytes, not {type(path).__name__}") from None
    if not path:
        raise BadPath(path, "it is empty")
    if len(path) % _ID_SIZE:
        raise BadPath(path, "its length is not a multiple of 4")
    if len(path) > MAX_IDS * _ID_SIZE:
        raise BadPath(path, f"it has more than {MAX_IDS} ids")
    return path


# Sending


def encode(message: Message) -> bytes:
    """Return a message's frame.

    A ttl of 0 is written as it is for a message that was received, and means DEFAULT_TTL for one that was made here.

    Raises:
        BadPath, BadMessage, MessageTooLong: as :func:`encode_frame` does.
    """
    flags, ttl, source, destination, content, pipe_id = message
    if not ttl and not pipe_id:
        ttl = DEFAULT_TTL
    return encode_frame(flags, ttl, source, destination, content)


def encode_frame(flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> bytes:
    """Return the frame of a message given by its fields, each written as it is.

    Raises:
        BadPath: a path is not a multiple of 4 bytes, or the two have more than MAX_IDS ids together.
        BadMessage: flags or ttl do not fit a byte.
        MessageTooLong: the content is longer than MAX_CONTENT.
    """
    if source or destination:
        return encode_header(flags, ttl, source, destination, len(content)) + content
    try:
        return pack_bare_header(flags, ttl, 0, len(content)) + content
    except StructError:
        raise _misfit(flags, ttl, len(content)) from None


def encode_header(flags: int, ttl: int, source: bytes, destination: bytes, length: int) -> bytes:
    """Return a frame without its content, for contents of ``length`` bytes that are too large to copy.

    Raises:
        BadPath, BadMessage, MessageTooLong: as :func:`encode_frame` does.
    """
    hops, distance = len(source) // _ID_SIZE, len(destination) // _ID_SIZE
    # Whole ids only: a byte too many would put the peer out of step with every frame that follows.
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
    """Return the error for a header that does not fit its fields."""
    if length > MAX_CONTENT:
        return MessageTooLong(length, MAX_CONTENT)
    return BadMessage(f"flags {snippet(flags)} and ttl {snippet(ttl)} must be whole numbers from 0 to 255")


# Receiving


def receive(message: Fields, pipe_id: int, local: bytes) -> Fields:
    """Return the fields of a message that a peer in this process handed over, as its receiver sees them.

    Does what :class:`Decoder` does to a frame. The length of the content is for the pipe to check.

    Args:
        message: as it was sent.
        pipe_id: the local pipe that it came in by.
        local: ``pack_id(pipe_id)``, which the pipe has at hand.

    Raises:
        BadMessage: as :class:`Decoder` does.
    """
    flags, ttl, source, destination, content, _ = message
    _check_bounds(flags, ttl, len(source) // _ID_SIZE, len(destination) // _ID_SIZE)
    if destination and flags & SEND_TYPE_MASK == TO_DEST:
        destination = destination[_ID_SIZE:]
    return flags, ttl - 1, local + source, destination, content, pipe_id


def _check_bounds(flags: int, ttl: int, hops: int, distance: int) -> None:
    """Raise BadMessage where the fields of a message on its way to us break a rule. All of them are plain ints."""
    send_type = flags & SEND_TYPE_MASK
    if send_type > TO_DEST:
        raise BadMessage("3 is no send type")
    if ttl < 1:
        raise BadMessage("its ttl is 0")
    ids = hops + distance
    if send_type != TO_DEST:
        # Ours enters the source; for TO_DEST another leaves the destination.
        ids += 1
    elif not distance:
        raise BadMessage("it is for a destination and has none")
    if ids > MAX_IDS:
        raise BadMessage(f"its paths have more than {MAX_IDS} ids together")


# Frames on one pipe come in very few shapes, and so do those of all pipes together.
@lru_cache(maxsize=1024)
def _layout(shape: int) -> tuple[int, int, int, int, int]:
    """Return what the first four bytes of a frame say.

    Returns:
        flags, ttl once received, and the offsets in the frame at which the source ends, the destination begins
        once received, and the content begins.

    Raises:
        BadMessage: they break a rule.
    """
    flags, ttl, hops, distance = shape.to_bytes(4, "big")
    _check_bounds(flags, ttl, hops, distance)
    source_end = HEADER_SIZE + _ID_SIZE * hops
    taken = _ID_SIZE if flags & SEND_TYPE_MASK == TO_DEST else 0
    return flags, ttl - 1, source_end, source_end + taken, source_end + _ID_SIZE * distance


class Decoder:
    """Turns the bytes that one pipe reads into messages, with the receiving rules applied.

    Memory grows with the bytes that have come, never with a length that was promised. Flags are returned as the peer
    set them: whether INTERNAL or RAW is believed is for the pipe to say, which need only look when ``flagged`` is set.

    The first bad frame ends the decoder. Messages that came before it are not lost: the :meth:`feed` that finds it
    returns them and leaves the reason in ``error``; it raises where it has nothing to return, and every later call
    does. A reader therefore delivers what it got, and then closes the pipe if ``error`` is set.

    Args:
        pipe_id: the local pipe that the bytes come in by.
        max_content: the longest content that is taken, in bytes; 0 sets no limit.

    Attributes:
        max_content: may be changed at any time; holds for frames whose header is read after that.
        error: why the decoder has failed, None while it has not.
        flagged: set by every :meth:`feed` that returns a message with INTERNAL or RAW; the pipe resets it.
    """

    __slots__ = (
        "_frame_size",
        "_head",
        "_head_size",
        "_local",
        "_missing",
        "_pieces",
        "_pipe_id",
        "_rest",
        "error",
        "flagged",
        "max_content",
    )

    def __init__(self, pipe_id: int, max_content: int = 131072) -> None:
        self.max_content = max_content
        self.error: BadMessage | None = None
        self.flagged = False
        self._pipe_id = pipe_id
        self._local = pack_id(pipe_id)
        # Between two calls, a frame is cut either before its content, and `_rest` has all that came of it; or in its
        # content, of which `_missing` bytes are to come, `_pieces` have come, and `_head` has the fields before it.
        self._rest = b""
        self._head = (0, 0, b"", b"")
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._missing = 0
        # Of the last frame that was cut in its content: all its bytes, and those before the content.
        self._frame_size = 0
        self._head_size = HEADER_SIZE

    @property
    def pending(self) -> int:
        """The bytes that have come of a frame which is not complete, 0 between two frames."""
        return self._frame_size - self._missing if self._missing else len(self._rest)

    @property
    def read_size(self) -> int:
        """How many bytes to ask the kernel for next.

        A large content is read up to its end, and what follows it up to the end of a header and paths such as that one
        had: a content that comes in one read is then handed on as it is, not copied.
        """
        if self._frame_size < _LARGE or self._rest:
            return _READ_SIZE
        missing = self._missing
        if not missing:
            return self._head_size
        return missing if missing < _MAX_READ_SIZE else _MAX_READ_SIZE

    def feed(self, data: Buffer) -> list[Message]:
        """Return the messages that the next bytes of the stream complete. See :meth:`feed_fields`."""
        return [_new(Message, fields) for fields in self.feed_fields(data)]

    def feed_fields(self, data: Buffer) -> list[Fields]:
        """Take the next bytes of the stream and return the fields of the messages that they complete.

        Args:
            data: any number of bytes. Contents are copied out of ``bytes`` once; others are made ``bytes`` first.

        Raises:
            ContentTooLong: a frame's length is over ``max_content``; nothing was kept for it.
            BadMessage: a frame breaks another rule of the module's docstring.
        """
        if self.error is not None:
            # A copy: the traceback of an error that is raised leads to this decoder, which must not lead back to it.
            raise copy(self.error)
        if type(data) is not bytes:
            data = bytes(data)
        messages: list[Fields] = []
        position = 0
        if self._missing:
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
        """Return the fields of the messages of packets, each of which holds one whole frame and nothing else.

        For a transport that cuts the stream into packets itself; not to be mixed with :meth:`feed_fields`.

        Raises:
            ContentTooLong, BadMessage: as :meth:`feed_fields` does, and where a packet is not one frame.
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
                flags, ttl, source_end, destination_start, content_start = _layout(shape)
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
        """Decode every frame that is complete, and keep what has come of the next."""
        append, unpack, local, pipe_id = messages.append, _unpack_header, self._local, self._pipe_id
        limit = self.max_content or MAX_CONTENT
        begin = position
        end = len(data)
        last_header = end - HEADER_SIZE
        known = -1
        while position <= last_header:
            shape, length = unpack(data, position)
            # Most frames have the shape of the one before: one comparison is then all that their first four bytes take.
            if shape != known:
                flags, ttl, source_end, destination_start, content_start = _layout(shape)
                known = shape
                if flags & _FLAGGED:
                    self.flagged = True
            start = position + content_start
            stop = start + length
            if stop > end or length > limit:
                break
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
                # Frames come whole: they are not large, or come faster than they are read.
                self._frame_size = 0
            return
        if length > limit:
            raise ContentTooLong(length, limit)
        if start > end:
            self._rest = data[position:]
            return
        source = local + data[position + HEADER_SIZE : position + source_end]
        self._rest = b""
        self._head = (flags, ttl, source, data[position + destination_start : start])
        self._frame_size = stop - position
        self._head_size = content_start
        self._missing = length
        self._continue_content(memoryview(data)[start:], messages)

    def _continue_content(self, data: bytes | memoryview, messages: list[Fields]) -> int:
        """Take bytes of the content that is coming in, and return how many of them it took."""
        size = len(data)
        missing = self._missing
        pieces = self._pieces
        if size < missing:
            self._missing = missing - size
            if size >= _SMALL_PIECE:
                pieces.append(data)
            elif pieces and isinstance(last := pieces[-1], bytearray):
                last += data
            elif size:
                pieces.append(bytearray(data))
            return size
        # A content that came alone in one piece is that piece: join() does not copy it.
        pieces.append(data if size == missing else memoryview(data)[:missing])
        content = b"".join(pieces)
        pieces.clear()
        self._missing = 0
        # Its header came in an earlier call, after which the pipe may have reset this.
        if self._head[0] & _FLAGGED:
            self.flagged = True
        messages.append((*self._head, content, self._pipe_id))
        return missing
