"""The protocol of NATS: what a client writes, and a parser of what a server writes.

Every line ends with CR LF. The server begins with ``INFO`` and JSON, the client answers with ``CONNECT`` and JSON::

    SUB subject sid                      MSG subject sid [reply] bytes
    UNSUB sid                            HMSG subject sid [reply] header-bytes all-bytes
    PUB subject bytes                    PING, PONG, +OK
    HPUB subject header-bytes all-bytes  -ERR 'text'

The payload, with its own CR LF, follows the lines of PUB, HPUB, MSG and HMSG. A server answers in order: a PONG says
that it has taken everything in front of the PING.

A subject is bytes without white space, so a topic is escaped: :class:`Subjects`. Each message says which Backplane
published it, and its number there, in one header, ``Gms: 0123456789abcdef-0000000000000001``. A message without it is
from another program.

Pure: no gevent, no sockets, no clock.
"""

from __future__ import annotations

import json
import re
from binascii import hexlify, unhexlify
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from ..errors import BadMessage, BadTopic, snippet
from .brokertopics import TopicNames, remember

__all__ = [
    "HEADER_SIZE",
    "MAX_SUBJECT",
    "PING",
    "PONG",
    "Delivery",
    "Info",
    "Marks",
    "Parser",
    "Ping",
    "Pong",
    "ServerError",
    "Subjects",
    "encode_connect",
    "encode_head",
    "encode_subscribe",
    "encode_unsubscribe",
    "publication_format",
]

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

#: The most bytes of a subject. A server closes the connection of a client that writes a line of more than
#: ``max_control_line`` bytes, which is 4,096 unless it is configured, and does not say how many it takes. The rest is
#: for the words and numbers around the subject.
MAX_SUBJECT: Final = 4000

#: The most bytes of a line. The longest is the INFO of a large cluster.
_MAX_LINE: Final = 1 << 20
#: The most bytes of a message: the highest ``max_payload`` that a server allows.
_MAX_MESSAGE: Final = 64 << 20

#: What is between the words of a line. Other white space may be part of a subject: it separates nothing at the server.
_BLANKS: Final = re.compile(rb"[ \t]+")

_HEADER: Final = b"NATS/1.0\r\nGms: "
#: Where an origin ends in the headers of a publication, and how many bytes these have.
_ORIGIN_END: Final = len(_HEADER) + 16
HEADER_SIZE: Final = _ORIGIN_END + 1 + 16 + 4


class Info(NamedTuple):
    """What a server says of itself. It may come again at any time.

    Attributes:
        max_payload: the most bytes of a message, its headers included.
        headers: whether messages may have headers.
        tls_required: whether the client must begin TLS now.
        tls_available: whether it may.
        jetstream: whether the server has JetStream.
    """

    max_payload: int
    headers: bool
    tls_required: bool
    tls_available: bool
    jetstream: bool = False


class ServerError(NamedTuple):
    """The server complains. It closes the connection after most complaints.

    Attributes:
        text: its words, printable.
    """

    text: str


class Ping(NamedTuple):
    """The server asks whether the client is there."""


class Pong(NamedTuple):
    """The server has taken everything in front of a PING."""


#: A message: the id of the subscription, the subject, the headers (b"" without any), the payload, and the subject for a
#: reply (b"" without one). A plain tuple, as there are hundreds of thousands in a second.
Delivery = tuple[bytes, bytes, bytes, bytes, bytes]
Event = Delivery | Info | ServerError | Ping | Pong


