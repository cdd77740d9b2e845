"""Sends a Pub's history to the subscribers that ask for it (0x05), and decides who gets publications with positions.

A subscription with a 0x05 passes through three states. While it waits, nothing goes to it. Then its replay runs: what
the history has at the beginning is found and pinned, and what is published meanwhile comes behind that. When all is
found, the replay is sent: first its head, which says whether something is missing. If more was published meanwhile than
may wait, the replay goes on with what the history has of that. Behind the last publication the replay ends, and live
publications follow, in the same order. The last publication, the end and the switch to live are one step: no other
greenlet runs between.

A greenlet for each pipe finds and sends the replays by it, in portions and in turn, when the pipe is writable. So a
long history or a subscriber that does not read holds up nobody else, and a publication never waits for a replay. What a
replay that is broken off has not sent is unpinned in portions, too.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Mapping
from typing import Any, Final, NamedTuple

from gevent import Greenlet

from .. import options as opts
from .. import usercode
from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..loop.yielding import yield_to_loop
from ..options import Options
from .history import History, Kept, publication
from .pubsubwire import Ask, Position, Positioned, Replay
from .replays import Beginning, Pins
from .rights import RemoteSub
from .subscribers import Peer
from .subscriptions import Subscriptions, matches
from .upstream import control

__all__ = ["Replays", "Split"]

#: Publications of one replay that are sent before another one has its turn.
_PORTION: Final = 64
#: Subscriptions that are forgotten, or publications that are unpinned, before others run.
_FORGOTTEN: Final = 256
#: Replays by one pipe that run at once: each publication looks at all that run and match it.
_AT_ONCE: Final = 16
#: Publications that may wait for one subscriber because they came during its replay. More are read from the history.
_MAX_ADDED: Final = 4096
#: Topics of which it is remembered, while replays run, that publications without a position have overtaken them.
_MAX_OVERTAKEN: Final = 4096
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
    """

    wanted: Collection[Any]
    positioned: list[Any]
    plain: list[Any]
    alone: list[RemoteSub]
    pipes_alone: int


class _Asking:
    """A subscription with a 0x05.

    Attributes:
        remote: the subscriber.
        ask: the 0x05.
        accepted: the last offset of the history when the subscription was accepted.
        index: the index that it is in: None while it waits.
        beginning: has what its replay has still to send of the history; None when that does not run.
        steps: the search for that; None when all is found.
        head: what begins its replay; None before all is found, and when it was sent.
        is_answered: it was sent.
        added: what was published since the search began; None if nothing was.
        behind: what is behind this offset is not in ``added``, and is to be found later; 0 if there is none.
    """

    __slots__ = ("accepted", "added", "ask", "beginning", "behind", "head", "index", "is_answered", "remote", "steps")

    def __init__(self, remote: RemoteSub, ask: Ask, accepted: int) -> None:
        self.remote = remote
        self.ask = ask
        self.accepted = accepted
        self.index: Subscriptions[Any] | None = None
        self.beginning: Beginning | None = None
        self.steps: Generator[None, None, Replay | None] | None = None
        self.head: Replay | None = None
        self.is_answered = False
        self.added: deque[Kept] | None = None
        self.behind = 0


#: By source and pattern. (Where entries leave at the front, no dict: the more have left, the longer the search.)
_Queue = OrderedDict[tuple[bytes, str], _Asking]


