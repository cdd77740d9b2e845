"""Frames that are passed on as they lie: a switch changes only their headers.

A message that is received and sent again has changed in three places: its ttl is one less, the id of the receiving
pipe stands in front of its source, and a TO_DEST message has lost the first id of its destination. The content is the
same. :func:`take_batch` makes these changes in the bytes that were read, without a message in between, and returns the
frames that go the same way together. Frames with equal headers, as most senders send them in a row, are compared and
rewritten by a few calls for all of them. A content of 2 KiB or more is not copied: it is sent from where it was read.

It looks at every header, and takes a frame only if nothing about it needs a decision. It stops at any other: one that
breaks a rule or is not for users, whose ttl ends here or is larger than allowed, whose paths have no space for one more
id, whose destination ends here, or whose content is too long. Such frames are for :class:`~.wire.Decoder`, and so is
one that is not whole.

For each frame that it takes, the result is byte for byte what the decoder and :func:`~.wire.encode_frame` would make.

As ``wire.py`` this module only computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from struct import Struct
from typing import Final

from .errors import BadMessage
from .wire import HEADER_SIZE, INTERNAL, RAW, SEND_TYPE_MASK, TO_DEST, contents_of, count_equal, first_id, layout

__all__ = ["MOST", "REPEATED", "Batch", "frame_size", "is_beginning", "take_batch", "take_equal"]

_ID_SIZE: Final = 4
#: Bytes. Such a content and any longer one is not copied behind its header.
_APART: Final = 2048
#: Buffers are joined if there are more of them, or if they have fewer bytes on average.
_MOST_BUFFERS: Final = 64
_SMALL_BUFFERS: Final = 1024
#: At most this number of frames is taken at once.
MOST: Final = 1024
#: After this number of frames in a row with the same header, all further ones that have it are taken together.
REPEATED: Final = 4

_unpack_header = Struct(">II").unpack_from
_pack_head = Struct(">II4s").pack


class Batch:
    """Frames as they are sent on: in order, all of one send type, and along paths all by one pipe.

    Iterating gives the frames one by one.

    Args:
        kind: the send type.
        pipe_id: the pipe that frames along a path go to, 0 for other send types.
        parts: whole frames; joined frames of one size; and headers, each followed by its content.
        counts: of the parts that are not one whole frame, by their index: how many frames are joined in it; 0 for the
            header of the content that follows.

    Attributes:
        kind, pipe_id: see above.
        count: how many frames these are.
        size: how many bytes.
    """

    __slots__ = ("_buffers", "_counts", "_parts", "count", "kind", "pipe_id", "size")

    def __init__(self, kind: int, pipe_id: int, parts: list[bytes | memoryview], counts: dict[int, int]) -> None:
        self.kind = kind
        self.pipe_id = pipe_id
        self._parts = parts
        self._counts = counts
        self._buffers: list[bytes | memoryview] = []
        # A header and its content are two parts and one frame.
        self.count = len(parts) - len(counts) + sum(counts.values())
        self.size = sum(map(len, parts))

    def buffers(self) -> list[bytes | memoryview]:
        """Return all frames, for one system call."""
        # More than one pipe may need them.
        if not self._buffers:
            few = len(self._parts) <= min(_MOST_BUFFERS, 1 + self.size // _SMALL_BUFFERS)
            self._buffers = self._parts if few else [b"".join(self._parts)]
        return self._buffers

    def __iter__(self) -> Iterator[bytes]:
        numbered = enumerate(self._parts)
        for index, part in numbered:
            count = self._counts.get(index, 1)
            if not count:
                yield b"".join((part, next(numbered)[1]))
            elif count == 1:
                yield bytes(part)
            else:
                size = len(part) // count
                yield from [bytes(part[start : start + size]) for start in range(0, len(part), size)]

    def size_of(self, count: int) -> int:
        """Return the size of the first ``count`` frames."""
        return sum(map(len, islice(self, count)))

    def read_size(self, count: int, size: int) -> int:
        """Return how many bytes were read for the first ``count`` frames, which have ``size`` bytes now."""
        return size if self.kind == TO_DEST else size - _ID_SIZE * count


#: What the first four bytes of a frame mean for passing it on: the same four bytes of the new frame, the send type, and
#: the offsets in the old one at which its source ends, its new destination begins, and its content begins.
_Layout = tuple[int, int, int, int, int]


@lru_cache(maxsize=1024)
def _layout(shape: int, max_ttl: int) -> _Layout | None:
    """Return what the first four bytes of a frame mean; None if the frame needs a closer look."""
    try:
        flags, ttl, source_end, rest_start, content_start = layout(shape)
        if flags & (INTERNAL | RAW) or ttl > max_ttl:
            return None
        hops, distance = (source_end - HEADER_SIZE) // _ID_SIZE, (content_start - rest_start) // _ID_SIZE
        new_shape = int.from_bytes(bytes((flags, ttl, hops + 1, distance)), "big")
        # The next receiver must be able to accept it too.
        layout(new_shape)
    except BadMessage:
        return None
    return new_shape, flags & SEND_TYPE_MASK, source_end, rest_start, content_start


def take_batch(data: bytes, position: int, local: bytes, max_ttl: int, max_content: int) -> Batch | None:
    """Take frames from what a pipe has read.

    Args:
        data: what was read.
        position: where in it a frame begins.
        local: the id of the pipe that has read it, as in a path.
        max_ttl: frames that arrive with a larger ttl need a closer look.
        max_content: frames with a longer content do too.

    Returns:
        The frames from ``position`` on that go the same way, without a gap; None if there is none at ``position`` that
        is whole and needs no closer look.
    """
    end, last_header, view = len(data), len(data) - HEADER_SIZE, memoryview(data)
    parts: list[bytes | memoryview] = []
    counts: dict[int, int] = {}
    known, known_length, known_path = -1, -1, b""
    way, repeated, head = (-1, b""), 0, b""
    layout: _Layout | None = None
    most = MOST
    while position <= last_header and len(parts) < most:
        shape, length = _unpack_header(data, position)
        if shape != known:
            layout = _layout(shape, max_ttl)
        if layout is None or length > max_content:
            break
        new_shape, kind, source_end, rest_start, content_start = layout
        start = position + content_start
        stop = start + length
        if stop > end:
            break
        path = data[position + HEADER_SIZE : start] if content_start != HEADER_SIZE else b""
        if shape != known or length != known_length or path != known_path:
            source, rest = path[: source_end - HEADER_SIZE], path[rest_start - HEADER_SIZE :]
            next_id = rest[:_ID_SIZE] if kind == TO_DEST else b""
            if parts and way != (kind, next_id):
                break
            way = (kind, next_id)
            repeated = 0
            known, known_length, known_path = shape, length, path
            head = _pack_head(new_shape, length, local) + source + rest
        elif length < _APART:
            repeated += 1
            if repeated == REPEATED:
                repeated = 0
                count, frames = take_equal(data, position, content_start, length, head, most - len(parts))
                counts[len(parts)] = count
                parts.append(frames)
                most -= count - 1
                position += count * (stop - position)
                continue
        if length < _APART:
            parts.append(head + data[start:stop])
        else:
            counts[len(parts)] = 0
            parts += head, view[start:stop]
        position = stop
    return Batch(way[0], first_id(way[1]), parts, counts) if parts else None


def take_equal(
    data: bytes, position: int, content_start: int, length: int, head: bytes, most: int
) -> tuple[int, bytes]:
    """Take frames in a row that have the same header, length and paths, the first of which is whole.

    Args:
        data: what was read.
        position: where the first of them begins.
        content_start: the size of its header and paths, or of more: of all that these frames must have in common.
        length: the size of the rest of the frame.
        head: what the new frames have in the place of the first part.
        most: how many to take at most.

    Returns:
        How many frames these are, one at least, and the new frames, joined.
    """
    stride = content_start + length
    count = count_equal(data, position, content_start, stride, min((len(data) - position) // stride, most))
    return count, head.join((b"", *contents_of(data, position, content_start, length, count)))


def frame_size(data: bytes, position: int) -> int:
    """Return the size of the frame that begins at ``position``; 0 if its header is not whole. Checks nothing."""
    if position > len(data) - HEADER_SIZE:
        return 0
    shape, length = _unpack_header(data, position)
    size: int = HEADER_SIZE + _ID_SIZE * ((shape >> 8 & 255) + (shape & 255)) + length
    return size


def is_beginning(data: bytes, position: int, max_ttl: int, max_content: int) -> bool:
    """Return whether a frame begins at ``position`` that is not whole, and will probably need no closer look."""
    size = frame_size(data, position)
    if not size:
        return True
    shape, length = _unpack_header(data, position)
    if length > max_content or len(data) - position >= size:
        return False
    return _layout(shape, max_ttl) is not None
