"""The numbers of all sockets of a process, by what they are for; and a log of them.

A program may make any number of sockets, and close them. So they are added up in *groups*: those of the same kind (the
class: Socket, Pub, Req) with the same name (``socket.name``). A group keeps what its closed sockets have counted. So
its counters never fall, and the number of groups is the program's own choice.

From the first import of this module on, closed sockets are remembered: 20 numbers for each group.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final
from weakref import WeakSet

from gevent import get_hub

from . import options as opts
from .core.connecting.connector import ENDPOINT_TOTALS, Connector
from .core.socket import Socket, live_sockets, on_closed
from .core.stats import lag_stats
from .counters import TOTALS, add_drops, as_dict
from .log import get_logger
from .loop import owner
from .loop.lag import BUCKETS, LagSummary, lag_of, own_hub
from .loop.periodic import Periodic

__all__ = [
    "COUNTERS",
    "GAUGES",
    "MAXIMA",
    "add_lags",
    "add_up",
    "by_key",
    "growth",
    "log_stats",
    "loop_lag",
    "own_sockets",
    "process_stats",
]

logger = get_logger("gmultisocket.stats")

#: What only grows. ``drops`` is a dict of such numbers.
COUNTERS: Final = (*ENDPOINT_TOTALS, *TOTALS)
#: What goes up and down, and is added up. So is every further number of a protocol.
GAUGES: Final = (
    "sockets",
    "pipes",
    "full_pipes",
    "dialers",
    "listeners",
    "send_queue",
    "send_queue_bytes",
    "recv_queue",
)
#: Of which a group has the greatest.
MAXIMA: Final = ("longest_send_queue",)

#: Kind and name.
_Key = tuple[str, str]

_new_lock = owner.original("_thread", "allocate_lock")
#: Held while the three below are read and changed: another thread may ask. Nobody switches greenlets meanwhile.
_lock = _new_lock()
#: What closed sockets have counted.
_closed: dict[_Key, dict[str, Any]] = {}
#: The connectors of the sockets that are in it.
_remembered: WeakSet[Connector] = WeakSet()
#: The sockets that somebody has seen, by the identity of the connector. It is kept because a socket may be collected
#: without having been closed, when nothing of it is in use.
_seen: dict[int, tuple[_Key, Connector]] = {}


def process_stats() -> dict[str, Any]:
    """Return the numbers of all sockets of this process, as a plain dict.

    May be called in any thread, and never blocks. Takes about a microsecond for each pipe. In another thread than that
    of a socket, a pipe of it that closes at the same moment may be missing: then a counter is too low, that once.

    Returns:
        ``"pid"``; ``"groups"``, a list of dicts with the keys of ``Socket.stats()`` and ``"sockets"``, the number of
        open ones; and ``"loop_lag"``: the same as in ``Socket.stats()``, with ``"count"``, ``"sum"`` and ``"buckets"``
        (pairs of an upper end in seconds, and the number of looks that were not later) since the measuring began.
    """
    sockets = live_sockets()
    # Not while the lock is held: this may be code of the program's own protocols.
    found: list[tuple[Socket, dict[str, Any]]] = [(sock, _whole(sock).stats()) for sock in sockets]
    with _lock:
        groups = _groups(found)
    return {
        "pid": os.getpid(),
        "groups": [_filled(key, group) for key, group in sorted(groups.items())],
        "loop_lag": _lag_dict(sockets),
    }


def add_up(reports: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the groups of several processes, with the sums of their numbers.

    Args:
        reports: what :func:`process_stats` returns in each process.
    """
    groups: dict[_Key, dict[str, Any]] = {}
    for report in reports:
        for group in report["groups"]:
            _add(groups, (group["kind"], group["name"]), group)
    return [_filled(key, group) for key, group in sorted(groups.items())]


