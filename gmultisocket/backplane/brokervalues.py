"""Present values that are fetched from a broker while newer ones may come.

What is fetched and what is published now come by different ways, so nothing says which was first. But everything that
changes after the server knows a subscription comes live. So a fetched value counts only if nothing has come live for
its topic since the subscription was sent: otherwise the newest one has come, or is on its way.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from .engine import Plane

__all__ = ["FetchedValues"]


class FetchedValues:
    """Reports present values to a plane, the live ones and the fetched ones.

    Args:
        plane: whom it reports to.
    """

    __slots__ = ("_changed", "_plane")

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        #: Topics for which something has come live since the last :meth:`begin`; None while nothing is fetched.
        self._changed: set[str] | None = None

    def begin(self) -> None:
        """Patterns are about to be sent to the server, and the values that match will be fetched."""
        self._changed = set()

    def end(self) -> None:
        """All was fetched."""
        self._changed = None

    def live(self, topic: str, content: bytes | None, origin: bytes, sequence: int) -> None:
        """Report a change that has come live. The content is None if the topic has no value any more."""
        if self._changed is not None:
            self._changed.add(topic)
        if content is None:
            self._plane.unretained(topic)
        else:
            self._plane.retained(topic, content, origin, sequence, True)

    def fetched(self, topic: str, content: bytes, origin: bytes, sequence: int) -> None:
        """Report a value that was fetched, unless a newer one has come or is on its way."""
        if self._changed is not None and topic not in self._changed:
            self._plane.retained(topic, content, origin, sequence, False)
