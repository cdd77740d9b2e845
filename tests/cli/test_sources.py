from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import pytest

from gmultisocket.cli.arguments import WrongUsage
from gmultisocket.cli.formats import FORMATS
from gmultisocket.cli.sources import Item, Source
from gmultisocket.errors import MultiSocketError


def source(
    data: bytes | None = None, split: str | int = "whole", *, path: Path | None = None, argument: str | None = None
) -> Source:
    """Return a source of a file with some data, or of an argument."""
    if data is not None and path is not None:
        path.write_bytes(data)
    return Source(Namespace(data=argument, more_data=None, file=None if path is None else str(path), split=split))


def contents(data: bytes, split: str | int, path: Path) -> list[bytes]:
    return [item.content for item in source(data, split, path=path / "file")]


@pytest.mark.parametrize(
    ("data", "split", "wanted"),
    [
        (b"a\nb\n", "whole", [b"a\nb\n"]),
        (b"", "whole", [b""]),
        (b"a\n\nb", "lines", [b"a", b"", b"b"]),
        (b"\n", "lines", [b""]),
        (b"", "lines", []),
        (b"a\r\n\xff\x00\n", "lines", [b"a\r", b"\xff\x00"]),
        (b"\0\0\0\1a\0\0\0\0\0\0\0\2bc", "prefixed", [b"a", b"", b"bc"]),
        (b"abcdefg", 3, [b"abc", b"def", b"g"]),
        (b"", 3, []),
        (b'{"content": "\xc3\xa9\\n"}\n\n{"content_base64": "/wA="}', "json", [b"\xc3\xa9\n", b"\xff\0"]),
    ],
)
def test_an_input_is_split_into_messages(data: bytes, split: str | int, wanted: list[bytes], tmp_path: Path) -> None:
    assert contents(data, split, tmp_path) == wanted


@pytest.mark.parametrize("split", ["lines", "prefixed", 70_000, "json"])
def test_messages_that_come_in_pieces_are_put_together(split: str | int, tmp_path: Path) -> None:
    messages = [os.urandom(70_000).replace(b"\n", b" "), b"x" * 70_000, b"y" * 200_000]
    if isinstance(split, int):
        assert b"".join(contents(b"".join(messages), split, tmp_path)) == b"".join(messages)
        return
    form = {"lines": "line"}.get(split, split)
    assert contents(b"".join(FORMATS[form](each, {}) for each in messages), split, tmp_path) == messages


@pytest.mark.parametrize("format", ["json", "prefixed"])
def test_what_these_formats_print_can_be_read_back(format: str, tmp_path: Path) -> None:
    messages = [b"", b"\n", b"text", "é".encode(), b"\xff\xfe", bytes(range(256)), b'"\\']
    assert contents(b"".join(FORMATS[format](each, {"topic": "t"}) for each in messages), format, tmp_path) == messages


def test_json_says_the_topic_too(tmp_path: Path) -> None:
    items = list(source(b'{"content": "1", "topic": "a.b", "hops": 1}', "json", path=tmp_path / "file"))
    assert items == [Item(b"1", "a.b")]


@pytest.mark.parametrize(
    "line",
    [b"[]", b"1", b"{", b'{"content": 1}', b'{"content_base64": "*"}', b"{}", b'{"content": "", "topic": 1}'],
)
def test_a_line_that_is_no_message_in_json_is_named(line: bytes, tmp_path: Path) -> None:
    reading = iter(source(b'{"content": "good"}\n' + line, "json", path=tmp_path / "file"))
    assert next(reading).content == b"good"
    with pytest.raises(MultiSocketError, match="line 2 of the input is not like"):
        next(reading)


def test_an_input_that_ends_in_the_middle_of_a_message_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MultiSocketError, match="ends in the middle of a message"):
        contents(b"\0\0\0\5abc", "prefixed", tmp_path)


def test_an_argument_is_one_message_of_the_bytes_that_were_given() -> None:
    one = source(argument=os.fsdecode(b"caf\xe9\n"), split="lines")
    assert one.given and one.single and list(one) == [Item(b"caf\xe9\n")]


def test_the_position_in_a_file_and_its_size_are_known(tmp_path: Path) -> None:
    reading = source(b"a\n" * 100_000, "lines", path=tmp_path / "file")
    assert next(iter(reading)) == Item(b"a")
    assert reading.size == 200_000 and reading.position == 1 << 16


def test_a_file_that_is_not_there_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(WrongUsage, match="cannot read .*missing: no such file or directory"):
        list(source(path=tmp_path / "missing"))
