"""What a protocol may do with its socket beyond users.

A protocol has its own Socket and uses it by the public calls. A :class:`ProtocolSocket` is the rest: with it the
protocol sees messages and pipes at the moment at which they arrive and leave, knows which peer a message goes to, and
counts the messages that it drops together with all other drops.

Its callbacks run inside of the core: in a reader greenlet, in the hub, in the middle of another socket's ``send``. So
they must not raise, block, switch greenlets, or send. Work that needs any of this belongs in a greenlet of the
protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from gevent.hub import Hub

from ..options import Options
from ..wire import TO_DEST, TO_ONE, Fields, Message
from .connecting.connector import Connector
from .connecting.events import CallbackGreenlet
from .pipes.pipe import Pipe, PipeState
from .receiving.receiver import ContentBuffer, Receiver
from .sending.sender import Sender

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .connecting.channels import ChannelEndpoint
    from .sending.relay import LongWay, Relay, Watch

__all__ = ["ProtocolSocket"]

_Relay = TypeVar("_Relay", bound="LongWay")


class _PutGroup(Protocol):
    """What ``ProtocolSocket.put_group`` is."""

    def __call__(
        self, pipes: Collection[Pipe], content: bytes, timeout: float | None = None, flags: int = 0
    ) -> int: ...


class ProtocolSocket:
    """The core of one socket, as its protocol uses it. Made by ``Socket._for_protocol``.

    Args:
        connector: of the socket, on which nothing has happened yet.
        check: raises if the caller is in the wrong thread or process.
        forked: tells whether the socket stayed with the parent of a fork.
    """

    __slots__ = ("_connector", "_forked", "_receiver", "_sender", "check")

    def __init__(self, connector: Connector, check: Callable[[], None], forked: Callable[[], bool]) -> None:
        self._connector = connector
        self._sender = connector.sender
        self._receiver = connector.receiver
        self._forked = forked
        #: Check that the caller may use the socket, as every method of the socket does. Raises WrongThread or
        #: ForkedSocketError.
        self.check = check

    @property
    def forked(self) -> bool:
        """Whether the socket stayed with the parent of a fork."""
        return self._forked()

    @staticmethod
    def is_mine(greenlet: object) -> bool:
        """Return whether a greenlet runs pipe callbacks, so that ``close()`` in it must not wait."""
        return isinstance(greenlet, CallbackGreenlet)

    # Callbacks, one of each. The module docstring says what they may not do.

    def on_message(self, callback: Callable[[Message], bool] | None, in_order: bool = False) -> None:
        """Call ``callback(message)`` for each message when it arrives, before it is queued.

        If it returns True, the message is dealt with. If it returns False, the message goes to the receive queue as if
        there were no callback. While that queue is full, the callback may be called again with the same message, so it
        must have done nothing before it returned False. All messages of a pipe are shown before the pipe is reported
        closed, unless this side closes it.

        Args:
            callback: the callback; None to end it, which it may do itself.
            in_order: while a message waits for the queue, no later one of its pipe is shown. Otherwise those that
                arrived with it are, and the callback may deal with them before.
        """
        self._receiver.set_filter(callback, in_order)

    def on_content(self, callback: Callable[[int, bytes, bytes], ContentBuffer | None]) -> None:
        """Call ``callback(flags, source, destination)`` when a large content begins to arrive by tcp or ipc.

        The content is read into the memory that it returns. What the memory has no space for becomes a message, as all
        of it does if the callback returns None: ``on_message`` and the receive queue see it then. The callback may be
        called again for the rest of a content. Nobody asks it about contents of less than 32 KiB.
        """
        self._receiver.set_buffer_for(callback)

    def on_pipe(self, callback: Callable[[Literal["add", "remove"], Pipe], object]) -> None:
        """Call ``callback(kind, pipe)`` when a pipe is added or removed: at once, and before any other callback.

        A pipe that is removed has closed by then, and the messages that it had not sent were requeued. An error of the
        callback is logged; on "add" it also closes the pipe.
        """
        self._connector.events.hook = callback

    def on_requeue(self, callback: Callable[[Message, Pipe | None], bool]) -> None:
        """Call ``callback(message, pipe)`` when a to-one message that has not left goes to another pipe.

        It is called with None when the pipe of the message has closed, then with the pipe that will get it, perhaps
        much later, and perhaps several times. If it returns False, nobody wants the message any more, and it is
        forgotten. If it raises, the error is logged, and the message goes on.
        """
        self._sender.requeue.hook = callback

    def on_lost(self, callback: Callable[[Message], bool]) -> None:
        """Call ``callback(message)`` for each message that is not to-one and that a pipe which closes has not sent.

        If it returns False, nobody misses the message: it is counted as all others, and nothing is logged. It must not
        raise. It is also asked before ``drop_oldest`` drops a message of a pipe that is open: one for which it returns
        False is about the state of this very peer, which waits for it. That stays in the queue.
        """
        self._connector.lost_hook = callback

    def on_internal(self, callback: Callable[[Message], bool]) -> None:
        """Call ``callback(message)`` for each internal message with send type 2, which a pipe does not handle itself.

        If it returns False, it has no use for the message, and that is counted as ``internal``.
        """
        self._receiver.on_internal = callback

    # Sessions

    def channel_endpoint(self, name: str, options: Options, dials: bool) -> ChannelEndpoint:
        """Return what makes pipes of a session's channels for this socket.

        Args:
            name: of the channel.
            options: the socket's.
            dials: whether it is the session's dialing side.
        """
        # Most programs have no session.
        from .connecting.channels import ChannelEndpoint

        return ChannelEndpoint(self._connector, options, name, dials)

    # Sending

    def check_content(self, content: Buffer, destination: bytes = b"") -> bytes:
        """Return the bytes of a content that may be sent.

        Raises:
            TypeError: it is not bytes-like.
            MessageTooLong: it is over ``socket.max_send_content_length``.
        """
        return self._sender.check_content(content, destination)

    @property
    def max_content(self) -> int:
        """The longest content that the socket sends, in bytes."""
        return self._sender.max_content

    def next_pipe(self, timeout: float | None = None) -> Pipe | None:
        """Block until a pipe can take a to-one message, and return it. Raises as ``Socket.send`` does.

        The caller then calls :meth:`put`, before it switches greenlets: the pipe's turn is used.

        Returns:
            None if ``socket.send_overflow`` drops the message.
        """
        self.check()
        return self._sender.next_pipe(timeout)

    def avoid(self, pipe: Pipe, avoided: bool) -> None:
        """Send no to-one messages by a pipe while there are other pipes.

        Neither blocks nor switches greenlets. When no other pipe is left, all avoided pipes are used again, as if this
        had not been called.

        Args:
            pipe: the pipe.
            avoided: False: use the pipe again.
        """
        self._sender.avoid(pipe, avoided)

    def put(self, pipe: Pipe, message: Message) -> None:
        """Send a message of any send type by one pipe. Never blocks.

        The message has the flags, paths and content of ``message``, and the ttl of the socket. Call
        :meth:`next_pipe` or :meth:`wait_writable` before, or the pipe's queue grows beyond its limit.
        """
        flags, _, source, destination, content, _ = message
        if flags == TO_ONE and not source:
            pipe._put_one(self._sender.headers, content)
        else:
            pipe._put(flags, self._sender.ttl, source, destination, content)

    def put_pieces(self, pipe: Pipe, source: bytes, destination: bytes, data: memoryview, size: int) -> int:
        """Send data as messages along a path by one pipe: one, or several if the pipe writes them in one call.

        Never blocks; see :meth:`put`.

        Args:
            pipe: the pipe.
            source: of the messages.
            destination: of the messages.
            data: a view of at least one byte. It is not copied if it is large, nobody can change it, and the pipe
                leads out of the process.
            size: of the contents, in bytes; only the last one may be smaller.

        Returns:
            How many bytes of ``data`` were sent or queued. 0 only if the pipe has closed.
        """
        return pipe._put_pieces(self._sender.ttl, source, destination, data, size)

    def read_now(self, pipe: Pipe, target: ContentBuffer) -> None:
        """Read a large content into memory at once, if some of it has come by the pipe and nothing comes before it.

        Never blocks and never switches greenlets. Does nothing if the pipe's reader is at work on something else.

        Args:
            pipe: the pipe.
            target: what the ``on_content`` callback returns for the content.
        """
        pipe._read_now(target)

    def put_one(self, pipe: Pipe, content: bytes) -> None:
        """Send a content to the peer of one pipe, as a to-one message. Never blocks; see :meth:`put`."""
        pipe._put_one(self._sender.headers, content)

    def pass_on(self, pipe: Pipe, message: Message) -> None:
        """Send a message further along its path by one pipe, with its own ttl. Never blocks; see :meth:`put`."""
        pipe._put(message.flags, message.ttl, message.source, message.destination, message.content)

    def send_group(self, pipes: Collection[Pipe], content: Buffer, timeout: float | None = None, flags: int = 0) -> int:
        """Send to some pipes, as ``Socket.send_all`` sends to all. If these are all pipes of the socket, it is as fast.

        Args:
            pipes: each once, and none that ``on_pipe`` has reported removed.
            content: bytes-like.
            timeout: seconds.
            flags: flags of the message, e.g. ``wire.CONTROL``.

        Returns:
            The number of pipes that it went to.
        """
        self.check()
        sender = self._sender
        content = sender.check_content(content)
        if sender.begin():
            # Some may have closed, and as many new ones may be there.
            pipes = [pipe for pipe in pipes if pipe.id in self._connector.pipes]
        return sender.put_group(pipes, content, timeout, flags)

    @property
    def put_group(self) -> _PutGroup:
        """A function that sends as :meth:`send_group` does, right after :meth:`begin`. It checks nothing again.

        It has the arguments of :meth:`send_group`; the content is not longer than :meth:`begin` says.
        """
        return self._sender.put_group

    def put_copies(
        self, paths: Collection[tuple[Pipe, bytes]], content: bytes, timeout: float | None = None, flags: int = 0
    ) -> int:
        """Send along several paths, as :meth:`put_group` sends to pipes.

        Args:
            paths: each a pipe that was open, and a path that begins with it.
            content: not longer than :meth:`begin` says.
            timeout: seconds.
            flags: the same.

        Returns:
            The number of pipes that it went to.
        """
        sender, flags = self._sender, TO_DEST | flags
        copies = [(pipe, (flags, sender.ttl, b"", path, content)) for pipe, path in paths]
        return sender._to_all.send_copies(copies, timeout)

    def put_several(self, messages: Collection[tuple[Pipe, Message]], timeout: float | None = None) -> int:
        """Send several messages, each by its own pipe, as :meth:`put_group` sends one. A full pipe delays no other one.

        Each is a pipe that was open, and what goes by it, as for :meth:`put`. Returns to how many pipes it went.
        """
        ttl = self._sender.ttl
        copies = [(pipe, (each[0], ttl, each[2], each[3], each[4])) for pipe, each in messages]
        return self._sender._to_all.send_copies(copies, timeout)

    @property
    def forward(self) -> Callable[[Message, None, Callable[[int], object] | None], int]:
        """A function that sends a message as ``Socket.send_msg`` does, but lets no full pipe hold up the others.

        A to-all message waits for full pipes as long as ``socket.send_to_patience`` lets all senders wait together.
        Then the pipes that are still full lose it. With another ``socket.send_overflow`` than block, nothing waits.

        ``forward(message, None, lost)`` returns the number of pipes that the message went to. ``lost(count)`` is called
        if pipes lost it in this way; if ``lost`` is None, the message waits for them. It may only be called where the
        socket's other methods may be; it does not check that.
        """
        return self._sender.send_msg

    def relay_to(self, target: ProtocolSocket, max_ttl: int, watch: Watch, count: Callable[[int], object]) -> Relay:
        """Pass on what this socket's pipes read to the pipes of another one, where that needs no message.

        Args:
            target: of the other socket.
            max_ttl: see :class:`~.sending.relay.Relay`.
            watch: the same.
            count: the same.
        """
        # Only programs with a switch load it.
        from .sending.relay import Relay

        return Relay(self._connector.hub, self._receiver, target._sender, max_ttl, watch, count)

    def relay_by(self, make: Callable[[Hub, Receiver, Sender], _Relay]) -> _Relay:
        """Pass what the pipes read to a relay of the protocol; ``on_message`` sees only what the relay does not take.

        Args:
            make: makes the relay, a subclass of :class:`~.sending.relay.LongWay`, for this socket's parts.
        """
        return make(self._connector.hub, self._receiver, self._sender)

    def requeue(self, content: bytes) -> None:
        """Send to one peer ahead of all others, as a message that has lost its pipe. Never blocks.

        May be called from an ``on_pipe`` callback. The ``on_requeue`` callback is told which pipe gets it, and when.
        """
        self._sender.requeue.add([Message(TO_ONE, self._sender.ttl, b"", b"", content)])

    def begin(self) -> int:
        """Yield to other greenlets if this turn's budget is spent, as every sending method does when it begins.

        Then :meth:`put_group` sends at once.

        Returns:
            The longest content that may be sent, in bytes.

        Raises:
            WrongThread, ForkedSocketError: as for all methods of the socket.
            Closed, NotSupported: nothing may be sent.
        """
        self.check()
        sender = self._sender
        sender.begin()
        return sender.max_content

    def gather(self) -> None:
        """Send nothing before this turn of the loop ends, as more than one message follows in it. Never blocks.

        Then each peer gets them in one system call. Without it, the first message leaves alone.
        """
        self._sender.scheduler.gather()

    def when_written(self, function: Callable[[], object]) -> None:
        """Call a function when all that is queued now has been written, as far as the kernel takes it.

        It must not raise, block or switch greenlets; it may call :meth:`put`.
        """
        self._sender.scheduler.when_written(function)

    def may_put(self, pipe: Pipe) -> bool:
        """Return whether :meth:`put` may be called for a pipe without :meth:`wait_writable` before."""
        sender = self._sender
        return not (pipe.full or sender.scheduler.over_budget or sender._closed) and pipe.state is PipeState.OPEN

    def wait_writable(self, pipe: Pipe, timeout: float | None = None) -> bool:
        """Block until one pipe can take another message, under every ``socket.send_overflow``.

        Returns:
            False if the pipe has closed, or the time is over.

        Raises:
            Closed: the socket is closed.
        """
        return self._sender.wait_writable(pipe, timeout)

    # Receiving

    def recv_batch(self, most: int) -> list[Fields]:
        """Block until there is a message, and take the oldest ones from the receive queue, at most ``most``.

        What it returns counts no more for the queue's limit. For one greenlet that handles all messages.

        Raises:
            Closed: the socket is closed.
        """
        self.check()
        return self._receiver.next_batch(most)

    def deliver(self, message: Message) -> None:
        """Put a message into the receive queue, however full that is. Never blocks.

        The ``on_message`` callback sees it as if it had just arrived.
        """
        self._receiver.deliver((message,), past_limit=True)

    @property
    def has_room(self) -> bool:
        """Whether the receive queue can take the message that an ``on_message`` callback is called with.

        Only for a callback with ``in_order``. If it returns False while this is False, it is called again with the same
        message.
        """
        return self._receiver.has_room

    def append(self, message: Message) -> None:
        """Put a message into the receive queue without showing it to the ``on_message`` callback. Never blocks.

        An ``on_message`` callback may use it while there is room: instead of the message that it is called with, or for
        something that the receiver must find in front of it.
        """
        self._receiver.append(message)

    def stop_receiving(self, reason: str) -> None:
        """Receive nothing more, and drop the messages in the queue: for a protocol that closes and has still to send.

        A greenlet that waits for a message gets Closed.
        """
        self._receiver.stop(reason)
        self._receiver.discard_queue()

    @property
    def drained(self) -> bool:
        """Whether no message that the ``on_message`` callback refused is in the receive queue, or waits for it."""
        return not self._receiver.queue and not self._receiver.put_waiters

    def count_drop(self, reason: str, pipe_id: int = 0) -> None:
        """Count a message that the protocol dropped.

        Args:
            reason: as in ``counters.drops``.
            pipe_id: the pipe that it came by; if that is closed, it is counted on the socket.
        """
        pipe = self._connector.pipes.get(pipe_id)
        if pipe is not None:
            pipe._count_useless(reason)
        else:
            self._receiver.counters.drop(reason)
