"""Values that travel as JSON."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import pytest

import gmultisocket
from gmultisocket.errors import HandlerFailed, NotJSON, NotSupported, Timeout
from gmultisocket.protocol.jsoncodec import Bus, Pair, Pub, Pull, Push, Rep, Req, Sub
from tests.cases import every_case

VALUES: list[Any] = [None, True, 0, -1.5, "", "ü☃", [], {"a": [1, {"b": None}]}, 2**60, "x" * 100_000]
ADDRESS = "tcp://127.0.0.1:0"
#: No JSON. The last one is nested too deeply for any parser that calls itself.
GARBAGE = [b"", b"{", b"\xff", b"NaN", b"[Infinity]", b"1" * 5000, b"[" * 100_000]


def too_deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def connected(one: Any, *others: Any) -> None:
    address = one.listen(ADDRESS).address
    for other in others:
        other.dial(address)
    one.wait_pipes(len(others), 20)


def test_publications_are_values_and_on_the_wire_compact_json() -> None:
    with Pub() as pub, Sub() as sub, gmultisocket.Sub() as plain:
        connected(pub, sub, plain)
        pub.publish("a.kept", {"b": [1, "ü"]}, retain=True)
        for each in (sub, plain):
            each.subscribe("a.>", timeout=20)
        assert sub.recv(20) == ("a.kept", {"b": [1, "ü"]})
        assert plain.recv(20) == ("a.kept", '{"b":[1,"ü"]}'.encode())
        for value in VALUES:
            assert pub.publish("a.b", value) == 2
            assert sub.recv(20) == ("a.b", value)
        pub.close()
        sub.close()
        assert [*sub] == []


def test_a_request_and_its_reply_are_values() -> None:
    with Rep(lambda value: value) as rep, Req() as req:
        rep.start()
        connected(rep, req)
        for value in VALUES:
            assert req.request(value, 20) == value


def test_messages_are_values() -> None:
    with every_case() as case:
        for one, other in ((Pair(), Pair()), (Bus(), Bus()), (Pull(), Push())):
            with case(type(one).__name__), one, other:
                connected(one, other)
                for value in VALUES:
                    other.send(value, 20)
                    assert one.recv(20) == value
                other.send([1], 20)
                assert next(iter(one)) == [1]
                with pytest.raises(Timeout):
                    one.recv(0)


def test_what_json_cannot_express_is_not_sent_and_the_error_says_what_it_was() -> None:
    circular: list[Any] = []
    circular.append(circular)
    bad = [b"bytes", date(2026, 1, 2), {"a": math.nan}, [-math.inf], {1, 2}, "\ud800", circular, too_deep()]
    with Pub() as pub, Sub() as sub, Rep(lambda value: date(2026, 1, 2)) as rep, Req() as req, Bus() as bus:
        rep.start()
        connected(pub, sub)
        connected(rep, req)
        sub.subscribe("a", timeout=20)
        with every_case() as case:
            for value in bad:
                with case(repr(type(value))):
                    for send, what in (
                        (lambda value: pub.publish("a", value, retain=True), "publication under 'a'"),
                        (req.request, "request"),
                        (bus.send, "message"),
                    ):
                        with pytest.raises(NotJSON, match=f"^the {what} is no JSON: ") as caught:
                            send(value)
                        assert caught.value.what == what
        with pytest.raises(NotJSON, match="date is not JSON serializable: datetime.date"):
            pub.publish("a", date(2026, 1, 2))
        assert not pub.unretain("a")
        # A reply is the failure of the handler, as in all else.
        with pytest.raises(HandlerFailed):
            req.request(1, 20)
        pub.publish("a", "last")
        assert sub.recv(20) == ("a", "last")


def test_what_comes_and_is_no_json_is_dropped_and_counted_and_disturbs_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gmultisocket.Pub() as pub, Sub() as sub, gmultisocket.Bus() as bus, Bus() as other:
        connected(pub, sub)
        connected(bus, other)
        sub.subscribe("a", timeout=20)
        for content in GARBAGE:
            pub.publish("a", content)
            bus.send(content)
        pub.publish("a", b' {"b" : 1}\n')
        bus.send(b"2")
        assert sub.recv(20) == ("a", {"b": 1})
        assert other.recv(20) == 2
        with pytest.raises(Timeout):
            sub.recv(0)
        assert sub.counters.drops["garbage"] == other.counters.drops["garbage"] == len(GARBAGE)
    warnings = [record.getMessage() for record in caplog.records]
    assert [text.partition(" drops a content: ")[2] for text in warnings] == [
        f"the {what} is no JSON: Expecting value: line 1 column 1 (char 0): b''"
        for what in ("publication under 'a'", "message")
    ]


def test_a_request_that_is_no_json_fails_at_once_and_says_why() -> None:
    asked: list[Any] = []
    with Rep(asked.append, concurrency=2) as rep, gmultisocket.Req() as req:
        rep.start()
        connected(rep, req)
        with every_case() as case:
            for content in GARBAGE:
                with case(content[:20]), pytest.raises(HandlerFailed, match="failed: the request is no JSON: "):
                    req.request(content, 20)
        assert asked == []
        assert rep.counters.drops["garbage"] == len(GARBAGE)
        assert req.request(b"[1]", 20) == b"null"
        assert asked == [[1]]
        with pytest.raises(NotSupported, match="the handler takes what comes"):
            rep.recv(0)


def test_a_reply_that_is_no_json_is_an_error_of_its_request_alone() -> None:
    with gmultisocket.Rep(lambda content: content.strip(b'"')) as rep, Req() as req:
        rep.start()
        connected(rep, req)
        with pytest.raises(NotJSON, match="^the reply is no JSON: Expecting value: line 1 column 1 .char 0.: b'hello'"):
            req.request("hello", 20)
        assert req.request("7", 20) == 7
