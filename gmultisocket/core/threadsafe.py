"""Sending from other OS threads.

A :class:`ThreadsafeSender` takes messages from any thread without waiting, wakes the loop of the socket's thread, and
sends them there, in order, from one greenlet. While it is open, that loop does not believe that nothing can happen any
more, so it must be closed when the threads have ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import gevent
from gevent import Greenlet, getcurrent
from gevent.hub import Hub

from ..errors import Closed, ForkedSocketError, MessageDropped, MultiSocketError, Timeout
from ..log import get_logger
from ..loop import owner
from ..loop.waiting import Deadline
from ..wire import Message
from .flushing import Flushable, run_flush
from .sending.content import as_content

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ThreadsafeHandle", "ThreadsafeSender"]

logger = get_logger("gmultisocket.socket")

#: Messages that may wait to be sent. Further ones are refused, because the threads are faster than the socket.
_MAX_PENDING: Final = 10_000

_Self = TypeVar("_Self", bound="ThreadsafeHandle")


class _Home(Protocol):
    """What a handle needs of the object that it works for."""

    _thread: int

    @property
    def closed(self) -> bool: ...
    @property
    def _home(self) -> tuple[int, Hub]: ...
    def _flush(self, deadline: Deadline) -> bool: ...
    def _check(self) -> None: ...


class _SendingSocket(_Home, Protocol):
    """What a handle needs of its socket."""

    def send(self, content: Buffer) -> None: ...
    def send_all(self, content: Buffer) -> int: ...
    def send_to(self, destination: bytes, content: Buffer) -> None: ...
    def send_msg(self, message: Message) -> int: ...


class ThreadsafeHandle(Flushable):
    """Calls methods of a socket or a plane in its own thread, for any thread.

    Attributes:
        failed: how many calls were accepted here and then failed.
    """

    def __init__(self, home: _Home) -> None:
        self._socket = home
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._greenlet: Greenlet[..., Any] | None = None
        self._closed = False
        self.failed = 0
        # A started async watcher both wakes the loop from other threads and keeps it alive.
        hub = gevent.get_hub()
        self._watcher = hub.loop.async_()
        self._watcher.start(self._wake)
        owner.watch_thread(hub)
        owner.register(self)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pending(self) -> int:
        """How many messages wait to be sent."""
        return len(self._calls)

    def _post(self, method: Callable[..., object], *args: Any) -> None:
        self._check_open()
        if len(self._calls) >= _MAX_PENDING:
            raise MessageDropped("overflow")
        # All steps are safe from any thread: those of a deque, and waking a loop.
        call = method, args
        self._calls.append(call)
        if self._closed:
            # The socket's thread closed the handle at this moment. It has sent or counted the call, or has not seen it.
            try:
                self._calls.remove(call)
            except ValueError:
                return
            raise Closed("handle")
        self._watcher.send()

    def _check_open(self) -> None:
        if self._socket._thread == owner.FORKED:
            raise ForkedSocketError
        if self._closed or self._socket.closed:
            raise Closed("handle" if self._closed else "socket")

    def _wake(self) -> None:
        if self._greenlet is None and self._calls:
            self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        try:
            while self._calls:
                call = self._calls.popleft()
                method, args = call
                try:
                    method(*args)
                except Exception as error:
                    self._fail(error)
                except BaseException:
                    # close() does not wait any longer, and counts this message as lost with the others.
                    self._calls.appendleft(call)
                    raise
        finally:
            self._greenlet = None

    def _fail(self, error: Exception) -> None:
        """Count a message that was not sent. The first one is logged as a warning."""
        level = logging.DEBUG if self.failed else logging.WARNING
        mistake = not isinstance(error, MultiSocketError)
        logger.log(level, "a message from another thread was not sent: %s", error, exc_info=mistake)
        self.failed += 1

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything that was sent here, and by the socket, has left; see ``Socket.flush``.

        In the socket's own thread it blocks only the calling greenlet, in any other thread the whole thread.

        Raises:
            Timeout: something had not left in time. It stays queued.
            Closed: the handle or the socket is closed, or the socket's thread has ended.
        """
        self._check_open()
        if owner.current_thread() == self._socket._thread:
            super().flush(timeout)
        elif not run_flush(self, timeout):
            raise Timeout("flush", timeout)

    def _check(self) -> None:
        self._socket._check()

    def _flush(self, deadline: Deadline) -> bool:
        while self._calls or self._greenlet is not None:
            self._wake()
            if self._greenlet is None or self._greenlet is getcurrent():
                break
            self._greenlet.join(deadline.left())
            if self._greenlet is not None and deadline.left() == 0:
                return False
        return self._socket._flush(deadline)

    def _unsent(self) -> int:
        return len(self._calls)

    def _unclosed(self) -> bool:
        return not self._closed

    def _push_now(self) -> None:
        """Do nothing: a message can only be sent where the event loop runs."""

    @property
    def _home(self) -> tuple[int, Hub]:
        return self._socket._home

    def close(self, timeout: float | None = 5.0) -> int:
        """Send what waits, and close the handle, in the socket's own thread. Blocks at most ``timeout`` seconds.

        Returns:
            How many messages were not sent. 0 for a second call.

        Raises:
            WrongThread: this is another thread.
        """
        if self._closed:
            return 0
        self._socket._check()
        self._closed = True
        self._wake()
        try:
            greenlet = self._greenlet
            if greenlet is not None:
                greenlet.join(timeout)
                greenlet.kill()
        finally:
            self._watcher.close()
            owner.unregister(self)
        lost = 0
        while self._calls:
            self._calls.popleft()
            lost += 1
        return lost

    def _abandon(self) -> None:
        """Become unusable in a forked child. The watcher would keep the child's loop alive."""
        self._closed = True
        owner.stop_abandoned(self._watcher)


class ThreadsafeSender(ThreadsafeHandle):
    """Sends through a socket from any thread. The methods return at once; the socket sends later.

    Attributes:
        failed: how many messages were accepted here and then not sent, e.g. because their path was broken.
    """

    _socket: _SendingSocket

    def __init__(self, sock: _SendingSocket) -> None:
        super().__init__(sock)

    def send(self, content: Buffer) -> None:
        """Send ``content`` to one peer, later.

        Raises:
            MessageDropped: 10,000 messages wait already.
            Closed: the handle or the socket is closed.
        """
        self._post(self._socket.send, as_content(content))

    def send_all(self, content: Buffer) -> None:
        """Send ``content`` to every peer, later. Raises as :meth:`send` does."""
        self._post(self._socket.send_all, as_content(content))

    def send_to(self, destination: bytes, content: Buffer) -> None:
        """Send ``content`` along a path, later. Raises as :meth:`send` does."""
        self._post(self._socket.send_to, bytes(destination), as_content(content))

    def send_msg(self, message: Message) -> None:
        """Send a message as its fields say, later. Raises as :meth:`send` does."""
        self._post(self._socket.send_msg, message)
