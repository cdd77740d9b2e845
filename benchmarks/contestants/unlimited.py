"""Plain pyzmq without a high-water mark: messages that the receiver has not read fill the memory."""

from __future__ import annotations

from . import pyzmq

__all__ = ["Adapter"]


class Adapter(pyzmq.Adapter):
    high_water_mark = 0
