"""gmultisocket with the queue that it comes with, also in fan-outs."""

from __future__ import annotations

from . import ours

__all__ = ["Adapter"]


class Adapter(ours.Adapter):
    fan_out_queue = 64
