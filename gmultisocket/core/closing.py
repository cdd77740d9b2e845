"""One call of ``close()`` does the work, and all others wait until it is done."""

from __future__ import annotations

from gevent.event import Event

__all__ = ["Closing"]


class Closing:
    """How far the closing of an object is.

    Attributes:
        begun: whether a call does the work, or has done it.
    """

    __slots__ = ("_done", "begun")

    def __init__(self) -> None:
        self.begun = False
        #: Made when the work begins; None after a fork has ended the object.
        self._done: Event | None = None

    def begin(self) -> None:
        """The caller does the work."""
        self.begun = True
        self._done = Event()

    def finish(self) -> None:
        """The work is done."""
        assert self._done is not None
        self._done.set()

    def abandon(self) -> None:
        """End the object in a forked child: nothing is done, and nobody waits."""
        self.begun = True
        self._done = None

    @property
    def done(self) -> bool:
        """Whether nothing remains to be done."""
        return self.begun and (self._done is None or self._done.is_set())

    def wait(self) -> None:
        """Block until the work is done."""
        if self._done is not None:
            self._done.wait()
