"""The engines for NATS and Redis with the real servers: what holds for both."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket.backplane import Backplane, brokerengine, brokerline, natslink
from gmultisocket.backplane.brokerline import Line
from gmultisocket.errors import BadTopic, ConnectionFailed, ConnectionRefused, MultiSocketError
from gmultisocket.loop.waiting import Deadline
from gmultisocket.testing import nothing_left, wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.backplane.brokers import PlainClient, answering, client, publish_until
from tests.backplane.servers import BrokerServer


def test_a_publication_reaches_every_other_engine_as_it_was(server: BrokerServer) -> None:
    contents = [b"", b"\r\n", bytes(range(256)), b"x" * 200_000]
    with client(server.url) as publisher, client(server.url) as one, client(server.url) as two:
        one.subscribe("a.b")
        two.subscribe("a.*", "c")
        for content in contents:
            publisher.publish("a.b", content)
        publisher.publish("other", b"nobody wants this")
        wait_until(lambda: publisher.confirmed_count == 5)
        wait_until(lambda: len(one.got) >= 4 and len(two.got) >= 4)
        expected = [("a.b", content, publisher.origin, number) for number, content in enumerate(contents, 1)]
        assert one.got == two.got == expected
        assert publisher.got == []


def test_all_publications_of_a_turn_are_confirmed_and_arrive_in_order(server: BrokerServer) -> None:
    with client(server.url) as publisher, client(server.url) as subscriber:
        subscriber.subscribe("n.>")
        for turn in range(20):
            for number in range(500):
                publisher.publish(f"n.{number % 7}", b"%d" % number)
            if turn % 2:
                gevent.sleep(0)
        wait_until(lambda: publisher.confirmed_count == 10_000)
        wait_until(lambda: len(subscriber.got) == 10_000)
        assert [sequence for *_, sequence in subscriber.got] == [*range(1, 10_001)]
        # Then the plane sends them on together.
        assert subscriber.gathered > 0


def test_interest_ends_and_begins_again(server: BrokerServer) -> None:
    with client(server.url) as publisher, client(server.url) as subscriber:
        subscriber.subscribe("a", "b.*", "end")
        subscriber.engine.unsubscribe(["a", "b.*"])
        subscriber.subscribe("c")
        for topic in ("a", "b.x", "c", "end"):
            publisher.publish(topic, b"1")
        wait_until(lambda: "end" in subscriber.topics())
        assert subscriber.topics() == ["c", "end"]
        subscriber.subscribe("a", "b.*")
        for topic in ("a", "b.x", "c", "end"):
            publisher.publish(topic, b"2")
        wait_until(lambda: subscriber.topics().count("end") == 2)
        assert subscriber.topics()[2:] == ["a", "b.x", "c", "end"]


def test_ten_thousand_patterns_in_portions(server: BrokerServer) -> None:
    patterns = [f"user.{number}.inbox" for number in range(5000)] + [f"user.{number}.>" for number in range(5000)]
    with client(server.url) as publisher, client(server.url) as subscriber:
        for start in range(0, len(patterns), 512):
            subscriber.subscribe(*patterns[start : start + 512])
        publisher.publish("user.4999.news.x", b"1")
        publisher.publish("user.17.inbox", b"2")
        wait_until(lambda: {1, 2} <= {sequence for *_, sequence in subscriber.got})
        for start in range(0, len(patterns), 512):
            subscriber.engine.unsubscribe(patterns[start : start + 512])
        subscriber.subscribe("last")
        seen = len(subscriber.got)
        publisher.publish("user.17.inbox", b"3")
        publisher.publish("last", b"4")
        wait_until(lambda: "last" in subscriber.topics())
        assert subscriber.topics()[seen:] == ["last"]


# Topics that a server would take for something else

PIECES = ["\r\n", "\n", "\r", " ", "\t", "%", "%0D", "\0", "\x7f", "?", "[ab]", "\\", "^", "-", "$SYS", "_INBOX", "é",
          "PUB x 1", "*1", "$4", "PING", "\u2028", "\U0001f600", "a"]  # fmt: skip


def hostile_topics(count: int) -> list[str]:
    chance = random.Random(4)
    found = set()
    while len(found) < count:
        tokens = ["".join(chance.choices(PIECES, k=chance.randint(1, 4))) for _ in range(chance.randint(1, 4))]
        found.add(".".join(token.replace("*", "") or "x" for token in tokens))
    return sorted(found)


def test_hostile_topics_arrive_as_they_are_and_nothing_else_does(server: BrokerServer) -> None:
    topics = hostile_topics(1500)
    with client(server.url) as publisher, client(server.url) as wild, client(server.url) as literal:
        wild.subscribe(">")
        for start in range(0, len(topics), 500):
            literal.subscribe(*topics[start : start + 500])
        for topic in topics:
            publisher.publish(topic, topic.encode())
        wait_until(lambda: publisher.confirmed_count == len(topics))
        wait_until(lambda: len(wild.got) >= len(topics) and len(literal.got) >= len(topics))
        assert wild.topics() == literal.topics() == topics
        assert wild.contents() == [topic.encode() for topic in topics]
        assert publisher.up and wild.up and literal.up
        assert not publisher.errors


def test_the_same_without_a_prefix(server: BrokerServer) -> None:
    topics = ["$SYS.REQ.SERVER.PING", "$JS.API.INFO", "_INBOX.x.y", "_INBOX", "__keyspace@0__:x", "a"]
    none = {"plane.prefix": ""}
    with client(server.url, options=none) as publisher, client(server.url, options=none) as subscriber:
        subscriber.subscribe(*topics)
        for topic in topics:
            publisher.publish(topic, b"")
        wait_until(lambda: len(subscriber.got) == len(topics))
        assert subscriber.topics() == topics
        assert not subscriber.foreign


def test_hostile_patterns_match_what_they_should(server: BrokerServer) -> None:
    patterns = ["a?.*", "[ab].>", "x\\.*", "%.*", "a b.*", "c-d.*.e"]
    with client(server.url) as publisher, client(server.url) as subscriber:
        subscriber.subscribe(*patterns, "end")
        right = ["a?.1", "[ab].1.2", "x\\.1", "%.1", "a b.1", "c-d.1.e"]
        for topic in (*right, "ab.1", "a.1", "xy.1", "%25.1", "a%20b.1", "cd.1.e", "end"):
            publisher.publish(topic, b"")
        wait_until(lambda: "end" in subscriber.topics())
        assert subscriber.topics() == [*right, "end"]


@pytest.mark.parametrize("size", [10 * 1024, 65_000])
def test_a_very_long_topic_is_refused_or_arrives(server: BrokerServer, size: int) -> None:
    topic = "a" * size
    with client(server.url) as publisher, client(server.url) as subscriber:
        if server.scheme == "nats":
            with pytest.raises(BadTopic, match="4000 are possible"):
                publisher.engine.head(topic)
            topic = "a" * 3998
        subscriber.subscribe(topic)
        publisher.publish(topic, b"x")
        wait_until(lambda: subscriber.topics() == [topic])
        assert publisher.up and subscriber.up


# Other programs


def test_another_program_publishes_raw_and_is_heard_once(server: BrokerServer) -> None:
    with client(server.url) as subscriber, PlainClient(server.scheme, server.port) as plain:
        subscriber.subscribe("a.>", "a.b", "a.*", ">", "*.b")
        subscriber.subscribe("a.b.c")
        messages = [(b"t.a.b", b"1"), (b"t.a.b", b"1"), (b"t.a.b", b""), (b"t.a.b.c", b"2"), (b"t.x", b"\r\n"),
                    (b"u.a.b", b"another prefix")]  # fmt: skip
        plain.publish(messages)
        wait_until(lambda: len(subscriber.foreign) >= 5)
        expected = [("a.b", b"1"), ("a.b", b"1"), ("a.b", b""), ("a.b.c", b"2"), ("x", b"\r\n")]
        assert subscriber.foreign == expected
        subscriber.engine.unsubscribe(["a.>", ">"])
        subscriber.subscribe("end")
        plain.publish([*messages, (b"t.end", b"")])
        wait_until(lambda: ("end", b"") in subscriber.foreign)
        # Redis still brings more than what *.b matches. The plane drops it.
        later = [(topic, content) for topic, content in subscriber.foreign[5:] if topic != "x"]
        assert later == [*expected[:4], ("end", b"")]


def test_what_is_no_topic_is_dropped_and_counted(server: BrokerServer) -> None:
    with client(server.url) as subscriber, PlainClient(server.scheme, server.port) as plain:
        subscriber.subscribe(">")
        plain.publish([(b"t.\xff\xfe", b"no UTF-8"), (b"t.ok", b"")])
        wait_until(lambda: subscriber.foreign == [("ok", b"")])
        assert subscriber.engine.counters == {"garbage": 1}


# The server goes and comes


def test_nobody_listens_and_then_somebody_does(tmp_path: Path, server: BrokerServer) -> None:
    server.kill()
    with client(server.url, wait=False) as plane:
        wait_until(lambda: len(plane.errors) > 2)
        assert all(isinstance(error, ConnectionRefused) for error in plane.errors)
        assert str(server.port) in str(plane.errors[0])
        server.start()
        plane.wait_up()


def test_a_killed_server_is_noticed_and_its_successor_is_used(server: BrokerServer) -> None:
    with client(server.url) as publisher, client(server.url) as subscriber:
        for round_ in range(1, 4):
            subscriber.subscribe("a.*")
            publisher.publish("a.b", b"%d" % round_)
            wait_until(lambda: publisher.confirmed_count == round_ and len(subscriber.got) == round_)  # noqa: B023
            server.kill()
            wait_until(lambda: not publisher.up and not subscriber.up)
            publisher.publish("a.b", b"lost")
            publisher.sequence -= 1
            server.start()
            publisher.wait_up()
            subscriber.wait_up()
        assert subscriber.contents() == [b"1", b"2", b"3"]
        assert publisher.connections == 4


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines notice silence within half a second."""
    monkeypatch.setattr(brokerline, "SILENCE", 0.4)
    monkeypatch.setattr(brokerline, "_STEP", 0.1)
    monkeypatch.setattr(natslink, "SILENCE", 0.4)
    monkeypatch.setattr(brokerengine, "_CONNECT_TIMEOUT", 0.6)


