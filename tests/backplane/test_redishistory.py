"""The history at Redis, with the real server: what it keeps, what is fetched, and how it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmultisocket import Backplane, Sub
from gmultisocket.backplane import redisfetch, redishistory, redisvalues
from gmultisocket.backplane.hubhistory import HubHistory
from gmultisocket.backplane.redishistory import Limits, read_begin, read_news, read_patterns, read_state
from gmultisocket.errors import BadMessage, EngineRefused
from gmultisocket.protocol.history import Entry, everything_since
from gmultisocket.protocol.subscriptions import matches
from gmultisocket.testing import wait_until
from tests.backplane.brokers import PlainClient, client
from tests.backplane.servers import RedisServer

pytest.importorskip("hiredis", reason="hiredis is not installed")

LIMIT = 10.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def server(shared: RedisServer) -> RedisServer:
    """Return a server without data."""
    flush(shared)
    return shared


def command(server: RedisServer, *words: bytes) -> bytes:
    with PlainClient("redis", server.port) as plain:
        return plain.command(*words)


def flush(server: RedisServer) -> None:
    assert command(server, b"FLUSHALL") == b"+OK\r\n"


def limit_log(monkeypatch: pytest.MonkeyPatch, limits: Limits) -> None:
    """Lower the limits of what the server keeps."""
    monkeypatch.setattr(redishistory, "_LIMITS", limits)
    monkeypatch.setattr(redisvalues, "_CHANGE", redishistory.numbering(limits) + redisvalues._FORGET)


# The scripts keep what a hub keeps

_TOPICS = ["a", "a.b", "a.c", "b", "v", "v.a", "a.b.c"]
_PATTERNS = [*_TOPICS, "a.>", "a.*", ">", "*", "v.>", "none", "none.*"]
_changes = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "retain", "unretain"]), st.sampled_from(_TOPICS)), max_size=40
)


class _Model:
    """A hub's history. It has the same publications with other numbers."""

    def __init__(self, limits: Limits, values: int) -> None:
        self.history = HubHistory(["a.>", "b"])
        self.history._max_entries = limits.entries
        self.history._max_retained = values
        #: By content: its offset at the hub.
        self.offsets: dict[bytes, int] = {}

    def change(self, kind: str, topic: str, content: bytes) -> None:
        if kind == "unretain":
            self.history.unretain(topic)
        elif kind == "retain" or topic in self.history.topics:
            entry = self.history.append(topic, content, kind == "retain")
            assert entry is not None
            self.offsets[content] = Entry(*entry).offset


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=_changes, small=st.booleans())
def test_the_scripts_keep_what_a_hub_keeps(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, changes: list[tuple[str, str]], small: bool
) -> None:
    flush(server)
    limits = Limits(5, 1 << 20, 0, 0) if small else Limits()
    limit_log(monkeypatch, limits)
    monkeypatch.setattr(redisvalues, "MAX_VALUES", 2)
    model = _Model(limits, 2)
    with client(server.url, history=["a.>", "b"]) as plane:
        plane.subscribe(">")
        for number, (kind, topic) in enumerate(changes):
            content = b"%d" % number
            model.change(kind, topic, content)
            if kind == "unretain":
                plane.unretain(topic)
            elif kind == "retain":
                plane.retain(topic, content)
            else:
                plane.publish(topic, content)
        plane.wait_answered()
        plane.synchronize()
        offsets = {entry.content: entry.offset for entry in plane.entries}
    with client(server.url, history=["a.>", "b"]) as plane:
        for pattern in _PATTERNS:
            plane.positions.clear()
            plane.subscribe(pattern)
            kept, _ = model.history.fetch(pattern)
            wanted = [(entry.topic, entry.content) for entry in kept]
            # It may fetch more than was asked for: the plane drops that.
            mine = [entry for entry in plane.positions if matches(pattern, entry[0].topic)]
            assert [entry[2:] for entry in sorted({entry for entry, *_ in mine})] == wanted, pattern
            values = {entry[2:] for entry, _, retained, _ in mine if retained}
            assert values == {(topic, content) for _, _, topic, content in model.history.retained(pattern)}
            # Of each publication it is known whether all behind it are there.
            ours = plane.fetches[pattern][0]
            for content, offset in model.offsets.items():
                complete = everything_since(model.history, pattern, offset).complete
                assert (offsets[content] >= ours) == complete, (pattern, content)


# The server loses what it had


@contextmanager
def planes(server: RedisServer, count: int = 2, history: Sequence[str] = ("h.>",)) -> Iterator[list[Backplane]]:
    options: dict[str, Any] = {"plane.prefix": "t.", "plane.hold": 0.1, "plane.linger": 0.05}
    with ExitStack() as stack:
        made = [stack.enter_context(Backplane(server.url, options, history=history)) for _ in range(count)]
        for plane in made:
            plane.connect(LIMIT)
        yield made


