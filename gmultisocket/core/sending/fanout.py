"""To-all messages: to every pipe, or to some of them.

Pipes that write the same bytes for a message, and have nothing else queued, are *in step*. They share a
:class:`FanOut`: a to-all message is put into it once, and not into each pipe's queue. When the turn of the loop ends,
the messages of the turn are joined once and given to the kernel pipe by pipe. A pipe falls out of step when something
is sent to it alone, or when the kernel takes no more for it. It then writes alone, from its own queue (the bytes
themselves stay shared), and is in step again when that queue is empty.

Of many pipes, only the first ones get a message at once. The others get it when the turn ends, one fan-out of at most
512 pipes after the other. If that has taken 5 ms after one of them, the loop looks at everything else first. (Large
messages, and all messages where ``socket.send_queue_size`` is 0 or 1, leave at once.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import dropwhile
from typing import Final

from gevent.hub import Hub

from ...errors import Timeout
from ...loop.waiting import Deadline, WaitList
from ...wire import encode_frame
from ..pipes.framedpipe import FramedPipe
from ..pipes.pipe import Pipe, PipeState
from ..pipes.scheduler import AT_ONCE, WriteScheduler
from ..pipes.writepipe import WritePipe
from .overflow import OverflowPolicy
from .patience import Patience

__all__ = ["FanOut", "ToAllSender"]

#: What is sent: flags, ttl, source, destination, content.
Sent = tuple[int, int, bytes, bytes, bytes]
#: The most pipes of one fan-out.
_MEMBERS: Final = 512
#: A pipe, and what is sent by it.
_Copy = tuple[Pipe, Sent]


class FanOut:
    """Pipes in step that write the same bytes.

    Attributes:
        key: the pipes' ``_fan_out_key``.
        members: the pipes, in the order in which they joined.
        pending: frames of this turn that have not left yet.
        pending_bytes: their size.
    """

    __slots__ = ("_scheduler", "_sent_in_turn", "_unshared", "_wrap", "key", "members", "pending", "pending_bytes")

    def __init__(
        self, scheduler: WriteScheduler, unshared: dict[Pipe, None], wrap: Callable[[bytes], bytes], key: str
    ) -> None:
        self.key = key
        self._scheduler = scheduler
        self._unshared = unshared
        self._wrap = wrap
        self._sent_in_turn = False
        self.members: dict[WritePipe, None] = {}
        self.pending: list[bytes] = []
        self.pending_bytes = 0

    def add(self, pipe: WritePipe) -> None:
        """Add a pipe with an empty queue. Only while nothing is pending."""
        del self._unshared[pipe]
        if not self._unshared:
            # A dict keeps the memory of the entries that it had.
            self._unshared.clear()
        self.members[pipe] = None
        pipe._join_fan_out(self)

    def remove(self, pipe: WritePipe) -> None:
        """Remove a pipe, which takes over the pending frames. Called by the pipe."""
        del self.members[pipe]
        self._unshared[pipe] = None

    def put(self, frame: bytes, at_once: bool = True) -> None:
        """Send one frame to every member: at once if it may be and is the first of the turn, else with the others."""
        frame = self._wrap(frame)
        if not self._sent_in_turn:
            self._mark()
            if at_once and not self._scheduler.gathering:
                self._write([frame], frame)
                return
        self.pending.append(frame)
        self.pending_bytes += len(frame)
        if len(self.pending) >= self._scheduler.queue_limit or self.pending_bytes >= self._scheduler.flush_bytes:
            self.flush()

    def put_frames(self, frames: Sequence[bytes], at_once: bool) -> None:
        """Send several frames to every member, not more than a queue holds: as :meth:`put` for each, but together."""
        frames = [self._wrap(frame) for frame in frames]
        if not (at_once or self._sent_in_turn):
            self._mark()
        if self._sent_in_turn and len(self.pending) + len(frames) < self._scheduler.queue_limit:
            self.pending += frames
            self.pending_bytes += sum(map(len, frames))
            if self.pending_bytes >= self._scheduler.flush_bytes:
                self.flush()
            return
        self.flush()
        if not self._sent_in_turn:
            self._mark()
        self._write(frames, b"".join(frames))

    def _mark(self) -> None:
        self._sent_in_turn = True
        self._scheduler.mark_first(self)

    def flush(self) -> None:
        """Give the pending frames to the kernel. Never switches greenlets."""
        frames = self.pending
        if frames:
            self.pending = []
            self.pending_bytes = 0
            self._write(frames, frames[0] if len(frames) == 1 else b"".join(frames))

    def _end_turn(self) -> None:
        # This comes first. If something interrupts the flush, the next message marks this fan-out again.
        self._sent_in_turn = False
        self.flush()

    def _write(self, frames: list[bytes], data: bytes) -> None:
        size = len(data)
        count = len(frames)
        # Members change only after the loop, because a broken pipe can cause any number of changes.
        behind: list[tuple[WritePipe, int, OSError | None]] = []
        pipe = None
        try:
            for pipe in self.members:
                try:
                    taken = pipe._send_shared(data, count)
                except OSError as error:
                    behind.append((pipe, 0, error))
                    continue
                if taken != size:
                    behind.append((pipe, taken, None))
        except BaseException:
            # ^C, say. Those after this pipe have got nothing yet.
            for other in dropwhile(lambda other: other is not pipe, [*self.members]):
                if other is not pipe:
                    behind.append((other, 0, None))
            raise
        finally:
            self._scheduler.spend(count * len(self.members), size * len(self.members))
            self._settle(frames, behind)

    def _settle(self, frames: list[bytes], behind: list[tuple[WritePipe, int, OSError | None]]) -> None:
        """Take pipes out of step: the kernel has not taken all of their bytes, or they are broken."""
        for pipe, taken, broken in behind:
            if pipe in self.members:
                pipe._leave_fan_out()
                if broken is None:
                    pipe._put_back(frames, taken)
                else:
                    pipe._break(frames, broken)


class ToAllSender:
    """Sends to-all messages for one socket.

    Args:
        hub: of the socket's thread.
        scheduler: of the socket's pipes.
        overflow: applied to full pipes.
        patience: shared by the senders that wait for peers; used for messages that a switch forwards.
        check_open: raises if nothing may be sent any more; called after each wait.
    """

    __slots__ = (
        "_check_open",
        "_fan_outs",
        "_lagging",
        "_lines",
        "_overflow",
        "_patience",
        "_scheduler",
        "_slow_waiters",
        "_unshared",
    )

    def __init__(
        self,
        hub: Hub,
        scheduler: WriteScheduler,
        overflow: OverflowPolicy,
        patience: Patience,
        check_open: Callable[[], object],
    ) -> None:
        self._scheduler = scheduler
        self._overflow = overflow
        self._patience = patience
        self._check_open = check_open
        self._fan_outs: list[FanOut] = []
        #: Pipes that are in step with no fan-out: messages are put into each.
        self._unshared: dict[Pipe, None] = {}
        #: Greenlets whose message some full pipes have not got yet.
        self._slow_waiters = WaitList(hub, lambda: True)
        #: By full pipe: the messages that wait for it, oldest first. Newer ones do not overtake them.
        self._lines: dict[Pipe, deque[_Copy]] = {}
        #: Pipes for which a switch has lost patience, and the number of messages that each had sent by then.
        self._lagging: dict[Pipe, int] = {}

    # Pipes

    def add(self, pipe: Pipe) -> None:
        """Add a new pipe."""
        self._unshared[pipe] = None
        if isinstance(pipe, WritePipe):
            self._scheduler.mark(pipe)

    def remove(self, pipe: Pipe) -> None:
        """Remove a pipe."""
        if isinstance(pipe, WritePipe):
            pipe._leave_fan_out()
        self._unshared.pop(pipe, None)
        self._lagging.pop(pipe, None)
        self._lines.pop(pipe, None)
        self.wake()

    def rejoin(self, pipe: Pipe) -> None:
        """Put a pipe that has nothing queued in step again, if a fan-out with nothing pending has room."""
        key = pipe._fan_out_key
        if key is None or pipe not in self._unshared or pipe in self._lines:
            return
        assert isinstance(pipe, FramedPipe)
        has_room = False
        for fan_out in self._fan_outs:
            if fan_out.key == key and len(fan_out.members) < _MEMBERS:
                has_room = True
                if not fan_out.pending:
                    fan_out.add(pipe)
                    return
        if not has_room:
            self._fan_outs.append(FanOut(self._scheduler, self._unshared, pipe._wrap, key))
            self._fan_outs[-1].add(pipe)

    def maybe_queued(self) -> list[Pipe]:
        """Return the pipes that may have something queued. Of pipes in step these are few, or all."""
        found = [*self._unshared]
        for fan_out in [*self._fan_outs]:
            if fan_out.pending:
                found += [*fan_out.members]
        return found

    def wake(self) -> None:
        """Wake the greenlets that wait for full pipes, so that they look again."""
        self._slow_waiters.wake_all()

    # Sending

    def send(self, fields: Sent, timeout: float | None, lost: Callable[[int], object] | None = None) -> int:
        """Send to every pipe; see ``Socket.send_all``, and for ``lost`` ``ProtocolSocket.forward``."""
        # Taken before anything is sent: a pipe that falls out of step by this message has had it.
        unshared = list(self._unshared)
        count = 0
        frame = b""
        for fan_out in self._fan_outs:
            if fan_out.members:
                frame = frame or encode_frame(*fields)
                at_once = count < AT_ONCE
                # Those that turn out to be broken count as well.
                count += len(fan_out.members)
                fan_out.put(frame, at_once)
        if not count:
            # Fan-outs count what they write. A greenlet that sends to no pipe at all must let others run as well.
            self._scheduler.spend(len(unshared) or 1, 0)
        return self.send_each(unshared, fields, timeout, count, lost) if unshared else count

    def send_each(
        self,
        pipes: Sequence[Pipe],
        fields: Sent,
        timeout: float | None,
        count: int = 0,
        lost: Callable[[int], object] | None = None,
    ) -> int:
        """Send to each of some pipes. Return the number of pipes that have the message, plus ``count``."""
        frames: dict[str, bytes] = {}
        full: list[Pipe] = []
        lines = self._lines if lost is None else {}
        for pipe in pipes:
            if pipe.full or pipe.state is not PipeState.OPEN or (lines and pipe in lines):
                full.append(pipe)
                continue
            count += 1
            key = pipe._fan_out_key
            if key is None:
                pipe._put(*fields)
                continue
            assert isinstance(pipe, FramedPipe)
            frame = frames.get(key)
            if frame is None:
                frame = frames[key] = pipe._wrap(encode_frame(*fields))
            if count > AT_ONCE:
                pipe._push_later(frame)
            else:
                pipe._put_frame(frame)
        if not full:
            return count
        if lost is not None and self._overflow.blocks:
            return count + self._forward_full(full, fields, lost)
        return self._send_full([(pipe, fields) for pipe in full], timeout, count)

    def send_copies(self, copies: Iterable[_Copy], timeout: float | None) -> int:
        """Send several messages, each by its own pipe, as :meth:`send_each` sends one. Return the number of pipes."""
        full: list[_Copy] = []
        reached: set[Pipe] = set()
        for copy in copies:
            pipe, fields = copy
            if pipe.full or pipe.state is not PipeState.OPEN or pipe in self._lines:
                full.append(copy)
            else:
                pipe._put(*fields)
                reached.add(pipe)
        return self._send_full(full, timeout, len(reached), reached) if full else len(reached)

    def send_frames(self, frames: Sequence[bytes]) -> int:
        """Send the first of some frames to every pipe: as many as all of them take now. Never blocks.

        Args:
            frames: not more than a queue holds.

        Returns:
            How many frames were sent: 0 if a pipe is full or is not written in frames, or if there is none.
        """
        unshared = list(self._unshared)
        limit = len(frames)
        for pipe in unshared:
            if pipe.full or pipe.state is not PipeState.OPEN or pipe._fan_out_key is None or pipe in self._lines:
                return 0
            limit = min(limit, self._scheduler.queue_limit - pipe.queued)
        if self._scheduler.queue_bytes:
            limit = min(limit, 1)
        frames = frames[: max(1, limit)]
        fan_outs = [fan_out for fan_out in self._fan_outs if fan_out.members]
        if not fan_outs and not unshared:
            return 0
        count = 0
        for fan_out in fan_outs:
            fan_out.put_frames(frames, count < AT_ONCE)
            count += len(fan_out.members)
        self._scheduler.spend(len(frames) * len(unshared), 0)
        for pipe in unshared:
            assert isinstance(pipe, FramedPipe)
            for frame in frames:
                # An earlier frame may have found out that it is broken.
                if pipe.state is PipeState.OPEN:
                    pipe._put_frame(pipe._wrap(frame))
        return len(frames)

    def _send_full(self, full: list[_Copy], timeout: float | None, count: int, reached: Collection[Pipe] = ()) -> int:
        """Send to full pipes when each is writable, in the order in which this was called. One that stays full loses.

        Args:
            full: the pipes, and what each gets.
            timeout: seconds.
            count: the number of pipes that have it already.
            reached: those of them that may be in ``full`` as well.

        Returns:
            The number of pipes that have it.
        """
        deadline = Deadline(timeout)
        also: set[Pipe] = set()
        in_line = False
        try:
            while True:
                waiting = []
                for copy in full:
                    pipe, fields = copy
                    if pipe.state is PipeState.OPEN:
                        if self._may_put(copy):
                            pipe._put(*fields)
                            also.add(pipe)
                        elif self._overflow.blocks:
                            waiting.append(copy)
                            if not in_line:
                                self._lines.setdefault(pipe, deque()).append(copy)
                            continue
                    if in_line:
                        self._leave_line(copy)
                full = waiting
                in_line = True
                if not full:
                    return count + len(also.difference(reached))
                if not self._slow_waiters.wait(deadline.left()):
                    self._scheduler.spend(1, 0)
                    raise Timeout("send_all", timeout, count + len(also.difference(reached)))
                self._check_open()
        finally:
            for copy in full:
                self._leave_line(copy)
                if copy[0].state is PipeState.OPEN:
                    copy[0]._drop("timeout")

    def _may_put(self, copy: _Copy) -> bool:
        """Return whether a message that may have waited goes to its pipe now."""
        pipe = copy[0]
        if not self._overflow.blocks:
            return not pipe.full or self._overflow.apply(pipe)
        line = self._lines.get(pipe)
        return not pipe.full and (line is None or line[0] is copy)

    def _leave_line(self, copy: _Copy) -> None:
        """Remove a message from the line of its pipe, and wake those behind it if the pipe can take one."""
        pipe = copy[0]
        line = self._lines.get(pipe)
        if line is None:
            return
        # Mostly it is the first one.
        place = next((place for place, each in enumerate(line) if each is copy), None)
        if place is not None:
            del line[place]
        if not line:
            del self._lines[pipe]
        elif not pipe.full:
            self.wake()

    def _forward_full(self, full: list[Pipe], fields: Sent, lost: Callable[[int], object]) -> int:
        """Send to each of the full pipes that becomes writable while there is patience. Return their number.

        The others lose the message. They lag: until such a pipe has sent a whole queue, nothing waits for it again.
        """
        full = [pipe for pipe in full if pipe.state is PipeState.OPEN]
        left = [pipe for pipe in full if not self._lags(pipe)]
        missed = [pipe for pipe in full if pipe in self._lagging]
        count = 0
        try:
            if left:
                deadline = Deadline(self._patience.begin())
                try:
                    while left and self._slow_waiters.wait(deadline.left()):
                        self._check_open()
                        writable = [pipe for pipe in left if pipe.state is PipeState.OPEN and not pipe.full]
                        left = [pipe for pipe in left if pipe.state is PipeState.OPEN and pipe.full]
                        for pipe in writable:
                            # An earlier one of them may have broken, and closed others.
                            if pipe.state is PipeState.OPEN:
                                pipe._put(*fields)
                                count += 1
                finally:
                    self._patience.end()
                left = [pipe for pipe in left if pipe.state is PipeState.OPEN]
                for pipe in left:
                    self._lagging[pipe] = pipe.messages_sent
            return count
        finally:
            missed = [pipe for pipe in missed + left if pipe.state is PipeState.OPEN]
            for pipe in missed:
                pipe._drop("overflow")
            self._scheduler.spend(len(missed), 0)
            lost(len(missed))

    def _lags(self, pipe: Pipe) -> bool:
        """Return whether a full pipe has not sent a whole queue since it was given up."""
        sent = self._lagging.get(pipe)
        if sent is None:
            return False
        if pipe.messages_sent - sent < max(1, self._scheduler.queue_limit):
            return True
        del self._lagging[pipe]
        return False
