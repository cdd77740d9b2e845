"""Inside one process: one sender and one receiver; and 20,000 clients of one server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from .contestants import load
from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_SIZE = 64
_CLIENTS = 20_000
#: Messages to each client, in a full round.
_REPEATS = 10


def rows() -> list[Row]:
    """Return the rows of this work."""
    one_way = Row(
        "inproc-64", "inproc one way, {size}", "messages/s", True,
        [Entry(name, partial(_rate, name), name) for name in
         ("gmultisocket", "SimpleQueue", "zmq.green", "pyzmq", "pynng")],
        [Figure("gmultisocket", "SimpleQueue", at_least=0.25)],
    )  # fmt: skip
    crowds = [
        Row(
            f"inproc-20000-{task}", f"20,000 inproc clients x 10 {task}, {{size}}", "s", False,
            [Entry("gmultisocket", partial(_crowd, task), "gmultisocket")],
            [Figure("gmultisocket", limit=limit)],
            repeats=3,
            seconds=60,
        )
        for task, limit in (("replies", 5.0), ("send_all", 3.5))
    ]  # fmt: skip
    return [one_way, *crowds]


@contextmanager
def _rate(contestant: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(200_000, part=25_000, quick=1000)
    with started(plan) as start:
        worker = start("inproc:one_way", contestant=contestant, count=count)
        worker.hear()

        def measure() -> Outcome:
            worker.tell()
            done = worker.hear()
            return Outcome(count / done["seconds"], done["size"])

        yield measure


@contextmanager
def _crowd(task: str, plan: Plan) -> Iterator[Round]:
    clients = plan.count(_CLIENTS, part=_CLIENTS // 5, quick=50)
    repeats = plan.count(_REPEATS, part=1 if task == "replies" else 3, quick=_REPEATS)
    with started(plan) as start:
        worker = start(f"inproc:{task}", clients=clients, repeats=repeats)
        worker.hear()

        def measure() -> Outcome:
            worker.tell()
            done = worker.hear()
            return Outcome(done["seconds"], done["size"])

        yield measure


def one_way(contestant: str, count: int) -> None:
    """Send in one greenlet and receive in another; or in threads, if the library blocks its thread (worker)."""
    peer = load(contestant)
    send, recv = peer.in_process()
    content = b"x" * _SIZE

    def send_rounds() -> None:
        send(content)
        while True:
            go.acquire()
            for _ in range(count):
                send(content)

    if peer.green:
        from gevent import spawn
        from gevent.lock import Semaphore

        go: Any = Semaphore(0)
        sender: Any = spawn(send_rounds)
    else:
        import threading

        go = threading.Semaphore(0)
        sender = threading.Thread(target=send_rounds, daemon=True)
        sender.start()
    recv()
    say(ready=True)
    while True:
        hear()
        begin = time.monotonic()
        go.release()
        for _ in range(count):
            received = recv()
        say(seconds=time.monotonic() - begin, size=len(received))


def replies(clients: int, repeats: int) -> None:
    """In every client, send ``repeats`` requests a round, and wait for each reply before the next one (worker)."""
    import gevent

    server, sockets = _connected(clients)
    content = b"x" * _SIZE
    total = 0

    def serve() -> None:
        for message in server:
            server.send_to(message.source, message.content)

    def ask(socket: Any) -> None:
        nonlocal total
        for _ in range(repeats):
            socket.send(content)
            received = socket.recv()
            total += len(received)

    gevent.spawn(serve)
    say(ready=True)
    while True:
        hear()
        total = 0
        begin = time.monotonic()
        gevent.joinall([gevent.spawn(ask, socket) for socket in sockets])
        say(seconds=time.monotonic() - begin, size=total // clients // repeats)


def send_all(clients: int, repeats: int) -> None:
    """Send to all clients ``repeats`` times a round; each client receives each message (worker)."""
    server, sockets = _connected(clients)
    content = b"x" * _SIZE
    say(ready=True)
    while True:
        hear()
        total = 0
        begin = time.monotonic()
        for _ in range(repeats):
            server.send_all(content)
            for socket in sockets:
                total += len(socket.recv())
        say(seconds=time.monotonic() - begin, size=total // clients // repeats)


def _connected(clients: int) -> tuple[Any, list[Any]]:
    from gmultisocket import Socket

    server = Socket()
    server.listen("inproc://crowd")
    sockets = [Socket() for _ in range(clients)]
    for socket in sockets:
        socket.dial("inproc://crowd")
    server.wait_pipes(clients)
    return server, sockets
