"""From host names to addresses. (An IP address needs no lookup, and never comes here.)

A name is looked up by the system's ``getaddrinfo`` in a thread, as gevent does it. But the threads are this module's
own: gevent has ten of them for everything that the process does in threads, so names that get no answer would hold up
all others, and files too.

Names that get no answer hold up no others here:

* Names whose last lookup was quick, names whose last lookup was slow, and new names wait in three lines.
* A lookup of the first or the third line that takes longer than ``_PATIENCE`` makes room for the next one of its line,
  and goes on in its thread. Some threads are for the first line only.
* Of the new names the newest goes first: it does not wait behind a crowd that came before.
* All who ask for one name at the same time share one lookup.

A program's own choice is respected: if gevent is set up to use another resolver (``GEVENT_RESOLVER``, c-ares or
dnspython), or ``gevent.socket.getaddrinfo`` was replaced, that is called instead.
"""

from __future__ import annotations

import _socket

# What a lookup would import at its first call, when there may be no descriptor left for it.
import encodings.idna  # noqa: F401
import os
from collections import deque
from time import monotonic
from typing import Any, Final

import gevent
from gevent import socket as gsocket
from gevent.event import AsyncResult
from gevent.hub import Hub
from gevent.resolver.thread import Resolver
from gevent.threadpool import ThreadPool

__all__ = ["Lookups", "look_up"]

#: Seconds. A lookup that takes longer is slow.
_PATIENCE: Final = 0.5
#: The number of lookups of one line at the same time, without those that have proved to be slow.
_MAX_RUNNING: Final = 8
#: The maximum number of threads, and how many of them are for names that are known to be quick only.
_MAX_THREADS: Final = 128
_RESERVED: Final = 8
#: Seconds after which an unused thread ends.
_IDLE_TIMEOUT: Final = 10
#: The number of names of which it is remembered whether they are slow.
_MAX_REMEMBERED: Final = 10_000


def look_up(host: str, port: int, flags: int) -> list[Any]:
    """Return the result of ``getaddrinfo`` for a host name. Blocks; the caller limits the time.

    Args:
        host: the name.
        port: the port of the returned addresses.
        flags: as for ``getaddrinfo``.

    Raises:
        gaierror: the name cannot be resolved.
        UnicodeError: the name cannot be written in DNS.
    """
    hub = gevent.get_hub()
    if _has_own_resolver(hub):
        return gsocket.getaddrinfo(host, port, 0, gsocket.SOCK_STREAM, 0, flags)
    found = _lookups(hub).find(host.encode("idna"), flags)
    return [(*rest, (address[0], port, *address[2:])) for *rest, address in found]


def _has_own_resolver(hub: Hub) -> bool:
    """Return whether the program has chosen how names are looked up."""
    replaced = not getattr(gsocket.getaddrinfo, "__module__", "").startswith("gevent.")
    resolver: object = hub.resolver
    return replaced or type(resolver) is not Resolver


class _Line:
    """Lookups of one kind of names.

    Attributes:
        waiting: those that wait for a thread; the first one is the next.
        running: the number of those in threads, without those that have proved to be slow.
        slow: whether the names are known to be slow.
    """

    __slots__ = ("running", "slow", "waiting")

    def __init__(self, slow: bool = False) -> None:
        self.waiting: deque[_Lookup] = deque()
        self.running = 0
        self.slow = slow


class _Lookup:
    """One lookup, for all who ask for the same.

    Attributes:
        name: the name and the flags.
        line: the line where it waits, or counts among the running ones; None when it has proved to be slow.
        askers: the number of greenlets that wait for it.
        result: what they wait for: the addresses or an error.
        began: when it was given to a thread; None while it waits in line.
        timer: fires when it has proved to be slow.
    """

    __slots__ = ("askers", "began", "line", "name", "result", "timer")

    def __init__(self, name: tuple[bytes, int], line: _Line) -> None:
        self.name = name
        self.line: _Line | None = line
        self.askers = 0
        self.result: AsyncResult[list[Any] | Exception] = AsyncResult()
        self.began: float | None = None
        self.timer: Any = None


