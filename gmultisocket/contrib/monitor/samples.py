"""What the page shows: samples of the numbers of all processes, published while somebody looks.

There are two kinds of topics, both retained. ``now`` has the details of the latest sample. ``plot.0`` to ``plot.119``
have the few numbers of each sample that are plotted, so a page that opens has the last two minutes at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic, thread_time
from typing import Any, Final

from ... import stats, usercode
from ...core.pipes.pipe import Pipe
from ...core.stats import slowest_pipes
from ...errors import snippet
from ...loop.periodic import Periodic
from ...protocol.pubsub import Pub
from ..reports import Reports

__all__ = ["PeerNames", "Sampler"]

#: Returns what a page calls the peer of a pipe; "" for nothing but its address.
PeerNames = Callable[[Pipe], str]

#: The ``socket.name`` of the page's own Pub, which the page does not show.
_NAME: Final = "monitor"
#: Samples that a page gets when it opens.
_SLOTS: Final = 120
#: Seconds between two samples.
_INTERVAL: Final = 1.0
#: Seconds before the first one.
_AT_ONCE: Final = 0.001
#: Seconds for which samples are made, and processes look for slow pipes, after a page was last open.
_LINGER: Final = 30.0
#: Pipes that are shown: those that are most behind.
_SLOWEST: Final = 10
#: To look for them may take this part of a thread's processor time: with very many pipes it is done less often.
_SHARE: Final = 0.02
#: Groups that are shown: those with most pipes.
_MAX_GROUPS: Final = 100
#: What is plotted of a group: rates, and numbers as they are.
_PLOTTED_RATES: Final = ("messages_sent", "messages_received", "bytes_sent", "bytes_received")
_PLOTTED: Final = ("pipes", "send_queue")

_Key = tuple[str, str]


class Sampler:
    """Makes samples, and publishes them while somebody subscribes.

    Args:
        reports: of all processes; None for this one alone.
        peer_names: names the peers of pipes.
    """

    def __init__(self, reports: Reports | None, peer_names: PeerNames | None) -> None:
        self._reports = reports
        self._peer_names = peer_names
        self._rates = _Rates()
        self._slot = 0
        #: When somebody has looked, here or in another process.
        self._watched_at = -_LINGER
        self._sampled_at = -_LINGER
        self._next_pause = _INTERVAL
        self._slowest: list[dict[str, Any]] = []
        self._pub: Pub | None = None
        self._samples = Periodic(lambda: self._next_pause if self._watched else 0.0, self._sample)
        self._finder = Periodic(lambda: self._finder_pause if self._watched else 0.0, self._find_slowest)
        self._finder_pause = _INTERVAL
        if reports is not None:
            reports.add(self._more)

    def pub(self) -> Pub:
        """Return the Pub that publishes the samples. The first call makes it."""
        if self._pub is None:
            self._pub = Pub({"socket.name": _NAME, "socket.send_overflow": "drop_oldest"})
            self._pub.on_interest(self._interest)
        return self._pub

    def close(self) -> None:
        """Stop. Does not block. May be repeated."""
        if self._reports is not None:
            self._reports.remove(self._more)
        self._samples.stop()
        self._finder.stop()
        if self._pub is not None:
            self._pub.close_nowait()

    # While somebody looks

    def _interest(self, pattern: str, wanted: bool) -> None:
        # A page subscribes to the plots as well.
        if wanted and pattern == "now":
            if monotonic() - self._sampled_at > _LINGER:
                self._forget_plots()
            self._watched_at = monotonic()
            self._next_pause = _AT_ONCE
            self._samples.start()
            self._finder.start()

    def _forget_plots(self) -> None:
        self._rates = _Rates()
        if self._pub is not None:
            for slot in range(_SLOTS):
                self._pub.unretain(f"plot.{slot}")

    @property
    def _watched(self) -> bool:
        return monotonic() - self._watched_at <= _LINGER

    def _more(self) -> dict[str, Any]:
        """Return what the report of this process has for pages, which may be open in another process."""
        assert self._reports is not None
        with suppress(OSError):
            if time.time() - self._reports.watched.stat().st_mtime < _LINGER:
                self._watched_at = monotonic()
                self._finder.start()
        return {"slowest": self._slowest if self._watched else []}

    # Samples

    def _sample(self, elapsed: float, late: float) -> None:
        pub = self._pub
        self._next_pause = _INTERVAL
        if pub is None or pub.closed:
            return
        self._sampled_at = monotonic()
        if self._reports is None:
            report = stats.process_stats()
            reports = [report | {"id": "", "time": time.time(), "slowest": self._slowest}]
            everything = report["groups"]
        else:
            reports, ended = self._reports.read()
            everything = stats.add_up([*reports, ended])
        if pub.reach("now"):
            self._watched_at = monotonic()
            if self._reports is not None:
                self._reports.watched.touch(0o600)
        has_rates = self._rates.update(reports)
        groups = [self._shown(group) for group in everything if group["name"] != _NAME]
        groups.sort(key=lambda group: -group["pipes"])
        now = {
            "time": time.time(),
            "groups": groups[:_MAX_GROUPS],
            "left_out": max(0, len(groups) - _MAX_GROUPS),
            "processes": [self._process(report) for report in reports],
            "slowest": _slowest_of(reports),
        }
        plotted = {
            "time": now["time"],
            "lag": max((report["loop_lag"]["last"] for report in reports if report["loop_lag"]), default=0.0),
            "groups": [_plotted(group) for group in groups[:_MAX_GROUPS]],
        }
        pub.publish("now", json.dumps(now).encode(), retain=True)
        if has_rates:
            pub.publish(f"plot.{self._slot}", json.dumps(plotted).encode(), retain=True)
            self._slot = (self._slot + 1) % _SLOTS

    def _shown(self, group: dict[str, Any]) -> dict[str, Any]:
        rates, drop_rates = self._rates.of((group["kind"], group["name"]))
        return group | {"rates": rates, "drop_rates": drop_rates}

    def _process(self, report: Mapping[str, Any]) -> dict[str, Any]:
        groups = [group for group in report["groups"] if group["name"] != _NAME]
        return {
            "pid": report["pid"],
            "age": max(0.0, time.time() - report["time"]),
            "pipes": sum(group["pipes"] for group in groups),
            "send_queue": sum(group["send_queue"] for group in groups),
            "lag": report["loop_lag"],
        }

    # The slowest pipes

    def _find_slowest(self, elapsed: float, late: float) -> None:
        began = thread_time()
        found = []
        for kind, name, sock in stats.own_sockets():
            if name != _NAME:
                pipes = slowest_pipes(sock.pipes, _SLOWEST)
                found += [self._pipe(pipe) | {"kind": kind, "name": name} for pipe in pipes]
        self._slowest = sorted(found, key=_behind)[:_SLOWEST]
        self._finder_pause = min(max(_INTERVAL, (thread_time() - began) / _SHARE), _LINGER / 3)

    def _pipe(self, pipe: Pipe) -> dict[str, Any]:
        numbers = pipe.stats()
        return {
            "id": pipe.id,
            "peer": snippet(pipe.peer_address),
            "called": self._name(pipe),
            "full": pipe.full,
            "drops": sum(numbers["drops"].values()),
            **{key: numbers[key] for key in ("send_queue", "send_queue_bytes", "unacknowledged", "bytes_sent")},
        }

    def _name(self, pipe: Pipe) -> str:
        if self._peer_names is None:
            return ""
        try:
            return snippet(str(self._peer_names(pipe)))
        except Exception as error:
            text = "peer_names failed"
            usercode.report("gmultisocket.contrib.monitor", text, error, self, pipe_id=pipe.id, peer=pipe.peer_address)
            return ""


class _Rates:
    """How fast counters grow, from the reports of each process at its own times."""

    def __init__(self) -> None:
        #: By the id of a process: its latest report, the seconds since the one before, and what has grown in them.
        self._known: dict[str, tuple[Mapping[str, Any], float, dict[_Key, dict[str, Any]]]] = {}

    def update(self, reports: list[dict[str, Any]]) -> bool:
        """Take the latest reports of all living processes. Return whether there is any rate."""
        known, self._known = self._known, {}
        for report in reports:
            before, seconds, grown = known.get(report["id"], (report, 0.0, {}))
            elapsed = report["time"] - before["time"]
            if elapsed > 0:
                seconds, grown = elapsed, _grown(before, report)
            self._known[report["id"]] = report, seconds, grown
        return any(grown for _, _, grown in self._known.values())

    def of(self, key: _Key) -> tuple[dict[str, float], dict[str, float]]:
        """Return the rates of a group by counter, and those of its drops by reason; all per second."""
        rates = dict.fromkeys(stats.COUNTERS, 0.0)
        drops: dict[str, float] = {}
        for _, seconds, grown in self._known.values():
            if key in grown:
                group = grown[key]
                for name in rates:
                    rates[name] += group[name] / seconds
                for reason, count in group["drops"].items():
                    drops[reason] = drops.get(reason, 0.0) + count / seconds
        return rates, drops


def _grown(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[_Key, dict[str, Any]]:
    """Return what has grown between two reports of a process, by group."""
    old = stats.by_key(before["groups"])
    return {key: stats.growth(old.get(key, {}), group) for key, group in stats.by_key(after["groups"]).items()}


def _plotted(group: Mapping[str, Any]) -> list[Any]:
    rates = [round(group["rates"][name], 1) for name in _PLOTTED_RATES]
    dropped = round(sum(group["drop_rates"].values()), 1)
    return [group["kind"], group["name"], *rates, *(group[name] for name in _PLOTTED), dropped]


def _slowest_of(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [pipe | {"pid": report["pid"]} for report in reports for pipe in report.get("slowest", ())]
    return sorted(found, key=_behind)[:_SLOWEST]


def _behind(pipe: Mapping[str, Any]) -> tuple[int, int]:
    return -pipe["send_queue"], -pipe["unacknowledged"]
