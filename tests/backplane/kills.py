"""What becomes of publications while the server of a plane dies or stands still: a table.

``python3 -m tests.backplane.kills`` runs a hub, and kills it or stops it, while one plane publishes 1,000 messages a
second and another one has subscribed. :func:`measure` does that with any server.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable

import gevent

from gmultisocket import Backplane
from gmultisocket.backplane import Subscription
from gmultisocket.testing.engines import ServerProcess
from tests.backplane.hubs import hub

__all__ = ["COLUMNS", "Row", "measure"]

#: Seconds of publishing before and after the fault.
_AROUND = 1.0
_LIMIT = 20.0

Row = dict[str, float]
COLUMNS = ("sent", "confirmed", "dropped", "unconfirmed", "buffered", "arrived", "missing", "gaps", "duplicates",
           "longest pause")  # fmt: skip


def measure(server: ServerProcess, url: str, fate: str, seconds: float) -> Row:
    """Publish while the server is away, and count.

    Args:
        server: runs, and will run afterwards.
        url: of its planes, which do not start servers themselves.
        fate: ``"killed"`` or ``"stopped"``.
        seconds: how long it is away.
    """
    with Backplane(url, {"plane.start_hub": False}) as one, Backplane(url, {"plane.start_hub": False}) as other:
        one.connect(_LIMIT)
        subscription = other.subscribe("t", _LIMIT, queue_size=1 << 20)
        pauses: list[float] = []
        ticker = gevent.spawn(_tick, pauses)
        end = time.monotonic() + 2 * _AROUND + seconds
        publisher = gevent.spawn(_publish, one, lambda: time.monotonic() < end)
        gevent.sleep(_AROUND)
        (server.kill if fate == "killed" else server.pause)()
        gevent.sleep(seconds)
        (server.start if fate == "killed" else server.resume)()
        sent = publisher.get()
        for plane in (one, other):
            plane.connect(_LIMIT)
        one.flush(_LIMIT)
        one.publish("t", b"last")
        got = _read_to_last(subscription)
        ticker.kill()
        one.flush(_LIMIT)
        counters = one.counters
        return {
            "sent": counters.sent,
            "confirmed": counters.confirmed,
            "dropped": sum(counters.dropped.values()),
            "unconfirmed": counters.unconfirmed,
            "buffered": counters.buffered,
            "arrived": len(set(got)) + 1,
            "missing": len(set(range(sent)) - set(got)),
            "gaps": other.counters.gaps,
            "duplicates": len(got) - len(set(got)),
            "longest pause": max(pauses),
        }


def _publish(plane: Backplane, go_on: Callable[[], bool]) -> int:
    """Publish numbers, 1,000 a second. Return how many."""
    number = 0
    begin = time.monotonic()
    while go_on():
        while number < (time.monotonic() - begin) * 1000:
            plane.publish("t", b"%d" % number)
            number += 1
        gevent.sleep(0.005)
    return number


def _read_to_last(subscription: Subscription) -> list[int]:
    got: list[int] = []
    while (content := subscription.recv(_LIMIT)[1]) != b"last":
        got.append(int(content))
    return got


def _tick(pauses: list[float]) -> None:
    """Record by how much the loop is late (a greenlet)."""
    while True:
        before = time.monotonic()
        gevent.sleep(0.01)
        pauses.append(time.monotonic() - before - 0.01)


def main() -> None:
    print(f"{'hub':<14}" + "".join(f"{column:>14}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as folder:
        url = f"ipc://{folder}/hub"
        with hub(url) as server:
            for fate, seconds in (("killed", 2.0), ("stopped", 5.0), ("stopped", 30.0)):
                row = measure(server, url, fate, seconds)
                print(f"{f'{fate} {seconds:g} s':<14}" + "".join(f"{row[column]:>14.6g}" for column in COLUMNS))


if __name__ == "__main__":
    main()
