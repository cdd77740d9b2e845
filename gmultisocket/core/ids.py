"""Pipe ids: unguessable, and never given out twice in the life of a process.

An id is 31 bits, never 0 (wire rule). A counter is run through a keyed permutation of the 31-bit numbers, so ids
look random, cannot repeat before all 2^31-1 are used, and cost no memory for those that are gone: a path
that outlived its pipe, or was guessed, reaches nobody. (The Go code counts from 1 in every process and
gives ids out again.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b

__all__ = ["next_pipe_id"]

_BITS = 31
_HIGH, _LOW = 16, 15
_ROUNDS = 4


def _permute(value: int, key: bytes) -> int:
    """Map a 31-bit number to another one, one to one (an unbalanced Feistel network)."""
    high, low = value >> _LOW, value & ((1 << _LOW) - 1)
    widths = (_HIGH, _LOW)
    for turn in range(_ROUNDS):
        width = widths[turn % 2]
        digest = blake2b(low.to_bytes(2, "big"), digest_size=4, key=key, salt=bytes([turn])).digest()
        high, low = low, high ^ (int.from_bytes(digest, "big") & ((1 << width) - 1))
    return high << _LOW | low


def _sequence() -> Iterator[int]:
    key = os.urandom(16)
    for counter in range(1 << _BITS):
        pipe_id = _permute(counter, key)
        if pipe_id:
            yield pipe_id
    raise OverflowError("all 2^31-1 pipe ids of this process are used up")


_ids = _sequence()


def next_pipe_id() -> int:
    """Return an id that no pipe of this process has had or will have again (1 to 2^31-1)."""
    return next(_ids)


def _new_key_after_fork() -> None:
    global _ids
    _ids = _sequence()


os.register_at_fork(after_in_child=_new_key_after_fork)
