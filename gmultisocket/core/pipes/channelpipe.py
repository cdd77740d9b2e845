"""The pipes of a session: one of the WebSocket itself, and one for each of its channels.

A :class:`CarrierPipe` reads the WebSocket, keeps it alive and closes it. It has no messages of its own: it gives every
packet to the session, which gives those of a channel to the channel's pipe.

A :class:`ChannelPipe` is a pipe of the channel's socket. It writes as every other pipe over packets does, from its own
queue or a fan-out. It does not read: its frames are given to it. While the socket's receive queue is full they wait
here, within a limit. The carrier reads on, because there are other channels behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from ...errors import MultiSocketError
from ...loop.yielding import yield_to_loop
from ...transport import PacketConnection
from ...transport.base import SharedWrites
from ...transport.stream import describe_os_error
from ...transport.wschannels import ChannelConnection
from ...wire import Fields
from .bytespipe import BATCH, DRAIN_TIMEOUT, BytesPipe
from .packetpipe import PacketPipe, Packets
from .pipe import Pipe, PipeEndpoint, PipeOwner, PipeState

__all__ = ["MAX_UNREAD", "MAX_UNREAD_BYTES", "CarrierPipe", "ChannelPipe"]

#: Messages, and bytes of their contents, that may wait for the receive queue of a channel's socket.
MAX_UNREAD: Final = 64
MAX_UNREAD_BYTES: Final = 1 << 18


class _Unread(MultiSocketError):
    """Why the channel of a peer closes that sends faster than this side receives."""

    def __str__(self) -> str:
        return f"more than {MAX_UNREAD} messages or {MAX_UNREAD_BYTES} bytes were not received"


class CarrierPipe(Packets, BytesPipe):
    """The pipe of a WebSocket that carries channels.

    Attributes:
        take: called with each packet that comes. It does not block or raise.
    """

    __slots__ = ("_channels", "_close_timer", "_codec", "take")

    raw = True
    _eligible = False

    def __init__(self, pipe_id: int, connection: PacketConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        assert connection.channels is not None
        self._channels: SharedWrites = connection.channels
        self._codec = connection.codec
        self._close_timer = None
        self.take: Callable[[bytes], object] = self._useless

    def _useless(self, packet: bytes) -> None:
        self._count_useless("garbage")

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        # A message needs a channel.
        self._drop("flags")

    def tell(self, packet: bytes) -> None:
        """Send a packet about the channels. Never blocks; closes this pipe if its peer reads nothing of that."""
        if not self._channels.put(self._codec.wrap(packet)):
            self._close("the peer does not read what is said about its channels")

    def channel(self, number: int, on_close: Callable[[int], object]) -> ChannelConnection:
        """Return the connection of one channel. ``on_close(number)`` is called when it has closed."""
        return ChannelConnection(self._connection, self._channels, number, on_close)

    def _read_size(self) -> int:
        return self._codec.read_size

    def _messages_of(self, packets: list[bytes]) -> list[Fields]:
        """Give the packets to the session: this pipe has no messages."""
        for number, packet in enumerate(packets, 1):
            self.take(packet)
            if number % BATCH == 0:
                yield_to_loop()
            if self.state is PipeState.CLOSED:
                break
        self.messages_received += len(packets)
        return []

    # The heartbeat sees by these that a peer reads, also if most of what it reads are messages of channels.

    def _acknowledged(self) -> int:
        return self._shared_bytes() - self._connection.unacknowledged()

    def _end_of_queue(self) -> int:
        return self._shared_bytes() + self._queued_bytes

    def _shared_bytes(self) -> int:
        return self._channels.taken

    def _join(self) -> None:
        super()._join()
        self._channels.join()


class ChannelPipe(PacketPipe):
    """The pipe of one channel.

    Args:
        carrier: the pipe of the WebSocket.
        pipe_id, connection, owner, endpoint: as for every pipe.
    """

    __slots__ = ("_carrier", "_pause_timer", "_unread", "_unread_bytes", "_waiting")

    def __init__(
        self,
        carrier: CarrierPipe,
        pipe_id: int,
        connection: PacketConnection,
        owner: PipeOwner,
        endpoint: PipeEndpoint,
    ) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._carrier = carrier
        #: Messages that the receiver had no space for. Made when first needed.
        self._unread: deque[Fields] | None = None
        self._unread_bytes = 0
        #: Whether this pipe waits for space in the receiver's queue.
        self._waiting = False
        #: Ends a pause after too many messages.
        self._pause_timer: Any = None

    @property
    def carrier(self) -> Pipe:
        return self._carrier

    # Receiving

    def _start(self) -> None:
        """Do nothing: frames are given to :meth:`take`."""

    def take(self, frame: bytes) -> None:
        """Take one frame that has come. Never blocks or raises; what is wrong with the frame closes this pipe only."""
        if self.state is PipeState.CLOSED:
            return
        self.bytes_received += len(frame)
        try:
            messages = self._messages_of([frame])
            if self._error is not None:
                raise self._error
            if messages:
                if not self.messages_received:
                    self._owner.pipe_heard(self)
                self.messages_received += 1
            if self._rates is not None:
                self._rates.use(self.messages_received, len(frame))
        except MultiSocketError as error:
            self._owner.peer_error(self, error)
            self._close(error)
            return
        if messages:
            self._deliver_in_order(messages)
        if self._ended_by_peer:
            self.end("the peer said goodbye")

    def _deliver_in_order(self, messages: list[Fields]) -> None:
        if not self._unread:
            if not self._pauses():
                messages = [*self._owner.receiver.deliver(messages)]
            if not messages:
                return
        if self._unread is None:
            self._unread = deque()
        self._unread += messages
        self._unread_bytes += sum(len(message[4]) for message in messages)
        if len(self._unread) > MAX_UNREAD or self._unread_bytes > MAX_UNREAD_BYTES:
            error = _Unread()
            self._owner.peer_error(self, error)
            self._close(error)
        else:
            self._wait_for_space()

    def _pauses(self) -> bool:
        """Return whether the peer has sent more than it may, and nothing is delivered for some time."""
        if self._rates is None or not (pause := self._rates.pause):
            return False
        if self._pause_timer is None:
            self._pause_timer = self._owner.hub.loop.timer(pause)
            self._pause_timer.start(self._pause_ended)
        return True

    def _pause_ended(self) -> None:
        self._stop_pause()
        self._deliver_unread(True)

    def _wait_for_space(self) -> None:
        if not self._waiting and self._pause_timer is None:
            self._waiting = True
            not_full = self._owner.receiver.not_full
            not_full.waiters.append(self._deliver_unread)
            not_full.wake()

    def _deliver_unread(self, woken: bool) -> None:
        """Deliver what fits into the receiver's queue. The receiver's wait list calls it."""
        self._waiting = False
        if not self._unread or self.state is PipeState.CLOSED or self._pauses():
            return
        rest = self._owner.receiver.deliver([*self._unread], in_turn=True)
        self._unread = deque(rest)
        self._unread_bytes = sum(len(message[4]) for message in rest)
        if rest:
            self._wait_for_space()
        elif self._ended_by_peer:
            self._close(self.reason)

    # Closing

    def end(self, reason: str) -> None:
        """Close the pipe, because the peer sends nothing more. What it has sent is delivered first, if that is soon."""
        if not self._unread:
            self._close(reason)
            return
        self._ended_by_peer = True
        if self._move(PipeState.DRAINING):
            self._stop_sending()
        self.reason = reason
        self._drain_timer = self._owner.hub.loop.timer(DRAIN_TIMEOUT)
        self._drain_timer.start(self._close, reason)

    def _broken(self, error: OSError) -> None:
        # The carrier finds it out as well. It ends this pipe when it has read what the peer has sent.
        if self._move(PipeState.DRAINING):
            self.reason = f"sending failed: {describe_os_error(error)}"
            self._stop_sending()

    def _stop_pause(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.close()
            self._pause_timer = None

    def _close(self, reason: str | MultiSocketError) -> None:
        unread, self._unread = self._unread, None
        if unread:
            self._drop("unread", len(unread))
        super()._close(reason)
        self._stop_pause()
