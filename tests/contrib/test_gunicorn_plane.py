"""gunicorn with two workers and a backplane: what one worker is told reaches the subscribers of both, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Sub
from gmultisocket.testing import wait_until
from tests.backplane.servers import JetStreamServer, RedisServer
from tests.browser.agents import NODE, PRELUDE, node
from tests.contrib.gunicorns import PATIENCE, ROOT, Gunicorn, running, standing_still
from tests.faults.process import needs

SUBSCRIBERS = 40
POSTS = 200
_PUBLISH = """
import sys
from gmultisocket import Backplane
with Backplane(sys.argv[1]) as plane:
    plane.publish("said", sys.argv[2].encode())
"""


def fetch(address: str, content: bytes | None = None, path: str = "/") -> dict[str, Any]:
    """Get, or post to, a page of the application, and return what it says."""
    host, port = address.removeprefix("ws://").removesuffix("/ws").split(":")
    method = "GET" if content is None else "POST"
    body = content or b""
    with gsocket.create_connection((host, int(port)), timeout=PATIENCE) as sock:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
    state: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return state


def states(address: str, workers: int = 2) -> dict[int, dict[str, Any]]:
    """Return the states of all workers, by pid."""
    found: dict[int, dict[str, Any]] = {}

    def ask() -> bool:
        state = fetch(address)
        found[state["pid"]] = state
        return len(found) >= workers

    wait_until(ask, PATIENCE)
    return found


def wait_subscribed(address: str) -> None:
    """Wait until the hub serves the subscribers of all workers."""
    wait_until(lambda: all(_is_served(state) for state in states(address).values()), PATIENCE)


def _is_served(state: dict[str, Any]) -> bool:
    return state["healthy"] and (not state["subscriptions"] or "said" in state["patterns"])


class Crowd:
    """Subscribers of a gunicorn's workers."""

    def __init__(self, address: str, stack: ExitStack, number: int = SUBSCRIBERS) -> None:
        self.address = address
        self.subs = [stack.enter_context(Sub({"socket.recv_queue_size": 4096})) for _ in range(number)]
        # Half of them at each worker.
        workers = [*states(address)]
        for turn, standing in enumerate(workers):
            with standing_still(standing):
                for sub in self.subs[turn::2]:
                    sub.dial(address, {"connector.dialer.max_reconnect_time": 0.5})
                    sub.subscribe("said", PATIENCE)
        wait_subscribed(address)

    def hear_all(self, contents: set[bytes]) -> None:
        """Check that each gets each of the contents once, and nothing else before."""
        for sub in self.subs:
            heard = [sub.recv(PATIENCE)[1] for _ in contents]
            assert sorted(heard) == sorted(contents)

    def wait_back(self) -> None:
        """Wait until everybody is connected again, and hears what is said; forget what was said before."""
        wait_until(lambda: all(sub.pipes for sub in self.subs), PATIENCE)
        for sub in self.subs:
            sub.subscribe("said", PATIENCE)
        wait_subscribed(self.address)
        fetch(self.address, b"everybody is back")
        for sub in self.subs:
            while sub.recv(PATIENCE)[1] != b"everybody is back":
                pass


def post_all(address: str, contents: set[bytes]) -> None:
    """Post contents by some clients at once."""
    left = list(contents)

    def post() -> None:
        while left:
            fetch(address, left.pop())

    for client in [gevent.spawn(post) for _ in range(4)]:
        client.get()


