"""Who may use a socket: the OS thread that made it, in the process that made it.

gevent objects are not thread-safe, and greenlets that a fork copies would read the parent's connections. So a socket
checks at every call that it is in its own thread. A fork changes what the sockets hold for their thread, so that the
same check, and no second one, finds the stranger; and it lets go of their descriptors in the child, without a word to
any peer and without switching greenlets (a switch inside ``fork()`` would run the parent's greenlets).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Protocol

from gevent.hub import Hub
from gevent.monkey import get_original

from ..errors import ForkedSocketError, MultiSocketError, WrongThread

__all__ = ["FORKED", "check_thread", "current_thread", "live", "register", "unregister", "wrong_owner"]

#: The identity of the OS thread that runs, patched or not.
current_thread = get_original("_thread", "get_ident")

#: What stands for the thread of a socket whose process has forked: no thread has this number.
FORKED = -1


class Owned(Protocol):
    """What belongs to a thread and a process."""

    def _abandon(self) -> None:
        """Become unusable in a forked child, without switching greenlets."""


_live: weakref.WeakSet[Owned] = weakref.WeakSet()


def register(owned: Owned) -> None:
    """Have ``_abandon()`` called in children that are forked from now on."""
    _live.add(owned)


def unregister(owned: Owned) -> None:
    """Undo :func:`register`."""
    _live.discard(owned)


def live() -> Iterator[Owned]:
    """Return what is registered."""
    return iter(list(_live))


def wrong_owner(thread: int) -> MultiSocketError:
    """Return the error for a use of what belongs to ``thread`` from the running one."""
    return ForkedSocketError() if thread == FORKED else WrongThread()


def check_thread(hub: Hub) -> None:
    """Check that the running thread is that of a hub, and so of what belongs to it.

    Raises:
        WrongThread: it is another one.
    """
    if current_thread() != hub.thread_ident:
        raise WrongThread


def _abandon_all() -> None:
    for owned in list(_live):
        owned._abandon()
    _live.clear()


os.register_at_fork(after_in_child=_abandon_all)
