"""The engine ``memory://NAME``: joins the planes of one thread, for tests and for programs with one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import gevent
from gevent import Greenlet, getcurrent

from ..errors import AddressError
from ..loop import owner
from ..loop.ending import end
from ..loop.waiting import Deadline
from ..options import Options
from ..protocol.subscriptions import Subscriptions, matches
from .engine import Engine, Plane

__all__ = ["MemoryEngine"]

#: Reports that are made before others run.
_PORTION: Final = 256

#: By thread and URL: who subscribes to what.
_exchanges: dict[tuple[int, str], Subscriptions[MemoryEngine]] = {}
#: By the same: the present values by topic, each with its origin and sequence.
_values: dict[tuple[int, str], dict[str, tuple[bytes, bytes, int]]] = {}


class MemoryEngine(Engine):
    """Hands publications to the other engines of the same name in the same thread."""

    no_values = ""

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        super().__init__(url, plane, options)
        name = url.partition("://")[2]
        if not name or set(name) & set("?/#"):
            raise AddressError(url, "the name after memory:// is missing or no plain word: expected memory://NAME")
        self._key = owner.current_thread(), url
        self._patterns: set[str] = set()
        #: What has to be reported to the plane: a method and its arguments.
        self._reports: deque[tuple[Any, ...]] = deque()
        self._greenlet: Greenlet[..., Any] | None = None
        self._open = False

    def start(self) -> None:
        self._open = True
        _exchanges.setdefault(self._key, Subscriptions())
        self._report(self.plane.connected)

    def close(self, deadline: Deadline) -> None:
        self.unsubscribe([*self._patterns])
        self._open = False
        self._reports.clear()
        end(self._greenlet)
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.join()
        exchange = _exchanges.get(self._key)
        if exchange is not None and not len(exchange):
            del _exchanges[self._key]
            _values.pop(self._key, None)

    def abandon(self) -> None:
        _exchanges.pop(self._key, None)
        _values.pop(self._key, None)

    def head(self, topic: str) -> bytes:
        return topic.encode()

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        topic = head.decode()
        exchange = _exchanges.get(self._key)
        if exchange is not None:
            for engine in exchange.match(topic):
                if engine is not self:
                    engine._report(engine.plane.received, topic, content, self.plane.origin, sequence)
        self._report(self.plane.confirmed, 1)

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        topic = head.decode()
        _values.setdefault(self._key, {})[topic] = content, self.plane.origin, sequence
        for engine in _exchanges.get(self._key, Subscriptions()).match(topic):
            engine._report(engine.plane.retained, topic, content, self.plane.origin, sequence, True)
        self._report(self.plane.confirmed, 1)

    def unretain(self, head: bytes, sequence: int) -> None:
        topic = head.decode()
        _values.get(self._key, {}).pop(topic, None)
        for engine in _exchanges.get(self._key, Subscriptions()).match(topic):
            engine._report(engine.plane.unretained, topic)
        self._report(self.plane.confirmed, 1)

    def subscribe(self, patterns: Sequence[str]) -> None:
        exchange = _exchanges.setdefault(self._key, Subscriptions())
        for pattern in patterns:
            self._patterns.add(pattern)
            exchange.add(pattern, self)
            for topic, value in _values.get(self._key, {}).items():
                if matches(pattern, topic):
                    self._report(self.plane.retained, topic, *value, False)
        self._report(self.plane.subscribed)

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            self._patterns.discard(pattern)
            _exchanges[self._key].remove(pattern, self)

    def _report(self, *report: Any) -> None:
        if self._open:
            self._reports.append(report)
            if self._greenlet is None:
                self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        """Report to the plane (a greenlet while there is something to report)."""
        try:
            number = 0
            while self._reports:
                method, *arguments = self._reports.popleft()
                method(*arguments)
                number += 1
                if number % _PORTION == 0:
                    gevent.sleep(0)
        finally:
            self._greenlet = None
