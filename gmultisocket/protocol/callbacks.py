"""The callbacks of a protocol that a program sets: they run one after the other, in a greenlet of the protocol.

The greenlet exists only while there is something to report. Nothing waits for it, so a callback may block, send, and
close the protocol. What waits is bounded by the number of keys that the protocol uses.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from gevent import Greenlet, Timeout

from ..log import get_logger

__all__ = ["Callbacks"]

logger = get_logger("gmultisocket.protocol")


class Callbacks:
    """The callbacks for one kind of event.

    Args:
        spawn: the protocol's ``_spawn``.
        kind: names the events in the log, e.g. ``"refusal"``.
    """

    __slots__ = ("_callbacks", "_greenlet", "_kind", "_queue", "_spawn")

    def __init__(self, spawn: Callable[..., Greenlet[..., Any]], kind: str) -> None:
        self._spawn = spawn
        self._kind = kind
        self._callbacks: list[Callable[..., object]] = []
        #: By key, oldest first: the arguments of events that no callback has got.
        self._queue: OrderedDict[Hashable, tuple[Any, ...]] = OrderedDict()
        self._greenlet: Greenlet[..., Any] | None = None

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

    def post(self, key: Hashable, *args: Any) -> None:
        """Call the callbacks later, instead of a call with the same key that has not begun.

        Neither blocks nor switches greenlets.
        """
        if not self._callbacks:
            return
        self._queue[key] = args
        if self._greenlet is None:
            self._greenlet = self._spawn(self._run)

    def _run(self) -> None:
        try:
            while self._queue:
                _, args = self._queue.popitem(last=False)
                for callback in [*self._callbacks]:
                    try:
                        callback(*args)
                    except (Exception, Timeout):
                        logger.exception("a %s callback failed", self._kind)
        finally:
            self._greenlet = None
