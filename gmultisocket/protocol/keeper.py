"""What a Pub keeps of its publications, and what subscribers get of that."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from gevent import Greenlet

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..options import Options
from ..wire import CONTROL, TO_ALL, TO_DEST, Message
from .history import History, Kept
from .pubsubwire import POSITION_SIZE, POSITIONED, Ask, pack_positioned
from .retained import Retained
from .rights import RemoteSub
from .subscribers import Subscribers

if TYPE_CHECKING:
    from .replaying import Replays

__all__ = ["Keeper"]


class Keeper:
    """The history of one Pub, and the retained values and replays that come out of it.

    Args:
        core: of its socket.
        options: of its socket.
        spawn: its ``_spawn``.
        subscribers: its subscribers.
        history: None if it keeps nothing but retained values.

    Attributes:
        history: None until something is kept.
        retained: sends the retained values to subscribers without a 0x05.
        replays: the subscriptions with a 0x05; None before the first one.
        put_to: sends to those who want a publication, as ``ProtocolSocket.put_group`` or ``put_copies`` does.
    """

    def __init__(
        self,
        core: ProtocolSocket,
        options: Options,
        spawn: Callable[..., Greenlet[..., Any]],
        subscribers: Subscribers,
        history: History | None,
    ) -> None:
        self._core = core
        self._options = options
        self._spawn = spawn
        self._subscribers = subscribers
        self.put_to = core.put_copies if subscribers.own_copies else core.put_group
        self.history = history
        self.retained = Retained(core, spawn, lambda: self.history)
        self.replays: Replays | None = None

    def _make_history(self) -> History:
        if self.history is None:
            from .memoryhistory import MemoryHistory

            self.history = MemoryHistory()
        return self.history

    # Subscriptions

    def subscribed(self, remote: RemoteSub, pattern: str, ask: Ask | None, is_new: bool) -> bool:
        """Send a subscriber what it may have of what is kept, later. Neither blocks nor switches greenlets.

        Returns:
            Whether that answers the subscription (0x06).
        """
        if ask is not None:
            self._all_replays().ask(remote, ask)
            if is_new and ask.retained:
                self.retained.subscribed(*remote, pattern, unnumbered=True)
        elif is_new:
            self.retained.subscribed(*remote, pattern)
        return self.replays is not None and self.replays.waits(*remote, pattern)

    def expect(self, remote: RemoteSub, ask: Ask) -> None:
        """Send nothing to a subscriber that has sent a 0x05, until :meth:`subscribed` is called for it."""
        self._all_replays().ask(remote, ask, start=False)

    def changed(self, pipe: Pipe) -> None:
        """Find out again who gets what by a pipe: a subscription by it is new."""
        if self.replays is not None:
            self.replays.changed(pipe)

    def _all_replays(self) -> Replays:
        if self.replays is None:
            from .replaying import Replays

            peers = self._subscribers.peers
            self.replays = Replays(self._core, self._options, self._spawn, self._make_history(), peers)
        return self.replays

    def forget(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        """Forget a subscription that has ended. Neither blocks nor switches greenlets."""
        self.retained.unsubscribed(pipe, source, pattern)
        if self.replays is not None:
            self.replays.forget(pipe, source, pattern)

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget the subscribers of a pipe that has closed."""
        if self.replays is not None:
            self.replays.remove_pipe(pipe)

    def replay_again(self) -> None:
        """Answer every 0x05 again."""
        if self.replays is not None:
            self.replays.again()

    def replay_behind(self, offset: int, topics: Collection[str]) -> None:
        """As ``Pub.replay_behind``."""
        if self.replays is not None:
            self.replays.behind(offset, topics)

    # Publications

    def publish(
        self,
        topic: str,
        content: bytes,
        publication: bytes,
        wanted: Collection[Any],
        timeout: float | None,
        retain: bool,
        longest: int,
    ) -> int:
        """Keep a publication if it is to be kept, and send it, to each in its way.

        As ``Pub.publish``, which has called ``begin()``, and does by itself what is needed most.

        Args:
            topic: must be valid.
            content: its content.
            publication: the topic's length, the topic and the content.
            wanted: the pipes that want it; or the subscribers, if each gets its own copy.
            timeout: seconds.
            retain: whether it is the topic's present value.
            longest: the most bytes that a message may have.
        """
        history = self.history or self._make_history()
        if len(publication) > longest - POSITION_SIZE:
            self._core.check_content(bytes(POSITION_SIZE * (retain or history.keeps(topic))) + publication)
        entry = self._retain(history, topic, content) if retain else history.append(topic, content)
        return self.send(entry, publication, topic, wanted, timeout)

    def keep(self, topic: str, content: bytes) -> None:
        """Keep the present value of a topic for later subscriptions, without sending it to those that are there.

        Raises:
            MessageTooLong: it is too long to be sent.
        """
        self._core.check_content(bytes(POSITION_SIZE + 2) + topic.encode() + content)
        self._retain(self._make_history(), topic, content)

    def _retain(self, history: History, topic: str, content: bytes) -> Kept | None:
        """Keep the present value of a topic. Count the values that have to go for it."""
        before = history.dropped.get("retained", 0)
        entry = history.append(topic, content, True)
        for _ in range(history.dropped.get("retained", 0) - before):
            self._core.count_drop("retained")
        return entry

    def send(
        self, entry: Kept | None, publication: bytes, topic: str, wanted: Collection[Any], timeout: float | None
    ) -> int:
        """Send a publication to all that want it, to each in its way. Return the number of pipes that it went to.

        Call ``begin()`` of the core before.

        Args:
            entry: None if it has no position.
            publication: its topic and its content.
            topic: its topic.
            wanted: as in :meth:`publish`.
            timeout: seconds.
        """
        replays = self.replays
        send = self.put_to
        if entry is None or replays is None or not replays.askings:
            if replays is not None and replays.queues:
                replays.overtake(topic)
            return send(wanted, publication, timeout)
        if replays.queues:
            replays.published(entry)
        split = replays.splits.get(topic)
        if split is None or split[0] is not wanted:
            split = replays.split(topic, wanted)
        _, positioned, plain, alone, pipes_alone = split
        content = b""
        if positioned:
            offset, previous, _, _ = entry
            content = pack_positioned(POSITIONED, 0, replays.history.epoch, offset, previous) + publication
        ways = bool(positioned) + bool(plain) + bool(alone)
        if ways > 1 and self._options.get(opts.socket.send_overflow) == "block":
            # One call: a full pipe among the first ones must not keep it from the others, nor its timeout.
            messages = [_message(key, content, CONTROL) for key in positioned]
            messages += [_message(key, publication) for key in (*plain, *alone)]
            return self._core.put_several(messages, timeout)
        count = 0
        if positioned:
            count = send(positioned, content, timeout, CONTROL)
        if plain:
            count += send(plain, publication, timeout)
        if alone:
            count += min(self._core.put_copies(alone, publication, timeout), pipes_alone)
        return count


def _message(key: Pipe | RemoteSub, content: bytes, flags: int = 0) -> tuple[Pipe, Message]:
    """Return a pipe, and a message for all behind it, or along the path of a subscriber."""
    if isinstance(key, RemoteSub):
        return key.pipe, Message(flags | TO_DEST, destination=key.source, content=content)
    return key, Message(flags | TO_ALL, content=content)
