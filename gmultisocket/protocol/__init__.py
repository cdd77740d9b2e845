"""Protocols: who talks to whom, in which order, and what becomes of a message that nobody takes.

Each is one class for each role, in one module, over a Socket of its own; :class:`Protocol` is what they share. What is
on the wire, and what is lost when, is said on top of each module.
"""

from __future__ import annotations

from .answering import Handler, Question
from .base import Protocol
from .bus import Bus
from .pair import Pair
from .pipeline import Pull, Push
from .pubsub import Pub, Sub
from .reqrep import Rep, Req, Request
from .stream import Connection, Stream
from .streamproxy import StreamProxy
from .survey import Respondent, Survey, Surveyor

__all__ = [
    "Bus",
    "Connection",
    "Handler",
    "Pair",
    "Protocol",
    "Pub",
    "Pull",
    "Push",
    "Question",
    "Rep",
    "Req",
    "Request",
    "Respondent",
    "Stream",
    "StreamProxy",
    "Sub",
    "Survey",
    "Surveyor",
]
