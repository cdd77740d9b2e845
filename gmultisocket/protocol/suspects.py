"""Peers that let requests time out: they get few requests until they answer.

A pipe becomes a suspect when a request times out that went by it, and nothing has come by it since the request went. It
then gets no to-one messages while there are other pipes, except for a probe now and then: the next real request. The
pause before the first probe is an option; each further pause is twice as long, up to ``_MAX_PAUSE``. Any answer of the
peer, in time or late, ends the suspicion. If all pipes are suspects, they get requests as if none were.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Final

from ..core.pipes.pipe import Pipe, PipeState
from ..core.protocolsocket import ProtocolSocket

__all__ = ["Suspects"]

#: Seconds. The longest pause between two probes of one peer.
_MAX_PAUSE: Final = 60.0


class _Suspect:
    """A pipe that is a suspect.

    Attributes:
        pipe: the pipe.
        pause: seconds from the next probe to the one after it.
        due: when it may get the next probe.
    """

    __slots__ = ("due", "pause", "pipe")

    def __init__(self, pipe: Pipe, pause: float) -> None:
        self.pipe = pipe
        self.due = monotonic() + pause
        self.pause = min(2 * pause, _MAX_PAUSE)


class Suspects:
    """The suspects among the pipes of one protocol.

    Args:
        core: of the protocol's socket.
        pause: returns the seconds before the first probe; 0 if no pipe is to be suspected.

    Attributes:
        pipes: the suspects by pipe id. While it is empty, there is nothing to do. Read-only.
    """

    __slots__ = ("_core", "_next", "_pause", "pipes")

    def __init__(self, core: ProtocolSocket, pause: Callable[[], float]) -> None:
        self._core = core
        self._pause = pause
        self.pipes: dict[int, _Suspect] = {}
        #: When the first of them is due, or earlier.
        self._next = 0.0

    def timed_out(self, pipe: Pipe | None, received: int) -> None:
        """Record that a request has timed out.

        Args:
            pipe: the pipe that it went by, None if that has closed.
            received: the pipe's ``messages_received`` when the request went.
        """
        pause = self._pause()
        if pipe is None or not pause or pipe.state is not PipeState.OPEN or pipe.messages_received != received:
            return
        if pipe.id not in self.pipes:
            suspect = self.pipes[pipe.id] = _Suspect(pipe, pause)
            self._next = min(self._next, suspect.due) if len(self.pipes) > 1 else suspect.due
        # Also one that is a suspect already: it was not avoided while there was no other.
        self._core.avoid(pipe, True)

    def probe(self) -> Pipe | None:
        """Return a suspect that may get a request now, None if there is none. It has to be sent at once."""
        now = monotonic()
        if now < self._next:
            return None
        self._core.check()
        due = [suspect for suspect in self.pipes.values() if suspect.due <= now and not suspect.pipe.full]
        chosen = min(due, key=lambda suspect: suspect.due, default=None)
        if chosen is not None:
            chosen.due = now + chosen.pause
            chosen.pause = min(2 * chosen.pause, _MAX_PAUSE)
        # Those that are due and full are looked at again a little later.
        self._next = max(now + 0.01, min((suspect.due for suspect in self.pipes.values()), default=now))
        return chosen.pipe if chosen is not None else None

    def answered(self, pipe_id: int) -> None:
        """Record that a peer has answered something. Neither blocks nor switches greenlets."""
        suspect = self.pipes.pop(pipe_id, None)
        if suspect is not None:
            self._core.avoid(suspect.pipe, False)
            self._avoid_all()

    def on_pipe(self, kind: str, pipe: Pipe) -> None:
        """Record that a pipe was added or removed; for an ``on_pipe`` callback of the core."""
        if not self.pipes:
            return
        if kind == "remove":
            self.pipes.pop(pipe.id, None)
        else:
            self._avoid_all()

    def _avoid_all(self) -> None:
        """Avoid all suspects, as there is a pipe now that is none."""
        for suspect in list(self.pipes.values()):
            self._core.avoid(suspect.pipe, True)
