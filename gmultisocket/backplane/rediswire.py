"""What the engine for Redis says with the protocol of Redis: commands, marks, channels, and which globs it asks for.

hiredis parses what the server writes; commands are written here. A publication is a PUBLISH to the channel ``prefix +
topic``. Its value begins with a mark: 4 bytes that no text begins with, the origin, and the number of the publication
there. A value without a mark is another program's. The last of the 4 bytes is "m" for a publication, "h" for one of a
topic with history, "r" for one that is its topic's present value, and "u" if the topic has none any more. Behind all
but "m" are three numbers of 8 bytes, by the server: its number, the number of the one before it in this topic, and the
epoch of the history. See ``redishistory.py``.

A pattern without a wildcard is a SUBSCRIBE to its channel. The wildcards of Redis are globs, and these are not tokens:
``a.*`` matches ``a.b.c``. And the server tries every glob that any client has for every PUBLISH: with 10,000 of them
that takes it 700 times as long as with none. So a pattern with wildcards asks for all channels that begin with its
first tokens, and :class:`Globs` bounds their number: when there would be more than ``MAX_GLOBS``, fewer tokens are
used, in the end none. What comes too much is dropped by the plane.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from struct import Struct
from typing import Any, Final, NamedTuple

from ..errors import BadMessage
from ..protocol.subscriptions import ONE, REST, SEPARATOR
from .brokertopics import TopicNames

__all__ = [
    "CHANGE_SIZE",
    "LOGGED",
    "MARK_SIZE",
    "MAX_GLOBS",
    "RETAINED",
    "UNRETAINED",
    "Change",
    "Channels",
    "Globs",
    "bad_reply",
    "encode_command",
    "encode_mark",
    "encode_publish",
    "encode_words",
    "first_tokens",
    "pairs",
    "read_change",
    "read_mark",
    "shortest",
]

#: No UTF-8 has a byte 0xff, and JSON, pickles and MessagePack maps do not begin with it.
_MAGIC: Final = b"\xff\x00gm"
#: The same for a topic with history, for the present value of a topic, and for the end of one.
LOGGED: Final = b"\xff\x00gh"
RETAINED: Final = b"\xff\x00gr"
UNRETAINED: Final = b"\xff\x00gu"
_mark = Struct(">4s8sQ")
#: The same with what the server adds: number, previous and epoch.
_change = Struct(">4s8sQQQQ")
#: Bytes in front of each content.
MARK_SIZE: Final = _mark.size
#: The same with what the server adds.
CHANGE_SIZE: Final = _change.size
#: The most globs that one process asks for.
MAX_GLOBS: Final = 16

_GLOB_SPECIAL: Final = re.compile(rb"[*?\[\]\\^-]")


def encode_command(*words: bytes) -> bytes:
    """Return a command: its name and its arguments, which may have any bytes."""
    return b"*%d\r\n%b" % (len(words), encode_words(*words))


def bad_reply() -> BadMessage:
    """Return the error for what is no reply of the script that was called."""
    return BadMessage("the reply of a script has another form")


def encode_words(*words: bytes) -> bytes:
    """Return words of a command."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def encode_publish(channel: bytes, origin: bytes, number: int, content: bytes) -> bytes:
    """Return the PUBLISH of a publication.

    Args:
        channel: of the topic.
        origin: 8 bytes.
        number: below 2^64.
        content: of any length.
    """
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n%b%b\r\n" % (
        len(channel), channel, len(content) + MARK_SIZE, _mark.pack(_MAGIC, origin, number), content,
    )  # fmt: skip


def read_mark(value: bytes) -> tuple[bytes, int]:
    """Return the origin and the number in the mark of a value; ``(b"", 0)`` if it has none.

    With a mark, the content is ``value[MARK_SIZE:]``.
    """
    if value[:4] != _MAGIC or len(value) < MARK_SIZE:
        return b"", 0
    _, origin, number = _mark.unpack_from(value)
    return origin, number


def encode_mark(kind: bytes, origin: bytes, number: int) -> bytes:
    """Return the mark of a publication that the server numbers: ``LOGGED``, ``RETAINED`` or ``UNRETAINED``."""
    return _mark.pack(kind, origin, number)


