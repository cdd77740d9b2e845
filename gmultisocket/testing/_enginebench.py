"""What the checks of engines use: a server in a process of its own, planes, and their sums."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..backplane import Backplane, Subscription
from ._bench import nothing_left
from ._wait import wait_until

if TYPE_CHECKING:
    from typing import Self

__all__ = ["EngineBench", "ServerProcess", "check_sum", "drain", "wait_waiting"]

#: So that nothing in a check has to wait long.
_QUICK: dict[str, Any] = {"plane.linger": 0.05, "plane.hold": 0.1}


class ServerProcess:
    """A server in a process of its own.

    Args:
        command: starts it, in the foreground.
        is_ready: returns whether it serves. Must not block long.
        limit: seconds that it may take to start or to end.
        log: a file for what it prints since its last start; None for nowhere.
    """

    def __init__(
        self, command: Sequence[str], is_ready: Callable[[], bool], limit: float = 10.0, log: Path | None = None
    ) -> None:
        self._command = [*command]
        self._is_ready = is_ready
        self._limit = limit
        self._log = log
        self._process: Any = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process, 0 if there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it, and block until it serves."""
        # The functions of the standard library, patched or not: nothing here needs the loop.
        with open(self._log or os.devnull, "wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._starting, self._limit, f"{self._command[0]} serves")
        except BaseException:
            self.kill()
            raise

    def _starting(self) -> bool:
        status = self._process.poll()
        assert status is None, f"{self._command} ended with status {status}: {self.log()[-2000:]}"
        return self._is_ready()

    def log(self) -> str:
        """Return what it has printed since its last start."""
        return "" if self._log is None else self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it as an administrator does. Blocks until it has ended. May be repeated."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, and block until it has ended."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the process, as if its machine stood still. Blocks until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{self.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", what="the server stands still")

    def resume(self) -> None:
        """Continue the process after :meth:`pause`. Does not block."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: process.poll() is not None, self._limit, "the server has ended")


def check_sum(plane: Backplane) -> None:
    """Check that no publication of a plane is missing in its counters."""
    counters = plane.counters
    known = counters.confirmed + sum(counters.dropped.values()) + counters.unconfirmed + counters.buffered
    assert counters.sent == known, f"{counters.sent} were sent, and {known} are accounted for: {counters}"


def drain(subscription: Subscription) -> list[tuple[str, bytes]]:
    """Return what waits at a subscription."""
    return [subscription.recv(0) for _ in range(subscription.waiting)]


def wait_waiting(subscription: Subscription, number: int, limit: float) -> None:
    """Wait until so many publications wait at a subscription."""
    wait_until(lambda: subscription.waiting >= number, limit, f"{number} publications wait at {subscription}")


class EngineBench:
    """What all checks of engines use. The attributes are described at ``EngineChecks``."""

    server: ServerProcess | None = None
    url: str = ""
    options: ClassVar[dict[str, Any]] = {}
    limit: ClassVar[float] = 15.0
    patterns: ClassVar[int] = 2000
    history: ClassVar[Sequence[str]] = ()
    exact_gaps: ClassVar[bool] = True

    def make(self, options: dict[str, Any] | None = None, history: Sequence[str] = ()) -> Backplane:
        """Return a new plane."""
        return Backplane(self.url, {**_QUICK, **self.options, **(options or {})}, history=history)

    @contextmanager
    def planes(
        self, count: int, options: dict[str, Any] | None = None, history: Sequence[str] = ()
    ) -> Iterator[list[Backplane]]:
        """Make planes, and wait until each is connected. Afterwards check their sums, and that nothing is left."""
        with nothing_left(self.limit):
            with ExitStack() as stack:
                made = [stack.enter_context(self.make(options, history)) for _ in range(count)]
                for plane in made:
                    plane.connect(self.limit)
                yield made
            for plane in made:
                check_sum(plane)

    def subscribe(self, plane: Backplane, pattern: str, **arguments: Any) -> Subscription:
        """Subscribe, and wait until the server knows."""
        return plane.subscribe(pattern, self.limit, **arguments)

    def wait_confirmed(self, plane: Backplane) -> None:
        """Wait until the server has everything."""
        plane.flush(self.limit)
        check_sum(plane)
