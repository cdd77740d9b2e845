"""Pipes inside the process: a message goes from the sender straight into the other socket's receive queue.

There is no greenlet and no buffer in between. While that queue is full, messages stay here in the sending pipe's own,
which is emptied from the hub when there is room: so 20,000 such pipes cost what their objects cost.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from .. import options as opts
from ..errors import BadMessage, ContentTooLong, MultiSocketError
from ..transport import MessageConnection
from ..wire import INTERNAL, MAX_CONTENT, RAW, SEND_TYPE_MASK, TO_ONE, Fields, Message, receive
from .pipe import Pipe, PipeState

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint

__all__ = ["InprocPipe"]


class InprocPipe(Pipe):
    """A pipe to a socket of this process."""

    __slots__ = ("_bytes_queued", "_longest", "_peer", "_queue", "_receiver", "_sender", "_waiting")

    connection: MessageConnection

    def __init__(self, pipe_id: int, connection: MessageConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self._sender = connector.sender
        self._receiver = connector.receiver
        #: The pipe at the other end; None until that socket has added it.
        self._peer: InprocPipe | None = None
        #: Messages that the peer has no room for, as it will receive them; or as they were sent, while there is no peer
        #: yet. Made when first needed: most pipes never have any.
        self._queue: deque[Fields] | None = None
        self._bytes_queued = 0
        #: Whether this pipe stands in the line for room in the peer's queue.
        self._waiting = False
        self._longest: int = endpoint.options.get(opts.connector.pipe.max_recv_content_length) or MAX_CONTENT

    @property
    def queued(self) -> int:
        return len(self._queue) if self._queue else 0

    # Sending

    def put_one(self, ttl: int, content: bytes) -> None:
        # What put() does, in one frame of the interpreter; and put() does what is not usual.
        peer = self._peer
        size = len(content)
        if peer is None or size > peer._longest or not ttl:
            self.put(TO_ONE, ttl, b"", b"", content)
            return
        receiver = peer._receiver
        limit = receiver.plain_limit
        held = self._queue
        if not held and len(receiver.queue) < limit and not receiver.bringers:
            receiver.queue.append((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
            self.messages_sent += 1
            self.bytes_sent += size
            if receiver.receivers:
                receiver.arrivals.wake()
        elif held and limit and len(held) + 1 < self._sender.plain_limit:
            held.append((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
            self._bytes_queued += size
        elif limit and receiver.bringers and self._sender.plain_limit:
            # Others wait for room there.
            self._hold((TO_ONE, ttl - 1, peer.path, b"", content, peer.id))
        else:
            self.put(TO_ONE, ttl, b"", b"", content)

    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & (INTERNAL | RAW):
            self.drop("flags")
            return
        message: Fields = (flags, ttl, source, destination, content, 0)
        peer = self._peer
        if peer is not None:
            try:
                if len(content) > peer._longest:
                    raise ContentTooLong(len(content), peer._longest)
                message = receive(message, peer.id, peer.path)
            except BadMessage as error:
                self._refused(error)
                return
        if self._queue or peer is None or peer._receiver.take((message,), in_turn=not self._sender.queue_limit):
            self._hold(message)
        else:
            self.messages_sent += 1
            self.bytes_sent += len(content)
            if not self.messages_sent & 63:
                self._sender.spend(64, 0)
        if not self._sender.queue_limit:
            self.limits_changed()

    def _refused(self, error: MultiSocketError) -> None:
        self.drop("refused")
        self._close(error)

    def _hold(self, message: Fields) -> None:
        """Keep a message until the peer has room, and stand in line for that."""
        if self.state is not PipeState.OPEN:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(message)
        self._bytes_queued += len(message[4])
        if not self._waiting:
            self._stand_in_line()
        sender = self._sender
        if len(self._queue) >= sender.queue_limit or sender.queue_bytes:
            self.limits_changed()

    def _stand_in_line(self) -> None:
        if self._peer is not None and not self._waiting:
            self._waiting = True
            room = self._peer._receiver.room
            room.waiters.append(self)
            room.wake()

    def switch(self, value: bool) -> None:
        """Hear that the peer may have room, and hand over what fits. Called as a waiting greenlet would be woken."""
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
            self.bytes_sent += self._bytes_queued
            self._bytes_queued = 0
            if receiver.receivers:
                receiver.arrivals.wake()
        elif queue:
            held = list(queue)
            rest = receiver.take(held, in_turn=True)
            queue.clear()
            queue.extend(rest)
            left = sum(len(message[4]) for message in rest)
            self.messages_sent += len(held) - len(rest)
            self.bytes_sent += self._bytes_queued - left
            self._bytes_queued = left
            if queue:
                self._stand_in_line()
        self.limits_changed()

    def limits_changed(self) -> None:
        sender = self._sender
        count = len(self._queue) if self._queue else 0
        limit = sender.queue_bytes
        if not sender.queue_limit:
            # Nothing may wait here: this pipe is full whenever the peer's queue is.
            full = bool(count) or self._peer is None or not self._peer._receiver.has_room()
            if full:
                self._stand_in_line()
        else:
            full = count >= sender.queue_limit or bool(limit and self._bytes_queued >= limit)
        if full:
            if not self.full:
                self._became_full()
        elif self.full and self.state is PipeState.OPEN:
            self._has_room()

    def drop_oldest(self) -> bool:
        if not self._queue:
            return False
        self._bytes_queued -= len(self._queue.popleft()[4])
        self.drop("overflow")
        return True

    def end_turn(self) -> None:
        """Nothing waits for the end of a turn here."""

    def _take_queue(self) -> tuple[list[Message], int]:
        queue, self._queue = self._queue or deque(), None
        again = [self._as_sent(Message._make(fields)) for fields in queue if fields[0] & SEND_TYPE_MASK == TO_ONE]
        return again, len(queue) - len(again)

    def _as_sent(self, message: Message) -> Message:
        """Undo :meth:`_as_received` for a to-one message."""
        if not message.pipe_id:
            return message
        return message.replace(ttl=message.ttl + 1, source=message.source[4:], pipe_id=0)

    # Receiving

    # Every message is counted once, where it is sent: what this pipe has received is what its peer has sent.

    @property
    def messages_received(self) -> int:  # type: ignore[override]
        """How many messages have come."""
        return self._peer.messages_sent if self._peer is not None else 0

    @property
    def bytes_received(self) -> int:  # type: ignore[override]
        """How many bytes of contents have come."""
        return self._peer.bytes_sent if self._peer is not None else 0

    def start(self) -> None:
        if self.connection.peer.closed:
            self._close("the peer closed the connection")
            return
        self.connection.pipe = self
        peer = self.connection.peer.pipe
        if isinstance(peer, InprocPipe):
            # Both may have been given something: this one by its sender, when it was added and before it was started.
            self._meet(peer)
            peer._meet(self)
        self.limits_changed()

    def _meet(self, peer: InprocPipe) -> None:
        """Hear that the other end is there; what was sent before can go now."""
        self._peer = peer
        held, self._queue, self._bytes_queued = self._queue or deque(), None, 0
        while held and self.state is PipeState.OPEN:
            flags, ttl, source, destination, content, _ = held.popleft()
            self.put(flags, ttl, source, destination, content)
        if held:
            # The peer has refused one, and so the pipe: the others had not left.
            again = [Message._make(fields) for fields in held if fields[0] & SEND_TYPE_MASK == TO_ONE]
            self._sender.counters.drop("disconnect", len(held) - len(again))
            self._sender.offer_again(again)
            return
        self.limits_changed()

    def receiving(self) -> bool:
        return False

    def join(self) -> None:
        """No greenlet works for this pipe."""

    def option_changed(self, option: object) -> None:
        if option is opts.connector.pipe.max_recv_content_length:
            self._longest = self.options.get(opts.connector.pipe.max_recv_content_length) or MAX_CONTENT
