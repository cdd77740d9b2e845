"""Inside one process: a sender and a receiver, and very many clients of one server."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from .contestants import load
from .harness import Entry, Figure, Outcome, Row, Scale, started
from .worker import say

__all__ = ["rows"]

_SIZE = 64
_CLIENTS = 20_000
_ROUNDS = 10


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


def _rate(contestant: str, scale: Scale) -> Outcome:
    count = scale.count(200_000, 1000)
    with started(scale) as start:
        done = start("inproc:one_way", contestant=contestant, count=count).hear()
        return Outcome(count / done["seconds"], done["size"])


def _crowd(task: str, scale: Scale) -> Outcome:
    with started(scale) as start:
        done = start(f"inproc:{task}", clients=scale.count(_CLIENTS, 50)).hear()
        return Outcome(done["seconds"], done["size"])


def one_way(contestant: str, count: int) -> None:
    """Send in one greenlet, or thread where the library holds up threads, and receive in another (worker)."""
    peer = load(contestant)
    send, recv = peer.in_process()
    content = b"x" * _SIZE

    def send_them() -> None:
        for _ in range(count + 1):
            send(content)

    if peer.green:
        from gevent import spawn

        sender: Any = spawn(send_them)
    else:
        from threading import Thread

        sender = Thread(target=send_them, daemon=True)
        sender.start()
    recv()
    begin = time.monotonic()
    for _ in range(count):
        received = recv()
    say(seconds=time.monotonic() - begin, size=len(received))


def replies(clients: int) -> None:
    """Have every client ask ten times, each waiting for the reply before it asks again (worker)."""
    import gevent

    server, sockets = _connected(clients)
    content = b"x" * _SIZE
    total = 0

    def serve() -> None:
        for message in server:
            server.send_to(message.source, message.content)

    def ask(socket: Any) -> None:
        nonlocal total
        for _ in range(_ROUNDS):
            socket.send(content)
            received = socket.recv()
            total += len(received)

    begin = time.monotonic()
    gevent.spawn(serve)
    gevent.joinall([gevent.spawn(ask, socket) for socket in sockets])
    say(seconds=time.monotonic() - begin, size=total // clients // _ROUNDS)


def send_all(clients: int) -> None:
    """Send to every client ten times, and have every client receive it each time (worker)."""
    server, sockets = _connected(clients)
    content = b"x" * _SIZE
    total = 0
    begin = time.monotonic()
    for _ in range(_ROUNDS):
        server.send_all(content)
        for socket in sockets:
            total += len(socket.recv())
    say(seconds=time.monotonic() - begin, size=total // clients // _ROUNDS)


def _connected(clients: int) -> tuple[Any, list[Any]]:
    from gmultisocket import Socket

    server = Socket()
    server.listen("inproc://crowd")
    sockets = [Socket() for _ in range(clients)]
    for socket in sockets:
        socket.dial("inproc://crowd")
    server.wait_pipes(clients)
    return server, sockets