@pytest.mark.usefixtures("impatient")
def test_a_stopped_server_is_down_though_it_accepts_connections(server: BrokerServer) -> None:
    with client(server.url) as plane:
        server.pause()
        wait_until(lambda: not plane.up, 10)
        assert "says nothing" in str(plane.errors[0])
        wait_until(lambda: len(plane.errors) > 1, 10)
        assert "does not answer" in str(plane.errors[1])
        assert not plane.up
        server.resume()
        plane.wait_up()
        plane.subscribe("a")


@pytest.mark.usefixtures("impatient")
def test_an_idle_connection_stays(server: BrokerServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    look = Line._look

    def counting(line: Line, elapsed: float, late: float) -> None:
        look(line, elapsed, late)
        if line._asked >= 0:
            asked.append(line)

    monkeypatch.setattr(Line, "_look", counting)
    with client(server.url) as plane:
        wait_until(lambda: len(asked) > 5)
        assert plane.up
        assert not plane.errors
        plane.subscribe("a")


@pytest.mark.usefixtures("impatient")
def test_a_busy_subscriber_does_not_take_the_server_for_silent(
    server: BrokerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = Line._look
    monkeypatch.setattr(Line, "_look", lambda *args: (look(*args), looks.append(args)))
    with client(server.url) as publisher, client(server.url) as subscriber:
        subscriber.subscribe("a")
        gate, received = Event(), subscriber.received
        subscriber.received = lambda *args: (gate.wait(), received(*args))  # type: ignore[method-assign]
        publisher.publish("a", b"x")
        wait_until(lambda: len(looks) > 30)
        gate.set()
        wait_until(lambda: subscriber.contents() == [b"x"])
        assert not subscriber.errors


def test_a_subscriber_that_is_too_slow_is_cut_off_and_comes_back(strict_server: tuple[BrokerServer, str]) -> None:
    server, logged = strict_server
    with client(server.url) as publisher, client(server.url) as subscriber:
        subscriber.subscribe("a")
        gate, received = Event(), subscriber.received
        subscriber.received = lambda *args: (gate.wait(), received(*args))  # type: ignore[method-assign]
        sent = publish_until(publisher, server, logged)
        gate.set()
        wait_until(lambda: subscriber.connections == 2)
        assert len(subscriber.errors) == 1
        numbers = [sequence for *_, sequence in subscriber.got]
        assert numbers == [*range(1, len(numbers) + 1)]
        assert len(numbers) < sent
        assert not publisher.errors


def test_a_listener_that_is_no_such_server_is_an_error(server: BrokerServer) -> None:
    with answering(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        with client(f"{server.scheme}://127.0.0.1:{port}", wait=False) as plane:
            wait_until(lambda: plane.errors)
            assert isinstance(plane.errors[0], ConnectionFailed)
            assert {"nats": "none of NATS", "redis": "not the protocol of Redis"}[server.scheme] in str(plane.errors[0])


def test_random_bytes_from_a_server_end_the_connection_and_nothing_else(server: BrokerServer) -> None:
    chance = random.Random(9)
    greetings = [b"", b'INFO {"max_payload": 9, "headers": true}\r\nPONG\r\n', b"+OK\r\n+PONG\r\n", b"+OK\r\n-E\r\n"]
    served = 0

    def serve(peer: gsocket.socket) -> None:
        nonlocal served
        peer.sendall(chance.choice(greetings) + chance.randbytes(chance.randint(0, 60)) + b"\r\n")
        peer.close()
        served += 1

    with answering(serve) as port:
        with client(f"{server.scheme}://127.0.0.1:{port}", wait=False) as plane:
            wait_until(lambda: served > 8, 20)
        assert plane.errors
        assert all(isinstance(error, MultiSocketError) and "unexpected" not in str(error) for error in plane.errors)


# The end


def test_what_was_published_has_left_when_close_returns(server: BrokerServer) -> None:
    with client(server.url) as subscriber:
        subscriber.subscribe("a")
        with client(server.url) as publisher:
            for _ in range(100):
                publisher.publish("a", b"x" * 50_000)
        wait_until(lambda: len(subscriber.got) == 100)


def test_nothing_is_left_whenever_it_closes(server: BrokerServer) -> None:
    with nothing_left():
        with client(server.url, wait=False):
            pass
        with client(server.url, wait=False):
            gevent.sleep(0)
        with client(server.url) as plane:
            plane.subscribe("a")
            plane.publish("b", b"x")
        plane.engine.close(Deadline(0))
        server.kill()
        with client(server.url, wait=False) as plane:
            wait_until(lambda: plane.errors)


def test_nothing_is_left_when_it_closes_in_the_moment_in_which_it_connects(server: BrokerServer) -> None:
    with nothing_left():
        with client(server.url, wait=False) as plane:
            engine: Any = plane.engine
            connect = engine._open
            closers = []

            def connect_while_it_closes(*args: Any) -> Any:
                made = connect(*args)
                closers.append(gevent.spawn(engine.close, Deadline(5)))
                # It has told this greenlet to end by now, which this greenlet hears of when it waits again.
                gevent.sleep(0)
                return made

            engine._open = connect_while_it_closes
            wait_until(lambda: closers and closers[0].ready())
            assert closers[0].successful() and engine._link is None


def test_nothing_is_left_when_a_close_is_given_up(server: BrokerServer) -> None:
    with nothing_left():
        with client(server.url) as plane:
            server.pause()
            plane.publish("a", b"never confirmed")
            closer = gevent.spawn(plane.engine.close, Deadline(60))
            gevent.sleep(0)
            assert not closer.ready()
            closer.kill()
            server.resume()


def test_a_plane_whose_close_is_given_up_waits_for_nothing_more(
    server: BrokerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else it would end by itself, because the server is silent.
    monkeypatch.setattr(brokerline, "SILENCE", 60.0)
    with nothing_left():
        plane = Backplane(server.url)
        plane.connect(10)
        server.pause()
        plane.publish("a", b"never confirmed")
        closer = gevent.spawn(plane.close, 60)
        wait_until(lambda: plane._link._changes.waiters)  # type: ignore[union-attr]
        closer.kill(block=False)
        wait_until(closer.ready)
        assert plane.closed
        server.resume()


def test_an_engine_goes_on_when_its_greenlet_is_killed_or_the_plane_fails(server: BrokerServer) -> None:
    with client(server.url) as plane:
        plane.engine._greenlet.kill()  # type: ignore[attr-defined]
        wait_until(lambda: plane.connections == 2)
        plane.subscribe("a")
        failed = []

        def fail() -> None:
            failed.append(1)
            plane.connected = connected  # type: ignore[method-assign]
            raise KeyError("on purpose")

        connected, plane.connected = plane.connected, fail  # type: ignore[method-assign]
        server.kill()
        server.start()
        wait_until(lambda: plane.connections == 3)
        assert failed
        plane.subscribe("a")


def test_a_closed_engine_reports_nothing(server: BrokerServer) -> None:
    with client(server.url) as plane:
        pass
    server.kill()
    assert plane.errors == []
    assert plane.connections == 1


def test_a_forked_child_does_not_disturb_the_connection(server: BrokerServer) -> None:
    def call(report: int) -> None:
        before = len(os.listdir("/proc/self/fd"))
        plane.engine.abandon()
        assert len(os.listdir("/proc/self/fd")) < before

    with client(server.url) as plane:
        plane.subscribe("a")
        in_forked_child(call)
        with client(server.url) as publisher:
            publisher.publish("a", b"x")
            wait_until(lambda: plane.contents() == [b"x"])
        assert not plane.errors