class Change(NamedTuple):
    """A publication that the server has numbered.

    Attributes:
        kind: ``LOGGED``, ``RETAINED`` or ``UNRETAINED``.
        content: b"" if the topic has no value any more.
        origin: of the publication.
        sequence: of the publication, there.
        number: the server's.
        previous: the number of the one before it in its topic, 0 if that is not known.
        epoch: of the history, 0 if there is none.
    """

    kind: bytes
    content: bytes
    origin: bytes
    sequence: int
    number: int
    previous: int
    epoch: int


def read_change(value: bytes) -> Change | None:
    """Return what the server has numbered; None if it is no such message."""
    if value[:4] not in (LOGGED, RETAINED, UNRETAINED) or len(value) < CHANGE_SIZE:
        return None
    kind, *numbers = _change.unpack_from(value)
    return Change(kind, value[CHANGE_SIZE:], *numbers)


def pairs(found: Any) -> list[tuple[Any, Any]]:
    """Return the pairs in a list in the reply of a script.

    Raises:
        BadMessage: it is no such list.
    """
    if not isinstance(found, list) or len(found) % 2:
        raise bad_reply()
    return [*zip(found[::2], found[1::2], strict=True)]


class Channels(TopicNames):
    """Translates topics to channels, and back."""

    __slots__ = ()

    def encode_tokens(self, tokens: Iterable[str]) -> bytes:
        """Return what all channels below some first tokens begin with."""
        return self.encode("".join(token + SEPARATOR for token in tokens))

    def read_changes(
        self, found: Iterable[tuple[bytes, bytes]], kinds: Container[bytes], count: Callable[[str], object]
    ) -> Iterator[tuple[str, Change]]:
        """Yield what a script has found under some channels, each with its topic.

        Args:
            found: channels and values.
            kinds: of the changes that may be there.
            count: called with ``"garbage"`` for each value that is none of them, or has no topic.
        """
        for channel, value in found:
            topic, change = self.decode(channel), read_change(value)
            if topic is None or change is None or change.kind not in kinds:
                count("garbage")
            else:
                yield topic, change

    def glob(self, tokens: Iterable[str]) -> bytes:
        """Return the glob of all channels below some first tokens."""
        return _GLOB_SPECIAL.sub(rb"\\\g<0>", self.encode_tokens(tokens)) + b"*"


class Globs:
    """Which first tokens to ask for, so that all patterns with wildcards are heard.

    A set of first tokens covers the longer ones that begin with it, and these are not asked for.
    """

    __slots__ = ("_counts", "_depth")

    def __init__(self) -> None:
        #: By the first tokens of a pattern, up to its first wildcard: how many patterns begin so.
        self._counts: Counter[tuple[str, ...]] = Counter()
        #: The most tokens that are used now.
        self._depth = 64

    def add(self, patterns: Iterable[str]) -> set[tuple[str, ...]]:
        """Add patterns with wildcards. Return the first tokens to ask for from now on."""
        self._counts.update(map(first_tokens, patterns))
        return self._choose()

    def remove(self, patterns: Iterable[str]) -> set[tuple[str, ...]]:
        """Remove patterns. Return the first tokens to ask for from now on."""
        self._counts.subtract(map(first_tokens, patterns))
        self._counts = +self._counts
        if not self._counts:
            self._depth = 64
        return self._choose()

    def _choose(self) -> set[tuple[str, ...]]:
        """Return the first tokens to ask for: with fewer tokens as long as there are too many of them.

        The number of tokens does not rise again while there are patterns, so that what is asked for does not go to and
        fro.
        """
        while True:
            cut = {tokens[: self._depth] for tokens in self._counts}
            wanted = shortest(cut)
            if len(wanted) <= MAX_GLOBS:
                return wanted
            self._depth = min(self._depth, max(map(len, wanted))) - 1


def first_tokens(pattern: str) -> tuple[str, ...]:
    """Return the tokens of a pattern in front of its first wildcard."""
    tokens = []
    for token in pattern.split(SEPARATOR):
        if token in (ONE, REST):
            break
        tokens.append(token)
    return tuple(tokens)


def shortest(beginnings: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Return the beginnings that have no other one as their own beginning."""
    return {tokens for tokens in beginnings if not any(tokens[:size] in beginnings for size in range(len(tokens)))}
