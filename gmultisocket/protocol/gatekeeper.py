"""Refuses, revokes and grants subscriptions at a Pub.

With ``authorize``, a subscription is in the index only after that has decided. A right must hold behind a switch as
well, and a switch passes a publication on to everybody. So a Pub with ``authorize`` refuses subscribers behind a
switch, or sends each subscriber its own copy along its path.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent import Greenlet

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import NotSupported, SubscriptionRefused, snippet
from ..log import get_logger
from ..loop.yielding import yield_to_loop
from ..options import Options
from ..wire import Message
from .history import History
from .holding import Holding
from .keeper import Keeper
from .outbox import Outbox
from .owed import Owed
from .pubsubwire import REFUSED, SUBSCRIBED, Ask, Refused
from .rights import Authorize, Refusers, RemoteSub, Rights
from .subscribers import Peer, Subscriber, Subscribers
from .upstream import control

__all__ = ["Gatekeeper"]

logger = get_logger("gmultisocket.protocol")

#: Memory of unsent answers to one pipe, in bytes. While they take more, refusals are counted, but not sent, and neither
#: are answers to subscriptions that have ended.
_MAX_UNSENT: Final = 1 << 20
#: After this number of subscriptions others run.
_PORTION: Final = 256
#: Subscribers behind one pipe whose 0x05 may wait for its 0x01.
_MAX_ASKS: Final = 1024
#: Calls of ``authorize`` that one recheck makes at once.
_RECHECKS: Final = 8


class Gatekeeper:
    """The subscriptions of one Pub, and its answers to them.

    Args:
        core: of its socket.
        options: of its socket.
        spawn: its ``_spawn``.
        authorize: the program's; None if everybody may have everything.
        through_switches: whether subscribers behind a switch may ask for anything. Then each gets its own copy.
        history: the Pub's; None if it keeps nothing but retained values.

    Attributes:
        subscribers: what they have.
        outbox: what was not sent to them. The key of the answer to a subscription is its source and its pattern.
        own_copies: whether each subscriber gets its own copy of a publication.
        restricted: whether there is ``authorize``.
        keeper: what it keeps, and what a new subscription gets of that.
        holding: the acknowledgements that are held back.
        silenced: not empty if messages of some subscribers are dropped.
        on_new_behind_switch: called when a subscriber behind a switch gets a subscription. Must not block.
    """

    def __init__(
        self,
        core: ProtocolSocket,
        options: Options,
        spawn: Callable[..., Greenlet[..., Any]],
        authorize: Authorize | None,
        through_switches: bool,
        history: History | None,
    ) -> None:
        self._core = core
        self._options = options
        self._spawn = spawn
        self.restricted = authorize is not None
        self.own_copies = self.restricted and through_switches
        self._rights = Rights(authorize, options, spawn, self._decided) if authorize is not None else None
        self._refusers = Refusers()
        self.silenced = self._refusers.silenced
        self.outbox = Outbox(core, spawn)
        self.subscribers = Subscribers(
            spawn,
            self._forget_answer,
            self._subscribes_too_much if self.restricted else None,
            self.own_copies,
        )  # fmt: skip
        self.keeper = Keeper(core, options, spawn, self.subscribers, history)
        self.holding = Holding(self._answer)
        self._owed = Owed()
        self.on_new_behind_switch: Callable[[], object] = lambda: None
        #: By pipe id and source: the last 0x05, until its 0x01 comes.
        self._asks: dict[int, OrderedDict[bytes, Ask]] = {}
        self._warned: set[str] = set()

    # What comes from subscribers

    def ask(self, peer: Peer, source: bytes, ask: Ask) -> None:
        """Take a 0x05, for the 0x01 that follows. Neither blocks nor switches greenlets."""
        asks = self._asks.setdefault(peer.pipe.id, OrderedDict())
        asks[source] = ask
        asks.move_to_end(source)
        if len(asks) > _MAX_ASKS:
            asks.popitem(last=False)

    def _take_ask(self, peer: Peer, source: bytes, pattern: str) -> Ask | None:
        """Return the 0x05 that came before a 0x01."""
        asks = self._asks.get(peer.pipe.id)
        ask = None if asks is None else asks.get(source)
        if asks is None or ask is None or ask.pattern != pattern:
            return None
        del asks[source]
        if not asks:
            del self._asks[peer.pipe.id]
        return ask

    def subscribe(self, peer: Peer, pattern: str, source: bytes, size: int) -> str:
        """Accept or refuse a subscription, or ask ``authorize``. Neither blocks nor switches greenlets.

        Returns:
            Why it is refused, "" if it is not.
        """
        ask = self._take_ask(peer, source, pattern) if self._asks else None
        if self._rights is None or self.subscribers.has(peer, pattern, source):
            reason = self._accept(peer, pattern, source, size, ask)
        elif source != peer.pipe.path and not self.own_copies:
            reason = "not through a switch"
        else:
            undecided = self._rights.undecided(peer.pipe)
            reason = self.subscribers.refusal(peer, pattern, source, size, undecided)
            if not reason:
                self._rights.ask(RemoteSub(peer.pipe, source), pattern, ask)
        if reason:
            self._refuse(RemoteSub(peer.pipe, source), pattern, reason)
        return reason

    def unsubscribe(self, peer: Peer, pattern: str, source: bytes) -> None:
        """Remove a subscription, if there is one. Neither blocks nor switches greenlets."""
        remote = RemoteSub(peer.pipe, source)
        if self._awaits_answer(remote, pattern):
            self._owed.add(peer.pipe, source, pattern)
        self.subscribers.unsubscribe(peer, pattern, source)
        if self._rights is not None:
            self._rights.cancel(remote, pattern)
        self._forget_unsent(remote, pattern)

    def promise_repeats(self, peer: Peer, source: bytes) -> None:
        """Take a 0x08. Neither blocks nor switches greenlets."""
        self.subscribers.promise_repeats(peer, source)
        if self._rights is not None:
            self._rights.promise_repeats(RemoteSub(peer.pipe, source))

    def is_silenced(self, message: Message) -> bool:
        """Return whether a message comes from a subscriber that was refused too often."""
        return self._refusers.is_silenced(message.pipe_id, message.source)

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget the subscribers of a pipe that has closed."""
        self.subscribers.remove_pipe(pipe)
        self.keeper.remove_pipe(pipe)
        self.holding.remove_pipe(pipe)
        self._owed.remove_pipe(pipe)
        self._asks.pop(pipe.id, None)
        self._refusers.remove_pipe(pipe.id)
        if self._rights is not None:
            self._rights.remove_pipe(pipe)

    # Answers

    def _accept(self, peer: Peer, pattern: str, source: bytes, size: int, ask: Ask | None = None) -> str:
        """Add or repeat a subscription, and acknowledge it. Return why it is refused, "" if it is not."""
        is_new = not self.subscribers.has(peer, pattern, source)
        subscriber = self.subscribers.subscribe(peer, pattern, source, size)
        if not isinstance(subscriber, Subscriber):
            return subscriber
        if self.restricted:
            self._refusers.accepted(peer.pipe.id, source)
        remote = RemoteSub(peer.pipe, subscriber.source)
        if is_new:
            self.keeper.changed(peer.pipe)
            if not remote.direct:
                self.on_new_behind_switch()
        if not self.holding.hold(remote, pattern, ask, is_new):
            self._answer(remote, pattern, ask, is_new)
        elif ask is not None:
            self.keeper.expect(remote, ask)
        return ""

    def _answer(self, remote: RemoteSub, pattern: str, ask: Ask | None, is_new: bool = True) -> None:
        """Acknowledge a subscription: by 0x06, or by 0x02."""
        if not self.keeper.subscribed(remote, pattern, ask, is_new):
            # At most one acknowledgement waits for each subscription, so the limits of subscriptions bound them.
            pipe, source = remote
            answer = control(SUBSCRIBED + pattern.encode(), source)
            self.outbox.forget(pipe, (REFUSED, source, pattern))
            self._post_owed(remote, pattern, answer)
            self.outbox.post(pipe, (source, pattern), answer)

    def _decided(self, remote: RemoteSub, pattern: str, reason: str, ask: Ask | None, repeats: bool) -> None:
        """``authorize`` has decided."""
        peer = self.subscribers.peers.get(remote.pipe.id)
        if peer is None:
            return
        reason = reason or self._accept(peer, pattern, remote.source, len(pattern.encode()), ask)
        if repeats:
            self.subscribers.promise_repeats(peer, remote.source)
        if reason:
            self._core.count_drop("refused subscription", remote.pipe.id)
            self._refuse(remote, pattern, reason)

    def _refuse(self, remote: RemoteSub, pattern: str, reason: str) -> None:
        self._tell(remote, pattern, reason)
        limit = self._options.get(opts.protocol.pubsub.max_refused)
        if self.restricted and limit and self._refusers.refused(remote) >= limit:
            self._exclude(remote, "was refused too many subscriptions")

    def _tell(self, remote: RemoteSub, pattern: str, reason: str, is_answer: bool = True) -> None:
        """Tell a subscriber that a pattern is refused, instead of what waits for it about the pattern.

        Args:
            remote: the subscriber.
            pattern: the pattern.
            reason: for people.
            is_answer: whether it waits for an answer.
        """
        pipe, source = remote
        message = control(Refused(pattern, reason).encode(), source)
        self._forget_unsent(remote, pattern)
        if is_answer:
            self._post_owed(remote, pattern, message)
        self._post(pipe, (source, pattern) if is_answer else (REFUSED, source, pattern), message)

    def _post_owed(self, remote: RemoteSub, pattern: str, answer: Message) -> None:
        """Send an answer for each subscription to a pattern that has ended before it was answered."""
        for _ in range(self._owed.take(*remote, pattern)):
            self._post(remote.pipe, object(), answer)

    def _post(self, pipe: Pipe, key: object, message: Message) -> None:
        """Send an answer that the limits of subscriptions do not bound, unless the peer reads too few of them."""
        if self.outbox.waiting_bytes(pipe) < _MAX_UNSENT:
            self.outbox.post(pipe, key, message)

    def _awaits_answer(self, remote: RemoteSub, pattern: str) -> bool:
        """Return whether the answer to a subscription is still to be made, or to be sent."""
        pipe, source = remote
        replays = self.keeper.replays
        return (
            self.outbox.pending(pipe, (source, pattern)) is not None
            or self.holding.holds(pipe, source, pattern)
            or (replays is not None and replays.waits(pipe, source, pattern))
            or (self._rights is not None and self._rights.find(remote, pattern) is not None)
        )

    def _forget_unsent(self, remote: RemoteSub, pattern: str) -> None:
        """Forget the answer to a subscription, and that it is revoked, if these have not left."""
        pipe, source = remote
        self.outbox.forget(pipe, (source, pattern))
        self.outbox.forget(pipe, (REFUSED, source, pattern))

    def _forget_answer(self, pipe: Pipe, source: bytes, pattern: str) -> None:
        self._forget_unsent(RemoteSub(pipe, source), pattern)
        self.keeper.forget(pipe, source, pattern)
        self.holding.forget(pipe, source, pattern)

    def _subscribes_too_much(self, remote: RemoteSub) -> None:
        self._exclude(remote, "subscribes to one topic in too many ways")

    def _exclude(self, remote: RemoteSub, reason: str) -> None:
        """Close the pipe of a peer, or drop what comes from a subscriber behind a switch for a while."""
        level = logging.DEBUG if reason in self._warned else logging.WARNING
        self._warned.add(reason)
        logger.log(level, "a subscriber at %s %s", snippet(remote.pipe.peer_address), reason)
        if remote.direct:
            # Not here: this runs where nothing may close a pipe.
            self._spawn(remote.pipe.close, f"it {reason}")
        elif seconds := self._options.get(opts.protocol.pubsub.expiry):
            self._refusers.silence(remote, seconds)

    # What the program does

    def revoke(self, remote: RemoteSub, pattern: str, reason: str) -> bool:
        """End a subscription, and tell the subscriber. Return whether there was one."""
        pipe, source = remote
        waits = self._awaits_answer(remote, pattern)
        undecided = self._rights is not None and self._rights.cancel(remote, pattern)
        peer = self.subscribers.peers.get(pipe.id)
        if peer is None:
            return False
        had = self.subscribers.has(peer, pattern, source)
        if had:
            self.subscribers.unsubscribe(peer, pattern, source)
        if had or undecided:
            self._tell(remote, pattern, reason, waits)
        return had or undecided

    def grant(self, remote: RemoteSub, pattern: str) -> bool:
        """Add a subscription without a question. Return whether the subscriber is there.

        Raises:
            NotSupported: it is behind a switch, where others would get what it gets.
            SubscriptionRefused: it is over a limit.
        """
        pipe, source = remote
        if self.restricted and not remote.direct and not self.own_copies:
            raise NotSupported("subscribe_peer", "behind a switch it needs authorize_through_switches=True")
        peer = self.subscribers.peers.get(pipe.id)
        if peer is None:
            return False
        asked = self._rights.find(remote, pattern) if self._rights is not None else None
        # If the subscriber has asked for it, this is the answer, and it may have asked for what it has missed.
        ask = asked.ask if asked is not None else None
        if reason := self._accept(peer, pattern, source, len(pattern.encode()), ask):
            raise SubscriptionRefused(pattern, reason)
        if self._rights is not None and asked is not None:
            self._rights.cancel(remote, pattern)
            if self._rights.repeats(remote):
                self.subscribers.promise_repeats(peer, source)
        return True

    def remove(self, remote: RemoteSub, pattern: str) -> bool:
        """End a subscription without telling the subscriber. Return whether there was one.

        One that is not answered is revoked: the subscriber waits for that.
        """
        if self._awaits_answer(remote, pattern):
            return self.revoke(remote, pattern, "revoked")
        peer = self.subscribers.peers.get(remote.pipe.id)
        if peer is None or not self.subscribers.has(peer, pattern, remote.source):
            return False
        self.subscribers.unsubscribe(peer, pattern, remote.source)
        return True

    def recheck(self, predicate: Callable[[RemoteSub, str], object] | None) -> int:
        """Ask ``authorize`` again about subscriptions, and revoke those that it refuses. Blocks.

        Returns:
            The number of subscriptions that were revoked.

        Raises:
            NotSupported: there is no ``authorize``.
        """
        if self._rights is None:
            raise NotSupported("recheck", "this Pub has no authorize")
        # First: what is decided meanwhile is among the subscriptions then.
        self._rights.decide_again(predicate)
        asked: deque[tuple[RemoteSub, str]] = deque()
        number = 0
        for peer in [*self.subscribers.peers.values()]:
            for source, subscriber in [*peer.subscribers.items()]:
                for pattern in [*subscriber.patterns]:
                    number += 1
                    if number % _PORTION == 0:
                        yield_to_loop()
                    remote = RemoteSub(peer.pipe, source)
                    if predicate is None or predicate(remote, pattern):
                        asked.append((remote, pattern))
        revoked: list[str] = []
        greenlets = [self._spawn(self._recheck, asked, revoked) for _ in range(min(_RECHECKS, len(asked)))]
        try:
            gevent.joinall(greenlets)
        finally:
            gevent.killall(greenlets, block=False)
        return len(revoked)

    def _recheck(self, asked: deque[tuple[RemoteSub, str]], revoked: list[str]) -> None:
        """Ask again about one subscription after the other (some greenlets for each recheck)."""
        assert self._rights is not None
        while asked:
            remote, pattern = asked.popleft()
            peer = self.subscribers.peers.get(remote.pipe.id)
            if peer is None or not self.subscribers.has(peer, pattern, remote.source):
                continue
            reason = self._rights.judge(remote, pattern)
            if reason and self.revoke(remote, pattern, reason):
                revoked.append(pattern)
