"""The ledger of a plane: its sum holds after all operations."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gmultisocket.backplane.ledger import MAX_BYTES_IN_FLIGHT, MAX_IN_FLIGHT, Kept, Ledger


def kept(sequence: int, size: int = 10) -> Kept:
    return Kept(b"", b"." * size, sequence)


class Sums(RuleBasedStateMachine):
    """A ledger, and the same numbers counted beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(8, 100, "drop_oldest")
        self.buffer: list[Kept] = []
        self.flight = 0
        self.confirmed = self.dropped = self.given_up = 0

    @rule(size=st.sampled_from([0, 10, 40, 101]))
    def keep(self, size: int) -> None:
        self.ledger.sent += 1
        publication = kept(self.ledger.sent, size)
        self.ledger.keep(publication)
        self.buffer.append(publication)
        if size > 100:
            self.dropped += 1
            self.buffer.pop()
        while len(self.buffer) > 8 or sum(each.size for each in self.buffer) > 100:
            del self.buffer[0]
            self.dropped += 1

    @rule()
    def hand_over(self) -> None:
        if self.buffer:
            publication = self.ledger.take()
            assert publication == self.buffer.pop(0)
            self.ledger.hand_over(publication.size)
            self.flight += 1

    @rule(count=st.integers(0, 3))
    def confirm(self, count: int) -> None:
        if count > self.flight:
            with pytest.raises(IndexError):
                self.ledger.confirm(count)
        else:
            self.ledger.confirm(count)
        landed = min(count, self.flight)
        self.confirmed += landed
        self.flight -= landed

    @rule()
    def refuse(self) -> None:
        if self.flight:
            self.ledger.refuse("no memory")
            self.flight -= 1
            self.dropped += 1

    @rule()
    def cut(self) -> None:
        self.ledger.cut()
        self.given_up += self.flight
        self.flight = 0

    @rule()
    def close(self) -> None:
        assert self.ledger.drop_buffered("closed") == len(self.buffer)
        self.dropped += len(self.buffer)
        self.buffer.clear()

    @invariant()
    def nothing_is_missing(self) -> None:
        ledger = self.ledger
        assert ledger.buffered == len(self.buffer)
        assert ledger.buffered_bytes == sum(each.size for each in self.buffer)
        assert ledger.confirmed == self.confirmed
        assert sum(ledger.dropped.values()) == self.dropped
        assert ledger.unconfirmed == self.given_up + self.flight
        assert ledger.sent == ledger.confirmed + self.dropped + ledger.unconfirmed + ledger.buffered


TestSums = Sums.TestCase


def test_drop_newest_keeps_what_was_there() -> None:
    ledger = Ledger(2, 100, "drop_newest")
    for number in range(4):
        ledger.keep(kept(number))
    assert [ledger.take().sequence for _ in range(2)] == [0, 1]
    assert ledger.dropped == {"overflow": 2}


def test_the_window_closes_at_its_number_and_opens_with_a_confirmation() -> None:
    ledger = Ledger(1, 1, "drop_newest")
    for _ in range(MAX_IN_FLIGHT):
        assert ledger.is_open
        ledger.hand_over(1)
    assert not ledger.is_open
    ledger.confirm(1)
    assert ledger.is_open


def test_the_window_closes_at_its_bytes_and_opens_when_the_connection_is_lost() -> None:
    ledger = Ledger(1, 1, "drop_newest")
    ledger.hand_over(MAX_BYTES_IN_FLIGHT)
    assert not ledger.is_open
    ledger.cut()
    assert ledger.is_open
    assert ledger.unconfirmed == 1
