"""The request and reply protocols: one client and one server, with one request at a time or many in flight."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from .contestants.protocols import load
from .harness import Entry, Figure, Outcome, Plan, Round, Row, address_of, started
from .worker import hear, say

__all__ = ["rows"]

_CONTESTANTS = ("gmultisocket", "pyzmq", "zmq.green", "pynng")
_SIZE = 64
_WARM_UP = 100
_IN_FLIGHT = 100


def rows() -> list[Row]:
    """Return the rows of this work."""
    single = Row(
        "reqrep-single", "Req and Rep by tcp, {size}, one request at a time", "µs", False,
        [Entry(name, partial(_single, name), name) for name in _CONTESTANTS],
        [Figure("gmultisocket", "zmq.green", at_most=0.45), Figure("gmultisocket", "pynng", at_most=0.3)],
    )  # fmt: skip
    many = Row(
        "reqrep-100", "Req and Rep by tcp, {size}, 100 requests in flight", "requests/s", True,
        [Entry(name, partial(_many, name), name) for name in _CONTESTANTS], repeats=3,
    )  # fmt: skip
    return [single, many]


@contextmanager
def _single(contestant: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(3000, part=400, quick=100)
    with _asking(contestant, plan, "reqrep:ask", count) as ask_round:

        def measure() -> Outcome:
            seconds, size = ask_round()
            return Outcome(seconds / count * 1e6, size)

        yield measure


@contextmanager
def _many(contestant: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(10_000, part=5000, quick=200)
    with _asking(contestant, plan, "reqrep:ask_many", count) as ask_round:

        def measure() -> Outcome:
            seconds, size = ask_round()
            return Outcome(count / seconds, size)

        yield measure


@contextmanager
def _asking(contestant: str, plan: Plan, task: str, count: int) -> Iterator[Callable[[], tuple[float, int]]]:
    """Yield a function that does one round, and returns its seconds and the content bytes of a reply."""
    with address_of("tcp") as address, started(plan) as start:
        server = start("reqrep:answer", contestant=contestant, address=address)
        client = start(task, contestant=contestant, count=count)
        client.tell(address=server.hear()["address"])
        client.hear()

        def ask_round() -> tuple[float, int]:
            client.tell()
            answered = client.hear()
            return answered["seconds"], answered["size"]

        yield ask_round


def answer(contestant: str, address: str) -> None:
    """Answer every request with its own content (worker)."""
    load(contestant).answer(address, lambda where: say(address=where))


def ask(contestant: str, count: int) -> None:
    """Send a request and wait for the reply, ``count`` times a round (worker)."""
    peer = load(contestant)
    peer.dial_rep(hear()["address"])
    content = b"x" * _SIZE
    ask = peer.ask
    for _ in range(_WARM_UP):
        size = len(ask(content))
    say(ready=True)
    while True:
        hear()
        begin = time.monotonic()
        for _ in range(count):
            ask(content)
        say(seconds=time.monotonic() - begin, size=size)


def ask_many(contestant: str, count: int) -> None:
    """Send ``count`` requests a round, with many of them in flight (worker)."""
    run = load(contestant).ask_many(hear()["address"], b"x" * _SIZE, _IN_FLIGHT)
    run(_WARM_UP)
    say(ready=True)
    while True:
        hear()
        begin = time.monotonic()
        size = run(count)
        say(seconds=time.monotonic() - begin, size=size)
