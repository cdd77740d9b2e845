"""``flush()``, and what happens to sockets that are never closed.

A socket that goes out of use without ``close()`` is an error of the program, and a :class:`ResourceWarning`. What was
accepted for sending still leaves, as far as that is possible:

* A socket that is collected is closed in the background, as by ``close()``.
* When the interpreter exits, all open sockets of the process are flushed, together for at most two seconds. If nothing
  waits to leave, and the peers' systems have acknowledged everything, no greenlet runs any more and the exit takes no
  longer than without this library. What did not leave is logged.

A process that ends without its ``atexit`` functions (a signal, ``os._exit``, a child of ``multiprocessing``) sends
nothing more. A child of a fork does not flush its parent's sockets: they are not registered there any more.
"""

from __future__ import annotations

import atexit
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import gevent
from gevent import get_hub, getcurrent
from gevent.hub import Hub

from ..errors import Closed, Timeout
from ..log import get_logger
from ..loop import owner
from ..loop.waiting import Deadline

__all__ = ["Flushable"]

#: What is logged at the exit is handled at once: no greenlet runs any more.
logger = get_logger("gmultisocket.socket", at_once=True)

#: Seconds that the exit of the interpreter waits for all sockets together.
_EXIT_TIMEOUT: Final = 2.0
#: A thread that waits for another one looks every so many seconds whether that one is still running.
_LOOK_INTERVAL: Final = 0.5

_allocate_lock = owner.original("_thread", "allocate_lock")


class Flushable(ABC):
    """An object that accepts messages and sends them later: a socket, a protocol, a thread's handle of a socket."""

    def flush(self, timeout: float | None = None) -> None:
        """Block until nothing that was accepted for sending waits in this process or is unacknowledged.

        Afterwards every message is with the peer's system (``inproc``: in the peer's receive queue), or was lost with
        its pipe and is counted in ``counters.drops``. Whether the peer's program has read it is not known. A message
        that waits because no peer is connected keeps the call waiting. While others go on to send, it waits for their
        messages as well. ``close(linger)`` waits in the same way.

        Raises:
            Timeout: something had not left in time. It stays queued.
        """
        self._check()
        if not self._flush(Deadline(timeout)):
            raise Timeout("flush", timeout)

    @abstractmethod
    def _abandon(self) -> None:
        """Become unusable in a forked child, without switching greenlets."""

    @abstractmethod
    def _check(self) -> None:
        """Raise unless the caller is in the right thread and process."""

    @abstractmethod
    def _flush(self, deadline: Deadline) -> bool:
        """Block as :meth:`flush` does. Return whether everything has left. Blocks not at all if it has already."""

    @abstractmethod
    def _unsent(self) -> int:
        """Return how many accepted messages have not left. May be called in any thread."""

    @abstractmethod
    def _unclosed(self) -> bool:
        """Return whether it should have been closed: it was used, and ``close()`` was not called."""

    @property
    def _whole(self) -> Flushable:
        """What this is a part of: the protocol of a protocol's socket."""
        return self

    @abstractmethod
    def _push_now(self) -> None:
        """Send what can be sent without the event loop, which does not run any more."""

    @property
    @abstractmethod
    def _home(self) -> tuple[int, Hub]:
        """The OS thread that it belongs to, and the hub."""

    @property
    def _exit_patience(self) -> float:
        """The seconds that the exit of the interpreter may wait for it."""
        return _EXIT_TIMEOUT


def warn_unclosed(lost: Flushable) -> None:
    """Warn that an object was never closed. Costs nothing and shows nothing unless Python shows ResourceWarnings."""
    unsent = lost._unsent()
    rest = f", with {unsent} messages that have not left" if unsent else ""
    warnings.warn(f"unclosed {lost!r}{rest}: call close()", ResourceWarning, stacklevel=2, source=lost)


def close_collected(lost: Flushable, close: Callable[[], object]) -> None:
    """Warn about an object that is being collected, and close it in its own thread.

    May run in any thread, in the middle of anything, so it does not switch greenlets.

    Args:
        lost: the object.
        close: starts to close it, and does not block. It keeps the object alive meanwhile.
    """
    if sys.is_finalizing() or not lost._unclosed():
        return
    thread, hub = lost._home
    try:
        warn_unclosed(lost)
    finally:
        if thread == owner.current_thread() and getcurrent().parent is None:
            # In the thread's first greenlet none of the object's own code is in the middle of something. It may be the
            # last that runs in this thread.
            lost._push_now()
        if is_running(thread, hub):
            # It is not registered any more if it was part of a cycle.
            owner.register(lost)
            hub.loop.run_callback_threadsafe(close)
        else:
            lost._push_now()


def run_flush(flushable: Flushable, timeout: float | None) -> bool:
    """Flush an object of another OS thread. Blocks this thread, not only a greenlet. Return whether all has left.

    Raises:
        Closed: the other thread has ended, or ends meanwhile.
    """
    deadline = Deadline(timeout)
    thread, hub = flushable._home
    flushed = False
    done = _allocate_lock()
    done.acquire()

    def flush() -> None:
        nonlocal flushed
        try:
            flushed = flushable._flush(deadline)
        finally:
            done.release()

    if is_running(thread, hub):
        hub.loop.run_callback_threadsafe(gevent.spawn, flush)
    while is_running(thread, hub):
        left = deadline.left()
        if done.acquire(timeout=_LOOK_INTERVAL if left is None else min(left, _LOOK_INTERVAL)):
            return flushed
        if left == 0:
            return False
    if done.acquire(blocking=False):
        return flushed
    raise Closed("socket", "its thread has ended")


def is_running(thread: int, hub: Hub) -> bool:
    """Return whether an OS thread is running, and its loop exists. May be called in any thread."""
    return hub.loop is not None and thread in sys._current_frames() and not owner.has_ended(hub)


# At exit


def _at_exit() -> None:
    """Flush every open socket of the process, and say what was not closed and what did not leave."""
    found = [each._whole for each in owner.live() if isinstance(each, Flushable)]
    deadline = Deadline(_EXIT_TIMEOUT)
    for each in found:
        try:
            _finish(each, deadline)
        except Exception:
            logger.debug("%r could not be flushed at the exit", each, exc_info=True)
        except BaseException:
            # ^C once more, or a greenlet that has called sys.exit(): the exit shall not wait.
            deadline = Deadline(0)
    for each in found:
        if each._unclosed():
            _report(each)


def _finish(each: Flushable, deadline: Deadline) -> None:
    left = min(deadline.left() or 0.0, each._exit_patience)
    thread, hub = each._home
    here = thread == owner.current_thread()
    if here and hub is get_hub():
        each._flush(Deadline(left))
    elif not here and is_running(thread, hub):
        if each._unsent():
            run_flush(each, left)
    else:
        each._push_now()


def _report(each: Flushable) -> None:
    """Log that an object is still open, and how many of its messages are lost."""
    unsent = each._unsent()
    if unsent:
        logger.error("%d messages had not left when the process ended: %r was not closed", unsent, each)
    else:
        warn_unclosed(each)


# A program's own atexit functions run before, if they are registered after the import of this library: they may send.
atexit.register(_at_exit)
