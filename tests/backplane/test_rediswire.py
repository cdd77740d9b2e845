"""What the engine for Redis writes, and which globs it asks for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.backplane import rediswire
from gmultisocket.backplane.rediswire import MAX_GLOBS, Channels, Globs, first_tokens
from gmultisocket.errors import BadTopic
from gmultisocket.protocol.subscriptions import matches

hiredis = pytest.importorskip("hiredis", reason="hiredis is not installed")

tokens = st.text(st.characters(exclude_characters=".*>", exclude_categories=["Cs"]), min_size=1, max_size=8)
topics = st.lists(tokens, min_size=1, max_size=4).map(".".join)
few = st.sampled_from(["a", "b", "c"])
wildcards = st.lists(few | st.just("*"), min_size=1, max_size=4).flatmap(
    lambda parts: st.sampled_from([".".join([*parts, ">"]), ".".join([*parts[:-1], "*"])])
)


def parsed(data: bytes) -> list[object]:
    reader = hiredis.Reader()
    reader.feed(data)
    found = reader.gets()
    assert reader.gets() is False
    assert isinstance(found, list)
    return found


@settings(deadline=None)
@given(st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_a_command_has_its_arguments_whatever_bytes_they_have(words: list[bytes]) -> None:
    assert parsed(rediswire.encode_command(*words)) == words


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(min_size=8, max_size=8), st.integers(min_value=1, max_value=2**64 - 1))
def test_a_publication_comes_back_with_its_mark(content: bytes, origin: bytes, number: int) -> None:
    command, channel, value = parsed(rediswire.encode_publish(b"a\r\nb", origin, number, content))
    assert (command, channel) == (b"PUBLISH", b"a\r\nb")
    assert isinstance(value, bytes)
    assert rediswire.read_mark(value) == (origin, number)
    assert value[rediswire.MARK_SIZE :] == content
    assert len(value) - len(content) == 20


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff\x00g", b"\xff\x00gm" + bytes(15), b"x" * 40])
def test_what_another_program_publishes_has_no_mark(value: bytes) -> None:
    assert rediswire.read_mark(value) == (b"", 0)


# Channels


@settings(deadline=None)
@given(topics, st.sampled_from(["", "p.", "?[x]\\."]))
def test_every_topic_comes_back_from_its_channel(topic: str, prefix: str) -> None:
    channels = Channels(prefix)
    assert channels.decode(channels.encode(topic)) == topic


@pytest.mark.parametrize("channel", [b"other.a", b"p.", b"p..a", b"p.a*", b"p.\xff", b"p"])
def test_a_channel_that_no_topic_has_is_none(channel: bytes) -> None:
    assert Channels("p.").decode(channel) is None


@pytest.mark.parametrize("prefix", ["p", "a..b.", ".", "a.*."])
def test_a_prefix_is_tokens_with_dots_behind_them(prefix: str) -> None:
    with pytest.raises(BadTopic):
        Channels(prefix)


def test_translations_are_bounded() -> None:
    channels = Channels("")
    for number in range(5000):
        assert channels.decode(b"t%d" % number) == f"t{number}"
    assert len(channels._topics) <= 4096
    before = len(channels._topics)
    assert channels.decode(b"x" * 1000) == "x" * 1000
    assert len(channels._topics) == before


def test_what_has_a_meaning_in_a_glob_is_escaped() -> None:
    assert Channels("p.").glob(("a?[b]^\\-", "c")) == rb"p.a\?\[b\]\^\\\-.c.*"
    assert Channels("").glob(()) == b"*"


# Globs


def hears(wanted: set[tuple[str, ...]], topic: str) -> bool:
    return any(tuple(topic.split(".")[: len(each)]) == each and topic.count(".") >= len(each) for each in wanted)


@settings(deadline=None)
@given(st.lists(wildcards, max_size=12), st.lists(few, min_size=1, max_size=5).map(".".join))
def test_what_a_pattern_matches_is_heard(patterns: list[str], topic: str) -> None:
    globs = Globs()
    wanted: set[tuple[str, ...]] = set()
    for pattern in patterns:
        wanted = globs.add([pattern])
    if any(matches(pattern, topic) for pattern in patterns):
        assert hears(wanted, topic)
    assert not any(one != other and other[: len(one)] == one for one in wanted for other in wanted)
    for pattern in patterns:
        wanted = globs.remove([pattern])
    assert wanted == set()


def test_a_pattern_asks_for_its_first_tokens_and_covers_the_longer_ones() -> None:
    globs = Globs()
    assert globs.add(["a.b.*.d", "a.b.>", "c.*"]) == {("a", "b"), ("c",)}
    assert globs.add(["a.>"]) == {("a",), ("c",)}
    assert globs.remove(["a.>"]) == {("a", "b"), ("c",)}
    assert globs.add([">"]) == {()}


def test_many_patterns_ask_for_few_globs() -> None:
    globs = Globs()
    wanted = globs.add(f"user.{number}.inbox.>" for number in range(10_000))
    assert wanted == {("user",)}
    assert globs.add(["orders.eu.*"]) == {("user",), ("orders",)}
    wanted = globs.add(f"tenant{number}.>" for number in range(MAX_GLOBS))
    assert wanted == {()}
    globs.remove(f"tenant{number}.>" for number in range(MAX_GLOBS))
    assert globs.remove(["orders.eu.*"]) == {()}
    globs.remove(f"user.{number}.inbox.>" for number in range(10_000))
    assert globs.add(["a.b.*"]) == {("a", "b")}


def test_the_first_tokens_end_before_a_wildcard() -> None:
    assert [first_tokens(each) for each in ("a.b.>", "*.a", ">", "a.*.c")] == [("a", "b"), (), (), ("a",)]

