"""The queue of bytes against one plain bytearray."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gmultisocket.protocol.bytequeue import ByteQueue

PATTERN = bytes(range(251)) * 400
SIZES = st.one_of(st.integers(0, 20), st.sampled_from([4095, 4096, 4097, 10_000, 100_000]))


class AgainstABytearray(RuleBasedStateMachine):
    """The queue, and what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = ByteQueue()
        self.held = bytearray()
        self.next = 0

    @rule(size=SIZES)
    def append(self, size: int) -> None:
        data = PATTERN[self.next : self.next + size]
        self.next = (self.next + size) % 251
        self.queue.append(data)
        self.held += data

    @rule(size=SIZES)
    def put_first(self, size: int) -> None:
        data = PATTERN[self.next : self.next + size]
        self.queue.put_first(data)
        self.held[:0] = data

    @rule(size=SIZES)
    def take(self, size: int) -> None:
        data = self.queue.take(size)
        assert type(data) is bytes
        assert len(data) <= size
        assert bool(data) == bool(size and self.held)
        assert data == self.held[: len(data)]
        del self.held[: len(data)]

    @rule(size=SIZES)
    def take_into(self, size: int) -> None:
        buffer = bytearray(size)
        count = self.queue.take_into(memoryview(buffer))
        assert count == min(size, len(self.held))
        assert buffer == self.held[:count] + bytes(size - count)
        del self.held[:count]

    @rule()
    def clear(self) -> None:
        assert self.queue.clear() == len(self.held)
        self.held.clear()

    @invariant()
    def size(self) -> None:
        assert len(self.queue) == len(self.held)


TestAgainstABytearray = AgainstABytearray.TestCase


def test_a_large_piece_comes_out_as_it_went_in() -> None:
    queue = ByteQueue()
    piece = bytes(100_000)
    queue.append(piece)
    assert queue.take(100_000) is piece


def test_many_small_pieces_are_few_objects() -> None:
    queue = ByteQueue()
    for _ in range(100_000):
        queue.append(b"x")
    assert len(queue._pieces) < 50
    assert queue.take(200_000) == b"x" * 100_000
