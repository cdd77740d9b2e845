"""The JavaScript client gets after a reconnect what it has missed, or is told that something is missing."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from gmultisocket import Pub, Session, Socket, Switch
from gmultisocket.protocol.memoryhistory import MemoryHistory
from gmultisocket.testing import wait_until
from tests.browser.agents import NODE, Node
from tests.browser.test_client import drop
from tests.faults.process import needs

pytestmark = [needs(f"{NODE} --version"), pytest.mark.timeout(120)]


def follow(js: Node, address: str, options: str = "{}") -> None:
    js.evaluate(f"""
        await kept.make("{address}").subscribe("a.>", m => kept.seen.push([m.topic, m.text()]), {options}).ready;
    """)


def seen(js: Node, end: str) -> list[str]:
    js.evaluate(f"await kept.until(() => kept.seen.some(([, text]) => text === '{end}'))")
    return [text for _, text in js.evaluate("return kept.seen")]


def gaps(js: Node) -> list[tuple[str | None, str]]:
    return [(each["topic"], each["reason"]) for each in js.evaluate("return kept.events") if each["type"] == "gap"]


def test_what_was_missed_comes_in_order_and_once(js: Node) -> None:
    with Pub(history=MemoryHistory("a.>")) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        pub.publish("a.x", b"before")
        follow(js, address)
        number = 0
        for _ in range(5):
            for _ in range(10):
                pub.publish(f"a.{number % 3}", b"%d" % number)
                number += 1
            drop(session)
            wait_until(lambda: not pub.pipes)
            for _ in range(10):
                pub.publish(f"a.{number % 3}", b"%d" % number)
                number += 1
            pub.wait_subscribers("a.0", timeout=20)
        pub.publish("a.0", b"end")
        assert seen(js, "end") == [*map(str, range(number)), "end"]
        assert gaps(js) == []


def test_a_page_that_was_away_for_too_long_is_told_once_and_gets_the_rest(js: Node) -> None:
    with Pub(history=MemoryHistory("a.>", max_entries=5)) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        follow(js, address)
        pub.publish("a.x", b"first")
        seen(js, "first")
        drop(session)
        wait_until(lambda: not pub.pipes)
        for number in range(20):
            pub.publish("a.x", b"%d" % number)
        pub.wait_subscribers("a.x", timeout=20)
        pub.publish("a.x", b"end")
        got = seen(js, "end")
        assert gaps(js) == [(None, "history")]
        assert (got[0], got[-1]) == ("first", "end")
        # How many the history still had when it was asked.
        assert got[1:-1] == [*map(str, range(20))][20 - len(got[1:-1]) :]
        assert 4 <= len(got[1:-1]) <= 5


def test_a_publisher_that_gets_another_history_is_a_gap_before_what_follows(js: Node) -> None:
    history = MemoryHistory("a.>")
    with Pub(history=history) as pub, Session({"events": pub}) as session:
        follow(js, session.listen("ws://127.0.0.1:0/ws").address)
        for content in ("1", "2", "3"):
            pub.publish("a.x", content.encode())
            assert seen(js, content)[-1] == content
            assert gaps(js) == [(None, "gone")] * (int(content) - 1)
            history.epoch += 1
            pub.replay_again()
            js.evaluate(f"await kept.until(() => kept.events.filter(each => each.type === 'gap').length === {content})")


@contextmanager
def behind_a_switch(js: Node, *pubs: Pub) -> Iterator[Socket]:
    """Connect a page and some publishers by one switch. Yield the socket that the page is connected to."""
    with ExitStack() as stack:
        back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
        stack.enter_context(Switch(back, front)).start()
        inner = back.listen("tcp://127.0.0.1:0").address
        for pub in pubs:
            stack.enter_context(pub).dial(inner)
        back.wait_pipes(len(pubs), 20)
        follow(js, front.listen("ws://127.0.0.1:0/").address)
        for pub in pubs:
            pub.wait_subscribers("a.x", timeout=20)
        yield front


def test_behind_a_switch_a_publisher_that_gets_another_history_is_a_gap_and_another_publisher_is_none(js: Node) -> None:
    history = MemoryHistory("a.>")
    changes, stays = Pub(history=history), Pub(history=MemoryHistory("a.>"))
    with behind_a_switch(js, changes, stays):
        for turn in range(1, 4):
            for pub in (changes, stays):
                pub.publish("a.x", b"%d" % turn)
            js.evaluate(f"await kept.until(() => kept.seen.length === {2 * turn})")
            assert gaps(js) == [(None, "gone")] * (turn - 1)
            history.epoch += 1
            changes.replay_again()
            js.evaluate(f"await kept.until(() => kept.events.filter(each => each.type === 'gap').length === {turn})")
        stays.publish("a.x", b"end")
        assert seen(js, "end") == ["1", "1", "2", "2", "3", "3", "end"]
        assert gaps(js) == [(None, "gone")] * 3


def test_behind_a_switch_publishers_of_one_history_get_another_one_after_each_other(js: Node) -> None:
    first_history, second_history = MemoryHistory("a.>"), MemoryHistory("a.>")
    second_history.epoch = first_history.epoch
    first, second = Pub(history=first_history), Pub(history=second_history)
    with behind_a_switch(js, first, second):
        first_history.epoch += 1
        first.replay_again()
        js.evaluate("await kept.until(() => kept.events.some(({type}) => type === 'gap'))")
        # The other one has still the history of before.
        second.publish("a.x", b"before")
        first.publish("a.x", b"other")
        js.evaluate("await kept.until(() => kept.seen.length === 2)")
        second_history.epoch += 1
        second.replay_again()
        js.evaluate("await kept.until(() => kept.events.filter(({type}) => type === 'gap').length === 2)")
        second.publish("a.y", b"not had yet")
        second.publish("a.y", b"end")
        assert sorted(seen(js, "end")) == ["before", "end", "not had yet", "other"]
        assert gaps(js) == [(None, "gone")] * 2


def test_a_page_that_comes_back_to_a_switch_gets_what_it_has_missed_of_each_publisher(js: Node) -> None:
    pubs = [Pub(history=MemoryHistory("a.>")) for _ in range(3)]
    with behind_a_switch(js, *pubs) as front:
        for turn in range(5):
            for number, pub in enumerate(pubs):
                pub.publish(f"a.{number}", b"live %d" % turn)
            js.evaluate(f"await kept.until(() => kept.seen.length === {6 * turn + 3})")
            drop(front)
            for number, pub in enumerate(pubs):
                pub.publish(f"a.{number}", b"missed %d" % turn)
            js.evaluate(f"await kept.until(() => kept.seen.length === {6 * turn + 6})")
        got = js.evaluate("return kept.seen")
        for number in range(3):
            expected = [f"{content} {turn}" for turn in range(5) for content in ("live", "missed")]
            assert [text for topic, text in got if topic == f"a.{number}"] == expected
        assert gaps(js) == []


def test_a_history_that_no_publisher_has_when_a_page_comes_back_to_a_switch_is_one_gap(js: Node) -> None:
    goes, stays = Pub(history=MemoryHistory("a.>")), Pub(history=MemoryHistory("a.>"))
    with behind_a_switch(js, goes, stays) as front:
        # A page waits for 5 s until nobody claims a history any more.
        js.evaluate("""
            kept.setTimeout = setTimeout;
            globalThis.setTimeout = (done, pause) => kept.setTimeout(done, pause === 5000 ? 1000 : pause);
        """)
        goes.publish("a.x", b"of one")
        seen(js, "of one")
        goes.close()
        drop(front)
        js.evaluate("""
            await kept.until(() => kept.events.some(({type}) => type === "gap"));
            globalThis.setTimeout = kept.setTimeout;
        """)
        stays.publish("a.x", b"end")
        assert seen(js, "end") == ["of one", "end"]
        assert gaps(js) == [(None, "gone")]


def test_what_a_full_queue_has_dropped_is_told_by_the_next_message_of_the_topic(js: Node) -> None:
    with Pub({"socket.send_queue_size": 3}, history=MemoryHistory("a.>")) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        follow(js, address)
        # Node does nothing else meanwhile, so that the queues on the way fill up.
        js.evaluate("kept.busy = setTimeout(() => { const end = Date.now() + 1500; while (Date.now() < end); }, 0)")
        while not pub.counters.drops.get("overflow"):
            pub.publish("a.x", bytes(100_000))
        wait_until(lambda: not any(pipe.queued for pipe in pub.pipes.values()), 20)
        pub.publish("a.x", b"end")
        seen(js, "end")
        assert gaps(js) == [("a.x", "overflow")]


def test_a_server_that_lost_its_history_is_told_and_a_second_client_of_another_worker_is_not(js: Node) -> None:
    shared = MemoryHistory("a.>")
    with Pub(history=shared) as first, Session({"events": first}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        follow(js, address)
        first.publish("a.x", b"one")
        seen(js, "one")
    # Another one with the same history, as another worker behind a backplane has it.
    with Pub(history=shared) as second, Session({"events": second}) as session:
        second.publish("a.x", b"missed")
        session.listen(address)
        second.wait_subscribers("a.x", timeout=20)
        second.publish("a.x", b"two")
        assert seen(js, "two") == ["one", "missed", "two"]
        assert gaps(js) == []
    with Pub(history=MemoryHistory("a.>")) as third, Session({"events": third}) as session:
        session.listen(address)
        js.evaluate("await kept.until(() => kept.events.some(({type}) => type === 'gap'))")
        third.publish("a.x", b"three")
        assert seen(js, "three") == ["one", "missed", "two", "three"]
        assert gaps(js) == [(None, "gone")]


def test_retained_values_come_to_a_subscription_that_was_closed_and_made_again(js: Node) -> None:
    with Pub(history=MemoryHistory("a.>")) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        pub.publish("a.x", b"state", retain=True)
        for number in range(1, 4):
            js.evaluate(f"""
                kept.client ??= null;
                if ({number} === 1) kept.make("{address}");
                const subscription = kept.client.subscribe("a.>", m => kept.seen.push(m.text()));
                await kept.until(() => kept.seen.length === {number});
                subscription.close();
            """)
        js.evaluate("""
            kept.one = kept.client.subscribe("a.>", m => kept.seen.push("one"));
            await kept.until(() => kept.seen.includes("one"));
            kept.two = kept.client.subscribe("a.>", m => kept.seen.push("two"));
            await kept.until(() => kept.seen.includes("two"));
            kept.one.close(); kept.two.close();
        """)
        wait_until(lambda: not pub.subscriptions)
        assert gaps(js) == []


def test_what_is_recovered_by_overlapping_patterns_comes_once_to_each(js: Node) -> None:
    with Pub(history=MemoryHistory("a.>")) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        js.evaluate(f"""
            kept.make("{address}");
            for (const pattern of ["a.*", "a.x", "a.>"]) {{
              await kept.client.subscribe(pattern, m => kept.seen.push([pattern, m.text()])).ready;
            }}
        """)
        for turn in range(3):
            pub.publish("a.x", b"live %d" % turn)
            js.evaluate(f"await kept.until(() => kept.seen.filter(([, text]) => text === 'live {turn}').length === 3)")
            drop(session)
            wait_until(lambda: not pub.pipes)
            pub.publish("a.x", b"missed %d" % turn)
            count = f"kept.seen.filter(([, text]) => text === 'missed {turn}').length"
            js.evaluate(f"await kept.until(() => {count} === 3)")
            wait_until(lambda: pub.subscriptions == 3)
        pub.publish("a.x", b"end")
        js.evaluate("await kept.until(() => kept.seen.filter(([, text]) => text === 'end').length === 3)")
        expected = [f"{kind} {turn}" for turn in range(3) for kind in ("live", "missed")] + ["end"]
        for pattern in ("a.*", "a.x", "a.>"):
            assert [text for each, text in js.evaluate("return kept.seen") if each == pattern] == expected
        assert gaps(js) == []


def test_a_pattern_that_comes_later_gets_the_values_that_another_one_has_had(js: Node) -> None:
    with Pub(history=MemoryHistory("a.>")) as pub, Session({"events": pub}) as session:
        address = session.listen("ws://127.0.0.1:0/ws").address
        pub.publish("a.x", b"state", retain=True)
        js.evaluate(f"""
            kept.make("{address}");
            for (const pattern of ["a.>", "a.x", "a.*"]) {{
              kept[pattern] = kept.client.subscribe(pattern, m => kept.seen.push([pattern, m.text()]));
              await kept.until(() => kept.seen.some(([each]) => each === pattern));
            }}
            kept["a.>"].close();
        """)
        assert js.evaluate("return kept.seen") == [["a.>", "state"], ["a.x", "state"], ["a.*", "state"]]
        for turn in range(3):
            pub.publish("a.x", b"%d" % turn, retain=True)
        js.evaluate("await kept.until(() => kept.seen.length === 9)")
        assert sorted(js.evaluate("return kept.seen.slice(3)")) == [
            [pattern, f"{turn}"] for pattern in ("a.*", "a.x") for turn in range(3)
        ]
        assert gaps(js) == []


def test_a_replay_that_was_cut_off_behind_a_gap_goes_on_where_it_ended(js: Node) -> None:
    def replay(ask: int, offset: int, flags: int) -> None:
        send(struct.pack("!BIQQB", 6, ask, 7, offset, flags))

    def publication(ask: int, offset: int, previous: int) -> None:
        send(struct.pack("!BIQQQH", 7, ask, 7, offset, previous, 3) + b"a.x%d" % offset)

    def send(content: bytes) -> None:
        publisher.send_to(source, bytes([32, 16, 0, 0]) + struct.pack("!I", len(content)) + content)

    def asked() -> tuple[bytes, int, bytes]:
        """Return the source, the id and the positions of the next subscription."""
        while (message := publisher.recv_msg(20)).content[8:9] != b"\5":
            pass
        content = message.content[8:]
        return message.source, int.from_bytes(content[1:5], "big"), content[7 : 7 + 16 * content[6]]

    # What a publisher sends, message by message.
    with Socket({"connector.pipe.raw": True}) as publisher:
        address = publisher.listen("ws://127.0.0.1:0/").address
        js.evaluate(f'kept.make("{address}").subscribe("a.>", m => kept.seen.push([m.topic, m.text()]))')
        source, first, positions = asked()
        assert positions == b""
        replay(first, 10, 2)
        publication(first, 8, 6)
        seen(js, "8")
        drop(publisher)
        source, second, positions = asked()
        assert (second != first, positions) == (True, struct.pack("!QQ", 7, 8))
        replay(second, 12, 1)
        publication(second, 9, 8)
        publication(second, 11, 9)
        replay(second, 12, 8)
        publication(0, 14, 13)
        assert seen(js, "14") == ["8", "9", "11", "14"]
        assert gaps(js) == [(None, "history"), ("a.x", "overflow")]
