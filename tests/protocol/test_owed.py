"""What a Pub owes for subscriptions that have ended before they were answered."""

from __future__ import annotations

from gmultisocket.protocol.owed import Owed


def test_it_counts_the_subscriptions_that_have_ended() -> None:
    owed = Owed()
    for _ in range(2):
        owed.add("pipe", b"path", "a")
    owed.add("pipe", b"path", "b")
    owed.add("other", b"path", "a")
    assert [owed.take("pipe", b"path", "a") for _ in range(2)] == [2, 0]
    assert owed.take("pipe", b"elsewhere", "b") == owed.take("third", b"path", "a") == 0
    owed.remove_pipe("pipe")
    owed.remove_pipe("third")
    assert owed.take("pipe", b"path", "b") == 0 and owed.take("other", b"path", "a") == 1


def test_a_peer_cannot_make_it_grow() -> None:
    owed = Owed()
    for _ in range(5000):
        owed.add("pipe", b"path", "again")
    # They are sent in one turn.
    assert owed.take("pipe", b"path", "again") == 1024
    for number in range(5000):
        owed.add("pipe", b"path", str(number))
    assert sum(owed.take("pipe", b"path", str(number)) for number in range(5000)) == 1024
    assert owed.take("pipe", b"path", "4999") == 0