def _next_turn(queue: _Queue, begun: deque[tuple[tuple[bytes, str], _Asking]]) -> tuple[tuple[bytes, str], _Asking]:
    """Return the replay of a queue whose turn it is.

    Args:
        queue: has at least one.
        begun: those that have begun, the one whose turn it was last at the end: kept by this function.
    """
    for each in [each for each in begun if queue.get(each[0]) is not each[1]]:
        begun.remove(each)
    if len(begun) < _AT_ONCE:
        # Those that have begun are in front, so this looks at few.
        for each in queue.items():
            if each not in begun:
                begun.append(each)
                return each
    begun.rotate(-1)
    return begun[-1]


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
        queues: by pipe: the subscriptions that wait or whose replay runs, the oldest first. Has no pipe without any.
            Read-only.
        splits: who gets what, by topic, as far as it is remembered.
        all_positioned: of those topics the ones that each who wants them gets with their positions, and in no other
            way: by topic, ``wanted`` of the split. Read-only.
    """

    __slots__ = ("__weakref__", "_core", "_forgetting", "_gone", "_live", "_overtaken", "_peers", "_pins", "_running",
                 "_spawn", "_unneeded", "all_positioned", "askings", "history", "queues", "splits")  # fmt: skip

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
        self.all_positioned: dict[str, Collection[Any]] = {}
        #: By topic, while replays run: the last offset when a publication without a position was sent. Oldest first.
        self._overtaken: OrderedDict[str, int] = OrderedDict()
        #: Subscriptions by pipes that have closed, which are still in an index.
        self._gone: deque[_Asking] = deque()
        #: Publications that replays do not send any more, and that are still pinned. None is empty.
        self._unneeded: deque[deque[Kept]] = deque()
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
                self._forget_some()
            asking = askings[key] = _Asking(remote, ask, self.history.last_offset)
            self._forget_splits()
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
        return asking is not None and not asking.is_answered

    def changed(self, pipe: Pipe) -> None:
        """Find out again who gets what by a pipe: a subscription by it has begun or ended.

        Those without a 0x05 matter as well: behind a switch, they get copies of what others get with positions.
        """
        if pipe in self.askings:
            self._forget_splits()

    def forget(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Forget a subscription that has ended. Neither blocks nor switches greenlets."""
        self.changed(pipe)
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
        self._forget_some()

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget the subscriptions by a pipe that has closed, in portions."""
        self._forget_splits()
        askings = self.askings.pop(pipe, None)
        if askings is None:
            return
        self._gone.extend(askings.values())
        self._forget_some()

    def _forget_some(self) -> None:
        """Forget what has gone and is unneeded: all at once or, if it is much, in portions. Does not block."""
        self._forget_portion()
        if (self._gone or self._unneeded) and not self._forgetting:
            self._forgetting = True
            self._spawn(self._forget_rest)

    def _forget_rest(self) -> None:
        """Forget what has gone and is unneeded (a greenlet while there is some)."""
        try:
            while self._gone or self._unneeded:
                yield_to_loop()
                self._forget_portion()
        finally:
            self._forgetting = False

    def _forget_portion(self) -> None:
        for _ in range(_FORGOTTEN):
            if self._unneeded:
                entries = self._unneeded[-1]
                self._pins.remove(entries.pop())
                if not entries:
                    self._unneeded.pop()
            elif self._gone:
                self._drop(self._gone.popleft())
            else:
                return

    def _drop(self, asking: _Asking) -> None:
        """Take a subscription out of its state. Call ``_forget_some()`` then."""
        self._move(asking, None)
        for entries in (None if asking.beginning is None else asking.beginning.entries, asking.added):
            if entries:
                self._unneeded.append(entries)
        asking.beginning = asking.steps = asking.head = asking.added = None
        asking.is_answered = False
        asking.behind = 0

    def _move(self, asking: _Asking, index: Subscriptions[Any] | None) -> None:
        """Put a subscription into another index."""
        if asking.index is not None:
            asking.index.remove(asking.ask.pattern, asking if asking.index is self._running else asking.remote)
        if index is not None:
            index.add(asking.ask.pattern, asking if index is self._running else asking.remote)
        asking.index = index

    def again(self) -> None:
        """Answer every 0x05 again: there is another history."""
        self._overtaken.clear()
        for pipe, askings in self.askings.items():
            for key, asking in askings.items():
                if asking.index is None and not self.waits(pipe, *key):
                    # Its acknowledgement is held back. It will be answered then.
                    continue
                self._drop(asking)
                asking.accepted = self.history.last_offset
                self._start(pipe, key, asking)
        self._forget_some()
        self._forget_splits()

    def behind(self, offset: int, topics: Collection[str]) -> None:
        """Begin a replay behind an offset for each 0x05 that matches some topics, and whose replay has ended.

        The others get what is behind the offset in their replays.
        """
        position = Position(self.history.epoch, offset)
        for pipe, source in {remote for topic in topics for remote in self._live.match(topic)}:
            # A pipe that has closed leaves the index in portions.
            for key, asking in self.askings.get(pipe, {}).items():
                wants = key[0] == source and any(matches(key[1], topic) for topic in topics)
                if wants and asking.index is self._live:
                    self._drop(asking)
                    asking.ask = asking.ask._replace(recover=True, positions=(position,))
                    self._start(pipe, key, asking)
        self._forget_some()
        self._forget_splits()

    # Publications

    def overtake(self, topic: str) -> None:
        """Send nothing more of a topic from before now: a publication without a position is about to be sent.

        What waits of the topic in replays is a value that the history has forgotten since, and would come behind it.
        This need not be called while ``queues`` is empty.
        """
        self._overtaken[topic] = self.history.last_offset
        self._overtaken.move_to_end(topic)
        if len(self._overtaken) > _MAX_OVERTAKEN:
            self._overtaken.popitem(last=False)

    def published(self, entry: Kept) -> None:
        """Put a publication behind the replays that run, and that it belongs to.

        It need not be called while ``queues`` is empty.
        """
        for asking in self._running.match(entry[2]):
            if asking.behind or (asking.beginning is not None and entry[0] <= asking.beginning.last):
                # It has it already, or finds it.
                continue
            added = asking.added = deque() if asking.added is None else asking.added
            if len(added) < _MAX_ADDED and self._pins.add((entry,)):
                added.append(entry)
            else:
                asking.behind = entry[0] - 1

    def split(self, topic: str, wanted: Collection[Any]) -> Split:
        """Find out who gets a publication in which way, and remember it.

        Args:
            topic: its topic.
            wanted: the pipes that want it; or the subscribers, if each gets its own copy.
        """
        if len(self.splits) >= _MAX_SPLITS:
            self._forget_splits()
        split = self.splits[topic] = self._find(topic, wanted)
        if split.positioned and len(split.positioned) == len(wanted) and not split.alone:
            self.all_positioned[topic] = wanted
        else:
            self.all_positioned.pop(topic, None)
        return split

    def _forget_splits(self) -> None:
        self.splits.clear()
        self.all_positioned.clear()

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
                peer = self._peers[key.id]
                # Mostly all patterns of a pipe, which may be thousands, have a 0x05.
                some_plain = len(self.askings[key]) < peer.count
                for source in peer.subscribers if some_plain else ():
                    remote = RemoteSub(key, source)
                    if remote not in live and self._wants_plain(remote, topic):
                        alone.append(remote)
            else:
                plain.append(key)
        return Split(wanted, positioned, plain, alone, len({remote.pipe for remote in alone} - pipes))

    def _wants_plain(self, remote: RemoteSub, topic: str) -> bool:
        """Return whether a subscriber wants a topic by a pattern without a 0x05."""
        askings = self.askings.get(remote.pipe, {})
        patterns = self._peers[remote.pipe.id].subscribers[remote.source].patterns
        # A peer may have thousands of patterns: first what takes less time.
        return any((remote.source, pattern) not in askings and matches(pattern, topic) for pattern in patterns)

    # Replays

    def _send(self, pipe: Pipe, queue: _Queue) -> None:
        """Send the replays by one pipe (a greenlet for each pipe, while there are any)."""
        begun: deque[tuple[tuple[bytes, str], _Asking]] = deque()
        try:
            while queue:
                key, asking = _next_turn(queue, begun)
                if not self._send_portion(pipe, queue, key, asking):
                    return
                yield_to_loop()
        except (Closed, ForkedSocketError):
            pass
        finally:
            del self.queues[pipe]
            if not self.queues:
                self._overtaken.clear()

    def _send_portion(self, pipe: Pipe, queue: _Queue, key: tuple[bytes, str], asking: _Asking) -> bool:
        """Find or send a portion of one replay. Return whether the pipe is open."""
        for _ in range(_PORTION):
            if not self._core.wait_writable(pipe):
                return False
            # Checked only now: during the wait, it may have changed or ended.
            if queue.get(key) is not asking:
                return True
            if self._unneeded and asking.index is None:
                # Before a replay begins, those that have ended give their memory back.
                self._forget_portion()
                return True
            if not self._go_on(asking):
                return True
            if asking.index is self._live:
                del queue[key]
                return True
        return True

    def _go_on(self, asking: _Asking) -> bool:
        """Send the next message of a replay. Return False if it is still to be found, and others may run first."""
        if asking.beginning is None:
            asking.beginning = Beginning(self.history, asking.ask, asking.accepted, self._pins)
            asking.steps = asking.beginning.steps()
            self._move(asking, self._running)
            self._forget_splits()
        beginning = asking.beginning
        if asking.steps is not None and not self._find_some(asking, beginning, asking.steps):
            return False
        head, asking.head = asking.head, None
        if head is None:
            self._send_next(asking, beginning)
        if not beginning.entries and not asking.added:
            if asking.behind:
                asking.steps = beginning.more(asking.behind)
                asking.behind = 0
            else:
                last = self.history.last_offset
                head = (head or Replay(asking.ask.id, self.history.epoch, last))._replace(end=True)
                asking.beginning = asking.added = None
                self._move(asking, self._live)
                self._forget_splits()
        if head is not None:
            asking.is_answered = True
            self._put(asking, head)
        return True

    def _find_some(self, asking: _Asking, beginning: Beginning, steps: Generator[None, None, Replay | None]) -> bool:
        """Find a portion of what belongs to a replay. Return whether that is all."""
        try:
            next(steps)
            return False
        except StopIteration as end:
            asking.head = end.value
        except Exception as error:
            usercode.report("gmultisocket.protocol", "a history failed", error, self)
            asking.head = beginning.head(False, True)
        asking.steps = None
        if asking.is_answered and asking.head is not None:
            # Something is missing. The subscriber finds that out by the next publication of the topic.
            self._core.count_drop("overflow", asking.remote.pipe.id)
            asking.head = None
        return True

    def _send_next(self, asking: _Asking, beginning: Beginning) -> None:
        """Send the next publication of a replay, if there is one, unless a later one of its topic has overtaken it."""
        entries = beginning.entries or asking.added
        if entries:
            entry = entries.popleft()
            self._pins.remove(entry)
            offset, previous, topic, content = entry
            if offset <= self._overtaken.get(topic, 0):
                return
            epoch = self.history.epoch
            self._put(asking, Positioned(asking.ask.id, epoch, offset, previous, publication(topic, content)))

    def _put(self, asking: _Asking, message: Replay | Positioned) -> None:
        self._core.put(asking.remote.pipe, control(message.encode(), asking.remote.source))
