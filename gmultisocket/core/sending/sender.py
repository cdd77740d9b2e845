"""The sending part of a socket: which pipe a message goes to, and what happens when that pipe is full.

* To one: the next pipe in round-robin order that is writable. While none is, senders wait in the order in which they
  came. A message that was queued for a pipe which then closed goes to another pipe, before anything newer.
* To a destination: see ``todestination.py``.
* To all: see ``fanout.py``.

Nothing here waits for one pipe while another pipe could be served, and nothing is locked: the methods that do not block
run to their end before another greenlet runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gevent.hub import Hub

from ... import options as opts
from ...counters import Counters
from ...errors import BadMessage, Closed, MessageDropped, MessageTooLong, NoPeers, NotSupported, Timeout
from ...loop.waiting import Deadline, WaitList
from ...options import Option, Options, follow
from ...wire import (
    DEFAULT_TTL,
    INTERNAL,
    MAX_CONTENT,
    MAX_IDS,
    RAW,
    SEND_TYPE_MASK,
    TO_ALL,
    TO_DEST,
    TO_ONE,
    Message,
    check_path,
)
from ..pipes.pipe import Pipe, PipeState, headers_of
from ..pipes.scheduler import WriteScheduler
from .content import as_content
from .fanout import Sent, ToAllSender
from .overflow import OverflowPolicy
from .patience import Patience
from .requeue import Requeue
from .rotation import Rotation
from .todestination import ToDestinationSender

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Sender"]


class Sender:
    """Sends for one socket.

    Attributes:
        ttl, headers: the hops that a message may make (``socket.send_ttl``), and the headers of to-one messages.
        max_content: the longest content that may be sent, in bytes.
        counters: losses that belong to no pipe.
        requeue: to-one messages whose pipe closed before they left.
        scheduler: of the pipes.
    """

    __slots__ = (
        "_avoided",
        "_closed",
        "_eligible",
        "_fail_no_peers",
        "_fast_path",
        "_no_send",
        "_options",
        "_overflow",
        "_patience",
        "_pipes",
        "_send_waiters",
        "_to_all",
        "_to_destination",
        "_writable",
        "counters",
        "headers",
        "max_content",
        "requeue",
        "scheduler",
        "ttl",
    )

    def __init__(self, hub: Hub, options: Options, pipes: Mapping[int, Pipe], scheduler: WriteScheduler) -> None:
        self._pipes = pipes
        self.scheduler = scheduler
        self._options = options
        #: Why nothing is sent any more, "" while the socket is open.
        self._closed = ""
        self._no_send = False
        self._fail_no_peers = False
        #: Whether ``send`` may use the first writable pipe without any other check but that of the budget.
        self._fast_path = False
        #: All pipes that to-one messages may go to, full or not.
        self._eligible: dict[Pipe, None] = {}
        #: Pipes that a protocol wants avoided. Empty, or there are others in ``_eligible``.
        self._avoided: dict[Pipe, None] = {}
        #: Those in ``_eligible`` that are writable.
        self._writable: Rotation[Pipe] = Rotation()
        #: Greenlets that wait to send to one.
        self._send_waiters = WaitList(hub, self._may_go_on)
        self.requeue = Requeue(self._writable)
        self._overflow = OverflowPolicy(scheduler)
        self._patience = Patience()
        self._to_all = ToAllSender(hub, scheduler, self._overflow, self._patience, self._check_open)
        self._to_destination = ToDestinationSender(pipes, scheduler, self._overflow, self._patience, self._check_open)
        self.counters = Counters()
        follow(options, self, self._followed)

    # Options

    def _set_overflow(self, value: str) -> None:
        self._overflow.policy = value
        self._wake_senders()

    def _set_best_effort(self, value: bool) -> None:
        self._overflow.best_effort = value
        self._wake_senders()

    def _set_fail_no_peers(self, value: bool) -> None:
        self._fail_no_peers = value
        self._wake_senders()

    def _set_no_send(self, value: bool) -> None:
        self._no_send = value
        self._update_fast_path()
        self._wake_senders()

    def _limits_changed(self, value: int) -> None:
        """Follow the limits of the pipes' queues, which the scheduler has set before."""
        # When a pipe becomes writable, it may get a message, find its connection broken, and be gone.
        for pipe in list(self._pipes.values()):
            pipe._update_full()
        self._update_fast_path()

    def _set_patience(self, value: float) -> None:
        self._patience.limit = value

    def _set_ttl(self, value: int) -> None:
        self.ttl = value or DEFAULT_TTL
        self.headers = headers_of(self.ttl)

    def _set_max_content(self, value: int) -> None:
        limit = self._options.get(opts.socket.max_send_content_length)
        if limit < 0:
            limit = self._options.get(opts.connector.pipe.max_recv_content_length)
        self.max_content = limit or MAX_CONTENT

    #: The options that matter for every message; a sender keeps copies of them.
    _followed: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.socket.send_queue_size: _limits_changed,
        opts.socket.send_queue_bytes: _limits_changed,
        opts.socket.send_to_patience: _set_patience,
        opts.socket.send_ttl: _set_ttl,
        opts.socket.send_overflow: _set_overflow,
        opts.socket.send_best_effort: _set_best_effort,
        opts.socket.fail_no_peers: _set_fail_no_peers,
        opts.socket.no_send: _set_no_send,
        opts.socket.max_send_content_length: _set_max_content,
        opts.connector.pipe.max_recv_content_length: _set_max_content,
    }

    # Sending

    def send(self, content: Buffer, timeout: float | None) -> None:
        """Send to one peer; see ``Socket.send``."""
        if type(content) is not bytes:
            content = as_content(content)
        if len(content) > self.max_content:
            raise MessageTooLong(len(content), self.max_content)
        if (not self._fast_path or self.scheduler.over_budget) and not self._wait_to_send(timeout):
            return
        writable = self._writable
        pipe = writable.first
        assert pipe is not None
        if writable.several:
            writable.rotate()
        pipe._put_one(self.headers, content)

    def next_pipe(self, timeout: float | None) -> Pipe | None:
        """Return the pipe for a to-one message, which the caller puts there; see ``ProtocolSocket.next_pipe``."""
        if (not self._fast_path or self.scheduler.over_budget) and not self._wait_to_send(timeout):
            return None
        return self._writable.take()

    def send_to(self, destination: bytes, content: Buffer, timeout: float | None) -> None:
        """Send along a path; see ``Socket.send_to``."""
        destination = check_path(destination)
        content = self.check_content(content, destination)
        self._send_to_destination((TO_DEST, self.ttl, b"", destination, content), timeout)

    def send_all(self, content: Buffer, timeout: float | None, flags: int = 0) -> int:
        """Send to every peer; see ``Socket.send_all``."""
        content = self.check_content(content)
        self.begin()
        return self._to_all.send((TO_ALL | flags, self.ttl, b"", b"", content), timeout)

    def put_group(self, pipes: Collection[Pipe], content: bytes, timeout: float | None = None, flags: int = 0) -> int:
        """Send to some pipes after :meth:`begin`; see ``ProtocolSocket.put_group``."""
        fields = (TO_ALL | flags, self.ttl, b"", b"", content)
        # If that is all pipes, a fan-out puts the message once, and not into each.
        if len(pipes) == len(self._pipes):
            return self._to_all.send(fields, timeout)
        return self._to_all.send_each(list(pipes), fields, timeout)

    def send_msg(self, message: Message, timeout: float | None, lost: Callable[[int], object] | None = None) -> int:
        """Send or forward a message by its own fields; see ``Socket.send_msg`` and ``ProtocolSocket.forward``."""
        flags, ttl, source, destination = message.flags, message.ttl, message.source, message.destination
        kind = flags & SEND_TYPE_MASK
        content = self.check_content(message.content, destination if kind == TO_DEST else b"")
        if flags & INTERNAL:
            raise NotSupported("sending an internal message", "flag 0x04 is for what sockets tell each other")
        if not 0 <= flags <= 255 or kind not in (TO_ONE, TO_ALL, TO_DEST):
            raise BadMessage(f"flags {flags:#x} name no send type")
        if flags & RAW:
            raise MessageDropped("raw")
        if ttl <= 0:
            raise MessageDropped("ttl")
        if source:
            check_path(source)
        if destination:
            check_path(destination)
        # The peer adds an id to the source, and removes one from a destination. Too many make it close the pipe.
        if len(source) + len(destination) >= 4 * (MAX_IDS + (kind == TO_DEST)):
            raise MessageDropped("hops")
        fields = (flags, min(ttl, 255), bytes(source), bytes(destination), content)
        if kind == TO_ALL:
            self.begin()
            return self._to_all.send(fields, timeout, lost)
        if kind == TO_DEST:
            if not destination:
                raise MessageDropped("arrived")
            self._send_to_destination(fields, timeout)
            return 1
        pipe = self.next_pipe(timeout)
        if pipe is None:
            return 0
        pipe._put(*fields)
        return 1

    def check_content(self, content: Buffer, destination: bytes = b"") -> bytes:
        """Return the bytes of a content that may be sent, along a path if there is one.

        Raises:
            TypeError: it is not bytes-like.
            MessageTooLong: it is over the limit.
        """
        content = as_content(content)
        if len(content) > self.max_content:
            limit = max(self.max_content, self._to_destination.own_limit(destination))
            if len(content) > limit:
                raise MessageTooLong(len(content), limit)
        return content

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("socket", self._closed)
        if self._no_send:
            raise NotSupported("sending", "the socket has socket.no_send set")

    def begin(self) -> bool:
        """Check that something may be sent. Return whether others have run, because this turn's budget was spent."""
        if self._closed or self._no_send:
            self._check_open()
        if not self.scheduler.over_budget:
            return False
        self._yield()
        return True

    def _yield(self) -> None:
        """Yield to other greenlets. Called before a message is taken, not after."""
        self.scheduler.yield_turn()
        self._check_open()

    # To one

    def _wait_to_send(self, timeout: float | None) -> bool:
        """Block until this greenlet may send to the first writable pipe.

        Returns:
            False if the message must not be sent: the overflow policy dropped it.
        """
        deadline = Deadline(timeout)
        woken = False
        # A greenlet that tries again and again must not keep the loop, whatever the result.
        self.scheduler.spend(1, 0)
        try:
            while True:
                self._check_open()
                if self.scheduler.over_budget and not woken:
                    self._yield()
                if woken or not self._send_waiters.waiters:
                    if self._has_writable():
                        return True
                    if not self._eligible and (self._fail_no_peers or self._overflow.best_effort):
                        raise NoPeers
                    if self._eligible and not self._apply_overflow():
                        return False
                    if self._writable.first is not None:
                        return True
                woken = self._send_waiters.wait(deadline.left())
                if not woken:
                    raise Timeout("send", timeout)
        finally:
            self._update_fast_path()

    def _may_go_on(self) -> bool:
        """Return whether the first waiter can continue now, be it with an error."""
        if self._closed or self._no_send or self._has_writable():
            return True
        if self._eligible:
            return not self._overflow.blocks
        return self._overflow.best_effort or self._fail_no_peers

    def _has_writable(self) -> bool:
        """Return whether a pipe is writable now."""
        if not self.scheduler.queue_limit:
            # Without a queue, an in-process pipe is writable only while its peer waits for a message. A peer that
            # waited when the pipe became writable may have stopped since.
            while (pipe := self._writable.first) is not None:
                pipe._update_full()
                if not pipe.full:
                    break
        return self._writable.first is not None

    def _apply_overflow(self) -> bool:
        """Apply the overflow policy when every pipe is full. Return False if the new message is dropped."""
        if self._overflow.best_effort:
            raise MessageDropped("overflow")
        if self._overflow.blocks:
            return True
        # The next pipe in round-robin order; it becomes the last.
        pipe = next(iter(self._eligible))
        del self._eligible[pipe]
        self._eligible[pipe] = None
        return self._overflow.make_space(pipe)

    # To all, and to a destination

    def _send_to_destination(self, fields: Sent, timeout: float | None) -> None:
        self.begin()
        self._to_destination.send(fields, timeout)

    def wait_writable(self, pipe: Pipe, timeout: float | None) -> bool:
        """Block until one pipe is writable; see ``ProtocolSocket.wait_writable``."""
        self.begin()
        if not pipe.full and pipe.state is PipeState.OPEN:
            return True
        return self._to_destination.wait_writable(pipe, timeout)

    # Pipes

    def add(self, pipe: Pipe, held: bool = False) -> None:
        """Add a new pipe; one that is held gets no to-one message until :meth:`pipe_heard`."""
        self._to_all.add(pipe)
        if pipe._eligible and not held:
            self._use(pipe)

    def pipe_heard(self, pipe: Pipe) -> None:
        """Use a pipe that was held."""
        used = pipe in self._eligible or pipe in self._avoided
        if pipe._eligible and not used and pipe.state is PipeState.OPEN:
            self._use(pipe)

    def _use(self, pipe: Pipe) -> None:
        """Send to-one messages to a pipe from now on."""
        self._eligible[pipe] = None
        if not pipe.full:
            self._writable.add(pipe)
        if self.requeue.pending:
            self.requeue.send()
        self._send_waiters.wake()
        self._update_fast_path()

    def avoid(self, pipe: Pipe, avoided: bool) -> None:
        """Avoid a pipe, or use it again; see ``ProtocolSocket.avoid``."""
        if not avoided and pipe in self._avoided:
            del self._avoided[pipe]
            self._use(pipe)
        elif avoided and pipe in self._eligible:
            self._avoided[pipe] = None
            del self._eligible[pipe]
            self.pipe_full(pipe)
            self._use_avoided()

    def _use_avoided(self) -> None:
        """If no other pipe is left, use all that are avoided."""
        if not self._eligible:
            while self._avoided:
                self._use(self._avoided.popitem()[0])

    def remove(self, pipe: Pipe) -> None:
        """Remove a pipe that cannot send any more."""
        self._eligible.pop(pipe, None)
        self._avoided.pop(pipe, None)
        self._to_all.remove(pipe)
        self.pipe_full(pipe)
        self._use_avoided()
        # Some options let a sender fail instead of wait when there is no peer.
        self._send_waiters.wake()

    def pipe_full(self, pipe: Pipe) -> None:
        """Stop sending to a pipe that has become full."""
        self._writable.discard(pipe)
        if self._writable.first is None:
            self._update_fast_path()

    def pipe_writable(self, pipe: Pipe) -> None:
        """Send to a pipe that is not full any more."""
        if pipe in self._eligible:
            self._writable.add(pipe)
            if self.requeue.pending:
                self.requeue.send()
        # The waiters that are woken first may fill the pipe again: each kind of sending is woken first in turn, so that
        # none of them starves.
        wakes = (self._send_waiters.wake, pipe._wake_waiters, self._to_all.wake)
        pipe._wake_order = (pipe._wake_order + 1) % len(wakes)
        for wake in wakes[pipe._wake_order :] + wakes[: pipe._wake_order]:
            wake()
        self._update_fast_path()

    def pipe_idle(self, pipe: Pipe) -> None:
        """Add a pipe that has nothing queued to its fan-out again."""
        self._to_all.rejoin(pipe)

    def _update_fast_path(self) -> None:
        """Recompute whether ``send`` can take the fast path."""
        # Without a queue, each send must find out again which pipes are writable.
        usual = self._writable.first is not None and self.scheduler.queue_limit and not self._send_waiters.waiters
        self._fast_path = bool(usual and not (self._closed or self._no_send))

    def _wake_senders(self) -> None:
        """Wake all waiters, so that they look at the changed options or state."""
        self._send_waiters.wake_all()
        self._to_all.wake()
        for pipe in self._pipes.values():
            pipe._wake_all_waiters()

    # Closing

    def stop(self, reason: str) -> None:
        """Refuse all messages from now on, and wake all waiters. Queued messages stay queued."""
        self._closed = reason
        self._fast_path = False
        self._wake_senders()

    def lose_requeued(self) -> None:
        """Count the requeued messages as lost, because no pipe is left for them."""
        self.counters.drop("closed", self.requeue.lose())
