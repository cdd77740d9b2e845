"""The numbers of all planes of a process, by what they are connected to.

A program may make any number of planes, and close them. So those with the same URL are added up, and what closed ones
have counted stays: the counters never fall.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from ..counters import add_drops
from ..loop import owner
from .link import shown

__all__ = ["PLANE_COUNTERS", "add", "add_up_planes", "counted", "plane_stats", "remove"]

#: What only grows, by the names of :class:`~gmultisocket.backplane.PlaneCounters`. ``dropped`` is a dict of such
#: numbers.
PLANE_COUNTERS: Final = ("sent", "confirmed", "received", "echoes", "duplicates", "gaps")
#: What goes up and down, and is added up.
_GAUGES: Final = ("planes", "healthy_planes", "unconfirmed", "buffered")


class _Plane(Protocol):
    """The part of a Backplane that is used here."""

    @property
    def healthy(self) -> bool: ...

    @property
    def counters(self) -> Any: ...


#: Held while the planes below are read and changed: another thread may ask. Nobody switches greenlets meanwhile.
_lock = owner.original("_thread", "allocate_lock")()
#: With their URLs, without passwords.
_open: dict[int, tuple[str, _Plane]] = {}
#: What closed planes have counted.
_closed: dict[str, dict[str, Any]] = {}


def add(plane: _Plane, url: str) -> None:
    """Count a plane that is used from now on, as one of those with a URL."""
    with _lock:
        _open[id(plane)] = shown(url), plane


def remove(plane: _Plane) -> None:
    """Remove a plane that has closed. What it has counted stays in the sums."""
    with _lock:
        url, _ = _open.pop(id(plane))
        _add(_closed, url, counted(plane.counters._asdict()))


def plane_stats() -> list[dict[str, Any]]:
    """Return the numbers of the planes of this process, as plain dicts, one for each URL that was used.

    May be called in any thread, and never blocks.

    Returns:
        For each: ``"url"``, without a password; ``"planes"`` and ``"healthy_planes"``, the numbers of open ones; the
        counters of :class:`~gmultisocket.backplane.PlaneCounters`, with those of closed planes; and ``"lag"``, the
        longest one in seconds.
    """
    with _lock:
        found = {url: {**numbers, "dropped": {**numbers["dropped"]}} for url, numbers in _closed.items()}
        for url, plane in _open.values():
            _add(found, url, {**plane.counters._asdict(), "planes": 1, "healthy_planes": int(plane.healthy)})
    return _listed(found)


def counted(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return, of the numbers of a plane that has ended, those that still say something.

    What was not confirmed will not be. What was buffered has been dropped, or has died with its process.
    """
    return {name: numbers[name] for name in (*PLANE_COUNTERS, "unconfirmed", "dropped")}


def add_up_planes(reports: Iterable[Iterable[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the sums over several processes.

    Args:
        reports: what :func:`plane_stats` returns in each.
    """
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        for numbers in report:
            _add(found, numbers["url"], numbers)
    return _listed(found)


def _add(found: dict[str, dict[str, Any]], url: str, numbers: Mapping[str, Any]) -> None:
    """Add numbers to those of a URL."""
    sums = found.setdefault(url, {"dropped": {}})
    for name in (*PLANE_COUNTERS, *_GAUGES):
        sums[name] = sums.get(name, 0) + numbers.get(name, 0)
    sums["lag"] = max(sums.get("lag", 0.0), numbers.get("lag", 0.0))
    add_drops(sums["dropped"], numbers["dropped"])


def _listed(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"url": url, **numbers} for url, numbers in sorted(found.items())]


def _forget() -> None:
    """Forget everything in a forked child: the parent has counted it."""
    global _lock
    _lock = owner.original("_thread", "allocate_lock")()
    _open.clear()
    _closed.clear()


os.register_at_fork(after_in_child=_forget)
