"""A switch's short way: what a pipe of one socket reads is passed on to pipes of another one, without messages.

The reader greenlet of a pipe that is read in frames (tcp, tls, ipc) gives the relay what it has read. The relay takes
whole batches of frames out of it (:mod:`gmultisocket.frames`) and writes each batch to the pipe, or the pipes, that the
frames go to. It never waits for a peer. A frame that cannot go on now, or that needs a closer look, takes the *long
way*: it becomes a message, and the switch's own greenlet forwards it, waits if it must, and counts it if it is lost.

So that nothing is overtaken, a reader goes on only when all that its peer has on the long way has been forwarded. What
blocks therefore blocks as it does without a relay, and what that protects is protected: the bounds of the queues, the
order of what one peer sends, the peers' turns, the callers' patience. A reader that is stopped while it waits delivers
what it holds, so nothing is lost either.

Frames take the long way

* whose header needs a decision: see :mod:`gmultisocket.frames`;
* whose path begins with a pipe that is not there, or any path while the switch watches for peers that guess paths;
* that go to a pipe which is not written in frames: those of ws and inproc (to all: inproc);
* while the pipe they go to is full, or somebody else waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from gevent.hub import Hub

from ...frames import Batch, frame_size, is_beginning, take_batch
from ...loop.waiting import WaitList
from ...wire import TO_ALL, TO_DEST
from ..pipes.framedpipe import FramedPipe
from ..pipes.pipe import PipeState
from ..pipes.writepipe import WritePipe
from ..receiving.receiver import Receiver
from .sender import Sender

__all__ = ["TOGETHER", "LongWay", "Relay", "Watch"]

#: Bytes. A frame with a longer content takes the long way: when only its beginning has come, that is not copied.
_LONGEST: Final = 1 << 17

#: How many frames take the long way together if waiting would not help the first of them.
TOGETHER: Final = 64
#: A receive queue with more messages is not searched: the reader waits for all of them.
_LONG_QUEUE: Final = 256


class Watch(Protocol):
    """What a relay asks before it passes on frames along paths."""

    alert: bool


class LongWay:
    """The part of a relay that does not depend on where frames go: no frame overtakes one of the same peer.

    Args:
        hub: of the sockets' thread.
        source: of the socket whose pipes read.
        target: of the socket whose pipes write.
        max_ttl: frames that arrive with a larger ttl take the long way.
        filtered: the source has a filter, which sees only what takes the long way. Otherwise a filter ends the short
            way.
    """

    #: Bytes. Frames with a longer content take the long way.
    _longest = _LONGEST

    def __init__(self, hub: Hub, source: Receiver, target: Sender, max_ttl: int, filtered: bool = False) -> None:
        self._source = source
        self._target = target
        self._scheduler = target.scheduler
        self._max_ttl = max_ttl
        #: The pipe whose message has been taken from the queue and is not forwarded yet; 0 if none is.
        self._holding = 0
        #: How many messages have been forwarded or dropped.
        self._handled = 0
        #: Readers that wait, and for each how many messages must have been handled before it goes on.
        self._waiting = WaitList(hub, self._first_may_go_on)
        self._goals: deque[int] = deque()
        source.set_relay(self, filtered)

    def close(self) -> None:
        """Stop passing on. What is read after that is received as messages. May be repeated."""
        if self._source.is_relayed_by(self):
            self._source.set_relay(None)
        self._goals.clear()
        self._waiting.wake_all()

    # The long way

    def begin(self, pipe_id: int) -> None:
        """Record that a message was taken from the receive queue. It came by this pipe."""
        self._holding = pipe_id

    def end(self) -> None:
        """Record that the message was forwarded or dropped. May be called without one."""
        if self._holding:
            self._holding = 0
            self._handled += 1
        if self._goals:
            self._waiting.wake()

    def _first_may_go_on(self) -> bool:
        if not self._goals:
            return True
        # The queue may be emptied by somebody else too.
        return self._goals[0] <= self._handled or not (self._holding or self._source.queue)

    # For readers

    def prepare(self, pipe_id: int) -> None:
        """Block until nothing that a pipe has read is left on the long way, and the budget allows to send."""
        goal = self._goal(pipe_id) if self._holding or self._source.queue else 0
        if goal:
            self._goals.append(goal)
            try:
                self._waiting.wait(None)
            finally:
                if goal in self._goals:
                    self._goals.remove(goal)
        self.keep_to_budget()

    def keep_to_budget(self) -> None:
        """Yield to other greenlets if this turn's budget is spent."""
        if self._scheduler.over_budget:
            self._scheduler.yield_turn()

    def _goal(self, pipe_id: int) -> int:
        """Return how many messages must have been handled before a pipe may go on; 0 if none of them is its own."""
        queue = self._source.queue
        ahead = self._handled + bool(self._holding)
        if len(queue) > _LONG_QUEUE:
            return ahead + len(queue)
        for index in range(len(queue), 0, -1):
            if queue[index - 1][5] == pipe_id:
                return ahead + index
        return ahead if self._holding == pipe_id else 0

    def forward(self, data: bytes, position: int, local: bytes, max_content: int) -> tuple[int, int, int]:
        """Pass on frames. Never blocks. Call :meth:`prepare` before.

        Args:
            data: what a pipe has read.
            position: where in it a frame begins.
            local: the pipe's id, as in a path.
            max_content: the longest content that the pipe may receive.

        Returns:
            Where the next frame begins; how many frames were passed on; and how many of the next ones take the long
            way: 0 if none has to, because the data or the budget has ended.
        """
        raise NotImplementedError

    def skip(self, data: bytes, position: int, count: int) -> int:
        """Return where the last of ``count`` frames ends; of fewer, if the data ends before."""
        for _ in range(count):
            size = frame_size(data, position)
            if not size or position + size > len(data):
                break
            position += size
        return position

    def is_beginning(self, data: bytes, position: int, max_content: int) -> bool:
        """Return whether a frame begins at ``position`` that can probably be passed on when the rest has come."""
        return is_beginning(data, position, self._max_ttl, self._limit(max_content))

    def _limit(self, max_content: int) -> int:
        """Return the longest content that can be passed on, by a pipe that may receive ``max_content`` bytes."""
        return min(max_content, self._target.max_content, self._longest)


