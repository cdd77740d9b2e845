"""Pipes inside the process: a message goes from the sender straight into the other socket's receive queue.

There is no greenlet and no buffer in between. While that queue is full, messages stay in the sending pipe's own queue,
which the hub empties when there is space. So 20,000 such pipes cost no more than their objects.
"""

from __future__ import annotations

from collections import deque

from ... import options as opts
from ...errors import BadMessage, ContentTooLong, MultiSocketError
from ...transport import MessageConnection
from ...wire import INTERNAL, MAX_CONTENT, RAW, SEND_TYPE_MASK, TO_DEST, TO_ONE, Fields, Message, receive
from .pipe import Headers, Pipe, PipeEndpoint, PipeOwner, PipeState

__all__ = ["InprocPipe"]


class InprocPipe(Pipe):
    """A pipe to a socket of this process."""

    __slots__ = ("_limit", "_peer", "_queue", "_queued_bytes", "_receiver", "_scheduler", "_waiting")

    _connection: MessageConnection
    _remote = False
    _unconfirmed = (0, 0)
    _copied = {opts.connector.pipe.max_recv_content_length: "_max_content"}

    def __init__(self, pipe_id: int, connection: MessageConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._scheduler = owner.scheduler
        self._receiver = owner.receiver
        #: The pipe at the other end; None until that socket has added it.
        self._peer: InprocPipe | None = None
        #: Messages that the peer has no space for, as it will receive them; as they were sent, while there is no peer
        #: yet. Made when first needed: most pipes never have any.
        self._queue: deque[Fields] | None = None
        self._queued_bytes = 0
        #: Whether this pipe waits for space in the peer's queue.
        self._waiting = False
        #: The longest content that this end accepts.
        self._limit = MAX_CONTENT
        self._max_content = endpoint.options.get(opts.connector.pipe.max_recv_content_length)

    @property
    def _max_content(self) -> int:
        return self._limit

    @_max_content.setter
    def _max_content(self, value: int) -> None:
        self._limit = value or MAX_CONTENT

    def _backlog(self) -> tuple[int, int]:
        return (len(self._queue), self._queued_bytes) if self._queue else (0, 0)

    # Sending

    def _put_one(self, headers: Headers, content: bytes) -> None:
        # What _put() does, without its calls (43 %). Rare cases go to _put().
        peer = self._peer
        size = len(content)
        ttl = headers.ttl
        if peer is None or size > peer._limit or not ttl:
            self._put(TO_ONE, ttl, b"", b"", content)
            return
        receiver = peer._receiver
        limit = receiver.plain_limit
        queue = self._queue
        if not queue and len(receiver.queue) < limit and not receiver.put_waiters:
            receiver.queue.append((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
            self.messages_sent += 1
            self.bytes_sent += size
            if receiver.get_waiters:
                receiver.not_empty.wake()
        elif queue and limit and len(queue) + 1 < self._scheduler.plain_limit:
            queue.append((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
            self._queued_bytes += size
        elif limit and receiver.put_waiters and self._scheduler.plain_limit:
            # Others wait for space there.
            self._enqueue((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
        else:
            self._put(TO_ONE, ttl, b"", b"", content)

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & (INTERNAL | RAW):
            self._put_internal(flags, ttl, source, destination, content)
            return
        message: Fields = (flags, ttl, source, destination, content, 0)
        peer = self._peer
        if peer is not None:
            try:
                if len(content) > peer._limit:
                    raise ContentTooLong(len(content), peer._limit)
                message = receive(message, peer.id, peer.path)
            except BadMessage as error:
                self._refused(error)
                return
        if self._queue or peer is None or peer._receiver.deliver((message,), in_turn=not self._scheduler.queue_limit):
            self._enqueue(message)
        else:
            self.messages_sent += 1
            self.bytes_sent += len(content)
            if not self.messages_sent & 63:
                self._scheduler.spend(64, 0)
        if not self._scheduler.queue_limit:
            self._update_full()

    def _put_internal(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        """Give the peer an internal message that goes along a path, at once. Drop what is raw or for the pipe."""
        peer = self._peer
        if flags & RAW or flags & SEND_TYPE_MASK != TO_DEST or peer is None:
            self._drop("flags")
            return
        try:
            message = Message._make(receive((flags, ttl, source, destination, content, 0), peer.id, peer.path))
        except BadMessage as error:
            self._refused(error)
            return
        callback = peer._receiver.on_internal
        if callback is not None and callback(message):
            self.messages_sent += 1
            self.bytes_sent += len(content)
        else:
            peer._count_useless("internal")

    def _refused(self, error: MultiSocketError) -> None:
        """Close the pipe: the peer does not accept a message."""
        self._drop("refused")
        self._close(error)

    def _enqueue(self, message: Fields) -> None:
        """Keep a message, and wait for space in the peer's queue."""
        if self.state is not PipeState.OPEN:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(message)
        self._queued_bytes += len(message[4])
        if not self._waiting:
            self._wait_for_space()
        scheduler = self._scheduler
        if len(self._queue) >= scheduler.queue_limit or scheduler.queue_bytes:
            self._update_full()

    def _wait_for_space(self) -> None:
        if self._peer is not None and not self._waiting:
            self._waiting = True
            not_full = self._peer._receiver.not_full
            not_full.waiters.append(self._deliver_queued)
            not_full.wake()

    def _deliver_queued(self, woken: bool) -> None:
        """Deliver what fits into the peer's queue. The peer's wait list calls it as it would switch to a greenlet."""
        self._waiting = False
        peer = self._peer
        if peer is None or self.state is not PipeState.OPEN:
            return
        queue = self._queue
        receiver = peer._receiver
        if queue and len(queue) == 1 and len(receiver.queue) < receiver.plain_limit:
            # As below, for the usual case of many pipes that wait with one message each.
            receiver.queue.append(queue.popleft())
            self.messages_sent += 1
            self.bytes_sent += self._queued_bytes
            self._queued_bytes = 0
            if receiver.get_waiters:
                receiver.not_empty.wake()
        elif queue:
            messages = list(queue)
            rest = receiver.deliver(messages, in_turn=True)
            queue.clear()
            queue.extend(rest)
            left = sum(len(message[4]) for message in rest)
            self.messages_sent += len(messages) - len(rest)
            self.bytes_sent += self._queued_bytes - left
            self._queued_bytes = left
            if queue:
                self._wait_for_space()
        self._update_full()

    def _update_full(self) -> None:
        scheduler = self._scheduler
        count = len(self._queue) if self._queue else 0
        limit = scheduler.queue_bytes
        if not scheduler.queue_limit:
            # Nothing may wait here: this pipe is full whenever the peer's queue is.
            full = bool(count) or self._peer is None or not self._peer._receiver.writable()
            if full:
                self._wait_for_space()
        else:
            full = count >= scheduler.queue_limit or bool(limit and self._queued_bytes >= limit)
        if full:
            if not self.full:
                self._set_full()
        elif self.full and self.state is PipeState.OPEN:
            self._set_writable()

    def _drop_oldest(self) -> bool:
        for index, fields in enumerate(self._queue or ()):
            if self._owner.is_loss(Message._make(fields)):
                self._queued_bytes -= len(fields[4])
                del self._queue[index]  # type: ignore[union-attr]
                self._drop("overflow")
                return True
        return False

    def _take_queue(self) -> tuple[list[Message], int, int]:
        queue, self._queue = self._queue or deque(), None
        messages = [Message._make(fields) for fields in queue]
        unsent = [_as_sent(message) for message in messages if message.flags & SEND_TYPE_MASK == TO_ONE]
        others = [message for message in messages if message.flags & SEND_TYPE_MASK != TO_ONE]
        lost = sum(map(self._owner.is_loss, others))
        return unsent, lost, len(others) - lost

    # Receiving

    # Every message is counted once, where it is sent: what this pipe has received is what its peer has sent.

    @property
    def messages_received(self) -> int:  # type: ignore[override]
        """How many messages have arrived."""
        return self._peer.messages_sent if self._peer is not None else 0

    @property
    def bytes_received(self) -> int:  # type: ignore[override]
        """How many bytes of contents have arrived."""
        return self._peer.bytes_sent if self._peer is not None else 0

    def _start(self) -> None:
        if self._connection.peer.closed:
            self._close("the peer closed the connection")
            return
        self._connection.pipe = self
        peer = self._connection.peer.pipe
        if isinstance(peer, InprocPipe):
            # Both may have a message already: a sender may use a pipe after it was added and before it was started.
            self._meet(peer)
            peer._meet(self)
        self._update_full()

    def _meet(self, peer: InprocPipe) -> None:
        """Send what was queued before the other end was there."""
        self._peer = peer
        queue, self._queue, self._queued_bytes = self._queue or deque(), None, 0
        while queue and self.state is PipeState.OPEN:
            flags, ttl, source, destination, content, _ = queue.popleft()
            self._put(flags, ttl, source, destination, content)
        if queue:
            # The peer has refused a message, and the pipe has closed: the messages behind it were not sent.
            unsent = [Message._make(fields) for fields in queue if fields[0] & SEND_TYPE_MASK == TO_ONE]
            self._owner.lose("disconnect", len(queue) - len(unsent))
            self._owner.requeue(unsent)
            return
        self._update_full()

    def _join(self) -> None:
        """Return at once: no greenlet works for this pipe."""


def _as_sent(message: Message) -> Message:
    """Return a to-one message as it was before ``wire.receive`` made it what the peer receives."""
    if not message.pipe_id:
        return message
    return message.replace(ttl=message.ttl + 1, source=message.source[4:], pipe_id=0)
