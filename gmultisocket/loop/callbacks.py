"""Callbacks of the program: they get events in their order, one after the other, in a greenlet of their own.

The greenlet exists only while there are events. Nothing waits for it, so a callback may block, send, and close what it
belongs to. All its errors are reported, and the other callbacks are called all the same. If it is killed, its
greenlet ends, and another one goes on, unless this library has ended it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from gevent import Greenlet, GreenletExit, Timeout

from .. import usercode
from .ending import Ended

__all__ = ["Callbacks", "Event"]


class EventPipe(Protocol):
    """A pipe, as reports of errors name it."""

    id: int

    @property
    def peer_address(self) -> str:
        """The peer's address."""


class Event(NamedTuple):
    """What callbacks get, and the pipe that it is of, if any."""

    args: tuple[Any, ...]
    pipe: EventPipe | None


class Callbacks:
    """The callbacks for one kind of event.

    Args:
        spawn: starts a greenlet.
        logger_name: where their errors are reported.
        kind: names the events there, e.g. ``"refusal"``.
    """

    __slots__ = ("__weakref__", "_callbacks", "_greenlet", "_kind", "_logger_name", "_queue", "_spawn", "_uncalled")

    def __init__(self, spawn: Callable[..., Greenlet[..., Any]], logger_name: str, kind: str) -> None:
        self._spawn = spawn
        self._logger_name = logger_name
        self._kind = kind
        self._callbacks: list[Callable[..., object]] = []
        #: By key, oldest first: events that no callback has got. (Not a dict: the more keys were
        #: removed from its front, the longer it takes to find its first key.)
        self._queue: OrderedDict[Hashable, Event] = OrderedDict()
        self._greenlet: Greenlet[..., Any] | None = None
        #: The event that callbacks are called with now, and those that were not called with it yet.
        self._uncalled: tuple[Event, list[Callable[..., object]]] | None = None

    def __bool__(self) -> bool:
        """Return whether there is a callback."""
        return bool(self._callbacks)

    def add(self, callback: Callable[..., object]) -> Callable[[], None]:
        """Call a callback for each event from now on. Return a function that ends this."""
        self._callbacks.append(callback)

        def remove() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return remove

    def post(self, key: Hashable, *args: Any, pipe: EventPipe | None = None) -> None:
        """Call the callbacks later, instead of a call with the same key that has not begun.

        Neither blocks nor switches greenlets. What waits is bounded by the number of keys.

        Args:
            key: of the event.
            args: what the callbacks get.
            pipe: the pipe that the event is of, for the report of an error.
        """
        if not self._callbacks:
            return
        self._queue[key] = Event(args, pipe)
        if self._greenlet is None:
            self._greenlet = self._spawn(self._run)

    def forget(self, key: Hashable) -> None:
        """Take back the call with a key, if it has not begun. Neither blocks nor switches greenlets."""
        self._queue.pop(key, None)

    def _run(self) -> None:
        ended = False
        try:
            while self._uncalled is not None or self._queue:
                if self._uncalled is None:
                    _, event = self._queue.popitem(last=False)
                    self._uncalled = event, list(self._callbacks)
                self._call(*self._uncalled)
                self._uncalled = None
        except Ended:
            ended = True
            raise
        finally:
            # If a callback was killed, another greenlet calls the rest.
            more = (self._uncalled is not None or self._queue) and not ended
            self._greenlet = self._spawn(self._run) if more else None

    def _call(self, event: Event, uncalled: list[Callable[..., object]]) -> None:
        """Call each of the callbacks with an event. Remove it from the list first."""
        while uncalled:
            callback = uncalled.pop(0)
            if callback not in self._callbacks:
                continue
            try:
                callback(*event.args)
            except Ended:
                raise
            except (Exception, Timeout) as error:
                self._report(error, event)
            except GreenletExit as error:
                self._report(error, event)
                raise

    def _report(self, error: BaseException, event: Event) -> None:
        what = f"a {self._kind} callback failed"
        pipe = event.pipe
        pipe_id, peer = (0, "") if pipe is None else (pipe.id, pipe.peer_address)
        usercode.report(self._logger_name, what, error, self, pipe_id=pipe_id, peer=peer)
