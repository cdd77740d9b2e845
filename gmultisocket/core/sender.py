"""The sending third of a socket: which pipes a message goes to, and what happens when they are full.

* To one: the next pipe in turn that can take a message. While none can, senders wait in the order in which they came.
  A message that was queued for a pipe which then closed goes to another one, before anything newer.
* To all: every pipe, each by its own means; a full one is treated as ``socket.send_overflow`` says, after the others
  have had theirs.
* To a destination: the pipe that the path's first id names.

Nothing here waits for one pipe while another could be served, and nothing is locked: the methods that do not block
run to their end before another greenlet does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import gevent
from gevent.hub import Hub

from .. import options as opts
from ..counters import Counters
from ..errors import BadMessage, BrokenPath, Closed, MessageDropped, MessageTooLong, NoPeers, NotSupported, Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import Option, Options, follow
from ..wire import (
    DEFAULT_TTL,
    INTERNAL,
    MAX_CONTENT,
    MAX_IDS,
    RAW,
    SEND_TYPE_MASK,
    TO_ALL,
    TO_DEST,
    TO_ONE,
    Message,
    check_path,
    encode_frame,
    first_id,
)
from .bytespipe import FLUSH_BYTES, BytesPipe
from .fanout import FanOut
from .framedpipe import FramedPipe
from .pipe import Pipe, PipeState
from .rotation import Rotation

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Sender", "as_content"]


def as_content(content: object) -> bytes:
    """Return a bytes-like object's bytes; a mutable one is copied, so the caller may change it after sending.

    Raises:
        TypeError: it is not bytes-like; text must be encoded by the caller, who knows how.
    """
    if isinstance(content, bytes):
        return content
    if isinstance(content, str):
        raise TypeError("content must be bytes-like, not str: encode it, e.g. content.encode()")
    try:
        return bytes(memoryview(content))  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"content must be bytes-like, not {type(content).__name__}") from None


class Sender:
    """Sends for one socket.

    Attributes:
        queue_limit: messages that a pipe may have queued (``socket.send_queue_size``).
        queue_bytes: bytes that it may have queued, 0 for any number.
        flush_bytes: queued bytes that do not wait for the end of the turn.
        ttl: the hops that a message may make (``socket.send_ttl``).
        max_content: the longest content that may be sent, in bytes.
        counters: losses that are no pipe's.
        moved: a protocol's, see ``ProtocolSocket.on_requeue``; None without one.
    """

    def __init__(self, hub: Hub, options: Options, pipes: Mapping[int, Pipe]) -> None:
        self._hub = hub
        self._pipes = pipes
        self._closed = ""
        self.queue_bytes = 0
        #: Pipes that take a to-one message now, the next one first.
        self._ready: Rotation[Pipe] = Rotation()
        #: Those who wait to send to one.
        self._line = WaitList(hub, self._may_go_on)
        #: Those whose to-all message some full pipes have not got yet.
        self._lagging = WaitList(hub, lambda: True)
        #: All pipes that to-one messages may go to, full or not.
        self._takers: dict[Pipe, None] = {}
        #: Accepted to-one messages whose pipe closed before they left.
        self._again: deque[Message] = deque()
        self._sending_again = False
        #: Whether ``send`` may take the first ready pipe without looking at anything else.
        self._flowing = False
        self._fan_outs: dict[str, FanOut] = {}
        #: Pipes that are in step with no fan-out: to-all messages are put into each.
        self._loose: dict[Pipe, None] = {}
        self._dirty_pipes: list[BytesPipe] = []
        self._dirty_fan_outs: list[FanOut] = []
        self._turn_scheduled = False
        self._spent_messages = 0
        self._spent_bytes = 0
        self._owes_turn = False
        self.counters = Counters()
        self.moved: Callable[[Message, Pipe | None], bool] | None = None
        self._options = options
        follow(options, self, self._copied)

    # Options

    def _set_overflow(self, value: str) -> None:
        self._overflow = value
        self._wake_senders()

    def _set_best_effort(self, value: bool) -> None:
        self._best_effort = value
        self._wake_senders()

    def _set_fail_no_peers(self, value: bool) -> None:
        self._fail_no_peers = value
        self._wake_senders()

    def _set_yield_messages(self, value: int) -> None:
        self._yield_messages = value

    def _set_yield_bytes(self, value: int) -> None:
        self.yield_bytes = value

    def _set_no_send(self, value: bool) -> None:
        self._no_send = value
        self._look()
        self._wake_senders()

    def _set_queue_limit(self, value: int) -> None:
        self.queue_limit = value
        self._set_plain_limit()
        self._limits_changed()
        self._look()

    def _set_plain_limit(self) -> None:
        #: Up to how many messages a pipe may queue one without looking at anything else.
        self.plain_limit = 0 if self.queue_bytes else self.queue_limit

    def _set_queue_bytes(self, value: int) -> None:
        self.queue_bytes = value
        self._set_plain_limit()
        self.flush_bytes = min(value, FLUSH_BYTES) if value else FLUSH_BYTES
        self._limits_changed()

    def _limits_changed(self) -> None:
        # A pipe that has room again may be given a message, break under it, and be gone.
        for pipe in list(self._pipes.values()):
            pipe.limits_changed()

    def _set_ttl(self, value: int) -> None:
        self.ttl = value or DEFAULT_TTL

    def _set_max_content(self, value: int) -> None:
        limit = self._options.get(opts.socket.max_send_content_length)
        if limit < 0:
            limit = self._options.get(opts.connector.pipe.max_recv_content_length)
        self.max_content = limit or MAX_CONTENT

    #: The options that matter for every message, of which a sender keeps copies.
    _copied: ClassVar[Mapping[Option[Any], Callable[..., object]]] = {
        opts.socket.send_queue_size: _set_queue_limit,
        opts.socket.send_queue_bytes: _set_queue_bytes,
        opts.socket.send_ttl: _set_ttl,
        opts.socket.send_overflow: _set_overflow,
        opts.socket.send_best_effort: _set_best_effort,
        opts.socket.fail_no_peers: _set_fail_no_peers,
        opts.socket.yield_messages: _set_yield_messages,
        opts.socket.yield_bytes: _set_yield_bytes,
        opts.socket.no_send: _set_no_send,
        opts.socket.max_send_content_length: _set_max_content,
        opts.connector.pipe.max_recv_content_length: _set_max_content,
    }

    # Sending

    def send(self, content: Buffer, timeout: float | None) -> None:
        """Send to one peer; see ``Socket.send``."""
        if type(content) is not bytes:
            content = as_content(content)
        if len(content) > self.max_content:
            raise MessageTooLong(len(content), self.max_content)
        if not self._flowing and not self._wait_in_line(timeout):
            return
        ready = self._ready
        pipe = ready.first
        assert pipe is not None
        if ready.several:
            ready.turn()
        pipe.put_one(self.ttl, content)

    def next_pipe(self, timeout: float | None) -> Pipe | None:
        """Return the pipe that takes the next to-one message; see ``ProtocolSocket.next_pipe``."""
        if not self._flowing and not self._wait_in_line(timeout):
            return None
        ready = self._ready
        pipe = ready.first
        if ready.several:
            ready.turn()
        return pipe

    def send_to(self, destination: bytes, content: Buffer, timeout: float | None) -> None:
        """Send along a path; see ``Socket.send_to``."""
        destination = check_path(destination)
        content = self._check_content(content)
        self._send_to_pipe((TO_DEST, self.ttl, b"", destination, content), timeout)

    def send_all(self, content: Buffer, timeout: float | None, flags: int = 0) -> int:
        """Send to every peer; see ``Socket.send_all``."""
        content = self._check_content(content)
        return self._send_to_all((TO_ALL | flags, self.ttl, b"", b"", content), timeout)

    def send_some(self, pipes: Iterable[Pipe], content: Buffer, timeout: float | None, flags: int = 0) -> int:
        """Send to all of some pipes, for protocols that know who wants a message. Returns to how many it went."""
        fields = (TO_ALL | flags, self.ttl, b"", b"", self._check_content(content))
        self._check_open()
        if self._owes_turn:
            self._yield()
        return self._put_in_each(list(pipes), fields, timeout)

    def send_group(self, pipes: Collection[Pipe], content: Buffer, timeout: float | None, flags: int = 0) -> int:
        """Send to all of some pipes, each named once; see ``ProtocolSocket.send_group``."""
        # All that there are is what a fan-out is for: the message is put once, and not into each.
        if len(pipes) == len(self._pipes):
            return self.send_all(content, timeout, flags)
        return self.send_some(pipes, content, timeout, flags)

    def send_msg(self, message: Message, timeout: float | None) -> int:
        """Send or forward a message by its own fields; see ``Socket.send_msg``."""
        flags, ttl, source, destination = message.flags, message.ttl, message.source, message.destination
        content = self._check_content(message.content)
        kind = flags & SEND_TYPE_MASK
        if flags & INTERNAL:
            raise NotSupported("sending an internal message", "flag 0x04 is for what sockets tell each other")
        if not 0 <= flags <= 255 or kind not in (TO_ONE, TO_ALL, TO_DEST):
            raise BadMessage(f"flags {flags:#x} name no send type")
        if flags & RAW:
            raise MessageDropped("raw")
        if ttl <= 0:
            raise MessageDropped("ttl")
        if source:
            check_path(source)
        if destination:
            check_path(destination)
        # A peer puts its own id in front of the source, and closes the pipe if that is one too many. Of a message to a
        # destination it takes another id off.
        if len(source) + len(destination) >= 4 * (MAX_IDS + (kind == TO_DEST)):
            raise MessageDropped("hops")
        fields = (flags, min(ttl, 255), bytes(source), bytes(destination), content)
        if kind == TO_ALL:
            return self._send_to_all(fields, timeout)
        if kind == TO_DEST:
            if not destination:
                raise MessageDropped("arrived")
            self._send_to_pipe(fields, timeout)
            return 1
        if not self._flowing and not self._wait_in_line(timeout):
            return 0
        self._ready.take().put(*fields)
        return 1

    def _check_content(self, content: object) -> bytes:
        content = as_content(content)
        if len(content) > self.max_content:
            raise MessageTooLong(len(content), self.max_content)
        return content

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("socket", self._closed)
        if self._no_send:
            raise NotSupported("sending", "the socket has socket.no_send set")

    def _yield(self) -> None:
        """Let others run: this sender has sent its share without waiting once. Before a message is taken, not after."""
        self._owes_turn = False
        self._spent_messages = self._spent_bytes = 0
        gevent.sleep(0)
        for fan_out in self._fan_outs.values():
            fan_out.go_on()
        self._look()
        self._check_open()

    # To one

    def _wait_in_line(self, timeout: float | None) -> bool:
        """Block until it is this greenlet's turn to take the first ready pipe.

        Returns:
            False if the message is not to be sent: a policy dropped it.
        """
        deadline = Deadline(timeout)
        woken = False
        # A greenlet that tries again and again must not keep the loop, whatever comes of it.
        self.spend(1, 0)
        try:
            while True:
                self._check_open()
                if self._owes_turn and not woken:
                    self._yield()
                if woken or not self._line.waiters:
                    if self._has_ready():
                        return True
                    if not self._takers and (self._fail_no_peers or self._best_effort):
                        raise NoPeers
                    if self._takers and not self._make_way():
                        return False
                    if self._ready.first is not None:
                        return True
                woken = self._line.wait(deadline.left())
                if not woken:
                    raise Timeout("send", timeout)
        finally:
            self._look()

    def _may_go_on(self) -> bool:
        """Return whether the first in line can be told now what becomes of its message."""
        if self._closed or self._no_send or self._has_ready():
            return True
        if self._takers:
            return self._may_not_wait()
        return self._best_effort or self._fail_no_peers

    def _has_ready(self) -> bool:
        """Return whether a pipe takes a message now."""
        if not self.queue_limit:
            # Where nothing may wait, a pipe of this process has room only while its peer waits for a message: whoever
            # waited when the pipe said so may have given up since.
            while (pipe := self._ready.first) is not None:
                pipe.limits_changed()
                if not pipe.full:
                    break
        return self._ready.first is not None

    def _make_way(self) -> bool:
        """Do what the overflow policy says when every pipe is full. False if that is to drop the new message."""
        if self._best_effort:
            raise MessageDropped("overflow")
        if self._overflow == "block":
            return True
        # The one whose turn it is; it goes to the end of the row.
        pipe = next(iter(self._takers))
        del self._takers[pipe]
        self._takers[pipe] = None
        return self._make_room(pipe)

    def _make_room(self, pipe: Pipe) -> bool:
        """Apply a policy other than block to one full pipe. False if the new message is dropped."""
        self.spend(1, 0)
        if self._overflow == "drop_oldest":
            # A limit in bytes may take several small ones for a large one.
            while pipe.full and pipe.drop_oldest():
                pipe.limits_changed()
            if not pipe.full:
                return True
        if self._overflow == "disconnect":
            pipe.drop("overflow")
            pipe.close("its send queue was full (socket.send_overflow is disconnect)")
            return False
        pipe.drop("overflow")
        return False

    def offer_again(self, messages: list[Message]) -> None:
        """Take back to-one messages of a pipe that closed before they left."""
        moved = self.moved
        if moved is not None:
            messages = [message for message in messages if moved(message, None)]
        if self._sending_again:
            # Their next pipe has broken as well: they stay in front of those that were behind them.
            self._again.extendleft(reversed(messages))
        elif messages:
            self._again.extend(messages)
            self._send_again()

    def _send_again(self) -> None:
        if self._sending_again:
            # A pipe has broken under the message that it was given below. That message is in line again; a call
            # within the call for each broken pipe would run out of stack when hundreds break at once.
            return
        self._sending_again = True
        try:
            while self._again and (pipe := self._ready.first) is not None:
                message = self._again.popleft()
                if self.moved is not None and not self.moved(message, pipe):
                    continue
                self._ready.turn()
                pipe.put(message.flags, message.ttl, message.source, message.destination, message.content)
        finally:
            self._sending_again = False

    # To a destination

    def _send_to_pipe(self, fields: tuple[int, int, bytes, bytes, bytes], timeout: float | None) -> None:
        self._check_open()
        if self._owes_turn:
            self._yield()
        pipe_id = first_id(fields[3])
        pipe = self._pipes.get(pipe_id)
        if pipe is None or pipe.state is not PipeState.OPEN:
            raise BrokenPath(pipe_id)
        if not self.queue_limit:
            pipe.limits_changed()
        if (pipe.full or pipe.awaited) and not self._wait_for(pipe, Deadline(timeout)):
            if pipe.state is not PipeState.OPEN:
                raise BrokenPath(pipe_id)
            if self._best_effort:
                raise MessageDropped("overflow")
            if self._overflow == "block":
                raise Timeout("send_to", timeout)
            return
        pipe.put(*fields)

    def _wait_for(self, pipe: Pipe, deadline: Deadline) -> bool:
        """Make or wait for room in one pipe. False if there is none in time, or the pipe has closed."""
        woken = False
        while (pipe.full or (pipe.awaited and not woken)) and pipe.state is PipeState.OPEN:
            if self._may_not_wait():
                return self._force(pipe)
            woken = pipe.room().wait(deadline.left())
            if not woken:
                self.spend(1, 0)
                return False
            self._check_open()
        return pipe.state is PipeState.OPEN

    def _may_not_wait(self) -> bool:
        return self._best_effort or self._overflow != "block"

    def _force(self, pipe: Pipe) -> bool:
        """Do what the options say instead of waiting for one full pipe. False if the new message is dropped."""
        if self._best_effort:
            pipe.drop("overflow")
            return False
        return self._make_room(pipe)

    def wait_room(self, pipe: Pipe, timeout: float | None) -> bool:
        """Block until one pipe takes another message; see ``ProtocolSocket.wait_writable``."""
        self._check_open()
        if self._owes_turn:
            self._yield()
        deadline = Deadline(timeout)
        while pipe.full and pipe.state is PipeState.OPEN:
            if not pipe.room().wait(deadline.left()):
                return False
            self._check_open()
        return pipe.state is PipeState.OPEN

    # To all

    def _send_to_all(self, fields: tuple[int, int, bytes, bytes, bytes], timeout: float | None) -> int:
        self._check_open()
        if self._owes_turn:
            self._yield()
        # Looked at before anything is sent: who falls out of step by this message has had it.
        loose = list(self._loose)
        count = 0
        frame = b""
        for fan_out in self._fan_outs.values():
            if fan_out.members:
                frame = frame or encode_frame(*fields)
                count += len(fan_out.members)
                fan_out.put(frame)
        if not count:
            # Whatever writes counts for itself; a greenlet that sends to nobody at all must let others run as well.
            self.spend(len(loose) or 1, 0)
        return self._put_in_each(loose, fields, timeout, count) if loose else count

    def _put_in_each(
        self, pipes: list[Pipe], fields: tuple[int, int, bytes, bytes, bytes], timeout: float | None, count: int = 0
    ) -> int:
        """Send to each of some pipes. Returns to how many it went, ``count`` others included."""
        frames: dict[str, bytes] = {}
        full: list[Pipe] = []
        for pipe in pipes:
            if pipe.full or pipe.state is not PipeState.OPEN:
                full.append(pipe)
                continue
            count += 1
            key = pipe.fan_out_key
            if key is None:
                pipe.put(*fields)
                continue
            assert isinstance(pipe, FramedPipe)
            frame = frames.get(key)
            if frame is None:
                frame = frames[key] = pipe.wrap(encode_frame(*fields))
            pipe.put_frame(frame)
        return self._put_when_room(full, fields, timeout, count) if full else count

    def _put_when_room(
        self, full: list[Pipe], fields: tuple[int, int, bytes, bytes, bytes], timeout: float | None, count: int
    ) -> int:
        """Serve each of the full pipes when it has room. Who is not served when the wait ends has lost the message."""
        deadline = Deadline(timeout)
        try:
            while True:
                waiting = []
                for pipe in full:
                    if pipe.state is not PipeState.OPEN:
                        continue
                    if not pipe.full or (self._may_not_wait() and self._force(pipe)):
                        pipe.put(*fields)
                        count += 1
                    elif not self._may_not_wait():
                        waiting.append(pipe)
                full = waiting
                if not full:
                    return count
                if not self._lagging.wait(deadline.left()):
                    self.spend(1, 0)
                    raise Timeout("send_all", timeout, count)
                self._check_open()
        finally:
            for pipe in full:
                if pipe.state is PipeState.OPEN:
                    pipe.drop("timeout")

    def _wake_senders(self) -> None:
        """Have everybody who waits look again at what there is to wait for."""
        self._line.wake_all()
        self._lagging.wake_all()
        for pipe in self._pipes.values():
            pipe.wake_senders()

    # What pipes tell

    def add(self, pipe: Pipe) -> None:
        """Take in a new pipe."""
        if pipe.takes_to_one:
            self._takers[pipe] = None
            if not pipe.full:
                self._ready.add(pipe)
        self._loose[pipe] = None
        if isinstance(pipe, BytesPipe):
            self.mark(pipe)
        self._readier()

    def remove(self, pipe: Pipe) -> None:
        """Forget a pipe."""
        self._takers.pop(pipe, None)
        self._loose.pop(pipe, None)
        self._unready(pipe)
        # Without a peer some options have a sender fail instead of waiting.
        self._line.wake()
        self._lagging.wake_all()
        if isinstance(pipe, BytesPipe) and pipe.fan_out is not None:
            pipe.leave_fan_out()
            del self._loose[pipe]

    def pipe_is_full(self, pipe: Pipe) -> None:
        """Hear that a pipe takes no more for now."""
        self._unready(pipe)

    def pipe_has_room(self, pipe: Pipe) -> None:
        """Hear that a full pipe takes messages again."""
        if pipe in self._takers:
            self._ready.add(pipe)
            if self._again:
                self._send_again()
        # Whoever is woken first may fill the pipe again: each way to send is the first in its turn, and none starves.
        wakes = (self._line.wake, pipe.wake_next, self._lagging.wake_all)
        pipe.turn = (pipe.turn + 1) % len(wakes)
        for wake in wakes[pipe.turn :] + wakes[: pipe.turn]:
            wake()
        self._look()

    def _unready(self, pipe: Pipe) -> None:
        self._ready.discard(pipe)
        if self._ready.first is None:
            self._look()

    def _readier(self) -> None:
        if self._again:
            self._send_again()
        self._line.wake()
        self._look()

    def _look(self) -> None:
        """Find out anew whether a sender may go ahead at once."""
        # Without a queue, each send has to find out anew which pipes take a message.
        usual = self._ready.first is not None and self.queue_limit and not self._line.waiters
        self._flowing = bool(usual and not (self._closed or self._no_send or self._owes_turn))

    def fell_out(self, pipe: BytesPipe) -> None:
        """Hear that a pipe is out of step."""
        self._loose[pipe] = None

    def rejoin(self, pipe: BytesPipe) -> None:
        """Put a pipe that has nothing queued in step again. Called when a turn ends, after the fan-outs are empty."""
        key = pipe.fan_out_key
        if key is None or pipe not in self._loose:
            return
        fan_out = self._fan_outs.get(key)
        if fan_out is None:
            assert isinstance(pipe, FramedPipe)
            fan_out = self._fan_outs[key] = FanOut(self, pipe.wrap)
        if not fan_out.pending:
            del self._loose[pipe]
            fan_out.add(pipe)

    # Turns of the loop

    def mark(self, pipe: BytesPipe) -> None:
        """Have a pipe's ``end_turn`` called when this turn of the loop ends."""
        self._dirty_pipes.append(pipe)
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._hub.loop.run_callback(self.end_turn)

    def mark_fan_out(self, fan_out: FanOut) -> None:
        """Have a fan-out's ``end_turn`` called when this turn of the loop ends."""
        self._dirty_fan_outs.append(fan_out)
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._hub.loop.run_callback(self.end_turn)

    def end_turn(self) -> None:
        """Send what this turn has left to be sent. Called in the hub, and by ``close()``."""
        self._turn_scheduled = False
        self._spent_messages = self._spent_bytes = 0
        if self._owes_turn:
            self._owes_turn = False
            self._look()
        fan_outs, self._dirty_fan_outs = self._dirty_fan_outs, []
        pipes, self._dirty_pipes = self._dirty_pipes, []
        # Fan-outs first: a pipe may come back in step only when nothing is pending there.
        for fan_out in fan_outs:
            fan_out.end_turn()
        for pipe in pipes:
            pipe.end_turn()

    def spend(self, messages: int, size: int) -> None:
        """Count what was sent without waiting; past the budget the next sender yields first."""
        self._spent_messages += messages
        self._spent_bytes += size
        if self._spent_messages >= self._yield_messages or self._spent_bytes >= self.yield_bytes:
            self._owes_turn = True
            self._flowing = False

    # Closing

    def stop(self, reason: str) -> None:
        """Refuse everything from now on, and let those who wait know. What is queued stays."""
        self._closed = reason
        self._flowing = False
        self._wake_senders()

    def lose_rest(self) -> int:
        """Give up the messages that no pipe is left for; return how many."""
        lost = len(self._again)
        self._again.clear()
        self.counters.drop("closed", lost)
        return lost
