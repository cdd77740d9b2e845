"""The backplane: a publication reaches the subscribers of every worker process, on every host.

:class:`~gmultisocket.backplane.plane.Backplane` is what programs use. Its engines carry the publications between
processes: ``memory``, ``hub``, and others; their contract is in :mod:`~gmultisocket.backplane.engine`.
"""

from __future__ import annotations

from .control import PlanePresence
from .local import PlanePub, Subscription
from .plane import Backplane, PlaneCounters, PlaneEvent, ThreadsafePublisher

__all__ = [
    "Backplane",
    "PlaneCounters",
    "PlaneEvent",
    "PlanePresence",
    "PlanePub",
    "Subscription",
    "ThreadsafePublisher",
]
