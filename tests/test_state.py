from __future__ import annotations

from enum import Enum

import pytest

from gmultisocket.state import StateMachine


class Light(Enum):
    OFF = "off"
    ON = "on"
    BROKEN = "broken"


class Lamp(StateMachine):
    __slots__ = ("state",)

    _moves = {
        Light.OFF: {Light.ON, Light.BROKEN},
        Light.ON: {Light.OFF, Light.BROKEN},
        Light.BROKEN: frozenset[Light](),
    }

    def __init__(self, state: Light) -> None:
        self.state = state


@pytest.mark.parametrize("before", Light)
@pytest.mark.parametrize("after", Light)
def test_a_move_is_made_exactly_if_the_table_has_it(before: Light, after: Light) -> None:
    lamp = Lamp(before)
    allowed = after in Lamp._moves[before]
    assert lamp._move(after) is allowed
    assert lamp.state is (after if allowed else before)


def test_of_two_that_end_an_object_one_does() -> None:
    lamp = Lamp(Light.ON)
    assert [lamp._move(Light.BROKEN), lamp._move(Light.BROKEN)] == [True, False]


def test_a_subclass_with_slots_has_no_dict() -> None:
    assert not hasattr(Lamp(Light.ON), "__dict__")


def test_a_state_that_is_not_in_the_table_is_an_error() -> None:
    class Other(Enum):
        ON = "on"

    lamp = Lamp(Light.ON)
    assert lamp._move(Other.ON) is False  # an equal value is not an equal state
    lamp.state = Other.ON  # type: ignore[assignment]
    with pytest.raises(KeyError):
        lamp._move(Light.OFF)
