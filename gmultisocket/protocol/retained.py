"""Retained values: the last publication of a topic, for subscribers that come later.

A new subscription gets the values of the topics that it matches, each as an ordinary publication along the path to the
subscriber. A greenlet for each pipe sends them, when the pipe is writable, and takes each value only at that moment: so
a value never comes after a newer one. If one was published in that time, it may come twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from gevent import Greenlet

from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..loop.yielding import yield_to_loop
from ..wire import TO_DEST, Message
from .history import History, publication, topics_with_value

__all__ = ["Retained"]

#: Values that are sent before others run.
_PORTION: Final = 256


class _New:
    """A new subscription.

    Attributes:
        unnumbered: it gets only the values without a position.
    """

    __slots__ = ("unnumbered",)

    def __init__(self, unnumbered: bool) -> None:
        self.unnumbered = unnumbered


class Retained:
    """The retained values of one Pub.

    Args:
        core: of its socket.
        spawn: its ``_spawn``.
        history: returns what has the values; None if there are none.
    """

    __slots__ = ("_core", "_history", "_queues", "_spawn")

    def __init__(
        self,
        core: ProtocolSocket,
        spawn: Callable[..., Greenlet[..., Any]],
        history: Callable[[], History | None],
    ) -> None:
        self._core = core
        self._spawn = spawn
        self._history = history
        #: By pipe: the sources and patterns of new subscriptions, each with an object of its own: one that ended and
        #: began again is another one. Has no pipe without any.
        self._queues: dict[Pipe, OrderedDict[tuple[bytes, str], _New]] = {}

    def subscribed(self, pipe: Pipe, source: bytes, pattern: str, unnumbered: bool = False) -> None:
        """Send the values that a new subscription matches, later. Neither blocks nor switches greenlets.

        Args:
            pipe, source, pattern: the subscription.
            unnumbered: only the values without a position; the others come otherwise.
        """
        history = self._history()
        if history is None or not (history.last_offset or history.retained_topics()):
            return
        queue = self._queues.get(pipe)
        if queue is None:
            queue = self._queues[pipe] = OrderedDict()
            self._spawn(self._send, pipe, queue)
        # At most one for each subscription, so the limits of subscriptions bound them.
        queue[source, pattern] = _New(unnumbered)

    def unsubscribed(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Forget a subscription that has ended. Neither blocks nor switches greenlets."""
        queue = self._queues.get(pipe)
        if queue is not None:
            queue.pop((source, pattern), None)

    def _send(self, pipe: Pipe, queue: OrderedDict[tuple[bytes, str], _New]) -> None:
        """Send the values for the new subscriptions by one pipe (a greenlet for each pipe, while there are any)."""
        try:
            while queue:
                key, present = next(iter(queue.items()))
                source, pattern = key
                history = self._history()
                assert history is not None
                for number, topic in enumerate(_find_topics(history, pattern), 1):
                    if number % _PORTION == 0:
                        yield_to_loop()
                    if not self._core.wait_writable(pipe):
                        return
                    # Checked only now: during the wait, it may have changed or ended.
                    if queue.get(key) is not present:
                        break
                    values = [*history.unnumbered(topic)]
                    if not present.unnumbered:
                        values += [(topic, content) for _, _, _, content in history.retained(topic)]
                    for same, content in values:
                        self._core.put(pipe, Message(TO_DEST, destination=source, content=publication(same, content)))
                if queue.get(key) is present:
                    del queue[key]
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self._queues[pipe]


def _find_topics(history: History, pattern: str) -> list[str]:
    """Return the topics that have a value and match a pattern; the topic if it is one. Lets others run meanwhile."""
    found = []
    for number, topics in enumerate(topics_with_value(history, pattern)):
        if number:
            yield_to_loop()
        found += topics
    return found
