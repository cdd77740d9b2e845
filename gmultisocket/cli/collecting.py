"""Python's garbage collector, in the commands that serve until a signal.

It looks at all living objects from time to time, and everybody waits: 0.1 s with 5,000 pipes. These commands leave it
little to do: a pipe that has closed is free at once, without it.
"""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["collect_rarely"]

#: So much rarer than usual it looks at the objects that live long.
_RARER: Final = 10


def collect_rarely() -> None:
    """Take what is loaded out of the collector's sight, and let it look rarely at all that lives long."""
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, _RARER * old)
