"""A function that is called in a greenlet of its own."""

from __future__ import annotations

from contextvars import ContextVar

import gevent
import pytest
from gevent.event import Event
from gevent.local import local

from gmultisocket.loop.apart import call_apart

VARIABLE: ContextVar[str] = ContextVar("variable", default="")


def test_the_result_and_the_arguments_go_through() -> None:
    assert call_apart(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize("error", [ValueError("no"), gevent.GreenletExit(), SystemExit(3), gevent.Timeout(1)])
def test_an_exception_is_the_callers(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        call_apart(fail)
    assert raised.value is error
    assert capsys.readouterr() == ("", "")


def test_local_data_ends_with_the_call_and_context_variables_are_the_callers() -> None:
    data = local()
    data.name = "mine"
    VARIABLE.set("from the caller")

    def look() -> tuple[bool, str]:
        return hasattr(data, "name"), VARIABLE.get()

    assert call_apart(look) == (False, "from the caller")
    assert data.name == "mine"


@pytest.mark.parametrize("end", ["timeout", "kill"])
def test_what_ends_the_wait_ends_the_function(end: str) -> None:
    began, seen = Event(), []

    def wait() -> None:
        began.set()
        try:
            gevent.sleep(60)
        except BaseException as error:
            seen.append(error)
            raise

    def call() -> None:
        with gevent.Timeout(0.01 if end == "timeout" else None) as timeout:
            try:
                call_apart(wait)
            except gevent.Timeout as error:
                assert error is timeout
                raise

    caller = gevent.spawn(call)
    if end == "kill":
        began.wait()
        caller.kill()
    else:
        with pytest.raises(gevent.Timeout):
            caller.get()
    assert [type(error) for error in seen] == [gevent.GreenletExit if end == "kill" else gevent.Timeout]


def test_a_function_that_did_not_begin_does_not() -> None:
    called = []

    def call() -> None:
        call_apart(called.append, 1)

    caller = gevent.spawn(call)
    caller.kill()
    assert called == []


def test_a_timeout_of_the_caller_is_raised_there_also_if_the_function_catches_it() -> None:
    def catches() -> str:
        try:
            Event().wait()
        except gevent.Timeout:
            pass
        return "nothing happened"

    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
        call_apart(catches)


def test_no_frame_of_the_caller_becomes_an_object() -> None:
    # gevent would record the caller's stack, which takes memory for as long as the caller's frames last.
    frames = call_apart(lambda: list(gevent.getcurrent().spawning_stack or ()))
    assert frames == []
