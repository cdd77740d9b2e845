"""Pipe ids: unguessable, and never issued twice in the life of a process.

An id has 31 bits and is never 0 (wire rule). A keyed permutation of the 31-bit numbers is applied to a counter. So ids
look random, cannot repeat before all 2^31-1 are used, and cost no memory after their pipes are gone: a path that
is older than its pipe, or that was guessed, reaches nobody. (The Go code counts from 1 in every process and issues ids
again.)

Only pipes take ids from here. When all are used up, after 25 days of 1,000 new connections a second, the process
refuses new pipes.
"""

from __future__ import annotations

import os
from importlib import import_module

from ...errors import NoIds

__all__ = ["next_pipe_id", "prepare", "was_pipe_id"]

_BITS = 31
_HIGH, _LOW = 16, 15
_ROUNDS = 4


def _mix(value: int, step: int, key: bytes) -> int:
    """Return bits that depend on one half of a number and the key, to mix into the other half."""
    from hashlib import blake2b

    width = (_HIGH, _LOW)[step % 2]
    digest = blake2b(value.to_bytes(2, "big"), digest_size=4, key=key, salt=bytes([step])).digest()
    return int.from_bytes(digest, "big") & ((1 << width) - 1)


def _permute(value: int, key: bytes) -> int:
    """Map a 31-bit number to another one, one to one (an unbalanced Feistel network)."""
    high, low = value >> _LOW, value & ((1 << _LOW) - 1)
    for step in range(_ROUNDS):
        high, low = low, high ^ _mix(low, step, key)
    return high << _LOW | low


def _restore(value: int, key: bytes) -> int:
    """Return the number that :func:`_permute` turned into ``value``."""
    high, low = value >> _LOW, value & ((1 << _LOW) - 1)
    for step in reversed(range(_ROUNDS)):
        high, low = low ^ _mix(high, step, key), high
    return high << _LOW | low


class _Ids:
    """The ids of one process."""

    def __init__(self) -> None:
        self._key = os.urandom(16)
        self._used = 0

    def next(self) -> int:
        while self._used < 1 << _BITS:
            pipe_id = _permute(self._used, self._key)
            self._used += 1
            if pipe_id:
                return pipe_id
        raise NoIds((1 << _BITS) - 1)

    def include(self, pipe_id: int) -> bool:
        return 0 < pipe_id < 1 << _BITS and _restore(pipe_id, self._key) < self._used


_ids = _Ids()


def prepare() -> None:
    """Import what ids need, for the first dialer or listener.

    Not at once: it takes a tenth of the time of this whole library, and there may never be a pipe. And not with the
    first pipe: there may be no descriptor left for it.
    """
    import_module("hashlib")


def next_pipe_id() -> int:
    """Return an id (1 to 2^31-1) that this process never issued before.

    Raises:
        NoIds: all were issued.
    """
    return _ids.next()


def was_pipe_id(pipe_id: int) -> bool:
    """Return whether this process ever issued the id."""
    return _ids.include(pipe_id)


def _new_ids_after_fork() -> None:
    global _ids
    _ids = _Ids()


os.register_at_fork(after_in_child=_new_ids_after_fork)