def test_deleted_keys_are_a_gap_and_another_history(server: RedisServer) -> None:
    with planes(server) as (one, other), other.subscribe("h.a", LIMIT) as subscription:
        one.publish("h.a", b"1")
        assert subscription.recv(LIMIT) == ("h.a", b"1")
        flush(server)
        one.publish("h.a", b"2")
        assert subscription.recv(LIMIT) == ("h.a", b"2")
        wait_until(lambda: other.counters.gaps == 1)
        one.publish("h.a", b"3")
        assert subscription.recv(LIMIT) == ("h.a", b"3")
        one.flush(LIMIT)
        assert one.counters.sent == one.counters.confirmed == 3
        assert not subscription.waiting


def test_deleted_keys_are_noticed_when_somebody_subscribes(server: RedisServer) -> None:
    with planes(server, 1) as (plane,), Sub() as sub:
        sub.dial(plane.pub().listen("tcp://127.0.0.1:0").address)
        sub.subscribe("h.a", LIMIT, recover=True)
        flush(server)
        sub.subscribe("h.b", LIMIT, recover=True)
        wait_until(lambda: plane.counters.gaps == 1)
        plane.connect(LIMIT)
        plane.publish("h.a", b"1")
        assert sub.recv(LIMIT) == ("h.a", b"1")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as started:
        yield started


def test_over_a_restart_with_its_data_nothing_is_missing(own_server: RedisServer) -> None:
    with client(own_server.url, history=["h.>"]) as plane:
        plane.subscribe("h.*")
        for number in range(20):
            plane.publish(f"h.{number % 3}", b"%d" % number)
        plane.wait_answered()
        plane.synchronize()
        before = plane.entries
        assert command(own_server, b"SAVE") == b"+OK\r\n"
        own_server.kill()
        wait_until(lambda: not plane.up)
        own_server.start()
        plane.wait_up()
        plane.subscribe("h.*")
        assert plane.fetched_entries == before
        assert len(before) == 20
        assert plane.epochs[0] == plane.epochs[-1]
        assert plane.fetches["h.*"][0] <= before[0].offset


def test_a_restart_with_older_data_is_another_history(own_server: RedisServer) -> None:
    with client(own_server.url, history=["h.>"]) as publisher:
        with client(own_server.url, history=["h.>"]) as reader:
            reader.subscribe("h.a")
            publisher.publish("h.a", b"1")
            publisher.wait_answered()
            reader.synchronize()
            [before] = reader.entries
        assert command(own_server, b"SAVE") == b"+OK\r\n"
        publisher.publish("h.b", b"2")
        publisher.wait_answered()
        own_server.kill()
        wait_until(lambda: not publisher.up)
        own_server.start()
        publisher.wait_up()
        # Only the publisher knows that something is missing.
        assert publisher.epochs[-1] != publisher.epochs[0]
        publisher.publish("h.a", b"3")
        publisher.wait_answered()
        with client(own_server.url, history=["h.>"]) as reader:
            reader.subscribe("h.a")
            [after] = reader.fetched_entries
            assert reader.epochs == publisher.epochs[-1:]
            assert reader.fetches["h.a"][0] < after.offset
            assert after.content == b"3"
            assert after.offset > before.offset, "an offset was used twice"


# Several planes


def test_planes_with_different_patterns_share_the_history_of_all(server: RedisServer) -> None:
    with ExitStack() as stack:
        one = stack.enter_context(client(server.url, history=["a.>"]))
        script = stack.enter_context(client(server.url))
        for each in (one, script):
            each.subscribe(">")
        one.publish("b.x", b"early")
        wait_until(lambda: script.contents() == [b"early"])
        other = stack.enter_context(client(server.url, history=["b.>"]))
        other.subscribe("b.*")
        assert other.all_history == {"a.>", "b.>"}
        wait_until(lambda: one.all_history == {"a.>", "b.>"})
        assert one.epochs == other.epochs
        # What the server tells a plane later comes behind the news.
        script.subscribe("end")
        for number, each in enumerate((one, script, other)):
            each.publish("b.x", b"%d" % number)
            each.wait_answered()
        one.synchronize()
        other.synchronize()
        assert one.entries == other.entries
        assert [entry.content for entry in one.entries] == [b"0", b"1", b"2"]
        assert [entry.previous for entry in one.entries[1:]] == [entry.offset for entry in one.entries[:-1]]
        wait_until(lambda: len(script.contents()) == 4)
        assert script.contents() == [b"early", b"0", b"1", b"2"]
        # What was published before somebody wanted its history is not in it, and nobody says that it is.
        late = stack.enter_context(client(server.url, history=["b.>"]))
        late.subscribe("b.x")
        assert [entry.content for entry in late.fetched_entries] == [b"0", b"1", b"2"]
        assert 0 < late.fetches["b.x"][0] < late.fetched_entries[0].offset


def test_other_prefixes_are_other_histories(server: RedisServer) -> None:
    options = {"plane.prefix": "u."}
    with client(server.url, history=["a"]) as one, client(server.url, history=["b"], options=options) as other:
        assert one.epochs != other.epochs
        assert (one.all_history, other.all_history) == ({"a"}, {"b"})