def hub_of(server: Gunicorn) -> int:
    """Return the process of the hub of a master, 0 if there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if parent == server.process.pid and b"hub" in words:
                    return int(folder.name)
    return 0


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[tuple[Gunicorn, str]]:
    """A gunicorn with a hub, and the URL of its plane. At the end the hub has ended too."""
    url = f"ipc://{folder}/hub"
    with joined_by(url, folder, monkeypatch, *arguments) as server:
        hub = hub_of(server)
        assert hub
        yield server, url
        last = hub_of(server)
    assert not Path(f"/proc/{last}").exists()


@contextmanager
def joined_by(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Iterator[Gunicorn]:
    """A gunicorn whose workers have planes with a URL. At the end it ends in order."""
    monkeypatch.setenv("PLANE", url)
    configuration = str(ROOT / "tests/contrib/planed.py")
    with running(folder, "-c", configuration, "--pythonpath", str(ROOT), *arguments, app="") as server:
        yield server
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert server.process.returncode == 0, server.log


def test_what_any_worker_is_told_reaches_every_subscriber_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as (server, url), ExitStack() as stack:
        crowd = Crowd(server.address, stack)
        contents = {b"%d" % number for number in range(POSTS)}
        post_all(server.address, contents)
        crowd.hear_all(contents)
        subprocess.run([sys.executable, "-c", _PUBLISH, url, "from a script"], check=True, cwd=ROOT)
        crowd.hear_all({b"from a script"})
        for state in states(server.address).values():
            counters = state["counters"]
            assert counters["sent"] == counters["confirmed"] > 0, "it was told nothing, or it did not leave"
            assert counters["duplicates"] == counters["gaps"] == 0


def test_a_reload_and_max_requests_replace_the_workers_and_not_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch, "--max-requests", "150") as (server, _), ExitStack() as stack:
        hub = hub_of(server)
        crowd = Crowd(server.address, stack, 10)
        before = set(states(server.address))
        server.stop(signal.SIGHUP)
        wait_until(lambda: not before & set(states(server.address)), PATIENCE)
        crowd.wait_back()
        fetch(server.address, b"after the reload")
        crowd.hear_all({b"after the reload"})
        before = set(states(server.address))
        wait_until(lambda: not before & set(states(server.address)), PATIENCE, "new workers by max_requests")
        crowd.wait_back()
        fetch(server.address, b"after max_requests")
        crowd.hear_all({b"after max_requests"})
        assert hub_of(server) == hub


@contextmanager
def joined_by_engine(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gunicorn]:
    """A gunicorn whose planes use an engine."""
    if engine == "hub":
        with serving(folder, monkeypatch) as (server, _):
            yield server
        return
    kind = {"nats": JetStreamServer, "redis": RedisServer}[engine]
    with kind(folder) as broker, joined_by(broker.url, folder, monkeypatch) as server:
        yield server


def kill_worker(address: str, pid: int) -> None:
    """Kill a worker, when all that any worker has published has left it. Blocks until it is dead."""

    def all_has_left() -> bool:
        counters = [state["counters"] for state in states(address).values()]
        return all(each["sent"] == each["confirmed"] for each in counters)

    wait_until(all_has_left, PATIENCE)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: has_ended(pid), PATIENCE)


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, though its parent may not know it yet."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


@needs(f"{NODE} --version")
@pytest.mark.parametrize("engine", ["hub", "nats", "redis"])
def test_subscribers_that_come_back_to_new_workers_have_missed_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """A worker is killed, with its subscribers. With a hub, all workers are replaced by a reload as well."""
    with joined_by_engine(engine, tmp_path, monkeypatch) as server, node() as js, Sub() as sub:
        gaps: list[str] = []
        sub.on_gap(lambda gap: gaps.append(gap.reason))
        other, worker = states(server.address)
        with standing_still(other):
            sub.dial(server.address, {"connector.dialer.max_reconnect_time": 0.2})
            sub.subscribe("log", PATIENCE, recover=True)
            js.evaluate(PRELUDE)
            js.evaluate(f"""
                const see = message => kept.seen.push(message.text());
                await kept.make("{server.address}").subscribe("log", see, {{recover: true}}).ready;
            """)
        posted: list[bytes] = []

        def post(number: int) -> None:
            for _ in range(number):
                posted.append(b"%d" % len(posted))
                fetch(server.address, posted[-1], "/log")

        post(10)
        kill_worker(server.address, worker)
        post(10)
        # gunicorn waits half a minute for a worker that has to stop while it starts.
        states(server.address)
        if engine == "hub":
            before = set(states(server.address))
            server.stop(signal.SIGHUP)
            while before & set(states(server.address)):
                post(5)
            post(5)
        heard = [sub.recv(PATIENCE)[1] for _ in posted]
        # Posts at two workers have no order.
        assert sorted(heard) == sorted(posted)
        js.evaluate(f"await kept.until(() => kept.seen.length >= {len(posted)})")
        assert [each.encode() for each in js.evaluate("return kept.seen")] == heard
        assert gaps == []
        kinds = [event["type"] for event in js.evaluate("return kept.events")]
        assert "gap" not in kinds
        assert "close" in kinds, "nobody has lost a connection"


@pytest.mark.parametrize("fate", ["it is killed", "its path is removed"])
def test_a_hub_that_dies_is_replaced_and_every_publication_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    with serving(tmp_path, monkeypatch) as (server, _), ExitStack() as stack:
        crowd = Crowd(server.address, stack, 10)
        hub = hub_of(server)
        posting = gevent.spawn(post_all, server.address, {b"%d" % number for number in range(100)})
        if fate == "it is killed":
            os.kill(hub, signal.SIGKILL)
        else:
            (tmp_path / "hub").unlink()
        wait_until(lambda: hub_of(server) not in (0, hub), PATIENCE)
        posting.get()
        wait_subscribed(server.address)
        fetch(server.address, b"again")
        for sub in crowd.subs:
            # What has waited for the hub at one worker may come later than what was said at another.
            heard = [sub.recv(PATIENCE)[1]]
            while heard[-1] != b"again":
                heard.append(sub.recv(PATIENCE)[1])
            assert len(heard) == len(set(heard)), "duplicates"
        assert server.log.count("The hub at") == 1
        for state in states(server.address).values():
            counters = state["counters"]
            known = sum(counters[name] for name in ("confirmed", "dropped", "unconfirmed", "buffered"))
            assert counters["sent"] == known
            assert counters["gaps"] == 1
