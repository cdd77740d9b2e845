"""Waiting for a condition in tests, without sleeping for a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent

__all__ = ["wait_until"]

_FIRST_STEP = 0.0005
_LONGEST_STEP = 0.02


def wait_until(condition: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """Wait until ``condition()`` is true, while other greenlets run.

    Blocks the calling greenlet only. The condition is asked at once, then after steps of 0.5 ms growing to 20 ms, and
    once more when the time is up, so that a busy machine does not fail a condition that has come true meanwhile.

    Args:
        condition: called without arguments; an exception that it raises passes through.
        timeout: the longest wait in seconds; 0 asks once.
        what: what is waited for, named when it does not come.

    Raises:
        AssertionError: the condition was still false after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    step = _FIRST_STEP
    while not condition():
        left = deadline - time.monotonic()
        if left <= 0:
            raise AssertionError(f"not within {timeout} s: {what or _describe(condition)}")
        gevent.sleep(min(step, left))
        step = min(step * 1.5, _LONGEST_STEP)


def _describe(condition: Callable[[], object]) -> str:
    """Return where the condition stands, for those who did not say ``what``."""
    code = getattr(condition, "__code__", None)
    return f"the condition at {code.co_filename}:{code.co_firstlineno}" if code else repr(condition)
