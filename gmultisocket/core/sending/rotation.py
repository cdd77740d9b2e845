"""Round-robin over a changing set, in O(1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import cycle
from typing import Final, Generic, TypeVar

__all__ = ["Rotation"]

T = TypeVar("T")

#: A set with more members has no iterator over them: it would have to be made again whenever one comes or goes.
_FEW: Final = 16


class Rotation(Generic[T]):
    """Members in round-robin order; a new member is last.

    Attributes:
        first: the next member, None if there is none.
        several: whether there is more than one member, so that :meth:`rotate` has an effect.
    """

    __slots__ = ("_following", "_members", "first", "several")

    def __init__(self) -> None:
        # Not a dict: the more keys were removed from its front, the longer it takes to find its first key.
        self._members: OrderedDict[T, None] = OrderedDict()
        #: Gives the members that follow the first one, again and again. While it is used, the order of `_members` is
        #: right only as a circle: the first one is somewhere in it.
        self._following: Iterator[T] | None = None
        self.first: T | None = None
        self.several = False

    def add(self, member: T) -> None:
        """Add a new member."""
        self._settle()
        self._members[member] = None
        if self.first is None:
            self.first = member
        self.several = len(self._members) > 1

    def discard(self, member: T) -> None:
        """Remove a member, if it is one."""
        if member in self._members:
            self._settle()
            del self._members[member]
            self.several = len(self._members) > 1
            if member is self.first:
                self.first = next(iter(self._members), None)

    def rotate(self) -> None:
        """Make the first member the last.

        Raises:
            KeyError: there is no member.
        """
        if self._following is not None:
            self.first = next(self._following)
            return
        members = self._members
        members.move_to_end(self.first)  # type: ignore[arg-type]
        self.first = next(iter(members))
        if len(members) <= _FEW:
            self._following = cycle(tuple(members))
            next(self._following)

    def _settle(self) -> None:
        """Put the first member in front of the others."""
        if self._following is not None:
            self._following = None
            while (other := next(iter(self._members))) is not self.first:
                self._members.move_to_end(other)

    def take(self) -> T:
        """Return the first member, and make it the last.

        Raises:
            KeyError: there is no member.
        """
        first = self.first
        self.rotate()
        return first  # type: ignore[return-value]