def add_lags(lags: Iterable[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the sums of several ``"loop_lag"``, without their percentiles; None if all of them are None."""
    measured = [lag for lag in lags if lag is not None]
    if not measured:
        return None
    buckets = zip(*(lag["buckets"] for lag in measured), strict=True)
    return {
        "count": sum(lag["count"] for lag in measured),
        "sum": sum(lag["sum"] for lag in measured),
        "buckets": [[pairs[0][0], sum(count for _, count in pairs)] for pairs in buckets],
    }


def by_key(groups: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Return groups by their kind and name."""
    return {(group["kind"], group["name"]): group for group in groups}


def growth(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return by how much each counter of a group has grown, and the drops for each reason.

    Args:
        before: the group as it was; empty if there was none.
        after: the group as it is.
    """
    dropped = before.get("drops", {})
    grown: dict[str, Any] = {name: after[name] - before.get(name, 0) for name in COUNTERS}
    grown["drops"] = {reason: count - dropped.get(reason, 0) for reason, count in after["drops"].items()}
    return grown


def loop_lag() -> LagSummary:
    """Return how late the calling thread's event loop is. The first call starts to measure; see ``loop/lag.py``."""
    lag = lag_of(get_hub())
    assert lag is not None
    return lag.summary()


def own_sockets() -> list[tuple[str, str, Socket]]:
    """Return the kind, the name and the Socket of all that is open in the calling thread."""
    hub = own_hub()
    return [(*_key(sock), sock) for sock in live_sockets() if sock._connector.hub is hub]


# Groups


def _groups(found: Iterable[tuple[Socket, dict[str, Any]]]) -> dict[_Key, dict[str, Any]]:
    """Return the groups of the closed sockets, and of the open ones with their numbers."""
    open_now = {id(sock._connector) for sock in live_sockets()}
    for identity in [identity for identity in _seen if identity not in open_now]:
        # It was collected, or another thread is closing it.
        _remember(*_seen.pop(identity))
    groups = {key: {**counted, "drops": {**counted["drops"]}} for key, counted in _closed.items()}
    for sock, numbers in found:
        connector = sock._connector
        if connector not in _remembered:
            key = numbers["kind"], numbers["name"]
            _seen[id(connector)] = key, connector
            _add(groups, key, numbers | {"sockets": 1})
    return groups


def _whole(sock: Socket) -> Any:
    return sock._whole


def _key(sock: Socket) -> _Key:
    return type(_whole(sock)).__name__, sock.options.get(opts.socket.name)


def _add(groups: dict[_Key, dict[str, Any]], key: _Key, numbers: Mapping[str, Any]) -> None:
    """Add numbers to those of a group."""
    group = groups.setdefault(key, {"drops": {}})
    for name, number in numbers.items():
        if name in MAXIMA:
            group[name] = max(group.get(name, 0), number)
        elif isinstance(number, int):
            group[name] = group.get(name, 0) + number
    add_drops(group["drops"], numbers["drops"])


def _filled(key: _Key, group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with all keys that a Socket has, whether or not one of its sockets is open."""
    zeros = dict.fromkeys((*COUNTERS, *GAUGES, *MAXIMA), 0)
    return {"kind": key[0], "name": key[1], **zeros, **group}


def _counted(connector: Connector) -> dict[str, Any]:
    """Return the counters of a socket."""
    return as_dict(connector.counters()) | connector.endpoint_totals()


def _remember(key: _Key, connector: Connector) -> None:
    """Add the counters of a socket that is not open any more to the sums, once."""
    if connector not in _remembered:
        _remembered.add(connector)
        _add(_closed, key, _counted(connector))


def _closed_now(sock: Socket) -> None:
    """Add the counters of a socket that has just closed to the sums."""
    connector = sock._connector
    with _lock:
        known = _seen.pop(id(connector), None)
        _remember(known[0] if known is not None else _key(sock), connector)


def _forget() -> None:
    """Forget everything in a forked child: the parent has counted it."""
    global _lock
    _lock = _new_lock()
    _closed.clear()
    _remembered.clear()
    _seen.clear()


on_closed.append(_closed_now)
os.register_at_fork(after_in_child=_forget)


# The loop


def _lag_dict(sockets: Iterable[Socket]) -> dict[str, Any] | None:
    """Return how late the loop of this process is. Of several threads' loops: the latest one, and the sums of all."""
    hubs = {sock._connector.hub for sock in sockets}
    own = own_hub()
    if own is not None:
        hubs.add(own)
    lags = [lag.summary() for hub in hubs if (lag := lag_of(hub)) is not None]
    sums = add_lags(
        {"count": lag.looks, "sum": lag.total, "buckets": [*zip(BUCKETS, lag.buckets, strict=True)]} for lag in lags
    )
    return None if sums is None else lag_stats(max(lags, key=lambda lag: lag.maximum)) | sums


# The log


def log_stats(interval: float = 60.0, level: int = logging.INFO) -> Callable[[], None]:
    """Log a line for each group of sockets, every ``interval`` seconds: rates, queues and losses of that time.

    The logger is ``gmultisocket.stats``. Each record has the attribute ``stats``, a dict of the numbers. Does not
    block.

    Returns:
        A function that ends it.
    """
    if not interval > 0:
        raise ValueError(f"interval is a number of seconds above 0, not {interval!r}")
    log = _StatsLog(level)
    periodic = Periodic(lambda: interval, log.write)
    periodic.start()
    return periodic.stop


class _StatsLog:
    """Writes what has changed since the line before."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._at = monotonic()
        self._before = by_key(process_stats()["groups"])

    def write(self, elapsed: float, late: float) -> None:
        """Write the lines."""
        now = monotonic()
        seconds, self._at = max(now - self._at, 1e-3), now
        report = process_stats()
        lag = report["loop_lag"]
        before, self._before = self._before, by_key(report["groups"])
        for key, group in self._before.items():
            self._write(group, before.get(key, {}), seconds, lag)

    def _write(self, group: dict[str, Any], before: Mapping[str, Any], seconds: float, lag: dict[str, Any]) -> None:
        grown = growth(before, group)
        rates = {name: grown[name] / seconds for name in COUNTERS}
        drops = {reason: count for reason, count in grown["drops"].items() if count}
        label = f"{group['kind']} {group['name']}".strip()
        text = (
            f"{group['pipes']} pipes, {group['full_pipes']} full; "
            f"sent {rates['messages_sent']:.1f} msg/s {rates['bytes_sent'] / 1024:.1f} KiB/s, "
            f"received {rates['messages_received']:.1f} msg/s {rates['bytes_received'] / 1024:.1f} KiB/s; "
            f"queued {group['send_queue']} to send, {group['recv_queue']} to receive"
        )
        if drops:
            text += "; dropped " + ", ".join(f"{count} {reason}" for reason, count in sorted(drops.items()))
        text += f"; loop lag p99 {lag['p99'] * 1e3:.1f} ms, max {lag['max'] * 1e3:.1f} ms"
        numbers = {**group, "seconds": seconds, "rates": rates, "drops": drops, "loop_lag": lag}
        logger.log(self._level, "%s: %s", label, text, extra={"stats": numbers})
