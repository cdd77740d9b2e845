"""What a protocol may do with its socket beyond what users may.

A protocol owns a Socket and uses its public methods. :class:`ProtocolSocket` is the rest: through it the protocol sees
messages and pipes as they come and go, learns which pipe a message goes to, and counts what it drops with the socket's
other drops.

Callbacks run inside the core: in a reader greenlet, in the hub, in the middle of another socket's ``send``. They must
not raise, block, switch greenlets or send. Work that needs any of that belongs in a greenlet of the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal

from ..errors import MessageTooLong
from ..loop import owner
from ..wire import TO_ONE, Message
from .sender import as_content

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .pipe import Pipe
    from .socket import Socket

__all__ = ["ProtocolSocket"]

_current_thread = owner.current_thread


class ProtocolSocket:
    """A protocol's access to its socket.

    Args:
        socket: the protocol's own, on which nothing has happened yet.
    """

    __slots__ = ("_connector", "_receiver", "_sender", "_socket")

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._connector = socket._connector
        self._sender = socket._connector.sender
        self._receiver = socket._connector.receiver

    # Who may call

    @property
    def forked(self) -> bool:
        """Whether the socket stayed with the parent of a fork."""
        return bool(self._socket._thread == owner.FORKED)

    def check(self) -> None:
        """Check the calling thread and process, as every method of the socket does.

        Raises:
            WrongThread, ForkedSocketError: the socket belongs to another one.
        """
        if _current_thread() != self._socket._thread:
            raise owner.wrong_owner(self._socket._thread)

    def is_mine(self, greenlet: object) -> bool:
        """Return whether a greenlet works for the socket, e.g. runs its pipe callbacks."""
        return self._connector.is_mine(greenlet)

    # Callbacks, one of each. The module's docstring says what they may not do.

    def on_message(self, callback: Callable[[Message], bool]) -> None:
        """Call ``callback(message)`` for each message that arrives, before it is queued.

        The callback returns True to consume the message, and False to leave it for the receive queue. While that queue
        is full it may get the same message again, so it must have changed nothing when it returns False. The callback
        gets all messages of a pipe before the removal of the pipe, unless this side closes the pipe.
        """
        self._receiver.set_sift(callback)

    def on_pipe(self, callback: Callable[[Literal["add", "remove"], Pipe], object]) -> None:
        """Call ``callback(kind, pipe)`` at once when a pipe is added or removed, before any other callback.

        A removed pipe has closed, and its unsent messages have been offered to other pipes.
        """
        self._connector.events.watcher = callback

    def on_requeue(self, callback: Callable[[Message, Pipe | None], bool]) -> None:
        """Call ``callback(message, pipe)`` when an unsent to-one message moves to another pipe.

        The first call has None as the pipe: the message has lost its pipe. The second call names the new pipe. It may
        come much later, and both may come again. The callback returns False to drop the message.
        """
        self._sender.moved = callback

    # Sending

    def check_content(self, content: Buffer) -> bytes:
        """Return a content as bytes.

        Raises:
            TypeError: it is not bytes-like.
            MessageTooLong: it is over ``socket.max_send_content_length``.
        """
        if type(content) is not bytes:
            content = as_content(content)
        if len(content) > self._sender.max_content:
            raise MessageTooLong(len(content), self._sender.max_content)
        return content

    def next_pipe(self, timeout: float | None) -> Pipe | None:
        """Return the pipe that takes the next to-one message. Blocks and raises as ``Socket.send`` does.

        The caller calls :meth:`put` before any greenlet switch, with a content that :meth:`check_content` has passed:
        nothing may fail in between.

        Returns:
            The pipe, or None if ``socket.send_overflow`` says that the message is dropped.
        """
        if _current_thread() != self._socket._thread:
            raise owner.wrong_owner(self._socket._thread)
        return self._sender.next_pipe(timeout)

    def put(self, pipe: Pipe, message: Message) -> None:
        """Send a message by one pipe, whatever its send type. Never blocks.

        A pipe for it comes from :meth:`next_pipe` or has passed :meth:`wait_writable`. The message's ttl is the
        socket's ``socket.send_ttl``.
        """
        flags, _, source, destination, content, _ = message
        if flags == TO_ONE and not source and not destination:
            pipe.put_one(self._sender.ttl, content)
        else:
            pipe.put(flags, self._sender.ttl, source, destination, content)

    def send_group(self, pipes: Collection[Pipe], content: Buffer, timeout: float | None = None, flags: int = 0) -> int:
        """Send to all of some pipes, as ``Socket.send_all`` sends to all pipes. Blocks and raises as that does.

        As many pipes as the socket has are taken to be all of them, so that the message is encoded and queued once for
        all.

        Args:
            pipes: each once. Closed ones are passed over; there are none among as many as the socket has.
            content: bytes-like.
            timeout: seconds.
            flags: flags of the message, e.g. ``wire.CONTROL``.

        Returns:
            The number of pipes that it went to.
        """
        if _current_thread() != self._socket._thread:
            raise owner.wrong_owner(self._socket._thread)
        return self._sender.send_group(pipes, content, timeout, flags)

    def requeue(self, content: bytes) -> None:
        """Send to one peer, ahead of all waiting senders. Never blocks; may be called from an ``on_pipe`` callback.

        The ``on_requeue`` callback is called with the pipe that gets the message.
        """
        self._sender.offer_again([Message(TO_ONE, self._sender.ttl, b"", b"", content)])

    def wait_writable(self, pipe: Pipe, timeout: float | None = None) -> bool:
        """Block until a pipe takes another message, whatever ``socket.send_overflow`` says.

        Returns:
            False if the pipe has closed, or the time is up.

        Raises:
            Closed: the socket is closed.
        """
        return self._sender.wait_room(pipe, timeout)

    @property
    def max_content(self) -> int:
        """The longest content that the socket sends, in bytes."""
        return self._sender.max_content

    # Receiving

    def stop_receiving(self, reason: str) -> None:
        """Drop what is in the receive queue and what arrives from now on, while sending goes on.

        Waiting receivers get a Closed error.
        """
        receiver = self._receiver
        receiver.stop(reason)
        receiver.counters.drop("closed", len(receiver.queue))
        receiver.queue.clear()

    @property
    def drained(self) -> bool:
        """Whether no message is in the receive queue or waits for a place in it."""
        return not self._receiver.queue and not self._receiver.room.waiters

    def count_drop(self, reason: str, pipe_id: int = 0) -> None:
        """Count a dropped message, on the pipe that it came by if that is open, else on the socket."""
        pipe = self._connector.pipes.get(pipe_id)
        if pipe is not None:
            pipe.count_drop(reason)
        else:
            self._receiver.counters.drop(reason)
