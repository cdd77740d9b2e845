"""The forms in which messages are printed: ``--format``.

Each is a function of the content and of what else is known, for JSON. ``json``, ``prefixed`` and, where no content has
a newline, ``line`` can be read back: see ``sources``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FORMATS", "Facts"]

#: What is known of a message beside its content.
Facts = Mapping[str, Any]


def _line(content: bytes, facts: Facts) -> bytes:
    return content + b"\n"


def _raw(content: bytes, facts: Facts) -> bytes:
    return content


def _quoted(content: bytes, facts: Facts) -> bytes:
    return ascii(content)[1:].encode() + b"\n"


def _ascii(content: bytes, facts: Facts) -> bytes:
    return content.translate(_PRINTABLE) + b"\n"


def _hex(content: bytes, facts: Facts) -> bytes:
    return content.hex().encode() + b"\n"


def _json(content: bytes, facts: Facts) -> bytes:
    # Other formats do without.
    import json

    try:
        fields = {"content": content.decode()}
    except UnicodeDecodeError:
        import base64

        fields = {"content_base64": base64.b64encode(content).decode()}
    return json.dumps(fields | dict(facts)).encode() + b"\n"


def _prefixed(content: bytes, facts: Facts) -> bytes:
    return struct.pack(">I", len(content)) + content


def _msgpack(content: bytes, facts: Facts) -> bytes:
    """Return the content as "bin" of MessagePack."""
    size = len(content)
    if size < 1 << 8:
        return struct.pack(">BB", 0xC4, size) + content
    if size < 1 << 16:
        return struct.pack(">BH", 0xC5, size) + content
    return struct.pack(">BI", 0xC6, size) + content


def _no(content: bytes, facts: Facts) -> bytes:
    return b""


#: A dot for each byte that is not printable ASCII.
_PRINTABLE = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))

FORMATS: Mapping[str, Callable[[bytes, Facts], bytes]] = {
    "line": _line,
    "raw": _raw,
    "quoted": _quoted,
    "ascii": _ascii,
    "hex": _hex,
    "json": _json,
    "prefixed": _prefixed,
    "msgpack": _msgpack,
    "no": _no,
}
