"""Waiting for a condition that another greenlet makes true.

:class:`WaitList` is the only place where the core blocks on anything but a descriptor. It hands no value to a waiter: a
woken greenlet checks the condition again. So a greenlet that is killed or times out after the wake-up and before it
runs has consumed nothing, and the next waiter is woken instead.

:class:`Deadline` turns a ``timeout=`` into the time that is left, for calls that wait more than once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from gevent.hub import Hub, Waiter

from .yielding import yield_to_loop

__all__ = ["Deadline", "WaitList"]

#: After this number of waits with a timeout of 0 other greenlets run once.
_POLLS: Final = 32


class Deadline:
    """The moment at which a call gives up.

    Args:
        timeout: seconds from now. None: never. 0 or less: at once.
    """

    __slots__ = ("_end",)

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else monotonic() + timeout

    def left(self) -> float | None:
        """Return the seconds that are left: 0.0 when the time is up, None without a limit."""
        if self._end is None:
            return None
        return max(0.0, self._end - monotonic())

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Give up now if the block is left by an error: its greenlet was killed, say, and the rest must not wait."""
        try:
            yield
        except BaseException:
            self._end = monotonic()
            raise


class WaitList:
    """A queue of waiting greenlets, woken one by one, in order, while a condition holds.

    Args:
        hub: the hub of the thread that the waiting greenlets run in.
        condition: what the greenlets wait for. Called in the hub before each wake-up; must not block. While it holds,
            greenlets that wait are woken again and again. None if they wait for different things: then only
            :meth:`wake_all` wakes them.
    """

    __slots__ = ("_condition", "_hub", "_polls", "_scheduled", "waiters")

    def __init__(self, hub: Hub, condition: Callable[[], object] | None = None) -> None:
        self._hub = hub
        self._condition = condition or _never
        self._scheduled = False
        #: Waits with a timeout of 0 since other greenlets last ran.
        self._polls = 0
        #: What wakes each waiting greenlet, the first one in front; another object may add a function of its own that
        #: does not block. Always the same deque, so callers may keep a reference.
        self.waiters: deque[Callable[[bool], object]] = deque()

    def wait(self, timeout: float | None) -> bool:
        """Block until this greenlet is woken.

        Returns:
            True if it was woken: the condition held a moment ago, so check it again. False if the time is up.
        """
        if timeout is not None and timeout <= 0:
            self._polls += 1
            if self._polls > _POLLS:
                # A greenlet that polls must let those run that would make the condition true.
                self._polls = 0
                yield_to_loop()
            return False
        waiter: Waiter[bool] = Waiter(self._hub)
        waiters = self.waiters
        wake = waiter.switch
        waiters.append(wake)
        if timeout is None:
            try:
                return bool(waiter.get())
            except BaseException:
                self._leave(wake)
                raise
        timer = self._hub.loop.timer(timeout)
        try:
            # The loop's clock stands still while greenlets run. Without an update the wait would be too short.
            timer.start(wake, False, update=True)
            woken = bool(waiter.get())
        except BaseException:
            self._leave(wake)
            raise
        finally:
            timer.close()
        if not woken:
            self._leave(wake)
        return woken

    def _leave(self, wake: Callable[[bool], object]) -> None:
        try:
            self.waiters.remove(wake)
        except ValueError:
            # It was woken, and then killed or timed out: wake the next one.
            self.wake()

    def wake(self) -> None:
        """Schedule the hub to wake waiters, in order, while the condition holds. Never switches greenlets."""
        if not self._scheduled and self.waiters:
            self._scheduled = True
            self._hub.loop.run_callback(self._run)

    def wake_now(self) -> None:
        """As :meth:`wake`, for the callback of a watcher. If no other watcher is ready, the greenlets run at once.

        Otherwise they run after the callbacks of the other watchers, which may bring more of what they wait for.
        """
        if self._hub.loop.pendingcnt:
            self.wake()
        else:
            self._run()

    def wake_all(self) -> None:
        """Schedule the hub to wake every present waiter without checking the condition. Never switches greenlets."""
        while self.waiters:
            self._hub.loop.run_callback(self.waiters.popleft(), True)

    def _run(self) -> None:
        self._scheduled = False
        # Each switch runs that greenlet until it blocks, so the condition is checked before every one. The count
        # bounds the loop: a greenlet that waits again is woken in a later turn of the event loop.
        for _ in range(len(self.waiters)):
            if not self.waiters or not self._condition():
                return
            self.waiters.popleft()(True)
        if self.waiters and self._condition():
            self.wake()


def _never() -> bool:
    """Return False: the condition of a list whose greenlets wait for different things."""
    return False
