"""Letting others run: greenlets that are ready, and the loop, which must look at sockets and timers.

``gevent.sleep(0)`` lets other greenlets run, but gevent runs greenlets that are ready for up to 5 ms, and at least 50
of them, before its loop looks at sockets and timers again. A greenlet that always has more to do, because one peer
always has more to send, would so delay every other peer. :func:`yield_to_loop` waits for the loop itself, by an idle
watcher of the highest priority: the loop looks at everything once, and calls it.

The time between two such looks is shared by all greenlets of a hub. They go on in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any, Final

import gevent
from gevent.hub import Hub, Waiter

from . import owner

__all__ = ["MAX_TURN", "yield_to_loop"]

#: Seconds that greenlets which yield may run in all before the loop looks at sockets and timers.
MAX_TURN: Final = 0.005

#: Where a hub holds its waiters: they live as long as the hub, and no longer.
_ATTRIBUTE: Final = "_gmultisocket_loop_waiters"


class _LoopWaiters:
    """The greenlets of one hub that wait for the loop."""

    __slots__ = ("__weakref__", "_idle", "_waiters", "looked_at")

    def __init__(self, hub: Hub) -> None:
        self._waiters: deque[Waiter[None]] = deque()
        #: When the loop last looked at sockets and timers, as far as is known here: it may have looked later.
        self.looked_at = 0.0
        # With the default priority, libev would call it only when no socket is ready.
        loop: Any = hub.loop
        self._idle = loop.idle(priority=loop.MAXPRI)
        owner.register(self)

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
        self._idle.stop()


def yield_to_loop() -> None:
    """Let other greenlets run; and if greenlets have run for ``MAX_TURN``, let the loop look at sockets and timers."""
    hub: Any = gevent.get_hub()
    waiters = getattr(hub, _ATTRIBUTE, None)
    if waiters is None:
        waiters = _LoopWaiters(hub)
        setattr(hub, _ATTRIBUTE, waiters)
    if monotonic() - waiters.looked_at < MAX_TURN:
        gevent.sleep(0)
    else:
        waiters.wait()
