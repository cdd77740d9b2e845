"""The history at NATS, with real servers: the order, the stream's life, limits, other programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket.backplane import Backplane, natshistory
from gmultisocket.errors import ConnectionFailed, EngineRefused
from gmultisocket.protocol import Sub
from gmultisocket.testing import wait_until
from gmultisocket.testing.engines import check_sum
from tests.backplane.brokers import PlainClient, RecordingPlane, client
from tests.backplane.servers import JetStreamServer, NatsServer
from tests.backplane.test_natsvalues import ask

LIMIT = 20.0
HISTORY = ("h.>", "log")
STREAM = "GMS_t_history"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JetStreamServer]:
    with JetStreamServer(tmp_path) as started:
        yield started


def make_stream(server: NatsServer, **changes: Any) -> None:
    """Make the stream of the history as an administrator does."""
    stream = {"name": STREAM, "subjects": ["t.h.>", "t.log"], "storage": "file", **changes}
    assert "error" not in ask(server, f"STREAM.CREATE.{STREAM}", stream)


def kept(server: NatsServer, pattern: str = ">") -> tuple[list[tuple[int, int, str, bytes]], tuple[int, int]]:
    """Return what a new engine fetches, and what it says of that."""
    with client(server.url, history=HISTORY) as plane:
        plane.subscribe(pattern)
        return [tuple(entry) for entry in plane.fetched_entries], plane.fetches[pattern]


def test_what_two_publish_at_once_comes_to_all_in_the_order_of_the_stream(server: JetStreamServer) -> None:
    number = 4000
    with client(server.url, history=HISTORY) as one, client(server.url, history=HISTORY) as other:
        one.subscribe("h.*", "h.1")
        other.subscribe(">")
        for each in range(number):
            one.publish(f"h.{each % 3}", b"%d" % each)
            other.publish(f"h.{each % 2}", b"%d" % each)
            if each % 500 == 0:
                one.engine.publish(one.engine.head("plain"), b"", each + 10_000)
        for plane in (one, other):
            wait_until(lambda: plane.confirmed_count >= number, LIMIT)  # noqa: B023
            wait_until(lambda: len(plane.entries) == 2 * number, LIMIT)  # noqa: B023
            assert [entry.offset for entry in plane.entries] == [*range(1, 2 * number + 1)]
            last: dict[str, int] = {}
            for entry in plane.entries:
                assert entry.previous == last.get(entry.topic, 0)
                last[entry.topic] = entry.offset
        assert one.entries == other.entries
        assert other.got == [("plain", b"", one.origin, each + 10_000) for each in range(0, number, 500)]


def test_a_new_pattern_gets_what_is_kept_and_its_limits(server: JetStreamServer) -> None:
    make_stream(server, max_msgs=5)
    with client(server.url, history=HISTORY) as plane:
        for each in range(8):
            plane.publish("h.a" if each % 2 else "log", b"%d" % each)
        plane.publish("other", b"")
        plane.wait_answered()
    everything, what = kept(server)
    assert [(offset, topic) for offset, _, topic, _ in everything] == [
        (4, "h.a"), (5, "log"), (6, "h.a"), (7, "log"), (8, "h.a"),
    ]  # fmt: skip
    assert what == (3, 8)
    assert kept(server, "log") == ([(5, 0, "log", b"4"), (7, 5, "log", b"6")], (3, 8))
    assert kept(server, "other") == ([], (0, 8))


def test_another_programs_publications_are_in_the_history(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as plane, PlainClient("nats", server.port) as plain:
        plane.subscribe("h.*")
        plain.publish([(b"t.h.a", b"theirs"), (b"t.other", b"")])
        wait_until(lambda: plane.entries == [(1, 0, "h.a", b"theirs")])
        assert plane.foreign == []
    assert kept(server)[0] == [(1, 0, "h.a", b"theirs")]


def test_a_stream_that_is_deleted_is_another_history(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as plane:
        plane.subscribe("h.*")
        plane.publish("h.a", b"1")
        plane.wait_answered()
        assert ask(server, f"STREAM.DELETE.{STREAM}", {})["success"]
        wait_until(lambda: plane.connections == 2, LIMIT)
        assert plane.epochs[0] != plane.epochs[1]
        assert plane.began_at[1] == 0


def test_a_stream_whose_end_nobody_tells_is_missed(server: JetStreamServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natshistory, "_DELETED_SUBJECT", b"t.nobody.")
    monkeypatch.setattr(natshistory, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(natshistory, "_PATIENCE", 0.5)
    with client(server.url, history=HISTORY) as plane:
        plane.subscribe("h.*")
        assert ask(server, f"STREAM.DELETE.{STREAM}", {})["success"]
        wait_until(lambda: plane.connections == 2, LIMIT)
        assert "is silent" in str(plane.errors[0])


def test_what_comes_for_a_connection_that_the_server_takes_for_alive_does_not_count(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as publisher, client(server.url, history=HISTORY) as plane:
        plane.subscribe("h.*")
        for each in range(3000):
            publisher.publish("h.a", b"%d" % each)
        publisher.wait_answered()
        wait_until(lambda: len(plane.entries) == 3000, LIMIT)
        # The server does not notice that the connection is closed here.
        link = plane.engine._link  # type: ignore[attr-defined]
        stays_open = os.dup(link._line._connection._sock.fileno())
        try:
            plane.positions.clear()
            publishing = gevent.spawn(lambda: [_publish_and_wait(publisher) for _ in range(300)])
            link._line.close(ConnectionFailed("the server", "for the test"))
            wait_until(lambda: plane.connections == 2, LIMIT)
            plane.subscribe("h.*")
            publishing.get()
            wait_until(lambda: len({*plane.entries, *plane.fetched_entries}) >= 3300, LIMIT)
        finally:
            os.close(stays_open)
        assert plane.fetches["h.*"][0] == 0, "something is missing in what was fetched"
        offsets = [entry.offset for entry in plane.entries]
        assert offsets == sorted(set(offsets))
        assert all(entry.previous == entry.offset - 1 for entry, *_ in plane.positions)


def _publish_and_wait(publisher: RecordingPlane) -> None:
    publisher.publish("h.a", b"")
    publisher.wait_answered()


@pytest.mark.parametrize("storage", ["file", "memory"])
def test_a_server_that_is_killed_has_its_files(server: JetStreamServer, storage: str) -> None:
    make_stream(server, storage=storage)
    with client(server.url, history=HISTORY) as plane:
        for each in range(100):
            plane.publish("h.a", b"%d" % each)
        plane.wait_answered()
        server.kill()
        wait_until(lambda: not plane.up, LIMIT)
        server.start()
        wait_until(lambda: plane.up, LIMIT)
        plane.subscribe("h.a")
        (before, first), (after, last) = zip(plane.epochs, plane.began_at, strict=True)
        assert first == 0
        if storage == "file":
            assert (after, last) == (before, 100)
            assert [entry.content for entry in plane.fetched_entries] == [b"%d" % each for each in range(100)]
        else:
            assert (after != before, last) == (True, 0)
            assert plane.fetched_entries == []


def test_a_stream_that_is_full_refuses_and_that_is_counted(server: JetStreamServer) -> None:
    make_stream(server, max_msgs=3, discard="new")
    with client(server.url, history=HISTORY) as plane:
        for each in range(5):
            plane.publish("log", b"%d" % each)
            plane.publish("other", b"")
        plane.wait_answered()
        assert (plane.confirmed_count, dict(plane.refused_reasons)) == (8, {"JetStream": 2})
    assert [content for *_, content in kept(server)[0]] == [b"0", b"1", b"2"]


def test_what_an_administrator_has_deleted_is_not_waited_for(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as plane:
        for each in range(3):
            plane.publish("log", b"%d" % each)
        plane.wait_answered()
        assert ask(server, f"STREAM.MSG.DELETE.{STREAM}", {"seq": 3})["success"]
        plane.subscribe("log")
        assert [entry.content for entry in plane.fetched_entries] == [b"0", b"1"]
        assert plane.fetches["log"] == (3, 3)
        plane.engine.synchronize()
        wait_until(lambda: plane.synchronized_to == [3])
        assert plane.connections == 1


def test_all_that_was_published_has_come_when_it_is_synchronized(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as plane, PlainClient("nats", server.port) as plain:
        plane.subscribe("h.>")
        for turn in range(1, 21):
            plain.publish([(b"t.h.a", b"x")] * 50)
            plane.engine.synchronize()
            wait_until(lambda: len(plane.synchronized_to) == turn)  # noqa: B023
            assert plane.synchronized_to[-1] == len(plane.entries) == 50 * turn


# Present values


def test_the_value_of_a_topic_with_history_has_a_position_and_ends(server: JetStreamServer) -> None:
    with client(server.url, history=HISTORY) as plane:
        plane.subscribe("h.*")
        plane.retain("h.a", b"value")
        plane.wait_answered()
        wait_until(lambda: plane.entries == [(1, 0, "h.a", b"value")])
        assert plane.values == []
        assert kept(server)[0] == [(1, 0, "h.a", b"value")]
        plane.unretain("h.a")
        wait_until(lambda: plane.values == [("h.a", None, True)])
        plane.publish("h.a", b"plain")
        wait_until(lambda: plane.entries[1:] == [(3, 1, "h.a", b"plain")])


def test_values_without_a_position_come_to_a_sub_that_recovers(server: JetStreamServer) -> None:
    with Backplane(server.url) as early:
        # There is no history yet.
        early.publish("h.old", b"old", retain=True)
        early.flush(LIMIT)
    with Backplane(server.url, history=HISTORY) as plane, Sub() as sub:
        plane.publish("state", b"1", retain=True)
        plane.flush(LIMIT)
        sub.dial(plane.pub().listen("tcp://127.0.0.1:0").address)
        sub.subscribe(">", LIMIT, recover=True)
        assert sorted(sub.recv(LIMIT) for _ in range(2)) == [("h.old", b"old"), ("state", b"1")]
        plane.publish("state", b"2", retain=True)
        assert sub.recv(LIMIT) == ("state", b"2")
        plane.publish("h.old", b"new", retain=True)
        assert sub.recv(LIMIT) == ("h.old", b"new")
        with Sub() as late:
            late.dial([*plane._local.pubs][0].listen("tcp://127.0.0.1:0").address)
            late.subscribe("h.old", LIMIT, recover=True)
            assert late.recv(LIMIT) == ("h.old", b"new")
            plane.publish("h.old", b"end")
            assert late.recv(LIMIT) == ("h.old", b"end"), "the value came twice"
        check_sum(plane)


# What is not there, or not allowed


def refusal(url: str, history: tuple[str, ...] = HISTORY, options: dict[str, Any] | None = None) -> str:
    """Return why a plane with history is refused."""
    with Backplane(url, {"plane.prefix": "t.", **(options or {})}, history=history) as plane:
        with pytest.raises(EngineRefused) as refused:
            plane.connect(LIMIT)
        return str(refused.value)


def test_the_errors_say_what_is_missing(server: JetStreamServer, tmp_path: Path) -> None:
    make_stream(server)
    assert "keeps t.h.> t.log, and this Backplane expects that it keeps t.x" in refusal(server.url, ("x",))
    assert "needs a plane.prefix" in refusal(server.url, options={"plane.prefix": ""})
    assert "overlaps with" in refusal(server.url, ("a.*.c", "a.b.*"), {"plane.prefix": "u."})
    with client(server.url, history=(*HISTORY, "h.covered.*")) as plane:
        assert plane.errors == []
    folder = tmp_path / "plain"
    folder.mkdir()
    with NatsServer(folder) as plain:
        assert "keeps no history without JetStream: start it with -js" in refusal(plain.url)


def test_a_user_without_a_permission_is_told_which(tmp_path: Path) -> None:
    users = 'users: [{user: "me", password: "word", permissions: {publish: {allow: ["t.>"]}}}]'
    config = f'jetstream {{ store_dir: "{tmp_path}/js" }}\nauthorization {{ {users} }}'
    with NatsServer.configured(tmp_path, config) as server:
        why = refusal(server.url_with("me:word"))
        assert f"no permission for $JS.API.STREAM.CREATE.{STREAM}, which the history needs" in why
        assert json.dumps(why).count("word") == 0
