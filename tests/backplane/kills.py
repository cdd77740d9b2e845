"""What becomes of publications while the server of planes dies, loses its data or stands still: a table.

``python3 -m tests.backplane.kills`` makes it for a hub, NATS and Redis. Two planes publish 2,000 messages a second
together, and a third one only subscribes. A third of the publications are under a plain topic, the others under topics
with history. :func:`measure` does that with any server.
"""

from __future__ import annotations

import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent

from gmultisocket import Backplane, Sub
from gmultisocket.backplane import Subscription
from gmultisocket.backplane.ledger import Ledger
from gmultisocket.protocol import Gap
from gmultisocket.protocol.subscriptions import matches
from gmultisocket.testing import wait_until
from gmultisocket.testing.engines import ServerProcess, check_sum
from tests.backplane.servers import SAVED, BrokerServer, HubServer, JetStreamServer, RedisServer

__all__ = ["COLUMNS", "HISTORY", "Heard", "Row", "check_rows", "measure", "remember_lost"]

#: The patterns of the topics with history.
HISTORY = ("h.>",)
PLAIN, LOGGED = "t", ("h.a", "h.b")
#: Seconds of publishing before and after the fault.
_AROUND = 1.0
_LIMIT = 40.0
_LAST = b"last"

Row = dict[str, float]
COLUMNS = ("sent", "confirmed", "unconfirmed", "arrived", "missed", "untold", "gaps", "duplicates", "disorder",
           "longest pause")  # fmt: skip


class _Ledger(Ledger):
    """Remembers which publications of a plane were given up, by their numbers from 0. No overflow may drop any.

    Attributes:
        lost: the numbers.
    """

    __slots__ = ("lost",)

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger.max_messages, ledger.max_bytes, ledger.overflow)
        self.lost: set[int] = set()

    @property
    def _first_in_flight(self) -> int:
        return self.confirmed + self.unconfirmed - self.in_flight + sum(self.dropped.values())

    def cut(self) -> None:
        first = self._first_in_flight
        self.lost.update(range(first, first + self.in_flight))
        super().cut()

    def refuse(self, reason: str) -> None:
        self.lost.add(self._first_in_flight)
        super().refuse(reason)


def remember_lost(plane: Backplane) -> set[int]:
    """Remember the numbers of a plane's publications that the server does not confirm, from now on.

    The number of a publication is ``plane.counters.sent`` before it. The plane has published nothing so far.
    """
    link = plane._use()
    assert link.ledger.sent == 0
    link.ledger = ledger = _Ledger(link.ledger)
    return ledger.lost


class Heard:
    """What one subscriber has got of some publishers, and where it was told of gaps.

    A content is the name of the publisher and the number of the publication: ``b"one 17"``.

    Args:
        gaps_in_order: whether it is told of a gap before it gets what follows. A program is not: it has events of the
            plane.

    Attributes:
        gaps: how many gaps it was told of.
        duplicates: publications that came again.
        disorder: those that came behind a later one of their publisher and topic.
        missing: by publisher: the numbers that were in front of a later one of their topic, and have not come.
    """

    def __init__(self, gaps_in_order: bool = True) -> None:
        self._gaps_in_order = gaps_in_order
        self.gaps = self.duplicates = self.disorder = 0
        self.missing: dict[str, set[int]] = {}
        self._untold: dict[str, set[int]] = {}
        #: By publisher and topic: what has come, and the last one; and whether a gap was told since then.
        self._came: dict[tuple[str, str], set[int]] = {}
        self._last: dict[tuple[str, str], int] = {}
        self._told: set[tuple[str, str]] = set()

    def gap(self, gap: Gap | None = None) -> None:
        """Take a gap, None for one of any topic."""
        self.gaps += 1
        for key in self._last:
            _, topic = key
            if gap is None or (gap.topic in (None, topic) and matches(gap.pattern, topic)):
                self._told.add(key)

    def take(self, topic: str, name: str, number: int, sent: Mapping[str, list[int]]) -> None:
        """Take a publication.

        Args:
            topic, name, number: of it.
            sent: by topic: the numbers that this publisher has published there.
        """
        key = name, topic
        came = self._came.setdefault(key, set())
        last = self._last.get(key, -1)
        if number in came:
            self.duplicates += 1
        elif number < last:
            self.disorder += 1
        else:
            numbers = sent[topic]
            missing = numbers[bisect_right(numbers, last) : bisect_left(numbers, number)]
            self.missing.setdefault(name, set()).update(missing)
            if key not in self._told:
                self._untold.setdefault(name, set()).update(missing)
            self._told.discard(key)
            self._last[key] = number
        came.add(number)

    @property
    def arrived(self) -> int:
        """How many have come."""
        return sum(map(len, self._came.values()))

    @property
    def untold(self) -> dict[str, set[int]]:
        """Those that are missing, without those in front of a gap."""
        return {} if self.gaps and not self._gaps_in_order else self._untold


