"""Where the messages come from that a command sends: an argument, a file, or standard input."""

from __future__ import annotations

import errno
import os
import stat
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import NamedTuple

from gevent.socket import wait_read

from ..errors import MultiSocketError
from .arguments import WrongUsage
from .notes import note

__all__ = ["Item", "Source", "data_arguments"]

_PIECE = 1 << 16


class Item(NamedTuple):
    """What is to be sent.

    Attributes:
        content: the content.
        topic: "" unless the input says it.
    """

    content: bytes
    topic: str = ""


def data_arguments(arguments: Namespace) -> list[str]:
    """Return the arguments of ``add_data`` that were given. More than one is an error."""
    return [each for each in (arguments.data, arguments.more_data, arguments.file) if each is not None]


class Source:
    """The items that the arguments of a command describe. Iterable, once.

    Args:
        arguments: of a command with ``add_source``.

    Raises:
        MultiSocketError: standard input is needed, and closed.

    Attributes:
        given: whether the arguments hold the item.
        single: whether there is one item.
        size: bytes of the file; None if it is not a file.
        position: bytes of the input that were read.
    """

    def __init__(self, arguments: Namespace) -> None:
        given = data_arguments(arguments)
        if len(given) > 1:
            raise WrongUsage("give what to send once: as DATA, with --data or with --file")
        data = arguments.data if arguments.data is not None else arguments.more_data
        #: Not decoded in the shell's encoding: the bytes of the argument as they were given.
        self._data: bytes | None = None if data is None else os.fsencode(data)
        self._path: str = "" if arguments.file in (None, "-") else arguments.file
        self._split: str | int = arguments.split
        self.given = self._data is not None
        self.single = self.given or self._split == "whole"
        self.size: int | None = None
        self.position = 0
        if not given and sys.stdin is None:
            raise MultiSocketError("standard input is closed")

    def __iter__(self) -> Iterator[Item]:
        """Yield each item when it is complete. Blocks this greenlet only."""
        if self._data is not None:
            yield Item(self._data)
            return
        pieces = self._read()
        if isinstance(self._split, int):
            yield from map(Item, _cut(pieces, self._split))
        elif self._split == "whole":
            yield Item(b"".join(pieces))
        elif self._split == "lines":
            yield from map(Item, _lines(pieces))
        elif self._split == "prefixed":
            yield from map(Item, _prefixed(pieces))
        else:
            yield from _from_json(pieces)

    def _read(self) -> Iterator[bytes]:
        """Yield the bytes of the input, in pieces.

        The descriptor stays in its mode (blocking or not): the shell and its other jobs share it.
        """
        if self._path:
            try:
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise WrongUsage(f"cannot read {self._path}: {(error.strerror or '').lower()}") from error
        else:
            descriptor = sys.stdin.fileno()
            if os.isatty(descriptor):
                note("reading standard input: type, and end it with Ctrl-D")
        try:
            status = os.fstat(descriptor)
            is_file = stat.S_ISREG(status.st_mode)
            self.size = status.st_size if is_file else None
            while piece := self._read_piece(descriptor, is_file):
                self.position += len(piece)
                yield piece
        finally:
            if self._path:
                os.close(descriptor)

    def _read_piece(self, descriptor: int, is_file: bool) -> bytes:
        if not is_file:
            wait_read(descriptor)
        try:
            return os.read(descriptor, _PIECE)
        except OSError as error:
            # The terminal was closed.
            if error.errno == errno.EIO:
                return b""
            name = self._path or "standard input"
            raise WrongUsage(f"cannot read {name}: {(error.strerror or '').lower()}") from error


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield each line, without its end."""
    parts: list[bytes] = []
    for piece in pieces:
        first, *others = piece.split(b"\n")
        parts.append(first)
        for other in others:
            yield b"".join(parts)
            parts = [other]
    if any(parts):
        yield b"".join(parts)


def _cut(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield contents of a size; the last one may be shorter."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield bytes(rest[start : start + size])
        del rest[:whole]
    if rest:
        yield bytes(rest)


def _prefixed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield contents that each have their length in front: 4 bytes, big-endian."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        start = 0
        while len(rest) >= start + 4:
            end = start + 4 + int.from_bytes(rest[start : start + 4], "big")
            if len(rest) < end:
                break
            yield bytes(rest[start + 4 : end])
            start = end
        del rest[:start]
    if rest:
        raise MultiSocketError("the input ends in the middle of a message: is it length-prefixed?")


def _from_json(pieces: Iterator[bytes]) -> Iterator[Item]:
    """Yield the items that ``--format json`` has printed."""
    import base64
    import json

    for number, line in enumerate(_lines(pieces), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
            if "content_base64" in fields:
                content = base64.b64decode(fields["content_base64"], validate=True)
            else:
                content = fields["content"].encode()
            topic = fields.get("topic", "")
            if not isinstance(topic, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError):
            why = 'is not like {"content": "..."} or {"content_base64": "..."}'
            raise MultiSocketError(f"line {number} of the input {why}") from None
        yield Item(content, topic)
