"""Fan-out: one publisher, and many peers in one other process (``drain.py``).

The clock runs from a publish until all peers have the message. Over TLS the receivers, which decrypt, would be what is
measured: there it is the processor time of the publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from .contestants import load
from .contestants.base import FAN_OUT
from .harness import Entry, Figure, Outcome, Plan, Round, Row, address_of, started
from .worker import burst_rounds, listen_for_acks, say

__all__ = ["rows"]

_SIZE = 64
_PEERS = 1000
_MANY_PEERS = 10_000
_BROWSERS = 500
_SECURE_PEERS = 200
_BURST = 100
_STUCK = "gmultisocket, 1 stuck peer"
_OURS_BY_TCP = "gmultisocket by tcp"
_BARE_TLS = "gevent.ssl"


def rows() -> list[Row]:
    """Return the rows of this work."""
    all_libraries = ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent")
    single = Row(
        "fanout-single", "fan-out of {size} to 1,000 tcp peers, one publish at a time", "deliveries/s", True,
        [Entry(name, partial(_rate, name, 1, 0), name) for name in all_libraries],
        [Figure("gmultisocket", "gevent", at_least=0.85)],
        repeats=3,
    )  # fmt: skip
    burst = Row(
        "fanout-burst", "fan-out of {size} to 1,000 tcp peers, bursts of 100", "deliveries/s", True,
        [Entry(name, partial(_rate, name, _BURST, 0), name) for name in (*all_libraries, "gmultisocket, queue of 64")],
        [Figure("gmultisocket", "gevent", at_least=0.6), Figure("gmultisocket", "pyzmq", at_least=1)],
    )  # fmt: skip
    stuck = Row(
        "fanout-stuck", "the same bursts with one peer more that does not read", "deliveries/s", True,
        [Entry("gmultisocket", partial(_rate, "gmultisocket", _BURST, 0), "gmultisocket", reference=True),
         Entry(_STUCK, partial(_rate, "gmultisocket", _BURST, 1), "gmultisocket")],
        [Figure(_STUCK, "gmultisocket", at_least=0.9)],
    )  # fmt: skip
    secure = map(_secure, ("tls", "wss"), ("tls+tcp", "wss"))
    return [single, burst, stuck, _many(), _ws(), *secure, *map(_browsers, (1, _BURST))]


def _many() -> Row:
    entries = [
        Entry(f"{name}, {peers:,} peers", partial(_cost, name, peers), name, reference=peers == _PEERS)
        for name in ("gmultisocket", "gevent")
        for peers in (_PEERS, _MANY_PEERS)
    ]
    figure = Figure("gmultisocket, 10,000 peers", "gmultisocket, 1,000 peers", at_most=1.3)
    title = "a delivery of {size} at 10,000 tcp peers, one publish at a time"
    return Row("fanout-10000", title, "µs", False, entries, [figure], repeats=3, seconds=60)


def _ws() -> Row:
    entries = [
        Entry("gmultisocket", partial(_rate, "gmultisocket", _BURST, 0, transport="ws"), "gmultisocket"),
        Entry(_OURS_BY_TCP, partial(_rate, "gmultisocket", _BURST, 0), "gmultisocket", reference=True),
    ]
    figure = Figure("gmultisocket", _OURS_BY_TCP, at_least=0.7)
    title = "fan-out of {size} to 1,000 ws peers, bursts of 100"
    return Row("fanout-ws", title, "deliveries/s", True, entries, [figure], repeats=3)


def _secure(name: str, scheme: str) -> Row:
    entries = [
        Entry("gmultisocket", partial(_processor_time, "gmultisocket", scheme), "gmultisocket"),
        Entry(_BARE_TLS, partial(_processor_time, _BARE_TLS, "tls+tcp"), _BARE_TLS),
    ]
    figure = Figure("gmultisocket", _BARE_TLS, at_most=1.1)
    title = f"a delivery of {{size}} at {_SECURE_PEERS} {name} peers, one publish at a time, processor time"
    return Row(f"fanout-{name}", title, "µs", False, entries, [figure], repeats=3, seconds=30)


def _browsers(burst: int) -> Row:
    entries = [
        Entry(name, partial(_rate, name, burst, 0, transport="ws", peers=_BROWSERS), name)
        for name in ("gmultisocket in pywsgi", "gmultisocket", "python-socketio")
    ]
    name, how = ("single", "one publish at a time") if burst == 1 else ("burst", f"bursts of {burst}")
    title = f"fan-out of {{size}} to {_BROWSERS} ws peers, {how}"
    figure = Figure("gmultisocket in pywsgi", "python-socketio", at_least=2)
    return Row(f"browsers-{name}", title, "deliveries/s", True, entries, [figure], repeats=3, seconds=30)


@contextmanager
def _rate(
    contestant: str, burst: int, stuck: int, plan: Plan, transport: str = "tcp", peers: int = _PEERS
) -> Iterator[Round]:
    peers = plan.count(peers, part=peers, quick=20)
    bursts = plan.count(max(5, 100 // burst), part=max(4, 6 // burst), quick=2)
    work = {"peers": peers, "burst": burst, "bursts": bursts, "stuck": stuck}
    with _publishing(contestant, transport, plan, work) as publish_round:

        def measure() -> Outcome:
            spent = publish_round()
            return Outcome(peers * burst * bursts / spent.seconds, spent.size)

        yield measure


@contextmanager
def _cost(contestant: str, peers: int, plan: Plan) -> Iterator[Round]:
    bursts = plan.count(100_000 // peers, part=3, quick=2)
    peers = plan.count(peers, part=min(peers, 3000), quick=peers // 100)
    work = {"peers": peers, "burst": 1, "bursts": bursts, "stuck": 0}
    with _publishing(contestant, "tcp", plan, work) as publish_round:

        def measure() -> Outcome:
            spent = publish_round()
            return Outcome(spent.seconds / (peers * bursts) * 1e6, spent.size)

        yield measure


@contextmanager
def _processor_time(contestant: str, transport: str, plan: Plan) -> Iterator[Round]:
    peers = plan.count(_SECURE_PEERS, part=_SECURE_PEERS, quick=20)
    bursts = plan.count(100, part=10, quick=2)
    work = {"peers": peers, "burst": 1, "bursts": bursts, "stuck": 0}
    with _publishing(contestant, transport, plan, work) as publish_round:

        def measure() -> Outcome:
            spent = publish_round()
            return Outcome(spent.processor / (peers * bursts) * 1e6, spent.size)

        yield measure


class _Spent(NamedTuple):
    """What a round took: seconds, and seconds of the publisher's processor; and the content bytes of a message."""

    seconds: float
    processor: float
    size: int


