"""All works, and all rows of the table, in the order in which they run."""

from __future__ import annotations

from . import (
    backplane,
    compressed,
    fanout,
    forwarding,
    importtime,
    inproc,
    kept,
    memory,
    oneway,
    pipeline,
    pubsub,
    reqrep,
    roundtrip,
    stream,
)
from .harness import Row

__all__ = ["all_rows"]

_WORKS = (
    oneway, roundtrip, forwarding, inproc, fanout, compressed, reqrep, pubsub, kept, backplane, pipeline, stream,
    memory, importtime,
)  # fmt: skip


def all_rows() -> list[Row]:
    """Return the rows of all works."""
    return [row for work in _WORKS for row in work.rows()]
