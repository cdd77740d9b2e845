"""Taking turns: who is next, among those that come and go at any time, at a price that their number does not raise."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Rotation"]

T = TypeVar("T")


class Rotation(Generic[T]):
    """Members in the order of their turns; a newcomer is last.

    Attributes:
        first: whose turn it is, None while there is nobody.
        several: whether there is more than one member, so that it is worth a call to :meth:`turn`.
    """

    __slots__ = ("_members", "first", "several")

    def __init__(self) -> None:
        # Not a dict, whose first key is found the more slowly the more have been taken from its front.
        self._members: OrderedDict[T, None] = OrderedDict()
        self.first: T | None = None
        self.several = False

    def add(self, member: T) -> None:
        """Let one take part, who does not yet."""
        self._members[member] = None
        if self.first is None:
            self.first = member
        self.several = len(self._members) > 1

    def discard(self, member: T) -> None:
        """Leave one out from now on, if it takes part."""
        if member in self._members:
            del self._members[member]
            self.several = len(self._members) > 1
            if member is self.first:
                self.first = next(iter(self._members), None)

    def turn(self) -> None:
        """Go on to the next; the first one is then the last.

        Raises:
            KeyError: there is nobody.
        """
        members = self._members
        members.move_to_end(self.first)  # type: ignore[arg-type]
        self.first = next(iter(members))

    def take(self) -> T:
        """Return the one whose turn it is, and go on to the next.

        Raises:
            KeyError: there is nobody.
        """
        first = self.first
        self.turn()
        return first  # type: ignore[return-value]
