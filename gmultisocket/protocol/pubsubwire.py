"""Control messages of publish and subscribe: what they mean, and their bytes.

A control message has flag 0x20. The first byte of its content is its kind. Numbers are big-endian.

==== ===================================================== ======================== ================================
kind after the first byte                                  from, to                 meaning
==== ===================================================== ======================== ================================
0x00 pattern                                               Sub, to all              unsubscribe
0x01 pattern                                               Sub, to all              subscribe
0x02 pattern                                               Pub, to the source       the subscription is in effect
0x03 u16 length, pattern, reason                           Pub, to the source       refused, or revoked
0x04                                                       Pub, to all by a new     who is there? Subscribe again
                                                           pipe
0x05 u32 id, u8 flags, u8 n, n positions, u16 length,      Sub, to all              subscribe, and send what I miss
     pattern
0x06 u32 id, position, u8 flags                            Pub, to the source       a replay begins, or ends
0x07 u32 id, position, u64 previous, publication           Pub, to all by a pipe,   a publication with its position
                                                           or to the source
0x08                                                       Sub, to all              I repeat my subscriptions while I
                                                                                    live
==== ===================================================== ======================== ================================

A position is a u64 epoch, which names a history, and a u64 offset, which names a message in it. Both are below 2^53.

A peer that knows only 0x00 to 0x02 counts the other kinds as garbage, and goes on.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

from ..errors import BadTopic, printable
from ..wire import CONTROL, SEND_TYPE_MASK, Message
from .subscriptions import check_pattern

__all__ = [
    "ASK",
    "LIMIT",
    "MAX_POSITIONS",
    "POSITIONED",
    "POSITION_SIZE",
    "REFUSED",
    "REPEATS",
    "REPLAY",
    "SUBSCRIBE",
    "SUBSCRIBED",
    "UNSUBSCRIBE",
    "WHO",
    "Ask",
    "Malformed",
    "Position",
    "Positioned",
    "Refused",
    "Replay",
    "is_control",
    "is_missed",
    "pack_positioned",
    "read_ask",
    "read_pattern",
    "read_positioned",
    "read_refused",
    "read_replay",
]

#: The first bytes.
UNSUBSCRIBE: Final = b"\x00"
SUBSCRIBE: Final = b"\x01"
SUBSCRIBED: Final = b"\x02"
REFUSED: Final = b"\x03"
WHO: Final = b"\x04"
ASK: Final = b"\x05"
REPLAY: Final = b"\x06"
POSITIONED: Final = b"\x07"
REPEATS: Final = b"\x08"

#: Epochs and offsets are below this: a number of JavaScript holds them exactly.
LIMIT: Final = 1 << 53
#: The most positions in one 0x05.
MAX_POSITIONS: Final = 16
#: The most bytes of a reason. A longer one is cut.
MAX_REASON: Final = 256

# Flags of 0x05.
_RETAINED: Final = 1
_RECOVER: Final = 2
# Flags of 0x06.
_RECOVERED: Final = 1
_GAP: Final = 2
_FIRST_MEETING: Final = 4
_END: Final = 8

_length = Struct(">H")
_ask_head = Struct(">cIBB")
_position = Struct(">QQ")
_replay = Struct(">cIQQB")
_positioned = Struct(">cIQQQ")
#: Returns a 0x07 without its publication, given its first byte and four numbers: a faster way than Positioned.encode().
pack_positioned = _positioned.pack
#: What a position adds to a publication, in bytes.
POSITION_SIZE: Final = _positioned.size


class Malformed(ValueError):
    """A control message breaks a rule; the text says which."""


class Position(NamedTuple):
    """A place in a history.

    Attributes:
        epoch: names the history.
        offset: of a message in it; the first message has 1, and 0 is the place before it.
    """

    epoch: int
    offset: int


class Refused(NamedTuple):
    """0x03: a subscription is refused or revoked. The subscriber does not ask for it again.

    Attributes:
        pattern: of the subscription.
        reason: for people; printable.
    """

    pattern: str
    reason: str

    def encode(self) -> bytes:
        """Return the content of the message. A long reason is cut."""
        pattern = self.pattern.encode()
        reason = self.reason.encode("utf-8", "replace")[:MAX_REASON].decode("utf-8", "ignore").encode()
        return REFUSED + _length.pack(len(pattern)) + pattern + reason


class Ask(NamedTuple):
    """0x05: subscribe, and send what I miss. A 0x01 with the same pattern follows, for publishers that know no 0x05.

    Attributes:
        id: new for each asking; not 0.
        retained: send the retained values of the topics.
        recover: send the messages behind the positions.
        positions: how far the subscriber has come in each history that it knows, at most ``MAX_POSITIONS``.
        pattern: of the subscription.
    """

    id: int
    retained: bool
    recover: bool
    positions: tuple[Position, ...]
    pattern: str

    def encode(self) -> bytes:
        """Return the content of the message."""
        pattern = self.pattern.encode()
        flags = self.retained * _RETAINED | self.recover * _RECOVER
        return b"".join(
            (
                _ask_head.pack(ASK, self.id, flags, len(self.positions)),
                *(_position.pack(*position) for position in self.positions),
                _length.pack(len(pattern)),
                pattern,
            )
        )


class Replay(NamedTuple):
    """0x06: a replay begins, or ends.

    Attributes:
        id: of the asking.
        epoch: of the history.
        offset: the last offset of the history. At the end of a replay, live publications begin behind it.
        recovered: everything behind the subscriber's position is sent.
        gap: messages behind the position are missing, and cannot be sent.
        first_meeting: the subscriber has given no position in this history.
        end: the replay ends.
    """

    id: int
    epoch: int
    offset: int
    recovered: bool = False
    gap: bool = False
    first_meeting: bool = False
    end: bool = False

    def encode(self) -> bytes:
        """Return the content of the message."""
        flags = self.recovered * _RECOVERED | self.gap * _GAP | self.first_meeting * _FIRST_MEETING | self.end * _END
        return _replay.pack(REPLAY, self.id, self.epoch, self.offset, flags)


class Positioned(NamedTuple):
    """0x07: a publication of a topic with history or a retained value.

    Attributes:
        id: of the asking that it is a replay for, 0 for a live one.
        epoch: of the history.
        offset: of this message.
        previous: the offset of the message before it in the same topic, 0 if it is the topic's first.
        publication: the topic's length (2 bytes), the topic, and the content.
    """

    id: int
    epoch: int
    offset: int
    previous: int
    publication: bytes

    def encode(self) -> bytes:
        """Return the content of the message."""
        return _positioned.pack(POSITIONED, *self[:4]) + self.publication


def is_control(message: Message) -> bool:
    """Return whether a message that has arrived is a control message."""
    return message.flags & ~SEND_TYPE_MASK == CONTROL and not message.destination


def is_missed(message: Message) -> bool:
    """Return whether a message that has not left is a loss: a publication is. The others are about subscriptions."""
    return not message.flags & CONTROL or message.content[:1] == POSITIONED


def read_pattern(content: bytes) -> str:
    """Return the pattern of a 0x00, 0x01 or 0x02.

    Raises:
        Malformed: it is not such a message.
    """
    return _pattern(content[1:])


def read_refused(content: bytes) -> Refused:
    """Read a 0x03.

    Raises:
        Malformed: it is not such a message.
    """
    pattern, reason = _counted(content, 1)
    return Refused(_pattern(pattern), printable(reason[:MAX_REASON].decode("utf-8", "replace")))


def read_ask(content: bytes) -> Ask:
    """Read a 0x05. Flags that are not known are ignored.

    Raises:
        Malformed: it is not such a message.
    """
    try:
        _, number, flags, count = _ask_head.unpack_from(content)
        end = _ask_head.size + count * _position.size
        positions = [Position(*_position.unpack_from(content, at)) for at in range(_ask_head.size, end, _position.size)]
    except StructError:
        raise Malformed("a subscription with positions is shorter than it says") from None
    if not number:
        raise Malformed("a subscription with positions has the id 0")
    if count > MAX_POSITIONS:
        raise Malformed(f"a subscription has {count} positions, and at most {MAX_POSITIONS} are allowed")
    for position in positions:
        _check_numbers(*position)
    if len({position.epoch for position in positions}) < count:
        raise Malformed("a subscription has two positions in the same history")
    pattern, rest = _counted(content, end)
    if rest:
        raise Malformed("a subscription with positions is longer than it says")
    return Ask(number, bool(flags & _RETAINED), bool(flags & _RECOVER), tuple(positions), _pattern(pattern))


def read_replay(content: bytes) -> Replay:
    """Read a 0x06. Flags that are not known are ignored.

    Raises:
        Malformed: it is not such a message.
    """
    try:
        _, number, epoch, offset, flags = _replay.unpack(content)
    except StructError:
        raise Malformed(f"the head of a replay has {_replay.size} bytes, not {len(content)}") from None
    _check_numbers(epoch, offset)
    return Replay(
        number, epoch, offset, *(bool(flags & flag) for flag in (_RECOVERED, _GAP, _FIRST_MEETING, _END))
    )  # fmt: skip


def read_positioned(content: bytes) -> Positioned:
    """Read a 0x07. The publication in it is not checked.

    Raises:
        Malformed: it is not such a message.
    """
    try:
        _, number, epoch, offset, previous = _positioned.unpack_from(content)
    except StructError:
        raise Malformed("a publication with a position is too short") from None
    _check_numbers(epoch, offset)
    if previous >= offset:
        raise Malformed(f"the message before offset {offset} has offset {previous}")
    return Positioned(number, epoch, offset, previous, content[_positioned.size :])


def _check_numbers(epoch: int, offset: int) -> None:
    if not epoch < LIMIT > offset:
        raise Malformed("an epoch or an offset is not below 2^53")


def _counted(content: bytes, at: int) -> tuple[bytes, bytes]:
    """Return the bytes whose length is in front of them, and what follows."""
    try:
        (length,) = _length.unpack_from(content, at)
    except StructError:
        raise Malformed("a control message ends before the length of its pattern") from None
    begin = at + _length.size
    if len(content) < begin + length:
        raise Malformed("a control message ends before its pattern does")
    return content[begin : begin + length], content[begin + length :]


def _pattern(encoded: bytes) -> str:
    try:
        pattern = encoded.decode()
        check_pattern(pattern)
    except (UnicodeDecodeError, BadTopic) as error:
        raise Malformed(f"a control message has no pattern: {error}") from None
    return pattern
