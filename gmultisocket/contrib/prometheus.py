"""Metrics for Prometheus: a collector for ``prometheus_client`` (the extra ``prometheus``).

In a program that is one process::

    from prometheus_client import REGISTRY
    from gmultisocket.contrib.prometheus import Collector

    REGISTRY.register(Collector())

With several workers a scrape reaches only one of them. prometheus_client's own way to add workers up leaves collectors
out. With a folder that all workers share, this one answers for all of them, in any worker; see ``reports.py``::

    REGISTRY.register(Collector("/run/app/stats"))

All numbers are sums over the sockets of a kind with the same name (the option ``socket.name``), and over all workers.
There are none for single pipes: their number, and so that of the time series, is the choice of peers. Those of planes
are sums over the planes with the same URL.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..backplane.totals import add_up_planes, plane_stats
from ..stats import add_lags, add_up, process_stats
from .reports import reports_in

__all__ = ["Collector"]


class _Table(NamedTuple):
    """The metrics of things of one kind. By key of their statistics: the name of the metric, and what it says.

    Attributes:
        prefix: of the metrics' names.
        labels: the keys whose values are the labels.
        counters: the metrics that never fall.
        gauges: the other metrics.
        drops: the key of the drops by reason, and what they say.
    """

    prefix: str
    labels: tuple[str, ...]
    counters: Mapping[str, tuple[str, str]]
    gauges: Mapping[str, tuple[str, str]]
    drops: tuple[str, str]


_GROUPS: Final = _Table(
    prefix="",
    labels=("kind", "name"),
    counters={
        "messages_sent": ("messages_sent", "Messages that were given to the kernel, or to a peer in this process."),
        "bytes_sent": ("sent_bytes", "Bytes of these messages."),
        "messages_received": ("messages_received", "Messages that arrived whole."),
        "bytes_received": ("received_bytes", "Bytes that arrived."),
        "messages_unconfirmed": (
            "messages_unconfirmed",
            "Messages sent that the peer's kernel had not acknowledged when their pipe closed. An estimate.",
        ),
        "bytes_unconfirmed": ("unconfirmed_bytes", "Bytes that were not acknowledged when their pipe closed."),
        "accepted": ("connections_accepted", "Connections that listeners have accepted."),
        "refused": ("connections_refused", "Connections that were refused, or that broke before they were pipes."),
        "attempts": ("dial_attempts", "How often dialers have tried to connect."),
        "reconnects": ("reconnects", "How often dialers have connected again."),
    },
    gauges={
        "sockets": ("sockets", "Open sockets."),
        "pipes": ("pipes", "Open pipes: connected peers."),
        "full_pipes": ("full_pipes", "Pipes whose send queue is full."),
        "dialers": ("dialers", "Open dialers."),
        "listeners": ("listeners", "Open listeners."),
        "send_queue": ("send_queue_messages", "Messages that wait to leave, in all pipes."),
        "send_queue_bytes": ("send_queue_bytes", "Bytes that wait to leave, in all pipes."),
        "longest_send_queue": ("longest_send_queue_messages", "Messages that wait to leave in the pipe that has most."),
        "recv_queue": ("recv_queue_messages", "Messages that have arrived and that the program has not received yet."),
        "subscriptions": ("subscriptions", "Subscriptions at a Pub, or of a Sub."),
        "in_flight": ("requests_in_flight", "Requests of a Req that have not ended."),
        "running": ("requests_running", "Requests that a Rep or a Respondent is answering."),
        "connections": ("stream_connections", "Connections of a Stream."),
    },
    drops=("drops", "Messages lost on this side, by reason."),
)
_PLANES: Final = _Table(
    prefix="plane_",
    labels=("url",),
    counters={
        "sent": ("messages_sent", "Publications of these processes."),
        "confirmed": ("messages_confirmed", "Publications of these processes that the server has got."),
        "received": ("messages_received", "Publications of other processes."),
        "echoes": ("echoes", "Publications that came back to their process, and were ignored."),
        "duplicates": ("duplicates", "Publications that came again, and were ignored."),
        "gaps": ("gaps", "How often publications of other processes may have been missed."),
    },
    gauges={
        "planes": ("open", "Open planes that are in use."),
        "healthy_planes": ("healthy", "Of these, planes whose engine serves and confirms all."),
        "unconfirmed": ("messages_unconfirmed", "Publications not confirmed yet, or not when a connection was lost."),
        "buffered": ("messages_buffered", "Publications that wait while the engine is away or slow."),
        "lag": ("lag_seconds", "Time since the server has last confirmed something, at the plane that waits longest."),
    },
    drops=("dropped", "Publications given up, by reason."),
)


class Collector:
    """Collects the numbers of all sockets of this process, or of all processes that use the same folder.

    Args:
        folder: shared by the workers; see :func:`~gmultisocket.contrib.reports.reports_in`. None: this process only.
        prefix: of the metrics' names.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, prefix: str = "gmultisocket") -> None:
        self._reports = None if folder is None else reports_in(folder)
        self._prefix = prefix

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values: a registry finds with it that a name is taken."""
        return self._metrics([], [], [], None)

    def collect(self) -> Iterable[Metric]:
        """Return the metrics. Never blocks.

        Raises:
            OSError: the folder cannot be used.
        """
        if self._reports is None:
            report = process_stats()
            return self._metrics([report], report["groups"], plane_stats(), report["loop_lag"])
        reports, ended = self._reports.read()
        all_reports = [*reports, ended]
        lag = add_lags(report["loop_lag"] for report in all_reports)
        planes = add_up_planes(report["planes"] for report in all_reports)
        return self._metrics(reports, add_up(all_reports), planes, lag)

    def _metrics(
        self, reports: list[dict[str, Any]], groups: list[dict[str, Any]], planes: list[dict[str, Any]],
        lag: dict[str, Any] | None,
    ) -> list[Metric]:  # fmt: skip
        return [
            *self._table(_GROUPS, groups),
            *self._other_numbers(groups),
            *self._table(_PLANES, planes),
            *self._processes(reports),
            *self._loops(reports, lag),
        ]

    def _table(self, table: _Table, things: list[dict[str, Any]]) -> Iterator[Metric]:
        prefix, labels = f"{self._prefix}_{table.prefix}", table.labels
        labelled = [(tuple([thing[label] for label in labels]), thing) for thing in things]
        for family, metrics in ((CounterMetricFamily, table.counters), (GaugeMetricFamily, table.gauges)):
            for key, (name, text) in metrics.items():
                metric = family(prefix + name, text, labels=labels)
                for values, thing in labelled:
                    if key in thing:
                        metric.add_metric(values, thing[key])
                yield metric
        key, text = table.drops
        drops = CounterMetricFamily(f"{prefix}messages_dropped", text, labels=(*labels, "reason"))
        for values, thing in labelled:
            for reason, count in sorted(thing[key].items()):
                drops.add_metric((*values, reason), count)
        yield drops

    def _other_numbers(self, groups: list[dict[str, Any]]) -> Iterator[Metric]:
        others = GaugeMetricFamily(
            f"{self._prefix}_protocol_numbers",
            "Numbers of the program's own protocols.",
            labels=(*_GROUPS.labels, "number"),
        )
        for group in groups:
            for key, value in sorted(group.items()):
                if isinstance(value, int) and key not in _GROUPS.counters and key not in _GROUPS.gauges:
                    others.add_metric((group["kind"], group["name"], key), value)
        yield others

    def _processes(self, reports: list[dict[str, Any]]) -> Iterator[Metric]:
        processes = GaugeMetricFamily(f"{self._prefix}_processes", "Living processes that these numbers are of.")
        age = GaugeMetricFamily(
            f"{self._prefix}_oldest_report_seconds", "Age of the oldest report: a process that hangs makes none."
        )
        if reports:
            processes.add_metric((), len(reports))
            now = time.time()
            age.add_metric((), max(0.0, now - min(report.get("time", now) for report in reports)))
        yield processes
        yield age

    def _loops(self, reports: list[dict[str, Any]], lag: dict[str, Any] | None) -> Iterator[Metric]:
        latest = GaugeMetricFamily(
            f"{self._prefix}_loop_lag_max_seconds", "The longest that a ready greenlet has waited in the last minute."
        )
        waits = HistogramMetricFamily(
            f"{self._prefix}_loop_lag_seconds", "How long ready greenlets wait: a look every tenth of a second."
        )
        worst = [report["loop_lag"]["max"] for report in reports if report["loop_lag"]]
        if worst:
            latest.add_metric((), max(worst))
        if lag is not None:
            buckets = [(str(end), float(count)) for end, count in lag["buckets"]]
            waits.add_metric((), [*buckets, ("+Inf", float(lag["count"]))], lag["sum"])
        yield latest
        yield waits
