"""Who is there at a Pub: which patterns are wanted, and how many subscribers a topic has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from gevent import Greenlet, get_hub

from ..core.pipes.pipe import Pipe
from ..errors import Timeout
from ..loop.callbacks import Callbacks
from ..loop.waiting import Deadline, WaitList
from .subscriptions import matches

__all__ = ["Arrivals", "Interest"]


class _Watcher:
    """A callback, and what it was told.

    Attributes:
        callbacks: has the one.
        told: the patterns of which it knows that they are wanted.
    """

    __slots__ = ("callbacks", "told")

    def __init__(self, callbacks: Callbacks) -> None:
        self.callbacks = callbacks
        self.told: set[str] = set()


class Interest:
    """The patterns that somebody wants. Counts only while there is a callback.

    Args:
        spawn: the Pub's ``_spawn``.
    """

    __slots__ = ("_counts", "_spawn", "_watchers")

    def __init__(self, spawn: Callable[..., Greenlet[..., Any]]) -> None:
        self._spawn = spawn
        self._counts: Counter[str] = Counter()
        self._watchers: list[_Watcher] = []

    def __bool__(self) -> bool:
        """Return whether there is a callback."""
        return bool(self._watchers)

    def watch(self, callback: Callable[[str, bool], object], present: Iterable[str]) -> Callable[[], None]:
        """Call a callback from now on, see ``Pub.on_interest``.

        Args:
            callback: the callback.
            present: the pattern of each subscription that there is now.

        Returns:
            A callable that ends it.
        """
        watcher = _Watcher(Callbacks(self._spawn, "gmultisocket.protocol", "interest"))

        def tell(pattern: str) -> None:
            wanted = pattern in self._counts
            if wanted != (pattern in watcher.told):
                (watcher.told.add if wanted else watcher.told.discard)(pattern)
                callback(pattern, wanted)

        end = watcher.callbacks.add(tell)
        if not self._watchers:
            self._counts = Counter(present)
        self._watchers.append(watcher)
        for pattern in self._counts:
            watcher.callbacks.post(pattern, pattern)

        def remove() -> None:
            end()
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return remove

    def add(self, pattern: str) -> None:
        """Count a subscription. Never switches greenlets."""
        if self._watchers:
            self._counts[pattern] += 1
            if self._counts[pattern] == 1:
                self._changed(pattern)

    def remove(self, pattern: str) -> None:
        """Count the end of a subscription. Never switches greenlets."""
        if self._watchers:
            self._counts[pattern] -= 1
            if self._counts[pattern] <= 0:
                del self._counts[pattern]
                self._changed(pattern)

    def _changed(self, pattern: str) -> None:
        for watcher in self._watchers:
            if (pattern in self._counts) != (pattern in watcher.told):
                watcher.callbacks.post(pattern, pattern)
            else:
                # It has nothing to hear. A peer that comes and goes with ever new patterns must not make the queue of a
                # slow callback grow.
                watcher.callbacks.forget(pattern)


class _Arrival:
    """A greenlet that waits for subscribers of a topic.

    Attributes:
        topic: the topic.
        found: subscribers that want it, or wanted it.
        count: how many it waits for.
    """

    __slots__ = ("count", "found", "topic")

    def __init__(self, topic: str, count: int) -> None:
        self.topic = topic
        self.count = count
        self.found: set[tuple[Pipe, bytes]] = set()


class Arrivals:
    """Greenlets that wait for subscribers.

    Attributes:
        waiting: what they wait for. Read-only.
    """

    __slots__ = ("_woken", "waiting")

    def __init__(self) -> None:
        self._woken = WaitList(get_hub())
        self.waiting: list[_Arrival] = []

    def add(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Record that a subscriber subscribes to a pattern. Never switches greenlets."""
        for arrival in self.waiting:
            if matches(pattern, arrival.topic):
                arrival.found.add((pipe, source))
                if len(arrival.found) >= arrival.count:
                    self._woken.wake_all()

    def wait(
        self,
        topic: str,
        count: int,
        timeout: float | None,
        present: Callable[[], Iterable[tuple[Pipe, bytes]]],
        is_there: Callable[[Pipe, bytes, str], bool],
        check: Callable[[], object],
    ) -> None:
        """Block until a topic has so many subscribers.

        Args:
            topic: must be valid.
            count: how many.
            timeout: seconds, None for no limit.
            present: finds those that are there. May block.
            is_there: whether a subscriber wants a topic.
            check: raises if it is closed. Called whenever the greenlet was woken.

        Raises:
            Timeout: there are not so many in time.
        """
        deadline = Deadline(timeout)
        arrival = _Arrival(topic, count)
        self.waiting.append(arrival)
        try:
            arrival.found.update(present())
            while True:
                check()
                if len(arrival.found) >= count:
                    arrival.found = {each for each in arrival.found if is_there(*each, topic)}
                    if len(arrival.found) >= count:
                        return
                if not self._woken.wait(deadline.left()):
                    raise Timeout("wait_subscribers", timeout)
        finally:
            self.waiting.remove(arrival)

    def end(self) -> None:
        """Wake all: nobody comes any more."""
        self._woken.wake_all()
