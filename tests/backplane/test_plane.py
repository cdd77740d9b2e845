"""The Backplane itself, beyond what the checks of engines say."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Backplane, Sub
from gmultisocket.backplane import PlaneEvent, link
from gmultisocket.backplane.hubhistory import HubHistory
from gmultisocket.backplane.memory import MemoryEngine
from gmultisocket.core.pipes.writepipe import WritePipe
from gmultisocket.errors import (
    AddressError,
    BadOptionValue,
    BadTopic,
    Closed,
    EngineRefused,
    Timeout,
    UnknownTransport,
)
from gmultisocket.protocol import RemoteSub
from gmultisocket.testing import nothing_left, wait_until
from gmultisocket.testing.engines import ServerProcess
from tests.backplane.hubs import hub
from tests.faults.peers import free_port

LIMIT = 20.0

_SCRIPTS = {
    "with": "with Backplane(url) as plane:\n    plane.publish('t', b'from a script')",
    "at the exit": "plane = Backplane(url)\nplane.publish('t', b'from a script')",
    "patched": "with Backplane(url) as plane:\n    plane.publish('t', b'from a script')",
    "after a fork": (
        "import os\nplane = Backplane(url)\npid = os.fork()\n"
        "if not pid:\n    with plane:\n        plane.publish('t', b'from a script')\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0"
    ),
}


def test_a_url_without_an_engine_is_refused_at_once() -> None:
    for url in ("smoke://x", "hub", "", "://"):
        with pytest.raises(UnknownTransport, match=r"there are memory://, ipc://"):
            Backplane(url)


def test_a_wrong_url_is_an_error_at_the_first_use() -> None:
    for url in ("memory://", "memory://a/b", "ipc://" + "x" * 200):
        plane = Backplane(url)
        with pytest.raises(AddressError):
            plane.connect(1.0)


def test_it_opens_nothing_before_it_is_used() -> None:
    with nothing_left():
        plane = Backplane("tcp://user:secret@127.0.0.1:1")
        assert plane.healthy
        assert plane.patterns == ()
        assert plane.counters.sent == 0
        assert repr(plane) == "<Backplane tcp://127.0.0.1:1 unused>"
        assert plane.close() == 0
    with pytest.raises(Closed):
        plane.publish("t", b"")


@pytest.mark.parametrize(
    ("whole", "shown"),
    [
        ("nats://me:s3cret@a:1,you:s3cret@b,c?plane.prefix=x.", "nats://a:1,b,c"),
        ("nats://me:s3,cret@a", "nats://a"),
        ("nats://me:s3@cret@a", "nats://a"),
        ("nats://me:s3?cret@a", "nats://***"),
        ("ipc:///run/app@1/hub?plane.prefix=x.", "ipc:///run/app@1/hub"),
        ("ipc://@hub", "ipc://@hub"),
    ],
)
def test_a_repr_has_the_servers_and_no_secret(whole: str, shown: str) -> None:
    assert repr(Backplane(whole)) == f"<Backplane {shown} unused>"


# Subscriptions


def test_a_queue_that_is_full_drops_by_its_policy() -> None:
    with Backplane("memory://plane") as plane:
        oldest = plane.subscribe("t", queue_size=2)
        newest = plane.subscribe("t", queue_size=2, overflow="drop_newest")
        for number in range(5):
            plane.publish("t", b"%d" % number)
        assert [oldest.recv(0)[1] for _ in range(2)] == [b"3", b"4"]
        assert [newest.recv(0)[1] for _ in range(2)] == [b"0", b"1"]
        assert oldest.dropped == newest.dropped == 3
        with pytest.raises(ValueError, match="queue_size"):
            plane.subscribe("t", queue_size=0)
        with pytest.raises(ValueError, match="overflow"):
            plane.subscribe("t", overflow="block")  # type: ignore[arg-type]


def test_an_iteration_ends_when_the_subscription_or_the_plane_closes() -> None:
    with Backplane("memory://plane") as plane:
        one, other = plane.subscribe("t"), plane.subscribe("t")
        listening = [gevent.spawn(list, each) for each in (one, other)]
        plane.publish("t", b"1")
        with pytest.raises(Timeout):
            plane.subscribe("u").recv(0.01)
        one.close()
        one.close()
        assert listening[0].get(timeout=LIMIT) == [("t", b"1")]
        plane.publish("t", b"2")
    assert listening[1].get(timeout=LIMIT) == [("t", b"1"), ("t", b"2")]


# Pubs


def test_a_pub_of_a_plane_never_blocks() -> None:
    with Backplane("memory://plane") as plane:
        with pytest.raises(BadOptionValue, match="one peer of a plane must not block the others"):
            plane.pub({"socket.send_overflow": "block"})
        pub = plane.pub()
        with pytest.raises(BadOptionValue):
            pub.options.set("socket.send_overflow", "block")
        pub.options.set("socket.send_overflow", "disconnect")


def test_a_pub_that_closes_wants_nothing_any_more() -> None:
    with Backplane("memory://plane", {"plane.linger": 0.0}) as plane, Sub() as sub:
        pub = plane.pub()
        sub.dial(pub.listen("inproc://plane-closes").address)
        sub.subscribe("a.>", LIMIT)
        assert "a.>" in plane.patterns
        pub.close()
        wait_until(lambda: "a.>" not in plane.patterns, LIMIT)
        with pytest.raises(Closed):
            pub.publish("a.b", b"")


def test_a_content_that_is_too_long_for_one_pub_reaches_the_others() -> None:
    with Backplane("memory://plane") as plane, Sub() as sub:
        small = plane.pub({"socket.max_send_content_length": 10})
        sub.dial(small.listen("inproc://plane-small").address)
        sub.subscribe("t", LIMIT)
        subscription = plane.subscribe("t")
        plane.publish("t", bytes(100))
        assert subscription.recv(LIMIT)[1] == bytes(100)
        assert small.counters.drops["too long"] == 1


def test_what_is_published_after_an_acknowledgement_comes(tmp_path: Path) -> None:
    # A hub, and not memory://, where a pattern is wanted by all before anything can be acknowledged.
    address = f"ipc://{tmp_path}/hub"
    with hub(address), Backplane(address) as one, Backplane(address) as other, Sub() as sub:
        sub.dial(one.pub().listen("inproc://plane-acknowledged").address)
        other.connect(LIMIT)
        for number in range(50):
            sub.subscribe(f"t.{number}", LIMIT)
            other.publish(f"t.{number}", b"")
            assert sub.recv(LIMIT) == (f"t.{number}", b"")


def test_while_the_engine_is_away_a_subscription_is_acknowledged_after_a_while() -> None:
    options = {"plane.acknowledge_timeout": 0.05}
    with Backplane(f"tcp://127.0.0.1:{free_port()}", options) as plane, Sub() as sub:
        sub.dial(plane.pub().listen("inproc://plane-away").address)
        sub.subscribe("t", LIMIT)
        plane.publish("t", b"local")
        assert sub.recv(LIMIT) == ("t", b"local")
        plane.close(0.0)


def test_errors_of_callbacks_for_events_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    plane = Backplane("memory://plane")
    events: list[PlaneEvent] = []

    def fail(event: PlaneEvent) -> None:
        raise ValueError("a mistake")

    plane.on_event(fail)
    end = plane.on_event(events.append)
    with plane, caplog.at_level(logging.ERROR):
        plane.connect(LIMIT)
        wait_until(lambda: events == [("up", "")], LIMIT)
        end()
    assert "a backplane event callback failed" in caplog.text


# Programs


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"ipc://{tmp_path_factory.mktemp('plane')}/hub"


@pytest.fixture(scope="module", autouse=True)
def server(url: str) -> Iterator[ServerProcess]:
    with hub(url) as process:
        yield process


def test_a_burst_comes_to_a_subscriber_in_as_few_system_calls_as_to_the_hub(url: str) -> None:
    sizes: list[int] = []
    with Backplane(url) as one, Backplane(url) as other, Sub() as sub:
        pub = other.pub()
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("t", LIMIT)
        (pipe,) = pub.pipes.values()
        assert isinstance(pipe, WritePipe)
        send = pipe._send

        def counting(data: bytes | memoryview) -> int:
            sizes.append(len(data))
            return send(data)

        pipe._send = counting
        for number in range(20):
            one.publish("t", b"%d" % number)
        assert [sub.recv(LIMIT)[1] for _ in range(20)] == [b"%d" % number for number in range(20)]
    # The publisher sends the first one alone, and the others together.
    assert len(sizes) <= 2


@pytest.mark.parametrize("kind", _SCRIPTS)
def test_what_a_script_publishes_has_left_when_it_ends(kind: str, url: str, server: ServerProcess) -> None:
    source = f"from gmultisocket import Backplane\nurl = {url!r}\n{_SCRIPTS[kind]}"
    if kind == "patched":
        source = f"from gevent import monkey; monkey.patch_all()\n{source}"
    with Backplane(url) as plane:
        subscription = plane.subscribe("t", LIMIT)
        script = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", source],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        assert (script.returncode, script.stderr) == (0, "")
        assert subscription.recv(LIMIT) == ("t", b"from a script")


def test_what_memory_keeps_lives_as_long_as_any_plane() -> None:
    with Backplane("memory://kept", history=["h"]) as one:
        one.connect(LIMIT)
        with Backplane("memory://kept", history=["h"]) as other:
            other.publish("v", b"1", retain=True)
            other.publish("h", b"2")
            other.flush(LIMIT)
        with one.subscribe("v", LIMIT) as subscription, one.subscribe("h", LIMIT):
            assert subscription.recv(LIMIT) == ("v", b"1")
        with Backplane("memory://kept", history=["other"]) as third, pytest.raises(EngineRefused):
            third.connect(LIMIT)
    with Backplane("memory://kept") as again, again.subscribe("v", LIMIT) as subscription:
        assert not subscription.waiting


def test_a_history_is_checked_when_a_plane_is_made() -> None:
    with pytest.raises(BadTopic):
        Backplane("memory://kept", history=["a..b"])


class _SlowFetch(MemoryEngine):
    """Fetches one publication after the other, with a pause in front of each."""

    def _fetch(self, history: HubHistory, pattern: str) -> None:
        def pause() -> None:
            gevent.sleep(0.02)

        reports: list[tuple[object, ...]] = []
        report = self._report
        self._report = lambda *each: reports.append(each)  # type: ignore[method-assign]
        try:
            super()._fetch(history, pattern)
        finally:
            self._report = report  # type: ignore[method-assign]
        for each in reports:
            self._report(pause)
            self._report(*each)


def test_a_fetch_that_takes_long_is_no_gap_while_more_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "find_engine", lambda url: _SlowFetch)
    options = {"plane.acknowledge_timeout": 0.1, "plane.linger": 0.0}
    gaps: list[object] = []
    url = "memory://slow"
    with Backplane(url, options, history=["h"]) as one, Backplane(url, options, history=["h"]) as two:
        with Sub({"connector.dialer.reconnect": False}) as sub:
            sub.on_gap(gaps.append)
            sub.dial(one.pub().listen("tcp://127.0.0.1:0").address)
            sub.subscribe("h", 10, recover=True)
            for number in range(40):
                one.publish("h", b"%d" % number)
            assert [sub.recv(10)[1] for _ in range(20)] == [b"%d" % number for number in range(20)]
            for pipe in [*sub.pipes.values()]:
                pipe.close()
            wait_until(lambda: not sub.pipes)
            one.publish("h", b"last")
            one.flush(10)
            # That takes 41 pauses.
            sub.dial(two.pub().listen("tcp://127.0.0.1:0").address)
            got = [sub.recv(10)[1]]
            while got[-1] != b"last":
                got.append(sub.recv(10)[1])
            assert gaps == []
            assert got == [*(b"%d" % number for number in range(20, 40)), b"last"]


def test_a_close_that_is_given_up_closes_all_pubs() -> None:
    with nothing_left(), Backplane("memory://given-up") as plane, Sub({"socket.recv_queue_size": 1}) as behind:
        slow, other = plane.pub(), plane.pub()
        other.listen("tcp://127.0.0.1:0")
        behind.dial(slow.listen("tcp://127.0.0.1:0").address)
        behind.subscribe("t", LIMIT)
        (pipe,) = slow.pipes.values()
        while not pipe.queued:
            plane.publish("t", bytes(100_000))
            gevent.sleep(0)
        closer = gevent.spawn(plane.close, 60)
        wait_until(lambda: slow._closing, LIMIT)
        closer.kill(block=False)
        wait_until(closer.ready)
        assert slow.closed and other.closed, "a Pub is open after its plane has closed"
        behind.close(0)


def test_an_error_of_presence_names_at_another_process_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    def fail(subscriber: RemoteSub) -> str:
        raise KeyError("no such user")

    url = "memory://presence-fails"
    with caplog.at_level("DEBUG", "gmultisocket"), Backplane(url) as one, Backplane(url) as other, Sub() as sub:
        one.connect(LIMIT)
        sub.dial(other.pub(presence_names=fail).listen("tcp://127.0.0.1:0").address)
        sub.subscribe("a", LIMIT)
        wait_until(lambda: one.presence("b", 0.1).complete, LIMIT)
        presence = one.presence("a", 0.1)
        assert (presence.subscribers, presence.complete) == (0, False)
        wait_until(lambda: "presence_names" in caplog.text and "no such user" in caplog.text)


def test_who_asks_for_presence_hears_that_the_plane_closes(tmp_path: Path) -> None:
    with nothing_left():
        plane = Backplane(f"ipc://{tmp_path}/nobody", {"plane.start_hub": False})
        asking = gevent.spawn(plane.presence, "a", 60)
        wait_until(lambda: plane._control is not None and plane._control._answered.waiters)
        plane.close(0)
        with pytest.raises(Closed):
            asking.get(timeout=5)


def test_a_plane_goes_on_when_something_has_killed_its_greenlets() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with hub(url), Backplane(url, {"plane.hold": 0.0}) as one, Backplane(url) as other:
        received = one.subscribe("t.>", LIMIT)
        other.connect(LIMIT)
        events: list[str] = []
        one.on_event(lambda event: events.append(event.kind))
        link: Any = one._link
        # A new greenlet of the engine is the last of its list, so the third time it is the other one's turn.
        first_of_engine = lambda: link.engine._greenlets[0]  # noqa: E731
        for number, find in enumerate((lambda: link._greenlet, first_of_engine, first_of_engine)):
            killed = find()
            killed.kill()
            assert find() is not killed
            one.connect(LIMIT)
            topic = f"t.{number}"
            later = one.subscribe(f"x.{number}", LIMIT)
            other.publish(topic, b"1")
            other.publish(f"x.{number}", b"2")
            assert received.recv(LIMIT) == (topic, b"1")
            assert later.recv(LIMIT) == (f"x.{number}", b"2")
            one.publish("from", b"here")
            one.flush(LIMIT)
        wait_until(lambda: events.count("down") == events.count("gap") == 2)
