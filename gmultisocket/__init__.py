"""gmultisocket: message sockets for gevent.

A :class:`Socket` talks to any number of peers over any transports, in plain blocking style; each pipe's reader and
writer is a greenlet, so thousands of peers live on one OS thread. On the wire it is the Go library multisocket.

    >>> from gmultisocket import Socket
    >>> with Socket() as server, Socket() as client:
    ...     address = server.listen("tcp://127.0.0.1:0").address
    ...     dialer = client.dial(address)
    ...     client.send(b"world")
    ...     message = server.recv_msg()
    ...     server.send_to(message.source, b"Hello, " + message.content)
    ...     client.recv(timeout=5)
    b'Hello, world'

Protocols on top of it are in ``gmultisocket.protocol``, and their classes are here as well: ``gmultisocket.Pub``. They
are imported when they are first used. Errors are in ``gmultisocket.errors``, options in ``gmultisocket.options``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import system  # noqa: F401  # isort: skip  # first: it raises where nothing could work
from . import errors, options
from .address import Address
from .core.connecting.dialer import Dialer
from .core.connecting.events import PipeEvent
from .core.connecting.negotiation import Negotiation
from .core.pipes.pipe import Pipe
from .core.socket import Socket
from .counters import Counters
from .log import show_by_default
from .wire import Message

if TYPE_CHECKING:
    from . import protocol
    from .backplane import Backplane
    from .core.connecting.listener import Listener
    from .core.pair import pair
    from .protocol import (
        Bus,
        Pair,
        Pub,
        Pull,
        Push,
        Rep,
        Req,
        Respondent,
        Stream,
        StreamProxy,
        Sub,
        Surveyor,
    )
    from .switch import Switch

__all__ = [
    "Address",
    "Backplane",
    "Bus",
    "Counters",
    "Dialer",
    "Listener",
    "Message",
    "Negotiation",
    "Pair",
    "Pipe",
    "PipeEvent",
    "Pub",
    "Pull",
    "Push",
    "Rep",
    "Req",
    "Respondent",
    "Socket",
    "Stream",
    "StreamProxy",
    "Sub",
    "Surveyor",
    "Switch",
    "errors",
    "options",
    "pair",
    "protocol",
]

__version__ = "0.1.0"

show_by_default()

_IMPORTED_LATER = {
    "Backplane": ".backplane",
    "Listener": ".core.connecting.listener",
    "Switch": ".switch",
    "pair": ".core.pair",
}


if not TYPE_CHECKING:  # a checker would take it for a promise that the module has any name

    def __getattr__(name: str) -> Any:
        """Import the protocols, and what not every program needs, when they are first used."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        if name in _IMPORTED_LATER:
            value = globals()[name] = getattr(import_module(_IMPORTED_LATER[name], __name__), name)
            return value
        # Not "from . import protocol": that would ask for the attribute first, and call this function without end.
        protocol = import_module(".protocol", __name__)
        if name == "protocol":
            return protocol
        value = globals()[name] = getattr(protocol, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
