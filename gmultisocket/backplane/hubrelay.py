"""The hub's short way: publications are passed on as frames, without messages.

The reader greenlet of a client gives the relay what it has read. The relay takes whole publications out of it, finds
out which clients want each topic, and writes to each of these all that it wants of this read, in one system call.

A publication as it arrives and as it leaves differ in the header only: it comes to one, and goes to all. Publications
of one topic and one size, as most publishers send them in a row, are compared and rewritten by a few calls for all of
them (:mod:`gmultisocket.frames`).

All else takes the long way, as a message: control messages, what breaks a rule, long contents, and what came through a
switch. Nothing is overtaken (:mod:`gmultisocket.core.sending.relay`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple

from gevent.hub import Hub

from ..core.pipes.framedpipe import FramedPipe
from ..core.pipes.pipe import Pipe, PipeState
from ..core.pipes.writepipe import LARGE
from ..core.receiving.receiver import Receiver
from ..core.sending.relay import TOGETHER, LongWay
from ..core.sending.sender import Sender
from ..errors import BadTopic
from ..frames import MOST, REPEATED, Batch, take_equal
from ..wire import HEADER_SIZE, TO_ALL, TO_ONE, first_id, pack_bare_header
from .hubwire import length, stamp

__all__ = ["HubRelay"]

#: Topics whose clients are remembered.
_MAX_TOPICS: Final = 1024
#: The flags and the lengths of the paths in a frame's first four bytes, and what they must be for the short way. The
#: ttl may be anything.
_SHAPE: Final = 0xFF00FFFF
_PLAIN: Final = TO_ONE << 24

_unpack_header = Struct(">II").unpack_from


class _Topic(NamedTuple):
    """What is known of a topic.

    Attributes:
        name: the topic.
        wanted: the pipes that want it, as the Pub has them. While the Pub has this very object, nothing has changed.
        targets: the same pipes; the same object for all topics that these pipes want.
    """

    name: str
    wanted: Collection[Pipe]
    targets: frozenset[Pipe]


class _Part:
    """Publications in a row for the same clients, or all publications of a read for one client.

    Attributes:
        targets: the clients.
        frames, joined_counts: as for :class:`~gmultisocket.frames.Batch`.
    """

    __slots__ = ("frames", "joined_counts", "targets")

    def __init__(self, targets: frozenset[Pipe]) -> None:
        self.targets = targets
        self.frames: list[bytes | memoryview] = []
        self.joined_counts: dict[int, int] = {}

    def add(self, other: _Part) -> None:
        """Add the frames of another part."""
        for index, count in other.joined_counts.items():
            self.joined_counts[len(self.frames) + index] = count
        self.frames += other.frames

    def batch(self) -> Batch:
        """Return the frames as a batch."""
        return Batch(TO_ALL, 0, self.frames, self.joined_counts)


class HubRelay(LongWay):
    """Passes publications on.

    Args:
        hub, source, target: see :class:`~gmultisocket.core.sending.relay.LongWay`.
        groups: by topic: what a publication begins with, and the pipes that it goes to.
        find: makes the entry of ``groups`` for a topic that has none.
        is_kept: whether publications of a topic are kept, and so take the long way.
        send_group: called as ``send_group(pipes, content)`` for a publication to a client whose queue is full. Returns
            how many got it.
        count: called as ``count(sender, taken, copies)`` with numbers of publications that came from a client, and of
            their copies that left. The sender is None if it has left meanwhile.
    """

    # The short way copies contents.
    _longest = LARGE - 1

    def __init__(
        self,
        hub: Hub,
        source: Receiver,
        target: Sender,
        *,
        groups: Mapping[str, tuple[bytes, Collection[Pipe]]],
        find: Callable[[str], tuple[bytes, Collection[Pipe]]],
        is_kept: Callable[[str], bool],
        send_group: Callable[[Collection[Pipe], bytes], int],
        count: Callable[[Pipe | None, int, int], object],
    ) -> None:
        super().__init__(hub, source, target, 255, filtered=True)
        self._groups = groups
        self._find = find
        self._is_kept = is_kept
        self._send_group = send_group
        self._count = count
        #: By the bytes with which a publication begins, the length of its topic and the topic.
        self._topics: dict[bytes, _Topic] = {}
        self._targets: dict[frozenset[Pipe], frozenset[Pipe]] = {}

    def forget(self) -> None:
        """Forget all pipes, because one has closed."""
        self._topics.clear()
        self._targets.clear()

    def forward(self, data: bytes, position: int, local: bytes, max_content: int) -> tuple[int, int, int]:
        if self._target._overflow.blocks:
            # Nothing may block here.
            return position, 0, TOGETHER
        start = position
        parts, count, position = self._take(data, position, self._limit(max_content))
        if not count:
            return start, 0, self._count_special(data, start)
        sender = self._target._pipes.get(first_id(local))
        copies = self._distribute(parts, sender)
        self._count(self._target._pipes.get(first_id(local)), count, copies)
        return position, count, 0

    def _count_special(self, data: bytes, position: int) -> int:
        """Return how many frames in a row, the first one included, take the long way."""
        count = 1
        while count < TOGETHER:
            after = self.skip(data, position, 1)
            if after == position or after > len(data) - HEADER_SIZE:
                break
            if self._is_short(data, after):
                break
            position = after
            count += 1
        return count

    def _is_short(self, data: bytes, position: int) -> bool:
        """Return whether a frame, of which the header is there, is a publication that does not take the long way."""
        shape, size = _unpack_header(data, position)
        if shape & _SHAPE != _PLAIN:
            return False
        content = position + HEADER_SIZE
        prefix = _prefix(data, content, min(content + size, len(data)))
        # One whose topic has not come yet is looked at when it has.
        return not prefix or self._find_targets(prefix) is not None

    # Taking

    def _take(self, data: bytes, position: int, limit: int) -> tuple[list[_Part], int, int]:
        """Take publications from what a client has sent, up to one that takes the long way.

        Returns:
            The parts; how many publications these are; and where the next frame begins.
        """
        end, last_header, ttl = len(data), len(data) - HEADER_SIZE, self._target.ttl
        parts: list[_Part] = []
        # What nobody wants stays in this one.
        part = _Part(frozenset())
        head, prefix, known_size, repeated, count = b"", b"", -1, 0, 0
        while position <= last_header and count < MOST:
            shape, size = _unpack_header(data, position)
            content = position + HEADER_SIZE
            stop = content + size
            if shape & _SHAPE != _PLAIN or stop > end or size > limit:
                break
            if size == known_size and data.startswith(prefix, content):
                repeated += 1
                if repeated == REPEATED:
                    repeated = 0
                    # From here on also the ttl of all these is the same.
                    same, frames = take_equal(
                        data, position, HEADER_SIZE + len(prefix), size - len(prefix), head + prefix, MOST - count
                    )
                    part.joined_counts[len(part.frames)] = same
                    part.frames.append(frames)
                    count += same
                    position += same * (stop - position)
                    continue
            else:
                prefix = _prefix(data, content, stop)
                targets = self._find_targets(prefix) if prefix else None
                if targets is None:
                    break
                if targets is not part.targets:
                    part = _Part(targets)
                    parts.append(part)
                head = pack_bare_header(TO_ALL, ttl, 0, size)
                known_size, repeated = size, 0
            part.frames.append(head + data[content:stop])
            count += 1
            position = stop
        return parts, count, position

    def _find_targets(self, prefix: bytes) -> frozenset[Pipe] | None:
        """Return the clients that want a topic; None if it is not a topic, or takes the long way."""
        known = self._topics.get(prefix)
        if known is not None:
            group = self._groups.get(known.name)
            if group is not None and group[1] is known.wanted:
                return known.targets
        try:
            topic = str(prefix[length.size :], "utf-8")
            if self._is_kept(topic):
                return None
            wanted = (self._groups.get(topic) or self._find(topic))[1]
        except (UnicodeDecodeError, BadTopic):
            return None
        if len(self._topics) >= _MAX_TOPICS:
            self.forget()
        targets = frozenset(wanted)
        targets = self._targets.setdefault(targets, targets)
        self._topics[prefix] = _Topic(topic, wanted, targets)
        return targets

    # Passing on

    def _distribute(self, parts: list[_Part], sender: Pipe | None) -> int:
        """Send parts to all that want them, but not to their sender. Return the number of copies."""
        if len(parts) == 1:
            batch = parts[0].batch()
            return sum([self._give(pipe, batch) for pipe in parts[0].targets if pipe is not sender])
        # In order for each client: what it gets of all parts together.
        gathered: dict[Pipe, _Part] = {}
        for part in parts:
            for pipe in part.targets:
                if pipe in gathered:
                    gathered[pipe].add(part)
                elif pipe is not sender:
                    gathered[pipe] = own = _Part(part.targets)
                    own.add(part)
        return sum([self._give(pipe, part.batch()) for pipe, part in gathered.items()])

    def _give(self, pipe: Pipe, batch: Batch) -> int:
        """Send a batch to one client. Return how many publications it got. Others may run before it returns."""
        given = 0
        if pipe.state is PipeState.OPEN and pipe._takes_batches:
            assert isinstance(pipe, FramedPipe)
            given = pipe._push_batch(batch)
        if given < batch.count:
            for frame in islice(batch, given, None):
                if pipe.state is not PipeState.OPEN:
                    break
                content = frame[HEADER_SIZE:]
                if pipe.full:
                    given += self._send_group((pipe,), content)
                else:
                    pipe._put(TO_ALL, self._target.ttl, b"", b"", content)
                    given += 1
        self.keep_to_budget()
        return given


def _prefix(data: bytes, content: int, stop: int) -> bytes:
    """Return the length of a publication's topic and the topic, b"" if they and the stamp are not all there.

    Args:
        data: has the publication.
        content: where it begins.
        stop: where it ends, or what has come of it.
    """
    begin = content + length.size
    topic_end = begin + length.unpack_from(data, content)[0] if begin <= stop else stop
    return data[content:topic_end] if topic_end + stamp.size <= stop else b""
