"""The numbers of a socket, as plain dicts. "Monitoring" in the documentation lists the keys.

Everything is read from what is counted anyway. Nothing here is loaded before the first program asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest
from typing import Any

from .. import options as opts
from ..counters import as_dict
from ..loop.lag import LagSummary, lag_of
from ..loop.yielding import yield_to_loop
from ..options import Options
from .connecting.connector import Connector
from .pipes.pipe import Pipe

__all__ = ["lag_stats", "slowest_pipes", "socket_stats"]

#: Pipes that are looked at before others run.
_PORTION = 256


def socket_stats(connector: Connector, options: Options) -> dict[str, Any]:
    """Return the numbers of the socket that these belong to; see ``Socket.stats``."""
    endpoints = [*connector.endpoints]
    dialers = sum(endpoint.dials for endpoint in endpoints)
    full = waiting = most = size = 0
    for pipe in connector.sender._to_all.maybe_queued():
        queued, queued_bytes = pipe._backlog()
        if queued:
            full += pipe.full
            waiting += queued
            size += queued_bytes
            if queued > most:
                most = queued
    requeued = [len(message.content) for message in connector.sender.requeue.pending.copy()]
    lag = lag_of(connector.hub)
    return {
        "kind": "Socket",
        "name": options.get(opts.socket.name),
        "pipes": len(connector.pipes),
        "full_pipes": full,
        "dialers": dialers,
        "listeners": len(endpoints) - dialers,
        **connector.endpoint_totals(),
        **as_dict(connector.counters()),
        "send_queue": waiting + len(requeued),
        "send_queue_bytes": size + sum(requeued),
        "longest_send_queue": most,
        "recv_queue": len(connector.receiver.queue),
        "loop_lag": None if lag is None else lag_stats(lag.summary()),
    }


def lag_stats(lag: LagSummary) -> dict[str, float]:
    """Return how late a loop was, as ``Socket.stats`` does."""
    return {"last": lag.last, "p50": lag.p50, "p99": lag.p99, "max": lag.maximum}


def slowest_pipes(pipes: Mapping[int, Pipe], count: int) -> list[Pipe]:
    """Return the pipes that are most behind, the worst first, and none that has nothing to send.

    They are compared by ``pipe.queued``, then by ``pipe.unacknowledged``. Lets others run meanwhile.
    """
    behind = []
    for number, pipe in enumerate([*pipes.values()], 1):
        if number % _PORTION == 0:
            yield_to_loop()
        if not pipe.closed:
            queued, unacknowledged = pipe.queued, pipe.unacknowledged
            if queued or unacknowledged:
                behind.append((queued, unacknowledged, pipe.id, pipe))
    return [pipe for *_, pipe in nlargest(count, behind) if not pipe.closed]