class Lookups:
    """The lookups of one thread of the program.

    Args:
        hub: the thread's hub.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.process = os.getpid()
        self._pool = ThreadPool(_MAX_THREADS, hub, idle_task_timeout=_IDLE_TIMEOUT)
        #: All lookups that have no result yet.
        self._lookups: dict[tuple[bytes, int], _Lookup] = {}
        self._quick_names, self._new_names, self._slow_names = _Line(), _Line(), _Line(slow=True)
        #: The number of lookups in threads.
        self._running = 0
        #: Whether the last lookup of a name was slow, the longest known first.
        self._known: dict[tuple[bytes, int], bool] = {}

    def find(self, name: bytes, flags: int) -> list[Any]:
        """Return the addresses of a name. Blocks; raises as ``getaddrinfo``."""
        key = name, flags
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = self._add(key)
            self._begin_next()
        lookup.askers += 1
        try:
            outcome = lookup.result.get() or []
        finally:
            lookup.askers -= 1
            if not lookup.askers and lookup.began is None and lookup.line is not None:
                # Nobody wants to know any more.
                del self._lookups[key]
                lookup.line.waiting.remove(lookup)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _add(self, key: tuple[bytes, int]) -> _Lookup:
        """Put a new lookup in its line."""
        slow = self._known.get(key)
        if slow is None:
            lookup = _Lookup(key, self._new_names)
            self._new_names.waiting.appendleft(lookup)
        else:
            line = self._slow_names if slow else self._quick_names
            lookup = _Lookup(key, line)
            line.waiting.append(lookup)
        return lookup

    def _begin_next(self) -> None:
        """Start waiting lookups in threads, as many as the limits allow."""
        for line in (self._quick_names, self._new_names, self._slow_names):
            threads = _MAX_THREADS if line is self._quick_names else _MAX_THREADS - _RESERVED
            while line.waiting and line.running < _MAX_RUNNING and self._running < threads:
                self._begin(line.waiting.popleft(), line)

    def _begin(self, lookup: _Lookup, line: _Line) -> None:
        self._running += 1
        line.running += 1
        lookup.began = monotonic()
        if not line.slow:
            lookup.timer = self._hub.loop.timer(_PATIENCE, ref=False)
            lookup.timer.start(self._is_slow, lookup)
        try:
            outcome = self._pool.spawn(_run, *lookup.name)
        except Exception as error:
            # No thread could be started.
            self._end(lookup, OSError(f"no thread for the lookup: {error}"))
            return
        outcome.rawlink(lambda done: self._answered(lookup, done.value or []))

    def _answered(self, lookup: _Lookup, outcome: list[Any] | Exception) -> None:
        self._end(lookup, outcome)
        self._begin_next()

    def _is_slow(self, lookup: _Lookup) -> None:
        """Begin the next lookup: this one takes long."""
        self._leave_line(lookup)
        self._begin_next()

    def _leave_line(self, lookup: _Lookup) -> None:
        if lookup.timer is not None:
            lookup.timer.stop()
            lookup.timer.close()
            lookup.timer = None
        if lookup.line is not None:
            lookup.line.running -= 1
            lookup.line = None

    def _end(self, lookup: _Lookup, outcome: list[Any] | Exception) -> None:
        self._running -= 1
        self._leave_line(lookup)
        assert lookup.began is not None
        self._known.pop(lookup.name, None)
        if len(self._known) >= _MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[lookup.name] = monotonic() - lookup.began > _PATIENCE
        del self._lookups[lookup.name]
        # Errors too: set_exception() would import something at its first call.
        lookup.result.set(outcome)


def _run(name: bytes, flags: int) -> list[Any] | Exception:
    """Look a name up (in a thread). Return the error: gevent would print one that is raised."""
    try:
        return _socket.getaddrinfo(name, 0, 0, gsocket.SOCK_STREAM, 0, flags)
    except Exception as error:
        return error


_of_hubs: dict[Hub, Lookups] = {}


def _lookups(hub: Hub) -> Lookups:
    """Return the lookups of a thread."""
    found = _of_hubs.get(hub)
    # A forked child has none of its parent's threads.
    if found is None or found.process != os.getpid():
        for other in [*_of_hubs]:
            if other.loop is None:
                # It was destroyed.
                del _of_hubs[other]
        found = _of_hubs[hub] = Lookups(hub)
    return found
