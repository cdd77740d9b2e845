"""Streams: connections like those of TCP, any number of them over one Socket, and through switches.

* Who talks to whom: a Stream with any other Stream. Each may open connections and accept them. To open one, a Stream
  asks one peer, fairly chosen; the Stream that accepts it is at the other end of it from then on.
* On the wire: the opener sends 0x00 (flag 0x20, control) to one, with its own id for the connection, 4 bytes, as
  the source. The acceptor answers 0x01 along the path that the opening came by, with its own id as the source. From
  then on each end sends to the other along such a path. :mod:`.streamend` documents the messages.
* What is lost, and when: nothing, while the pipes on the path live. When the first of them closes, a connection is
  reset at once. When one behind a switch closes, the connection is reset when its other end does not answer keepalives
  any more, see ``protocol.stream.keep_alive_*``. A connection is bound to its path and does not come back: open another
  one. (Switches on the path must not drop: leave ``socket.send_overflow`` of their sockets at ``block``. A stream does
  not notice a gap.)

A Go program may be at the other end. It never says that its data has ended, nor that it has gone. It takes and sends
data without a limit, so its data may block a whole pipe if nobody reads it. It takes everything that comes for a sign
of life, also a reset: so it gets one reset and then silence, and ends the connection itself.

Source: protocol/stream/stream.go of the Go code. Beyond it: end of data, credit, resets.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, overload

import gevent
from gevent import Greenlet, get_hub

from .. import options as opts
from ..address import Address
from ..core.connecting.dialer import Dialer
from ..core.pipes.pipe import Pipe
from ..errors import (
    Closed,
    ConnectionRefused,
    ForkedSocketError,
    NotSupported,
    PeerGone,
    StreamClosed,
    StreamReset,
    Timeout,
)
from ..loop.periodic import Periodic
from ..loop.waiting import Deadline, WaitList
from ..loop.yielding import yield_to_loop
from ..options import OptionValues
from ..wire import CONTROL, SEND_TYPE_MASK, TO_DEST, TO_ONE, Message
from .base import ProtocolBase
from .ids import IdPool
from .outbox import Outbox
from .resets import Resets
from .streamend import CREDIT, END, KEEP_ALIVE, RESET, ReaderBuffer, StreamContext, StreamEnd
from .streamsocket import StreamSocket
from .suspects import Suspects

if TYPE_CHECKING:
    from ..core.connecting.listener import Listener

__all__ = ["Stream", "StreamSocket"]

#: While this number of control messages wait for a pipe, its peer cannot open connections.
_MAX_UNREAD = 16384
#: After this number of connections that are ended or checked others run.
_PORTION = 256
#: Seconds between two checks of the connections, at least and at most; the options apply within these.
_MIN_CHECK_INTERVAL, _MAX_CHECK_INTERVAL = 0.005, 1.0


class Stream(ProtocolBase):
    """Opens and accepts connections. Iterable: ``for connection in stream`` accepts.

    A message that belongs to no connection is dropped. Its sender gets a reset (``no such stream``), unless no honest
    peer would send the message (``garbage``). What a raw pipe sends is garbage too: plain peers are for a
    :class:`~.streamproxy.StreamProxy`.

    Args:
        options: of the socket underneath, and ``protocol.stream.*``.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False, "socket.send_overflow": "block"}
    instead = {"send": "connect() and accept()", "recv": "connect() and accept()"}
    families = ("protocol.stream",)

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        #: The ends that messages may come for, by their ids.
        self._ends: dict[bytes, StreamEnd] = {}
        self._ids = IdPool(self._ends)
        #: The same by pipe, then by id.
        self._by_pipe: dict[Pipe, dict[bytes, StreamEnd]] = {}
        #: How many of them peers have opened, by pipe.
        self._opened: dict[Pipe, int] = {}
        #: Those that have messages in the socket's receive queue.
        self._queued: set[StreamEnd] = set()
        #: Opened by peers, and not accepted yet.
        self._backlog: deque[StreamEnd] = deque()
        self._acceptors = WaitList(self._hub, lambda: self._backlog or self._closing)
        self._outbox: Outbox = Outbox(self._core, self._spawn)
        self._resets = Resets(self._outbox)
        self._suspects = Suspects(self._core, lambda: self.options.get(opts.protocol.stream.probe_interval))
        self._keepalive = Periodic(self._check_interval, self._check_ends, self._spawn)
        #: The greenlet that empties the socket's receive queue, while there is something in it.
        self._queue_reader: Greenlet[..., Any] | None = None
        self._core.on_pipe(self._on_pipe)
        self._core.on_requeue(self._on_requeue)
        self._core.on_message(self._on_message)
        self._core.on_content(self._on_content)

    @property
    def connections(self) -> int:
        """The number of connections that messages may come for, including those that wait for ``accept()``."""
        return len(self._ends)

    def _own_stats(self) -> dict[str, int]:
        return {"connections": self.connections}

    # Opening and accepting

    @overload
    def connect(self, timeout: float | None = None) -> StreamSocket: ...
    @overload
    def connect(self, timeout: str | Address, options: OptionValues | None = None) -> Dialer | Listener: ...
    def connect(
        self, timeout: float | str | Address | None = None, options: OptionValues | None = None
    ) -> StreamSocket | Dialer | Listener:
        """Open a connection to one of the peers. Blocks until the peer has answered, also while there is no peer.

        With an address instead of a timeout, connects the Stream itself, as ``Socket.connect`` does.

        Args:
            timeout: seconds, or an address.
            options: for the dialer or listener of an address.

        Raises:
            Timeout: no answer in time.
            ConnectionRefused: the peer takes no connections, or has too many that wait for ``accept()``.
            PeerGone: its pipe closed before it answered.
            NoIds: 2^30 connections are open.
            NoPeers: nobody is connected, and ``socket.fail_no_peers`` is set.
            Closed: the Stream is closed.
        """
        if isinstance(timeout, (str, Address)):
            return super().connect(timeout, options)
        deadline = Deadline(timeout)
        end = self._make_end()
        try:
            pipe = self._suspects.probe() if self._suspects.pipes else None
            if pipe is None:
                pipe = self._core.next_pipe(timeout)
            assert pipe is not None, "socket.send_overflow is fixed"
            # A close() during the wait has ended it.
            if not end.over:
                # First, as the pipe may break and close during put(); nothing else runs in between.
                self._assign(end, pipe)
                self._core.put(pipe, Message(CONTROL | TO_ONE, source=end.id, content=KEEP_ALIVE))
            end.wait_open(deadline.left())
        except Timeout:
            self._suspects.timed_out(end.pipe, end.received_before)
            end.close(abort=True)
            raise Timeout("connect", timeout) from None
        except BaseException as error:
            if isinstance(error, gevent.Timeout):
                self._suspects.timed_out(end.pipe, end.received_before)
            end.close(abort=True)
            raise
        end.admit(greeted=False)
        self._start_keepalive()
        return self._socket_of(end)

    def accept(self, timeout: float | None = None) -> StreamSocket:
        """Return the next connection that a peer has opened. Blocks until there is one.

        Raises:
            Timeout: none in time.
            NotSupported: ``protocol.stream.acceptable`` is off.
            Closed: the Stream is closed.
        """
        self._core.check()
        if not self.options.get(opts.protocol.stream.acceptable):
            raise NotSupported("accept", "protocol.stream.acceptable is off")
        deadline = Deadline(timeout)
        while True:
            while self._backlog:
                end = self._backlog.popleft()
                if end.error is None or end.receiving.buffer:
                    end.admit(greeted=True)
                    return self._socket_of(end)
            if self._closing:
                raise Closed("Stream")
            if not self._acceptors.wait(deadline.left()):
                raise Timeout("accept", timeout)

    def __iter__(self) -> Iterator[StreamSocket]:
        """Iterate over the connections that peers open; ends when the Stream closes."""
        while True:
            try:
                connection = self.accept()
            except Closed:
                return
            yield connection

    def _socket_of(self, end: StreamEnd) -> StreamSocket:
        return StreamSocket(end, self._core, self.options.get(opts.protocol.stream.keep_alive_interval))

    def _make_end(self) -> StreamEnd:
        self._check_open()
        window = self.options.get(opts.protocol.stream.window)
        context = StreamContext(self._core, self._outbox, self._hub, self._forget, window)
        end = StreamEnd(context, self._ids.new())
        self._ends[end.id] = end
        return end

    def _assign(self, end: StreamEnd, pipe: Pipe | None) -> None:
        """Record the pipe that a connection goes by."""
        self._unassign(end)
        end.pipe = pipe
        if pipe is not None:
            end.received_before = pipe.messages_received
            self._by_pipe.setdefault(pipe, {})[end.id] = end

    def _unassign(self, end: StreamEnd) -> None:
        pipe = end.pipe
        others = self._by_pipe.get(pipe) if pipe is not None else None
        if pipe is not None and others is not None:
            others.pop(end.id, None)
            if not others:
                del self._by_pipe[pipe]

    def _forget(self, end: StreamEnd) -> None:
        """Remove a connection that needs no more messages."""
        if self._ends.pop(end.id, None) is None:
            return
        self._ids.release(end.id)
        self._unassign(end)
        if end.by_peer and end.pipe is not None:
            left = self._opened[end.pipe] = self._opened[end.pipe] - 1
            if not left:
                del self._opened[end.pipe]

    # Pipes; callbacks of the core

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        self._suspects.on_pipe(kind, pipe)
        if kind == "remove":
            self._resets.forget(pipe)
            ends = list(self._by_pipe.get(pipe, {}).values())
            for end in ends[:_PORTION]:
                self._pipe_lost(end, pipe)
            if len(ends) > _PORTION:
                self._spawn(self._rest_lost, ends[_PORTION:], pipe)

    def _rest_lost(self, ends: list[StreamEnd], pipe: Pipe) -> None:
        """End the other connections of a pipe that has closed (a greenlet, if there are many)."""
        for number, end in enumerate(ends):
            if number % _PORTION == 0:
                yield_to_loop()
            if end.pipe is pipe:
                self._pipe_lost(end, pipe)

    def _pipe_lost(self, end: StreamEnd, pipe: Pipe) -> None:
        if end.receiving.queued_in_socket:
            # What had come by the pipe is still in the receive queue.
            end.receiving.pipe_lost = pipe.reason
        else:
            self._lose(end, pipe.reason)

    def _lose(self, end: StreamEnd, reason: str) -> None:
        """End a connection whose pipe has closed."""
        if end.connecting:
            end.fail(PeerGone(reason))
        else:
            end.fail(StreamReset(errno.ECONNRESET, f"its pipe has closed: {reason}"))

    def _on_requeue(self, message: Message, pipe: Pipe | None) -> bool:
        """Record that an unsent opening moves to another pipe."""
        end = self._ends.get(message.source)
        if end is None:
            # Nobody waits for it any more.
            return False
        self._assign(end, pipe)
        return True

    # Messages; callbacks of the core

    def _on_message(self, message: Message) -> bool:
        flags = message.flags
        if flags & SEND_TYPE_MASK == TO_DEST:
            end = self._ends.get(message.destination)
            if end is not None and not flags & ~(SEND_TYPE_MASK | CONTROL):
                if message.source == end.path:
                    if end.deliver(message):
                        return True
                    self._queued.add(end)
                    self._start_queue_reader()
                    return False
                if end.connecting:
                    return self._on_answer(end, message)
            self._stray(message)
        elif flags == TO_ONE | CONTROL and message.content == KEEP_ALIVE and message.hops > 1:
            self._on_opening(message)
        else:
            self._drop(message, "garbage")
        return True

    def _on_content(self, flags: int, source: bytes, destination: bytes) -> ReaderBuffer | None:
        """Return the memory that the content of a large message is to be read into, None if there is none."""
        end = self._ends.get(destination)
        return end.buffer_for_piece() if end is not None and flags == TO_DEST and source == end.path else None

    def _on_answer(self, end: StreamEnd, message: Message) -> bool:
        """Take the first message from the peer that was asked to accept a connection."""
        pipe = end.pipe
        if pipe is None or message.pipe_id != pipe.id:
            self._drop(message, "garbage")
            return True
        self._suspects.answered(pipe.id)
        if message.flags & CONTROL and message.content == RESET:
            end.fail(ConnectionRefused(pipe.peer_address, "the peer takes no connections now"))
            return True
        end.open(pipe, message.source)
        return end.deliver(message)

    def _on_opening(self, message: Message) -> None:
        """Take a connection that a peer opens, or refuse it."""
        pipe = self.pipes.get(message.pipe_id)
        if pipe is None or self._closing:
            return
        refusal = self._refusal(pipe)
        if refusal:
            self._core.count_drop(refusal, message.pipe_id)
            self._resets.send(pipe, message.source, b"")
            return
        end = self._make_end()
        end.by_peer = True
        self._opened[pipe] = self._opened.get(pipe, 0) + 1
        self._assign(end, pipe)
        end.open(pipe, message.source)
        end.greet()
        self._backlog.append(end)
        self._acceptors.wake()
        self._start_keepalive()

    def _refusal(self, pipe: Pipe) -> str:
        """Return why no more connections are taken from a pipe, as in ``counters.drops``; "" if one is."""
        if not self._backlog_not_full() or not self.options.get(opts.protocol.stream.acceptable) or self._ids.used_up:
            return "refused"
        # A peer that does not read must not open and close connections for ever: each leaves messages in the outbox.
        if self._outbox.waiting(pipe) >= _MAX_UNREAD:
            return "refused"
        limit = self.options.get(opts.protocol.stream.max_per_pipe)
        return "too many streams" if limit and self._opened.get(pipe, 0) >= limit else ""

    def _backlog_not_full(self) -> bool:
        """Return whether one more connection may wait for ``accept()``. At the limit, remove those that have died."""
        limit = self.options.get(opts.protocol.stream.accept_queue_size)
        if len(self._backlog) >= limit:
            self._backlog = deque(end for end in self._backlog if end.error is None)
        return len(self._backlog) < limit

    def _stray(self, message: Message) -> None:
        """Drop a message for no connection. Reset its sender, unless that knows already, or the message is a lie."""
        content = message.content
        if len(message.destination) != 4 or message.destination in self._ends:
            self._drop(message, "garbage")
            return
        self._core.count_drop("no such stream", message.pipe_id)
        # It may be the answer to a connect() that has timed out.
        self._suspects.answered(message.pipe_id)
        pipe = self.pipes.get(message.pipe_id)
        needs_no_reset = message.flags & CONTROL and content[:1] in (END, RESET, CREDIT)
        if pipe is not None and not needs_no_reset:
            self._resets.answer(pipe, message)

    # The socket's receive queue: data of peers that know no credit, while nobody reads it

    def _start_queue_reader(self) -> None:
        if self._queue_reader is None:
            self._queue_reader = self._spawn(self._read_queue)

    def _read_queue(self) -> None:
        """Deliver the messages of the receive queue as their data is read (a greenlet, while there are any)."""
        try:
            while True:
                message = self.socket.recv_msg()
                end = self._ends.get(message.destination)
                if end is not None:
                    end.deliver_queued(message)
                if self._core.drained:
                    self._queue_is_empty()
                    return
        except (Closed, ForkedSocketError):
            pass
        finally:
            self._queue_reader = None

    def _queue_is_empty(self) -> None:
        """Deliver messages where they are read again: they cannot overtake any now."""
        queued, self._queued = self._queued, set()
        for end in queued:
            end.receiving.queued_in_socket = False
            if end.receiving.pipe_lost:
                self._lose(end, end.receiving.pipe_lost)

    # Keepalive

    def _start_keepalive(self) -> None:
        if self.options.get(opts.protocol.stream.keep_alive_idle):
            self._keepalive.start()

    def _check_interval(self) -> float:
        """Return the seconds until the next check of all ends, 0 if there is nothing to check."""
        idle: float = self.options.get(opts.protocol.stream.keep_alive_idle)
        if not self._ends or not idle:
            return 0
        interval: float = self.options.get(opts.protocol.stream.keep_alive_interval)
        return min(max(min(idle, interval) / 2, _MIN_CHECK_INTERVAL), _MAX_CHECK_INTERVAL)

    def _check_ends(self, elapsed: float, late: float) -> None:
        """Send keepalives to silent ends, and end those that do not answer."""
        idle = self.options.get(opts.protocol.stream.keep_alive_idle)
        if not idle:
            return
        interval = self.options.get(opts.protocol.stream.keep_alive_interval)
        now = monotonic()
        # While the process did something else, answers may have come unread. While the receive queue is not empty, its
        # pipe may be blocked, and no answer can come.
        excused = late if self._core.drained else elapsed
        for number, end in enumerate(list(self._ends.values()), 1):
            if number % _PORTION == 0:
                yield_to_loop()
            if not end.connecting and end.id in self._ends:
                self._check_end(end, now, excused, idle + end.liveness.probes * interval)

    def _check_end(self, end: StreamEnd, now: float, excused: float, allowed: float) -> None:
        liveness = end.liveness
        if liveness.alive:
            liveness.alive = False
            liveness.since = now
            liveness.probes = 0
            return
        liveness.since += excused
        if now - liveness.since < allowed:
            return
        if liveness.probes < self.options.get(opts.protocol.stream.keep_alive_probes):
            end.probe()
        else:
            silent = now - liveness.since
            end.fail(StreamReset(errno.ECONNRESET, f"its other end was silent for {silent:.1f} s"))

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """End all connections, and tell their other ends."""
        self._acceptors.wake_all()
        for end in self._backlog:
            end.close(abort=True)
        self._backlog.clear()
        for number, end in enumerate(list(self._ends.values()), 1):
            if number % _PORTION == 0:
                yield_to_loop()
            if not end.connecting:
                end.shut_write()
            end.fail(StreamClosed(errno.EBADF, "its Stream was closed"))
        self._outbox.flush(deadline.left())
