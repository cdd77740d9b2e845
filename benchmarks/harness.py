"""Start processes, repeat runs in alternating order, and keep what came out. Knows no library and no work.

A *row* is one piece of work; each of its *entries* does it by one library. A *run* is one entry doing it once, in
processes started for it alone and ended after it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .certificate import write_certificate

__all__ = [
    "Entry",
    "Failed",
    "Figure",
    "Outcome",
    "Peer",
    "Result",
    "Row",
    "RunTimeout",
    "Scale",
    "address_of",
    "measure",
    "started",
]

ROOT = Path(__file__).resolve().parent.parent
#: Of the median: a wider spread between the best and the worst run is told.
NOTEWORTHY_SPREAD = 0.2
#: While one peer is waited for, seconds until the others are looked at.
_LOOK_AROUND = 0.25


class Failed(Exception):
    """A run came to no result."""


class RunTimeout(Failed):
    """A peer did not do its part in time."""


@dataclass(frozen=True)
class Scale:
    """How much work a run does.

    Attributes:
        quick: whether only to see that everything works.
        seconds: when a run is given up.
    """

    quick: bool
    seconds: float

    def count(self, full: int, quick: int) -> int:
        """Return one of two amounts."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Outcome:
    """What one run measured.

    Attributes:
        value: in the row's unit.
        size: the content bytes of a message, as the receiver counted them; 0 where there is no message.
    """

    value: float
    size: int = 0


@dataclass(frozen=True)
class Entry:
    """One library in a row.

    Attributes:
        name: as the table shows it.
        run: does the work once.
        contestant: the adapter that it needs, for ``--only`` and to see whether the library is installed.
    """

    name: str
    run: Callable[[Scale], Outcome]
    contestant: str


@dataclass(frozen=True)
class Figure:
    """A ratio to reach: the value of one entry by that of another, in the same row.

    Attributes:
        entry: whose value is divided.
        by: by whose.
        at_least: the smallest ratio that is good, or
        at_most: the largest.
        limit: the largest value of ``entry`` that is good, in the row's unit; instead of a ratio.
    """

    entry: str
    by: str = ""
    at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table of works.

    Attributes:
        name: for the command line.
        title: for people; ``{size}`` stands for the measured content bytes.
        unit: of the values.
        more_is_better: or less.
        repeats: of every entry.
        seconds: when a run is given up.
    """

    name: str
    title: str
    unit: str
    more_is_better: bool
    entries: Sequence[Entry]
    figures: Sequence[Figure] = ()
    repeats: int = 5
    seconds: float = 10.0


@dataclass
class Result:
    """What the runs of one entry came to. Without values, ``note`` says why."""

    entry: Entry
    values: list[float] = field(default_factory=list)
    size: int = 0
    note: str = ""

    @property
    def median(self) -> float | None:
        """The middle one of the runs."""
        return median(self.values) if self.values else None

    @property
    def spread(self) -> float:
        """The distance between the best and the worst run, as a part of the median."""
        return (max(self.values) - min(self.values)) / median(self.values) if self.values else 0.0

    @property
    def remark(self) -> str:
        """The note, or what is to be said about the spread."""
        if not self.note and self.spread > NOTEWORTHY_SPREAD:
            return f"spread {self.spread:.0%}"
        return self.note


def measure(row: Row, scale: Scale, repeats: int, missing: Callable[[Entry], str]) -> list[Result]:
    """Run every entry of a row ``repeats`` times, in alternating order.

    Args:
        row: what to run.
        scale: how much of it.
        repeats: how often.
        missing: says why an entry cannot run, "" if it can.
    """
    results = [Result(entry, note=missing(entry)) for entry in row.entries]
    for turn in range(repeats):
        for result in results if turn % 2 == 0 else reversed(results):
            # Who hung or failed once is not waited for again.
            if not result.note:
                _run(result, scale)
    return results


def _run(result: Result, scale: Scale) -> None:
    _show(f"  {result.entry.name} ...")
    try:
        outcome = result.entry.run(scale)
    except Failed as error:
        result.note = str(error)
        return
    finally:
        _show("")
    if result.size not in (0, outcome.size):
        raise AssertionError(f"{result.entry.name} received contents of {result.size} bytes, now of {outcome.size}")
    result.size = outcome.size
    result.values.append(outcome.value)


def _show(progress: str) -> None:
    """Say on a terminal what is going on, in a line that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


class Peer:
    """A fresh process that does one part of a run; see :mod:`benchmarks.worker`.

    Args:
        task: ``"module:function"``.
        scale: says how long to wait for what it says, from its start on.
        peers: all of the run; where one has failed, none is waited for.
        arguments: of the function.
    """

    def __init__(self, task: str, scale: Scale, peers: Sequence[Peer], arguments: dict[str, Any]) -> None:
        self._task = task
        self._patience = scale.seconds
        self._deadline = time.monotonic() + scale.seconds
        self._peers = peers
        self._said = b""
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task, json.dumps(arguments)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0,
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """Wait for the next thing that it says.

        Raises:
            RunTimeout: it said nothing in time.
            Failed: it, or another peer of the run, has failed.
        """
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise RunTimeout(f"hangs: not done in {self._patience:g} s")
            if not select.select([self._process.stdout], [], [], min(left, _LOOK_AROUND))[0]:
                for peer in self._peers:
                    peer._check()
                continue
            data = os.read(self._process.stdout.fileno(), 65536)
            if not data:
                raise self._failure()
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def tell(self, **fields: Any) -> None:
        """Tell it something; nothing in particular means that it is time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:
            raise self._failure() from None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            stream.close()

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def _check(self) -> None:
        """Raise if the process has failed."""
        if self._process.poll():
            raise self._failure()

    def _failure(self) -> Failed:
        """Return what the process said as it ended."""
        self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return Failed(f"failed: {lines[-1] if lines else f'{self._task} ended with {self._process.returncode}'}")


@contextmanager
def address_of(transport: str) -> Iterator[str]:
    """Give an address to listen at: ipc in a folder of its own, the others at a port that the system chooses.

    That of tls+tcp names a file with a certificate, its key, and the authority that a dialer has to trust.

    Raises:
        Failed: what makes certificates is not installed.
    """
    if transport in ("tcp", "ws"):
        yield f"{transport}://127.0.0.1:0"
        return
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        if transport == "ipc":
            yield f"ipc://{folder}/socket"
        else:
            file = Path(folder, "certificate.pem")
            try:
                write_certificate(file)
            except ImportError as error:
                raise Failed(str(error)) from None
            yield f"{transport}://127.0.0.1:0?transport.tls.certfile={file}"


@contextmanager
def started(scale: Scale) -> Iterator[Callable[..., Peer]]:
    """Give a function ``start(task, **arguments) -> Peer``, and end all that it started."""
    peers: list[Peer] = []

    def start(task: str, **arguments: Any) -> Peer:
        peers.append(Peer(task, scale, peers, arguments))
        return peers[-1]

    try:
        yield start
    finally:
        for peer in reversed(peers):
            peer.end()
