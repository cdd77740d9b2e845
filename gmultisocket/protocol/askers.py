"""Publishers that ask who is there (0x04), and the answers of a Sub.

A Pub asks once by each new pipe. Behind a switch that is how it finds the Subs that were there before it. A Sub answers
the asker alone, by its subscriptions. So that many Subs do not answer at the same time, each waits for a random time.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, Final

import gevent
from gevent import Greenlet

from ..core.pipes.pipe import Pipe
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, ForkedSocketError
from ..loop.yielding import keep_to_turn, yield_to_loop
from .pubsubwire import REPEATS, SUBSCRIBE
from .upstream import Upstream, control

__all__ = ["Askers"]

#: Seconds: an answer waits for up to this time for each publisher that is known, but for no more than the second one.
_DELAY: Final = 0.15
_MAX_DELAY: Final = 2.0
#: Seconds between two answers to one asker.
_PAUSE: Final = 1.0
#: Askers by one pipe that wait for their answer. More get none: the Sub repeats its subscriptions anyway.
_MAX_WAITING: Final = 256
#: After this number of subscriptions others run.
_PORTION: Final = 256


class Askers:
    """The askers of one Sub.

    Args:
        core: of its socket.
        spawn: its ``_spawn``.
        patterns: what it has subscribed to. It may change at any time.
        repeats: whether it repeats its subscriptions through switches.
        question: called as ``question(pattern, pipe id)``: returns the 0x05 to send before a subscription: the present
            one by that pipe. b"" for none; None if the subscription will be sent to all soon.
    """

    __slots__ = ("_answered", "_core", "_patterns", "_question", "_repeats", "_spawn", "_waiting")

    def __init__(
        self,
        core: ProtocolSocket,
        spawn: Callable[..., Greenlet[..., Any]],
        patterns: Collection[str],
        repeats: Callable[[], bool],
        question: Callable[[str, int], bytes | None],
    ) -> None:
        self._core = core
        self._repeats = repeats
        self._spawn = spawn
        self._patterns = patterns
        self._question = question
        #: By pipe: the askers that wait for their answer.
        self._waiting: dict[Pipe, set[bytes]] = {}
        #: By source, oldest first: when an asker was last answered. Has those of the last second.
        self._answered: OrderedDict[bytes, float] = OrderedDict()

    def ask(self, upstream: Upstream, source: bytes) -> None:
        """Answer an asker later. Neither blocks nor switches greenlets."""
        pipe = upstream.pipe
        if source == pipe.path:
            # It is the peer, which gets every subscription since the pipe is open.
            return
        now = monotonic()
        while self._answered and now - next(iter(self._answered.values())) > _PAUSE:
            self._answered.popitem(last=False)
        waiting = self._waiting.setdefault(pipe, set())
        if source in waiting or len(waiting) >= _MAX_WAITING:
            return
        waiting.add(source)
        delay = random.random() * min(_DELAY * len(upstream.publishers), _MAX_DELAY)
        again = self._answered[source] + _PAUSE - now if source in self._answered else 0.0
        self._spawn(self._answer, upstream, source, max(delay, again))

    def _answer(self, upstream: Upstream, source: bytes, delay: float) -> None:
        """Send all subscriptions to one asker (a greenlet for each asker that waits)."""
        pipe = upstream.pipe
        try:
            gevent.sleep(delay)
            keep_to_turn()
            for number, pattern in enumerate([*self._patterns], 1):
                if number % _PORTION == 0:
                    yield_to_loop()
                if not self._core.wait_writable(pipe):
                    return
                if pattern in self._patterns and source not in upstream.refusals.get(pattern, ()):
                    question = self._question(pattern, pipe.id)
                    if question is None:
                        continue
                    if question:
                        self._core.put(pipe, control(question, source))
                    self._core.put(pipe, control(SUBSCRIBE + pattern.encode(), source))
                    upstream.expect(pattern, source)
            if self._patterns and self._repeats() and self._core.wait_writable(pipe):
                self._core.put(pipe, control(REPEATS, source))
        except (Closed, ForkedSocketError):
            pass
        finally:
            self._answered[source] = monotonic()
            self._answered.move_to_end(source)
            waiting = self._waiting[pipe]
            waiting.discard(source)
            if not waiting:
                del self._waiting[pipe]
