"""Calling a function of the user's in a greenlet that ends with the call.

Frameworks keep things for each greenlet: a database connection, a session, the language of a page. They give them back
when the greenlet ends. A greenlet of this library may last as long as a connection, and must not collect such things.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from gevent import Greenlet

__all__ = ["call_apart"]

T = TypeVar("T")


class _Call(Greenlet):  # type: ignore[type-arg]  # it has no parameters at run time
    #: gevent records where each greenlet was made. That makes an object of every frame below, which lasts as long as the
    #: frame: 2 KiB for each WebSocket under a WSGI server.
    spawning_stack_limit = 0


def call_apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a greenlet of its own, and return its result. Blocks until the function has ended.

    The function sees the caller's context variables. An exception that ends the wait, such as a timeout of the caller
    or its end by ``kill``, is raised in the function as well.

    Raises:
        BaseException: what the function has raised.
    """
    call: Any = _Call(_outcome, function, args)
    call.gr_context = copy_context()
    call.start()
    try:
        call.join()
    except BaseException as error:
        call.kill(error)
        raise
    result, raised = call.value
    try:
        if raised is not None:
            raise raised
        return result  # type: ignore[no-any-return]
    finally:
        # The exception holds this frame.
        del raised


def _outcome(function: Callable[..., T], args: tuple[Any, ...]) -> tuple[T | None, BaseException | None]:
    """Return the result of a function, or its exception, which gevent would print."""
    try:
        return function(*args), None
    except BaseException as error:
        return None, error
