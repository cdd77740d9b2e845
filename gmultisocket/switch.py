"""A switch joins two sockets: it forwards every message of one to the other.

A message that arrives at ``back`` is sent at ``front``, and the other way round, by its own send type: to one peer
there, to all, or further along its path. The switch's sockets add their pipe ids to a message's source, and replies
come back by these ids. Each switch on the way uses up one of a message's ``ttl``.

No message and no peer can end a switch. A message that cannot be forwarded (its path is broken, its ttl is used up, a
peer has gone) is dropped and counted, and so is a message for which the middleware raises. The pipe of a peer that
guesses paths is closed.

Source: switch.go of the Go code, where any such message ends the switch for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from .core.pipes.ids import was_pipe_id
from .core.pipes.pipe import Pipe
from .core.socket import Socket
from .errors import BrokenPath, Closed, MessageDropped, MultiSocketError
from .wire import Message

__all__ = ["Middleware", "Switch"]

logger = logging.getLogger("gmultisocket.switch")

#: After this number of made-up pipe ids a peer's pipe is closed. An honest peer sends none.
_MAX_GUESSES = 16

#: Called with a message; returns it, another message in its place, or None to drop it.
Middleware = Callable[[Message], Message | None]


class Switch:
    """Forwards messages between two sockets. It does not close the sockets, and makes no connections.

    Args:
        back: one socket.
        front: the other socket.
        middleware: called with each message before it is forwarded; see :data:`Middleware`. May block: the next
            messages in the same direction wait.

    Attributes:
        forwarded: the number of forwarded messages.
        drops: the number of dropped messages, by reason.
    """

    def __init__(self, back: Socket, front: Socket, middleware: Middleware | None = None) -> None:
        if back is front:
            raise ValueError("a switch joins two different sockets")
        self.back = back
        self.front = front
        self._middleware = middleware
        self._greenlets: list[Greenlet[..., Any]] = []
        #: How many made-up pipe ids each pipe has sent.
        self._guesses: WeakKeyDictionary[Pipe, int] = WeakKeyDictionary()
        self.forwarded = 0
        self.drops: dict[str, int] = {}

    def __enter__(self) -> Switch:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the switch forwards in both directions."""
        return len(self._greenlets) == 2 and not any(greenlet.ready() for greenlet in self._greenlets)

    def start(self) -> None:
        """Begin to forward. Does not block. May be repeated.

        Raises:
            RuntimeError: the switch has ended because one of the sockets was closed.
        """
        if self._greenlets and not self.running:
            raise RuntimeError("the switch has ended because one of its sockets was closed: make a new one")
        if not self._greenlets:
            self._greenlets = [
                gevent.spawn(self._forward, self.back, self.front),
                gevent.spawn(self._forward, self.front, self.back),
            ]

    def stop(self) -> None:
        """Stop forwarding. Blocks until the greenlets have ended. May be repeated.

        Messages stay in their sockets. One message in each direction may be waiting for the middleware or for a peer:
        it is dropped and counted. A middleware may call this; the message that it then returns is forwarded.
        """
        greenlets, self._greenlets = self._greenlets, []
        others = [greenlet for greenlet in greenlets if greenlet is not getcurrent()]
        gevent.killall(others)
        for greenlet in greenlets:
            if greenlet is getcurrent():
                greenlet.kill(block=False)

    def join(self, timeout: float | None = None) -> bool:
        """Block until the switch has ended because its sockets were closed. Return False when the time is up."""
        return len(gevent.joinall(self._greenlets, timeout)) == len(self._greenlets)

    def _forward(self, source: Socket, target: Socket) -> None:
        """Forward in one direction until the switch stops or a socket closes (one greenlet for each direction)."""
        me = getcurrent()
        while me in self._greenlets:
            try:
                message = source.recv_msg()
            except Closed:
                return
            try:
                passed = message if self._middleware is None else self._pass(message)
                if passed is None:
                    continue
                if target.send_msg(passed):
                    self.forwarded += 1
                else:
                    self._drop("no peer")
            except Closed:
                self._drop("closed")
                return
            except MessageDropped as error:
                self._drop(error.reason)
            except BrokenPath as error:
                self._drop("BrokenPath")
                self._count_guess(source, message, error.pipe_id)
            except MultiSocketError as error:
                self._drop(type(error).__name__)
            except Exception:
                # The middleware returned something that cannot be sent.
                self._fail("a message could not be forwarded")
            except GreenletExit:
                self._drop("stopped")
                raise

    def _pass(self, message: Message) -> Message | None:
        assert self._middleware is not None
        try:
            passed = self._middleware(message)
        except (Exception, gevent.Timeout):
            self._fail("the middleware failed")
            return None
        if passed is None:
            self._drop("middleware")
        return passed

    def _count_guess(self, source: Socket, message: Message, pipe_id: int) -> None:
        """Count a made-up pipe id, and close the pipe of a peer that tries ids to find a path.

        Counts only a message that the peer claims as its own: a switch is not responsible for what its peers send.
        """
        pipe = source.pipes.get(message.pipe_id)
        if pipe is None or message.hops > 1 or was_pipe_id(pipe_id):
            return
        guesses = self._guesses[pipe] = self._guesses.get(pipe, 0) + 1
        if guesses >= _MAX_GUESSES:
            pipe.close("it sends to paths that never were")

    def _fail(self, what: str) -> None:
        """Count an error of the user's code. The first one is logged as an error, with its traceback."""
        logger.log(logging.DEBUG if "error" in self.drops else logging.ERROR, what, exc_info=True)
        self._drop("error")

    def _drop(self, reason: str) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + 1
