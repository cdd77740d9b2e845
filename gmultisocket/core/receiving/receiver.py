"""The receiving part of a socket: one bounded queue for the messages of all pipes.

When the queue is full, reader greenlets block in ``not_full``, and in-process pipes keep their messages. Both are
served in the order in which they came, and before newcomers.

A woken receiver takes its message itself, so a receiver that is killed or times out first has taken nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

from gevent.hub import Hub

from ... import options as opts
from ...counters import Counters
from ...errors import Closed, NotSupported, Timeout
from ...loop.waiting import Deadline, WaitList
from ...loop.yielding import yield_to_loop
from ...options import Option, Options, follow
from ...wire import Fields, Message

__all__ = ["ContentBuffer", "Receiver", "Relay"]

_new = tuple.__new__

#: Seconds. A wait of this length ends in the next turn of the loop.
_ONE_TURN: Final = 1e-6


class Relay(Protocol):
    """Takes what the pipes of one socket read, in the place of the receiver; see ``sending/relay.py``."""

    def prepare(self, pipe_id: int) -> None:
        """Block until the relay may take something from a pipe."""

    def forward(self, data: bytes, position: int, local: bytes, max_content: int) -> tuple[int, int, int]:
        """Take frames. Return where the next one begins, how many were taken, and how many are not for the relay."""

    def skip(self, data: bytes, position: int, count: int) -> int:
        """Return where the last of ``count`` frames ends; of fewer, if the data ends before."""

    def is_beginning(self, data: bytes, position: int, max_content: int) -> bool:
        """Return whether a frame begins that is probably for the relay when the rest has come."""


class ContentBuffer(Protocol):
    """Memory of the program's that contents are read into, instead of becoming messages."""

    def space(self, size: int) -> memoryview:
        """Return memory for at most ``size`` bytes; the pipe releases it before anything else runs."""

    def filled(self, size: int, ends: bool) -> bool:
        """Take bytes that were read into the memory; ``ends`` says whether the content ends with them.

        Returns:
            Whether there is more memory.
        """


