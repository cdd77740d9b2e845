"""A Backplane over each engine: one process publishes, another one subscribes.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .harness import Entry, Failed, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_ENGINES = ("hub", "NATS", "Redis")
_SIZE = 64
_TOPIC = "orders.eu.created"
#: Publications in a row; then others run, as in a program that does something else too.
_BURST = 100


def rows() -> list[Row]:
    """Return the rows of this work."""

    def entries(value: Callable[[int, dict[str, float]], float]) -> list[Entry]:
        return [Entry(engine, partial(_flow, engine, value), "gmultisocket") for engine in _ENGINES]

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
            entries(lambda count, spent: count / spent["seconds"]), repeats=3,
        ),
    ]  # fmt: skip


@contextmanager
def _flow(engine: str, value: Callable[[int, dict[str, float]], float], plan: Plan) -> Iterator[Round]:
    # Fewer than a plane buffers.
    count = plan.count(50_000, part=5000, quick=500)
    with _server(engine, plan) as url, started(plan) as start:
        subscriber = start("backplane:receive", url=url, count=count)
        subscriber.hear()
        publisher = start("backplane:publish", url=url, count=count)
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
def _server(engine: str, plan: Plan) -> Iterator[str]:
    """Run the server of an engine, and give its URL.

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


def publish(url: str, count: int) -> None:
    """Publish in bursts, and say how much processor time it took until all are confirmed (worker)."""
    import gevent

    from gmultisocket.backplane import Backplane

    content = bytes(_SIZE)
    with Backplane(url) as plane:
        plane.connect(10)
        say()
        while True:
            hear(in_loop=True)
            begin, spent = time.monotonic(), time.process_time()
            for number in range(count):
                plane.publish(_TOPIC, content)
                if number % _BURST == 0:
                    gevent.sleep(0)
            plane.flush(10)
            say(begin=begin, spent=time.process_time() - spent)


def receive(url: str, count: int) -> None:
    """Receive, and say how much processor time it took (worker)."""
    from gmultisocket.backplane import Backplane

    with Backplane(url) as plane:
        subscription = plane.subscribe("orders.>", 10, queue_size=count + 1)
        say()
        while True:
            hear(in_loop=True)
            spent = time.process_time()
            size = 0
            for _ in range(count):
                size = len(subscription.recv(10)[1])
            say(end=time.monotonic(), spent=time.process_time() - spent, size=size)
