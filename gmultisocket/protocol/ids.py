"""The ids that protocols choose: those that match answers to requests and surveys, and those of the ends of streams.

All are drawn at random. Behind a switch, others send by the same pipe: with an id that they could guess, they could
answer in somebody else's place. An id that is drawn at random may soon be drawn again. So an id is in quarantine while
its answer may still come, and is not used.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Container, Iterator
from time import monotonic
from typing import Final

from ..errors import NoIds

__all__ = ["ID_SIZE", "IdPool", "Quarantine", "new_id", "request_ids"]

#: Bytes of an id.
ID_SIZE: Final = 4
#: Random numbers are fetched from the system in portions of this number of ids.
_PORTION: Final = 256
#: Seconds for which an id is not used again, and the number of ids for which this holds: older ones are forgotten.
_QUARANTINE: Final = 60.0
_MAX_QUARANTINED: Final = 16384


def request_ids() -> Iterator[bytes]:
    """Yield random ids without end, packed."""
    while True:
        portion = os.urandom(ID_SIZE * _PORTION)
        for start in range(0, len(portion), ID_SIZE):
            yield portion[start : start + ID_SIZE]


def new_id(ids: Iterator[bytes], *in_use: Container[bytes]) -> bytes:
    """Return the next id that is not in use."""
    while True:
        request_id = next(ids)
        for used in in_use:
            if request_id in used:
                break
        else:
            return request_id


class Quarantine:
    """Ids that are not in use any more, and must not be used again for a while."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        #: By id, oldest first: when it was added. (Not a dict: the more keys were removed from its front, the longer it
        #: takes to find its first key.)
        self._ids: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, ident: object) -> bool:
        return ident in self._ids

    def add(self, ident: bytes) -> None:
        """Add an id, and forget those whose time is over."""
        now = monotonic()
        ids = self._ids
        ids[ident] = now
        while len(ids) > _MAX_QUARANTINED or now - next(iter(ids.values())) >= _QUARANTINE:
            ids.popitem(last=False)

    def discard(self, ident: bytes) -> None:
        """Forget an id: its answer has come."""
        self._ids.pop(ident, None)


class IdPool:
    """The ids of the ends of one Stream: 1 to 2^31 - 1, like those of pipes, and independent of them.

    Args:
        in_use: the ids in use.
        bits: of an id.
    """

    __slots__ = ("_bits", "_in_use", "_quarantine")

    def __init__(self, in_use: Collection[bytes], bits: int = 31) -> None:
        self._in_use = in_use
        self._bits = bits
        self._quarantine = Quarantine()

    @property
    def used_up(self) -> bool:
        """Whether half of all ids are in use: no more are given out, as it would take long to draw a free one."""
        return len(self._in_use) >= 1 << (self._bits - 1)

    def new(self) -> bytes:
        """Return an id that is not in use and was not for a while.

        Raises:
            NoIds: they are used up.
        """
        if self.used_up:
            raise NoIds(len(self._in_use))
        while True:
            number = int.from_bytes(os.urandom(ID_SIZE), "big") >> (8 * ID_SIZE - self._bits)
            ident = number.to_bytes(ID_SIZE, "big")
            if number and ident not in self._in_use and ident not in self._quarantine:
                return ident

    def release(self, ident: bytes) -> None:
        """Record that an id is not in use any more."""
        self._quarantine.add(ident)
