"""Start processes, repeat runs in alternating order, and keep the results. This module names no library and no work.

A *row* is one piece of work; each of its *entries* does it with one library. A *run* starts fresh processes for one
entry, does the work, and ends the processes. A run that is compared (:mod:`benchmarks.compare`) does a small part of
the work several times, in *rounds*; every other run has one round.
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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from statistics import median
from typing import Any

from .certificate import write_certificate

__all__ = [
    "Amount",
    "Entry",
    "Failed",
    "Figure",
    "Outcome",
    "Peer",
    "Plan",
    "Result",
    "Round",
    "Row",
    "Run",
    "RunTimeout",
    "address_of",
    "measure",
    "started",
]

ROOT = Path(__file__).resolve().parent.parent
#: The table shows a spread between the best and the worst run that is wider than this part of the median.
MAX_QUIET_SPREAD = 0.2
#: Seconds between two checks of the other peers while the conductor waits for one.
_CHECK_INTERVAL = 0.25


class Failed(Exception):
    """A run has no result."""


class RunTimeout(Failed):
    """A peer did not do its part in time."""


class Amount(Enum):
    """How much work a round does."""

    #: All of it, for the table.
    FULL = "full"
    #: 20 to 50 ms of it, for one of many rounds of a comparison.
    PART = "part"
    #: A little, only to show that everything works.
    QUICK = "quick"


@dataclass(frozen=True)
class Plan:
    """How to do a run.

    Attributes:
        amount: how much work a round does.
        seconds: a run that takes longer is ended.
        folder: where the workers start, and import ``gmultisocket`` and ``benchmarks`` from.
    """

    amount: Amount
    seconds: float
    folder: Path = ROOT

    def count(self, full: int, *, part: int, quick: int) -> int:
        """Return the one of three counts that is for this plan's amount."""
        return {Amount.FULL: full, Amount.PART: part, Amount.QUICK: quick}[self.amount]


@dataclass(frozen=True)
class Outcome:
    """The result of one round.

    Attributes:
        value: in the row's unit.
        size: the content bytes of a message, as the receiver counted them; 0 if the work has no messages.
    """

    value: float
    size: int = 0


#: Does the work once and measures it.
Round = Callable[[], Outcome]
#: Starts the processes of a run, and ends them.
Run = AbstractContextManager[Round]


@dataclass(frozen=True)
class Entry:
    """One library in a row.

    Attributes:
        name: as the table shows it.
        run: starts a run.
        contestant: the adapter that it needs, for ``--only`` and to check that the library is installed.
        reference: the row has this entry only to set another one against it. A comparison of two trees skips it.
    """

    name: str
    run: Callable[[Plan], Run]
    contestant: str
    reference: bool = False


@dataclass(frozen=True)
class Figure:
    """A goal: for the ratio of two entries' values in the same row, or for the value of one entry.

    Attributes:
        entry: the name of the entry whose value is the numerator.
        by: the name of the entry whose value is the denominator.
        at_least: the smallest good ratio, or
        at_most: the largest good ratio.
        limit: the largest good value of ``entry``, in the row's unit; instead of a ratio, or
        floor: the smallest good value.
    """

    entry: str
    by: str = ""
    at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None
    floor: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table of works.

    Attributes:
        name: for the command line.
        title: for people; ``{size}`` stands for the measured content bytes.
        unit: of the values.
        more_is_better: whether the larger value is the better one.
        repeats: how many runs each entry has.
        seconds: a run that takes longer is ended.
        single_round: more rounds would measure the same: a comparison does one.
    """

    name: str
    title: str
    unit: str
    more_is_better: bool
    entries: Sequence[Entry]
    figures: Sequence[Figure] = ()
    repeats: int = 5
    seconds: float = 10.0
    single_round: bool = False


@dataclass
class Result:
    """The results of one entry's runs. If there are no values, ``note`` says why."""

    entry: Entry
    values: list[float] = field(default_factory=list)
    size: int = 0
    note: str = ""

    @property
    def median(self) -> float | None:
        """The median of the runs."""
        return median(self.values) if self.values else None

    @property
    def spread(self) -> float:
        """The difference between the best and the worst run, as a part of the median."""
        return (max(self.values) - min(self.values)) / median(self.values) if self.values else 0.0

    @property
    def remark(self) -> str:
        """The note, or the spread if it is wide."""
        if not self.note and self.spread > MAX_QUIET_SPREAD:
            return f"spread {self.spread:.0%}"
        return self.note


