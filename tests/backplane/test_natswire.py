"""The protocol of NATS, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket.backplane import natswire
from gmultisocket.backplane.natswire import Info, Marks, Parser, Ping, Pong, ServerError, Subjects
from gmultisocket.errors import BadTopic

HEADER = b"NATS/1.0\r\nA: b\r\n\r\n"


def with_header(header: bytes, content: bytes) -> bytes:
    return b"HMSG a 22 %d %d\r\n%b%b\r\n" % (len(header), len(header) + len(content), header, content)


STREAM = (
    b'INFO {"max_payload": 1048576, "headers": true, "version": "2.9.10", "tls_required": false}\r\n'
    b"MSG a.b 1 5\r\na\r\nbc\r\n"
    b"+OK\r\n"
    b"MSG a.b 1 reply.to 0\r\n\r\n" + with_header(HEADER, b"xyz\r\n" * 20) + b"PING\r\nPONG\r\n"
    b"-ERR 'Slow Consumer'\r\n"
    b"PO"
)
EVENTS = [
    Info(1048576, True, False, False),
    (b"1", b"a.b", b"", b"a\r\nbc", b""),
    (b"1", b"a.b", b"", b"", b"reply.to"),
    (b"22", b"a", HEADER, b"xyz\r\n" * 20, b""),
    Ping(),
    Pong(),
    ServerError("Slow Consumer"),
]


def parse(*pieces: bytes) -> tuple[list[object], Parser]:
    parser = Parser()
    events: list[object] = []
    for piece in pieces:
        events += parser.feed(piece)
    return events, parser


def test_all_that_a_server_writes_is_parsed() -> None:
    events, parser = parse(STREAM)
    assert events == EVENTS
    assert parser.error is None
    assert parser.unfinished


@settings(deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=40), max_size=30))
def test_the_pieces_in_which_bytes_come_do_not_matter(sizes: list[int]) -> None:
    pieces, position = [], 0
    for size in sizes:
        pieces.append(STREAM[position : position + size])
        position += size
    events, _ = parse(*pieces, STREAM[position:])
    assert events == EVENTS


def test_a_large_message_may_come_byte_by_byte() -> None:
    content = bytes(range(256)) * 40
    events, _ = parse(*(bytes([each]) for each in b"MSG a 1 %d\r\n%b\r\n" % (len(content), content)))
    assert events == [(b"1", b"a", b"", content, b"")]


@pytest.mark.parametrize("white", [b"\v", b"\f", b"\r", b"\x1c", b"\x85"])
def test_a_subject_with_white_space_that_separates_nothing_at_the_server_is_no_other_subscription(
    white: bytes,
) -> None:
    """Any client may publish under it, and could choose the subscription by which it seems to come."""
    subject = b"a%b7" % white
    events, _ = parse(b"MSG %b 1 2\r\nxy\r\nMSG\t%b  1\tre 2\r\nxy\r\n" % (subject, subject))
    assert events == [(b"1", subject, b"", b"xy", b""), (b"1", subject, b"", b"xy", b"re")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "none of NATS"),
        (b"MSG a 1 x\r\n", "says that it has"),
        (b"MSG a 1 -1\r\n", "says that it has"),
        (b"MSG a 1 99999999999\r\n", "says that it has"),
        (b"MSG a 1 67108865\r\n", "says that it has"),
        (b"MSG a 1 3\r\nabcd\r\n", "does not end"),
        (b"HMSG a 1 9 3\r\nabc\r\n", "longer than the message"),
        (b"MSG a 1\r\n", "none of NATS"),
        (b"INFO {\r\n", "not JSON"),
        (b"INFO []\r\n", "no JSON object"),
        (b'INFO {"max_payload": "1"}\r\n', "no max_payload"),
        (b"INFO " + b"[" * 100000 + b"\r\n", "not JSON"),
        (b"x" * (1 << 20) + b"xx", "more than 1048576 bytes"),
    ],
)
def test_what_no_server_of_nats_writes_is_an_error_behind_what_was_right(data: bytes, why: str) -> None:
    events, parser = parse(b"PING\r\n" + data)
    assert events == [Ping()]
    assert parser.error is not None
    assert why in str(parser.error)
    assert parser.feed(b"PING\r\n") == []


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"MSG a 1 2\r\n", b"HMSG a 1 2 3\r\n", b"\r\n", b"PING"])))
def test_no_bytes_make_it_fail_otherwise(pieces: list[bytes]) -> None:
    parser = Parser()
    for piece in pieces:
        parser.feed(piece)
    together, other = parse(b"".join(pieces))
    assert (parser.error is None) == (other.error is None)


def test_an_error_of_the_server_is_shown_without_control_characters() -> None:
    events, _ = parse(b"-ERR 'a\x1b[2Jb'\r\n")
    assert events == [ServerError("a\\x1b[2Jb")]


# What a client writes


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(min_value=1, max_value=2**64 - 1), st.binary(min_size=8, max_size=8))
def test_a_publication_comes_back_with_its_origin_and_number(content: bytes, number: int, origin: bytes) -> None:
    size = natswire.HEADER_SIZE + len(content)
    written = natswire.publication_format(origin) % (natswire.encode_head(b"a.b"), size, number, content)
    line, _, rest = written.partition(b"\r\n")
    command, subject, header_size, whole = line.split()
    assert (command, subject) == (b"HPUB", b"a.b")
    events, parser = parse(b"HMSG a.b 1 %b %b\r\n%b" % (header_size, whole, rest))
    assert parser.error is None
    ((_, _, header, payload, _),) = events  # type: ignore[misc]
    marks = Marks()
    assert marks.read(header) == marks.read(header) == (origin, number)
    assert payload == content


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"NATS/1.0\r\n\r\n",
        b"NATS/1.0\r\nGms: 00-1\r\n\r\n",
        b"NATS/1.0\r\nX: y\r\nGms: 0123456789abcdef-0000000000000001\r\n\r\n",
        b"NATS/1.0\r\nGms: 0123456789abcdex-0000000000000001\r\n\r\n",
        b"NATS/1.0\r\nGms: 0123456789abcdef-00000000000000x1\r\n\r\n",
        b"NATS/1.0\r\nGmt: 0123456789abcdef-0000000000000001\r\n\r\n",
    ],
)
def test_headers_of_other_programs_have_no_origin(header: bytes) -> None:
    assert Marks().read(header) == (b"", 0)


# Subjects


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("a.b", b"p.a.b"),
        ("a b.c\r\nPUB x 1", b"p.a%20b.c%0D%0APUB%20x%201"),
        ("100%", b"p.100%25"),
        ("%20", b"p.%2520"),
        ("é.\x7f\t", b"p.\xc3\xa9.%7F%09"),
        ("a.*.>", b"p.a.*.>"),
        ("\0", b"p.%00"),
    ],
)
def test_a_topic_is_one_word(topic: str, subject: bytes) -> None:
    assert Subjects("p.").encode(topic) == subject


tokens = st.text(st.characters(exclude_characters=".*>", exclude_categories=["Cs"]), min_size=1, max_size=12)
topics = st.lists(tokens, min_size=1, max_size=5).map(".".join)
pieces = st.sampled_from(["%", "%0", "\r\n", " ", "\t", "$SYS", "_INBOX", "\0", "\x7f", "é", "a"])
hostile = st.lists(pieces, min_size=1, max_size=6).map("".join)


@settings(deadline=None)
@given(topics | hostile, st.sampled_from(["", "p.", "a b.c%."]))
def test_every_topic_comes_back_from_its_subject_and_no_two_share_one(topic: str, prefix: str) -> None:
    subjects = Subjects(prefix)
    subject = subjects.encode(topic)
    assert subjects.decode(subject) == topic
    assert not any(byte <= 0x20 or byte == 0x7F for byte in subject)
    assert not subject.startswith((b"$", b"_INBOX."))


@pytest.mark.parametrize("subject", [b"other.a", b"p.", b"p..a", b"p.a*", b"p.\xff", b"p"])
def test_a_subject_that_no_topic_has_is_none(subject: bytes) -> None:
    assert Subjects("p.").decode(subject) is None


def test_a_subject_of_another_program_may_have_a_percent_sign() -> None:
    assert Subjects("p.").decode(b"p.50%.%zz") == "50%.%zz"


def test_a_topic_that_is_too_long_for_a_line_is_refused() -> None:
    subjects = Subjects("p.")
    assert len(subjects.encode("a" * (natswire.MAX_SUBJECT - 2))) == natswire.MAX_SUBJECT
    with pytest.raises(BadTopic, match="4001 bytes, with the prefix and escapes; 4000 are possible"):
        subjects.encode("a" * (natswire.MAX_SUBJECT - 1))
    with pytest.raises(BadTopic):
        subjects.encode(" " * 2000)


@pytest.mark.parametrize("prefix", ["p", "a..b.", ".", "a.*.", ">.", "$SYS.", "_INBOX."])
def test_a_prefix_is_tokens_with_dots_behind_them(prefix: str) -> None:
    with pytest.raises(BadTopic):
        Subjects(prefix)


def test_long_subjects_and_lines_are_not_kept() -> None:
    subjects, parser = Subjects(""), Parser()
    for number in range(10):
        topic = "x" * 1000 + str(number)
        assert subjects.decode(topic.encode()) == topic
        assert parser.feed(b"MSG %b 1 1\r\nx\r\n" % topic.encode()) == [(b"1", topic.encode(), b"", b"x", b"")]
    assert not subjects._topics and not parser._heads


def test_translations_are_bounded() -> None:
    subjects = Subjects("")
    for number in range(5000):
        assert subjects.decode(b"t%d" % number) == f"t{number}"
    assert len(subjects._topics) <= 4096
