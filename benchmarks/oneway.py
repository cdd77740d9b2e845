"""One way: a sender and a receiver, one ``send`` and one ``recv`` a message.

The clock runs from the sender's first call to the receiver's last return.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from .contestants import load
from .contestants.base import ONE_WAY
from .harness import Entry, Figure, Outcome, Peer, Plan, Round, Row, address_of, started
from .worker import hear, say

__all__ = ["one_way", "rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng", "gevent")
_UNLIMITED = "pyzmq, no limit"
#: Content bytes -> messages in a round, full and part.
_COUNTS = {64: (100_000, 15_000), 1024: (60_000, 10_000), 65536: (6_000, 900)}
_QUICK_COUNT = 500
_FIGURES = {
    64: (Figure("gmultisocket", "zmq.green", at_least=8), Figure("gmultisocket", "pyzmq", at_least=0.8)),
    1024: (Figure("gmultisocket", "zmq.green", at_least=6), Figure("gmultisocket", "pyzmq", at_least=0.8)),
    65536: (Figure("gmultisocket", "pyzmq", at_least=1.2),),
}
_OURS_BY_TCP = "gmultisocket by tcp"


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [*(_row(transport, size) for transport in ("tcp", "ipc") for size in _COUNTS), _ws(), _tls()]


def _row(transport: str, size: int) -> Row:
    entries = [Entry(name, partial(_run, name, transport, size), name) for name in _CONTESTANTS]
    figures = list(_FIGURES[size])
    if transport == "tcp":
        entries.append(Entry(_UNLIMITED, partial(_run, _UNLIMITED, transport, size), _UNLIMITED))
    else:
        entries.insert(1, _by_tcp(size))
        figures = [Figure("gmultisocket", _OURS_BY_TCP, at_least=1)]
    title = f"{transport} one way, {{size}}"
    return Row(f"oneway-{transport}-{size}", title, "messages/s", True, entries, figures)


def _by_tcp(size: int) -> Entry:
    return Entry(_OURS_BY_TCP, partial(_run, "gmultisocket", "tcp", size), "gmultisocket", reference=True)


def _ws() -> Row:
    entries = [
        Entry("gmultisocket", partial(_run, "gmultisocket", "ws", 64), "gmultisocket"),
        _by_tcp(64),
        Entry("websockets.sync", partial(_run, "websockets.sync", "ws", 64), "websockets.sync"),
    ]
    figures = [
        Figure("gmultisocket", _OURS_BY_TCP, at_least=0.5),
        Figure("gmultisocket", "websockets.sync", at_least=3),
    ]
    return Row("oneway-ws-64", "ws one way, {size}", "messages/s", True, entries, figures)


def _tls() -> Row:
    entries = [Entry(name, partial(_run, name, "tls+tcp", 65536), name) for name in ("gmultisocket", "gevent.ssl")]
    figure = Figure("gmultisocket", "gevent.ssl", at_least=0.8)
    return Row("oneway-tls-65536", "tls+tcp one way, {size}", "messages/s", True, entries, [figure])


@contextmanager
def _run(contestant: str, transport: str, size: int, plan: Plan) -> Iterator[Round]:
    full, part = _COUNTS[size]
    # TLS is several times slower.
    count = plan.count(full, part=part // 3 if transport == "tls+tcp" else part, quick=_QUICK_COUNT)
    with address_of(transport) as address, started(plan) as start:
        receiver = start("oneway:receive", contestant=contestant, address=address, count=count)
        sender = start("oneway:send", contestant=contestant, size=size, count=count)
        yield one_way(sender, receiver, receiver.hear()["address"], count)


def one_way(sender: Peer, receiver: Peer, address: str, count: int) -> Round:
    """Return a round of the workers :func:`send`, which dials ``address``, and :func:`receive`, which is heard of."""
    sender.tell(address=address)
    receiver.hear()

    def measure() -> Outcome:
        sender.tell()
        begin = sender.hear()["begin"]
        received = receiver.hear()
        return Outcome(count / (received["end"] - begin), received["size"])

    return measure


def receive(contestant: str, address: str, count: int) -> None:
    """Receive one message, and then ``count`` messages a round (worker)."""
    peer = load(contestant)
    say(address=peer.listen(ONE_WAY, address))
    size = len(peer.recv())
    recv = peer.recv
    say(ready=True)
    while True:
        for _ in range(count):
            content = recv()
        end = time.monotonic()
        assert len(content) == size
        say(end=end, size=size)


def send(contestant: str, size: int, count: int) -> None:
    """Send one message, and then ``count`` messages a round (worker)."""
    peer = load(contestant)
    peer.dial(ONE_WAY, hear()["address"])
    content = b"x" * size
    send = peer.send
    send(content)
    while True:
        hear(in_loop=peer.green)
        begin = time.monotonic()
        for _ in range(count):
            send(content)
        say(begin=begin)
