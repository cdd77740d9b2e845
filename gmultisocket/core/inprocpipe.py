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
from ..wire import INTERNAL, RAW, SEND_TYPE_MASK, TO_ONE, Message, receive
from .pipe import Pipe, PipeState

if TYPE_CHECKING:
    from .connector import Connector
    from .endpoint import Endpoint

__all__ = ["InprocPipe"]


class InprocPipe(Pipe):
    """A pipe to a socket of this process."""

    __slots__ = ("_bytes_queued", "_max_content", "_queue", "_receiver", "_sender", "_waiting")

    connection: MessageConnection

    def __init__(self, pipe_id: int, connection: MessageConnection, connector: Connector, endpoint: Endpoint) -> None:
        super().__init__(pipe_id, connection, connector, endpoint)
        self._sender = connector.sender
        self._receiver = connector.receiver
        # Made when first needed: most pipes never have anything queued.
        self._queue: deque[Message] | None = None
        self._bytes_queued = 0
        #: Whether this pipe stands in the line for room in the peer's queue.
        self._waiting = False
        self._max_content: int = endpoint.options.get(opts.connector.pipe.max_recv_content_length)

    @property
    def queued(self) -> int:
        return len(self._queue) if self._queue else 0

    def _peer(self) -> InprocPipe | None:
        """Return the pipe at the other end, None until that socket has added it."""
        peer = self.connection.peer.pipe
        return peer if isinstance(peer, InprocPipe) else None

    # Sending

    def put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & (INTERNAL | RAW):
            self.drop("flags")
            return
        message = Message(flags, ttl, source, destination, content, 0)
        peer = self.connection.peer.pipe
        if self._queue or peer is None or not self._hand_over(peer, message):
            self._hold(message)
        elif not self.messages_sent & 63:
            self._sender.spend(64, 0)
        if not self._sender.queue_limit:
            self.limits_changed()

    def _hand_over(self, peer: InprocPipe, message: Message) -> bool:
        """Give one message to the peer's socket. False if its queue is full; a message that it refuses is gone."""
        receiver = peer._receiver
        if receiver.sift is None and not receiver.has_room():
            return False
        size = len(message.content)
        if peer._max_content and size > peer._max_content:
            self._refused(ContentTooLong(size, peer._max_content))
            return True
        try:
            received = receive(message, peer.id, peer.path)
        except BadMessage as error:
            self._refused(error)
            return True
        if receiver.take((received,)):
            return False
        self.messages_sent += 1
        self.bytes_sent += size
        peer.messages_received += 1
        peer.bytes_received += size
        return True

    def _refused(self, error: MultiSocketError) -> None:
        self.drop("refused")
        self._close(error)

    def _hold(self, message: Message) -> None:
        """Keep a message until the peer has room, and stand in line for that."""
        if self.state is not PipeState.OPEN:
            return
        if self._queue is None:
            self._queue = deque()
        self._queue.append(message)
        self._bytes_queued += len(message.content)
        self._stand_in_line()
        self.limits_changed()

    def _stand_in_line(self) -> None:
        peer = self._peer()
        if peer is not None and not self._waiting:
            self._waiting = True
            peer._receiver.room.waiters.append(self)
            peer._receiver.room.wake()

    def switch(self, value: bool) -> None:
        """Hear that the peer may have room, and hand over what fits. Called as a waiting greenlet would be woken."""
        self._waiting = False
        peer = self._peer()
        if peer is None or self.state is not PipeState.OPEN:
            return
        queue = self._queue
        while queue and self._hand_over(peer, queue[0]):
            if self.state is not PipeState.OPEN:
                return
            self._bytes_queued -= len(queue.popleft().content)
        if queue:
            self._stand_in_line()
        self.limits_changed()

    def limits_changed(self) -> None:
        sender = self._sender
        count = len(self._queue) if self._queue else 0
        limit = sender.queue_bytes
        if not sender.queue_limit:
            # Nothing may wait here: this pipe is full whenever the peer's queue is.
            peer = self._peer()
            full = bool(count) or peer is None or not peer._receiver.has_room()
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
        self._bytes_queued -= len(self._queue.popleft().content)
        self.drop("overflow")
        return True

    def end_turn(self) -> None:
        """Nothing waits for the end of a turn here."""

    def _take_queue(self) -> tuple[list[Message], int]:
        queue, self._queue = self._queue, None
        again = [message for message in queue or () if message.flags & SEND_TYPE_MASK == TO_ONE]
        return again, len(queue or ()) - len(again)

    # Receiving

    def start(self) -> None:
        if self.connection.peer.closed:
            self._close("the peer closed the connection")
            return
        self.connection.pipe = self
        self.limits_changed()
        peer = self._peer()
        if peer is not None:
            # What was sent before this end was there.
            peer.switch(True)

    def receiving(self) -> bool:
        return False

    def join(self) -> None:
        """No greenlet works for this pipe."""

    def option_changed(self, option: object) -> None:
        if option is opts.connector.pipe.max_recv_content_length:
            self._max_content = self.options.get(opts.connector.pipe.max_recv_content_length)