class _Publisher:
    """Publishes under all topics in turn.

    Attributes:
        plane: by which it does.
        lost: the numbers of what was not confirmed.
        sent: by topic: the numbers of what it has published.
    """

    def __init__(self, name: str, plane: Backplane) -> None:
        self.name = name
        self.plane = plane
        self.lost = remember_lost(plane)
        self.sent: dict[str, list[int]] = {topic: [] for topic in (PLAIN, *LOGGED)}

    def publish(self, topic: str, more: bytes = b"") -> None:
        ledger = self.plane._use().ledger
        self.sent[topic].append(ledger.sent)
        self.plane.publish(topic, b"%b %d %b" % (self.name.encode(), ledger.sent, more))

    def run(self, go_on: Callable[[], bool]) -> None:
        """Publish 1,000 times a second."""
        number = 0
        begin = time.monotonic()
        while go_on():
            while number < (time.monotonic() - begin) * 1000:
                self.publish((PLAIN, *LOGGED)[number % 3])
                number += 1
            gevent.sleep(0.005)

    def check(self) -> None:
        """Wait until all is confirmed or given up, and check that it is known what."""
        self.plane.flush(_LIMIT)
        check_sum(self.plane)
        counters = self.plane.counters
        assert len(self.lost) == counters.unconfirmed + sum(counters.dropped.values())


class _Subscriber:
    """Takes what comes to a program or to a Sub, in order, until it has the last of each topic.

    Args:
        source: a subscription of a plane, or a Sub.
        publishers: all that publish.
        topics: the number of topics that match.
    """

    def __init__(self, source: Subscription | Sub, publishers: list[_Publisher], topics: int) -> None:
        self.heard = Heard(gaps_in_order=isinstance(source, Sub))
        self._publishers = {each.name: each for each in publishers}
        self._greenlet = gevent.spawn(self._receive, source, topics * len(publishers))

    def _receive(self, source: Subscription | Sub, last: int) -> None:
        for topic, content in source:
            name, number = content.decode().split()[:2]
            self.heard.take(topic, name, int(number), self._publishers[name].sent)
            last -= content.endswith(_LAST)
            if not last:
                break

    def wait(self) -> None:
        """Block until all have come."""
        self._greenlet.get(timeout=_LIMIT)


def measure(
    server: ServerProcess,
    url: str,
    fate: str,
    seconds: float,
    around: float = _AROUND,
    options: dict[str, Any] | None = None,
) -> dict[str, Row]:
    """Publish while the server is away, and count.

    Args:
        server: runs, and will run afterwards. It keeps the history of :data:`HISTORY`.
        url: of its planes, which do not start servers themselves.
        fate: ``"killed"``; ``"emptied"``: killed, and its files are deleted; or ``"stopped"``.
        seconds: how long it is away.
        around: seconds of publishing before and after that.
        options: of the planes.

    Returns:
        The counts for plain topics and for those with history, under ``"plain"`` and ``"history"``. ``unconfirmed`` has
        those that the server has refused, too. ``missed`` was confirmed and has not come; ``untold`` is the part of it
        of which no gap was told in front of what followed. ``arrived``, ``missed`` and ``gaps`` are those of the worst
        subscriber, the others are sums. The ``gaps`` of topics with history are those that Subs were told of.
    """
    with ExitStack() as stack:
        options = {"plane.start_hub": False, **(options or {})}
        one, two, far = (stack.enter_context(Backplane(url, options, history=HISTORY)) for _ in range(3))
        publishers = [_Publisher("one", one), _Publisher("two", two)]
        plain = _Subscriber(far.subscribe(PLAIN, _LIMIT, queue_size=1 << 20), publishers, 1)
        program = _Subscriber(far.subscribe("h.*", _LIMIT, queue_size=1 << 20), publishers, 2)
        subs = []
        for plane, patterns in ((far, LOGGED), (one, HISTORY)):
            sub = stack.enter_context(Sub({"socket.recv_queue_size": 0xFFFF}))
            sub.dial(plane.pub().listen("tcp://127.0.0.1:0").address)
            for pattern in patterns:
                sub.subscribe(pattern, _LIMIT, recover=True)
            subs.append(_Subscriber(sub, publishers, 2))
            sub.on_gap(subs[-1].heard.gap)
        for each in (plain, program):
            far.on_event(lambda event, heard=each.heard: heard.gap() if event.kind == "gap" else None)  # type: ignore[misc]
        pauses: list[float] = []
        ticker = gevent.spawn(_tick, pauses)
        running = True
        greenlets = [gevent.spawn(publisher.run, lambda: running) for publisher in publishers]
        gevent.sleep(around)
        _strike(server, fate, seconds)
        wait_until(lambda: one.healthy and two.healthy and far.healthy, _LIMIT)
        gevent.sleep(around)
        running = False
        gevent.joinall(greenlets, raise_error=True)
        for publisher in publishers:
            publisher.plane.flush(_LIMIT)
            for topic in publisher.sent:
                publisher.publish(topic, _LAST)
        for subscriber in (plain, program, *subs):
            subscriber.wait()
        ticker.kill()
        for publisher in publishers:
            publisher.check()
        return {
            "plain": _row(publishers, (PLAIN,), [plain], plain.heard.gaps, pauses),
            "history": _row(publishers, LOGGED, [program, *subs], max(each.heard.gaps for each in subs), pauses),
        }


