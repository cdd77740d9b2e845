from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket.core.sending.rotation import Rotation

#: What is done to a rotation of the members 0 to 19: one comes, one goes, or it is the next one's turn.
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 19)),
        st.tuples(st.just("discard"), st.integers(0, 19)),
        st.just(("take", 0)),
    ),
    max_size=80,
)


@given(steps)
def test_turns_are_taken_as_in_a_list_whoever_comes_and_goes(script: list[tuple[str, int]]) -> None:
    rotation: Rotation[int] = Rotation()
    order: list[int] = []
    for action, member in script:
        if action == "add" and member not in order:
            rotation.add(member)
            order.append(member)
        elif action == "discard":
            rotation.discard(member)
            order = [other for other in order if other != member]
        elif action == "take" and order:
            order.append(order.pop(0))
            assert rotation.take() == order[-1]
        assert rotation.first == (order[0] if order else None)
        assert rotation.several == (len(order) > 1)


def test_nobody_has_no_turn() -> None:
    rotation: Rotation[str] = Rotation()
    with pytest.raises(KeyError):
        rotation.take()
    with pytest.raises(KeyError):
        rotation.rotate()


def test_turns_are_taken_among_a_few_and_among_many() -> None:
    for count in (2, 16, 17, 40):
        rotation: Rotation[int] = Rotation()
        for member in range(count):
            rotation.add(member)
        assert [rotation.take() for _ in range(3 * count)] == [*range(count)] * 3
