"""Of another program's message one copy counts, whatever is subscribed and left meanwhile."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.backplane.natscopies import Copies
from gmultisocket.protocol.subscriptions import matches

PATTERNS = ["a.>", "a.*", "a.b", "*.b", ">"]
TOPICS = ["a.b", "a.c", "x.b"]


def made(*patterns: str) -> Copies:
    copies = Copies()
    for number, pattern in enumerate(patterns, 1):
        copies.add(pattern, b"%d" % number)
    return copies


def test_the_copy_of_the_oldest_subscription_counts() -> None:
    copies = made("a.>", "a.b", "x")
    assert copies.counts(b"1", "a.b", b"")
    assert not copies.counts(b"2", "a.b", b"")
    assert copies.counts(b"1", "a.c", b"")
    assert copies.counts(b"3", "x", b"")
    assert not copies.counts(b"9", "x", b"")


def test_what_comes_by_the_heir_alone_counts_when_the_owner_has_ended() -> None:
    copies = made("a.>", "a.b", "a.*")
    copies.leave([b"1"])
    assert copies.counts(b"1", "a.b", b"both")
    assert not copies.counts(b"2", "a.b", b"both")
    assert not copies.counts(b"3", "a.b", b"both")
    assert not copies.counts(b"2", "a.b", b"heir")
    assert not copies.counts(b"3", "a.b", b"heir")
    assert copies.end([b"1"]) == [("a.b", b"heir")]
    assert copies.counts(b"2", "a.b", b"later")
    assert not copies.counts(b"3", "a.b", b"later")


def test_a_copy_that_comes_behind_the_end_of_the_owner_does_not_count() -> None:
    copies = made("a.>", "a.b")
    copies.leave([b"1"])
    assert copies.counts(b"1", "a.b", b"x")
    assert copies.end([b"1"]) == []
    assert not copies.counts(b"2", "a.b", b"x")
    assert copies.counts(b"2", "a.b", b"x"), "this is another message"


def test_a_copy_that_never_comes_is_not_waited_for_after_the_next_answer() -> None:
    copies = made("a.>", "a.b")
    copies.leave([b"1"])
    assert copies.counts(b"1", "a.b", b"x")
    assert copies.end([b"1"]) == []
    copies.settle()
    assert copies.counts(b"2", "a.b", b"x")


@settings(deadline=None)
@given(st.data())
def test_every_message_counts_once_with_a_server_that_does_one_thing_after_the_other(data: st.DataObject) -> None:
    """The server sends all copies of a message, one by one; a subscription may end between two of them."""
    draw = data.draw
    copies = Copies()
    # What the server has, what it will have done when it has read everything, and what it has written.
    server: dict[int, str] = {}
    mine: dict[int, str] = {}
    counted: Counter[tuple[str, bytes]] = Counter()
    published: Counter[tuple[str, bytes]] = Counter()
    last = 0
    for _ in range(draw(st.integers(1, 25))):
        action = draw(st.sampled_from(["add", "publish", "leave"]))
        if action == "add":
            last += 1
            pattern = draw(st.sampled_from(PATTERNS))
            server[last] = mine[last] = pattern
            copies.add(pattern, b"%d" % last)
            copies.settle()
        elif action == "publish" or not mine:
            topic, content = draw(st.sampled_from(TOPICS)), draw(st.sampled_from([b"1", b"2"]))
            copies_of(draw, server, copies, topic, content, counted, published, None)
        else:
            sid = draw(st.sampled_from(sorted(mine)))
            copies.leave([b"%d" % sid])
            for number in range(draw(st.integers(0, 4))):
                end = draw(st.integers(0, 3)) if number == 1 else None
                topic, content = draw(st.sampled_from(TOPICS)), draw(st.sampled_from([b"1", b"2"]))
                copies_of(draw, server, copies, topic, content, counted, published, None if end is None else (sid, end))
            server.pop(sid, None)
            del mine[sid]
            counted.update(copies.end([b"%d" % sid]))
    assert counted == published


def copies_of(
    draw: st.DrawFn,
    server: dict[int, str],
    copies: Copies,
    topic: str,
    content: bytes,
    counted: Counter[tuple[str, bytes]],
    published: Counter[tuple[str, bytes]],
    end: tuple[int, int] | None,
) -> None:
    """Send the copies of a message; ``end`` is a subscription that ends in front of one of them."""
    matching = draw(st.permutations([sid for sid, pattern in server.items() if matches(pattern, topic)]))
    sent = False
    for number, sid in enumerate(matching):
        if end is not None and end[1] == number:
            server.pop(end[0], None)
        if sid not in server:
            continue
        sent = True
        if copies.counts(b"%d" % sid, topic, content):
            counted[topic, content] += 1
    if end is not None:
        server.pop(end[0], None)
    if sent:
        published[topic, content] += 1
