"""The wire: against the Go code's own frames, against a plain model of the rules, and against peers that break them."""

from __future__ import annotations

import ast
import copy
import json
import pickle
import random
import tracemalloc
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import wire
from gmultisocket.errors import BadMessage, BadPath, ContentTooLong, MessageTooLong
from gmultisocket.wire import (
    CONTROL,
    DEFAULT_TTL,
    HEADER_SIZE,
    INTERNAL,
    MAX_CONTENT,
    MAX_IDS,
    RAW,
    TO_ALL,
    TO_DEST,
    TO_ONE,
    Decoder,
    Message,
    check_path,
    encode,
    encode_frame,
    encode_header,
    first_id,
    pack_id,
    path_ids,
    receive,
)
from tests.cases import every_case

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text())
DECODE = VECTORS["decode"]
ENCODE = VECTORS["encode"]
PIPE_ID = 0x01020304
LOCAL = b"\1\2\3\4"

examples = settings(max_examples=150)


def path(*ids: int) -> bytes:
    return b"".join(map(pack_id, ids))


def header(flags: int = 0, ttl: int = 5, hops: int = 0, distance: int = 0, length: int = 0) -> bytes:
    return pack(">BBBBI", flags, ttl, hops, distance, length)


def bad_header(**fields: int) -> bytes:
    """A header with as many bytes after it as it promises, so that only the header can be what is wrong."""
    return header(**fields) + bytes(4 * (fields.get("hops", 0) + fields.get("distance", 0)))


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def feed_all(decoder: Decoder, pieces: Iterable[bytes]) -> tuple[list[Message], type[BadMessage] | None]:
    """Do as a reader does: deliver what came, stop at the first error."""
    messages: list[Message] = []
    for piece in pieces:
        try:
            messages += decoder.feed(piece)
        except BadMessage as error:
            return messages, type(error)
        if decoder.error is not None:
            return messages, type(decoder.error)
    return messages, None


def model(stream: bytes, pipe_id: int, limit: int) -> tuple[list[Message], type[BadMessage] | None]:
    """What a stream must give: the rules of the wire, written for reading and not for speed."""
    messages = []
    while len(stream) >= 8:
        flags, ttl, hops, distance = stream[:4]
        length = int.from_bytes(stream[4:8], "big")
        send_type = flags & 3
        if send_type == 3 or ttl == 0 or (send_type == 2 and distance == 0):
            return messages, BadMessage
        if hops + 1 + distance - (send_type == 2) > 255:
            return messages, BadMessage
        if limit and length > limit:
            return messages, ContentTooLong
        size = 8 + 4 * hops + 4 * distance + length
        if len(stream) < size:
            break
        frame, stream = stream[:size], stream[size:]
        source, frame = frame[8 : 8 + 4 * hops], frame[8 + 4 * hops :]
        destination, content = frame[: 4 * distance], frame[4 * distance :]
        if send_type == 2:
            destination = destination[4:]
        messages.append(Message(flags, ttl - 1, pack(">I", pipe_id) + source, destination, content, pipe_id))
    return messages, None


# What the Go code does


def test_encodes_as_go_does() -> None:
    with every_case() as case:
        for number, row in enumerate(ENCODE):
            with case(f"row {number}"):
                flags = row["flags"] | row["send_type"]
                content = bytes.fromhex(row["content_hex"])
                message = Message(flags, row["ttl"], path(*row["source"]), path(*row["destination"]), content)
                assert encode(message).hex() == row["frame_hex"]


def decoded_row(row: dict[str, Any], pieces: list[bytes]) -> None:
    decoder = Decoder(row["pipe_id"], row["max_content"])
    messages, error = feed_all(decoder, pieces)
    if "error" in row:
        assert row["error"] == "content is too long"
        assert (messages, error) == ([], ContentTooLong)
        return
    assert error is None
    assert decoder.pending == 0
    (message,) = messages
    assert (message.flags, message.send_type, message.ttl) == (row["flags"], row["send_type"], row["ttl"])
    assert (message.hops, path_ids(message.source)) == (row["hops"], tuple(row["source"]))
    assert (message.distance, path_ids(message.destination)) == (row["distance"], tuple(row["destination"]))
    assert message.content.hex() == row["content_hex"]
    assert message.pipe_id == row["pipe_id"]
    assert encode(message).hex() == row["reencoded_hex"]


