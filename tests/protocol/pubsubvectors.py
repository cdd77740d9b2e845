"""Writes ``pubsub-vectors.json``: ``python3 -m tests.protocol.pubsubvectors``.

The bytes are put together here, by struct alone, so that they do not depend on the code that they test. Other
implementations may use the file as well: all bytes are hexadecimal, and every number is exact in JavaScript.
"""

from __future__ import annotations

import json
from pathlib import Path
from struct import pack
from typing import Any

FILE = Path(__file__).parent / "pubsub-vectors.json"
LIMIT = 2**53


def counted(data: bytes) -> bytes:
    return pack(">H", len(data)) + data


def publication(topic: str, content: bytes) -> bytes:
    return counted(topic.encode()) + content


def good() -> list[dict[str, Any]]:
    """Return messages that are right."""
    vectors: list[dict[str, Any]] = []

    def add(kind: str, content: bytes, **fields: Any) -> None:
        vectors.append({"kind": kind, "content": content.hex(), **fields})

    for pattern in ("a", "a.*.c", "orders.>", ">", "grün.☃"):
        for number, kind in enumerate(("unsubscribe", "subscribe", "subscribed")):
            add(kind, bytes([number]) + pattern.encode(), pattern=pattern)
    add("refused", b"\x03" + counted(b"a.>") + b"not yours", pattern="a.>", reason="not yours")
    add("refused", b"\x03" + counted(b"a"), pattern="a", reason="")
    add("refused", b"\x03" + counted("ü".encode()) + "später".encode(), pattern="ü", reason="später")
    add("who", b"\x04")
    for flags in range(4):
        content = b"\x05" + pack(">IBB", 7, flags, 0) + counted(b"a.b")
        add("ask", content, id=7, retained=bool(flags & 1), recover=bool(flags & 2), positions=[], pattern="a.b")
    for positions in ([[1, 0]], [[5, 6], [LIMIT - 1, LIMIT - 1]], [[epoch, 2] for epoch in range(1, 17)]):
        packed = b"".join(pack(">QQ", *position) for position in positions)
        content = b"\x05" + pack(">IBB", 2**32 - 1, 3, len(positions)) + packed + counted(b">")
        add("ask", content, id=2**32 - 1, retained=True, recover=True, positions=positions, pattern=">")
    for flags in range(16):
        names = ("recovered", "gap", "first_meeting", "end")
        fields = {name: bool(flags & 1 << bit) for bit, name in enumerate(names)}
        add("replay", b"\x06" + pack(">IQQB", 9, 10, flags, flags), id=9, epoch=10, offset=flags, **fields)
    for number, epoch, offset, previous in ((0, 1, 1, 0), (3, 2**40, 2**41, 2**41 - 1), (1, 1, LIMIT - 1, 0)):
        for topic, body in (("a", b""), ("a.ü", b"\x00\xff")):
            published = publication(topic, body)
            add(
                "positioned", b"\x07" + pack(">IQQQ", number, epoch, offset, previous) + published,
                id=number, epoch=epoch, offset=offset, previous=previous, publication=published.hex(),
            )  # fmt: skip
    return vectors


def bad() -> list[dict[str, Any]]:
    """Return messages that break a rule."""
    ask = b"\x05" + pack(">IBB", 1, 0, 1) + pack(">QQ", 1, 1)
    vectors = {
        "a pattern with an empty token": b"\x01a..b",
        "no pattern": b"\x01",
        "no UTF-8": b"\x02\xff",
        "a wildcard inside a token": b"\x00a*",
        "a refusal without a length": b"\x03\x00",
        "a refusal that ends in its pattern": b"\x03\x00\x05a",
        "an asking with the id 0": b"\x05" + pack(">IBB", 0, 0, 0) + counted(b"a"),
        "an asking that ends in its positions": ask[:-1],
        "an asking without a pattern": ask,
        "an asking with something behind it": ask + counted(b"a") + b"b",
        "an asking with 17 positions": b"\x05"
        + pack(">IBB", 1, 0, 17) + b"".join(pack(">QQ", epoch, 1) for epoch in range(17)) + counted(b"a"),
        "an epoch of 2^53": b"\x05" + pack(">IBBQQ", 1, 0, 1, LIMIT, 1) + counted(b"a"),
        "an offset of 2^53": b"\x05" + pack(">IBBQQ", 1, 0, 1, 1, LIMIT) + counted(b"a"),
        "two positions in one history": b"\x05" + pack(">IBBQQQQ", 1, 0, 2, 1, 1, 1, 2) + counted(b"a"),
        "a replay that is too short": b"\x06" + pack(">IQQ", 1, 1, 1),
        "a replay that is too long": b"\x06" + pack(">IQQBB", 1, 1, 1, 0, 0),
        "a replay with an offset of 2^53": b"\x06" + pack(">IQQB", 1, 1, LIMIT, 0),
        "a publication without an offset": b"\x07" + pack(">IQQQ", 0, 1, 0, 0) + counted(b"a"),
        "a publication before itself": b"\x07" + pack(">IQQQ", 0, 1, 5, 5) + counted(b"a"),
        "a publication with half a head": b"\x07" + pack(">IQQ", 0, 1, 5),
    }  # fmt: skip
    return [{"why": why, "content": content.hex()} for why, content in vectors.items()]


if __name__ == "__main__":
    FILE.write_text(json.dumps({"good": good(), "bad": bad()}, indent=1, ensure_ascii=False) + "\n")
