"""A Backplane over each engine: one process publishes, another one subscribes; or four do both.

Processor time is that of one process, without the engine's server. The server is a real one, on loopback, in a process
of its own; an entry whose server is not installed is left out.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .harness import Entry, Failed, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

if TYPE_CHECKING:
    from gmultisocket.backplane import Backplane

__all__ = ["rows"]

_ENGINES = ("hub", "NATS", "Redis")
_SOCKETIO = "python-socketio, Redis"
#: Another architecture: it is written in Go, and uses all cores.
_NATS_SERVER = "nats-server (Go, all cores)"
_SIZE = 64
_TOPIC = "orders.eu.created"
#: The topics with history, where there are any.
_HISTORY = "orders.>"
#: Publications in a row; then others run, as in a program that does something else too.
_BURST = 100
_WORKERS = 4

#: What two processes took: processor seconds of ``publishing`` and ``receiving``, and the ``seconds`` from the first
#: call to the last publication.
_Spent = dict[str, float]


def rows() -> list[Row]:
    """Return the rows of this work."""

    def entries(value: Callable[[int, _Spent], float]) -> list[Entry]:
        ours = [Entry(engine, partial(_flow, engine, value), "gmultisocket") for engine in _ENGINES]
        return [*ours, Entry(_SOCKETIO, partial(_flow, _SOCKETIO, value), "python-socketio", reference=True)]

    def workers(wanted_by: int) -> list[Entry]:
        return [
            Entry("hub", partial(_workers, "hub", wanted_by), "gmultisocket"),
            Entry(_NATS_SERVER, partial(_workers, "NATS", wanted_by), "gmultisocket", reference=True),
        ]

    return [
        Row(
            "plane-publish", "publish {size} on a Backplane, processor time", "µs", False,
            entries(lambda count, spent: spent["publishing"] / count * 1e6),
            [Figure(engine, limit=3) for engine in _ENGINES], repeats=3,
        ),
        Row(
            "plane-receive", "{size} from the engine of a Backplane to a subscription, processor time", "µs", False,
            entries(lambda count, spent: spent["receiving"] / count * 1e6),
            [Figure(engine, limit=3.5) for engine in _ENGINES], repeats=3,
        ),
        Row(
            "plane-end-to-end", "{size} on a Backplane from one process to another", "messages/s", True,
            entries(_rate),
            [Figure(engine, floor=150_000) for engine in _ENGINES], repeats=3,
        ),
        Row(
            "plane-history", "{size} from one process to another, without and with history", "messages/s", True,
            [
                Entry(name, partial(_flow, engine, _rate, full=10_000, history=history), "gmultisocket")
                for engine in _ENGINES
                for name, history in ((engine, False), (f"{engine}, history", True))
            ],
            repeats=3,
        ),
        Row(
            "plane-4-workers-1", "4 workers publish {size}, each publication wanted by one other", "deliveries/s", True,
            workers(1), repeats=3,
        ),
        Row(
            "plane-4-workers-all", "4 workers publish {size}, each publication wanted by the 3 others",
            "deliveries/s", True, workers(_WORKERS - 1), repeats=3,
        ),
    ]  # fmt: skip


def _rate(count: int, spent: _Spent) -> float:
    """Return the publications a second."""
    return count / spent["seconds"]


@contextmanager
def _flow(
    engine: str,
    value: Callable[[int, _Spent], float],
    plan: Plan,
    *,
    full: int = 50_000,
    history: bool = False,
) -> Iterator[Round]:
    """One process publishes, another one receives.

    Args:
        engine: its name.
        value: makes a value of what was spent.
        plan: of the run.
        full: publications of a full run. Fewer than a plane buffers.
        history: whether the engine keeps them.
    """
    count = plan.count(full, part=5000, quick=500)
    task, server = "backplane", engine
    if engine == _SOCKETIO:
        # It takes a tenth of a millisecond for each.
        task, server, count = "contestants.socketio_redis", "Redis", count // 10
    more = {"history": [_HISTORY]} if history else {}
    with _server(server, plan, history=history) as url, started(plan) as start:
        subscriber = start(f"{task}:receive", url=url, count=count, size=_SIZE, **more)
        subscriber.hear()
        publisher = start(f"{task}:publish", url=url, count=count, size=_SIZE, **more)
        publisher.hear()

        def measure() -> Outcome:
            subscriber.tell()
            publisher.tell()
            published, received = publisher.hear(), subscriber.hear()
            spent = {
                "publishing": published["spent"],
                "receiving": received["spent"],
                "seconds": received["end"] - published["begin"],
            }
            return Outcome(value(count, spent), received["size"])

        yield measure


@contextmanager
def _workers(engine: str, wanted_by: int, plan: Plan) -> Iterator[Round]:
    """Some processes publish at the same time, and each one receives what it wants of the others."""
    count = plan.count(10_000, part=1000, quick=100)
    with _server(engine, plan) as url, started(plan) as start:
        peers = [start("backplane:work", url=url, count=count, me=me, wanted_by=wanted_by) for me in range(_WORKERS)]
        for peer in peers:
            peer.hear()

        def measure() -> Outcome:
            for peer in peers:
                peer.tell()
            said = [peer.hear() for peer in peers]
            seconds = max(each["end"] for each in said) - min(each["begin"] for each in said)
            return Outcome(sum(each["received"] for each in said) / seconds, said[0]["size"])

        yield measure


@contextmanager
def _server(engine: str, plan: Plan, *, history: bool = False) -> Iterator[str]:
    """Run the server of an engine, and give its URL.

    Args:
        engine: its name.
        plan: of the run.
        history: whether it must be able to keep history.

    Raises:
        Failed: it is not installed, or does not start.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark") as folder:
        port = _free_port()
        path = f"{folder}/hub"
        url, command = {
            "hub": (f"ipc://{path}", [sys.executable, "-m", "gmultisocket", "hub", f"ipc://{path}"]),
            "NATS": (f"nats://127.0.0.1:{port}", ["nats-server", "-a", "127.0.0.1", "-p", str(port)]),
            "Redis": (
                f"redis://127.0.0.1:{port}",
                ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", folder],
            ),
        }[engine]
        if history:
            command += {"hub": ["--history", _HISTORY], "NATS": ["-js", "-sd", folder], "Redis": []}[engine]
        if shutil.which(command[0]) is None:
            raise Failed(f"{command[0]} is not installed")
        silent = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=plan.folder, stdin=silent, stdout=silent, stderr=silent)
        try:
            end = time.monotonic() + plan.seconds
            while not (Path(path).exists() if engine == "hub" else _listens(port)):
                if process.poll() is not None or time.monotonic() > end:
                    raise Failed(f"{command[0]} does not start")
                time.sleep(0.01)
            yield url
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    """Return a port that nobody uses, and that the system gives to no outgoing connection."""
    while True:
        port = random.randrange(20_000, 32_000)
        if not _listens(port):
            return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def publish(url: str, count: int, size: int, history: Sequence[str] = ()) -> None:
    """Publish in bursts, and say how much processor time it took until all are confirmed (worker)."""
    from gmultisocket.backplane import Backplane

    with Backplane(url, history=history) as plane:
        plane.connect(10)
        say()
        while True:
            hear(in_loop=True)
            begin, spent = time.monotonic(), time.process_time()
            _publish_all(plane, _TOPIC, count, size)
            plane.flush(10)
            say(begin=begin, spent=time.process_time() - spent)


