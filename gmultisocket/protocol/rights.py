"""Who may subscribe to what at a Pub: the answers of ``authorize``, and subscribers that are refused too often.

``authorize`` is the program's, and may block, hang and fail. Each call runs in its own greenlet, with a deadline. A
bounded number of calls runs at once, and fewer for one pipe, so that one peer does not keep the others waiting. What
waits is bounded by the patterns that a pipe may have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from time import monotonic
from typing import Any, Final, NamedTuple

from gevent import Greenlet

from .. import options as opts
from .. import usercode
from ..core.pipes.pipe import Pipe
from ..errors import snippet
from ..log import get_logger
from ..loop.ending import Ended, end
from ..options import Options
from .pubsubwire import Ask

__all__ = ["Authorize", "Refusers", "RemoteSub", "Rights"]

logger = get_logger("gmultisocket.protocol")

#: The part of all calls that may run for one pipe.
_SHARE: Final = 8
#: What the subscriber hears of an ``authorize`` that fails.
_UNDECIDED: Final = "the publisher could not decide"
#: Sources behind one pipe whose refusals are counted, and that are silenced. The oldest are forgotten.
_MAX_SOURCES: Final = 1024


class RemoteSub(NamedTuple):
    """A subscriber of a Pub: the peer of a pipe, or one behind it.

    Attributes:
        pipe: the pipe that leads to it.
        source: the path to it.
    """

    pipe: Pipe
    source: bytes

    @property
    def direct(self) -> bool:
        """Whether it is the peer of the pipe itself, with no switch between."""
        return self.source == self.pipe.path

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """What is known of the peer, as ``pipe.identity``; None behind a switch, where nothing is known."""
        return self.pipe.identity if self.direct else None


Authorize = Callable[[RemoteSub, str], "bool | str"]


class _Asked:
    """A subscription about which ``authorize`` has not decided yet.

    Attributes:
        remote: who wants it.
        pattern: what it wants.
        ask: its last 0x05 for it, None without one.
        again: whether a permission of the call that runs counts no more: it may be from before the rights have changed.
    """

    __slots__ = ("again", "ask", "pattern", "remote")

    def __init__(self, remote: RemoteSub, pattern: str) -> None:
        self.remote = remote
        self.pattern = pattern
        self.ask: Ask | None = None
        self.again = False


class _Pipe:
    """What was asked by one pipe.

    Attributes:
        asked: by source and pattern: all that is not decided.
        waiting: those for which no call has begun, oldest first.
        running: the number of calls that run.
        repeating: subscribers that have said meanwhile that they repeat their subscriptions (0x08).
    """

    __slots__ = ("asked", "repeating", "running", "waiting")

    def __init__(self) -> None:
        self.repeating: set[bytes] = set()
        self.asked: dict[Hashable, _Asked] = {}
        self.waiting: OrderedDict[Hashable, _Asked] = OrderedDict()
        self.running = 0


class Rights:
    """The calls of ``authorize`` of one Pub.

    Args:
        authorize: the program's.
        options: of the Pub's socket.
        spawn: the Pub's ``_spawn``.
        decided: called as ``decided(remote, pattern, reason, ask, repeats)`` when it has decided; ``reason`` is "" if
            the subscriber may, ``ask`` its 0x05, and ``repeats`` whether it has said that it repeats its subscriptions.
            Must not block.
    """

    __slots__ = ("__weakref__", "_authorize", "_decided", "_deciding", "_logged", "_options", "_pipes", "_ready",
                 "_spawn")  # fmt: skip

    def __init__(
        self,
        authorize: Authorize,
        options: Options,
        spawn: Callable[..., Greenlet[..., Any]],
        decided: Callable[[RemoteSub, str, str, Ask | None, bool], object],
    ) -> None:
        self._authorize = authorize
        self._options = options
        self._spawn = spawn
        self._decided = decided
        self._pipes: dict[Pipe, _Pipe] = {}
        #: Those for which a call may begin, the one whose turn it is first.
        self._ready: OrderedDict[Pipe, _Pipe] = OrderedDict()
        #: Those for which a call runs; some may be cancelled.
        self._deciding: set[_Asked] = set()
        self._logged: set[str] = set()

    def undecided(self, pipe: Pipe) -> int:
        """Return the number of subscriptions by a pipe that are not decided."""
        state = self._pipes.get(pipe)
        return len(state.asked) if state is not None else 0

    def ask(self, remote: RemoteSub, pattern: str, ask: Ask | None) -> None:
        """Start to decide about a subscription, unless that has begun. Neither blocks nor switches greenlets."""
        state = self._pipes.setdefault(remote.pipe, _Pipe())
        key = (remote.source, pattern)
        is_new = key not in state.asked
        if is_new:
            state.asked[key] = state.waiting[key] = _Asked(remote, pattern)
        if ask is not None:
            state.asked[key].ask = ask
        if is_new:
            self._start(remote.pipe, state)

    def promise_repeats(self, remote: RemoteSub) -> None:
        """Remember that a subscriber repeats its subscriptions, if it may be one about which nothing is decided yet."""
        state = self._pipes.get(remote.pipe)
        if state is not None and len(state.repeating) < _MAX_SOURCES:
            state.repeating.add(remote.source)

    def repeats(self, remote: RemoteSub) -> bool:
        """Return whether a subscriber about which something is undecided has said that it repeats its subscriptions."""
        state = self._pipes.get(remote.pipe)
        return state is not None and remote.source in state.repeating

    def find(self, remote: RemoteSub, pattern: str) -> _Asked | None:
        """Return a subscription that is not decided, None if there is none."""
        state = self._pipes.get(remote.pipe)
        return None if state is None else state.asked.get((remote.source, pattern))

    def decide_again(self, predicate: Callable[[RemoteSub, str], object] | None) -> None:
        """Take no permission of a call that runs now: call ``authorize`` once more. ``predicate`` may block.

        Args:
            predicate: chooses the subscriptions; None for all.
        """
        for asked in [*self._deciding]:
            if predicate is None or predicate(asked.remote, asked.pattern):
                asked.again = True

    def cancel(self, remote: RemoteSub, pattern: str) -> bool:
        """Do not decide. Return whether it would have."""
        state = self._pipes.get(remote.pipe)
        key = (remote.source, pattern)
        if state is None or state.asked.pop(key, None) is None:
            return False
        state.waiting.pop(key, None)
        return True

    def remove_pipe(self, pipe: Pipe) -> None:
        """Forget what was asked by a pipe."""
        state = self._pipes.pop(pipe, None)
        if state is not None:
            state.asked.clear()
            state.waiting.clear()
            self._ready.pop(pipe, None)

    def _start(self, pipe: Pipe, changed: _Pipe) -> None:
        """Begin as many calls as may run, for one pipe after the other. ``changed`` is of a pipe for which more may."""
        limit = self._options.get(opts.protocol.pubsub.max_authorizing)
        share = max(1, limit // _SHARE)
        if changed.waiting and changed.running < share:
            self._ready.setdefault(pipe, changed)
        while self._ready and len(self._deciding) < limit:
            pipe, state = self._ready.popitem(last=False)
            if not state.waiting:
                continue
            key, asked = state.waiting.popitem(last=False)
            state.running += 1
            self._deciding.add(asked)
            self._spawn(self._decide, state, key, asked)
            if state.waiting and state.running < share:
                self._ready[pipe] = state

    def _decide(self, state: _Pipe, key: Hashable, asked: _Asked) -> None:
        """Decide about one subscription (a greenlet for each call)."""
        try:
            reason = self.judge(asked.remote, asked.pattern)
            while asked.again and not reason and state.asked.get(key) is asked:
                asked.again = False
                reason = self.judge(asked.remote, asked.pattern)
        finally:
            self._deciding.discard(asked)
            state.running -= 1
        # Otherwise it was cancelled meanwhile, and perhaps asked for again.
        if state.asked.get(key) is asked:
            del state.asked[key]
            self._decided(asked.remote, asked.pattern, reason, asked.ask, asked.remote.source in state.repeating)
        pipe = asked.remote.pipe
        if not state.asked and not state.running and self._pipes.get(pipe) is state:
            del self._pipes[pipe]
        self._start(pipe, state)

    def judge(self, remote: RemoteSub, pattern: str) -> str:
        """Call ``authorize``. Return why the subscriber may not, "" if it may. Blocks until the deadline at most."""
        call = self._spawn(self._call, remote, pattern)
        try:
            call.join(self._options.get(opts.protocol.pubsub.authorize_timeout) or None)
        except BaseException:
            end(call)
            raise
        if not call.ready():
            end(call)
            self._log("late", "authorize has not decided in time about %s: refused", pattern)
            return "the publisher could not decide in time"
        # Anything else than a text is of a call that something killed.
        return call.value if isinstance(call.value, str) else _UNDECIDED

    def _call(self, remote: RemoteSub, pattern: str) -> str:
        try:
            verdict = self._authorize(remote, pattern)
        except Ended:
            raise
        except BaseException as error:
            # Without the pattern, which would make each of a peer's subscriptions an error of another kind.
            what = "authorize failed, and the subscription is refused"
            usercode.report(logger.name, what, error, self, pipe_id=remote.pipe.id, peer=remote.pipe.peer_address)
            return _UNDECIDED
        if verdict is True:
            return ""
        if verdict is False:
            return "not allowed"
        if isinstance(verdict, str):
            return verdict or "not allowed"
        self._log("no verdict", "authorize returned no bool and no str about %s: refused", pattern)
        return _UNDECIDED

    def _log(self, kind: str, text: str, pattern: str) -> None:
        if kind in self._logged:
            logger.debug(text, snippet(pattern))
        else:
            self._logged.add(kind)
            logger.error(text, snippet(pattern))


class Refusers:
    """Subscribers that are refused too often.

    Attributes:
        silenced: by pipe and source: until when messages of a subscriber are dropped. Read-only.
    """

    __slots__ = ("_counts", "silenced")

    def __init__(self) -> None:
        #: By pipe id and source: the refusals since the last subscription that was not refused.
        self._counts: dict[int, OrderedDict[bytes, int]] = {}
        self.silenced: dict[int, OrderedDict[bytes, float]] = {}

    def refused(self, remote: RemoteSub) -> int:
        """Count a refusal. Return how many there have been."""
        counts = self._counts.setdefault(remote.pipe.id, OrderedDict())
        count = counts[remote.source] = counts.pop(remote.source, 0) + 1
        if len(counts) > _MAX_SOURCES:
            counts.popitem(last=False)
        return count

    def accepted(self, pipe_id: int, source: bytes) -> None:
        """Record that a subscription was not refused."""
        counts = self._counts.get(pipe_id)
        if counts is not None:
            counts.pop(source, None)

    def silence(self, remote: RemoteSub, seconds: float) -> None:
        """Drop the messages of a subscriber for some time."""
        silenced = self.silenced.setdefault(remote.pipe.id, OrderedDict())
        silenced[remote.source] = monotonic() + seconds
        if len(silenced) > _MAX_SOURCES:
            silenced.popitem(last=False)
        self.accepted(remote.pipe.id, remote.source)

    def is_silenced(self, pipe_id: int, source: bytes) -> bool:
        """Return whether a message has to be dropped."""
        silenced = self.silenced.get(pipe_id)
        if silenced is None or source not in silenced:
            return False
        if monotonic() < silenced[source]:
            return True
        del silenced[source]
        if not silenced:
            del self.silenced[pipe_id]
        return False

    def remove_pipe(self, pipe_id: int) -> None:
        """Forget the subscribers of a pipe."""
        self._counts.pop(pipe_id, None)
        self.silenced.pop(pipe_id, None)
