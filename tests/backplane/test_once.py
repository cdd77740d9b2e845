"""Echoes and duplicates."""

from __future__ import annotations

import pytest

from gmultisocket.backplane import once as once_module
from gmultisocket.backplane.engine import FOREIGN
from gmultisocket.backplane.once import Once

OWN, ONE, OTHER = b"o" * 8, b"1" * 8, b"2" * 8


def test_only_a_rising_sequence_is_new() -> None:
    once = Once(OWN)
    assert [once.is_new(ONE, each) for each in (0, 1, 1, 5, 3, 6)] == [True, True, False, True, False, True]
    assert once.is_new(OTHER, 0)
    assert (once.duplicates, once.echoes) == (2, 0)


def test_what_comes_back_is_an_echo() -> None:
    once = Once(OWN)
    assert not once.is_new(OWN, 7)
    assert (once.duplicates, once.echoes) == (0, 1)


def test_foreign_messages_are_always_new() -> None:
    once = Once(OWN)
    assert once.is_new(FOREIGN, 0) and once.is_new(FOREIGN, 0)


def test_the_origins_that_were_silent_longest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once_module, "_ORIGINS", 2)
    once = Once(OWN)
    origins = [bytes([number]) * 8 for number in range(5)]
    for origin in origins:
        assert once.is_new(origin, 9)
    assert not once.is_new(origins[4], 9)
    assert not once.is_new(origins[2], 9)
    assert once.is_new(origins[0], 9), "it was forgotten, so memory is bounded"
