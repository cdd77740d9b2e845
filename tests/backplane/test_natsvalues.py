"""The present values at NATS, with real servers: the stream, limits, permissions, other programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gmultisocket.backplane import Backplane
from gmultisocket.backplane.jetstream import JetStream, StreamNames
from gmultisocket.backplane.natsvalues import NatsValues, stream_configuration
from gmultisocket.backplane.natswire import HEADER_SIZE, Subjects, encode_head
from gmultisocket.errors import NotSupported
from gmultisocket.testing import wait_until
from gmultisocket.testing.engines import check_sum
from tests.backplane.brokers import PlainClient, RecordingPlane, client
from tests.backplane.servers import JetStreamServer, NatsServer

LIMIT = 20.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[JetStreamServer]:
    with JetStreamServer(tmp_path) as started:
        yield started


def ask(server: NatsServer, subject: str, body: dict[str, Any]) -> Any:
    """Return JetStream's answer to a request."""
    content = json.dumps(body).encode()
    with PlainClient("nats", server.port) as plain:
        plain.write(b"SUB answer 1\r\nPUB $JS.API.%b answer %d\r\n%b\r\n" % (subject.encode(), len(content), content))
        plain.read_until(b"MSG answer 1 ")
        size = int(plain.read_until(b"\r\n"))
        return json.loads(plain.read_until(b"\r\n")[:size])


def values_of(url: str, *patterns: str) -> list[tuple[str, bytes | None]]:
    """Return what a new engine fetches, sorted."""
    with client(url) as plane:
        plane.subscribe(*patterns)
        assert not any(live for *_, live in plane.values)
        return sorted((topic, content) for topic, content, _ in plane.values)


def test_a_value_of_the_longest_topic_and_content_is_kept(server: JetStreamServer) -> None:
    with client(server.url) as plane:
        topic = "x" * 3990
        plane.subscribe(topic, "full")
        plane.retain(topic, b"1")
        plane.retain("full", bytes(plane.engine.max_content))
        plane.wait_answered()
        assert plane.refused_reasons == {}
        wait_until(lambda: len(plane.values) == 2)
        assert values_of(server.url, topic) == [(topic, b"1")]
        assert values_of(server.url, "f*", "full") == [("full", bytes(plane.engine.max_content))]
        assert plane.engine.max_content == (1 << 20) - HEADER_SIZE


def test_a_value_that_ends_leaves_nothing_at_the_server(server: JetStreamServer) -> None:
    with client(server.url) as plane:
        for topic in ("a", "b"):
            plane.retain(topic, b"1")
        plane.unretain("a")
        plane.wait_answered()
        info = lambda: ask(server, "STREAM.INFO.GMS_t", {})["state"]  # noqa: E731
        wait_until(lambda: info()["messages"] == 1)
        assert values_of(server.url, ">") == [("b", b"1")]


def test_a_stream_that_is_there_is_used_as_it_is(server: JetStreamServer) -> None:
    names = StreamNames(Subjects("t."), "t.")
    mine = {**json.loads(stream_configuration(names)), "max_msgs": 2, "storage": "memory"}
    assert "error" not in ask(server, "STREAM.CREATE.GMS_t", mine)
    with client(server.url) as plane:
        for topic in ("a", "b", "c"):
            plane.retain(topic, topic.encode())
        plane.wait_answered()
        assert plane.confirmed_count == 3
    assert values_of(server.url, "a", "b", "c", "*") == [("b", b"b"), ("c", b"c")]
    assert ask(server, "STREAM.DELETE.GMS_t", {})["success"]
    assert values_of(server.url, "a", "b", "c", "*") == []


def test_a_stream_that_is_deleted_is_made_again(server: JetStreamServer) -> None:
    with client(server.url) as plane:
        plane.subscribe("a")
        for number in range(3):
            plane.retain("a", b"%d" % number)
        plane.wait_answered()
        assert ask(server, "STREAM.DELETE.GMS_t", {})["success"]
        plane.retain("a", b"lost")
        plane.wait_answered()
        assert plane.refused_reasons == {"JetStream": 1}
        plane.retain("a", b"again")
        plane.wait_answered()
        wait_until(lambda: [content for _, content, _ in plane.values] == [b"0", b"1", b"2", b"again"])