def test_decodes_as_go_does() -> None:
    with every_case() as case:
        for number, row in enumerate(DECODE):
            with case(f"row {number}"):
                decoded_row(row, [bytes.fromhex(row["frame_hex"])])


def test_decodes_as_go_does_byte_by_byte() -> None:
    with every_case() as case:
        for number, row in enumerate(DECODE):
            with case(f"row {number}"):
                decoded_row(row, one_by_one(bytes.fromhex(row["frame_hex"])))


def test_decodes_as_go_does_wherever_the_frame_is_cut() -> None:
    with every_case() as case:
        for number, row in enumerate(DECODE):
            with case(f"row {number}"):
                frame = bytes.fromhex(row["frame_hex"])
                dice = random.Random(row["pipe_id"])
                for _ in range(20):
                    decoded_row(row, cut(frame, [dice.randrange(len(frame)) for _ in range(dice.randrange(1, 6))]))


def test_the_frames_of_all_rows_make_one_stream() -> None:
    rows = [row for row in DECODE if "error" not in row]
    stream = b"".join(bytes.fromhex(row["frame_hex"]) for row in rows)
    messages = Decoder(PIPE_ID, 0).feed(stream)
    assert [message.content.hex() for message in messages] == [row["content_hex"] for row in rows]


# What goes out comes in


ids = st.integers(1, 2**31 - 1)
contents = st.one_of(
    st.binary(max_size=100),
    st.builds(lambda seed, n: (seed + b"+") * n, st.binary(max_size=8), st.integers(0, 3000)),
)


@st.composite
def sent_messages(draw: st.DrawFn) -> Message:
    send_type = draw(st.sampled_from([TO_ONE, TO_ALL, TO_DEST]))
    flags = send_type | draw(st.integers(0, 63)) << 2
    source = draw(st.lists(ids, max_size=4))
    destination = draw(st.lists(ids, min_size=send_type == TO_DEST, max_size=4))
    return Message(flags, draw(st.integers(1, 255)), path(*source), path(*destination), draw(contents))


cuts = st.lists(st.integers(0, 2**20), max_size=12)

# Small numbers in every field, so that many of these are almost frames.
near_frames = st.builds(
    lambda fields, rest: bytes(fields) + rest,
    st.tuples(
        st.integers(0, 255),
        st.integers(0, 3),
        st.sampled_from([0, 0, 1, 2, 254, 255]),
        st.sampled_from([0, 0, 1, 2, 254, 255]),
        st.just(0),
        st.just(0),
        st.integers(0, 1),
        st.integers(0, 20),
    ),
    st.binary(max_size=60),
)


@examples
@given(st.lists(sent_messages(), max_size=8), cuts)
def test_messages_come_through_however_the_stream_is_cut(sent: list[Message], places: list[int]) -> None:
    stream = b"".join(map(encode, sent))
    expected = model(stream, PIPE_ID, 0)
    assert len(expected[0]) == len(sent)
    decoder = Decoder(PIPE_ID)
    assert feed_all(decoder, cut(stream, places)) == expected
    assert decoder.pending == 0


def row(message: Message, count: int) -> list[Message]:
    """Return messages that differ in their contents only."""
    return [message.replace(content=message.content + pack(">H", number)) for number in range(count)]


rows = st.builds(row, sent_messages(), st.sampled_from([1, 2, 15, 16, 17, 31, 63, 64, 65, 130, 400]))


@examples
@given(st.lists(rows, min_size=1, max_size=4), st.one_of(near_frames, st.just(b"")), cuts, st.integers(0, 200))
def test_messages_that_differ_in_their_contents_only_come_through_one_by_one(
    sent: list[list[Message]], end: bytes, places: list[int], limit: int
) -> None:
    stream = b"".join([encode(message) for each in sent for message in each]) + end
    assert feed_all(Decoder(PIPE_ID, limit), cut(stream, places)) == model(stream, PIPE_ID, limit)


