"""The control messages of publish and subscribe, by vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.protocol import pubsubwire as wire

from .pubsubvectors import FILE, bad, good

VECTORS = json.loads(FILE.read_text())

READERS: dict[bytes, Callable[[bytes], Any]] = {
    wire.UNSUBSCRIBE: wire.read_pattern,
    wire.SUBSCRIBE: wire.read_pattern,
    wire.SUBSCRIBED: wire.read_pattern,
    wire.REFUSED: wire.read_refused,
    wire.ASK: wire.read_ask,
    wire.REPLAY: wire.read_replay,
    wire.POSITIONED: wire.read_positioned,
}


def read(content: bytes) -> Any:
    return READERS[content[:1]](content)


def expected(vector: dict[str, Any]) -> Any:
    """Return what a vector means."""
    fields = {name: value for name, value in vector.items() if name not in ("kind", "content")}
    if vector["kind"] == "ask":
        fields["positions"] = tuple(wire.Position(*position) for position in fields["positions"])
    if vector["kind"] == "positioned":
        fields["publication"] = bytes.fromhex(fields["publication"])
    kinds: dict[str, Any] = {
        "refused": wire.Refused, "ask": wire.Ask, "replay": wire.Replay, "positioned": wire.Positioned,
    }  # fmt: skip
    return kinds[vector["kind"]](**fields) if vector["kind"] in kinds else fields["pattern"]


def test_the_file_is_what_its_program_writes() -> None:
    assert VECTORS == {"good": good(), "bad": bad()}


def test_right_messages_are_read_and_written() -> None:
    failed = []
    for vector in VECTORS["good"]:
        content = bytes.fromhex(vector["content"])
        if vector["kind"] == "who":
            assert content == wire.WHO
            continue
        meant = read(content)
        same = meant if isinstance(meant, str) else meant.encode() == content and meant
        if same != expected(vector):
            failed.append(vector)
    assert not failed


def test_wrong_messages_are_refused_with_a_reason() -> None:
    failed = []
    for vector in VECTORS["bad"]:
        try:
            read(bytes.fromhex(vector["content"]))
        except wire.Malformed as error:
            assert str(error)
        else:
            failed.append(vector["why"])
    assert not failed


@given(st.sampled_from(sorted(READERS)), st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(kind: bytes, rest: bytes) -> None:
    try:
        meant = read(kind + rest)
    except wire.Malformed:
        return
    if isinstance(meant, (wire.Ask, wire.Replay)):
        # Flags that are not known are ignored.
        assert READERS[kind](meant.encode()) == meant
    elif not isinstance(meant, (str, wire.Refused)):
        assert meant.encode() == kind + rest


def test_a_reason_is_printable_and_has_a_limit() -> None:
    reason = wire.read_refused(wire.Refused("a", "\x1b[2J" + "ü" * 1000).encode()).reason
    assert reason.isprintable()
    assert 100 < len(reason) < 300