def check_rows(rows: Mapping[str, Row]) -> None:
    """Check what must be true of all rows, also if the server has lost its data."""
    for topics, row in rows.items():
        assert row["untold"] == row["duplicates"] == row["disorder"] == 0, (topics, row)


def _strike(server: ServerProcess, fate: str, seconds: float) -> None:
    """Kill or stop a server, and bring it back."""
    if fate == "stopped":
        server.pause()
        gevent.sleep(seconds)
        server.resume()
        return
    server.kill()
    if fate == "emptied" and isinstance(server, BrokerServer):
        server.delete_data()
    gevent.sleep(seconds)
    server.start()


def _row(
    publishers: list[_Publisher],
    topics: tuple[str, ...],
    subscribers: list[_Subscriber],
    gaps: int,
    pauses: list[float],
) -> Row:
    heard = [each.heard for each in subscribers]
    lost = {each.name: each.lost for each in publishers}

    def confirmed(missing: Mapping[str, set[int]]) -> int:
        return sum(len(numbers - lost[name]) for name, numbers in missing.items())

    sent = sum(len(each.sent[topic]) for each in publishers for topic in topics)
    unconfirmed = sum(len(each.lost.intersection(each.sent[topic])) for each in publishers for topic in topics)
    return {
        "sent": sent,
        "confirmed": sent - unconfirmed,
        "unconfirmed": unconfirmed,
        "arrived": min(each.arrived for each in heard),
        "missed": max(confirmed(each.missing) for each in heard),
        "untold": sum(confirmed(each.untold) for each in heard),
        "gaps": gaps,
        "duplicates": sum(each.duplicates for each in heard),
        "disorder": sum(each.disorder for each in heard),
        "longest pause": max(pauses),
    }


def _tick(pauses: list[float]) -> None:
    """Record by how much the loop is late (a greenlet)."""
    while True:
        before = time.monotonic()
        gevent.sleep(0.01)
        pauses.append(time.monotonic() - before - 0.01)


def _servers(folder: Path) -> dict[str, tuple[BrokerServer, list[tuple[str, float]]]]:
    """Return servers that were not started yet, each with what happens to it, and for how long."""
    killed, emptied, stopped = ("killed", 2.0), ("emptied", 2.0), ("stopped", 5.0)
    return {
        "hub": (HubServer(folder, HISTORY), [killed, stopped, ("stopped", 30.0)]),
        "NATS": (JetStreamServer(folder), [killed, emptied, stopped]),
        "Redis": (RedisServer(folder, SAVED), [killed, emptied, stopped]),
    }


def main() -> None:
    print(f"{'engine':<22}{'topics':<8}" + "".join(f"{column:>14}" for column in COLUMNS))
    with tempfile.TemporaryDirectory() as name:
        for engine, (server, fates) in _servers(Path(name)).items():
            for fate, seconds in fates:
                with server:
                    rows = measure(server, server.url, fate, seconds)
                what = f"{engine} {fate} {seconds:g} s"
                for topics, row in rows.items():
                    print(f"{what:<22}{topics:<8}" + "".join(f"{row[column]:>14.6g}" for column in COLUMNS))


if __name__ == "__main__":
    main()