@contextmanager
def _publishing(contestant: str, transport: str, plan: Plan, work: dict[str, int]) -> Iterator[Callable[[], _Spent]]:
    """Yield a function that does one round."""
    with address_of(transport) as address, started(plan) as start:
        publisher = start("fanout:publish", contestant=contestant, address=address, **work)
        drain = start("drain:drain")
        drain.tell(**publisher.hear(), peers=work["peers"], stuck=work["stuck"], burst=work["burst"])
        drain.hear()
        size = int(drain.hear()["size"])

        def publish_round() -> _Spent:
            publisher.tell()
            heard = publisher.hear()
            return _Spent(heard["seconds"], heard["processor"], size)

        yield publish_round


def publish(contestant: str, address: str, peers: int, burst: int, bursts: int, stuck: int) -> None:
    """Publish a burst and wait until all peers have it, ``bursts`` times a round (worker)."""
    peer: Any = load(contestant)
    listener = listen_for_acks(green=peer.green)
    address = peer.listen(FAN_OUT, address)
    say(address=address, acks=listener.getsockname()[1], handshake=peer.handshake, frame_size=peer.frame_size(_SIZE))
    acks, _ = listener.accept()
    peer.wait_peers(peers + stuck)
    if stuck:
        peer.stuff()
    content = b"x" * _SIZE
    burst_rounds(acks, lambda: peer.burst(content, burst) if burst > 1 else peer.publish(content), bursts)