class Receiver:
    """Receives for one socket.

    Attributes:
        queue: messages that have arrived and that nobody has taken, oldest first.
        not_empty: greenlets that wait for a message.
        not_full: greenlets and pipes that wait to deliver one.
        get_waiters: those in ``not_empty``.
        put_waiters: those in ``not_full``.
        plain_limit: while the queue is shorter than this, a message may be appended without any other check.
        closed: whether the socket has begun to close: messages that arrive now are dropped.
        filter: a protocol's callback, see ``ProtocolSocket.on_message``; None without one.
        has_room: while the filter sees messages in order: whether the queue can take the one that it is shown now.
        on_internal: the same, see ``ProtocolSocket.on_internal``.
        relay: what pipes read goes there first; None without a switch, and while nothing may be received.
        buffer_for: a protocol's callback, see ``ProtocolSocket.on_content``; None as for ``relay``.
        counters: losses that belong to no pipe.
    """

    __slots__ = (
        "_budget",
        "_buffer_for",
        "_counting",
        "_in_order",
        "_limit",
        "_low",
        "_max_bytes",
        "_no_recv",
        "_queued_bytes",
        "_reason",
        "_relay",
        "_relay_filtered",
        "_spent",
        "buffer_for",
        "closed",
        "counters",
        "filter",
        "get_waiters",
        "has_room",
        "not_empty",
        "not_full",
        "on_internal",
        "plain_limit",
        "put_waiters",
        "queue",
        "relay",
    )

    def __init__(self, hub: Hub, options: Options) -> None:
        self.queue: deque[Fields] = deque()
        self.not_empty = WaitList(hub, self.queue.__len__)
        self.not_full = WaitList(hub, self.writable)
        self.get_waiters = self.not_empty.waiters
        self.put_waiters = self.not_full.waiters
        self.closed = False
        self.filter: Callable[[Message], bool] | None = None
        self.has_room = False
        self._in_order = False
        self.on_internal: Callable[[Message], bool] | None = None
        self.counters = Counters()
        self._relay: Relay | None = None
        self._relay_filtered = False
        self.relay: Relay | None = None
        self._buffer_for: Callable[[int, bytes, bytes], ContentBuffer | None] | None = None
        self.buffer_for: Callable[[int, bytes, bytes], ContentBuffer | None] | None = None
        self.plain_limit = 0
        self._reason = ""
        self._limit = 0
        self._max_bytes = 0
        self._queued_bytes = 0
        self._no_recv = False
        #: Messages that a receiver takes in a row before it lets others run, and how many it has taken.
        self._budget = 0
        self._spent = 0
        #: Whether a receiver must count: the queue can hold more than the budget.
        self._counting = False
        follow(options, self, self._followed)

    # Options. Messages that are queued stay queued when a limit changes.

    def _set_no_recv(self, value: bool) -> None:
        self._no_recv = value
        self._update_fast_path()
        if value:
            self.not_empty.wake_all()
            self.not_full.wake_all()

    def _set_limit(self, value: int) -> None:
        self._limit = value
        #: A queue that has been full accepts messages again when its length is down to this.
        self._low = value // 2
        self._counting = self._limit > self._budget
        self._update_fast_path()
        self.not_full.wake()

    def _set_max_bytes(self, value: int) -> None:
        self._max_bytes = value
        self._queued_bytes = sum(len(message[4] or b"") for message in self.queue)
        self._update_fast_path()
        self.not_full.wake()

    def _set_budget(self, value: int) -> None:
        self._budget = value
        self._counting = self._limit > self._budget
        self._update_fast_path()

    #: The options that matter for every message; a receiver keeps copies of them.
    _followed: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.socket.no_recv: _set_no_recv,
        opts.socket.recv_queue_size: _set_limit,
        opts.socket.recv_queue_bytes: _set_max_bytes,
        opts.socket.yield_messages: _set_budget,
    }

    def set_filter(self, callback: Callable[[Message], bool] | None, in_order: bool) -> None:
        """Show each message to a protocol first, or none with None; see ``ProtocolSocket.on_message``."""
        self.filter = callback
        self._in_order = in_order
        self._update_fast_path()

    def set_relay(self, relay: Relay | None, filtered: bool = False) -> None:
        """Pass what pipes read to a relay first.

        Args:
            relay: the relay; None for no relay any more.
            filtered: True: the filter sees only what the relay has not taken. False: while there is a filter, the
                relay takes nothing.
        """
        self._relay = relay
        self._relay_filtered = filtered
        self._update_fast_path()

    def set_buffer_for(self, callback: Callable[[int, bytes, bytes], ContentBuffer | None]) -> None:
        """Set the callback that says where contents are read to; see ``ProtocolSocket.on_content``."""
        self._buffer_for = callback
        self._update_fast_path()

    def is_relayed_by(self, relay: Relay) -> bool:
        """Return whether this relay takes what pipes read."""
        return self._relay is relay

    def _update_fast_path(self) -> None:
        """Recompute ``plain_limit``, ``relay`` and ``buffer_for``."""
        ended, filtered = self._no_recv or self.closed, self.filter is not None
        self.plain_limit = 0 if ended or filtered or self._max_bytes else min(self._limit, self._budget)
        self.relay = None if ended or (filtered and not self._relay_filtered) else self._relay
        self.buffer_for = None if ended else self._buffer_for

    # Receiving

    def next(self, timeout: float | None) -> Fields:
        """Take the oldest message; see ``Socket.recv_msg``."""
        queue = self.queue
        if not queue or self.get_waiters or self._counting:
            self._wait(timeout)
        message = queue.popleft()
        if self.put_waiters and len(queue) <= self._low:
            self.not_full.wake()
        if self._max_bytes:
            self._queued_bytes -= len(message[4] or b"")
        return message

    def next_batch(self, most: int) -> list[Fields]:
        """Block until there is a message, and take the oldest ones, at most ``most``."""
        queue = self.queue
        if not queue or self.get_waiters or self._counting:
            self._wait(None)
        count = min(len(queue), most)
        self._spent += count - 1
        messages = [queue.popleft() for _ in range(count)]
        if self.put_waiters and len(queue) <= self._low:
            self.not_full.wake()
        if self._max_bytes:
            self._queued_bytes -= sum(len(message[4] or b"") for message in messages)
        return messages

    def _wait(self, timeout: float | None) -> None:
        """Block until this greenlet may take a message. Take nothing."""
        deadline = None if timeout is None else Deadline(timeout)
        self._spent += 1
        if self._spent > self._budget:
            # A receiver that always finds a message, or polls for one, must not keep the loop from the others.
            self._spent = 0
            yield_to_loop()
        woken = False
        while not self.queue or (self.get_waiters and not woken):
            if self._no_recv:
                raise NotSupported("receiving", "the socket has socket.no_recv set")
            if self.closed and not self.queue:
                raise Closed("socket", self._reason)
            left = None if deadline is None else deadline.left()
            if not self._limit and self.put_waiters:
                # Unbuffered: a message may be delivered only while somebody waits for it, even if for one turn of the
                # loop.
                self.not_full.wake()
                left = _ONE_TURN if left == 0.0 else left
            woken = self.not_empty.wait(left)
            if woken:
                self._spent = 0
            elif not self.queue or self.get_waiters:
                raise Timeout("recv", timeout)

    # Delivering

    def writable(self) -> bool:
        """Return whether one more message may be delivered."""
        waiting = len(self.queue)
        if waiting >= self._limit and (self._limit or waiting >= len(self.get_waiters)):
            # Without a queue a protocol still takes what it wants when it arrives. Other messages stay with their
            # pipes.
            return self.closed or self._no_recv or (not self._limit and self.filter is not None and not waiting)
        return not (self._max_bytes and waiting and self._queued_bytes >= self._max_bytes)

    def deliver(
        self, messages: Sequence[Fields], in_turn: bool = False, past_limit: bool = False, wake: bool = True
    ) -> Sequence[Fields]:
        """Queue messages until the queue is full, and return the rest. Never switches greenlets.

        Args:
            messages: the oldest first.
            in_turn: the caller was woken to deliver them. Any other caller comes after those who wait.
            past_limit: queue them all, because they had arrived before the wait for space.
            wake: whether to wake those who wait for a message; else the caller does.
        """
        if (self.closed and not past_limit) or self._no_recv:
            self.counters.drop("no_recv" if self._no_recv else "closed", len(messages))
            return ()
        wanted = self.filter
        if wanted is not None:
            if self._in_order:
                return self._deliver_in_order(wanted, messages, in_turn, past_limit, wake)
            messages = [message for message in messages if not wanted(_new(Message, message))]
            if not messages:
                return ()
        queue = self.queue
        rest: Sequence[Fields] = ()
        if self.put_waiters and self._limit and not (in_turn or past_limit):
            return messages
        if self._max_bytes or not self._limit:
            for index, message in enumerate(messages):
                if not past_limit and not self.writable():
                    rest = messages[index:]
                    break
                queue.append(message)
                self._queued_bytes += len(message[4] or b"")
        elif past_limit or len(queue) + len(messages) <= self._limit:
            queue.extend(messages)
        else:
            free = max(0, self._limit - len(queue))
            queue.extend(messages[:free])
            rest = messages[free:]
        if wake and self.get_waiters:
            self.not_empty.wake()
        return rest

    def _deliver_in_order(
        self, wanted: Callable[[Message], bool], messages: Sequence[Fields], in_turn: bool, past_limit: bool, wake: bool
    ) -> Sequence[Fields]:
        """Show one message after the other to the filter, and queue it at once. Return the rest from one that waits."""
        queue = self.queue
        rest: Sequence[Fields] = ()
        my_turn = in_turn or past_limit or not (self.put_waiters and self._limit)
        for index, message in enumerate(messages):
            self.has_room = past_limit or (my_turn and self.writable())
            if wanted(_new(Message, message)):
                continue
            if not self.has_room:
                rest = messages[index:]
                break
            queue.append(message)
            self._queued_bytes += len(message[4] or b"")
        if wake and queue and self.get_waiters:
            self.not_empty.wake()
        return rest

    def append(self, message: Fields) -> None:
        """Queue a message that the filter has made, whether or not there is room."""
        self.queue.append(message)
        self._queued_bytes += len(message[4] or b"")
        if self.get_waiters:
            self.not_empty.wake()

    # Closing

    def stop(self, reason: str) -> None:
        """Accept nothing more, and wake all who wait. Messages that have arrived can still be received."""
        self.closed = True
        self._update_fast_path()
        self._reason = reason
        self.not_full.wake_all()
        self.not_empty.wake_all()

    def discard_queue(self) -> None:
        """Drop the messages that nobody has taken, and count them as ``closed``."""
        self.counters.drop("closed", len(self.queue))
        self.queue.clear()
