"""The numbers of all processes of a server, such as gunicorn's workers: each writes its own into a folder.

The processes share nothing else: no socket, no lock that one could hold while it stands still, and no order in which
they must start. So any of them can answer for all, also while others hang, are killed, or come and go.

* ``<id>.json`` is the latest report of a process, ``<id>.lock`` is locked while the process lives. A report is replaced
  as a whole, so nobody reads half of one.
* ``ended.json`` has the sums of what processes counted that have ended. The next process that reads adds a dead one to
  it, and then removes the dead one's files. The sums say which processes are in them. A reader takes the files first
  and the sums last, and leaves out a process that is in both: it sees each one exactly once, also if others read
  meanwhile.

A process that is killed loses what it has counted since its last report. One that ends in order reports at its end. A
process also reports before it reads. So no counter is ever seen to fall, in any process. Nobody has to clear
the folder up: what it has from before a restart goes on to count.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import thread_time
from typing import Any, Final

from ..backplane.totals import add_up_planes, counted, plane_stats
from ..loop import owner
from ..loop.lag import own_hub
from ..loop.periodic import Periodic
from ..stats import COUNTERS, add_lags, add_up, process_stats

__all__ = ["Reports", "reports_in", "start_all"]

_new_lock = owner.original("_thread", "allocate_lock")
#: Seconds between two reports of a process: the least, and the most.
_INTERVAL: Final = 1.0
_MAX_INTERVAL: Final = 10.0
#: A report may take this part of a thread's processor time: with very many pipes it is made less often.
_SHARE: Final = 0.02
#: Processes that the sums still name, so that no reader counts them twice. More than can end while somebody reads.
_REMEMBERED: Final = 1000
#: Changes with what the files mean. Those of another version are left alone.
_VERSION: Final = 2


class Reports:
    """The reports of all processes that use the same folder. Made by :func:`reports_in`.

    It may be made before a fork: each process has its own report. Nothing is written before :meth:`start` or
    :meth:`read`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._more: list[Callable[[], dict[str, Any]]] = []
        self._pause = _INTERVAL
        #: Names this process, with its lock; None before it has reported.
        self._id: str | None = None
        self._lock = -1
        self._written = 0
        #: Held while a report is made: a thread that is not gevent's may ask. Nobody switches greenlets then.
        self._threads = _new_lock()
        self._periodic: Periodic | None = None
        self._stopped = False

    @property
    def watched(self) -> Path:
        """A file that is touched while somebody looks at more than the numbers; see ``monitor/``."""
        return self._folder / "watched"

    def add(self, more: Callable[[], dict[str, Any]]) -> None:
        """Call ``more()`` for each report of this process. It returns further keys for it, and may not block."""
        self._more.append(more)

    def remove(self, more: Callable[[], dict[str, Any]]) -> None:
        """Undo :meth:`add`. May be repeated."""
        if more in self._more:
            self._more.remove(more)

    def start(self) -> None:
        """Begin to report, every second, in a greenlet. May be repeated. Does not block.

        Has no effect in a thread that has no event loop of gevent's: there, reports are made when somebody reads them.

        Raises:
            OSError: the folder cannot be used.
        """
        if self._periodic is None and not self._stopped and own_hub() is not None:
            self._report()
            self._periodic = Periodic(lambda: self._pause, self._report_again)
            self._periodic.start()

    def stop(self) -> None:
        """Report for the last time: from now on this process counts as one that has ended. Does not block."""
        self._stopped = True
        if self._periodic is not None:
            self._periodic.stop()
            self._periodic = None
        if self._id is not None:
            with suppress(OSError):
                self._report()
            self._release()

    def read(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Report, and return the reports of all living processes, and the sums of those that have ended.

        Never blocks for long: nothing here waits for another process.

        Returns:
            The reports, this process's first, unless it has stopped: what ``process_stats()`` returns, with
            ``"planes"`` (see ``plane_stats()``), ``"time"`` (seconds since 1970) and ``"id"``. And a dict like them for
            all processes that have ended, with only what grows.

        Raises:
            OSError: the folder cannot be used.
        """
        self.start()
        mine = [] if self._stopped else [self._report()]
        others: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        for path in sorted(self._folder.glob("*.json")):
            report = _load(path)
            if report is None or "id" not in report or report["id"] == self._id:
                continue
            (others if self._lives(report["id"]) else dead).append(report)
        ended = self._ended()
        known = set(ended["ids"])
        left = [report for report in dead if report["id"] not in known]
        if dead:
            self._bury(dead)
        living = [*mine, *(report for report in others if report["id"] not in known)]
        return living, _sum_of([ended, *left])

    # This process

    def _report_again(self, elapsed: float, late: float) -> None:
        self._report()

    def _report(self) -> dict[str, Any]:
        """Write the report of this process, and return it."""
        with self._threads:
            return self._make_report()

    def _make_report(self) -> dict[str, Any]:
        began = thread_time()
        report = process_stats() | {"planes": plane_stats()}
        for more in self._more:
            report |= more()
        if self._id is None:
            self._open()
        report |= {"version": _VERSION, "id": self._id, "time": time.time()}
        self._write(f"{self._id}.json", report)
        self._pause = min(max(_INTERVAL, (thread_time() - began) / _SHARE), _MAX_INTERVAL)
        return report

    def _open(self) -> None:
        """Choose an id for this process, and lock the file of that name. A report may be written only after that."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = secrets.token_hex(8)
        path = self._folder / f"{name}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            # Not every file system has locks.
            os.close(lock)
            path.unlink()
            raise
        self._id, self._lock = name, lock
        owner.register(self)

    def _release(self) -> None:
        self._id = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _abandon(self) -> None:
        """Forget the report in a forked child: it and its lock are the parent's."""
        self._release()
        self._periodic = None
        self._threads = _new_lock()

    def _write(self, name: str, content: dict[str, Any]) -> None:
        """Write a file as a whole."""
        self._written += 1
        new = self._folder / f"{self._id}.{self._written}.new"
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w") as file:
                json.dump(content, file)
            os.replace(new, self._folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise

    # Processes that have ended

    def _lives(self, name: str) -> bool:
        try:
            descriptor = os.open(self._folder / f"{name}.lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that two readers do not take each other for the process.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _ended(self) -> dict[str, Any]:
        return _load(self._folder / "ended.json") or {"version": _VERSION, "ids": [], **_sum_of([])}

    def _bury(self, dead: list[dict[str, Any]]) -> None:
        """Add processes to the sums, and remove their files. If another process does so now, leave it to that."""
        with self._alone() as alone:
            if not alone:
                return
            ended = self._ended()
            new = [report for report in dead if report["id"] not in ended["ids"]]
            if new:
                ids = [*ended["ids"], *(report["id"] for report in new)][-_REMEMBERED:]
                self._write("ended.json", _sum_of([ended, *new]) | {"version": _VERSION, "ids": ids})
            for report in dead:
                for path in [*self._folder.glob(f"{report['id']}.*")]:
                    with suppress(OSError):
                        path.unlink()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        descriptor = os.open(self._folder / "ended.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(descriptor)


def _load(path: Path) -> dict[str, Any] | None:
    """Return what a file has; None if it has gone, or means something else."""
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("version") == _VERSION else None


def _sum_of(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of what only grows."""
    groups = [{key: group[key] for key in ("kind", "name", "drops", *COUNTERS)} for group in add_up(reports)]
    planes = [
        {"url": numbers["url"], **counted(numbers)} for numbers in add_up_planes(report["planes"] for report in reports)
    ]
    return {"groups": groups, "planes": planes, "loop_lag": add_lags(report["loop_lag"] for report in reports)}


#: By folder: a process that reported twice into one would be counted twice.
_all: dict[Path, Reports] = {}


def reports_in(folder: str | os.PathLike[str]) -> Reports:
    """Return the reports in a folder, of which each process has one object.

    Args:
        folder: made if it is missing, for this user alone. On a local file system, best one in memory (``/run``,
            ``/dev/shm``).
    """
    path = Path(os.path.abspath(folder))
    reports = _all.get(path)
    if reports is None:
        reports = _all[path] = Reports(path)
    return reports


def start_all() -> None:
    """Begin to report in this process, into all folders that were named in it or before the fork."""
    for reports in list(_all.values()):
        reports.start()


def _stop_all() -> None:
    for reports in list(_all.values()):
        reports.stop()


atexit.register(_stop_all)
