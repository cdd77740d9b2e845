"""The present values at Redis, with the real server: limits, permissions, steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gmultisocket.backplane import redisvalues
from gmultisocket.backplane.redisvalues import Fetch
from gmultisocket.backplane.rediswire import Channels
from gmultisocket.errors import BadMessage
from gmultisocket.testing import wait_until
from tests.backplane.brokers import PlainClient, client, values_of
from tests.backplane.servers import RedisServer

pytest.importorskip("hiredis", reason="hiredis is not installed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def size_of(server: RedisServer) -> int:
    """Return how many bytes of values the server has counted."""
    with PlainClient("redis", server.port) as plain:
        plain.command(b"GET", b"gmultisocket:t.size")
        return int(plain.read_until(b"\r\n"))


def test_the_values_that_were_set_longest_ago_go_first(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redisvalues, "MAX_VALUES", 3)
    monkeypatch.setattr(redisvalues, "MAX_VALUES_SIZE", 1000)
    with client(server.url) as plane:
        for topic in ("a", "b", "c", "a", "d"):
            plane.retain(topic, topic.encode())
        plane.wait_answered()
        assert values_of(server.url, ">") == [("a", b"a"), ("c", b"c"), ("d", b"d")]
        assert size_of(server) == 3 * 45
        plane.retain("e", bytes(950))
        plane.wait_answered()
        assert values_of(server.url, ">") == [("e", bytes(950))]
        assert size_of(server) == 994
        plane.retain("f", bytes(2000))
        plane.unretain("e")
        plane.wait_answered()
        assert values_of(server.url, "f", "e") == [("f", bytes(2000))]
        plane.unretain("f")
        plane.wait_answered()
        assert size_of(server) == 0
        assert plane.confirmed_count == plane.sequence


def test_a_server_without_memory_refuses_a_value_and_keeps_the_one_before(server: RedisServer) -> None:
    with client(server.url) as plane, PlainClient("redis", server.port) as plain:
        plane.subscribe("a")
        plane.retain("a", b"old")
        plane.wait_answered()
        assert plain.command(b"CONFIG", b"SET", b"maxmemory", b"1") == b"+OK\r\n"
        plane.retain("a", b"new")
        plane.publish("a", b"plain")
        plane.wait_answered()
        assert plane.refused_reasons == {"out of memory": 1}
        wait_until(lambda: plane.contents() == [b"plain"])
        assert plane.values == [("a", b"old", True)], "what the server has refused was published"
        assert values_of(server.url, "a") == [("a", b"old")]


def test_a_user_without_scripts_has_everything_but_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    user = "me on >word &* -@all +publish +subscribe +psubscribe +ping"
    with RedisServer(tmp_path, ["--user", *user.split()]) as server:
        with client(server.url_with("me:word")) as plane, caplog.at_level("DEBUG", "gmultisocket"):
            plane.subscribe("a", "b.*")
            plane.publish("a", b"1")
            plane.retain("a", b"2")
            plane.wait_answered()
            wait_until(lambda: plane.contents() == [b"1"])
            assert plane.refused_reasons == {"permission": 1}
            assert plane.engine.counters == {"no permission for values": 1}
            plane.subscribe("c")
            assert plane.engine.counters == {"no permission for values": 1}, "it was asked again"
            assert plane.connections == 1
            wait_until(lambda: "present values cannot be fetched" in caplog.text)


def test_large_values_come_in_several_steps(server: RedisServer) -> None:
    with client(server.url) as plane:
        for number in range(6):
            plane.retain(f"big.{number}", bytes(700_000))
        plane.wait_answered()
    wanted: list[tuple[str, bytes | None]] = [(f"big.{number}", bytes(700_000)) for number in range(6)]
    assert values_of(server.url, "big.>") == wanted
    assert values_of(server.url, *(topic for topic, _ in wanted), "none") == wanted


def test_patterns_that_overlap_get_a_change_once(server: RedisServer) -> None:
    with client(server.url) as plane:
        plane.subscribe("a.b", "a.*", "*.b")
        plane.retain("a.b", b"1")
        plane.retain("a.b", b"1")
        plane.unretain("a.b")
        plane.retain("end", b"")
        wait_until(lambda: plane.confirmed_count == 4)
        plane.subscribe("other")
        assert [(topic, content) for topic, content, _ in plane.values if topic == "a.b"] == [
            ("a.b", b"1"), ("a.b", b"1"), ("a.b", None),
        ]  # fmt: skip


def test_what_is_no_value_in_the_keys_is_counted(server: RedisServer) -> None:
    with PlainClient("redis", server.port) as plain:
        for channel in (b"t.a", b"other", b"t.b"):
            plain.command(b"HSET", b"gmultisocket:t.values", channel, b"no mark")
            plain.command(b"ZADD", b"gmultisocket:t.topics", b"0", channel)
    with client(server.url) as plane:
        plane.subscribe("a", ">")
        assert plane.values == []
        assert plane.engine.counters == {"garbage": 3}


def test_the_steps_of_a_fetch() -> None:
    fetch = Fetch(["a", "b.*", "b.c.*", "b.c", "d.>"], Channels("t."))
    asked = []
    while (step := fetch.next) is not None:
        asked.append([*step])
        more = len(asked) in (1, 3)
        assert [*fetch.take([0 if more else 1, 1, b"t.z", [b"t.z", b"1"]])] == [(b"t.z", b"1")]
    ranges = [step for step in asked if not step[0]]
    assert sorted(ranges, key=str)[-2:] == [[b"", b"[t.b.", b"(t.b/"], [b"", b"[t.d.", b"(t.d/"]]
    assert [b"", b"(t.z", asked[0][2]] == asked[1], "the rest of a range was not asked for"
    assert [step for step in asked if step[0]] == [[b"t.a", b"t.b.c"]]
    for wrong in (b"OK", [1, 1, b"", b""], [1, 1, b"", [b"a channel without a value"]]):
        with pytest.raises(BadMessage):
            Fetch(["a"], Channels("t.")).take(wrong)


def test_without_a_prefix_all_channels_are_a_range() -> None:
    assert Fetch([">"], Channels("")).next == [b"", b"-", b"+"]


def test_another_program_that_writes_a_wrong_mark_is_a_publication(server: RedisServer) -> None:
    with client(server.url) as plane, PlainClient("redis", server.port) as plain:
        plane.subscribe("a")
        plain.publish([(b"t.a", b"\xff\x00gr short"), (b"t.a", b"\xff\x00gu" + bytes(32))])
        wait_until(lambda: len(plane.foreign) == 2)
        assert plane.values == []
