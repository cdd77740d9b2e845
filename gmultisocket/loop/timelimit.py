"""Time limits that this library sets itself.

They differ from a ``gevent.Timeout`` of the program: that one may come out of a function of the program, which has not
caught it, and is then an error of this function.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gevent

from ..errors import MultiSocketError
from ..usercode import LibraryTimeout

__all__ = ["time_limit"]


@contextmanager
def time_limit(seconds: float, error: MultiSocketError) -> Iterator[gevent.Timeout]:
    """Raise an error if the body takes longer. A ``gevent.Timeout`` of anybody else passes through."""
    timeout = LibraryTimeout.start_new(seconds)
    try:
        yield timeout
    except LibraryTimeout as expired:
        if expired is timeout:
            raise error from None
        raise
    finally:
        timeout.close()