# Limits and errors


def test_large_publications_come_in_several_steps_and_the_oldest_go_first(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_log(monkeypatch, Limits(100, 4_000_000, 8, 0))
    with client(server.url, history=["h.>"]) as plane:
        for number in range(9):
            plane.publish(f"h.{number % 2}", bytes([number]) * 700_000)
        plane.wait_answered()
        plane.subscribe("h.1")
        assert [entry.content[0] for entry in plane.fetched_entries] == [5, 7]
        plane.subscribe("h.*")
        assert [entry.content[0] for entry in plane.fetched_entries] == [4, 5, 6, 7, 8]
        # In front of the first that is kept of each topic.
        assert plane.fetches["h.1"][0] == plane.fetched_entries[1].previous
        assert plane.fetches["h.*"][0] == max(entry.previous for entry in plane.fetched_entries[:2])


def test_many_topics_of_which_nothing_is_kept_are_found(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_log(monkeypatch, Limits(2, 1 << 20, 0, 0))
    with client(server.url, history=["h.>"]) as plane:
        plane.subscribe("h.first.x")
        for topic in ("h.first.x", *(f"h.many.{number}" for number in range(1100)), "h.last.x"):
            plane.publish(topic, b"")
        plane.wait_answered()
        plane.synchronize()
        [first] = plane.entries
        plane.subscribe("h.*.x", "h.first.*", "h.none.*")
        assert plane.fetches["h.*.x"][0] == plane.fetches["h.first.*"][0] == first.offset
        assert plane.fetches["h.none.*"][0] < first.offset
        # With fewer looks it says less, but nothing wrong.
        monkeypatch.setattr(redisfetch, "_MAX_LOOKS", 1)
        plane.subscribe("*.first.*")
        assert plane.fetches["*.first.*"][0] > first.offset


def test_a_server_without_memory_refuses_what_it_would_keep_and_nothing_else(server: RedisServer) -> None:
    with client(server.url, history=["h.>"]) as plane:
        plane.subscribe("h.a", "b")
        plane.publish("h.a", b"1")
        plane.wait_answered()
        assert command(server, b"CONFIG", b"SET", b"maxmemory", b"1") == b"+OK\r\n"
        try:
            plane.publish("h.a", b"2")
            plane.publish("b", b"plain")
            plane.wait_answered()
        finally:
            assert command(server, b"CONFIG", b"SET", b"maxmemory", b"0") == b"+OK\r\n"
        plane.publish("h.a", b"3")
        plane.wait_answered()
        plane.synchronize()
        assert plane.refused_reasons == {"out of memory": 1}
        assert plane.contents() == [b"plain"]
        one, three = plane.entries
        assert (one.content, three.content) == (b"1", b"3")
        assert three.previous == one.offset, "the refused one has left traces"


def test_a_server_that_has_forgotten_its_scripts_gets_them_again(server: RedisServer) -> None:
    with client(server.url, history=["h.>"]) as plane:
        assert command(server, b"SCRIPT", b"FLUSH") == b"+OK\r\n"
        plane.publish("h.a", b"1")
        plane.wait_answered()
        assert plane.refused_reasons == {"no script": 1}
        plane.publish("h.a", b"2")
        plane.wait_answered()
        assert plane.confirmed_count == 1


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--rename-command", "HELLO", ""], "needs Redis 6"),
        (["--user", *"default on nopass ~* &* +@all -eval -evalsha".split()], "eval"),
        (["--user", *"default on nopass ~other &* +@all".split()], "key"),
        (["--user", *"default on nopass ~* resetchannels +@all".split()], "channel"),
    ],
)
def test_without_what_a_history_needs_it_is_refused_and_all_else_works(
    tmp_path: Path, more: list[str], why: str
) -> None:
    with RedisServer(tmp_path, more) as server:
        with client(server.url, wait=False, history=["h.>"]) as plane:
            wait_until(lambda: plane.errors)
            assert isinstance(plane.errors[0], EngineRefused)
            assert why in str(plane.errors[0])
            assert plane.connections == 0
        with client(server.url) as plane:
            plane.publish("a", b"1")
            plane.wait_answered()


def test_news_are_patterns_or_nothing() -> None:
    assert read_news(b'["a.>", "b"]') == ["a.>", "b"]
    assert read_news('["é", "a..b", ""]'.encode()) == ["é"]
    for wrong in (b"", b"[", b"{}", b"3", b"[3]", b"null", b"\xff", b"[[]]"):
        assert read_news(wrong) == []


def test_other_replies_than_those_of_the_scripts_are_errors() -> None:
    readers: list[Callable[[Any], object]] = [read_state, read_begin, read_patterns]
    for read in readers:
        for wrong in (None, b"", [1], [1, 2, 3], [1, 2, 3, b"4"], [1, 2, [3]]):
            with pytest.raises(BadMessage):
                read(wrong)
