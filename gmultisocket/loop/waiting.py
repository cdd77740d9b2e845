"""How a greenlet waits for something that another greenlet makes true.

:class:`WaitList` is the one place where the core blocks on anything but a descriptor. It never hands a value
over: a woken greenlet looks again for what it came for, so a greenlet that is killed or timed out
between the wake-up and its turn has consumed nothing, and the next in line is served instead.

:class:`Deadline` turns a ``timeout=`` into what is left of it, for calls that wait more than once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Final, Protocol

from gevent.hub import Hub, Waiter

from .yielding import yield_to_loop

__all__ = ["Deadline", "WaitList"]

#: How many looks with a timeout of 0 let nobody else run.
_POLLS: Final = 32


class Wakeable(Protocol):
    """What may stand in a :class:`WaitList`: a waiter, or an object that works in the hub without blocking."""

    def switch(self, value: bool) -> object: ...


class Deadline:
    """The moment at which a call gives up.

    Args:
        timeout: seconds from now; None never, 0 or less at once.
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds that are left, 0.0 when the time is up, None for no limit."""
        if self._end is None:
            return None
        return max(0.0, self._end - monotonic())


class WaitList:
    """Greenlets in the order in which they came, woken one by one while a condition holds.

    Args:
        hub: the hub of the thread that the waiting greenlets run in.
        condition: called in the hub before each wake-up; must not block.
    """

    __slots__ = ("_condition", "_hub", "_polls", "_scheduled", "waiters")

    def __init__(self, hub: Hub, condition: Callable[[], object]) -> None:
        self._hub = hub
        self._condition = condition
        self._scheduled = False
        #: How often nobody waited although the condition may not have held.
        self._polls = 0
        #: Those who wait, first come first; always the same deque. Look at it to see whether anybody does.
        self.waiters: deque[Wakeable] = deque()

    def wait(self, timeout: float | None) -> bool:
        """Block until it is this greenlet's turn.

        Returns:
            True when woken: the condition held when the hub looked, so look again. False when the time is up.
        """
        if timeout is not None and timeout <= 0:
            self._polls += 1
            if self._polls > _POLLS:
                # Whoever polls must not keep the loop from those who would make the condition true.
                self._polls = 0
                yield_to_loop()
            return False
        waiter: Waiter[bool] = Waiter(self._hub)
        waiters = self.waiters
        waiters.append(waiter)
        if timeout is None:
            try:
                return bool(waiter.get())
            except BaseException:
                self._leave(waiter)
                raise
        timer = self._hub.loop.timer(timeout)
        try:
            # The loop's own clock stands still while greenlets run: a wait would lose the time that they took before.
            timer.start(waiter.switch, False, update=True)
            woken = bool(waiter.get())
        except BaseException:
            self._leave(waiter)
            raise
        finally:
            timer.close()
        if not woken:
            self._leave(waiter)
        return woken

    def _leave(self, waiter: Wakeable) -> None:
        try:
            self.waiters.remove(waiter)
        except ValueError:
            # It had been woken and was then killed or timed out: whatever it was woken for is for the next.
            self.wake()

    def wake(self) -> None:
        """Let the hub wake waiters, in order, for as long as the condition holds. Never switches."""
        if not self._scheduled and self.waiters:
            self._scheduled = True
            self._hub.loop.run_callback(self._run)

    def wake_all(self) -> None:
        """Let the hub wake every greenlet that waits now, whatever the condition says. Never switches."""
        while self.waiters:
            self._hub.loop.run_callback(self.waiters.popleft().switch, True)

    def _run(self) -> None:
        self._scheduled = False
        # Each switch runs that greenlet until it blocks, so the condition is looked at anew every time. The
        # count bounds the loop: a greenlet that comes back to the end of the line waits for the next turn.
        for _ in range(len(self.waiters)):
            if not self.waiters or not self._condition():
                return
            self.waiters.popleft().switch(True)
        if self.waiters and self._condition():
            self.wake()
