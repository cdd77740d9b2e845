"""What the engines for NATS and for Redis share: one connection after the other, with pauses.

An engine has one greenlet, which opens a :class:`BrokerLink`, reports it, waits until it ends, reports that, and begins
again with the next server of its URL. Pauses grow from 20 ms to a second, and each is drawn between half of that and
all of it, so that many clients do not come back at once. They are short again after a connection that has lasted.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any, ClassVar, Final

import gevent
from gevent import Greenlet, GreenletExit, getcurrent
from gevent.event import AsyncResult, Event

from ..errors import Closed, ConnectionFailed, MultiSocketError
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, Ended, survive
from ..loop.timelimit import time_limit
from ..loop.waiting import Deadline
from ..options import Options
from .brokerline import Line, Opener
from .brokerurl import Server, parse_url
from .engine import MAX_BACKOFF, Engine, Plane

__all__ = ["BrokerEngine", "BrokerLink"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: Seconds for a connection and its login. A server that is stopped accepts a connection and says nothing.
_CONNECT_TIMEOUT: Final = 5.0
_FIRST_PAUSE: Final = 0.02
#: A connection that has lasted for so many seconds makes the pauses short again.
_LASTED: Final = 1.0


class BrokerLink(ABC):
    """A connection to a server, after its login: one line, or more than one."""

    #: Set by the subclass.
    _lines: tuple[Line, ...]

    def __init__(self) -> None:
        self._outcome: AsyncResult[MultiSocketError] = AsyncResult()
        #: Set when nothing waits for an answer any more; made by :meth:`finish`.
        self._finished: Event | None = None

    def wait(self) -> MultiSocketError:
        """Block until the link has ended, and return why."""
        reason = self._outcome.get()
        assert reason is not None
        return reason

    @abstractmethod
    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        """As :meth:`Engine.publish`; does nothing when the link has ended."""

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        """As :meth:`Engine.retain`; does nothing when the link has ended."""
        raise NotImplementedError

    def unretain(self, head: bytes, sequence: int) -> None:
        """As :meth:`Engine.unretain`; does nothing when the link has ended."""
        raise NotImplementedError

    def synchronize(self) -> None:
        """As :meth:`Engine.synchronize`; does nothing when the link has ended."""
        raise NotImplementedError

    @abstractmethod
    def subscribe(self, patterns: Sequence[str]) -> None:
        """As :meth:`Engine.subscribe`; does nothing when the link has ended."""

    @abstractmethod
    def unsubscribe(self, patterns: Sequence[str]) -> None:
        """As :meth:`Engine.unsubscribe`; does nothing when the link has ended."""

    @property
    @abstractmethod
    def is_settled(self) -> bool:
        """Whether the server has answered all that was written."""

    def finish(self, deadline: Deadline) -> None:
        """Block until the server has answered all that was written, the link has ended, or the time is up.

        To hand everything to the kernel would not do: if a socket closes while an answer is unread, the kernel resets
        the connection, and the server throws away what it has not read yet.
        """
        if not self.is_settled and not self._outcome.ready():
            self._finished = Event()
            self._finished.wait(deadline.left())

    def _check_settled(self) -> None:
        """Wake the greenlet that waits until all is settled, if it is. Call it after each answer."""
        if self._finished is not None and self.is_settled:
            self._finished.set()

    def close(self, reason: MultiSocketError) -> None:
        """Close the connections. Never blocks; may be repeated."""
        for line in self._lines:
            line.close(reason)

    def join(self) -> None:
        """Block until the greenlets of the closed link have ended, except the caller."""
        for line in self._lines:
            line.join()

    def abandon(self) -> None:
        """Close the descriptors in a forked child."""
        for line in self._lines:
            line.abandon()

    def _end(self, reason: MultiSocketError) -> None:
        """Remember why the link has ended. The first reason counts."""
        if not self._outcome.ready():
            self._outcome.set(reason)
        if self._finished is not None:
            self._finished.set()


class BrokerEngine(Engine):
    """An engine whose server is another project's."""

    #: By scheme: the port of a server that names none; None for a scheme whose location is a path.
    ports: ClassVar[Mapping[str, int | None]]
    #: Whether a URL may end with the number of a database, which means nothing to a Backplane.
    database: ClassVar[bool] = False

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        super().__init__(url, plane, options)
        parsed = parse_url(url, self.ports, options, database=self.database)
        self._servers = parsed.servers
        self.options = parsed.options
        self._opener = Opener(self.options)
        #: The server of the next attempt: clients begin with different ones.
        self._next = random.randrange(len(self._servers))
        self._closing = False
        self._greenlet: Greenlet[..., Any] | None = None
        self._link: BrokerLink | None = None

    @abstractmethod
    def _open(self, server: Server, opener: Opener) -> BrokerLink:
        """Connect and log in. Blocks; the caller limits the time.

        Raises:
            ConnectionFailed: nothing is left open.
        """

    def start(self) -> None:
        if self._greenlet is None and not self._closing:
            self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        """Connect again and again (the engine's greenlet)."""
        pause = _FIRST_PAUSE
        try:
            while not self._closing:
                if self._connect_once():
                    pause = _FIRST_PAUSE
                gevent.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, MAX_BACKOFF)
        except Ended:
            pass
        except BaseException as error:
            # It was killed, or the plane has a mistake. Another greenlet goes on.
            survive(_log, type(error).__name__, error, "the engine's greenlet of a Backplane has failed")
            if self._link is not None:
                self._lost(self._link, ConnectionFailed(self._servers[0].name, "the engine's greenlet has failed"))
            self._greenlet = gevent.spawn_later(MAX_BACKOFF, self._run)

    def _connect_once(self) -> bool:
        """Make one connection, and use it until it ends. Return whether it has lasted."""
        server = self._servers[self._next % len(self._servers)]
        self._next += 1
        try:
            silent = ConnectionFailed(server.name, f"the server does not answer, for {_CONNECT_TIMEOUT:g} s")
            with time_limit(_CONNECT_TIMEOUT, silent):
                link = self._open(server, self._opener)
        except GreenletExit:
            raise
        except MultiSocketError as error:
            self.plane.disconnected(error)
            return False
        except BaseException as error:
            survive(_log, "connect", error, "connecting to %s failed by an unexpected error", server.name)
            self.plane.disconnected(ConnectionFailed(server.name, f"unexpected {type(error).__name__}: {error}"))
            return False
        finally:
            self._opener.done()
        since = monotonic()
        self._link = link
        self.plane.connected()
        self._lost(link, link.wait())
        return monotonic() - since >= _LASTED

    def _lost(self, link: BrokerLink, error: MultiSocketError) -> None:
        """Report the end of a link, and wait for its greenlets."""
        link.close(error)
        self._link = None
        self.plane.disconnected(error)
        link.join()

    # What the plane asks for. The link may end at any moment, and the plane hears it a moment later.

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        if self._link is not None:
            self._link.publish(head, content, sequence)

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        if self._link is not None:
            self._link.retain(head, content, sequence)

    def unretain(self, head: bytes, sequence: int) -> None:
        if self._link is not None:
            self._link.unretain(head, sequence)

    def synchronize(self) -> None:
        if self._link is not None:
            self._link.synchronize()

    def subscribe(self, patterns: Sequence[str]) -> None:
        if self._link is not None:
            self._link.subscribe(patterns)

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        if self._link is not None:
            self._link.unsubscribe(patterns)

    def close(self, deadline: Deadline) -> None:
        self._closing = True
        link = None
        try:
            if self._greenlet is not None and self._greenlet is not getcurrent():
                self._greenlet.kill(Ended)
            # Only now: the greenlet may have made one in its last moment.
            link, self._link = self._link, None
            if link is not None:
                link.finish(deadline)
        finally:
            # Also if the caller was killed meanwhile: nothing stays open.
            link = link or self._link
            if link is not None:
                self._link = None
                link.close(Closed("Backplane"))
                link.join()

    def abandon(self) -> None:
        self._closing = True
        self._opener.abandon()
        if self._link is not None:
            self._link.abandon()
