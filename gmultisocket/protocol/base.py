"""What all protocols share: a Socket underneath, its life, and what is done about messages that make no sense.

A protocol is a thin object over a Socket of its own, by composition: :attr:`Protocol.socket` is there for whatever the
protocol has no words for. A protocol class says

* which options it needs (:attr:`Protocol.defaults`, :attr:`Protocol.fixed`) and what it has instead of ``send`` and
  ``recv`` (:attr:`Protocol.instead`);
* in ``__init__``, what it wants to see as it happens: ``self._seam.on_message(...)`` and its kin, whose rules
  :mod:`gmultisocket.core.seam` states. There is no receiving greenlet: a message is dealt with where it is read, or
  left in the socket's own queue, whose bounds hold up the peer as ever;
* in ``_stop``, what has to end before the socket closes, and in ``_ended``, what after.

A greenlet of a protocol is made by :meth:`Protocol._spawn`, and ends with ``close()`` at the latest. What a protocol
drops is counted by :meth:`Protocol._drop`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import gevent
from gevent import Greenlet, getcurrent
from gevent.event import Event

from .. import options as opts
from ..address import Address
from ..core.dialer import Dialer
from ..core.events import PipeCallback
from ..core.listener import Listener
from ..core.pipe import Pipe
from ..core.seam import Seam
from ..core.socket import Socket
from ..counters import Counters
from ..errors import BadOptionValue, NotSupported, snippet
from ..loop.waiting import Deadline
from ..options import Options, OptionValues
from ..wire import SEND_TYPE_MASK, Message

__all__ = ["Protocol"]

logger = logging.getLogger("gmultisocket.protocol")

_Self = TypeVar("_Self", bound="Protocol")


class Protocol:
    """What every protocol has: a socket to connect, and a life that ends with ``close()``.

    As with a Socket, any number of greenlets may call at the same time, all of them in the OS thread and the process
    that made it; and a ``gevent.Timeout`` or a kill that ends a blocking call leaves everything whole.

    Args:
        options: of the socket underneath, by name or :class:`~gmultisocket.options.Option`.

    Attributes:
        socket: the Socket underneath.
        defaults: options that this protocol sets unless told otherwise.
        fixed: options that this protocol depends on: another value is refused.
        instead: what this protocol has in the place of ``send`` and ``recv``, where it has something.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    instead: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: OptionValues | None = None) -> None:
        values = {**self.defaults, **self.fixed}
        kind = type(self).__name__
        refusals = {name: partial(_refuse_other, name, value, kind) for name, value in self.fixed.items()}
        for key, value in (options or {}).items():
            option = opts.lookup(key)
            if option.name in self.fixed:
                refusals[option.name](option.validate(value))
            values[option.name] = value
        self.socket = Socket(values)
        for name in self.fixed:
            self.socket.options.on_change(name, _nothing, refusals[name])
        self._seam = Seam(self.socket)
        self._greenlets: set[Greenlet[..., Any]] = set()
        self._closing = False
        self._close_done = Event()
        self._logged: set[str] = set()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} pipes={len(self.socket.pipes)}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # Connecting, as with a Socket

    def dial(self, address: str | Address, options: OptionValues | None = None) -> Dialer:
        """Connect to an address, and again whenever the connection is lost. As ``Socket.dial``."""
        return self.socket.dial(address, options)

    def listen(self, address: str | Address, options: OptionValues | None = None) -> Listener:
        """Accept connections at an address. As ``Socket.listen``."""
        return self.socket.listen(address, options)

    def connect(self, address: str | Address, options: OptionValues | None = None) -> Dialer | Listener:
        """Dial or listen, as the address says. As ``Socket.connect``."""
        return self.socket.connect(address, options)

    def wait_pipes(self, count: int = 1, timeout: float | None = None) -> None:
        """Block until at least ``count`` pipes are open. As ``Socket.wait_pipes``."""
        self.socket.wait_pipes(count, timeout)

    @property
    def pipes(self) -> Mapping[int, Pipe]:
        """The open pipes by id, live and read-only."""
        return self.socket.pipes

    def on_pipe(self, callback: PipeCallback) -> Callable[[], None]:
        """Call ``callback(event)`` when a pipe comes or goes; returns what ends that. As ``Socket.on_pipe``."""
        return self.socket.on_pipe(callback)

    @property
    def options(self) -> Options:
        """The socket's options."""
        return self.socket.options

    @property
    def counters(self) -> Counters:
        """What was counted. Among the drops, those of protocols: see :meth:`_drop`."""
        return self.socket.counters

    # What a protocol may lack

    def send(self, content: bytes, timeout: float | None = None) -> Any:
        """Raise NotSupported: this protocol has no bare sending."""
        raise self._lacks("send")

    def recv(self, timeout: float | None = None) -> Any:
        """Raise NotSupported: this protocol has no bare receiving."""
        raise self._lacks("recv")

    def _lacks(self, operation: str) -> NotSupported:
        """Return the error for what this protocol does not do."""
        instead = self.instead.get(operation)
        kind = type(self).__name__
        return NotSupported(operation, f"{kind} has {instead} instead" if instead else f"{kind} has no use for it")

    # For protocols

    def _spawn(self, function: Callable[..., Any], *args: Any) -> Greenlet[..., Any]:
        """Run a function in a greenlet that ``close()`` ends. Never switches: may be used in callbacks of the seam."""
        greenlet = gevent.spawn(function, *args)
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._greenlets.discard)
        return greenlet

    def _next(self, timeout: float | None, shortest: int = 0) -> Message:
        """Return the next message that has no flags and at least so many bytes; drop the others as garbage.

        Blocks and raises as ``Socket.recv_msg`` does.
        """
        deadline = None if timeout is None else Deadline(timeout)
        while True:
            message = self.socket.recv_msg(timeout)
            if not message.flags & ~SEND_TYPE_MASK and len(message.content) >= shortest:
                return message
            self._drop(message, "garbage")
            if deadline is not None:
                timeout = deadline.left()

    def _drop(self, message: Message, reason: str) -> None:
        """Count a message that is of no use; the first of its reason is logged. Never blocks.

        Args:
            message: the message.
            reason: what ``counters.drops`` will have it under: ``"garbage"`` for what no honest peer of this protocol
                sends, ``"late"`` for an answer that nobody waits for any more.
        """
        self._seam.count_drop(reason, message.pipe_id)
        level = logging.DEBUG
        if reason not in self._logged:
            self._logged.add(reason)
            level = logging.WARNING
        if logger.isEnabledFor(level):
            logger.log(level, "%s drops a message (%s): %r%s", type(self).__name__, reason, message, self._who(message))

    def _who(self, message: Message) -> str:
        pipe = self.socket.pipes.get(message.pipe_id)
        return f" from {snippet(pipe.peer_address)}" if pipe is not None else ""

    # Closing

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has done its work."""
        return self._close_done.is_set()

    def close(self, linger: float | None = None) -> int:
        """Close the protocol and its socket, as ``Socket.close`` does, whose words hold here.

        Blocks at most ``linger`` seconds while what is queued leaves, and until no greenlet or descriptor is left. May
        be called from anywhere and more than once; a second call waits for the first.

        Args:
            linger: seconds; None for ``socket.send_stop_timeout``.

        Returns:
            How many messages that were accepted for sending are lost. 0 for a second call.
        """
        if self._seam.forked:
            return 0
        self._seam.check()
        if self._closing:
            if not self._is_mine(getcurrent()):
                self._close_done.wait()
            return 0
        if linger is None:
            linger = self.options.get(opts.socket.send_stop_timeout)
        return self._close(Deadline(linger))

    def close_nowait(self, linger: float | None = None) -> Greenlet[..., Any]:
        """Have a greenlet close the protocol, and return it; for where nothing may block, such as signal handlers."""
        return gevent.spawn(self.close, linger)

    def _close(self, deadline: Deadline) -> int:
        self._closing = True
        lost = 0
        try:
            try:
                self._stop(deadline)
            finally:
                lost = self.socket.close(deadline.left())
            return lost
        finally:
            # Whatever ended the rest, a kill included: nobody is left waiting, and nothing stays behind.
            self._ended()
            self._end_greenlets()
            self._close_done.set()

    def _stop(self, deadline: Deadline) -> None:
        """Do what has to be done before the socket closes. May block until the deadline; for protocols."""

    def _ended(self) -> None:
        """Let those know who wait for something that cannot come any more, now that the socket is closed."""

    def _is_mine(self, current: object) -> bool:
        """Return whether a greenlet works for this protocol, so that ``close()`` waits for it and not it for that."""
        return current in self._greenlets or self._seam.is_mine(current)

    def _end_greenlets(self) -> None:
        """Kill what still runs, the caller excepted, and wait until it has ended."""
        gevent.killall([greenlet for greenlet in self._greenlets if greenlet is not getcurrent()])


def _nothing(old: object, new: object) -> None:
    """Take note of a change: the check before it is what matters."""


def _refuse_other(name: str, fixed: object, kind: str, value: object) -> None:
    if value != fixed:
        raise BadOptionValue(name, value, f"{fixed!r}, which {kind} depends on")