def test_what_is_published_behind_a_value_is_confirmed_behind_it(server: JetStreamServer) -> None:
    with client(server.url) as plane, client(server.url) as other:
        other.subscribe("a")
        for number in range(200):
            (plane.retain if number % 3 == 0 else plane.publish)("a", b"%d" % number)
        plane.wait_answered()
        assert (plane.confirmed_count, plane.refused_reasons) == (200, {})
        wait_until(lambda: len(other.got) == 133 and len(other.values) == 67)


def test_many_patterns_with_wildcards_are_fetched_in_turn(server: JetStreamServer) -> None:
    with client(server.url) as plane:
        for number in range(40):
            plane.retain(f"room.{number}.state", b"%d" % number)
        plane.wait_answered()
    got = values_of(server.url, *(f"room.{number}.>" for number in range(40)), "room.7.state")
    assert sorted({*got}) == sorted((f"room.{number}.state", b"%d" % number) for number in range(40))


def test_another_program_sets_and_ends_values(server: JetStreamServer) -> None:
    with client(server.url) as plane, PlainClient("nats", server.port) as plain:
        plane.subscribe("a", "a.*", "*")
        plane.retain("first", b"")
        plane.wait_answered()
        plain.publish([(b"t-values.a", b"theirs")])
        wait_until(lambda: ("a", b"theirs", True) in plane.values)
        assert values_of(server.url, "a") == values_of(server.url, "*")[:1] == [("a", b"theirs")]
        header = b"NATS/1.0\r\nGms-Value: none\r\n\r\n"
        plain.write(b"HPUB t-values.a %d %d\r\n%b\r\n" % (len(header), len(header), header))
        wait_until(lambda: ("a", None, True) in plane.values)
        assert len([each for each in plane.values if each[0] == "a"]) == 2, "a copy counted"
        assert values_of(server.url, "a", "*") == [("first", b"")]
        assert plane.foreign == []


