"""Which patterns a plane has to ask its engine for.

Each pattern is asked for once, however many subscribers it has here, and is left some seconds after its last one: a
page that reloads costs the engine nothing. A pattern that another one covers is not asked for: ``a.b`` beside ``a.>``.
Before a covering pattern is left, the patterns that it has covered are asked for and confirmed, so nothing is missed.

A pattern is *live* while somebody wants it, and as long as it lingers after that. It is *held* from the moment at which
the engine is asked for it until the engine is told to leave it. What is held and not needed any more is a *leaver*: it
waits until others are confirmed.

Pure: no gevent, no sockets, no clock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final

from ..protocol.subscriptions import ONE, REST, SEPARATOR, matches

__all__ = ["PORTION", "Interest", "PatternTree"]

#: Patterns that the engine is asked for at once.
PORTION: Final = 512
#: The key of the pattern that ends at a node. No token is empty.
_HERE: Final = ""


class PatternTree:
    """Finds the patterns that cover a pattern, and those that it covers.

    A pattern covers another one if it matches every topic that the other one matches.
    """

    __slots__ = ("_root",)

    def __init__(self) -> None:
        #: By token; the pattern that ends at a node is under ``_HERE``.
        self._root: dict[str, Any] = {}

    def add(self, pattern: str) -> None:
        """Add a pattern, which must be valid. Twice is once."""
        node = self._root
        for token in pattern.split(SEPARATOR):
            node = node.setdefault(token, {})
        node[_HERE] = pattern

    def remove(self, pattern: str) -> None:
        """Remove a pattern.

        Raises:
            KeyError: it is not there.
        """
        way = []
        node = self._root
        for token in pattern.split(SEPARATOR):
            way.append((node, token))
            node = node[token]
        del node[_HERE]
        for above, token in reversed(way):
            if above[token]:
                return
            del above[token]

    def covering(self, pattern: str) -> Iterator[str]:
        """Yield the other patterns that cover a pattern."""
        nodes = [self._root]
        for token in pattern.split(SEPARATOR):
            for node in nodes:
                rest = node.get(REST)
                if rest is not None and rest[_HERE] != pattern:
                    yield rest[_HERE]
            if token == REST:
                return
            steps = (ONE,) if token == ONE else (token, ONE)
            nodes = [node[step] for node in nodes for step in steps if step in node]
            if not nodes:
                return
        for node in nodes:
            if node.get(_HERE, pattern) != pattern:
                yield node[_HERE]

    def covered(self, pattern: str) -> list[str]:
        """Return the other patterns that a pattern covers."""
        nodes = [self._root]
        for token in pattern.split(SEPARATOR):
            if token == REST:
                return [each for each in _below(nodes) if each != pattern]
            if token == ONE:
                nodes = [below for node in nodes for step, below in node.items() if step not in (_HERE, REST)]
            else:
                nodes = [node[token] for node in nodes if token in node]
        return [node[_HERE] for node in nodes if node.get(_HERE, pattern) != pattern]


def _below(nodes: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the patterns of all nodes below some nodes."""
    further = [below for node in nodes for step, below in node.items() if step != _HERE]
    while further:
        node = further.pop()
        for step, below in node.items():
            if step == _HERE:
                yield below
            else:
                further.append(below)


