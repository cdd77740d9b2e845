"""State machines: an enum of states, and a table of the allowed moves.

A class derives from :class:`StateMachine`, sets ``state`` in its constructor, and changes it only through ``_move``. A
move that is not in the table is refused. So when two greenlets close the same object at the same time, one succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

__all__ = ["StateMachine"]


class StateMachine:
    """An object that is in exactly one of several states.

    Attributes:
        state: the present state, a member of the class's enum.
    """

    __slots__ = ()

    #: For each state, the states that may follow it.
    _moves: ClassVar[Mapping[Any, Collection[Any]]]
    state: Any

    def _move(self, state: Any) -> bool:
        """Change the state if the table allows it. Return whether it did."""
        if state not in self._moves[self.state]:
            return False
        self.state = state
        return True
