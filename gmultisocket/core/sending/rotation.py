"""Round-robin over a changing set, in O(1)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Rotation"]

T = TypeVar("T")


class Rotation(Generic[T]):
    """Members in round-robin order; a new member is last.

    Attributes:
        first: the next member, None if there is none.
        several: whether there is more than one member, so that :meth:`rotate` has an effect.
    """

    __slots__ = ("_members", "first", "several")

    def __init__(self) -> None:
        # Not a dict: the more keys were removed from its front, the longer it takes to find its first key.
        self._members: OrderedDict[T, None] = OrderedDict()
        self.first: T | None = None
        self.several = False

    def add(self, member: T) -> None:
        """Add a new member."""
        self._members[member] = None
        if self.first is None:
            self.first = member
        self.several = len(self._members) > 1

    def discard(self, member: T) -> None:
        """Remove a member, if it is one."""
        if member in self._members:
            del self._members[member]
            self.several = len(self._members) > 1
            if member is self.first:
                self.first = next(iter(self._members), None)

    def rotate(self) -> None:
        """Make the first member the last.

        Raises:
            KeyError: there is no member.
        """
        members = self._members
        members.move_to_end(self.first)  # type: ignore[arg-type]
        self.first = next(iter(members))

    def take(self) -> T:
        """Return the first member, and make it the last.

        Raises:
            KeyError: there is no member.
        """
        first = self.first
        self.rotate()
        return first  # type: ignore[return-value]
