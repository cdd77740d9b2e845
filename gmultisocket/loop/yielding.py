"""Letting others run: greenlets that are ready, and the loop, which must look at sockets and timers.

``gevent.sleep(0)`` lets other greenlets run, but gevent runs greenlets that are ready for up to 5 ms, and at least 50
of them, before its loop looks at sockets and timers again. A greenlet that always has more to do, because one peer
always has more to send, would so delay every other peer. :func:`yield_to_loop` waits for the loop itself, by an idle
watcher of the highest priority: the loop looks at everything once, and calls it.

The time between two such looks is shared by all greenlets of a hub. They go on in the order in which they came.

One look may also wake thousands of greenlets, each of which has a little to do: their peers have all sent something, or
have all gone, at the same moment. A greenlet that waits by :meth:`Turn.wait_for` or :meth:`Turn.read_for`, or calls
:func:`keep_to_turn` when a timer has woken it, goes on at once only while the turn is short. The others go on in the
next turns. In between, the loop looks at everything else.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import gevent
from gevent.hub import Hub, Waiter

from . import owner

__all__ = ["MAX_TURN", "Turn", "keep_to_turn", "turn_of", "yield_to_loop"]

#: Seconds that greenlets which yield may run in all before the loop looks at sockets and timers; and so those that were
#: woken by one look.
MAX_TURN: Final = 0.005

#: After this number of greenlets that were woken the time is checked.
_CHECK_EVERY: Final = 16

#: Where a hub holds its turn: that lives as long as the hub, and no longer.
_ATTRIBUTE: Final = "_gmultisocket_turn"


class Turn:
    """The present turn of one hub's loop, and the greenlets that wait for the next one."""

    __slots__ = ("__weakref__", "_began", "_hub", "_idle", "_left", "_loop", "_wait", "_waiters", "looked_at")

    def __init__(self, hub: Hub) -> None:
        self._waiters: deque[Waiter[None] | _Call] = deque()
        #: When the loop last looked at sockets and timers, as far as is known here: it may have looked later.
        self.looked_at = 0.0
        # With the default priority, libev would call it only when no socket is ready.
        loop: Any = hub.loop
        self._loop = loop
        self._hub = hub
        self._wait = hub.wait
        self._idle = loop.idle(priority=loop.MAXPRI)
        #: When the time of this turn was first checked, 0 if it was not; and how many more greenlets may be woken until
        #: it is checked again.
        self._began = 0.0
        self._left = _CHECK_EVERY
        owner.register(self)

    def wait_for(self, watcher: Any) -> bool:
        """Block until a watcher is ready, and the turn is not too long.

        Returns:
            Whether it was the next turn for which the caller has waited: others have run since the watcher was ready.
        """
        self._wait(watcher)
        self._left -= 1
        return self._left < 0 and self.check()

    def read_for(
        self, watcher: Any, read: Callable[[int], bytes], size: int, take: Callable[[bytes], bool]
    ) -> bytes | None:
        """Block until something is read that a callback does not take, or the turn is too long.

        To wake a greenlet takes longer than most callbacks.

        Args:
            watcher: says when there is something; not started.
            read: reads; does not block. Called with ``size`` in the hub, each time the watcher is ready.
            size: in bytes.
            take: called in the hub with what was read, if it is less than ``size``; must not block. Returns whether the
                wait goes on.

        Returns:
            What the callback has not taken; None if it was the next turn for which the caller has waited.

        Raises:
            BaseException: what ``read`` or ``take`` has raised.
        """
        waiter: Waiter[bytes | None] = Waiter(self._hub)
        watcher.start(_Reading(self, waiter, read, size, take).ready)
        try:
            data = waiter.get()
        finally:
            watcher.stop()
        if data is None:
            self.wait()
        return data

    def check(self) -> bool:
        """Block until the next turn if this one is too long. Return whether it was."""
        if self.is_long():
            # Nothing is left: all others that are woken in this turn wait as well.
            self.wait()
            return True
        return False

    def is_long(self) -> bool:
        """Return whether this turn is too long. Called when ``_left`` is negative; never blocks."""
        now = monotonic()
        if not self._began:
            self._began = now
            # Callbacks run before the loop looks again.
            self._loop.run_callback(self._end)
        elif now - self._began >= MAX_TURN:
            return True
        self._left = _CHECK_EVERY
        return False

    def _end(self) -> None:
        """The turn ends. Called in the hub."""
        self._began = 0.0
        self._left = _CHECK_EVERY

    def wait(self) -> None:
        """Block until the loop has looked, and the greenlets that came before have run."""
        waiter: Waiter[None] = Waiter()
        self._waiters.append(waiter)
        if not self._idle.active:
            self._idle.start(self._run)
        try:
            waiter.get()
        except BaseException:
            # Killed, or its time is over.
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Call a function in the hub when the loop has looked, after the greenlets that came before have run."""
        self._waiters.append(_Call(function))
        if not self._idle.active:
            self._idle.start(self._run)

    def _run(self) -> None:
        """Let greenlets go on until their time is used. Called in the hub, after each look of the loop."""
        self.looked_at = now = monotonic()
        end = now + MAX_TURN
        # The count bounds the loop: a greenlet that yields again comes after the next look.
        for _ in range(len(self._waiters)):
            if not self._waiters:
                break
            self._waiters.popleft().switch(None)
            if monotonic() >= end:
                break
        if not self._waiters:
            self._idle.stop()

    def _abandon(self) -> None:
        """Forget the parent's greenlets in a forked child."""
        self._waiters.clear()
        self._end()
        owner.stop_abandoned(self._idle)


