"""Reads large contents to where a protocol wants them, instead of making messages of them.

Contents of one sender mostly have the same header. So one system call reads what is missing of a content, the next
header, and further contents, each to its place. If a header turns out to be another one, what was read behind it is
decoded as usual.

The pipe's reader greenlet reads. While it waits for more, or has yielded, a greenlet that asks for the bytes may
read in its place: it then has them without a switch of greenlets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...loop.yielding import yield_to_loop
from ...wire import Decoder
from ..receiving.receiver import ContentBuffer
from .bytespipe import BytesPipe
from .pipe import PipeState
from .writepipe import LARGE

__all__ = ["ContentReader"]

#: Contents that are read in one system call, while they have the same header.
_CONTENTS: Final = 4


class _LookAgain(BaseException):
    """Thrown into a reader that waits, because another greenlet has left it something to do."""


class ContentReader:
    """Reads the large contents of one pipe.

    Args:
        pipe: the pipe, whose connection has ``recv_into``.
        decoder: the pipe's.
    """

    __slots__ = ("_decoder", "_error", "_header", "_pipe", "_unread", "_waiting")

    def __init__(self, pipe: BytesPipe, decoder: Decoder) -> None:
        self._pipe = pipe
        self._decoder = decoder
        #: Header and paths of the content that is being read, which is large; b"" if they are not known.
        self._header = b""
        #: Whether the reader waits in a place where another greenlet may read.
        self._waiting = False
        #: What another greenlet has left to the reader: bytes that are to be decoded, and an error of the connection.
        self._unread = b""
        self._error: OSError | None = None

    # The reader greenlet

    def read(self) -> None:
        """Read contents as long as there is memory for them. Blocks."""
        pipe = self._pipe
        connection, budget = pipe._connection, pipe._scheduler.yield_bytes
        self._header = b""
        spent = 0
        while (target := self._target()) is not None:
            try:
                size, more = self._fill(target)
            except BlockingIOError:
                self._wait(connection.wait_readable)
            else:
                if not size:
                    return
                spent += size
                self._decode_unread()
                if not pipe._ended_by_peer and (not more or spent >= budget):
                    # The greenlet whose memory is full gives it back by its next call.
                    spent = 0
                    self._wait(yield_to_loop)
            self._decode_unread()
            if self._error is not None:
                raise self._error
            if pipe._ended_by_peer:
                return

    def _wait(self, wait: Callable[[], None]) -> None:
        """Wait, and let other greenlets read meanwhile."""
        self._waiting = True
        try:
            wait()
        except _LookAgain:
            pass
        finally:
            self._waiting = False

    def _decode_unread(self) -> None:
        """Decode what is no content for anybody's memory. Blocks while the receiver's queue is full."""
        unread, self._unread = self._unread, b""
        if unread:
            self._pipe._receive(unread)
            if not self._decoder.holds_nothing or self._decoder.missing < LARGE:
                self._header = b""

    # Other greenlets

    def read_now(self, target: ContentBuffer) -> None:
        """Read into this memory, if the reader would do that next. Never blocks and never raises."""
        if not self._waiting or self._unread or self._error is not None or self._target() is not target:
            return
        try:
            self._fill(target)
        except BlockingIOError:
            return
        except OSError as error:
            self._error = error
        if self._unread or self._error is not None:
            self._pipe._owner.hub.loop.run_callback(self._wake_reader)

    def _wake_reader(self) -> None:
        reader = self._pipe._reader
        if self._waiting and reader is not None:
            reader.throw(_LookAgain)

    # Both

    def _target(self) -> ContentBuffer | None:
        """Return the memory for the content that comes next, or probably does; None if there is none."""
        pipe = self._pipe
        decoder = self._decoder
        buffer_for = pipe._owner.receiver.buffer_for
        if not decoder.holds_nothing or not (self._header or decoder.missing >= LARGE):
            return None
        if buffer_for is None or pipe._rates is not None:
            return None
        if pipe.state is PipeState.CLOSED:
            return None
        flags, _, source, destination = decoder.head
        return buffer_for(flags, source, destination)

    def _fill(self, target: ContentBuffer) -> tuple[int, bool]:
        """Read once. What comes behind an unexpected header is left in ``_unread``.

        Returns:
            The number of bytes that were read, and whether the memory has more space.

        Raises:
            BlockingIOError, OSError: as ``recv_into`` of the connection.
        """
        pipe, decoder = self._pipe, self._decoder
        part, head_size = decoder.missing, decoder.head_size
        following = decoder.repeated_size if self._header else 0
        space = target.space(part + (_CONTENTS - 1) * following)
        buffers: list[memoryview | bytearray] = []
        try:
            end = len(space)
            stop = part
            while True:
                buffers.append(space[stop - part : stop])
                if stop > end:
                    break
                # The next header comes with the end of the content, if it is there.
                buffers.append(bytearray(head_size))
                if stop == end or not following:
                    break
                part = following
                stop += part
            size = pipe._connection.recv_into(buffers)
            pipe.bytes_received += size
            filled, count = self._take(buffers, size, following)
        finally:
            # The caller may do with the memory what it likes, even while the traceback of an error is alive.
            buffers.clear()
            space.release()
        if count:
            pipe._count_received(count)
        return size, target.filled(filled, count > 0)

    def _take(self, buffers: list[memoryview | bytearray], size: int, following: int) -> tuple[int, int]:
        """Account for bytes that were read into contents and headers by turns.

        Args:
            buffers: a content, a header, and so on.
            size: the number of bytes.
            following: the size of a content whose header is the same as the one before; 0 if none is expected.

        Returns:
            The number of bytes of contents, and of the contents that are complete now.
        """
        missing = self._decoder.missing
        filled = count = 0
        for index, buffer in enumerate(buffers):
            if not size:
                break
            length = len(buffer)
            if index % 2 == 0:
                taken = size if size < length else length
                filled += taken
                missing -= taken
                count += 0 < taken and not missing
                size -= taken
            elif following and size >= length and bytes(buffer) == self._header:
                # It means the same as the one before.
                missing = following
                size -= length
            else:
                self._unread = b"".join(buffers[index:])[:size]
                self._header = self._unread if size == length else b""
                break
        self._decoder.missing = missing
        return filled, count