@pytest.mark.parametrize("place", range(16))
def test_one_byte_of_a_header_or_path_that_differs_ends_a_row(place: int) -> None:
    frames = [bytearray(encode(message)) for message in row(Message(TO_DEST, 9, path(5), path(7), b"x"), 200)]
    for number in (0, 14, 15, 16, 62, 63, 64, 199):
        changed = [*frames]
        changed[number] = bytearray(frames[number])
        changed[number][place] ^= 1
        stream = b"".join(changed)
        assert feed_all(Decoder(PIPE_ID, 0), [stream]) == model(stream, PIPE_ID, 0)


@examples
@given(sent_messages())
def test_a_message_handed_over_in_process_is_what_its_frame_would_have_been(message: Message) -> None:
    assert receive(message, PIPE_ID, LOCAL) == Decoder(PIPE_ID).feed(encode(message))[0]


@examples
@given(st.lists(sent_messages(), max_size=3), st.binary(max_size=40), cuts, st.integers(0, 200))
def test_any_bytes_after_good_frames_give_what_the_rules_say(
    sent: list[Message], garbage: bytes, places: list[int], limit: int
) -> None:
    stream = b"".join(map(encode, sent)) + garbage
    assert feed_all(Decoder(PIPE_ID, limit), cut(stream, places)) == model(stream, PIPE_ID, limit)


@settings(max_examples=400)
@given(st.lists(st.one_of(st.binary(max_size=300), near_frames), max_size=6), cuts)
def test_random_bytes_give_only_messages_or_the_documented_errors(parts: list[bytes], places: list[int]) -> None:
    stream = b"".join(parts)
    assert feed_all(Decoder(PIPE_ID), cut(stream, places)) == model(stream, PIPE_ID, 131072)
    assert feed_all(Decoder(PIPE_ID), one_by_one(stream)) == model(stream, PIPE_ID, 131072)


# Packets


@given(st.lists(sent_messages(), max_size=8))
def test_packets_of_one_frame_each_give_what_their_stream_would(sent: list[Message]) -> None:
    frames = [encode(message) for message in sent]
    expected = Decoder(PIPE_ID, 0).feed_fields(b"".join(frames))
    decoder = Decoder(PIPE_ID, 0)
    assert decoder.feed_packets(frames) == expected
    assert not decoder.pending and decoder.error is None


@given(st.lists(sent_messages(), max_size=2), st.one_of(st.binary(max_size=300), near_frames))
def test_a_packet_that_is_not_one_frame_ends_the_decoder_and_those_before_it_are_delivered(
    sent: list[Message], packet: bytes
) -> None:
    model = Decoder(PIPE_ID, 200)
    try:
        good = len(model.feed_fields(packet)) == 1 and not model.pending and model.error is None
    except BadMessage:
        good = False
    decoder = Decoder(PIPE_ID, 200)
    before = [encode(message.replace(content=b"short")) for message in sent]
    try:
        found = len(decoder.feed_packets([*before, packet]))
    except BadMessage:
        found = 0
    assert found == len(before) + good
    assert (decoder.error is None) == good
    if not good:
        with pytest.raises(BadMessage):
            decoder.feed_packets([])


def test_the_flags_of_packets_are_marked_as_those_of_a_stream_are() -> None:
    decoder = Decoder(PIPE_ID)
    decoder.feed_packets([header(), header(CONTROL)])
    assert not decoder.flagged
    decoder.feed_packets([header(), header(RAW), header()])
    assert decoder.flagged


def test_two_frames_that_are_cut_elsewhere_than_their_packets_are_refused() -> None:
    stream = header(length=3) + b"abc" + header(length=3) + b"abc"
    with pytest.raises(BadMessage):
        Decoder(PIPE_ID).feed_packets([stream[:15], stream[15:]])


