"""The engine ``memory://NAME``: joins the planes of one thread, for tests and for programs with one process."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, Final

import gevent
from gevent import Greenlet, getcurrent

from ..errors import AddressError, EngineRefused
from ..loop import owner
from ..loop.ending import end
from ..loop.waiting import Deadline
from ..options import Options
from ..protocol.history import Entry
from ..protocol.subscriptions import Subscriptions, matching
from .engine import Engine, Plane
from .hubhistory import HubHistory

__all__ = ["MemoryEngine"]

#: Reports that are made before others run.
_PORTION: Final = 256

#: By thread and URL: how many engines are open.
_open: Counter[tuple[int, str]] = Counter()
#: By the same: who subscribes to what.
_exchanges: dict[tuple[int, str], Subscriptions[MemoryEngine]] = {}
#: By the same: the present values by topic, each with its origin and sequence.
_values: dict[tuple[int, str], dict[str, tuple[bytes, bytes, int]]] = {}
#: By the same: the history, if a plane wants one.
_histories: dict[tuple[int, str], HubHistory] = {}


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
        _open[self._key] += 1
        _exchanges.setdefault(self._key, Subscriptions())
        if self.plane.history and not self._begin_history(self.plane.history):
            return
        self._report(self.plane.connected)

    def _begin_history(self, patterns: Sequence[str]) -> bool:
        """Make the history, or report that the one that is there is another one."""
        history = _histories.get(self._key)
        if history is None:
            history = _histories[self._key] = HubHistory(patterns)
            for topic, (content, _, _) in _values.get(self._key, {}).items():
                history.append(topic, content, True)
        elif history.topics.patterns != frozenset(patterns):
            self._report(self.plane.disconnected, EngineRefused(self.url, "another plane has given other histories"))
            return False
        self._report(self.plane.began, history.epoch, history.last_offset)
        return True

    def close(self, deadline: Deadline) -> None:
        self.unsubscribe([*self._patterns])
        if self._open:
            self._open = False
            _open[self._key] -= 1
            if not _open[self._key]:
                self._forget_all()
        self._reports.clear()
        end(self._greenlet)
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.join()

    def abandon(self) -> None:
        self._open = False
        self._forget_all()

    def _forget_all(self) -> None:
        for table in (_open, _exchanges, _values, _histories):
            table.pop(self._key, None)

    def head(self, topic: str) -> bytes:
        return topic.encode()

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        topic = head.decode()
        history = _histories.get(self._key)
        entry = history.append(topic, content) if history is not None and topic in history.topics else None
        for engine in _exchanges.get(self._key, Subscriptions()).match(topic):
            if entry is not None and engine.plane.history:
                engine._report(engine.plane.positioned, Entry(*entry), True, False, True)
            elif engine is not self:
                engine._report(engine.plane.received, topic, content, self.plane.origin, sequence)
        self._report(self.plane.confirmed, 1)

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        topic = head.decode()
        _values.setdefault(self._key, {})[topic] = content, self.plane.origin, sequence
        history = _histories.get(self._key)
        entry = None if history is None else history.append(topic, content, True)
        for engine in _exchanges.get(self._key, Subscriptions()).match(topic):
            if history is not None and entry is not None and engine.plane.history:
                engine._report(engine.plane.positioned, Entry(*entry), topic in history.topics, True, True)
            else:
                engine._report(engine.plane.retained, topic, content, self.plane.origin, sequence, True)
        self._report(self.plane.confirmed, 1)

    def unretain(self, head: bytes, sequence: int) -> None:
        topic = head.decode()
        _values.get(self._key, {}).pop(topic, None)
        if self._key in _histories:
            _histories[self._key].unretain(topic)
        for engine in _exchanges.get(self._key, Subscriptions()).match(topic):
            engine._report(engine.plane.unretained, topic)
        self._report(self.plane.confirmed, 1)

    def subscribe(self, patterns: Sequence[str]) -> None:
        exchange = _exchanges.setdefault(self._key, Subscriptions())
        for pattern in patterns:
            self._patterns.add(pattern)
            exchange.add(pattern, self)
            if self.plane.history:
                self._fetch(_histories[self._key], pattern)
                continue
            for topic, value in matching(pattern, _values.get(self._key, {})):
                self._report(self.plane.retained, topic, *value, False)
        self._report(self.plane.subscribed)

    def _fetch(self, history: HubHistory, pattern: str) -> None:
        """Report all that the history has of a pattern."""
        entries, complete_from = history.fetch(pattern)
        for entry in entries:
            self._report(self.plane.positioned, entry, entry.topic in history.topics, history.is_retained(entry), False)
        self._report(self.plane.fetched, pattern, complete_from, history.last_offset)

    def synchronize(self) -> None:
        self._report(self.plane.synchronized, _histories[self._key].last_offset)

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
