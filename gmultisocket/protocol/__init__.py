"""Protocols: who talks to whom, in which order, and what happens to a message that nobody takes.

Each protocol has one class for each role, in one module, over its own Socket, and all derive from
:class:`ProtocolBase`. The docstring of each module documents the wire format, and when a message is lost.

``ProtocolBase``, ``ProtocolSocket``, ``PlainReceiver``, ``Outbox``, ``Deadline`` and ``WaitList`` are for those who
write a protocol.

A module is imported when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .answering import Handler, ReceivedRequest
    from .base import Deadline, ProtocolBase, ProtocolSocket, WaitList
    from .bus import Bus
    from .history import Entry, History, Since
    from .outbox import Outbox
    from .pair import Pair
    from .pipeline import Pull, Push
    from .plain import PlainReceiver
    from .positions import Gap
    from .pubsub import Presence, Pub
    from .reqrep import Rep, Req, Request
    from .rights import RemoteSub
    from .session import Session
    from .stream import Stream
    from .streamproxy import StreamProxy
    from .streamsocket import StreamSocket
    from .sub import Sub
    from .survey import Respondent, Survey, Surveyor

__all__ = [
    "Bus",
    "Deadline",
    "Entry",
    "Gap",
    "Handler",
    "History",
    "MemoryHistory",
    "Outbox",
    "Pair",
    "PlainReceiver",
    "Presence",
    "ProtocolBase",
    "ProtocolSocket",
    "Pub",
    "Pull",
    "Push",
    "ReceivedRequest",
    "RemoteSub",
    "Rep",
    "Req",
    "Request",
    "Respondent",
    "Session",
    "Since",
    "Stream",
    "StreamProxy",
    "StreamSocket",
    "Sub",
    "Survey",
    "Surveyor",
    "WaitList",
]

#: Name -> module of this package.
_MODULES = {
    "Bus": "bus",
    "Deadline": "base",
    "Entry": "history",
    "Gap": "positions",
    "Handler": "answering",
    "History": "history",
    "MemoryHistory": "memoryhistory",
    "Outbox": "outbox",
    "Pair": "pair",
    "PlainReceiver": "plain",
    "Presence": "pubsub",
    "ProtocolBase": "base",
    "ProtocolSocket": "base",
    "Pub": "pubsub",
    "Pull": "pipeline",
    "Push": "pipeline",
    "ReceivedRequest": "answering",
    "RemoteSub": "rights",
    "Rep": "reqrep",
    "Req": "reqrep",
    "Request": "reqrep",
    "Respondent": "survey",
    "Session": "session",
    "Since": "history",
    "Stream": "stream",
    "StreamProxy": "streamproxy",
    "StreamSocket": "streamsocket",
    "Sub": "sub",
    "Survey": "survey",
    "Surveyor": "survey",
    "WaitList": "base",
}

# Hidden from type checkers, which would take any name for one that exists.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f".{module}", __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
