"""Scopes: how values come down from one to the next, and how changes are checked, told and undone."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from gmultisocket import options
from gmultisocket.errors import BadOptionValue, OptionError, UnknownOption
from gmultisocket.options import Option, Options, follow

TTL = options.socket.send_ttl
QUEUE = options.socket.send_queue_size
WAIT = options.socket.send_stop_timeout


def test_a_value_comes_from_the_nearest_scope_that_has_one() -> None:
    top = Options({"Socket.SendTTL": 3})
    middle = Options(parent=top)
    bottom = Options({QUEUE: 5}, parent=middle)
    assert (bottom.get(TTL), bottom.get("socket.send_queue_size"), bottom.get(WAIT)) == (3, 5, 5.0)
    middle.set(TTL, 4)
    assert (top.get(TTL), middle.get(TTL), bottom.get(TTL)) == (3, 4, 4)
    assert middle.own() == {"socket.send_ttl": 4}
    assert middle.has_own("Socket.SendTTL") and not bottom.has_own(TTL)


def test_a_value_of_its_own_stays_where_the_parent_changes() -> None:
    top = Options()
    bottom = Options({TTL: 16}, parent=top)
    seen: list[int] = []
    bottom.on_change(TTL, lambda old, new: seen.append(new))
    top.set(TTL, 3)
    assert (bottom.get(TTL), seen) == (16, [])


@pytest.mark.parametrize("values", [{"socket.nothing": 1}, {TTL: 3, QUEUE: -1}])
def test_a_scope_is_not_made_from_bad_values(values: dict[Any, Any]) -> None:
    with pytest.raises(OptionError):
        Options(values)
    assert Options().own() == {}


def test_bad_names_and_values_change_nothing() -> None:
    scope = Options({TTL: 3})
    seen: list[object] = []
    scope.on_change(TTL, lambda old, new: seen.append(new), check=seen.append)
    with pytest.raises(BadOptionValue):
        scope.set(TTL, 300)
    with pytest.raises(UnknownOption):
        scope.set("socket.ttl", 3)
    with pytest.raises(UnknownOption):
        scope.get("socket.ttl")
    assert (scope.own(), seen) == ({"socket.send_ttl": 3}, [])


def test_hooks_hear_of_changes_here_and_above_with_both_values() -> None:
    top = Options()
    middle = Options(parent=top)
    bottom = Options(parent=middle)
    seen: list[tuple[str, int, int, int]] = []
    bottom.on_change(TTL, lambda old, new: seen.append(("bottom", old, new, bottom.get(TTL))))
    top.on_change("Socket.SendTTL", lambda old, new: seen.append(("top", old, new, top.get(TTL))))
    top.set(TTL, 3)
    middle.set(TTL, 4)
    top.set(TTL, 5)
    top.set(QUEUE, 5)
    assert seen == [("top", 16, 3, 3), ("bottom", 16, 3, 3), ("bottom", 3, 4, 4), ("top", 3, 5, 5)]


def test_a_removed_hook_hears_nothing_and_may_be_removed_again() -> None:
    scope = Options()
    seen: list[int] = []

    def hook(old: int, new: int) -> None:
        seen.append(new)

    first, _second = scope.on_change(TTL, hook), scope.on_change(TTL, hook)
    first()
    first()
    scope.set(TTL, 3)
    assert seen == [3]


def test_a_hook_may_remove_itself_and_set_another_option() -> None:
    scope = Options()

    def hook(old: int, new: int) -> None:
        remove()
        scope.set(QUEUE, new)

    remove = scope.on_change(TTL, hook)
    scope.set(TTL, 3)
    scope.set(TTL, 4)
    assert scope.own() == {"socket.send_ttl": 4, "socket.send_queue_size": 3}


def refuse(value: object) -> None:
    raise RuntimeError("refused")


def test_a_check_anywhere_refuses_before_anyone_has_seen_the_value() -> None:
    top = Options()
    scopes = [Options(parent=top), Options(parent=Options(parent=top)), Options(parent=top)]
    seen: list[int] = []
    for scope in (top, *scopes):
        scope.on_change(TTL, lambda old, new: seen.append(new))
    scopes[1].on_change(TTL, lambda old, new: seen.append(new), check=refuse)
    with pytest.raises(RuntimeError, match="refused"):
        top.set(TTL, 3)
    assert seen == []
    assert top.own() == {}
    assert [scope.get(TTL) for scope in scopes] == [16, 16, 16]


@pytest.mark.parametrize("before", [{}, {TTL: 2}])
def test_a_hook_that_raises_undoes_the_change_everywhere(before: dict[Option[int], int]) -> None:
    top = Options(before)
    middle, bottom = Options(parent=top), Options(parent=top)
    seen: list[tuple[str, int, int]] = []
    top.on_change(TTL, lambda old, new: seen.append(("top", old, new)))
    middle.on_change(TTL, lambda old, new: seen.append(("middle", old, new)))
    remove = bottom.on_change(TTL, lambda old, new: refuse(new))
    was = top.get(TTL)
    with pytest.raises(RuntimeError, match="refused"):
        top.set(TTL, 3)
    assert seen == [("top", was, 3), ("middle", was, 3), ("middle", 3, was), ("top", 3, was)]
    assert (top.get(TTL), bottom.get(TTL), top.has_own(TTL)) == (was, was, bool(before))
    remove()
    top.set(TTL, 3)
    assert bottom.get(TTL) == 3


def test_an_error_while_undoing_is_logged_and_the_first_error_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    scope = Options()
    seen: list[int] = []

    def cannot_go_back(old: int, new: int) -> None:
        if new == 16:
            raise ValueError("cannot go back")

    scope.on_change(TTL, lambda old, new: seen.append(new))
    scope.on_change(TTL, cannot_go_back)
    scope.on_change(TTL, lambda old, new: refuse(new))
    with pytest.raises(RuntimeError, match="refused"):
        scope.set(TTL, 3)
    assert (scope.own(), seen) == ({}, [3, 16])
    assert [record.name for record in caplog.records] == ["gmultisocket.options"]
    assert "socket.send_ttl" in caplog.text


def test_a_scope_is_gone_when_its_owner_drops_it_though_the_parent_lives() -> None:
    top = Options()
    bottom = Options(parent=Options(parent=top))
    seen: list[int] = []
    bottom.on_change(TTL, lambda old, new: seen.append(new))
    gone = weakref.ref(bottom)
    top.set(TTL, 3)
    del bottom
    gc.collect()
    assert gone() is None
    top.set(TTL, 4)
    assert seen == [3]


def test_many_scopes_that_nobody_watches_cost_their_parent_nothing() -> None:
    top = Options()
    scopes = [Options(parent=top) for _ in range(1000)]
    assert not list(top._inheriting(TTL))[1:]
    top.set(TTL, 3)
    assert {scope.get(TTL) for scope in scopes} == {3}
    assert not hasattr(scopes[0], "__dict__")


# Objects that keep copies


class Copies:
    """An object that keeps copies of two options."""

    def __init__(self, unlucky: int = -1) -> None:
        self.ttl = self.queue = -1
        self._unlucky = unlucky

    def set_ttl(self, value: int) -> None:
        self.ttl = value

    def set_queue(self, value: int) -> None:
        if value == self._unlucky:
            raise ValueError("unlucky")
        self.queue = value

    takes = {TTL: set_ttl, QUEUE: set_queue}


def test_a_copy_has_the_value_of_now_and_each_later_one() -> None:
    top = Options({TTL: 3})
    middle = Options(parent=top)
    copies = Copies()
    follow(middle, copies, Copies.takes)
    assert (copies.ttl, copies.queue) == (3, 64)
    top.set(TTL, 4)
    middle.set(QUEUE, 5)
    assert (copies.ttl, copies.queue) == (4, 5)
    # What has a value of its own does not hear of those above.
    top.set(QUEUE, 6)
    assert copies.queue == 5


def test_a_copy_that_cannot_be_made_undoes_the_change_everywhere() -> None:
    top = Options()
    first, second = Copies(), Copies(unlucky=13)
    follow(top, first, Copies.takes)
    below = Options(parent=top)
    follow(below, second, Copies.takes)
    with pytest.raises(ValueError, match="unlucky"):
        top.set(QUEUE, 13)
    assert (top.get(QUEUE), below.get(QUEUE), first.queue, second.queue) == (64, 64, 64, 64)
    top.set(QUEUE, 7)
    assert first.queue == second.queue == 7