def test_a_content_of_many_chunks_is_put_together_in_order() -> None:
    content = random.Random(1).randbytes(1_000_003)
    stream = encode(Message(content=content, source=path(7))) + encode(Message(content=b"next"))
    for size in (100, 4095, 4096, 65536, 262144):
        decoder = Decoder(PIPE_ID, 0)
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        messages, error = feed_all(decoder, pieces)
        assert error is None
        assert [message.content for message in messages] == [content, b"next"]
        assert all(type(message.content) is bytes for message in messages)


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_takes_any_bytes_like_and_gives_bytes(kind: Callable[[bytes], Any]) -> None:
    sent = Message(TO_DEST, 5, path(1), path(2, 3), b"c" * 9000)
    buffer = encode(sent) + encode(sent)
    decoder = Decoder(PIPE_ID)
    messages = decoder.feed(kind(buffer[:-4000])) + decoder.feed(kind(buffer[-4000:]))
    assert messages == [receive(sent, PIPE_ID, LOCAL)] * 2
    for message in messages:
        assert {type(field) for field in message} == {int, bytes}


def test_a_piece_in_a_buffer_that_is_used_again_is_safe() -> None:
    frame = encode(Message(content=bytes(range(250)) * 100))
    buffer = bytearray(5000)
    decoder = Decoder(PIPE_ID)
    messages = []
    for i in range(0, len(frame), len(buffer)):
        piece = frame[i : i + len(buffer)]
        buffer[: len(piece)] = piece
        messages += decoder.feed(memoryview(buffer)[: len(piece)])
    assert [message.content for message in messages] == [frame[HEADER_SIZE:]]


# What a peer may not do


def check_flags(flags: int, distance: int) -> None:
    frame = header(flags=flags, distance=distance, length=1) + path(8, 9)[: 4 * distance] + b"x"
    if flags & 3 == 3 or (flags & 3 == TO_DEST and not distance):
        with pytest.raises(BadMessage):
            Decoder(PIPE_ID).feed(frame)
        return
    (message,) = Decoder(PIPE_ID).feed(frame)
    left = path(8, 9)[: 4 * distance]
    if flags & 3 == TO_DEST:
        left = left[4:]
    assert message == Message(flags, 4, LOCAL, left, b"x", PIPE_ID)
    assert message.send_type == flags & 3


def test_flag_bits_are_kept_and_send_types_are_checked() -> None:
    with every_case() as case:
        for flags in range(256):
            for distance in range(3):
                with case(f"flags {flags:#04x}, {distance} ids to go"):
                    check_flags(flags, distance)


def test_a_message_that_claims_what_a_peer_may_not_is_marked_by_the_call_that_returns_it() -> None:
    with every_case() as case:
        for flag in [INTERNAL, RAW]:
            for places in [[], [4], [8], [10], [8, 9]]:
                with case(f"flag {flag:#04x}, cut at {places}"):
                    frame = encode(Message(content=b"fine")) + encode(Message(flags=flag, content=b"claim"))
                    start = len(frame) // 2
                    decoder = Decoder(PIPE_ID)
                    for piece in cut(frame, [start + place for place in places]):
                        messages = decoder.feed(piece)
                        if any(message.flags & flag for message in messages):
                            assert decoder.flagged
                            decoder.flagged = False
                            break
                    else:
                        pytest.fail("the message never came")
                    decoder.feed(encode(Message(flags=CONTROL, content=b"fine")))
                    assert not decoder.flagged


BAD_HEADERS = {
    "hops would become 256": bad_header(hops=255),
    "hops would become 256, with a destination": bad_header(flags=TO_DEST, hops=255, distance=1),
    "8 bytes that wrap to no path in 8 bits": bad_header(hops=200, distance=56),
    "the same to a destination": bad_header(flags=TO_DEST, hops=200, distance=56),
    "both paths full": bad_header(hops=255, distance=255),
    "both paths full, to a destination": bad_header(flags=TO_DEST, hops=255, distance=255),
    "one id too many once received": bad_header(hops=200, distance=55),
    "ttl 0": bad_header(ttl=0),
    "ttl 0 to a destination": bad_header(flags=TO_DEST, ttl=0, distance=1),
    "send type 3": bad_header(flags=3),
    "send type 3 with a destination": bad_header(flags=3, distance=1),
    "no destination": bad_header(flags=TO_DEST),
    "no destination, but a source": bad_header(flags=TO_DEST, hops=1),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
}