class _Call:
    """One call of :meth:`Turn.call`, in line with greenlets."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def switch(self, value: None) -> None:
        """Call the function."""
        self._function()


class _Reading:
    """One call of :meth:`Turn.read_for`.

    Attributes:
        throw: of the waiter. gevent ends a wait by the ``throw`` of the object whose method the watcher calls.
    """

    __slots__ = ("_read", "_size", "_take", "_turn", "_waiter", "throw")

    def __init__(
        self,
        turn: Turn,
        waiter: Waiter[bytes | None],
        read: Callable[[int], bytes],
        size: int,
        take: Callable[[bytes], bool],
    ) -> None:
        self._turn = turn
        self._waiter = waiter
        self._read = read
        self._size = size
        self._take = take
        self.throw = waiter.throw

    def ready(self) -> None:
        """Read and offer what was read, or wake the greenlet that waits. Called in the hub."""
        turn = self._turn
        turn._left -= 1
        if turn._left < 0 and turn.is_long():
            self._waiter.switch(None)
            return
        try:
            data = self._read(self._size)
        except BlockingIOError:
            return
        except BaseException:
            self._waiter.throw(*sys.exc_info())
            return
        try:
            # What fills the size may not be all, and another size may be better now.
            if len(data) < self._size and self._take(data):
                return
        except BaseException:
            self._waiter.throw(*sys.exc_info())
            return
        self._waiter.switch(data)


def turn_of(hub: Any) -> Turn:
    """Return the turn of a hub's loop."""
    turn = getattr(hub, _ATTRIBUTE, None)
    if turn is None:
        turn = Turn(hub)
        setattr(hub, _ATTRIBUTE, turn)
    return turn


def yield_to_loop() -> None:
    """Let other greenlets run; and if greenlets have run for ``MAX_TURN``, let the loop look at sockets and timers."""
    turn = turn_of(gevent.get_hub())
    if monotonic() - turn.looked_at < MAX_TURN:
        gevent.sleep(0)
    else:
        turn.wait()


def keep_to_turn() -> None:
    """Block until the next turn if greenlets that were woken in this one have run for ``MAX_TURN``.

    For greenlets that a timer has woken: thousands may be due at the same moment.
    """
    turn = turn_of(gevent.get_hub())
    turn._left -= 1
    if turn._left < 0:
        turn.check()
