"""What a hub and its clients say to each other.

Subscriptions are those of publish and subscribe: the hub is a Pub to its clients, see
:mod:`gmultisocket.protocol.pubsubwire`. Besides there are, with flag 0x20:

==== ===================== ============= ==============================================================================
kind after the first byte  from          meaning
==== ===================== ============= ==============================================================================
0x40 u8 version, [u8 1]    client        the first message of a connection; 1: publications of topics with history, and
                                         present values, come with their positions
0x41 u8 version, u32 limit hub           the answer; the longest message that the hub takes, in bytes, 0 for any
0x42 u32 count             hub           the hub has passed on so many more of the client's publications
0x43 publication           both          it is its topic's present value: the hub keeps it, and passes it on, also
                                         to the client that it came from
0x44 publication           hub           the present value of a topic that a new subscription matches
0x45 publication           both          its content is empty, and its topic has no present value any more; passed on as
                                         0x43
0x46 u8 flags, u64 offset, hub           a publication with its position; flags: 1: its topic has history, 2: it is the
     u64 previous,                       topic's present value, 4: the hub had it when a pattern was subscribed to
     publication
0x47 u64 epoch, u64 last,  hub           in front of 0x41, to a client that has sent 1: the hub's history, the last
     patterns                            offset, and the patterns of the topics with history, each with its length (2
                                         bytes) in front
0x48 u64 from, u64 last,   hub           in front of the acknowledgement of a pattern: all that the hub has of it was
     pattern                             sent, and that is everything behind the offset ``from``; the last offset was
                                         ``last`` when the hub got the subscription
0x49 [u64 last]            both          the client asks for the last offset, the hub answers
==== ===================== ============= ==============================================================================

A publication is the same in both directions: its topic's length (2 bytes), the topic, the origin (8 bytes), the
sequence (8 bytes), and the content. A client sends it to one, the hub to all, but not to the client that it came from.
Numbers are big-endian.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ..protocol.pubsubwire import Malformed

__all__ = [
    "CONFIRM",
    "ENTRY",
    "FETCHED",
    "HELLO",
    "HISTORY",
    "LOGGED",
    "KEPT",
    "OVERHEAD",
    "IS_RETAINED",
    "RETAIN",
    "SINCE",
    "SYNC",
    "UNRETAIN",
    "VERSION",
    "WELCOME",
    "confirm",
    "entry_head",
    "history_head",
    "length",
    "split",
    "stamp",
    "sync",
    "welcome",
]

VERSION: Final = 2
#: The first bytes of control messages.
HELLO: Final = b"\x40"
WELCOME: Final = b"\x41"
CONFIRM: Final = b"\x42"
RETAIN: Final = b"\x43"
KEPT: Final = b"\x44"
UNRETAIN: Final = b"\x45"
ENTRY: Final = b"\x46"
HISTORY: Final = b"\x47"
SINCE: Final = b"\x48"
SYNC: Final = b"\x49"

#: The flags of a publication with a position.
LOGGED: Final = 1
IS_RETAINED: Final = 2
FETCHED: Final = 4

#: The length of a topic.
length: Final = Struct(">H")
#: An origin and a sequence.
stamp: Final = Struct(">8sQ")
welcome: Final = Struct(">cBI")
confirm: Final = Struct(">cI")
#: Flags, offset and previous offset.
entry_head: Final = Struct(">cBQQ")
#: Epoch and last offset; the same form for ``SINCE``: from, and last.
history_head: Final = Struct(">cQQ")
sync: Final = Struct(">cQ")
#: The most bytes of a publication besides its content: a topic of the greatest length included.
OVERHEAD: Final = entry_head.size + length.size + 65535 + stamp.size


def split(content: bytes, position: int = 0) -> tuple[str, bytes]:
    """Return the topic of a publication, and what comes behind it: the stamp and the content.

    Args:
        content: of a message.
        position: where the publication begins in it.

    Raises:
        Malformed: it is too short, or its topic is not UTF-8.
    """
    begin = position + length.size
    end = begin + length.unpack_from(content, position)[0] if begin <= len(content) else begin
    if end + stamp.size > len(content):
        raise Malformed(f"a publication of {len(content) - position} bytes is too short")
    try:
        return str(content[begin:end], "utf-8"), content[end:]
    except UnicodeDecodeError as error:
        raise Malformed(f"the topic of a publication is not UTF-8: {error}") from None
