"""The request and reply protocols: one request at a time, and many in flight, by one client of one server."""

from __future__ import annotations

import time
from functools import partial

from .contestants.protocols import load
from .harness import Entry, Figure, Outcome, Row, Scale, address_of, started
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


def _single(contestant: str, scale: Scale) -> Outcome:
    count = scale.count(3000, 100)
    seconds, size = _run(contestant, scale, "reqrep:ask", count)
    return Outcome(seconds / count * 1e6, size)


def _many(contestant: str, scale: Scale) -> Outcome:
    count = scale.count(10_000, 200)
    seconds, size = _run(contestant, scale, "reqrep:ask_many", count)
    return Outcome(count / seconds, size)


def _run(contestant: str, scale: Scale, task: str, count: int) -> tuple[float, int]:
    with address_of("tcp") as address, started(scale) as start:
        server = start("reqrep:answer", contestant=contestant, address=address)
        client = start(task, contestant=contestant, count=count)
        client.tell(address=server.hear()["address"])
        answered = client.hear()
        return answered["seconds"], answered["size"]


def answer(contestant: str, address: str) -> None:
    """Answer with what was asked, until the process is ended (worker)."""
    load(contestant).answer(address, lambda where: say(address=where))


def ask(contestant: str, count: int) -> None:
    """Ask and wait for the reply, again and again (worker)."""
    peer = load(contestant)
    peer.dial_rep(hear()["address"])
    content = b"x" * _SIZE
    ask = peer.ask
    for _ in range(_WARM_UP):
        size = len(ask(content))
    begin = time.monotonic()
    for _ in range(count):
        ask(content)
    say(seconds=time.monotonic() - begin, size=size)


def ask_many(contestant: str, count: int) -> None:
    """Ask with many requests in flight (worker)."""
    run = load(contestant).ask_many(hear()["address"], b"x" * _SIZE, _IN_FLIGHT)
    run(_WARM_UP)
    begin = time.monotonic()
    size = run(count)
    say(seconds=time.monotonic() - begin, size=size)
