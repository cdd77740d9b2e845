"""What a hub and its clients say to each other.

Subscriptions are those of publish and subscribe: the hub is a Pub to its clients, see
:mod:`gmultisocket.protocol.pubsubwire`. Besides there are, with flag 0x20:

==== ===================== ============= ==============================================================================
kind after the first byte  from          meaning
==== ===================== ============= ==============================================================================
0x40 u8 version            client        the first message of a connection
0x41 u8 version, u32 limit hub           the answer; the longest message that the hub takes, in bytes, 0 for any
0x42 u32 count             hub           the hub has passed on so many more of the client's publications
0x43 publication           both          it is its topic's present value: the hub keeps it, and passes it on, also
                                         to the client that it came from
0x44 publication           hub           the present value of a topic that a new subscription matches
0x45 publication           both          its content is empty, and its topic has no present value any more; passed on as
                                         0x43
==== ===================== ============= ==============================================================================

A publication is the same in both directions: its topic's length (2 bytes), the topic, the origin (8 bytes), the
sequence (8 bytes), and the content. A client sends it to one, the hub to all, but not to the client that it came from.
Numbers are big-endian.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = [
    "CONFIRM",
    "HELLO",
    "KEPT",
    "OVERHEAD",
    "RETAIN",
    "UNRETAIN",
    "VERSION",
    "WELCOME",
    "confirm",
    "length",
    "stamp",
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

#: The length of a topic.
length: Final = Struct(">H")
#: An origin and a sequence.
stamp: Final = Struct(">8sQ")
welcome: Final = Struct(">cBI")
confirm: Final = Struct(">cI")
#: The most bytes of a publication besides its content: a topic of the greatest length included.
OVERHEAD: Final = 1 + length.size + 65535 + stamp.size