def measure(row: Row, plan: Plan, repeats: int, missing: Callable[[Entry], str]) -> list[Result]:
    """Run every entry of a row ``repeats`` times, in alternating order.

    Args:
        row: the row to run.
        plan: how to run it.
        repeats: how many runs each entry has.
        missing: returns why an entry cannot run, "" if it can.
    """
    results = [Result(entry, note=missing(entry)) for entry in row.entries]
    for turn in range(repeats):
        for result in results if turn % 2 == 0 else reversed(results):
            # An entry that hung or failed once does not run again.
            if not result.note:
                _run(result, plan)
    return results


def _run(result: Result, plan: Plan) -> None:
    _show(f"  {result.entry.name} ...")
    try:
        with result.entry.run(plan) as do_round:
            outcome = do_round()
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
    """Show progress, if stderr is a terminal, in a line that the next call replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{progress}", end="", file=sys.stderr, flush=True)


class Peer:
    """A fresh process that does one part of a run; see :mod:`benchmarks.worker`.

    Args:
        task: ``"module:function"``.
        plan: of the run; its time starts with the process.
        peers: all peers of the run; if one fails, waiting for another one fails too.
        arguments: of the function.
    """

    def __init__(self, task: str, plan: Plan, peers: Sequence[Peer], arguments: dict[str, Any]) -> None:
        self._task = task
        self._seconds = plan.seconds
        self._deadline = time.monotonic() + plan.seconds
        self._peers = peers
        self._said = b""
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", task, json.dumps(arguments)],
            cwd=plan.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0,
        )  # fmt: skip

    def hear(self) -> dict[str, Any]:
        """Block until the process sends fields, and return them.

        Raises:
            RunTimeout: the process sent nothing in time.
            Failed: the process, or another peer of the run, has failed.
        """
        assert self._process.stdout is not None
        while b"\n" not in self._said:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise RunTimeout(f"hangs: not done in {self._seconds:g} s")
            if not select.select([self._process.stdout], [], [], min(left, _CHECK_INTERVAL))[0]:
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
        """Send fields to the process. A call without fields starts its next step."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
        except BrokenPipeError:
            raise self._failure() from None

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            assert stream is not None
            stream.close()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def _check(self) -> None:
        """Raise if the process has failed."""
        if self._process.poll():
            raise self._failure()

    def _failure(self) -> Failed:
        """Return an error with the last line that the process wrote to stderr."""
        self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return Failed(f"failed: {lines[-1] if lines else f'{self._task} ended with {self._process.returncode}'}")


@contextmanager
def address_of(transport: str) -> Iterator[str]:
    """Yield an address to listen at: for ipc in a new folder, for the others at a port that the system chooses.

    An address of tls+tcp or wss names a file with a certificate, its key, and the authority that a dialer must trust.

    Raises:
        Failed: trustme, which makes certificates, is not installed.
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
def started(plan: Plan) -> Iterator[Callable[..., Peer]]:
    """Yield a function ``start(task, **arguments) -> Peer``; at the end, kill every process that it started."""
    peers: list[Peer] = []

    def start(task: str, **arguments: Any) -> Peer:
        peers.append(Peer(task, plan, peers, arguments))
        return peers[-1]

    try:
        yield start
    finally:
        for peer in reversed(peers):
            peer.end()
