"""A switch: joins two sockets by forwarding every message of one to the other.

What comes in at ``back`` goes out at ``front`` and the other way round, each by its own send type: to one peer there,
to all, or further along its path. The pipe ids that the switch's sockets put into a message's source on the way out
lead the replies back. Each switch on the way costs a message one of its ``ttl``.

Nothing that a message or a peer does ends a switch: a message that cannot go on (its path is broken, its ttl used
up, a peer has gone) is dropped and counted, and so is one for which the middleware raises. A peer that guesses paths is
cut off.

Source: switch.go of the Go code, which any such message ends for good.
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

#: So many ids that no pipe ever had may a peer name before it is cut off. An honest one does not name any.
_MOST_GUESSES = 16

#: Takes a message and returns it, another one in its place, or None to drop it.
Middleware = Callable[[Message], Message | None]


class Switch:
    """Forwards between two sockets, which stay the caller's: it starts them not, and closes them not.

    Args:
        back: one socket.
        front: the other socket.
        middleware: called with each message before it goes on; see :data:`Middleware`. May block: the messages
            behind it in its direction wait.

    Attributes:
        forwarded: messages that went on.
        drops: messages that did not, by reason.
    """

    def __init__(self, back: Socket, front: Socket, middleware: Middleware | None = None) -> None:
        if back is front:
            raise ValueError("a switch joins two different sockets")
        self.back = back
        self.front = front
        self._middleware = middleware
        self._greenlets: list[Greenlet[..., Any]] = []
        #: How often a pipe has named one that never was.
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
        """Whether it forwards in both directions."""
        return len(self._greenlets) == 2 and not any(greenlet.ready() for greenlet in self._greenlets)

    def start(self) -> None:
        """Begin to forward. Does not block; harmless when repeated.

        Raises:
            RuntimeError: one of the sockets was closed, which ended the switch.
        """
        if self._greenlets and not self.running:
            raise RuntimeError("the switch has ended, as one of its sockets has closed: make a new one")
        if not self._greenlets:
            self._greenlets = [
                gevent.spawn(self._forward, self.back, self.front),
                gevent.spawn(self._forward, self.front, self.back),
            ]

    def stop(self) -> None:
        """Stop forwarding. Blocks until the greenlets have ended. May be repeated.

        Messages stay in their sockets, except one for each direction that has been taken and waits for the middleware
        or for a peer: it is dropped, and counted. A middleware may call this; the message that it returns goes on.
        """
        greenlets, self._greenlets = self._greenlets, []
        others = [greenlet for greenlet in greenlets if greenlet is not getcurrent()]
        gevent.killall(others)
        for greenlet in greenlets:
            if greenlet is getcurrent():
                greenlet.kill(block=False)

    def join(self, timeout: float | None = None) -> bool:
        """Block until the switch has ended because its sockets have closed. Returns False when the time is up."""
        return len(gevent.joinall(self._greenlets, timeout)) == len(self._greenlets)

    def _forward(self, source: Socket, target: Socket) -> None:
        """Forward in one direction until stopped, or a socket closes (one greenlet for each direction)."""
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
                self._suspect(source, message, error.pipe_id)
            except MultiSocketError as error:
                self._drop(type(error).__name__)
            except Exception:
                # What a middleware returned was no message that can be sent.
                self._fail("a message could not be sent on")
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

    def _suspect(self, source: Socket, message: Message, pipe_id: int) -> None:
        """Cut a peer off that tries ids to find a pipe that it has no path to.

        Only for what it says to have made itself: a switch before this one is not to blame for those behind it.
        """
        pipe = source.pipes.get(message.pipe_id)
        if pipe is None or message.hops > 1 or was_pipe_id(pipe_id):
            return
        guesses = self._guesses[pipe] = self._guesses.get(pipe, 0) + 1
        if guesses >= _MOST_GUESSES:
            pipe.close("it sends to paths that never were")

    def _fail(self, what: str) -> None:
        """Count an error of the user's own code; the first is logged with its traceback."""
        logger.log(logging.DEBUG if "error" in self.drops else logging.ERROR, what, exc_info=True)
        self._drop("error")

    def _drop(self, reason: str) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + 1
