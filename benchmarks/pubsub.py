"""Publish and subscribe: one publisher and 1,000 tcp subscribers.

The clock runs from a publish until every subscriber with a matching pattern has the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import cycle, islice

from . import takers
from .contestants.protocols import load
from .harness import Entry, Figure, Outcome, Plan, Round, Row

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green")
_SIZE = 64
_PEERS = 1000
#: A quick round has so many times fewer peers and patterns.
_QUICK = 50
_BURST = 100
_FEWER = "gmultisocket, 1,000 patterns"


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [
        Row(
            "pubsub-1-pattern", "publish {size} to 1,000 tcp subscribers, bursts of 100", "deliveries/s", True,
            [Entry(name, partial(_rate, name), name) for name in _CONTESTANTS],
            [Figure("gmultisocket", "pyzmq", at_least=1)], repeats=3,
        ),
        Row(
            "pubsub-100-patterns", "publish {size} to 10 of 1,000 tcp subscribers, 100 patterns", "µs", False,
            [Entry(name, partial(_cost, name, 100), name) for name in _CONTESTANTS], repeats=3,
        ),
        Row(
            "pubsub-10000-patterns", "publish {size} to 1 of 1,000 tcp subscribers, 10,000 patterns", "µs", False,
            [*(Entry(name, partial(_cost, name, 10_000), name) for name in _CONTESTANTS),
             Entry(_FEWER, partial(_cost, "gmultisocket", 1000), "gmultisocket", reference=True)],
            [Figure("gmultisocket", _FEWER, at_most=1.5)], repeats=3,
        ),
    ]  # fmt: skip


@contextmanager
def _rate(contestant: str, plan: Plan) -> Iterator[Round]:
    bursts = plan.count(5, part=3, quick=2)
    peers = plan.count(_PEERS, part=_PEERS, quick=_PEERS // _QUICK)
    with _publishing(contestant, plan, peers, 1, _BURST, bursts) as publish_round:

        def measure() -> Outcome:
            seconds, size = publish_round()
            return Outcome(peers * _BURST * bursts / seconds, size)

        yield measure


@contextmanager
def _cost(contestant: str, patterns: int, plan: Plan) -> Iterator[Round]:
    bursts = plan.count(10, part=2, quick=2)
    peers = plan.count(_PEERS, part=_PEERS, quick=_PEERS // _QUICK)
    patterns = plan.count(patterns, part=patterns, quick=patterns // _QUICK)
    with _publishing(contestant, plan, peers, patterns, peers, bursts) as publish_round:

        def measure() -> Outcome:
            seconds, size = publish_round()
            return Outcome(seconds / (peers * bursts) * 1e6, size)

        yield measure


def _publishing(
    contestant: str, plan: Plan, peers: int, patterns: int, burst: int, bursts: int
) -> AbstractContextManager[Callable[[], tuple[float, int]]]:
    subscriptions = max(peers, patterns)
    work = {"patterns": patterns, "subscriptions": subscriptions, "burst": burst, "bursts": bursts}
    each = burst * (subscriptions // patterns) // peers
    arguments = {"contestant": contestant, **work}
    return takers.handing_out(
        plan, "pubsub:publish", arguments, kind=takers.SUB, peers=peers, patterns=patterns, burst=each
    )  # fmt: skip


def publish(contestant: str, patterns: int, subscriptions: int, burst: int, bursts: int) -> None:
    """Publish under each topic in turn, and wait until every matching subscriber has the messages (worker)."""
    peer = load(contestant)
    address = peer.listen_pub()
    publish = peer.publish
    topics = cycle([takers.pattern(number) for number in range(patterns)])
    content = b"x" * _SIZE

    def publish_burst() -> None:
        for topic in islice(topics, burst):
            publish(topic, content)

    frame_size = peer.publication_size(takers.pattern(0), _SIZE)
    takers.hand_out(
        peer, address, frame_size, lambda: peer.wait_subscriptions(subscriptions), publish_burst, bursts
    )  # fmt: skip