def test_a_bad_header_is_refused_at_its_eighth_byte() -> None:
    with every_case() as case:
        for name, frame in BAD_HEADERS.items():
            with case(name):
                with pytest.raises(BadMessage):
                    Decoder(PIPE_ID).feed(frame)
                decoder = Decoder(PIPE_ID)
                for byte in one_by_one(frame[:7]):
                    assert decoder.feed(byte) == []
                with pytest.raises(BadMessage) as caught:
                    decoder.feed(frame[7:8])
                assert str(caught.value).startswith("bad message: ")
                assert decoder.pending == 0


GOOD_HEADERS = {
    "254 hops": header(hops=254),
    "254 ids in both paths": header(flags=TO_ALL, hops=200, distance=54),
    "254 hops and one to go": header(flags=TO_DEST, hops=254, distance=1),
    "255 to go": header(flags=TO_DEST, distance=255),
    "ttl 1": header(ttl=1),
    "ttl 255": header(ttl=255),
}


@pytest.mark.parametrize("head", GOOD_HEADERS.values(), ids=GOOD_HEADERS)
def test_what_is_just_within_bounds_arrives_and_can_be_encoded_again(head: bytes) -> None:
    _, ttl, hops, distance = head[:4]
    paths = random.Random(2).randbytes(4 * (hops + distance))
    (message,) = Decoder(PIPE_ID).feed(head + paths)
    assert message.ttl == ttl - 1
    assert message.hops == hops + 1 <= MAX_IDS
    assert message.source == LOCAL + paths[: 4 * hops]
    assert message.destination == paths[len(paths) - 4 * message.distance :]
    assert message.distance == distance - (message.send_type == TO_DEST)
    assert encode(message)[:4] == bytes([head[0], ttl - 1, message.hops, message.distance])


def test_ttl_1_arrives_as_0_and_is_encoded_as_0() -> None:
    (message,) = Decoder(PIPE_ID).feed(header(ttl=1))
    assert message.ttl == 0
    assert encode(message)[1] == 0


