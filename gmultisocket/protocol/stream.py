"""Streams: connections as TCP has them, any number over one Socket, and through switches.

* Who talks to whom: a Stream with any other, each of which may open connections and accept them. To open one, a Stream
  asks one peer, fairly chosen; whoever accepts it is at the other end of it from then on.
* On the wire: who opens a connection sends 0x00 (flag 0x20, control) to one, with an id of its own, 4 bytes, as the
  source; who accepts it answers 0x01 along the path that this came by, with an id of its own as the source. From then
  on each end sends to the other along such a path. :mod:`.link` has what they say.
* What is lost, and when: nothing, while the pipes on the way live. When the first of them closes, a connection is reset
  at once; when one behind a switch does, it is when its other end does not answer any more, as said by
  ``protocol.stream.keep_alive_*``. A connection is bound to its way and does not come back: open another one. (Switches
  on the way must not drop: leave ``socket.send_overflow`` of their sockets at ``block``. A stream sees no gap.)

A Go program may be at the other end. It never says that its data has ended, nor that it is gone; and it takes any
amount of data and gives it without a limit, so that its data may hold up a whole pipe where nobody reads it.

Source: protocol/stream/stream.go of the Go code. Beyond it: end of data, credit, resets.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any, Literal, overload

import gevent
from gevent import Greenlet, get_hub

from .. import options as opts
from ..address import Address
from ..core.dialer import Dialer
from ..core.ids import next_pipe_id
from ..core.listener import Listener
from ..core.pipe import Pipe
from ..errors import Closed, ConnectionRefused, ForkedSocketError, NotSupported, PeerGone, StreamReset, Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..wire import CONTROL, SEND_TYPE_MASK, TO_DEST, TO_ONE, Message, pack_id
from .base import Protocol
from .connection import Connection
from .link import CREDIT, END, KEEP_ALIVE, RESET, Carrier, Link
from .outbox import Outbox

__all__ = ["Connection", "Stream"]

#: Resets that may wait for one pipe. More are not worth the memory: whoever is not told finds out by asking.
_MAX_RESETS = 1024
#: How often connections are looked at, in seconds, whatever their options say.
_SHORTEST_LOOK, _LONGEST_LOOK = 0.005, 1.0


class Stream(Protocol):
    """Opens and accepts connections. Iterable: ``for connection in stream`` accepts.

    What is for no connection is dropped: with a word to who sent it (``no such stream``), or none, if it is nothing
    that an honest peer sends (``garbage``). That is all that a raw pipe has to offer: plain peers are for a
    :class:`~.streamproxy.StreamProxy`.

    Args:
        options: of the socket underneath, and ``protocol.stream.*``.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False, "socket.send_overflow": "block"}
    instead = {"send": "connect() and accept()", "recv": "connect() and accept()"}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        #: Who gets what comes, by the id that it is sent to.
        self._links: dict[bytes, Link] = {}
        #: The same by the pipe that they go by.
        self._by_pipe: dict[Pipe, dict[bytes, Link]] = {}
        #: Opened by peers, and not accepted yet.
        self._backlog: deque[Link] = deque()
        self._acceptors = WaitList(self._hub, lambda: self._backlog or self._closing)
        self._outbox = Outbox(self._seam, self._spawn)
        self._watcher: Greenlet[..., Any] | None = None
        self._late: Greenlet[..., Any] | None = None
        self._seam.on_pipe(self._on_pipe)
        self._seam.on_move(self._on_move)
        self._seam.on_message(self._on_message)

    @property
    def connections(self) -> int:
        """How many connections there are that something may come for, those that wait for ``accept()`` included."""
        return len(self._links)

    # Opening and accepting

    @overload
    def connect(self, timeout: float | None = None) -> Connection: ...
    @overload
    def connect(self, timeout: str | Address, options: OptionValues | None = None) -> Dialer | Listener: ...
    def connect(
        self, timeout: float | str | Address | None = None, options: OptionValues | None = None
    ) -> Connection | Dialer | Listener:
        """Open a connection to one of the peers. Blocks until it has answered, also while there is no peer.

        Given an address instead of a timeout, connects the Stream itself, as ``Socket.connect`` does.

        Args:
            timeout: seconds, or an address.
            options: for the dialer or listener that an address stands for.

        Raises:
            Timeout: nobody has answered in time.
            ConnectionRefused: the peer takes no connections, or no more than it has.
            PeerGone: its pipe closed before it answered.
            NoPeers: nobody is connected, and ``socket.fail_no_peers`` is set.
            Closed: the Stream is closed.
        """
        if isinstance(timeout, (str, Address)):
            return super().connect(timeout, options)
        deadline = Deadline(timeout)
        link = self._make_link()
        try:
            self._seam.send_one(KEEP_ALIVE, timeout, lambda pipe: self._put_on(link, pipe), CONTROL, link.id)
            link.wait_open(deadline.left())
        except Timeout:
            link.close(abort=True)
            raise Timeout("connect", timeout) from None
        except BaseException:
            link.close(abort=True)
            raise
        link.admit(greeted=False)
        self._watch()
        return self._connection(link)

    def accept(self, timeout: float | None = None) -> Connection:
        """Return the next connection that a peer has opened. Blocks until there is one.

        Raises:
            Timeout: none in time.
            NotSupported: ``protocol.stream.acceptable`` is off.
            Closed: the Stream is closed.
        """
        self._seam.check()
        if not self.options.get(opts.protocol.stream.acceptable):
            raise NotSupported("accept", "protocol.stream.acceptable is off")
        deadline = Deadline(timeout)
        while True:
            while self._backlog:
                link = self._backlog.popleft()
                if link.error is None or link.buffer:
                    link.admit(greeted=True)
                    return self._connection(link)
            if self._closing:
                raise Closed("Stream")
            if not self._acceptors.wait(deadline.left()):
                raise Timeout("accept", timeout)

    def __iter__(self) -> Iterator[Connection]:
        """Iterate over the connections that peers open; ends when the Stream closes."""
        while True:
            try:
                connection = self.accept()
            except Closed:
                return
            yield connection

    def _connection(self, link: Link) -> Connection:
        return Connection(link, self._seam, self.options.get(opts.protocol.stream.keep_alive_interval))

    def _make_link(self) -> Link:
        self._seam.check()
        if self._closing:
            raise Closed("Stream")
        window = self.options.get(opts.protocol.stream.window)
        link = Link(Carrier(self._seam, self._outbox, self._hub, self._forget, window), pack_id(next_pipe_id()))
        self._links[link.id] = link
        return link

    def _put_on(self, link: Link, pipe: Pipe | None) -> None:
        """Know by which pipe a connection goes."""
        if link.pipe is not None:
            self._by_pipe.get(link.pipe, {}).pop(link.id, None)
        link.pipe = pipe
        if pipe is not None:
            self._by_pipe.setdefault(pipe, {})[link.id] = link

    def _forget(self, link: Link) -> None:
        """Hear that a connection wants nothing more."""
        if self._links.pop(link.id, None) is not None and link.pipe is not None:
            there = self._by_pipe.get(link.pipe, {})
            there.pop(link.id, None)
            if not there:
                self._by_pipe.pop(link.pipe, None)

    # What happens to pipes; callbacks of the seam

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            return
        for link in list(self._by_pipe.get(pipe, {}).values()):
            if link.spilled:
                # What had come by the pipe is still in the receive queue.
                link.orphaned = pipe.reason
            else:
                self._lose(link, pipe.reason)

    def _lose(self, link: Link, reason: str) -> None:
        if link.connecting:
            link.fail(PeerGone(reason))
        else:
            link.fail(StreamReset(errno.ECONNRESET, f"its pipe has closed: {reason}"))

    def _on_move(self, message: Message, pipe: Pipe | None) -> bool:
        """See the opening of a connection go to another peer, as it had not left for the first one."""
        link = self._links.get(message.source)
        if link is None:
            # Nobody waits for it any more.
            return False
        self._put_on(link, pipe)
        return True

    # What comes; callbacks of the seam

    def _on_message(self, message: Message) -> bool:
        flags = message.flags
        if flags & SEND_TYPE_MASK == TO_DEST:
            link = self._links.get(message.destination)
            if link is not None and not flags & ~(SEND_TYPE_MASK | CONTROL):
                if message.source == link.path:
                    if link.take(message):
                        return True
                    self._take_later()
                    return False
                if link.connecting:
                    return self._answered(link, message)
            self._stray(message)
        elif flags == TO_ONE | CONTROL and message.content == KEEP_ALIVE and message.hops > 1:
            self._opened(message)
        else:
            self._drop(message, "garbage")
        return True

    def _answered(self, link: Link, message: Message) -> bool:
        """Take the first message from whoever has accepted a connection, or has not."""
        pipe = link.pipe
        if pipe is None or message.pipe_id != pipe.id:
            self._drop(message, "garbage")
            return True
        if message.flags & CONTROL and message.content == RESET:
            link.fail(ConnectionRefused(pipe.peer_address, "the peer takes no connections now"))
            return True
        link.open(pipe, message.source)
        return link.take(message)

    def _opened(self, message: Message) -> None:
        """Take a connection that a peer opens, if there is room for it."""
        pipe = self.pipes.get(message.pipe_id)
        if pipe is None or self._closing:
            return
        if not self._has_room() or not self.options.get(opts.protocol.stream.acceptable):
            self._seam.count_drop("refused", message.pipe_id)
            self._reset(pipe, message.source, b"")
            return
        link = self._make_link()
        self._put_on(link, pipe)
        link.open(pipe, message.source)
        link.greet()
        self._backlog.append(link)
        self._acceptors.wake()
        self._watch()

    def _has_room(self) -> bool:
        """Return whether one more connection may wait to be accepted. Those that have died meanwhile make room."""
        limit = self.options.get(opts.protocol.stream.accept_queue_size)
        if len(self._backlog) >= limit:
            self._backlog = deque(link for link in self._backlog if link.error is None)
        return len(self._backlog) < limit

    def _stray(self, message: Message) -> None:
        """Take what is for no connection; tell its sender, unless it knows, or is not to be believed."""
        content = message.content
        if len(message.destination) != 4 or message.destination in self._links:
            self._drop(message, "garbage")
            return
        self._seam.count_drop("no such stream", message.pipe_id)
        pipe = self.pipes.get(message.pipe_id)
        says_end = message.flags & CONTROL and content[:1] in (END, RESET, CREDIT)
        if pipe is not None and not says_end:
            self._reset(pipe, message.source, message.destination)

    def _reset(self, pipe: Pipe, path: bytes, ident: bytes) -> None:
        if self._outbox.waiting(pipe) < _MAX_RESETS:
            message = Message(CONTROL | TO_DEST, source=ident, destination=path, content=RESET)
            self._outbox.post(pipe, (RESET, path), message)

    # What comes from peers without credit, and nobody reads

    def _take_later(self) -> None:
        if self._late is None:
            self._late = self._spawn(self._take_in_turn)

    def _take_in_turn(self) -> None:
        """Hand out what is in the receive queue, as there is room for it (a greenlet, while there is something)."""
        try:
            while True:
                message = self.socket.recv_msg()
                link = self._links.get(message.destination)
                if link is not None:
                    link.take_later(message)
                if self._seam.drained:
                    self._is_drained()
                    return
        except (Closed, ForkedSocketError):
            pass
        finally:
            self._late = None

    def _is_drained(self) -> None:
        """Have what comes taken at once again, now that it overtakes nothing."""
        for link in [link for link in self._links.values() if link.spilled]:
            link.spilled = False
            if link.orphaned:
                self._lose(link, link.orphaned)

    # Keepalive

    def _watch(self) -> None:
        if self._watcher is None and self.options.get(opts.protocol.stream.keep_alive_idle):
            self._watcher = self._spawn(self._keep_alive)

    def _keep_alive(self) -> None:
        """Ask after ends that are silent, and end those that do not answer (a greenlet, while there are any)."""
        mine = opts.protocol.stream
        try:
            while self._links and (idle := self.options.get(mine.keep_alive_idle)):
                interval = self.options.get(mine.keep_alive_interval)
                step = min(max(min(idle, interval) / 2, _SHORTEST_LOOK), _LONGEST_LOOK)
                before = monotonic()
                gevent.sleep(step)
                now = monotonic()
                # Answers may have come while nobody could read them, and cannot while their pipe is held up.
                late = max(0.0, now - before - step) if self._seam.drained else now - before
                for link in list(self._links.values()):
                    if not link.connecting:
                        self._look_at(link, now, late, idle + link.probes * interval)
        finally:
            self._watcher = None

    def _look_at(self, link: Link, now: float, late: float, allowed: float) -> None:
        if link.alive:
            link.alive = False
            link.since = now
            link.probes = 0
            return
        link.since += late
        if now - link.since < allowed:
            return
        if link.probes < self.options.get(opts.protocol.stream.keep_alive_probes):
            link.probe()
        else:
            silent = now - link.since
            link.fail(StreamReset(errno.ECONNRESET, f"its other end was silent for {silent:.1f} s"))

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """Say goodbye to the other ends."""
        self._acceptors.wake_all()
        for link in self._backlog:
            link.close(abort=True)
        self._backlog.clear()
        for link in list(self._links.values()):
            if not link.connecting:
                link.say_end()
            link.fail(Closed("Stream"))
        self._outbox.flush(deadline.left())
