"""A switch joins two sockets: it forwards every message of one to the other.

A message that arrives at ``back`` is sent at ``front``, and the other way round, by its own send type: to one peer
there, to all, or further along its path. The switch's sockets add their pipe ids to a message's source, and replies
come back by these ids. Each switch on the way uses up one of a message's ``ttl``.

No message and no peer can end a switch. A message that cannot be forwarded (its path is broken, its ttl is used up, a
peer has gone) is dropped and counted, and so is a message for which the middleware raises. If the middleware is killed,
the greenlet of that direction ends, and another one goes on.

A peer that does not read cannot stop a switch for the others, unless ``socket.send_overflow`` is set to do so. Senders
to all and along paths wait for full peers as long as ``socket.send_to_patience`` lets them wait together. Then a peer
that is still full loses what is sent to all, and its pipe is closed if something is sent to it along a path. What is
sent to one goes to another peer, and waits only while all are full.

A peer that guesses paths is cut off. If it is connected to the switch, its pipe is closed. If it is behind another
switch, that pipe stays open, because others use it too: the switch drops what the guesser sends along paths.

Internal messages that go along a path, as that of a Rep whose handler has failed, are forwarded as well. They never
wait, and the middleware does not see them.

Source: switch.go of the Go code, where any such message ends the switch for good.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from . import options as opts
from . import usercode
from .core.pipes.ids import was_pipe_id
from .core.pipes.pipe import Pipe, PipeState
from .core.sending.relay import Relay
from .core.socket import Socket
from .errors import BrokenPath, Closed, MessageDropped, MultiSocketError, snippet
from .log import ThrottledLog, get_logger
from .loop.waiting import Deadline
from .wire import MAX_IDS, SEND_TYPE_MASK, TO_DEST, Message, first_id

__all__ = ["Middleware", "Switch"]

logger = get_logger("gmultisocket.switch")

#: The largest ttl that a message keeps. A peer could write 255, and each switch of a loop would forward the message.
_MAX_TTL: Final = 64
#: An honest peer sends no made-up pipe id. One that sends this number in a window is cut off.
_MAX_GUESSES: Final = 16
#: A switch with this number of guessers behind it is cut off as if it were one: maybe it has made them up.
_MAX_GUESSERS: Final = 64
#: After this number of made-up ids in a window a new pipe is cut off at its first one: guessers connect again.
_MANY_GUESSES: Final = 1024
#: Seconds after which guesses are forgotten, and those who were cut off may send again.
_WINDOW: Final = 60.0
#: The number of ids of a source that tell one guesser from another, and the number of sources that one pipe can make
#: this switch remember.
_MAX_DEPTH: Final = 8
_MAX_SOURCES: Final = 256
#: Seconds between two warnings about guessers.
_LOG_INTERVAL: Final = 10.0

#: Called with a message; returns it, another message in its place, or None to drop it.
Middleware = Callable[[Message], Message | None]


class _MiddlewareFailed(Exception):
    """The middleware has raised its cause."""


class _Guesses:
    """The made-up pipe ids that came by one pipe in one window, by the source of their messages.

    Each switch on the way has put an id in front of the source. A peer can write further ids behind them, and so it can
    make up any number of sources. The first guess of a source therefore counts as one more guesser for the switch that
    it came through, and so on up to the pipe. A source with too many guesses is cut off, and so is a switch with too
    many guessers behind it: it may be a guesser that makes up sources.
    """

    __slots__ = ("_cut_off", "_depth", "_guessers", "_guesses", "total")

    def __init__(self) -> None:
        self._guesses: dict[bytes, int] = {}
        self._guessers: dict[bytes, int] = {}
        self._cut_off: set[bytes] = set()
        self._depth = _MAX_DEPTH
        self.total = 0

    def add(self, source: bytes) -> None:
        """Count one guess."""
        self.total += 1
        self._count(source[: 4 * self._depth], 1)
        if len(self._guesses) + len(self._guessers) > _MAX_SOURCES:
            self._forget_deepest()

    def _count(self, source: bytes, guesses: int) -> None:
        count = self._guesses[source] = self._guesses.get(source, 0) + guesses
        if count >= _MAX_GUESSES:
            self._cut_off.add(source)
        new = count == guesses and source not in self._guessers
        while new and len(source) > 4:
            source = source[:-4]
            new = source not in self._guessers and source not in self._guesses
            count = self._guessers[source] = self._guessers.get(source, 0) + 1
            if count >= _MAX_GUESSERS:
                self._cut_off.add(source)

    def _forget_deepest(self) -> None:
        """Count the guesses of the longest sources for the switches that they came through."""
        while self._depth > 2 and len(self._guesses) + len(self._guessers) > _MAX_SOURCES:
            self._depth -= 1
            limit = 4 * self._depth
            longest = {source: count for source, count in self._guesses.items() if len(source) > limit}
            for counts in (self._guesses, self._guessers):
                for source in [source for source in counts if len(source) > limit]:
                    del counts[source]
            for source, count in longest.items():
                self._count(source[:limit], count)

    def cut_off(self, source: bytes) -> None:
        """Cut a source off."""
        self._cut_off.add(source)

    def is_cut_off(self, source: bytes) -> bool:
        """Return whether a source, or a switch that it came through, is cut off."""
        ends = range(4, min(len(source), 4 * _MAX_DEPTH) + 1, 4)
        return any(source[:end] in self._cut_off for end in ends)


class _Guard:
    """Watches for peers of one switch that guess paths.

    Attributes:
        alert: whether somebody has guessed lately.
    """

    def __init__(self, *sockets: Socket) -> None:
        self._sockets = sockets
        self.alert = False
        self._began = 0.0
        self._total = 0
        #: The pipes that were open when this window began.
        self._old_pipes: set[int] = set()
        self._guesses: WeakKeyDictionary[Pipe, _Guesses] = WeakKeyDictionary()
        self._log = ThrottledLog(logger, _LOG_INTERVAL)

    def count(self, source: Socket, message: Message) -> None:
        """Count a made-up pipe id, and cut off a peer that tries ids to find a path."""
        pipe = source.pipes.get(message.pipe_id)
        if pipe is None:
            return
        self._update_window()
        if not self.alert:
            self.alert = True
            self._began = monotonic()
            self._old_pipes = {pipe_id for sock in self._sockets for pipe_id in sock.pipes}
        self._total += 1
        guesses = self._guesses.get(pipe)
        if guesses is None:
            guesses = self._guesses[pipe] = _Guesses()
        guesses.add(message.source)
        limit = _MAX_GUESSES
        if pipe.id not in self._old_pipes:
            # Nobody else relies on it yet. Without this, a guesser would connect again whenever it is cut off.
            limit = _MAX_GUESSES if self._total < _MANY_GUESSES else 1
            if guesses.total >= limit:
                guesses.cut_off(message.source[:4])
        if guesses.is_cut_off(message.source):
            peer = snippet(pipe.peer_address)
            self._log.log("guesses", logging.WARNING, "a peer at or behind %s guesses paths: it is cut off", peer)
            if message.hops <= 1:
                pipe.close("it sends to paths that never were")

    def stops(self, source: Socket, message: Message) -> bool:
        """Return whether a message is from a peer that is cut off. Only called while there is an alert."""
        self._update_window()
        if message.flags & SEND_TYPE_MASK != TO_DEST or not self.alert:
            return False
        pipe = source.pipes.get(message.pipe_id)
        guesses = None if pipe is None else self._guesses.get(pipe)
        return guesses is not None and guesses.is_cut_off(message.source)

    def _update_window(self) -> None:
        """Forget everything when the window has ended."""
        if self.alert and monotonic() - self._began > _WINDOW:
            self.alert = False
            self._total = 0
            self._old_pipes = set()
            self._guesses.clear()


class Switch:
    """Forwards messages between two sockets. It does not close the sockets, and makes no connections.

    Args:
        back: one socket.
        front: the other socket.
        middleware: called with each message before it is forwarded; see :data:`Middleware`. May block: the next
            messages in the same direction wait.
        max_ttl: a message that arrives with a larger ttl gets this one, 1 to 255. It bounds the work that a peer
            can cause where switches form a loop. The middleware may set a larger one.

    Attributes:
        forwarded: the number of forwarded messages.
        drops: the number of dropped messages, by reason. Under ``"overflow"`` a to-all message counts once for each
            peer that lost it.
    """

    def __init__(
        self, back: Socket, front: Socket, middleware: Middleware | None = None, max_ttl: int = _MAX_TTL
    ) -> None:
        if back is front:
            raise ValueError("a switch joins two different sockets")
        if not 1 <= max_ttl <= 255:
            raise ValueError(f"max_ttl is a number from 1 to 255, not {max_ttl!r}")
        self.back = back
        self.front = front
        self._middleware = middleware
        self._greenlets: list[Greenlet[..., Any]] = []
        self._max_ttl = max_ttl
        self._guard = _Guard(back, front)
        #: The short way of each direction, by its source. None with a middleware, which sees each message.
        self._relays: dict[Socket, Relay] = {}
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
        if self._greenlets:
            return
        for source, target in ((self.back, self.front), (self.front, self.back)):
            inside = source._for_protocol()
            if self._middleware is None:
                self._relays[source] = inside.relay_to(
                    target._for_protocol(), self._max_ttl, self._guard, self._count_forwarded
                )
            self._greenlets.append(gevent.spawn(self._forward, source, target))
            inside.on_internal(partial(self._forward_internal, source, target))

    def stop(self) -> None:
        """Stop forwarding. Blocks until the greenlets have ended. May be repeated.

        Messages stay in their sockets. One message in each direction may be waiting for the middleware or for a peer:
        it is dropped and counted. A middleware may call this; the message that it then returns is forwarded.
        """
        greenlets, self._greenlets = self._greenlets, []
        relays, self._relays = self._relays, {}
        for relay in relays.values():
            relay.close()
        for sock in (self.back, self.front):
            sock._for_protocol().on_internal(_has_no_use)
        others = [greenlet for greenlet in greenlets if greenlet is not getcurrent()]
        gevent.killall(others)
        for greenlet in greenlets:
            if greenlet is getcurrent():
                greenlet.kill(block=False)

    def join(self, timeout: float | None = None) -> bool:
        """Block until the switch has ended because its sockets were closed. Return False when the time is up."""
        deadline = Deadline(timeout)
        while not all(greenlet.ready() for greenlet in self._greenlets):
            # Not the greenlets of now for ever: another one takes the place of one that is killed.
            waiting = list(self._greenlets)
            if len(gevent.joinall(waiting, deadline.left())) < len(waiting):
                return False
        return True

    def _forward(self, source: Socket, target: Socket) -> None:
        """Forward in one direction until the switch stops or a socket closes (one greenlet for each direction)."""
        try:
            self._forward_messages(source, target)
            if source in self._relays:
                self._relays[source].close()
        except BaseException:
            # stop() takes the greenlets out of the list before it kills them. If the middleware was killed, or a
            # timeout of its own came late, the switch goes on.
            me = getcurrent()
            if me in self._greenlets:
                self._greenlets[self._greenlets.index(me)] = gevent.spawn(self._forward, source, target)
            raise

    def _forward_messages(self, source: Socket, target: Socket) -> None:
        me = getcurrent()
        lost = 0

        def count_lost(count: int) -> None:
            nonlocal lost
            lost = count
            self._drop("overflow", count)

        guard, max_ttl, relay = self._guard, self._max_ttl, self._relays.get(source)
        forward = target._for_protocol().forward
        # A policy that the program has set is its own decision, also if it is to wait.
        spare_full = None if target.options.has_own(opts.socket.send_overflow) else count_lost
        while me in self._greenlets:
            if relay is not None:
                relay.end()
            try:
                message = source.recv_msg()
            except Closed:
                return
            if relay is not None:
                relay.begin(message.pipe_id)
            if guard.alert and guard.stops(source, message):
                self._drop("guessing")
                continue
            if message.ttl > max_ttl:
                message = message.replace(ttl=max_ttl)
            try:
                passed = message if self._middleware is None else self._pass(message)
                if passed is None:
                    continue
                lost = 0
                if forward(passed, None, spare_full):
                    self.forwarded += 1
                elif not lost:
                    self._drop("overflow" if target.pipes else "no peer")
            except _MiddlewareFailed as failure:
                assert failure.__cause__ is not None
                self._fail("the middleware failed", failure.__cause__, message)
            except Closed:
                self._drop("closed")
                return
            except MessageDropped as error:
                self._drop(error.reason)
            except BrokenPath as error:
                self._drop("BrokenPath")
                if not was_pipe_id(error.pipe_id):
                    guard.count(source, message)
            except MultiSocketError as error:
                self._drop(type(error).__name__)
            except Exception as error:
                # The middleware returned something that cannot be sent.
                self._fail("a message could not be forwarded", error, message)
            except BaseException as error:
                self._count_unfinished(error, message)
                raise

    def _count_unfinished(self, error: BaseException, message: Message) -> None:
        """Count the message of a greenlet that was stopped or killed."""
        if getcurrent() not in self._greenlets:
            self._drop("stopped")
        elif isinstance(error, GreenletExit):
            self._fail("the middleware was killed", error, message)
        else:
            self._drop("error")

    def _count_forwarded(self, count: int) -> None:
        self.forwarded += count

    def _pass(self, message: Message) -> Message | None:
        assert self._middleware is not None
        try:
            passed = self._middleware(message)
        except (Exception, gevent.Timeout) as error:
            raise _MiddlewareFailed from error
        if passed is None:
            self._drop("middleware")
        return passed

    def _fail(self, what: str, error: BaseException, message: Message) -> None:
        """Count and report an error of the program's own code."""
        self._drop("error")
        pipe = self.back.pipes.get(message.pipe_id) or self.front.pipes.get(message.pipe_id)
        peer = pipe.peer_address if pipe is not None else ""
        usercode.report(logger.name, what, error, self, pipe_id=message.pipe_id, peer=peer)

    def _forward_internal(self, source: Socket, target: Socket, message: Message) -> bool:
        """Forward an internal message along its path, or drop it. A callback of the core; never blocks."""
        if not message.destination:
            return False
        pipe_id = first_id(message.destination)
        pipe = target.pipes.get(pipe_id)
        if self._guard.alert and self._guard.stops(source, message):
            self._drop("guessing")
        elif not message.ttl:
            self._drop("ttl")
        elif len(message.source) + len(message.destination) >= 4 * (MAX_IDS + 1):
            self._drop("hops")
        elif pipe is None or pipe.state is not PipeState.OPEN:
            self._drop("BrokenPath")
            if not was_pipe_id(pipe_id):
                self._guard.count(source, message)
        elif pipe.full:
            self._drop("overflow")
        else:
            target._for_protocol().pass_on(pipe, message.replace(ttl=min(message.ttl, self._max_ttl)))
            self.forwarded += 1
        return True

    def _drop(self, reason: str, count: int = 1) -> None:
        if count:
            self.drops[reason] = self.drops.get(reason, 0) + count


def _has_no_use(message: Message) -> bool:
    """Return False: nobody forwards a message."""
    return False