def test_no_message_is_asked_for_before_the_stream_has_any(
    server: JetStreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server of version 2.9.10 that is asked for the last message of a subject, while it makes the stream, may crash.
    asked: list[bytes] = []
    ask_jetstream = JetStream.ask

    def ask_and_note(self: JetStream, what: bytes, body: bytes, answered: Any) -> bytes:
        asked.append(what.rpartition(b".")[0] + body)
        return ask_jetstream(self, what, body, answered)

    monkeypatch.setattr(JetStream, "ask", ask_and_note)
    with client(server.url) as plane:
        plane.subscribe("$plane.all", "$plane.to.me")
        assert asked == [], "what planes tell each other has no values"
        plane.subscribe("$plane.all.x", "a")
        plane.subscribe("b")
        assert asked == [b"STREAM.INFO"] * 2
        plane.retain("c", b"1")
        plane.wait_answered()
        asked.clear()
        plane.subscribe("d")
        plane.subscribe("c")
        asked_for = [b'STREAM.MSG.GET{"last_by_subj": "t-values.%b"}' % topic for topic in (b"d", b"c")]
        assert asked == [b"STREAM.INFO", *asked_for]
        assert plane.values == [("c", b"1", False)]
        # The stream has lost them all, so it may be another one.
        assert ask(server, "STREAM.DELETE.GMS_t", {})["success"]
        plane.subscribe("e")
        asked.clear()
        plane.subscribe("f")
        assert asked == [b"STREAM.INFO"]


def test_values_that_several_publish_at_once_end_with_the_last_one(server: JetStreamServer) -> None:
    with ExitStack() as stack:
        watcher, *planes = (stack.enter_context(client(server.url)) for _ in range(4))
        watcher.subscribe("a", "b.*")
        for number in range(300):
            for plane in planes:
                plane.retain("a", b"%d" % number)
                plane.retain("b.c", b"%d" % number)
            if number % 20 == 0:
                for plane in planes:
                    plane.wait_answered()
        for plane in planes:
            plane.wait_answered()
        expected = values_of(server.url, "a", "b.c")

        def present() -> list[tuple[str, bytes | None]]:
            return sorted({topic: content for topic, content, _ in watcher.values}.items())

        wait_until(lambda: present() == expected, LIMIT, "the watcher has what the stream has")


# What is not there, or not allowed


def test_a_server_without_jetstream_says_what_to_turn_on(tmp_path: Path) -> None:
    with NatsServer(tmp_path) as server, Backplane(server.url) as early, Backplane(server.url) as plane:
        early.publish("t", b"1", retain=True)
        early.connect(LIMIT)
        early.flush(LIMIT)
        assert dict(early.counters.dropped) == {"not supported": 1}
        check_sum(early)
        plane.connect(LIMIT)
        for call in (lambda: plane.publish("t", b"", retain=True), lambda: plane.unretain("t")):
            with pytest.raises(NotSupported, match=r"without JetStream: start it with -js, or with jetstream \{\}"):
                call()
        assert plane.counters.sent == 0


def test_without_a_prefix_there_are_no_values(server: JetStreamServer) -> None:
    with Backplane(server.url, {"plane.prefix": ""}) as plane:
        with pytest.raises(NotSupported, match="needs a plane.prefix"):
            plane.publish("t", b"", retain=True)


def refused_by(plane: RecordingPlane) -> dict[str, int]:
    """Subscribe and publish; return why the values were refused."""
    plane.subscribe("a", "b.*")
    plane.subscribe("c")
    plane.retain("a", b"1")
    plane.publish("a", b"2")
    plane.wait_answered()
    assert plane.confirmed_count == 1
    assert plane.connections == 1
    return dict(plane.refused_reasons)


def test_an_account_without_jetstream_has_everything_but_values(tmp_path: Path) -> None:
    accounts = 'accounts { A { jetstream: enabled }, B { users: [{user: "me", password: "word"}] } }'
    config = f'jetstream {{ store_dir: "{tmp_path}/js" }}\n{accounts}'
    with NatsServer.configured(tmp_path, config) as server, client(server.url_with("me:word")) as plane:
        assert refused_by(plane) == {"JetStream": 1}


@pytest.mark.parametrize(
    ("allowed", "reason"),
    [('["t.>"]', "JetStream"), ('["t.>", "$JS.API.>"]', "permission"), ('["t.>", "t-values.>"]', "JetStream")],
)
def test_a_user_without_a_permission_has_everything_but_values(tmp_path: Path, allowed: str, reason: str) -> None:
    users = f'users: [{{user: "me", password: "word", permissions: {{publish: {{allow: {allowed}}}}}}}]'
    config = f'jetstream {{ store_dir: "{tmp_path}/js" }}\nauthorization {{ {users} }}'
    with NatsServer.configured(tmp_path, config) as server, client(server.url_with("me:word")) as plane:
        assert refused_by(plane) == {reason: 1}


def test_a_user_who_may_get_no_replies_has_everything_but_values(tmp_path: Path) -> None:
    users = 'users: [{user: "me", password: "word", permissions: {subscribe: {allow: ["t.>"]}}}]'
    config = f'jetstream {{ store_dir: "{tmp_path}/js" }}\nauthorization {{ {users} }}'
    with NatsServer.configured(tmp_path, config) as server, client(server.url_with("me:word")) as plane:
        assert refused_by(plane) == {"JetStream": 1}
        assert plane.engine.counters["no permission for values"] >= 1


def test_the_names_of_a_prefix() -> None:
    names = StreamNames(Subjects("my shop."), "my shop.")
    assert (names.values, names.stream) == (b"my%20shop-values.", b"GMS_my_20shop")
    assert names.value(Subjects("my shop.").encode("a b")) == b"my%20shop-values.a%20b"
    assert names.topic_of_value(b"my%20shop-values.a%20b") == "a b"
    assert names.topic_of_value(b"my%20shop.a") is names.topic_of_value(b"my%20shop-values.") is None


def test_a_server_that_does_not_publish_again_is_too_old(caplog: pytest.LogCaptureFixture) -> None:
    decided: list[tuple[int, str]] = []
    plane = RecordingPlane()
    names = StreamNames(Subjects("t."), "t.")
    values = NatsValues(lambda data: None, plane, names, lambda *each: decided.append(each), list, lambda reason: None)
    values.publish(1, encode_head(b"t.a"), b"1", 1)
    inbox = values._jetstream.inbox + b"v.1"
    try:
        with caplog.at_level("DEBUG", "gmultisocket"):
            values.take(b"v", inbox, b"", json.dumps({"config": {"name": "GMS_t"}, "did_create": True}).encode(), b"")
            assert decided == [(1, "JetStream")]
            wait_until(lambda: "the server is too old" in caplog.text)
    finally:
        values.close()
        values.join()