def _publish_all(plane: Backplane, topic: str, count: int, size: int) -> None:
    import gevent

    content = bytes(size)
    for number in range(count):
        plane.publish(topic, content)
        if number % _BURST == 0:
            gevent.sleep(0)


def receive(url: str, count: int, size: int, history: Sequence[str] = ()) -> None:
    """Receive, and say how much processor time it took (worker)."""
    from gmultisocket.backplane import Backplane

    with Backplane(url, history=history) as plane:
        subscription = plane.subscribe("orders.>", 10, queue_size=count + 1)
        say()
        while True:
            hear(in_loop=True)
            spent = time.process_time()
            for _ in range(count):
                size = len(subscription.recv(10)[1])
            say(end=time.monotonic(), spent=time.process_time() - spent, size=size)


def work(url: str, count: int, me: int, wanted_by: int) -> None:
    """Publish, and receive what others publish at the same time (worker)."""
    import gevent

    from gmultisocket.backplane import Backplane

    with Backplane(url) as plane:
        # Not what this worker publishes itself, which needs no engine.
        wanted = [(me + step) % _WORKERS for step in range(1, wanted_by + 1)]
        subscriptions = [plane.subscribe(f"work.{number}", 10, queue_size=count + 1) for number in wanted]
        say()
        while True:
            hear(in_loop=True)
            begin = time.monotonic()
            publishing = gevent.spawn(_publish_all, plane, f"work.{me}", count, _SIZE)
            size = 0
            for subscription in subscriptions:
                for _ in range(count):
                    size = len(subscription.recv(10)[1])
            publishing.get()
            plane.flush(10)
            say(begin=begin, end=time.monotonic(), received=count * wanted_by, size=size)
