"""Who may use a socket: the OS thread that made it, in the process that made it.

gevent objects are not thread-safe, and greenlets that a fork copies would read the parent's connections. So a socket
checks at every call that it runs in its own thread. In a forked child the thread identity that a socket holds becomes
:data:`FORKED`, so the same check also finds a fork. The sockets' descriptors are closed in the child without a word to
any peer and without switching greenlets: a switch inside ``fork()`` would run the parent's greenlets.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from gevent.hub import Hub

from ..errors import ForkedSocketError, MultiSocketError, WrongThread

__all__ = [
    "FORKED",
    "check_thread",
    "current_thread",
    "has_ended",
    "live",
    "original",
    "register",
    "stop_abandoned",
    "unregister",
    "watch_thread",
    "wrong_owner",
]


def original(module: str, name: str) -> Any:
    """Return a function of the standard library as it is without monkey patching."""
    # Importing gevent.monkey takes a tenth of the time of importing this library. Before it is imported, nothing is
    # patched.
    monkey = sys.modules.get("gevent.monkey")
    return getattr(import_module(module), name) if monkey is None else monkey.get_original(module, name)


#: Returns the identity of the running OS thread, with or without monkey patching.
current_thread = original("_thread", "get_ident")

#: The thread identity of a socket in a forked child. No thread has this number.
FORKED = -1


class Owned(Protocol):
    """An object that belongs to one thread of one process."""

    def _abandon(self) -> None:
        """Become unusable in a forked child, without switching greenlets."""


_live: weakref.WeakSet[Owned] = weakref.WeakSet()


def register(owned: Owned) -> None:
    """Arrange that ``_abandon()`` is called in every child that is forked from now on."""
    _live.add(owned)


def unregister(owned: Owned) -> None:
    """Undo :func:`register`."""
    _live.discard(owned)


def live() -> Iterator[Owned]:
    """Return the registered objects. May be called in any thread."""
    while True:
        try:
            return iter(list(_live))
        except RuntimeError:
            # Another thread has registered one meanwhile.
            continue


class _Life:
    """Lives as long as a thread."""


#: Of each thread its own, with or without monkey patching.
_of_thread = original("_thread", "_local")()
_lives: weakref.WeakKeyDictionary[Hub, weakref.ref[_Life]] = weakref.WeakKeyDictionary()


def watch_thread(hub: Hub) -> None:
    """Remember that the running thread has this hub, for :func:`has_ended`.

    The number of a thread does not tell: another thread may get it.
    """
    life = getattr(_of_thread, "life", None)
    if life is None:
        life = _of_thread.life = _Life()
    _lives[hub] = weakref.ref(life)


def has_ended(hub: Hub) -> bool:
    """Return whether the thread of a hub that was watched has ended."""
    life = _lives.get(hub)
    return life is not None and life() is None


def wrong_owner(thread: int) -> MultiSocketError:
    """Return the error for using an object of the thread ``thread`` from the running thread."""
    return ForkedSocketError() if thread == FORKED else WrongThread()


def check_thread(hub: Hub) -> None:
    """Check that the running thread is the thread of a hub.

    Raises:
        WrongThread: it is another thread.
    """
    if current_thread() != hub.thread_ident:
        raise WrongThread


def stop_abandoned(*watchers: Any) -> None:
    """Stop watchers in a forked child; None is no watcher. Never switches greenlets."""
    for watcher in watchers:
        # gevent refuses that if their loop was destroyed, as that of a thread which has ended.
        with suppress(ValueError):
            if watcher is not None:
                watcher.stop()


def _abandon_all() -> None:
    failed = None
    for owned in list(_live):
        try:
            owned._abandon()
        except Exception as error:
            # The child must not use the others.
            failed = error
    _live.clear()
    if failed is not None:
        # Python prints it, and the child goes on.
        raise failed


os.register_at_fork(after_in_child=_abandon_all)