class Interest:
    """The patterns that are wanted here, and those that the engine has.

    The caller sends what :meth:`take_unsubscribes` returns, then what :meth:`take_subscribes` returns, after each call
    of another method.

    Args:
        linger: seconds between the last :meth:`remove` of a pattern and its end.
    """

    __slots__ = ("_counts", "_expiry", "_held", "_leavers", "_left", "_portion", "_queue", "_tree", "linger")

    def __init__(self, linger: float) -> None:
        self.linger = linger
        #: By live pattern: the number of its subscribers. 0: it lingers.
        self._counts: dict[str, int] = {}
        self._tree = PatternTree()
        #: By pattern that lingers, oldest first: until when.
        self._expiry: OrderedDict[str, float] = OrderedDict()
        #: By held pattern: whether the engine has confirmed it.
        self._held: dict[str, bool] = {}
        #: Live patterns to ask for.
        self._queue: OrderedDict[str, None] = OrderedDict()
        #: Asked for, and not confirmed.
        self._portion: list[str] = []
        #: By leaver: the patterns whose confirmation it waits for.
        self._leavers: dict[str, set[str]] = {}
        #: What the engine has to be told to leave.
        self._left: list[str] = []

    def __len__(self) -> int:
        """Return the number of live patterns."""
        return len(self._counts)

    @property
    def held(self) -> tuple[str, ...]:
        """The patterns that the engine has confirmed and was not told to leave."""
        return tuple(pattern for pattern, confirmed in self._held.items() if confirmed)

    @property
    def settled(self) -> bool:
        """Whether the engine has confirmed all that is needed."""
        return not self._queue and not self._portion

    @property
    def next_expiry(self) -> float | None:
        """The time of the next :meth:`expire`, None if nothing lingers."""
        return next(iter(self._expiry.values()), None)

    def is_served(self, pattern: str) -> bool:
        """Return whether what is published now and matches a live pattern comes from the engine."""
        held = self._held
        return held.get(pattern, False) or any(held.get(each, False) for each in self._tree.covering(pattern))

    def matches(self, topic: str) -> bool:
        """Return whether a topic matches a live pattern, or a leaver: that may become live again, and is held then."""
        if topic in self._counts or next(self._tree.covering(topic), None) is not None:
            return True
        return any(matches(leaver, topic) for leaver in self._leavers)

    # What is wanted

    def add(self, pattern: str) -> None:
        """Count one more subscriber of a pattern, which must be valid."""
        count = self._counts.get(pattern)
        if count is not None:
            self._counts[pattern] = count + 1
            self._expiry.pop(pattern, None)
            return
        self._counts[pattern] = 1
        self._tree.add(pattern)
        self._place(pattern)
        for each in self._tree.covered(pattern):
            self._place(each)

    def remove(self, pattern: str, now: float) -> None:
        """Count one subscriber of a pattern less.

        Raises:
            KeyError: it has none.
        """
        count = self._counts[pattern]
        if not count:
            raise KeyError(pattern)
        self._counts[pattern] = count - 1
        if count == 1:
            self._expiry[pattern] = now + self.linger

    def expire(self, now: float) -> None:
        """End the patterns that have lingered long enough."""
        while self._expiry:
            pattern, until = next(iter(self._expiry.items()))
            if until > now:
                break
            del self._expiry[pattern]
            self._end(pattern)

    def _end(self, pattern: str) -> None:
        """Forget a live pattern."""
        del self._counts[pattern]
        self._tree.remove(pattern)
        self._queue.pop(pattern, None)
        for each in self._tree.covered(pattern):
            self._place(each)
        if pattern in self._held:
            self._leave(pattern)
        for leaver in [leaver for leaver, waits in self._leavers.items() if pattern in waits]:
            self._leave(leaver)

    def _place(self, pattern: str) -> None:
        """Queue a live pattern to be asked for, unless another one covers it: then leave it."""
        covered = next(self._tree.covering(pattern), None) is not None
        held = pattern in self._held
        if covered:
            self._queue.pop(pattern, None)
            if held:
                self._leave(pattern)
        elif held:
            self._leavers.pop(pattern, None)
        else:
            self._queue[pattern] = None

    # Leaving

    def _leave(self, pattern: str) -> None:
        """Leave a held pattern, now or when all that it serves is served by others."""
        waits = {self._server(each) for each in [pattern, *self._tree.covered(pattern)] if each in self._counts}
        self._leavers[pattern] = {each for each in waits if not self._held.get(each, False)}
        self._try_leave(pattern)

    def _server(self, pattern: str) -> str:
        """Return the pattern that is asked for and serves a live one: it covers it, and nothing covers it."""
        for cover in self._tree.covering(pattern):
            return self._server(cover)
        return pattern

    def _try_leave(self, leaver: str) -> None:
        if not self._leavers[leaver] and self._held[leaver]:
            del self._leavers[leaver]
            del self._held[leaver]
            self._left.append(leaver)

    # To and from the engine

    def take_unsubscribes(self) -> list[str]:
        """Return the patterns that the engine has to leave now."""
        left, self._left = self._left, []
        return left

    def take_subscribes(self) -> list[str]:
        """Return the next patterns to ask for, none while others are not confirmed. At most :data:`PORTION`."""
        if self._portion:
            return []
        while self._queue and len(self._portion) < PORTION:
            pattern, _ = self._queue.popitem(last=False)
            self._portion.append(pattern)
            self._held[pattern] = False
        return self._portion

    def confirm(self) -> None:
        """Record that the engine has confirmed what :meth:`take_subscribes` returned last."""
        confirmed, self._portion = self._portion, []
        for pattern in confirmed:
            self._held[pattern] = True
        for leaver, waits in [*self._leavers.items()]:
            waits.difference_update(confirmed)
            if not waits:
                # What it has to wait for may have changed since.
                self._leave(leaver)

    def cut(self) -> None:
        """Record that the engine has forgotten everything."""
        self._held.clear()
        self._leavers.clear()
        self._left.clear()
        self._portion = []
        self._queue.clear()
        for pattern in self._counts:
            self._place(pattern)
