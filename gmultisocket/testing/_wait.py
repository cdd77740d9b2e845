"""Waiting for a condition in tests, without sleeping for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

__all__ = ["wait_until"]

#: Seconds of the pauses between two checks: the first one, and the longest.
_FIRST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02


def wait_until(condition: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """Wait until ``condition()`` is true, while other greenlets run.

    Blocks the calling greenlet only. The condition is checked at once, then after pauses of 0.5 ms growing to 20 ms,
    and once more when the time is up. So on a busy machine a condition that has become true in time does not fail.

    Args:
        condition: called without arguments; an exception that it raises passes through.
        timeout: the longest wait in seconds; 0 checks once.
        what: a name for the condition, for the error.

    Raises:
        AssertionError: the condition was still false after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(f"not within {timeout} s: {what or _describe(condition)}")
        gevent.sleep(min(pause, left))
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def _describe(condition: Callable[[], object]) -> str:
    """Return the place of the condition in the source, as its name if ``what`` is empty."""
    code = getattr(condition, "__code__", None)
    return f"the condition at {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
