"""A backplane with a hub: one process publishes, another one has subscribed; both and the hub are processes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_SIZE = 64
#: Publications between two waits for their confirmation.
_FLUSH = 8000


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [
        Row(
            "plane-publish", "backplane, publish {size}: processor time of the publisher", "µs", False,
            [Entry("gmultisocket", partial(_measure, "publish"), "gmultisocket")],
            [Figure("gmultisocket", limit=3.0)],
        ),
        Row(
            "plane-receive", "backplane, {size}: processor time of the subscriber", "µs", False,
            [Entry("gmultisocket", partial(_measure, "receive"), "gmultisocket")],
            [Figure("gmultisocket", limit=3.5)],
        ),
        Row(
            "plane-end-to-end", "backplane, {size}, from one process to another one", "messages/s", True,
            [Entry("gmultisocket", partial(_measure, "rate"), "gmultisocket")],
        ),
    ]  # fmt: skip


@contextmanager
def _measure(what: str, plan: Plan) -> Iterator[Round]:
    count = plan.count(100_000, part=25_000, quick=1000)
    with tempfile.TemporaryDirectory() as folder, started(plan) as start:
        url = f"ipc://{folder}/hub"
        start("backplane:hub", url=url).hear()
        subscriber = start("backplane:subscriber", url=url, count=count)
        subscriber.hear()
        publisher = start("backplane:publisher", url=url, count=count)
        publisher.hear()

        def measure() -> Outcome:
            subscriber.tell()
            publisher.tell()
            published, received = publisher.hear(), subscriber.hear()
            value = {
                "publish": published["cpu"] / count * 1e6,
                "receive": received["cpu"] / count * 1e6,
                "rate": count / received["seconds"],
            }[what]
            return Outcome(value, received["size"])

        yield measure


def hub(url: str) -> None:
    """Run a hub (worker)."""
    import gevent

    from gmultisocket.backplane.hubserver import HubServer
    from gmultisocket.core.connecting.listener import Listener

    class Hub(HubServer):
        def _listening(self, listener: Listener) -> None:
            say(ready=True)

    with Hub() as server:
        gevent.spawn(server.serve, url).join()


def publisher(url: str, count: int) -> None:
    """Publish ``count`` contents a round, and wait until the hub has them (worker)."""
    from gmultisocket import Backplane

    plane = Backplane(url)
    plane.connect(10)
    content = os.urandom(_SIZE)
    say(ready=True)
    while True:
        hear(in_loop=True)
        begin = time.process_time()
        for number in range(1, count + 1):
            plane.publish("orders.eu.created", content)
            if number % _FLUSH == 0:
                plane.flush()
        plane.flush()
        say(cpu=time.process_time() - begin)


def subscriber(url: str, count: int) -> None:
    """Receive ``count`` publications a round (worker)."""
    from gmultisocket import Backplane

    subscription = Backplane(url).subscribe("orders.>", 10, queue_size=count)
    say(ready=True)
    while True:
        hear(in_loop=True)
        _, content = subscription.recv()
        begin, cpu = time.monotonic(), time.process_time()
        for _ in range(count - 1):
            _, content = subscription.recv()
        say(seconds=time.monotonic() - begin, cpu=time.process_time() - cpu, size=len(content))