class Relay(LongWay):
    """Passes on what the pipes of one socket read.

    Args:
        hub, source, target, max_ttl: see :class:`LongWay`.
        watch: while its ``alert`` is set, frames along paths take the long way.
        count: called with numbers of frames that were passed on.
    """

    def __init__(
        self,
        hub: Hub,
        source: Receiver,
        target: Sender,
        max_ttl: int,
        watch: Watch,
        count: Callable[[int], object],
    ) -> None:
        super().__init__(hub, source, target, max_ttl)
        self._watch = watch
        self._count = count

    def forward(self, data: bytes, position: int, local: bytes, max_content: int) -> tuple[int, int, int]:
        max_content = self._limit(max_content)
        passed = slow = 0
        end = len(data)
        while position < end:
            batch = take_batch(data, position, local, self._max_ttl, max_content)
            if batch is None:
                slow = TOGETHER
                break
            frames, size, slow = self._send(batch)
            if frames:
                passed += frames
                position += batch.read_size(frames, size)
            # Checked behind a batch, not before one: others may use up each new budget first.
            if frames < batch.count or self._scheduler.over_budget:
                break
        if passed:
            self._count(passed)
        return position, passed, slow

    # To the pipes

    def _send(self, batch: Batch) -> tuple[int, int, int]:
        """Send the first frames of a batch. Return their number and size, and how many others take the long way."""
        if batch.kind == TO_DEST:
            sent, slow = self._send_along_path(batch)
        elif batch.kind == TO_ALL:
            sent, slow = self._send_to_all(batch)
        else:
            sent, slow = self._send_to_one(batch)
        if sent == batch.count:
            return sent, batch.size, 0
        return sent, batch.size_of(sent), 0 if sent and self._scheduler.over_budget else slow

    @property
    def _may_send(self) -> bool:
        """Whether a pipe that is not full may be given frames."""
        return bool(self._scheduler.queue_limit) and not (self._target._closed or self._target._no_send)

    def _send_along_path(self, batch: Batch) -> tuple[int, int]:
        target = self._target
        pipe = target._pipes.get(batch.pipe_id)
        if pipe is None or not pipe._takes_batches or self._watch.alert:
            return 0, TOGETHER
        if pipe.full or pipe._awaited or pipe.state is not PipeState.OPEN or not self._may_send:
            return 0, 1
        assert isinstance(pipe, FramedPipe)
        return pipe._push_batch(batch), 1

    def _send_to_one(self, batch: Batch) -> tuple[int, int]:
        target = self._target
        writable = target._writable
        if not target._fast_path:
            return 0, 1
        pipe = writable.first
        if not writable.several and pipe is not None and pipe._takes_batches:
            assert isinstance(pipe, FramedPipe)
            return pipe._push_batch(batch), 1
        sent = 0
        for frame in batch:
            pipe = writable.first
            if pipe is None or not pipe._takes_batches:
                return sent, TOGETHER
            assert isinstance(pipe, WritePipe)
            writable.rotate()
            pipe._push(frame)
            sent += 1
            if not target._fast_path or self._scheduler.over_budget:
                break
        return sent, 1

    def _send_to_all(self, batch: Batch) -> tuple[int, int]:
        target = self._target
        if not self._may_send:
            return 0, 1
        frames = list(batch)
        sent = 0
        while sent < len(frames):
            count = target._to_all.send_frames(frames[sent : sent + self._scheduler.queue_limit])
            sent += count
            if not count or self._scheduler.over_budget:
                break
        return sent, TOGETHER
