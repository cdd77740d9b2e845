"""The receiving third of a socket: one bounded queue for the messages of all pipes.

A full queue holds up whoever brings messages: reader greenlets wait in ``room``, pipes of this process keep
theirs. They get room in the order in which they came, and before newcomers.

A woken receiver takes its message itself, so a receiver that is killed or timed out first has taken nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gevent
from gevent.hub import Hub

from .. import options as opts
from ..counters import Counters
from ..errors import Closed, NotSupported, Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import Option, Options, follow
from ..wire import Fields, Message

__all__ = ["Receiver"]

_new = tuple.__new__

#: In seconds: over in the next turn of the loop.
_ONE_TURN = 1e-6


class Receiver:
    """Receives for one socket.

    Attributes:
        queue: messages that have arrived and nobody has taken, oldest first.
        arrivals: greenlets that wait for a message.
        room: greenlets and pipes that wait to bring one.
        closed: whether the socket has begun to close: what comes now is dropped.
        sift: a protocol's, see ``ProtocolSocket.on_message``; None without one.
        counters: losses that are no pipe's.
    """

    def __init__(self, hub: Hub, options: Options) -> None:
        self.queue: deque[Fields] = deque()
        self.arrivals = WaitList(hub, lambda: self.queue)
        self.room = WaitList(hub, self.has_room)
        self.closed = False
        self.sift: Callable[[Message], bool] | None = None
        self.counters = Counters()
        self._reason = ""
        self._queued_bytes = 0
        self.receivers = self.arrivals.waiters
        self.bringers = self.room.waiters
        self._spent = 0
        self._budget = 0
        self.limit = 0
        self.no_recv = False
        self.max_bytes = 0
        self.plain_limit = 0
        #: Whether a receiver counts: the queue holds more than it may take without letting others run.
        self._spending = False
        follow(options, self, self._copied)

    # Options. What is queued stays queued, whatever changes.

    def _set_no_recv(self, value: bool) -> None:
        self.no_recv = value
        self._look()
        if value:
            self.arrivals.wake_all()
            self.room.wake_all()

    def _set_limit(self, value: int) -> None:
        self.limit = value
        #: A queue that has been full lets others bring messages again when it is down to this many.
        self._low = value // 2
        self._spending = self.limit > self._budget
        self._look()
        self.room.wake()

    def _set_max_bytes(self, value: int) -> None:
        self.max_bytes = value
        self._queued_bytes = sum(len(message[4] or b"") for message in self.queue)
        self._look()
        self.room.wake()

    def set_sift(self, sift: Callable[[Message], bool]) -> None:
        """Have a protocol see each message first; see ``ProtocolSocket.on_message``."""
        self.sift = sift
        self._look()

    def _look(self) -> None:
        """Find out anew up to how many messages one may be put into the queue without looking at anything else."""
        special = self.no_recv or self.max_bytes or self.closed or self.sift is not None
        self.plain_limit = 0 if special else min(self.limit, self._budget)

    def _set_budget(self, value: int) -> None:
        self._budget = value
        self._spending = self.limit > self._budget
        self._look()

    #: The options that matter for every message, of which a receiver keeps copies.
    _copied: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.socket.no_recv: _set_no_recv,
        opts.socket.recv_queue_size: _set_limit,
        opts.socket.recv_queue_bytes: _set_max_bytes,
        opts.socket.yield_messages: _set_budget,
    }

    # Receiving

    def take_next(self, timeout: float | None) -> Fields:
        """Take the oldest message; see ``Socket.recv_msg``."""
        queue = self.queue
        if not queue or self.receivers or self._spending:
            self._wait(timeout)
        message = queue.popleft()
        if self.bringers and len(queue) <= self._low:
            self.room.wake()
        if self.max_bytes:
            self._queued_bytes -= len(message[4] or b"")
        return message

    def _wait(self, timeout: float | None) -> None:
        """Block until it is this greenlet's turn to take a message. Nothing is taken here."""
        deadline = None if timeout is None else Deadline(timeout)
        self._spent += 1
        if self._spent > self._budget:
            # A receiver that always finds a message, or polls for one, must not keep the loop from the others.
            self._spent = 0
            gevent.sleep(0)
        woken = False
        while not self.queue or (self.receivers and not woken):
            if self.no_recv:
                raise NotSupported("receiving", "the socket has socket.no_recv set")
            if self.closed and not self.queue:
                raise Closed("socket", self._reason)
            left = None if deadline is None else deadline.left()
            if not self.limit and self.bringers:
                # Unbuffered: somebody may bring a message now that one is waited for, and be it for a turn of the loop.
                self.room.wake()
                left = _ONE_TURN if left == 0.0 else left
            woken = self.arrivals.wait(left)
            if woken:
                self._spent = 0
            elif not self.queue or self.receivers:
                raise Timeout("recv", timeout)

    # Bringing

    def has_room(self) -> bool:
        """Return whether one more message may be brought."""
        waiting = len(self.queue)
        if waiting >= self.limit and (self.limit or waiting >= len(self.receivers)):
            # Unbuffered, a protocol takes what it wants where it comes. What it leaves waits, as ever, with its pipe.
            return self.closed or self.no_recv or (not self.limit and self.sift is not None and not waiting)
        return not (self.max_bytes and waiting and self._queued_bytes >= self.max_bytes)

    def take(self, messages: Sequence[Fields], in_turn: bool = False, past_limit: bool = False) -> Sequence[Fields]:
        """Queue as many messages as there is room for, and return the others. Never switches greenlets.

        Args:
            messages: the oldest first.
            in_turn: whoever brings them was woken for it; a newcomer gets in line behind those who wait.
            past_limit: queue them all, because they had arrived before they were held up.
        """
        if (self.closed and not past_limit) or self.no_recv:
            self.counters.drop("no_recv" if self.no_recv else "closed", len(messages))
            return ()
        sift = self.sift
        if sift is not None:
            messages = [message for message in messages if not sift(_new(Message, message))]
            if not messages:
                return ()
        queue = self.queue
        rest: Sequence[Fields] = ()
        if self.bringers and self.limit and not (in_turn or past_limit):
            return messages
        if self.max_bytes or not self.limit:
            for index, message in enumerate(messages):
                if not past_limit and not self.has_room():
                    rest = messages[index:]
                    break
                queue.append(message)
                self._queued_bytes += len(message[4] or b"")
        elif past_limit or len(queue) + len(messages) <= self.limit:
            queue.extend(messages)
        else:
            free = max(0, self.limit - len(queue))
            queue.extend(messages[:free])
            rest = messages[free:]
        if self.receivers:
            self.arrivals.wake()
        return rest

    # Closing

    def stop(self, reason: str) -> None:
        """Take nothing more, and let those who wait know. What has arrived can still be received."""
        self.closed = True
        self._look()
        self._reason = reason
        self.room.wake_all()
        self.arrivals.wake_all()
