"""gmultisocket with its default queue in fan-outs too."""

from __future__ import annotations

from . import ours

__all__ = ["Adapter"]


class Adapter(ours.Adapter):
    fan_out_queue = 64
