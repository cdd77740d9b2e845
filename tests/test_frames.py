"""Frames that are passed on as they lie, against the decoder and the encoder."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import example, given, settings
from hypothesis import strategies as st

from gmultisocket.errors import BadMessage
from gmultisocket.frames import Batch, frame_size, is_beginning, take_batch
from gmultisocket.wire import (
    CONTROL,
    INTERNAL,
    MAX_IDS,
    NO_SOURCE,
    RAW,
    SEND_TYPE_MASK,
    TO_ALL,
    TO_DEST,
    TO_ONE,
    Decoder,
    encode_frame,
    first_id,
    pack_id,
)

LOCAL = 0x01020304
MAX_TTL = 64
MAX_CONTENT = 5000


def frame(
    content: bytes = b"", flags: int = TO_ONE, ttl: int = 16, source: bytes = b"", destination: bytes = b""
) -> bytes:
    return encode_frame(flags, ttl, source, destination, content)


def take(data: bytes, position: int = 0) -> Batch | None:
    return take_batch(data, position, pack_id(LOCAL), MAX_TTL, MAX_CONTENT)


def long_way(data: bytes) -> bytes | None:
    """Return the frame that a switch makes of a whole one by a message; None if it does something else with it."""
    decoder = Decoder(LOCAL, MAX_CONTENT)
    try:
        (message,) = decoder.feed(data)
    except BadMessage:
        return None
    kind = message.send_type
    if message.flags & (INTERNAL | RAW) or not 1 <= message.ttl <= MAX_TTL:
        return None
    if message.hops + message.distance >= MAX_IDS + (kind == TO_DEST):
        return None
    if kind == TO_DEST and not message.destination:
        return None
    return encode_frame(message.flags, message.ttl, message.source, message.destination, message.content)


paths = st.one_of(st.sampled_from([0, 1, 2, 3]), st.sampled_from([125, 126, 127, 128, 252, 253, 254])).flatmap(
    lambda ids: st.sampled_from([b"\0\0\0\7" * ids, bytes(range(4)) * ids])
)
frames = st.builds(
    lambda flags, ttl, paths, content: frame(content, flags, ttl, *paths),
    flags=st.sampled_from([TO_ONE, TO_ONE, TO_ALL, TO_DEST, TO_DEST, TO_ALL | CONTROL, NO_SOURCE, INTERNAL, RAW, 3]),
    ttl=st.sampled_from([16, 16, 16, 0, 1, 2, 63, 64, 65, 66, 255]),
    paths=st.tuples(paths, paths).filter(lambda both: len(both[0] + both[1]) <= 4 * MAX_IDS),
    content=st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"x" * 64, bytes(200), b"\0\x10\0\0\0\0\0\x08" * 3, b"y" * 2047, b"z" * 2048, bytes(4000)]),
    ),
)
streams = st.lists(st.tuples(frames, st.sampled_from([1, 1, 2, 3, 16, 17, 18, 80, 300])), max_size=6)


@settings(max_examples=300)
@given(streams, st.binary(max_size=20))
@example([(frame(b"\0\x10\0\0\0\0\0\3"[:3]), 40), (frame(b"y"), 40)], b"")
def test_each_frame_is_what_the_decoder_and_the_encoder_make_of_it(stream: list[tuple[bytes, int]], end: bytes) -> None:
    whole = [each for each, count in stream for _ in range(count)]
    data = b"".join(whole) + end
    position = number = 0
    while number < len(whole):
        assert frame_size(data, position) == len(whole[number])
        batch = take(data, position)
        if batch is None:
            assert long_way(whole[number]) is None
            position += len(whole[number])
            number += 1
            continue
        made = list(batch)
        assert made == [long_way(each) for each in whole[number : number + batch.count]]
        assert b"".join(batch.buffers()) == b"".join(made)
        assert len(batch.buffers()) <= 64
        assert (batch.count, batch.size) == (len(made), sum(map(len, made)))
        assert {each[0] & SEND_TYPE_MASK for each in made} == {batch.kind}
        for count in (1, len(made) // 2, len(made)):
            size = batch.size_of(count)
            assert size == sum(map(len, made[:count]))
            assert batch.read_size(count, size) == sum(map(len, whole[number : number + count]))
        position += batch.read_size(batch.count, batch.size)
        number += batch.count


@settings(max_examples=200)
@given(frames, st.data())
def test_a_frame_that_is_not_whole_is_never_taken(each: bytes, data: st.DataObject) -> None:
    part = each[: data.draw(st.integers(0, len(each) - 1))]
    assert take(part) is None
    if is_beginning(part, 0, MAX_TTL, MAX_CONTENT) and len(part) >= 8:
        assert long_way(each) is not None


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_make_no_other_frames_than_the_decoder_finds(data: bytes) -> None:
    decoder = Decoder(LOCAL, MAX_CONTENT)
    messages = []
    with suppress(BadMessage):
        messages = decoder.feed(data)
    batch = take(data)
    made = [] if batch is None else list(batch)
    assert len(made) <= len(messages)
    for new, message in zip(made, messages, strict=False):
        assert new == encode_frame(message.flags, message.ttl, message.source, message.destination, message.content)


def test_frames_along_paths_are_together_only_if_they_go_to_one_pipe() -> None:
    near, far = pack_id(LOCAL) + pack_id(5), pack_id(LOCAL) + pack_id(6)
    data = frame(b"a", TO_DEST, destination=near) * 3 + frame(b"b", TO_DEST, destination=far)
    first = take(data)
    assert first is not None
    assert (first.kind, first.pipe_id, first.count) == (TO_DEST, 5, 3)
    second = take(data, first.read_size(first.count, first.size))
    assert second is not None
    assert (second.pipe_id, list(second)) == (6, [frame(b"b", TO_DEST, 15, pack_id(LOCAL), pack_id(6))])
    assert first_id(far[4:]) == 6


def test_a_content_of_2_kib_is_sent_from_where_it_was_read_and_a_shorter_one_with_its_header() -> None:
    data = frame(b"a" * 2048, TO_ONE, 9) + frame(b"b" * 2047, TO_ONE, 9)
    batch = take(data)
    assert batch is not None
    head, content, short = batch.buffers()
    assert isinstance(content, memoryview)
    assert content.obj is data
    assert head + content == frame(b"a" * 2048, TO_ONE, 8, pack_id(LOCAL))
    assert short == frame(b"b" * 2047, TO_ONE, 8, pack_id(LOCAL))


def test_what_would_be_many_small_buffers_is_joined() -> None:
    for count in (33, 100):
        batch = take(frame(b"a" * 2048) * count)
        assert batch is not None
        assert [len(each) for each in batch.buffers()] == [count * (12 + 2048)]
    batch = take(b"".join(frame(b"%d" % number * 300) for number in range(8, 12)) + frame(bytes(2048)))
    assert batch is not None
    assert len(batch.buffers()) == 1


def test_a_content_over_the_limit_is_not_taken_and_neither_is_the_beginning_of_one() -> None:
    for length, is_short in ((MAX_CONTENT, True), (MAX_CONTENT + 1, False)):
        whole = frame(bytes(length))
        assert (take(whole) is not None) == is_short
        assert is_beginning(whole[:-1], 0, MAX_TTL, MAX_CONTENT) == is_short
        assert not is_beginning(whole, 0, MAX_TTL, MAX_CONTENT)


def test_one_batch_has_a_bounded_number_of_frames() -> None:
    data = frame() * 5000
    position, counts = 0, []
    while position < len(data):
        batch = take(data, position)
        assert batch is not None
        counts.append(batch.count)
        position += batch.read_size(batch.count, batch.size)
    assert sum(counts) == 5000
    assert max(counts) == 1024
