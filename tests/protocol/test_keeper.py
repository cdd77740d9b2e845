"""What a publication costs that a history keeps, in calls of Python functions."""

from __future__ import annotations

import sys
from types import FrameType

import pytest

from gmultisocket.protocol import MemoryHistory, Pub, Sub

LONG = 20.0


def calls_of_a_publish(pub: Pub) -> list[str]:
    """Return the names of the functions that a publish calls, when its topic is known and the turn has begun."""
    calls: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    pub.publish("prices.eur", b"1")
    sys.setprofile(note)
    try:
        pub.publish("prices.eur", b"2")
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("count", [1, 3])
def test_a_publication_with_history_takes_one_call_more(count: int) -> None:
    with Pub() as plain, Pub(history=MemoryHistory("prices.>")) as keeping:
        calls = {}
        for pub in (plain, keeping):
            subs = [Sub() for _ in range(count)]
            address = pub.listen("tcp://127.0.0.1:0").address
            for sub in subs:
                sub.dial(address)
                sub.subscribe("prices.>", LONG, recover=pub is keeping)
            pub.publish("prices.eur", b"0")
            for sub in subs:
                # With history: the replay is over, so all that follows is live.
                assert sub.recv(LONG) == ("prices.eur", b"0")
            calls[pub] = calls_of_a_publish(pub)
            for sub in subs:
                assert [sub.recv(LONG)[1] for _ in range(2)] == [b"1", b"2"]
                sub.close()
        more = [*calls[keeping]]
        for name in calls[plain]:
            more.remove(name)
        # Of MemoryHistory.
        assert more == ["append"]
