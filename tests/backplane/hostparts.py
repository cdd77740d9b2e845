"""The processes of :mod:`tests.backplane.hosts`. Each prints JSON lines, and reads a line before the next step."""

from __future__ import annotations

import http.client
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import gevent
from gevent import socket as gsocket

from gmultisocket.backplane import Backplane
from gmultisocket.contrib.wsgi import mount
from gmultisocket.protocol import Sub
from gmultisocket.testing import wait_until
from tests.backplane.kills import HISTORY, remember_lost

PATIENCE = 40


def step(value: object) -> None:
    """Report a step, and wait for the next one."""
    print(json.dumps(value), flush=True)


def wait_line() -> None:
    gevent.get_hub().threadpool.apply(sys.stdin.readline)


# The application of the gunicorns


@cache
def plane() -> Backplane:
    return Backplane(os.environ["PLANE"])


def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    if environ["REQUEST_METHOD"] == "POST":
        plane().publish("news.all", environ["wsgi.input"].read())
        body = b"ok"
    else:
        plane().connect(PATIENCE)
        body = json.dumps([os.getpid(), plane().healthy, plane().patterns]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


application = mount(lambda: plane().pub(), "/ws", answer)


def request(port: int, method: str, body: bytes = b"") -> bytes:
    """Make a request on a connection of its own: any worker may take it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    # http.client without monkey patching would block the loop.
    connection._create_connection = gsocket.create_connection  # type: ignore[attr-defined]
    try:
        connection.request(method, "/", body)
        return connection.getresponse().read()
    finally:
        connection.close()


def browsers(port: str, count: str, posts: str, name: str) -> None:
    """Subscribe some browsers at a gunicorn, publish by POSTs, and print what each browser has got."""
    number = int(port)

    def listens() -> bool:
        with gsocket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", number)) == 0

    wait_until(listens, PATIENCE, "gunicorn listens")
    subs = [Sub() for _ in range(int(count))]
    for sub in subs:
        sub.dial(f"ws://127.0.0.1:{number}/ws")
        sub.subscribe("news.>", PATIENCE)
    pids = set()

    def all_ready() -> bool:
        pid, healthy, _ = json.loads(request(number, "GET"))
        if healthy:
            pids.add(pid)
        return len(pids) == 2

    wait_until(all_ready, PATIENCE, "both workers are ready")
    step("ready")
    wait_line()
    for each in range(int(posts)):
        assert request(number, "POST", f"{name} {each}".encode()) == b"ok"
    got: list[list[str]] = [[] for _ in subs]

    def receive(sub: Sub, mine: list[str]) -> None:
        while True:
            mine.append(sub.recv()[1].decode())

    receivers = [gevent.spawn(receive, *pair) for pair in zip(subs, got, strict=True)]
    wait_until(lambda: all(len(each) >= 2 * int(posts) for each in got), PATIENCE, "everybody has everything")
    # What would come twice comes before this.
    for sub in subs:
        sub.subscribe("end", PATIENCE)
    gevent.killall(receivers)
    step(got)
    wait_line()


# A program with a plane


def plane_part(url: str) -> None:
    """Publish all the time, and print what became of it."""
    with Backplane(url, history=HISTORY) as mine, Sub({"socket.recv_queue_size": 0xFFFF}) as sub:
        lost = remember_lost(mine)
        mine.connect(PATIENCE)
        name = f"{os.getpid()}-{time.time_ns()}"
        sub.dial(mine.pub().listen("tcp://127.0.0.1:0").address)
        sub.subscribe("h.*", PATIENCE, recover=True)
        gaps: list[str] = []
        sub.on_gap(lambda gap: gaps.append(gap.reason))
        subscription = mine.subscribe("numbers.*", PATIENCE, queue_size=1_000_000)
        here = mine.subscribe(f"numbers.{name}", PATIENCE, queue_size=1_000_000)
        events: list[str] = []
        mine.on_event(lambda event: events.append(event.kind))
        pauses = [0.0]
        running = True
        # The numbers of all publications, by the first token of their topic.
        sent: dict[str, list[int]] = {"numbers": [], "h": []}

        def tick() -> None:
            while True:
                before = time.monotonic()
                gevent.sleep(0.005)
                pauses[0] = max(pauses[0], time.monotonic() - before)

        def publish(kind: str, content: bytes = b"") -> None:
            number = mine.counters.sent
            sent[kind].append(number)
            mine.publish(f"{kind}.{name}", content or b"%d" % number)

        def publish_all() -> None:
            while running:
                for kind in sent:
                    publish(kind)
                gevent.sleep(0.001)

        step(name)
        wait_line()
        # Both have subscribed.
        ticker, publisher = gevent.spawn(tick), gevent.spawn(publish_all)
        wait_until(lambda: mine.counters.confirmed > 100 and mine.counters.received > 100, PATIENCE)
        step("flowing")
        wait_line()
        if url_is_far():
            wait_until(lambda: not mine.healthy and "down" in events, PATIENCE)
            step("down")
            wait_line()
            mine.connect(PATIENCE)
            wait_until(lambda: mine.healthy, PATIENCE)
            seen = mine.counters.received, mine.counters.confirmed
            wait_until(lambda: mine.counters.received > seen[0] + 100 and mine.counters.confirmed > seen[1], PATIENCE)
            step("back")
            wait_line()
        running = False
        publisher.join()
        mine.flush(PATIENCE)
        step("flushed")
        wait_line()
        got: dict[str, dict[str, list[int]]] = {kind: {} for kind in sent}
        for kind in sent:
            publish(kind, b"end")
        for source in (subscription, sub):
            ended = 0
            while ended < 2:
                # The last of each side comes behind all others of that side.
                topic, content = source.recv(PATIENCE)
                kind, _, side = topic.partition(".")
                if content == b"end":
                    ended += 1
                else:
                    got[kind].setdefault(side, []).append(int(content))
        mine.flush(PATIENCE)
        ticker.kill()
        counters = mine.counters._asdict()
        counters["dropped"] = dict(counters["dropped"])
        step({"name": name, "sent": sent, "lost": sorted(lost), "here": here.waiting, "got": got, "gaps": gaps,
              "counters": counters, "events": events, "pause": round(pauses[0], 3)})  # fmt: skip
        wait_line()


def publisher(url: str) -> None:
    """Set present values and nothing else, before, during and after a cut, and wait until the old connection has gone.

    So the server has nothing to send by the old connection that would end it.
    """
    with Backplane(url, {"plane.hold": 0.01}, history=HISTORY) as mine:
        mine.connect(PATIENCE)
        numbers = iter(range(1_000_000))
        events: list[str] = []
        mine.on_event(lambda event: events.append(event.kind))

        def publish() -> int:
            number = next(numbers)
            mine.publish("h.value", b"%d" % number, retain=True)
            return number

        publish()
        mine.flush(PATIENCE)
        step("flowing")
        wait_line()
        # The kernel takes these, and they do not arrive.
        for _ in range(100):
            publish()
        wait_until(lambda: "down" in events, PATIENCE)
        # The next attempt of the old connection, if there is one, then comes later than a new connection.
        attempts = leaving_connections()
        wait_until(lambda: not attempts or leaving_connections() != attempts, PATIENCE)
        step("down")
        wait_line()
        mine.connect(PATIENCE)
        last = publish()
        mine.flush(PATIENCE)
        # What the kernel still has for the old connection, it sends again in some seconds.
        wait_until(lambda: not leaving_connections(), PATIENCE, "the kernel has sent or thrown away the rest")
        step(last)
        wait_line()


def leaving_connections() -> list[str]:
    """Return, for each closed connection of this host that the kernel still has bytes for, how often it sent them."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table][1:]
    return [attempts for _, _, _, state, _, _, attempts, *_ in rows if state in _LEAVING]


#: FIN-WAIT-1, CLOSING and LAST-ACK in the kernel's table of connections.
_LEAVING = ("04", "0B", "09")


def newcomer(url: str) -> None:
    """Print the present value of the publisher's topic."""
    with Backplane(url, history=HISTORY) as mine, Sub() as sub:
        mine.connect(PATIENCE)
        sub.dial(mine.pub().listen("tcp://127.0.0.1:0").address)
        sub.subscribe("h.value", PATIENCE)
        step(int(sub.recv(PATIENCE)[1]))
        wait_line()


def url_is_far() -> bool:
    """Whether this is the second host."""
    with gsocket.socket() as probe:
        try:
            probe.bind(("10.99.0.2", 0))
        except OSError:
            return False
        return True


PARTS: dict[str, Callable[..., None]] = {
    "browsers": browsers, "plane": plane_part, "publisher": publisher, "newcomer": newcomer,
}  # fmt: skip

if __name__ == "__main__":
    PARTS[sys.argv[1]](*sys.argv[2:])
