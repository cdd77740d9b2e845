"""When a socket's pipes write: the limits of their queues, the end of a turn, and the budget of a greenlet that sends.

A *turn* is what runs between two looks of the loop at its callbacks. The first frame that an idle pipe gets in a turn
leaves at once. The pipe is then marked, and what follows leaves together when the turn ends. After a call of
:meth:`WriteScheduler.gather` the first frames of this turn wait for its end as well.

A message for thousands of pipes leaves in portions: in between, the loop looks at everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, ClassVar, Final, Protocol

from gevent.hub import Hub

from ... import options as opts
from ...loop.yielding import MAX_TURN, turn_of, yield_to_loop
from ...options import Option, Options, follow

__all__ = ["AT_ONCE", "FLUSH_BYTES", "TurnEnd", "WriteScheduler"]

#: Queued bytes that leave without waiting for the end of the turn, and bytes that are joined for one system call.
FLUSH_BYTES: Final = 1 << 18

#: A message is written to about this many pipes at once. The others get it when the turn ends.
AT_ONCE: Final = 1024


class TurnEnd(Protocol):
    """An object with work to do when a turn of the loop ends."""

    def _end_turn(self) -> None:
        """Send what was queued in this turn. Called in the hub, or by a flush; must not block."""


class _Then:
    """One call of :meth:`WriteScheduler.when_written`, in line with what writes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def _end_turn(self) -> None:
        self._function()


class WriteScheduler:
    """Says when the pipes of one socket write.

    Attributes:
        queue_limit: messages that a pipe may queue (``socket.send_queue_size``).
        queue_bytes: bytes that a pipe may queue, 0 for no limit (``socket.send_queue_bytes``).
        plain_limit: while a pipe has fewer messages queued than this, one may be appended without any other check.
        flush_bytes: when a pipe has queued this many bytes, it writes before the end of the turn.
        yield_bytes: bytes that a greenlet may send before it lets others run (``socket.yield_bytes``).
        over_budget: whether the next greenlet that sends must call :meth:`yield_turn` first.
        gathering: whether everything that is sent in this turn leaves when it ends.
    """

    __slots__ = (
        "_ending",
        "_hub",
        "_marked",
        "_marked_first",
        "_scheduled",
        "_spent_bytes",
        "_spent_messages",
        "_yield_messages",
        "flush_bytes",
        "gathering",
        "over_budget",
        "plain_limit",
        "queue_bytes",
        "queue_limit",
        "yield_bytes",
    )

    def __init__(self, hub: Hub, options: Options) -> None:
        self._hub = hub
        self.queue_limit = 0
        self.queue_bytes = 0
        self.plain_limit = 0
        self.flush_bytes = FLUSH_BYTES
        self.yield_bytes = 0
        self.over_budget = False
        self.gathering = False
        self._yield_messages = 0
        self._spent_messages = 0
        self._spent_bytes = 0
        #: What to call when this turn ends: shared objects before pipes.
        self._marked_first: list[TurnEnd] = []
        self._marked: list[TurnEnd] = []
        #: What is called now, and what is left of turns before.
        self._ending: deque[TurnEnd] = deque()
        self._scheduled = False
        follow(options, self, self._followed)

    # Options

    def _set_queue_limit(self, value: int) -> None:
        self.queue_limit = value
        self._set_plain_limit()

    def _set_queue_bytes(self, value: int) -> None:
        self.queue_bytes = value
        self.flush_bytes = min(value, FLUSH_BYTES) if value else FLUSH_BYTES
        self._set_plain_limit()

    def _set_plain_limit(self) -> None:
        self.plain_limit = 0 if self.queue_bytes else self.queue_limit

    def _set_yield_messages(self, value: int) -> None:
        self._yield_messages = value

    def _set_yield_bytes(self, value: int) -> None:
        self.yield_bytes = value

    _followed: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.socket.send_queue_size: _set_queue_limit,
        opts.socket.send_queue_bytes: _set_queue_bytes,
        opts.socket.yield_messages: _set_yield_messages,
        opts.socket.yield_bytes: _set_yield_bytes,
    }

    # Turns of the loop

    def gather(self) -> None:
        """Send nothing before this turn of the loop ends: there is more than one message to send."""
        self.gathering = True
        self._schedule()

    def mark(self, pipe: TurnEnd) -> None:
        """Call a pipe's ``_end_turn`` when this turn of the loop ends."""
        self._marked.append(pipe)
        if not self._scheduled:
            self._schedule()

    def mark_first(self, shared: TurnEnd) -> None:
        """Call ``_end_turn`` of something that several pipes share, before that of pipes marked in the same turn."""
        self._marked_first.append(shared)
        self._schedule()

    def when_written(self, function: Callable[[], object]) -> None:
        """Call a function when all that is queued now has been written, as far as the kernel takes it."""
        self.mark(_Then(function))

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._hub.loop.run_callback(self._end_turn)

    def end_turn(self) -> None:
        """Send all that was queued in this turn and those before. Called by ``flush()`` and ``close()``.

        A call that is planned stays so. If another one were planned beside it, both would go on as long as there is a
        rest, and each flush would add one more.
        """
        ending = self._ending
        try:
            self._begin_turn()
            while ending:
                ending.popleft()._end_turn()
        finally:
            if ending:
                self._schedule()

    def _end_turn(self) -> None:
        """Send what was queued in this turn. If that takes long, send the rest when the loop has looked.

        Called in the hub.
        """
        ending = self._ending
        # This call was planned, so until it is known when the rest is sent, nothing else plans the end of a turn.
        try:
            self._begin_turn()
            end = monotonic() + MAX_TURN
            while ending:
                ending.popleft()._end_turn()
                if ending and monotonic() > end:
                    break
        finally:
            self._scheduled = bool(ending)
            if ending:
                turn_of(self._hub).call(self._end_turn)
            elif self._marked or self._marked_first:
                self._schedule()

    def _begin_turn(self) -> None:
        """Begin a new budget, and put what has something queued in the order in which it is sent."""
        self.gathering = self.over_budget = False
        self._spent_messages = self._spent_bytes = 0
        # What is left of a turn before comes first. Otherwise it would wait for ever if somebody always sends to all.
        ending = self._ending
        ending.extend(self._marked_first)
        ending.extend(self._marked)
        self._marked_first.clear()
        self._marked.clear()

    # The budget

    def spend(self, messages: int, size: int) -> None:
        """Count what was sent without a wait. Past the budget the next greenlet that sends yields first."""
        self._spent_messages += messages
        self._spent_bytes += size
        if self._spent_messages >= self._yield_messages or self._spent_bytes >= self.yield_bytes:
            self.over_budget = True

    def yield_turn(self) -> None:
        """Yield to other greenlets, and begin a new budget. The caller has more to send, so that is gathered.

        Otherwise nothing would be joined for a sender whose every message is a whole budget, as to 1,000 pipes.
        """
        self.over_budget = False
        self._spent_messages = self._spent_bytes = 0
        yield_to_loop()
        self.gather()
