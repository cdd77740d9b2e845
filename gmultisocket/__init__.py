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

Protocols on top of it are in ``gmultisocket.protocol``; errors in ``gmultisocket.errors``, options in
``gmultisocket.options``.
"""

from __future__ import annotations

import logging

from . import errors, options
from .address import Address
from .core.connecting.dialer import Dialer
from .core.connecting.events import PipeEvent
from .core.connecting.listener import Listener
from .core.connecting.negotiation import Negotiation
from .core.pair import pair
from .core.pipes.pipe import Pipe
from .core.socket import Socket
from .counters import Counters
from .switch import Switch
from .wire import Message

__all__ = [
    "Address",
    "Counters",
    "Dialer",
    "Listener",
    "Message",
    "Negotiation",
    "Pipe",
    "PipeEvent",
    "Socket",
    "Switch",
    "errors",
    "options",
    "pair",
]

__version__ = "0.1.0"

# Silent unless the program configures logging.
logging.getLogger("gmultisocket").addHandler(logging.NullHandler())
