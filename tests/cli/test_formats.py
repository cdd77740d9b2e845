from __future__ import annotations

import json

import pytest

from gmultisocket.cli.formats import FORMATS


@pytest.mark.parametrize(
    ("format", "content", "printed"),
    [
        ("line", b"\xff\x00", b"\xff\x00\n"),
        ("raw", b"one\n", b"one\n"),
        ("quoted", b"a'b\n\xff", b'"a\'b\\n\\xff"\n'),
        ("ascii", b"a\tb\n\xff~", b"a.b..~\n"),
        ("hex", b"\x00\xffA", b"00ff41\n"),
        ("prefixed", b"abc", b"\x00\x00\x00\x03abc"),
        ("msgpack", b"abc", b"\xc4\x03abc"),
        ("msgpack", bytes(256), b"\xc5\x01\x00" + bytes(256)),
        ("msgpack", bytes(65536), b"\xc6\x00\x01\x00\x00" + bytes(65536)),
        ("no", b"abc", b""),
    ],
)
def test_a_content_is_printed_in_this_form(format: str, content: bytes, printed: bytes) -> None:
    assert FORMATS[format](content, {}) == printed


def test_json_has_what_is_no_text_under_another_key() -> None:
    assert json.loads(FORMATS["json"]("né".encode(), {"topic": "a"})) == {"content": "né", "topic": "a"}
    assert json.loads(FORMATS["json"](b"\xff", {})) == {"content_base64": "/w=="}
    assert FORMATS["json"](b"a\nb", {}).count(b"\n") == 1
