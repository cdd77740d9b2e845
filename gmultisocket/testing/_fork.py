"""A forked child that does one thing, says how it went, and ends without running anything else of its parent's."""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable

from gevent.monkey import get_original

__all__ = ["in_forked_child"]


def in_forked_child(call: Callable[[int], None], limit: float = 10.0) -> None:
    """Fork, have the child call ``call(report)``, and wait until it has. Blocks the whole process meanwhile.

    The event loop runs neither in the child nor, while it lives, in the parent: what is checked is the fork itself.

    Args:
        call: gets the number of the one descriptor that the child has for its report.
        limit: the longest that the child may take, in seconds; it is killed then.

    Raises:
        AssertionError: the call raised, with its traceback, or took too long.
    """
    # Not the patched ones, which leave work to the event loop: it does not run before this is over.
    fork, waitpid, close = (get_original("os", name) for name in ("fork", "waitpid", "close"))
    read, write = os.pipe()
    with warnings.catch_warnings():
        # CPython warns of forks while threads run, and gevent's resolver has some: the child does without them.
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
    """Call, report, and end the process at once: no clean-up of the parent's may run here."""
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
    return b"".join(chunks).decode() or "it died without a word"