@pytest.mark.parametrize("length", [1001, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_length_over_the_limit_is_refused_before_any_content(length: int) -> None:
    decoder = Decoder(PIPE_ID, 1000)
    with pytest.raises(ContentTooLong) as caught:
        decoder.feed(header(length=length))
    assert (caught.value.size, caught.value.limit) == (length, 1000)
    assert decoder.pending == 0


def test_a_complete_frame_over_the_limit_is_refused_too() -> None:
    with pytest.raises(ContentTooLong):
        Decoder(PIPE_ID, 10).feed(encode(Message(content=bytes(11))))
    assert Decoder(PIPE_ID, 10).feed(encode(Message(content=bytes(10))))[0].content == bytes(10)


def test_a_limit_of_0_is_no_limit() -> None:
    decoder = Decoder(PIPE_ID, 0)
    assert decoder.feed(header(length=MAX_CONTENT)) == []
    assert decoder.pending == HEADER_SIZE


def test_the_limit_may_change_between_two_frames() -> None:
    decoder = Decoder(PIPE_ID, 5)
    frame = encode(Message(content=bytes(20)))
    decoder.max_content = 20
    assert len(decoder.feed(frame + frame[:-1])) == 1
    decoder.max_content = 5
    # A frame that was promised room keeps it.
    assert len(decoder.feed(frame[-1:])) == 1
    with pytest.raises(ContentTooLong):
        decoder.feed(frame)


def test_a_failed_decoder_stays_failed() -> None:
    decoder = Decoder(PIPE_ID, 10)
    for _ in range(3):
        with pytest.raises(ContentTooLong) as caught:
            decoder.feed(header(length=11))
        assert (caught.value.size, caught.value.limit) == (11, 10)
    with pytest.raises(ContentTooLong):
        decoder.feed(b"")
    with pytest.raises(ContentTooLong):
        decoder.feed(encode(Message(content=b"good")))


def test_messages_before_a_bad_frame_are_delivered_and_the_error_follows() -> None:
    good = encode(Message(content=b"one")) + encode(Message(content=b"two"))
    decoder = Decoder(PIPE_ID)
    assert decoder.error is None
    messages = decoder.feed(good + bad_header(ttl=0) + encode(Message(content=b"never")))
    assert [message.content for message in messages] == [b"one", b"two"]
    assert isinstance(decoder.error, BadMessage)
    with pytest.raises(BadMessage) as caught:
        decoder.feed(b"")
    assert str(caught.value) == str(decoder.error)


def test_a_content_that_ends_before_a_bad_frame_is_delivered() -> None:
    frame = encode(Message(content=bytes(9000)))
    decoder = Decoder(PIPE_ID)
    assert decoder.feed(frame[:6000]) == []
    (message,) = decoder.feed(frame[6000:] + bad_header(flags=3))
    assert message.content == bytes(9000)
    assert isinstance(decoder.error, BadMessage)


def test_the_error_that_is_kept_holds_no_frames() -> None:
    decoder = Decoder(PIPE_ID)
    for _ in range(2):
        with pytest.raises(BadMessage):
            decoder.feed(header(ttl=0))
    assert decoder.error is not None
    assert decoder.error.__traceback__ is None


@pytest.mark.parametrize(
    "message",
    [
        Message(flags=3),
        Message(ttl=0),
        Message(flags=TO_DEST),
        Message(source=bytes(4 * 255)),
        Message(source=bytes(4 * 200), destination=bytes(4 * 55)),
        Message(flags=TO_DEST, source=bytes(4 * 255), destination=bytes(4)),
    ],
    ids=["send type 3", "ttl 0", "no destination", "255 hops", "200 + 55 ids", "255 + 1 ids"],
)
def test_the_same_bounds_hold_in_process(message: Message) -> None:
    with pytest.raises(BadMessage):
        receive(message, PIPE_ID, LOCAL)


# Memory and reading


def traced(run: Callable[[], object]) -> tuple[int, int]:
    """Return the bytes that a run keeps and the most that it had at any time."""
    tracemalloc.start()
    try:
        kept = run()
        now, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return now, peak


@pytest.mark.parametrize(
    ("head", "limit"),
    [
        (header(length=131072), 131072),
        (header(length=MAX_CONTENT), 0),
        (header(hops=254, length=131072), 131072),
        (header(flags=TO_DEST, distance=255, length=MAX_CONTENT), 0),
    ],
)
def test_a_promise_costs_nothing(head: bytes, limit: int) -> None:
    def run() -> list[Decoder]:
        decoders = [Decoder(PIPE_ID, limit) for _ in range(1000)]
        for decoder in decoders:
            assert decoder.feed(head) == []
        return decoders

    _, peak = traced(run)
    assert peak < 1000 * 1024


def test_a_refused_length_costs_nothing() -> None:
    def run() -> None:
        for _ in range(100):
            with pytest.raises(ContentTooLong):
                Decoder(PIPE_ID).feed(header(length=MAX_CONTENT))

    _, peak = traced(run)
    assert peak < 500_000


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_content_that_drips_in_costs_about_what_has_come(size: int) -> None:
    came = 20_000

    def run() -> Decoder:
        decoder = Decoder(PIPE_ID, 0)
        decoder.feed(header(length=MAX_CONTENT))
        for _ in range(came // size):
            decoder.feed(bytes(size))
        assert decoder.pending == HEADER_SIZE + came
        return decoder

    _, peak = traced(run)
    assert peak < 3 * came


def test_a_few_bytes_do_not_keep_their_chunk_alive() -> None:
    chunk = encode(Message(content=bytes(60_000))) + header(length=1000) + b"few"

    def run() -> Decoder:
        decoder = Decoder(PIPE_ID)
        decoder.feed(bytes(bytearray(chunk)))
        return decoder

    kept, _ = traced(run)
    assert kept < 10_000


def test_pending_counts_the_bytes_of_the_frame_that_is_not_complete() -> None:
    frame = encode(Message(content=b"content", source=path(1), destination=path(2)))
    decoder = Decoder(PIPE_ID)
    for at, byte in enumerate(one_by_one(frame)):
        assert decoder.pending == at
        decoder.feed(byte)
    assert decoder.pending == 0
    decoder.feed(frame + frame[:10])
    assert decoder.pending == 10


def test_read_size_follows_a_large_content_up_to_a_bound() -> None:
    decoder = Decoder(PIPE_ID, 0)
    usual = decoder.read_size
    assert usual == 65536
    decoder.feed(header(length=200_000))
    assert decoder.read_size == 200_000
    decoder.feed(bytes(150_000))
    assert decoder.read_size == 50_000
    decoder.feed(bytes(50_000))
    assert decoder.read_size == HEADER_SIZE, "the next content is read by itself"
    decoder.feed(header(length=5) + b"small")
    assert decoder.read_size == usual
    decoder.feed(header(length=MAX_CONTENT))
    assert decoder.read_size == 262_144


def test_after_the_beginning_of_a_frame_was_kept_reads_end_where_a_frame_ends() -> None:
    decoder = Decoder(PIPE_ID)
    for length, usual in ((1000, 65 * 1008), (30_000, 8 * 30_008), (100_000, 2 * 100_008)):
        decoder.keep(header(length=length) + bytes(300))
        assert decoder.read_size == usual - 308
        decoder.take_kept()
        assert decoder.read_size == usual
    # It is not known yet how long this frame is.
    decoder.keep(b"\0\x10")
    assert decoder.read_size == 2 * 100_008 - 2
    decoder.feed(header(length=110_000)[2:])
    assert decoder.read_size == 110_000
    decoder.feed(bytes(110_000))
    assert decoder.read_size == HEADER_SIZE


def test_a_content_read_alone_is_not_copied() -> None:
    decoder = Decoder(PIPE_ID)
    decoder.feed(header(length=100_000))
    content = bytes(100_000)
    (message,) = decoder.feed(content)
    assert message.content is content


def test_contents_behind_paths_are_read_alone_as_well() -> None:
    head = header(flags=TO_DEST, hops=1, distance=2, length=100_000) + b"\0\0\0\1\0\0\0\2\0\0\0\3"
    content = bytes(100_000)
    decoder = Decoder(PIPE_ID)
    decoder.feed(head + content)
    decoder.feed(head + content[:50_000])
    decoder.feed(content[50_000:])
    for _ in range(3):
        assert decoder.read_size == len(head)
        decoder.feed(head)
        assert decoder.read_size == len(content)
        (message,) = decoder.feed(content)
        assert message.content is content


# Messages


def test_a_message_needs_its_content_only() -> None:
    message = Message(content=b"x")
    assert message == (TO_ONE, DEFAULT_TTL, b"", b"", b"x", 0)
    assert (message.send_type, message.hops, message.distance) == (TO_ONE, 0, 0)


def test_a_message_cannot_be_changed_but_replaced() -> None:
    message = Message(content=b"x", flags=TO_DEST | CONTROL, source=path(1, 2), destination=path(3))
    with pytest.raises(AttributeError):
        message.content = b"y"  # type: ignore[misc]
    other = message.replace(content=b"y", ttl=3)
    assert (other.content, other.ttl, message.content) == (b"y", 3, b"x")
    assert type(other) is Message
    assert (other.send_type, other.hops, other.distance) == (TO_DEST, 2, 1)


def test_a_message_shows_no_more_than_the_start_of_its_content() -> None:
    text = repr(Message(content=b"\xff\n" + b"x" * 10**6, source=path(1)))
    assert "hops=1" in text
    assert text.isascii()
    assert len(text) < 200
    assert "content=None" in repr(tuple.__new__(Message, (RAW, 0, LOCAL, b"", None, PIPE_ID)))


def test_a_message_survives_copy_and_pickle() -> None:
    message = Message(flags=INTERNAL, content=b"x", pipe_id=5)
    assert copy.copy(message) == pickle.loads(pickle.dumps(message)) == message
    assert type(pickle.loads(pickle.dumps(message))) is Message


# Paths


def test_ids_and_paths() -> None:
    assert pack_id(0x01020304) == LOCAL
    assert first_id(path(7, 8)) == 7
    assert first_id(b"") == 0
    assert path_ids(path(7, 2**31 - 1)) == (7, 2**31 - 1)
    assert path_ids(b"") == ()


@pytest.mark.parametrize("bad", [-1, 2**32, "7", None])
def test_what_is_no_id_is_refused(bad: Any) -> None:
    with pytest.raises(BadPath):
        pack_id(bad)


def test_the_ids_of_half_a_path_are_refused() -> None:
    with pytest.raises(BadPath):
        path_ids(b"12345")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_good_path_is_returned_as_bytes(kind: Callable[[bytes], Any]) -> None:
    for good in (path(1), path(*range(1, 256))):
        checked = check_path(kind(good))
        assert checked == good
        assert type(checked) is bytes


BAD_PATHS: list[Any] = [b"", b"123", b"12345", bytes(4 * 256), bytearray(), None, 4, "path", [1, 2]]


def test_a_bad_path_is_refused() -> None:
    with every_case() as case:
        for bad in BAD_PATHS:
            with case(repr(bad)):
                with pytest.raises(BadPath) as caught:
                    check_path(bad)
                assert str(caught.value).startswith("bad path ")


# Encoding


def test_ttl_0_means_the_default_for_a_message_made_here_only() -> None:
    assert encode(Message(ttl=0))[1] == DEFAULT_TTL
    assert encode(Message(ttl=0, pipe_id=5))[1] == 0
    assert encode_frame(0, 0, b"", b"", b"")[1] == 0


@examples
@given(sent_messages())
def test_a_header_is_the_frame_without_its_content(message: Message) -> None:
    flags, ttl, source, destination, content, _ = message
    head = encode_header(flags, ttl, source, destination, len(content))
    assert head + content == encode_frame(flags, ttl, source, destination, content) == encode(message)


@pytest.mark.parametrize(
    ("source", "destination"),
    [(b"123", b""), (b"", b"12345"), (b"12", b"34"), (bytes(1024), b""), (b"", bytes(1024)), (bytes(800), bytes(224))],
)
def test_paths_that_would_put_the_peer_out_of_step_are_not_encoded(source: bytes, destination: bytes) -> None:
    with pytest.raises(BadPath):
        encode_frame(0, 16, source, destination, b"x")
    with pytest.raises(BadPath):
        encode_header(0, 16, source, destination, 1)


BAD_FLAGS_AND_TTL: list[Any] = [(256, 1), (-1, 1), (0, 256), (0, -1), (0, 1.5), (0, None), ("", 1)]


def test_flags_and_ttl_that_do_not_fit_are_not_encoded() -> None:
    with every_case() as case:
        for flags, ttl in BAD_FLAGS_AND_TTL:
            for source in [b"", LOCAL]:
                with case(f"flags {flags!r}, ttl {ttl!r}, source {source!r}"):
                    with pytest.raises(BadMessage):
                        encode_frame(flags, ttl, source, b"", b"x")


class HugeContent(bytes):
    def __len__(self) -> int:
        return MAX_CONTENT + 1


@pytest.mark.parametrize("source", [b"", LOCAL])
def test_a_content_that_the_length_field_cannot_hold_is_not_encoded(source: bytes) -> None:
    with pytest.raises(MessageTooLong) as caught:
        encode_frame(0, 16, source, b"", HugeContent())
    assert (caught.value.size, caught.value.limit) == (MAX_CONTENT + 1, MAX_CONTENT)
    assert encode_header(0, 16, source, b"", MAX_CONTENT)[4:8] == b"\xff\xff\xff\xff"


def test_a_path_may_be_any_bytes_like_object() -> None:
    assert check_path(array("I", [1, 2])) == array("I", [1, 2]).tobytes()
    assert check_path(memoryview(b"\1\2\3\4\5\6\7\10\0\0\0\0\0\0\0\0")[::2]) == b"\1\3\5\7\0\0\0\0"


# The module


def test_imports_nothing_that_waits_talks_or_tells_the_time() -> None:
    tree = ast.parse(Path(wire.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    harmless = {"__future__", "collections.abc", "copy", "functools", "itertools", "struct", "typing"}
    assert imported <= harmless | {"typing_extensions", ".errors"}


def test_exports_what_it_has() -> None:
    assert sorted(wire.__all__) == sorted(set(wire.__all__))
    assert all(hasattr(wire, name) for name in wire.__all__)
