"""A forked child that makes one call, reports the result, and ends without running any other code of its parent."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from gevent.monkey import get_original

__all__ = ["in_forked_child"]


def in_forked_child(call: Callable[[int], None], limit: float = 10.0) -> None:
    """Fork, run ``call(report)`` in the child, and wait until the child has ended. Blocks the whole process.

    The event loop does not run in the child, nor in the parent while the child lives: this checks the fork itself.

    Args:
        call: called with the number of the descriptor that the child writes its report to.
        limit: seconds after which the child is killed.

    Raises:
        AssertionError: the call raised, with its traceback, or took too long.
    """
    # The patched functions would need the event loop, which does not run before the end of this function.
    fork, waitpid, close = (get_original("os", name) for name in ("fork", "waitpid", "close"))
    read, write = os.pipe()
    with warnings.catch_warnings():
        # CPython warns of a fork while threads run. gevent's resolver has threads, and the child does not use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid: int = fork()
    if not pid:
        close(read)
        _run_child(call, write)
    close(write)
    try:
        report = _read_report(read, pid, limit)
    finally:
        close(read)
        waitpid(pid, 0)
    assert report == "ok", f"in the forked child:\n{report}"


def _run_child(call: Callable[[int], None], write: int) -> None:
    """Make the call, report, and end the process at once: no clean-up code of the parent may run here."""
    report = "ok"
    try:
        call(write)
    except BaseException:
        report = traceback.format_exc()
    finally:
        try:
            os.write(write, report.encode()[:60000])
        finally:
            os._exit(0)


def _read_report(read: int, pid: int, limit: float) -> str:
    ready, _, _ = get_original("select", "select")([read], [], [], limit)
    if not ready:
        os.kill(pid, signal.SIGKILL)
        return f"it did not end within {limit} s"
    chunks = iter(lambda: os.read(read, 65536), b"")
    return b"".join(chunks).decode() or "it died without a report"
