"""What a protocol may do with its socket beyond what users may.

A protocol owns a Socket and is one of its users, by the public calls. A :class:`Seam` is the rest: it lets the protocol
see messages and pipes at the moment at which they come and go, know which peer a message goes to, and count what it
drops with everything else that is dropped.

The callbacks run inside of the core: in a reader greenlet, in the hub, in the middle of another socket's ``send``. So
they must not raise, block, switch greenlets, or send. What takes any of that is for a greenlet of the protocol's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

from ..loop import owner
from ..wire import TO_ONE, Message
from .pipe import Pipe
from .socket import Socket

__all__ = ["Seam"]


class Seam:
    """A protocol's side door to its socket.

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
        """Check who calls, as every method of the socket does.

        Raises:
            WrongThread, ForkedSocketError: not here.
        """
        self._socket._check()

    def is_mine(self, greenlet: object) -> bool:
        """Return whether a greenlet works for the socket: a pipe callback runs in it."""
        return self._connector.is_mine(greenlet)

    # Callbacks; one of each. What they may not do is said on top.

    def on_message(self, callback: Callable[[Message], bool]) -> None:
        """Have each message shown to ``callback(message)`` as it comes, before it is queued.

        True from it: the message is dealt with. False: it goes to the receive queue as if nobody had seen it. It may be
        shown again while that is full, so the callback must have done nothing then. All that came by a pipe is
        shown before the pipe is seen to close, unless this side closes it.
        """
        self._receiver.set_sift(callback)

    def on_pipe(self, callback: Callable[[Literal["add", "remove"], Pipe], object]) -> None:
        """Have ``callback(kind, pipe)`` called when a pipe comes or goes: at once, and before anybody else hears of it.

        A pipe that goes has closed by then, and what it had not sent has been offered to others.
        """
        self._connector.events.watcher = callback

    def on_move(self, callback: Callable[[Message, Pipe | None], bool]) -> None:
        """Have ``callback(message, pipe)`` called when a to-one message that has not left goes to another pipe.

        First with None, when its pipe has closed, then with the pipe that is going to have it, perhaps much later, and
        perhaps again. False from it: nobody wants the message any more, and it is forgotten.
        """
        self._sender.moved = callback

    # Sending

    def send_one(
        self,
        content: bytes,
        timeout: float | None,
        taken: Callable[[Pipe], object],
        flags: int = 0,
        source: bytes = b"",
    ) -> bool:
        """Send to one peer as ``Socket.send`` does, after ``taken(pipe)``, which is a callback as the others are.

        Blocks and raises as ``Socket.send`` does; ``taken`` is called only when nothing can fail any more.

        Args:
            content: bytes-like.
            timeout: seconds.
            taken: told the pipe.
            flags: flags of the message, e.g. ``wire.CONTROL``.
            source: ids that the message's way begins with, before it has gone anywhere.

        Returns:
            False if ``socket.send_overflow`` has dropped the message.
        """
        self._socket._check()
        return self._sender.send_one(content, timeout, taken, flags, source)

    def send_again(self, content: bytes) -> None:
        """Send to one peer ahead of all others, as what has lost its pipe is. Never blocks.

        May be called from an ``on_pipe`` callback. Who gets it, and when, is told to the ``on_move`` callback.
        """
        self._sender.offer_again([Message(TO_ONE, self._sender.ttl, b"", b"", content)])

    def send_group(self, pipes: Collection[Pipe], content: bytes, timeout: float | None = None) -> int:
        """Send to all of some pipes, as ``Socket.send_some`` does, and faster where they are all that there are.

        Args:
            pipes: each once, and none that ``on_pipe`` has said is gone.
            content: bytes-like.
            timeout: seconds.

        Returns:
            The number of pipes that it went to.
        """
        self._socket._check()
        return self._sender.send_group(pipes, content, timeout)

    def wait_room(self, pipe: Pipe, timeout: float | None = None) -> bool:
        """Block until one pipe takes another message, whatever ``socket.send_overflow`` says.

        Returns:
            False if the pipe has closed, or the time is up.

        Raises:
            Closed: the socket is closed.
        """
        return self._sender.wait_room(pipe, timeout)

    def put(self, pipe: Pipe, message: Message) -> None:
        """Send a message by one pipe, whatever its send type. Never blocks: :meth:`wait_room` comes before it."""
        pipe.put(message.flags, self._sender.ttl, message.source, message.destination, message.content)

    @property
    def max_content(self) -> int:
        """The longest content that the socket sends, in bytes."""
        return self._sender.max_content

    # Receiving

    def stop_receiving(self, reason: str) -> None:
        """Take in nothing more, and drop what nobody has taken: for a protocol that closes and has still to send.

        Who waits for a message is told that the socket is closed.
        """
        receiver = self._receiver
        receiver.stop(reason)
        receiver.counters.drop("closed", len(receiver.queue))
        receiver.queue.clear()

    @property
    def drained(self) -> bool:
        """Whether nothing that the ``on_message`` callback has left for the receive queue is there, or waits for it."""
        return not self._receiver.queue and not self._receiver.room.waiters

    def count_drop(self, reason: str, pipe_id: int = 0) -> None:
        """Count a message that the protocol dropped, on the pipe that it came by, if that is open, and the socket."""
        pipe = self._connector.pipes.get(pipe_id)
        if pipe is not None:
            pipe.count_drop(reason)
        else:
            self._receiver.counters.drop(reason)
