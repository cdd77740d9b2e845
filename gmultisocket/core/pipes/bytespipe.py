"""The reading half of a pipe over anything that carries bytes. What the bytes mean is for the subclasses:
``framedpipe.py``, ``rawpipe.py`` and ``packetpipe.py``.

One greenlet a pipe reads, decodes, and delivers whole batches to the receiver. While the receiver's queue is full the
greenlet waits and does not read, so the kernel's buffers fill, and they block the peer.

While the greenlet waits for bytes, the loop offers what it reads to the pipe. If that is little and nothing has to
wait, it is decoded and delivered in the hub, and the greenlet sleeps on: to wake it would take longer than all the
rest.

A pipe whose connection cannot be written to any more *drains*: it reads what the peer has already sent, then closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import gevent
from gevent import Greenlet, GreenletExit, getcurrent
from greenlet import greenlet

from ... import options as opts
from ...errors import Closed, MultiSocketError
from ...loop.yielding import yield_to_loop
from ...options import Option
from ...transport import StreamConnection
from ...transport.stream import describe_os_error
from ...wire import HEADER_SIZE, Fields
from .pipe import TIME_LIMITS, PipeEndpoint, PipeOwner, PipeState
from .readrates import LONGEST_PAUSE, RATE_OPTIONS, ReadRates, read_rates
from .writepipe import _BLOCKED, WritePipe

__all__ = ["BATCH", "LITTLE", "BytesPipe", "Taken"]

#: After this number of bytes a reader lets other greenlets run. Receivers then free large contents while the allocator
#: still has their memory at hand: with 1 MiB instead, 64 KiB contents cost twice as much, all of it in page faults.
_READ_BUDGET: Final = 1 << 17

#: After this number of messages a reader lets other greenlets run, if each of them is looked at in Python: internal
#: messages, and those that a protocol sees first. They take up to 20 us each.
BATCH: Final = 256

#: Bytes that are dealt with while the reader waits. They complete fewer than ``BATCH`` messages, also if a frame had
#: begun before, so that nothing yields.
LITTLE: Final = HEADER_SIZE * (BATCH - 2)

#: While the receiver's queue is full, a pipe decodes this many bytes at a time: as messages, the smallest frames take
#: a dozen times the memory, and a peer may open a thousand connections.
_PORTION: Final = 4096

#: Seconds. A draining pipe closes when nothing was read for this time.
DRAIN_TIMEOUT: Final = 5.0


class _StopReading(BaseException):
    """Thrown into a reader that waits for the receiver, to end it."""


class _NobodyReceives(_StopReading):
    """Thrown into the reader of a draining pipe whose messages nobody receives."""


class Taken(Exception):
    """Raised where the reader waits: what was read is decoded, and these messages are not delivered yet."""

    def __init__(self, messages: Sequence[Fields]) -> None:
        super().__init__()
        self.messages = messages


class BytesPipe(WritePipe):
    """A pipe that writes and reads bytes."""

    __slots__ = (
        "_decoder",
        "_drain_timer",
        "_ended_by_peer",
        "_error",
        "_rates",
        "_reader",
        "_reading_paused",
        "bytes_received",
        "messages_received",
    )

    def __init__(self, pipe_id: int, connection: StreamConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self.messages_received = 0
        self.bytes_received = 0
        self._reader: greenlet | None = None
        #: Whether nothing is read because the receiver's queue is full, or the peer has sent more than it may. Silence
        #: of the peer is not its fault then.
        self._reading_paused = False
        self._drain_timer: Any = None
        self._error: MultiSocketError | None = None
        #: Whether the peer has said that it sends nothing more.
        self._ended_by_peer = False
        #: How fast the peer may send; None for any rate.
        self._rates = read_rates(endpoint.options, 0)

    # Draining

    def _broken(self, error: OSError) -> None:
        reason = f"sending failed: {describe_os_error(error)}"
        if self._reader is None:
            self._close(reason)
        elif self._move(PipeState.DRAINING):
            self.reason = reason
            self._stop_sending()
            if self.state is PipeState.DRAINING:
                self._drain_timer = self._owner.hub.loop.timer(DRAIN_TIMEOUT, DRAIN_TIMEOUT)
                self._drain_timer.start(self._check_draining, self.bytes_received)

    def _check_draining(self, received: int) -> None:
        """Close a draining pipe if nothing was read since: its peer is still there, or nobody receives its messages."""
        if self.bytes_received != received:
            self._drain_timer.start(self._check_draining, self.bytes_received)
        elif self._reading_paused and self._reader is not None:
            self._reader.throw(_NobodyReceives)
        else:
            self._close(self.reason)

    # Keepalive; see the heartbeat

    def _keepalive_times(self) -> tuple[float, float]:
        """Return the seconds of silence before a ping, and before the pipe is closed; 0 for never."""
        options = self._options or self._endpoint.options
        interval = options.get(opts.connector.pipe.heartbeat_interval)
        return interval, options.get(opts.connector.pipe.heartbeat_timeout) or 2 * interval

    def _unfinished_frame(self) -> int | None:
        """Return a number that stands for the message that has begun to arrive; None if the peer is in none."""
        return None

    def _option_changed(self, option: Option[Any], value: Any) -> None:
        super()._option_changed(option, value)
        if option in RATE_OPTIONS:
            self._rates = read_rates(self._options or self._endpoint.options, self.messages_received)
        elif option in TIME_LIMITS:
            self._owner.time_limit_changed(self)

    def _ping(self) -> None:
        """Ask the peer to show that it is alive."""

    def _can_pong(self) -> bool:
        """Return whether the peer is known to answer pings."""
        return False

    def _show_life(self) -> None:
        """Send something to a peer whose pings are not read now, unless other bytes wait to leave."""
        if self._busy == _BLOCKED or not (pong := self._pong()):
            return
        # A peer that has left would answer by a reset, and what it sent before would be read against time.
        if not self._connection.hung_up(may_half_close=False):
            self._push_control(pong)

    def _pong(self) -> bytes:
        """Return what shows the peer that this side lives, b"" if the peer has no use for it."""
        return b""

    # Reading

    def _start(self) -> None:
        self._reader = gevent.spawn(self._read_loop)

    def _run(self) -> None:
        """Read in the calling greenlet. Blocks until the pipe closes."""
        self._reader = getcurrent()
        self._read_loop()

    def _join(self) -> None:
        super()._join()
        if isinstance(self._reader, Greenlet) and self._reader is not getcurrent():
            self._reader.join()

    def _read_loop(self) -> None:
        """Receive until the connection or the pipe ends (the reader greenlet)."""
        reason: str | MultiSocketError | None = "closed"
        try:
            if self.state is not PipeState.CLOSED:
                reason = self._read_all()
        except _StopReading:
            pass
        except MultiSocketError as error:
            reason = error
            self._owner.peer_error(self, error)
        except OSError as error:
            reason = f"receiving failed: {describe_os_error(error)}"
        except GreenletExit:
            # Nothing here kills a reader: this greenlet belongs to a server (see Listener.serve), which stops.
            reason = Closed("server", "it is stopping")
            raise
        except BaseException as error:
            reason = f"receiving failed: {type(error).__name__}: {error}"
            raise
        finally:
            if self.state is PipeState.DRAINING and not isinstance(reason, MultiSocketError):
                # An error of ours is the peer's own statement: that it refused a certificate, say.
                reason = self.reason
            if reason is not None:
                self._close(reason)
            try:
                self._drain()
            finally:
                self._reader = None

    def _drain(self) -> None:
        """Wait for the peer's close frame, if the transport has one, after the pipe has closed."""

    def _read_all(self) -> str | None:
        """Deliver what arrives to the receiver until the peer ends the stream.

        Returns:
            Why the pipe closes now; None if it stays open for sending.
        """
        connection = self._connection
        receiver = self._owner.receiver
        budget = min(self._scheduler.yield_bytes, _READ_BUDGET)
        spent = 0
        while True:
            if receiver.buffer_for is not None:
                self._read_contents()
                if self._ended_by_peer:
                    return "the peer said goodbye"
            rates = self._rates
            size = self._read_size() if rates is None else min(self._read_size(), rates.read_size)
            if connection.offers:
                rest: Sequence[Fields] | None = None
                try:
                    data = connection.recv_offered(size, self._take_little)
                except Taken as taken:
                    rest = taken.messages
                if rest is not None:
                    self._deliver_rest(rest)
                    if self._error is not None:
                        raise self._error
                    if self._ended_by_peer:
                        return "the peer said goodbye"
                    continue
            else:
                data = connection.recv(size)
            if not data:
                return self._end_of_stream()
            size = len(data)
            self.bytes_received += size
            if receiver.relay is not None:
                data = self._pass_on(data)
            if data:
                for portion in (data,) if size <= _PORTION or receiver.writable() else self._portions(data):
                    self._receive(portion)
                    if self._ended_by_peer:
                        break
            if self._ended_by_peer:
                return "the peer said goodbye"
            if self.state is PipeState.CLOSED:
                return self.reason
            if self._rates is not None:
                self._keep_to_rates(self._rates, size)
            spent += size
            if spent >= budget:
                # A peer that always has more to send must not keep the loop from other peers and from receivers.
                spent = 0
                yield_to_loop()

    def _take_little(self, data: bytes) -> bool:
        """Decode and deliver what was read while the reader waits, if it is little. Called in the hub.

        Returns:
            Whether that was done, and the reader goes on waiting. If not, nothing was done, and the reader does it.

        Raises:
            Taken: it was decoded, and the rest is for the reader.
            Exception: any other exception ends the reader.
        """
        return False

    def _read_contents(self) -> None:
        """Read large contents to where the protocol wants them, as long as there are any. Blocks.

        Called while the receiver has a ``buffer_for``.
        """

    def _receive(self, data: bytes) -> None:
        """Decode what was read, and deliver the messages. Blocks while the receiver's queue is full."""
        self._hand_on(self._decode(data))
        if self._error is not None:
            raise self._error

    def _hand_on(self, messages: Sequence[Fields]) -> None:
        """Count messages and deliver them. Blocks while the receiver's queue is full."""
        if messages:
            self._count_received(len(messages))
            self._deliver(messages)

    def _count_received(self, count: int) -> None:
        if not self.messages_received:
            self._owner.pipe_heard(self)
        self.messages_received += count

    def _pass_on(self, data: bytes) -> bytes:
        """Give what was read to the switch's relay. Blocks. Return what is to be decoded, because it cannot be relayed.

        Called while the receiver has a relay.
        """
        return data

    def _keep_to_rates(self, rates: ReadRates, size: int) -> None:
        """Count what was read, and read nothing for some time if the peer has sent more than it may. Blocks."""
        rates.use(self.messages_received, size)
        # The peer is not silent then, and close() ends the pause.
        self._reading_paused = True
        try:
            while self._rates is rates and (pause := rates.pause):
                gevent.sleep(min(pause, LONGEST_PAUSE))
        finally:
            self._reading_paused = False

    def _deliver(self, messages: Sequence[Fields]) -> None:
        """Deliver messages to the receiver. Blocks while its queue is full."""
        receiver = self._owner.receiver
        if receiver.filter is not None and len(messages) > BATCH:
            for start in range(0, len(messages), BATCH):
                self._deliver(messages[start : start + BATCH])
                yield_to_loop()
            return
        self._deliver_rest(receiver.deliver(messages))

    def _deliver_rest(self, rest: Sequence[Fields]) -> None:
        """Deliver messages that the receiver has not taken at once, when it can take them."""
        receiver = self._owner.receiver
        try:
            while rest:
                self._reading_paused = True
                receiver.not_full.wait(None)
                self._reading_paused = False
                rest = receiver.deliver(rest, in_turn=True, past_limit=receiver.closed)
        except BaseException as error:
            self._reading_paused = False
            self._deliver_late(rest, error)
            raise

    def _deliver_late(self, messages: Sequence[Fields], error: BaseException) -> None:
        """Deliver messages that had arrived before this error ended the wait to deliver them: they are not lost."""
        if isinstance(error, _NobodyReceives):
            # Else one peer after another could deliver past the limit, and leave.
            self._drop("unread", len(messages))
        else:
            self._owner.receiver.deliver(messages, past_limit=True)

    def _read_size(self) -> int:
        """Return how many bytes to ask the kernel for."""
        raise NotImplementedError

    def _decode(self, data: bytes) -> list[Fields]:
        """Return the messages that these bytes complete.

        An error behind good messages is left in ``_error``, so that those messages are delivered first.
        """
        raise NotImplementedError

    def _portions(self, data: bytes) -> Iterable[bytes]:
        """Split what was read; each part is decoded after the messages of the part before were accepted."""
        return (data[start : start + _PORTION] for start in range(0, len(data), _PORTION))

    def _end_of_stream(self) -> str | None:
        return "the peer closed the connection"

    # Closing

    def _close(self, reason: str | MultiSocketError) -> None:
        super()._close(reason)
        if self._drain_timer is not None:
            self._drain_timer.close()
            self._drain_timer = None
        if self._reading_paused:
            # All other waits of a reader or writer end when the connection closes.
            self._owner.hub.loop.run_callback(self._stop_reader)

    def _stop_reader(self) -> None:
        if self._reading_paused and self._reader is not None:
            self._reader.throw(_StopReading)
