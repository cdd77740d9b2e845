"""Sends a Pub's history to the subscribers that ask for it (0x05), and decides who gets publications with positions.

A subscription with a 0x05 passes through three states. While it waits, nothing goes to it. Then its replay runs: what
the history has at the beginning is pinned, and what is published meanwhile comes behind that. Behind the last
publication the replay ends, and live publications follow, in the same order. The last publication, the end and the
switch to live are one step: no other greenlet runs between.

A greenlet for each pipe sends the replays by it, in portions and in turn, when the pipe is writable. So a subscriber
that does not read holds up nobody else, and a publication never waits for a replay.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from gevent import Greenlet

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..loop.yielding import yield_to_loop
from ..options import Options
from .history import History, Kept, publication
from .pubsubwire import Ask, Position, Positioned, Replay
from .replays import Pins, begin_replay
from .retained import topics_with_value
from .rights import RemoteSub
from .subscribers import Peer
from .subscriptions import Subscriptions, matches
from .upstream import control

__all__ = ["Replays", "Split"]

#: Publications of one replay that are sent before another one has its turn.
_PORTION: Final = 64
#: Subscriptions that are forgotten before others run.
_FORGOTTEN: Final = 256
#: Publications that may wait for one subscriber because they came during its replay. More are dropped.
_MAX_ADDED: Final = 4096
#: Topics of which it is remembered who gets what.
_MAX_SPLITS: Final = 1024


class Split(NamedTuple):
    """Who gets a publication of one topic, and how.

    Attributes:
        wanted: the pipes (or subscribers) that want it, all together: the value is good for this very object.
        positioned: those that get it with its position (0x07).
        plain: those that get it without.
        alone: subscribers that get it without, along their path: by the same pipe others are reached that count
            positions, and would take it for one more publication.
        pipes_alone: the number of pipes that are only among those.
        same: ``wanted`` if each of them gets it with its position and in no other way; None if not.
    """

    wanted: Collection[Any]
    positioned: list[Any]
    plain: list[Any]
    alone: list[RemoteSub]
    pipes_alone: int
    same: Collection[Any] | None


class _Asking:
    """A subscription with a 0x05.

    Attributes:
        remote: the subscriber.
        ask: the 0x05.
        entries: what is still to be sent while its replay runs; None while it waits, and when it is live.
        added: how many of them were published since the replay began.
        accepted: the last offset of the history when the subscription was accepted.
        index: the index that it is in.
    """

    __slots__ = ("accepted", "added", "ask", "entries", "index", "remote")

    def __init__(self, remote: RemoteSub, ask: Ask, accepted: int) -> None:
        self.remote = remote
        self.ask = ask
        self.accepted = accepted
        self.entries: deque[Kept] | None = None
        self.added = 0
        self.index: Subscriptions[Any] | None = None


#: By source and pattern. (Where entries leave at the front, no dict: the more have left, the longer the search.)
_Queue = OrderedDict[tuple[bytes, str], _Asking]


class Replays:
    """The subscriptions with a 0x05 at one Pub.

    Args:
        core: of its socket.
        options: of its socket.
        spawn: its ``_spawn``.
        history: its history.
        peers: its peers by pipe id.

    Attributes:
        history: the history.
        askings: the subscriptions by pipe, source and pattern. Read-only.
        queues: by pipe: the subscriptions that wait or whose replay runs, the one whose turn it is first. Has no pipe
            without any. Read-only.
        splits: who gets what, by topic, as far as it is remembered.
    """

    __slots__ = ("_core", "_forgetting", "_gone", "_live", "_peers", "_pins", "_running", "_spawn",
                 "askings", "history", "queues", "splits")  # fmt: skip

    def __init__(
        self,
        core: ProtocolSocket,
        options: Options,
        spawn: Callable[..., Greenlet[..., Any]],
        history: History,
        peers: Mapping[int, Peer],
    ) -> None:
        self._core = core
        self._spawn = spawn
        self.history = history
        self._peers = peers
        self._pins = Pins(lambda: options.get(opts.protocol.pubsub.replay_bytes))
        self.askings: dict[Pipe, dict[tuple[bytes, str], _Asking]] = {}
        self.queues: dict[Pipe, _Queue] = {}
        #: The subscribers by the patterns that are live.
        self._live: Subscriptions[RemoteSub] = Subscriptions()
        self._running: Subscriptions[_Asking] = Subscriptions()
        self.splits: dict[str, Split] = {}
        #: Subscriptions by pipes that have closed, which are still in an index.
        self._gone: deque[_Asking] = deque()
        self._forgetting = False

    # Subscriptions

    def ask(self, remote: RemoteSub, ask: Ask, start: bool = True) -> None:
        """Begin a replay soon, unless this asking was answered before. Neither blocks nor switches greenlets.

        Args:
            remote: the subscriber.
            ask: its 0x05.
            start: False: another call begins the replay. Until then nothing goes to the subscriber.
        """
        pipe, source = remote
        askings = self.askings.setdefault(pipe, {})
        key = (source, ask.pattern)
        asking = askings.get(key)
        if asking is None or asking.ask.id != ask.id:
            if asking is not None:
                self._drop(asking)
            asking = askings[key] = _Asking(remote, ask, self.history.last_offset)
            self.splits.clear()
        elif asking.index is not None:
            return
        if start:
            asking.accepted = max(asking.accepted, self.history.begins(ask.pattern))
            self._start(pipe, key, asking)

    def _start(self, pipe: Pipe, key: tuple[bytes, str], asking: _Asking) -> None:
        queue = self.queues.get(pipe)
        if queue is None:
            queue = self.queues[pipe] = OrderedDict()
            self._spawn(self._send, pipe, queue)
        # At most one for each subscription, so the limits of subscriptions bound them.
        queue.pop(key, None)
        queue[key] = asking

    def waits(self, pipe: Pipe, source: bytes, pattern: str) -> bool:
        """Return whether the answer to a 0x05 is still to come."""
        queue = self.queues.get(pipe)
        asking = None if queue is None else queue.get((source, pattern))
        return asking is not None and asking.entries is None

    def forget(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Forget a subscription that has ended. Neither blocks nor switches greenlets."""
        askings = self.askings.get(pipe)
        if askings is None:
            return
        asking = askings.pop((source, pattern), None)
        if asking is None:
            return
        if not askings:
            del self.askings[pipe]
        queue = self.queues.get(pipe)
        if queue is not None:
            queue.pop((source, pattern), None)
        self._drop(asking)
        self.splits.clear()

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget the subscriptions by a pipe that has closed, in portions."""
        self.splits.clear()
        askings = self.askings.pop(pipe, None)
        if askings is None:
            return
        self._gone.extend(askings.values())
        self._forget_some()
        if self._gone and not self._forgetting:
            self._forgetting = True
            self._spawn(self._forget_rest)

    def _forget_rest(self) -> None:
        """Forget those that have gone (a greenlet while there are any)."""
        try:
            while self._gone:
                yield_to_loop()
                self._forget_some()
        finally:
            self._forgetting = False

    def _forget_some(self) -> None:
        for _ in range(min(_FORGOTTEN, len(self._gone))):
            self._drop(self._gone.popleft())

    def _drop(self, asking: _Asking) -> None:
        """Take a subscription out of its state."""
        self._move(asking, None)
        for entry in asking.entries or ():
            self._pins.remove(entry)
        asking.entries = None

    def _move(self, asking: _Asking, index: Subscriptions[Any] | None) -> None:
        """Put a subscription into another index."""
        if asking.index is not None:
            asking.index.remove(asking.ask.pattern, asking if asking.index is self._running else asking.remote)
        if index is not None:
            index.add(asking.ask.pattern, asking if index is self._running else asking.remote)
        asking.index = index

    def again(self) -> None:
        """Answer every 0x05 again: there is another history."""
        for pipe, askings in self.askings.items():
            for key, asking in askings.items():
                if asking.index is None and not self.waits(pipe, *key):
                    # Its acknowledgement is held back. It will be answered then.
                    continue
                self._drop(asking)
                asking.accepted = self.history.last_offset
                self._start(pipe, key, asking)
        self.splits.clear()

    def behind(self, offset: int, topics: Collection[str]) -> None:
        """Begin a replay behind an offset for each 0x05 that matches some topics, and whose replay has ended.

        The others get what is behind the offset in their replays.
        """
        position = Position(self.history.epoch, offset)
        for pipe, source in {remote for topic in topics for remote in self._live.match(topic)}:
            for key, asking in self.askings[pipe].items():
                wants = key[0] == source and any(matches(key[1], topic) for topic in topics)
                if wants and asking.index is self._live:
                    self._drop(asking)
                    asking.ask = asking.ask._replace(recover=True, positions=(position,))
                    self._start(pipe, key, asking)
        self.splits.clear()

    # Publications

    def published(self, entry: Kept) -> None:
        """Put a publication behind the replays that run, and that it belongs to.

        It need not be called while ``queues`` is empty.
        """
        for asking in self._running.match(entry[2]):
            if asking.entries is None or asking.entries[-1][0] >= entry[0]:
                # It has it already.
                continue
            if asking.added < _MAX_ADDED and self._pins.fits((entry,)):
                self._pins.add((entry,))
                asking.entries.append(entry)
                asking.added += 1
            else:
                # The subscriber finds that out by the next publication of the topic.
                self._core.count_drop("overflow", asking.remote.pipe.id)

    def split(self, topic: str, wanted: Collection[Any]) -> Split:
        """Find out who gets a publication in which way, and remember it.

        Args:
            topic: its topic.
            wanted: the pipes that want it; or the subscribers, if each gets its own copy.
        """
        if len(self.splits) >= _MAX_SPLITS:
            self.splits.clear()
        split = self.splits[topic] = self._find(topic, wanted)
        return split

    def _find(self, topic: str, wanted: Collection[Any]) -> Split:
        live = self._live.match(topic)
        pipes = {remote.pipe for remote in live}
        positioned: list[Any] = []
        plain: list[Any] = []
        alone: list[RemoteSub] = []
        for key in wanted:
            if isinstance(key, RemoteSub):
                if key in live:
                    positioned.append(key)
                elif self._wants_plain(key, topic):
                    plain.append(key)
            elif key in self.askings:
                if key in pipes:
                    positioned.append(key)
                for source in self._peers[key.id].subscribers:
                    remote = RemoteSub(key, source)
                    if remote not in live and self._wants_plain(remote, topic):
                        alone.append(remote)
            else:
                plain.append(key)
        same = wanted if positioned and len(positioned) == len(wanted) and not alone else None
        return Split(wanted, positioned, plain, alone, len({remote.pipe for remote in alone} - pipes), same)

    def _wants_plain(self, remote: RemoteSub, topic: str) -> bool:
        """Return whether a subscriber wants a topic by a pattern without a 0x05."""
        askings = self.askings.get(remote.pipe, {})
        patterns = self._peers[remote.pipe.id].subscribers[remote.source].patterns
        return any(matches(pattern, topic) and (remote.source, pattern) not in askings for pattern in patterns)

    # Replays

    def _send(self, pipe: Pipe, queue: _Queue) -> None:
        """Send the replays by one pipe (a greenlet for each pipe, while there are any)."""
        try:
            while queue:
                key, asking = next(iter(queue.items()))
                queue.move_to_end(key)
                if not self._send_portion(pipe, queue, key, asking):
                    return
                yield_to_loop()
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self.queues[pipe]

    def _send_portion(self, pipe: Pipe, queue: _Queue, key: tuple[bytes, str], asking: _Asking) -> bool:
        """Send a portion of one replay. Return whether the pipe is open."""
        topics: set[str] = set()
        seen = 0
        if asking.entries is None:
            seen = self.history.last_offset
            if asking.ask.retained:
                topics = {*topics_with_value(self.history, asking.ask.pattern)}
        for _ in range(_PORTION):
            if not self._core.wait_writable(pipe):
                return False
            # Checked only now: during the wait, it may have changed or ended.
            if queue.get(key) is not asking:
                return True
            if asking.entries is None:
                self._begin(asking, topics, seen)
            else:
                self._send_next(asking)
            if asking.index is self._live:
                del queue[key]
                return True
        return True

    def _begin(self, asking: _Asking, topics: set[str], seen: int) -> None:
        """Send the head of a replay.

        Args:
            asking: the subscription.
            topics: those that match and had a retained value ...
            seen: ... when the history had this last offset.
        """
        history = self.history
        if asking.ask.retained and history.last_offset > seen:
            topics.update(topic for _, _, topic, _ in history.since(asking.ask.pattern, seen).entries)
        retained = sorted(entry for topic in topics for entry in history.retained(topic))
        head, entries = begin_replay(history, asking.ask, asking.accepted, retained, self._pins.fits)
        if entries:
            self._pins.add(entries)
            asking.entries = deque(entries)
            self._move(asking, self._running)
        else:
            head = head._replace(end=True)
            self._move(asking, self._live)
        self.splits.clear()
        self._put(asking, head)

    def _send_next(self, asking: _Asking) -> None:
        """Send the next publication of a replay, and behind the last one its end."""
        entries = asking.entries
        assert entries
        entry = entries.popleft()
        self._pins.remove(entry)
        asking.added = min(asking.added, len(entries))
        history = self.history
        epoch = history.epoch
        offset, previous, topic, content = entry
        self._put(asking, Positioned(asking.ask.id, epoch, offset, previous, publication(topic, content)))
        if not entries:
            asking.entries = None
            self._put(asking, Replay(asking.ask.id, epoch, history.last_offset, end=True))
            self._move(asking, self._live)
            self.splits.clear()

    def _put(self, asking: _Asking, message: Replay | Positioned) -> None:
        self._core.put(asking.remote.pipe, control(message.encode(), asking.remote.source))
