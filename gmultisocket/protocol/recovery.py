"""What a Sub does about publications that it has missed: it asks for them, and tells the program what does not come.

Made for a Sub when it first needs it: by ``recover=True``, ``retained=False`` or ``on_gap``. From then on it asks for
all of its patterns with positions (0x05). What decides is in :mod:`~gmultisocket.protocol.positions`.

A gap is told where it is: a marker in the receive queue stands for it, between the publications. The greenlet that
receives calls the callbacks when it comes to the marker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent import Greenlet

from .. import options as opts
from .. import usercode
from ..core.protocolsocket import ProtocolSocket
from ..loop.yielding import keep_to_turn
from ..options import Options
from ..wire import SEND_TYPE_MASK, TO_ALL, Message
from .positions import Gap, Positions
from .pubsubwire import Positioned, Replay

__all__ = ["Marker", "Recovery"]

#: How often publishers behind a switch are asked again that have taken a 0x05 for a plain subscription, as older ones
#: do, or have not got it.
_TRIES: Final = 2


class Marker(bytes):
    """A gap, as the content of a message in the receive queue: that of a publication without a topic.

    Attributes:
        gap: the gap.
    """

    gap: Gap


class Recovery:
    """The positions of one Sub, and its gaps.

    Args:
        core: of its socket.
        options: of its socket.
        spawn: its ``_spawn``.
    """

    __slots__ = ("__weakref__", "_again", "_callbacks", "_core", "_flags", "_had", "_options", "_positions", "_spawn",
                 "_tries", "_waiting")  # fmt: skip

    def __init__(self, core: ProtocolSocket, options: Options, spawn: Callable[..., Greenlet[..., Any]]) -> None:
        self._core = core
        self._options = options
        self._spawn = spawn
        self._positions = Positions()
        #: By pattern: whether retained values are wanted, and whether what was missed is.
        self._flags: dict[str, tuple[bool, bool]] = {}
        #: By pipe id: patterns that were subscribed to without positions before. Their retained values come, or have
        #: come, for that. The next asking by the pipe asks for none: they might come behind newer publications.
        self._had: dict[int, set[str]] = {}
        self._callbacks: list[Callable[[Gap], object]] = []
        #: By pattern and pipe id: how often it will be asked for again.
        self._tries: dict[tuple[str, int], int] = {}
        #: Whether a greenlet waits for publishers after a reconnect, and whether it must wait again.
        self._waiting = False
        self._again = False

    # Patterns

    def add(self, pattern: str, retained: bool, recover: bool) -> None:
        """Begin with a pattern, or want more of one that is there."""
        if pattern not in self._flags:
            self._positions.add(pattern)
        before = self._flags.get(pattern, (False, False))
        self._flags[pattern] = (retained or before[0], recover or before[1])

    def had(self, pipe_id: int, patterns: set[str]) -> None:
        """Take patterns that were sent by a pipe without a 0x05: their retained values come without positions."""
        self._had[pipe_id] = patterns

    def remove(self, pattern: str) -> None:
        """Forget a pattern."""
        del self._flags[pattern]
        for had in self._had.values():
            had.discard(pattern)
        self._positions.remove(pattern)
        for key in [key for key in self._tries if key[0] == pattern]:
            del self._tries[key]

    def ask(self, pattern: str, pipe_id: int) -> bytes:
        """Return the 0x05 for all publishers behind a pipe."""
        retained, recover = self._flags[pattern]
        had = self._had.get(pipe_id)
        if had and pattern in had:
            had.remove(pattern)
            retained = False
        return self._positions.ask(pattern, pipe_id, retained=retained, recover=recover).encode()

    def ask_another(self, pattern: str, pipe_id: int) -> bytes | None:
        """Return the 0x05 for one more publisher behind a pipe; None if none was sent to the others yet."""
        retained, recover = self._flags[pattern]
        ask = self._positions.ask_another(pattern, pipe_id, retained=retained, recover=recover)
        return None if ask is None else ask.encode()

    # What comes from publishers

    def asked(self, number: int) -> str | None:
        """Return the pattern of an asking, None if its answers do not count."""
        return self._positions.asked(number)

    def answer(self, source: bytes, replay: Replay) -> None:
        """Take a 0x06."""
        for gap in self._positions.answer(source, replay):
            self._mark(gap)

    def acknowledged(self, pattern: str, source: bytes, pipe_id: int) -> None:
        """Take a 0x02."""
        if pattern in self._flags and not self._positions.serves(pattern, source):
            self._tries.setdefault((pattern, pipe_id), _TRIES)

    def refused(self, pattern: str, source: bytes) -> bool:
        """Take a 0x03. Return whether the other publishers must be asked again."""
        return self._positions.refused(source, pattern)

    def is_early(self, message: Message, topic: str) -> bool:
        """Return whether a publication without a position comes before the answer of its publisher: that is counted.

        It was for others behind the same switch. What the publisher answers covers it, so it would come twice. A
        publisher that has answered before, and was asked again, sends only what has no position in this way.
        """
        if message.flags & SEND_TYPE_MASK != TO_ALL or not self._positions.has_met(message.source):
            return False
        for pattern, publishers in self._positions.answered(topic).items():
            if message.source in publishers or (pattern, message.pipe_id) in self._tries:
                return False
        self._core.count_drop("repeated", message.pipe_id)
        return True

    def take(self, message: Message, positioned: Positioned, topic: str) -> None:
        """Take a 0x07. If the program gets it, it is in the queue then, and what is missing in front of it as well."""
        wanted, gap = self._positions.take(message.source, positioned, topic)
        if gap is not None:
            self._mark(gap)
        if wanted:
            self._core.append(Message(content=positioned.publication, pipe_id=message.pipe_id))
        else:
            self._core.count_drop("repeated", message.pipe_id)

    # Pipes

    def pipe_added(self) -> None:
        """Begin to wait for publishers that have the histories which are known."""
        self._again = True
        if not self._waiting and self._options.get(opts.protocol.pubsub.recover_timeout):
            self._waiting = True
            self._spawn(self._wait)

    def _wait(self) -> None:
        """Tell what is missing because no publisher has its history (a greenlet after a reconnect)."""
        try:
            while self._again:
                self._again = False
                reconnected = self._positions.now()
                gevent.sleep(self._options.get(opts.protocol.pubsub.recover_timeout))
                keep_to_turn()
                for pattern in [*self._flags]:
                    for gap in self._positions.expire(pattern, reconnected):
                        self._mark(gap)
        finally:
            self._waiting = False

    def pipe_removed(self, pipe_id: int) -> list[str]:
        """Forget the publishers behind a pipe. Return the patterns to ask the others for."""
        for key in [key for key in self._tries if key[1] == pipe_id]:
            del self._tries[key]
        self._had.pop(pipe_id, None)
        return self._positions.remove_pipe(pipe_id)

    def overdue(self) -> list[str]:
        """Return the patterns to ask all publishers for again: an answer of one was lost. Called at each refresh."""
        return self._positions.overdue()

    def unanswered(self, pipe_id: int) -> list[str]:
        """Return the patterns to ask the publishers behind a pipe for again: one may not have got a 0x05."""
        found = []
        for key, tries in [*self._tries.items()]:
            if key[1] == pipe_id and tries:
                self._tries[key] = tries - 1
                found.append(key[0])
        return found

    # Gaps

    def on_gap(self, callback: Callable[[Gap], object]) -> Callable[[], None]:
        """Call a callback for each gap from now on. Return a function that ends this."""
        self._callbacks.append(callback)

        def remove() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return remove

    def _mark(self, gap: Gap) -> None:
        if self._callbacks:
            marker = Marker(2)
            marker.gap = gap
            self._core.append(Message(content=marker))

    def tell(self, content: bytes) -> None:
        """Call the callbacks if this is a marker. The receiving greenlet does that, when it is between publications."""
        if not isinstance(content, Marker):
            return
        for callback in [*self._callbacks]:
            try:
                callback(content.gap)
            except Exception as error:
                usercode.report("gmultisocket.protocol", "a gap callback failed", error, self)
