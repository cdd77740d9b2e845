"""How long senders to a destination wait, all together."""

from __future__ import annotations

import pytest

from gmultisocket.core.sending import patience as module
from gmultisocket.core.sending.patience import Patience


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def test_a_wait_may_take_half_of_what_is_left_and_is_forgotten_after_ten_seconds(clock: Clock) -> None:
    patience = Patience()
    patience.limit = 8.0
    assert patience.begin() == 4.0
    clock.now += 4
    patience.end()
    for later, may_take in ((0, 2.0), (10, 2.0), (11, 4.0)):
        clock.now = 1004.0 + later
        assert patience.begin() == may_take
        patience.end()


def test_it_remembers_no_more_than_the_time_that_counts(clock: Clock) -> None:
    patience = Patience()
    patience.limit = 8.0
    for _ in range(100):
        patience.begin()
        clock.now += 0.5
        patience.end()
    assert len(patience._waits) <= module._WINDOW + 1
    assert sum(seconds for _, seconds in patience._waits) <= module._WINDOW + 1


def test_several_who_wait_at_the_same_time_count_once_and_without_a_limit_nobody_is_limited(clock: Clock) -> None:
    patience = Patience()
    assert patience.begin() is None
    patience.limit = 8.0
    clock.now += 2
    assert patience.begin() == 3.0
    patience.end()
    clock.now += 2
    patience.end()
    assert patience.begin() == 2.0
