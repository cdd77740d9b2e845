"""A queue of bytes: they are put in as they come, and taken out in pieces of any size, in order.

Large pieces are passed on without a copy if possible, and never copied more than once. Small ones are joined, so that a
peer that sends byte by byte does not cost an object for each byte. Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections import deque

__all__ = ["ByteQueue"]

#: Bytes: smaller pieces are joined.
_SMALL = 4096


class ByteQueue:
    """Bytes that have been put in and not taken out.

    Attributes:
        size: how many; the same as ``len()``, and faster.
    """

    __slots__ = ("_pieces", "_taken", "size")

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self.size = 0
        #: Bytes of the first piece that were taken already.
        self._taken = 0

    def __len__(self) -> int:
        return self.size

    def append(self, data: bytes) -> None:
        """Put bytes at the end."""
        size = len(data)
        if not size:
            return
        self.size += size
        pieces = self._pieces
        if size < _SMALL and pieces and len(pieces[-1]) < _SMALL:
            last = pieces[-1]
            if isinstance(last, bytes):
                last = pieces[-1] = bytearray(last)
            last += data
        else:
            pieces.append(data)

    def put_first(self, data: bytes) -> None:
        """Put bytes in front of all others."""
        if not data:
            return
        if self._taken:
            self._pieces[0] = bytes(memoryview(self._pieces[0])[self._taken :])
            self._taken = 0
        self._pieces.appendleft(data)
        self.size += len(data)

    def take(self, size: int) -> bytes:
        """Remove and return at most ``size`` bytes from the front: whole pieces, or a part of the first one.

        Returns ``b""`` if the queue is empty.
        """
        pieces = self._pieces
        if not pieces or size <= 0:
            return b""
        first = pieces[0]
        left = len(first) - self._taken
        if left > size:
            data = bytes(memoryview(first)[self._taken : self._taken + size])
            self._taken += size
            self.size -= size
            return data
        if self._taken:
            first = memoryview(first)[self._taken :].tobytes()
            self._taken = 0
        pieces.popleft()
        if not pieces or left + len(pieces[0]) > size:
            self.size -= left
            return bytes(first)
        whole = [first]
        while pieces and left + len(pieces[0]) <= size:
            left += len(pieces[0])
            whole.append(pieces.popleft())
        self.size -= left
        return b"".join(whole)

    def take_into(self, buffer: memoryview) -> int:
        """Move bytes from the front into a buffer, as many as fit. Return how many."""
        filled = 0
        size = min(len(buffer), self.size)
        pieces = self._pieces
        while filled < size:
            with memoryview(pieces[0])[self._taken : self._taken + size - filled] as part:
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                self._taken += len(part)
            if self._taken == len(pieces[0]):
                pieces.popleft()
                self._taken = 0
        self.size -= filled
        return filled

    def clear(self) -> int:
        """Drop everything. Return the number of bytes dropped."""
        size, self.size, self._taken = self.size, 0, 0
        self._pieces.clear()
        return size