class Parser:
    """Parses what a server writes. Bytes may come in any pieces.

    Attributes:
        error: why it has stopped; None while it works.
    """

    __slots__ = ("_heads", "_missing", "_pieces", "error")

    def __init__(self) -> None:
        self.error: BadMessage | None = None
        #: The beginning of a line or message that is not complete, and how many bytes more it needs at least.
        self._pieces: list[bytes] = []
        self._missing = 0
        self._heads: dict[bytes, tuple[bytes, bytes, int, int, bytes]] = {}

    @property
    def unfinished(self) -> bool:
        """Whether a line or a message has begun and is not complete."""
        return bool(self._pieces)

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that are complete now.

        Never raises. When the server breaks the protocol, the events in front of that are returned, :attr:`error` is
        set, and nothing more is parsed.
        """
        if self.error is not None:
            return []
        if self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._pieces)
            self._pieces = []
        events: list[Event] = []
        try:
            position = self._parse(data, events)
        except BadMessage as error:
            self.error = error
            return events
        if position < len(data):
            self._pieces = [data[position:] if position else data]
        return events

    def _parse(self, data: bytes, events: list[Event]) -> int:
        """Parse all that is complete. Return where the rest begins, and set how many bytes that needs at least."""
        position = 0
        find, add, heads = data.find, events.append, self._heads
        while (end := find(b"\r\n", position)) >= 0:
            line = data[position:end]
            head = heads[line] if line in heads else self._head(line)
            begin = end + 2
            if head is None:
                event = _read_line(line)
                if event is not None:
                    add(event)
                position = begin
                continue
            sid, subject, header_size, size, reply = head
            stop = begin + size
            if len(data) < stop + 2:
                self._missing = stop + 2 - len(data)
                return position
            if data[stop : stop + 2] != b"\r\n":
                raise BadMessage("a message does not end where its line says")
            content = begin + header_size
            add((sid, subject, data[begin:content], data[content:stop], reply))
            position = stop + 2
        if len(data) - position > _MAX_LINE:
            raise BadMessage(f"a line has more than {_MAX_LINE} bytes")
        self._missing = 1
        return position

    def _head(self, line: bytes) -> tuple[bytes, bytes, int, int, bytes] | None:
        """Return the subscription, the subject, both sizes and where to reply, of a line with a payload; else None.

        It is remembered: messages of the same size under the same subject have the same line.
        """
        words = _BLANKS.split(line)
        if len(words) >= 4 and words[0] == b"MSG":
            header_size, sizes = 0, 1
        elif len(words) >= 5 and words[0] == b"HMSG":
            header_size, sizes = _read_size(words[-2]), 2
        else:
            return None
        size = _read_size(words[-1])
        if header_size > size:
            raise BadMessage("the headers of a message are longer than the message")
        head = words[2], words[1], header_size, size, words[3] if len(words) > 3 + sizes else b""
        remember(self._heads, line, head)
        return head


def _read_size(word: bytes) -> int:
    """Return the number of bytes that a line announces."""
    if not word.isdigit() or len(word) > 9 or (size := int(word)) > _MAX_MESSAGE:
        raise BadMessage(f"a message says that it has {snippet(word)} bytes")
    return size


def _read_line(line: bytes) -> Info | ServerError | Ping | Pong | None:
    """Return the event of a line without a payload, None if it says nothing."""
    name, _, rest = line.partition(b" ")
    if name == b"PONG":
        return Pong()
    if name == b"PING":
        return Ping()
    if name == b"INFO":
        return _read_info(rest)
    if name == b"-ERR":
        return ServerError(snippet(rest.strip(b" '").decode("utf-8", "replace"), 400))
    if name == b"+OK":
        return None
    raise BadMessage(f"a line that is none of NATS: {snippet(name)}")


def _read_info(text: bytes) -> Info:
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        raise BadMessage("the INFO is not JSON") from None
    if not isinstance(facts, dict):
        raise BadMessage("the INFO is no JSON object")
    limit = facts.get("max_payload", 0)
    if type(limit) is not int or limit <= 0:
        raise BadMessage("the INFO has no max_payload")
    return Info(
        max_payload=limit,
        headers=facts.get("headers") is True,
        tls_required=facts.get("tls_required") is True,
        tls_available=facts.get("tls_available") is True,
        jetstream=facts.get("jetstream") is True,
    )


# What a client writes


def encode_connect(facts: Mapping[str, Any]) -> bytes:
    """Return the CONNECT with some facts, such as ``user`` and ``pass``."""
    return b"CONNECT " + json.dumps(facts).encode("ascii") + b"\r\n"


def encode_subscribe(subject: bytes, sid: bytes) -> bytes:
    """Return the SUB to a subject, which may have wildcards."""
    return b"SUB %b %b\r\n" % (subject, sid)


def encode_unsubscribe(sid: bytes) -> bytes:
    """Return the UNSUB of a subscription."""
    return b"UNSUB %b\r\n" % sid


def encode_head(subject: bytes, reply: bytes = b"") -> bytes:
    """Return the beginning of a publication under a subject without wildcards, and where to answer it."""
    return b"HPUB %b %b%d " % (subject, reply and reply + b" ", HEADER_SIZE)


def publication_format(origin: bytes) -> bytes:
    """Return the format of all publications of an origin, 8 bytes.

    ``format % (head, HEADER_SIZE + len(content), number, content)`` is a publication. The number is below 2^64.
    """
    return b"%%b%%d\r\n%b%b-%%016x\r\n\r\n%%b\r\n" % (_HEADER, hexlify(origin))


class Marks:
    """Reads the headers of publications."""

    __slots__ = ("_origins",)

    def __init__(self) -> None:
        #: By the beginning of the headers.
        self._origins: dict[bytes, bytes] = {}

    def read(self, header: bytes) -> tuple[bytes, int]:
        """Return the origin (8 bytes) and the number that headers name; ``(b"", 0)`` for those of other programs."""
        if len(header) != HEADER_SIZE:
            return b"", 0
        start = header[:_ORIGIN_END]
        try:
            origin = self._origins[start] if start in self._origins else self._origin(start)
            return origin, int(header[_ORIGIN_END + 1 : -4], 16)
        except ValueError:
            return b"", 0

    def _origin(self, start: bytes) -> bytes:
        """Return the origin in the beginning of headers, and remember it. Raises ValueError if there is none."""
        if not start.startswith(_HEADER):
            raise ValueError("they are not from here")
        origin = unhexlify(start[len(_HEADER) :])
        remember(self._origins, start, origin)
        return origin


# Topics

#: What a subject cannot hold, and the mark of an escape.
_UNSAFE: Final = re.compile(rb"[\x00-\x20\x7f%]")
_ESCAPE: Final = re.compile(rb"%([0-9A-F]{2})")
#: First tokens that mean something to the server or to other clients. They matter without a prefix only.
_RESERVED: Final = re.compile(rb"\$|_INBOX\b")


def _escape_byte(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(match[0])


class Subjects(TopicNames):
    """Translates topics and patterns to subjects, and back.

    A subject is the prefix and the topic in UTF-8, with each byte up to 0x20, 0x7f and ``%`` as ``%`` and two
    hexadecimal digits. So it has no white space, and a topic never reaches the server as anything but one word.
    Without a prefix, a first token ``_INBOX`` or one that begins with ``$`` is escaped too: these belong to the server
    and to other programs.

    Args:
        prefix: in front of each topic, e.g. ``"shop."``, with its dot; "" for none.

    Raises:
        BadTopic: the prefix is not made of tokens with dots behind them, or begins with $ or _INBOX.
    """

    __slots__ = ()

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._prefix = _UNSAFE.sub(_escape_byte, self._prefix)
        if self._prefix and _RESERVED.match(self._prefix):
            raise BadTopic(prefix, "subjects that begin with $ or _INBOX belong to the server and to other programs")

    def encode(self, topic: str) -> bytes:
        """Return the subject of a valid topic or pattern.

        Raises:
            BadTopic: it would be longer than ``MAX_SUBJECT`` bytes.
        """
        encoded = topic.encode()
        subject = self._prefix + (_UNSAFE.sub(_escape_byte, encoded) if _UNSAFE.search(encoded) else encoded)
        if not self._prefix and _RESERVED.match(subject):
            subject = b"%%%02X" % subject[0] + subject[1:]
        if len(subject) > MAX_SUBJECT:
            size = f"{len(subject)} bytes, with the prefix and escapes"
            raise BadTopic(topic, f"its subject at NATS has {size}; {MAX_SUBJECT} are possible")
        return subject

    def _unescape(self, encoded: bytes) -> bytes:
        return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), encoded)
