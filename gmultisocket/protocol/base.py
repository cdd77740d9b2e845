"""What all protocols share: a Socket underneath, closing, and the dropping of messages that make no sense.

A protocol is a thin object over its own Socket, by composition: use :attr:`ProtocolBase.socket` for everything that
the protocol has no method for. A protocol class says

* which options it needs (:attr:`ProtocolBase.defaults`, :attr:`ProtocolBase.fixed`, :attr:`ProtocolBase.families`) and
  what it has in the place of ``send`` and ``recv`` (:attr:`ProtocolBase.instead`);
* in ``__init__``, which callbacks it needs: ``self._core.on_message(...)`` and others, whose rules are in
  :mod:`gmultisocket.core.protocolsocket`. There is no receiving greenlet: a callback handles a message where it is
  read, or leaves it in the socket's own queue, which blocks the peer when it is full, as always;
* in ``_stop``, what must end before the socket closes, and in ``_ended``, what comes after.

A protocol starts greenlets with :meth:`ProtocolBase._spawn`; ``close()`` ends them. It drops messages with
:meth:`ProtocolBase._drop`, which counts them.

The names with one underscore that "Writing a protocol" in the documentation describes are for the authors of
protocols, and kept stable like the others. The library's own protocols use no more than these.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import gevent
from gevent import Greenlet, getcurrent
from gevent.hub import Hub

from .. import options as opts
from .. import usercode
from ..address import Address
from ..core.closing import Closable
from ..core.connecting.dialer import Dialer
from ..core.connecting.events import PipeCallback
from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..core.socket import Socket
from ..counters import Counters
from ..errors import BadOptionValue, Closed, NotSupported, snippet
from ..log import get_logger
from ..loop.ending import Ended
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..options.places import socket_reader
from ..wire import SEND_TYPE_MASK, Message

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ..core.connecting.listener import Listener
    from .outbox import Outbox

__all__ = ["Deadline", "ProtocolBase", "ProtocolSocket", "WaitList"]

logger = get_logger("gmultisocket.protocol")


class ProtocolBase(Closable):
    """The base class of every protocol: it has a socket to connect, and ``close()`` ends it.

    As with a Socket, any number of greenlets may call at the same time, all in the OS thread and the process that made
    it. A ``gevent.Timeout`` or a kill that ends a blocking call leaves everything whole.

    Args:
        options: of the socket underneath, by name or :class:`~gmultisocket.options.Option`.

    Attributes:
        socket: the Socket underneath.
        defaults: options that this protocol sets unless ``options`` has them.
        fixed: options that this protocol depends on: another value is refused.
        instead: by ``"send"`` and ``"recv"``: what this protocol has in the place of that method.
        families: which options of protocols it reads, by the beginning of their names: ``("protocol.pubsub",)``. All
            others that begin with ``protocol.`` are refused.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}
    instead: ClassVar[Mapping[str, str]] = {}
    families: ClassVar[tuple[str, ...]] = ()
    #: The :class:`~.outbox.Outbox` of what this protocol sends later, for which ``flush()`` waits; None without one.
    #: (Any, as a subclass could not declare that it has one.)
    _outbox: Any = None
    #: What a protocol may do with its socket beyond the public methods.
    _core: ProtocolSocket

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        # Most names that come to mind for a method are short: _close, _check, _flush.
        for name in vars(cls):
            if name in _RESERVED:
                raise TypeError(
                    f"{cls.__name__}.{name} hides the library's own {name}: give it another name "
                    f"(a protocol may define {', '.join(sorted(_FOR_PROTOCOLS))})"
                )

    def __init__(self, options: OptionValues | None = None) -> None:
        values = {**self.defaults, **self.fixed}
        kind = type(self).__name__
        refusals = {name: partial(_refuse_other, name, value, kind) for name, value in self.fixed.items()}
        for key, value in (options or {}).items():
            option = opts.lookup(key)
            if option.name in self.fixed:
                refusals[option.name](option.validate(value))
            values[option.name] = value
        self.socket = Socket(values, _reader=socket_reader(kind, self.families))
        #: The socket's options.
        self.options = self.socket.options
        for name in self.fixed:
            self.socket.options.on_change(name, _ignore_change, refusals[name])
        self._core = self.socket._for_protocol(self)
        # Two underscores: no attribute of a subclass has the same name by accident.
        self.__greenlets: set[Greenlet[..., Any]] = set()
        self.__logged: set[str] = set()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} pipes={len(self.socket.pipes)}>"

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
        """Call ``callback(event)`` when a pipe is added or removed. As ``Socket.on_pipe``.

        Returns:
            A callable that ends it.
        """
        return self.socket.on_pipe(callback)

    @property
    def counters(self) -> Counters:
        """The socket's counters. Their ``drops`` include what the protocol dropped, e.g. ``"garbage"``."""
        return self.socket.counters

    def stats(self) -> dict[str, Any]:
        """Return the numbers of the protocol and its socket as a plain dict. As ``Socket.stats``, with further keys."""
        return {**self.socket.stats(), "kind": type(self).__name__, **self._own_stats()}

    def _own_stats(self) -> dict[str, int]:
        """Return what ``stats()`` has beyond the numbers of the socket. For protocols to override.

        These are gauges: numbers that go up and down, and that make sense when those of several objects are added up.
        None may have the name of a number of the socket. May be called in any thread, and must neither block nor walk
        through anything long.
        """
        return {}

    # Methods that not every protocol has

    def send(self, content: Buffer, timeout: float | None = None) -> Any:
        """Raise NotSupported: this protocol has no bare sending."""
        raise self._lacks("send")

    def recv(self, timeout: float | None = None) -> Any:
        """Raise NotSupported: this protocol has no bare receiving."""
        raise self._lacks("recv")

    def _lacks(self, operation: str) -> NotSupported:
        """Return the error for a method that this protocol does not have."""
        instead = self.instead.get(operation)
        kind = type(self).__name__
        return NotSupported(operation, f"{kind} has {instead} instead" if instead else f"{kind} has no use for it")

    # For protocols

    def _check_open(self) -> None:
        """Check that the caller may use the protocol, and that ``close()`` was not called. Never blocks.

        Each method that neither sends nor receives at once begins with it; those of the socket check the same.

        Raises:
            WrongThread, ForkedSocketError: the caller is in another thread or process than that of the protocol.
            Closed: ``close()`` was called.
        """
        self._core.check()
        if self._closing:
            raise Closed(type(self).__name__)

    def _spawn(self, function: Callable[..., Any], *args: Any) -> Greenlet[..., Any]:
        """Run ``function(*args)`` in a greenlet that ``close()`` ends. Never switches greenlets: callbacks may use it.

        ``close()`` ends it by a GreenletExit, after ``_ended``. The greenlet may itself call ``close()``.
        """
        greenlet = gevent.spawn(function, *args)
        self.__greenlets.add(greenlet)
        greenlet.rawlink(self.__greenlets.discard)
        return greenlet

    def _next(self, timeout: float | None, min_size: int = 0) -> Message:
        """Return the next message that has no flags and at least ``min_size`` bytes; drop the others as garbage.

        Blocks and raises as ``Socket.recv_msg`` does.

        Args:
            timeout: seconds; None waits without a limit.
            min_size: bytes of the shortest content that makes sense.
        """
        deadline = None if timeout is None else Deadline(timeout)
        while True:
            message = self.socket.recv_msg(timeout)
            if not message.flags & ~SEND_TYPE_MASK and len(message.content) >= min_size:
                return message
            self._drop(message, "garbage")
            if deadline is not None:
                timeout = deadline.left()

    def _drop(self, message: Message, reason: str) -> None:
        """Count a message that is of no use. Never blocks.

        Args:
            message: the message.
            reason: its key in ``counters.drops``: ``"garbage"`` for a message that no honest peer of this protocol
                sends, ``"late"`` for an answer that nobody waits for any more.
        """
        self._core.count_drop(reason, message.pipe_id)
        level = logging.DEBUG
        # One warning for each reason, and no more: late answers are normal under load, and the counters have the rest.
        if reason not in self.__logged:
            self.__logged.add(reason)
            level = logging.WARNING
        if logger.isEnabledFor(level):
            pipe = self.socket.pipes.get(message.pipe_id)
            peer = f" from {snippet(pipe.peer_address)}" if pipe is not None else ""
            logger.log(level, "%s drops a message (%s): %r%s", type(self).__name__, reason, message, peer)

    def _report(self, what: str, error: BaseException, *, pipe_id: int = 0, request_id: str = "") -> None:
        """Report an error of the program's own code that nobody else would see, such as a handler's.

        It is logged as all of these errors are: the first of a kind with its traceback, and no more than one in some
        seconds. Blocks as the handlers of ``logging`` do. So it may not be called in a callback of ``_core``.

        Args:
            what: what has failed, for people: ``"a handler of a Rep failed"``.
            error: an Exception, or a ``gevent.Timeout`` that the code has let out. Let a GreenletExit pass as well.
            pipe_id: of the pipe that the work was for, 0 for none.
            request_id: how the peer knows the work, for the record.
        """
        pipe = self.socket.pipes.get(pipe_id)
        peer = pipe.peer_address if pipe is not None else ""
        usercode.report(logger.name, what, error, self, pipe_id=pipe_id, peer=peer, request_id=request_id)

    # Flushing

    def _flush(self, deadline: Deadline) -> bool:
        while True:
            if self._outbox is not None:
                self._outbox.flush(deadline.left())
            if not self.socket._flush(deadline):
                return False
            if not self._outbox_size():
                return True
            if deadline.left() == 0:
                return False

    def _unsent(self) -> int:
        return self.socket._unsent() + self._outbox_size()

    def _outbox_size(self) -> int:
        outbox: Outbox | None = self._outbox
        return 0 if outbox is None else outbox.size()

    def _unclosed(self) -> bool:
        return not self._closing and self.socket._unclosed()

    def _push_now(self) -> None:
        self.socket._push_now()

    @property
    def _home(self) -> tuple[int, Hub]:
        return self.socket._home

    def _abandon(self) -> None:
        self.socket._abandon()

    # Closing

    def _forked(self) -> bool:
        return self._core.forked

    def _check(self) -> None:
        self._core.check()

    def _close(self, deadline: Deadline) -> int:
        lost = 0
        try:
            try:
                lost = self._stop(deadline) or 0
            finally:
                lost += self.socket.close(deadline.left())
            return lost
        finally:
            # Also when a kill ended the rest: nobody is left waiting, and nothing stays behind.
            self._ended()
            self._end_greenlets()

    def _stop(self, deadline: Deadline) -> int | None:
        """Do what must be done before the socket closes, once. May block until the deadline. For protocols to override.

        The socket sends and receives meanwhile as before; ``_check_open`` raises. If this is killed, the socket is
        closed all the same.

        Args:
            deadline: ``deadline.left()`` are the seconds that are left, 0.0 if none, None without a limit.

        Returns:
            How many messages that were accepted for sending will never leave; None for 0. ``close()`` adds those of
            the socket.
        """
        return None

    def _ended(self) -> None:
        """Wake greenlets that wait for something that cannot come any more: the socket is closed. To override.

        Called once, also if ``close()`` was killed. Must not block.
        """

    def _is_mine(self, greenlet: object) -> bool:
        return greenlet in self.__greenlets or self._core.is_mine(greenlet)

    def _end_greenlets(self) -> None:
        """Kill the greenlets that still run, except for the caller, and block until they have ended."""
        gevent.killall([greenlet for greenlet in self.__greenlets if greenlet is not getcurrent()], Ended)


def _ignore_change(old: object, new: object) -> None:
    """Do nothing when an option changes: the check before the change is what matters."""


def _refuse_other(name: str, fixed: object, kind: str, value: object) -> None:
    if value != fixed:
        raise BadOptionValue(name, value, f"{fixed!r}, which {kind} depends on")


#: What a protocol may define itself, of the names with an underscore.
_FOR_PROTOCOLS: Final = frozenset({"_ended", "_outbox", "_own_stats", "_stop"})
_OF_ABC: Final = frozenset({"_abc_impl"})
_RESERVED: Final = {name for name in dir(ProtocolBase) if re.match("_[a-z]", name)} - _FOR_PROTOCOLS - _OF_ABC
