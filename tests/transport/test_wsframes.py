"""The frame codec against the rules of RFC 6455, and against ``websockets.frames`` in both directions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side
from websockets.streams import StreamReader

from gmultisocket.errors import BadMessage, BadPacket, Closed, ContentTooLong, Disconnected, MultiSocketError, Timeout
from gmultisocket.transport.wsframes import MAX_FRAGMENTS, ClientFrames, FrameCodec, ServerFrames
from tests.cases import every_case

LENGTHS = (0, 1, 125, 126, 127, 65535, 65536, 70_000)
OVERHEAD = 8 + 4 * 255

Codecs = pytest.mark.parametrize(("sender", "receiver"), [(ClientFrames, ServerFrames), (ServerFrames, ClientFrames)])
Receiver = pytest.mark.parametrize("receiver", [ServerFrames, ClientFrames])


class Lax(Frame):
    """A frame as it is, however wrong."""

    def check(self) -> None:
        pass


def frame(receiver: type[FrameCodec], opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    """Return a frame as ``websockets`` writes it for this receiver."""
    made = Lax(Opcode(opcode), payload, fin, bool(rsv & 4), bool(rsv & 2), bool(rsv & 1))
    return made.serialize(mask=receiver is ServerFrames)


def head(receiver: type[FrameCodec], first: int, second: int, rest: bytes = b"") -> bytes:
    """Return the beginning of a frame, with the mask bit that this receiver wants."""
    return bytes((first, second | (0x80 if receiver is ServerFrames else 0))) + rest


def parse(data: bytes, masked: bool) -> list[Frame]:
    """Return the frames in some bytes, as ``websockets`` reads them."""
    reader = StreamReader()
    reader.feed_data(data)
    frames = []
    while reader.buffer:
        try:
            next(Frame.parse(reader.read_exact, mask=masked))
        except StopIteration as stop:
            frames.append(stop.value)
        else:
            raise AssertionError("the bytes end in the middle of a frame")
    return frames


def feed(codec: FrameCodec, data: bytes) -> list[bytes]:
    """Feed bytes until all frames in them are decoded."""
    packets = codec.feed(data)
    while codec.more:
        packets += codec.feed(b"")
    return packets


def refusal(codec: FrameCodec, data: bytes) -> BadMessage:
    """Return the error that some bytes cause."""
    with pytest.raises(BadMessage) as caught:
        codec.feed(data)
    assert codec.error is not None
    return caught.value


def told(codec: FrameCodec, reason: MultiSocketError | None) -> Close:
    """Return what the peer is told when the pipe closes for a reason."""
    (last,) = parse(codec.goodbye(reason), masked=isinstance(codec, ClientFrames))
    assert last.opcode is Opcode.CLOSE
    return Close.parse(last.data)


# Both ways


@Codecs
def test_messages_of_every_length_arrive(sender: type[FrameCodec], receiver: type[FrameCodec]) -> None:
    with every_case() as case:
        for text in (False, True):
            for length in LENGTHS:
                with case(f"{length} bytes{' of text' if text else ''}"):
                    check_length(sender, receiver, text, length)


def check_length(sender: type[FrameCodec], receiver: type[FrameCodec], text: bool, length: int) -> None:
    payload = b"x" * length
    packet = sender(text).wrap(payload)
    assert receiver().feed(packet) == [payload]
    (seen,) = parse(packet, masked=sender is ClientFrames)
    assert (seen.opcode, seen.data, seen.fin) == (Opcode.TEXT if text else Opcode.BINARY, payload, True)
    assert sender().unwrap(packet) == payload


@Codecs
@given(payloads=st.lists(st.binary(max_size=300)), text=st.booleans())
def test_what_we_write_websockets_reads(
    sender: type[FrameCodec], receiver: type[FrameCodec], payloads: list[bytes], text: bool
) -> None:
    codec = sender(text)
    packets = [codec.wrap(payload) for payload in payloads]
    frames = parse(b"".join(packets), masked=sender is ClientFrames)
    assert [seen.data for seen in frames] == payloads
    assert [codec.unwrap(packet) for packet in packets] == payloads
    for seen in frames:
        assert seen.fin and seen.opcode in (Opcode.TEXT, Opcode.BINARY)
        if seen.opcode is Opcode.TEXT:
            seen.data.decode()
        else:
            assert not text or not is_utf8(seen.data)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


#: Frames by opcode, payload and FIN, the messages that they make, and the pings among them.
Conversation = tuple[list[tuple[int, bytes, bool]], list[bytes], list[bytes]]


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    frames: list[tuple[int, bytes, bool]] = []
    messages: list[bytes] = []
    pings: list[bytes] = []

    def controls() -> None:
        for _ in range(draw(st.integers(0, 2))):
            payload = draw(st.binary(max_size=125))
            opcode = draw(st.sampled_from([Opcode.PING, Opcode.PONG]))
            frames.append((opcode, payload, True))
            if opcode is Opcode.PING:
                pings.append(payload)

    for _ in range(draw(st.integers(0, 4))):
        text = draw(st.booleans())
        message = draw(st.text(max_size=80)).encode() if text else draw(st.binary(max_size=400))
        if draw(st.booleans()):
            message *= draw(st.integers(1, 40))
        cuts = sorted(draw(st.lists(st.integers(0, len(message)), max_size=4)))
        pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True)]
        for index, piece in enumerate(pieces):
            controls()
            opcode = Opcode.CONT if index else Opcode.TEXT if text else Opcode.BINARY
            frames.append((opcode, piece, index == len(pieces) - 1))
        messages.append(message)
    controls()
    return frames, messages, pings


def in_pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Return data in pieces of these sizes, again and again."""
    position = index = 0
    while position < len(data):
        size = sizes[index % len(sizes)]
        yield data[position : position + size]
        position += size
        index += 1


@Receiver
@given(conversation=conversations(), sizes=st.lists(st.integers(1, 700), min_size=1, max_size=6))
def test_what_websockets_writes_we_read_in_pieces_of_any_size(
    receiver: type[FrameCodec], conversation: Conversation, sizes: list[int]
) -> None:
    frames, messages, pings = conversation
    data = b"".join(frame(receiver, *each) for each in frames)
    codec = receiver()
    received: list[bytes] = []
    answered: list[bytes] = []
    for piece in in_pieces(data, sizes):
        received += codec.feed(piece)
        answered += [seen.data for seen in parse(codec.replies(), masked=receiver is ClientFrames)]
    assert received == messages
    assert codec.error is None and codec.end() == "" and not codec.pending
    # All but those of a flood: the last 16 of each read are answered.
    assert len(answered) == len(pings) or len(pings) > 16
    assert [ping for ping in pings if ping in answered][-16:] == answered[-16:]


@Receiver
def test_frames_may_be_cut_at_every_byte(receiver: type[FrameCodec]) -> None:
    data = b"".join(
        [
            frame(receiver, Opcode.BINARY, b"short"),
            frame(receiver, Opcode.BINARY, b"a" * 130, fin=False),
            frame(receiver, Opcode.PING, b"in between"),
            frame(receiver, Opcode.CONT, b"", fin=False),
            frame(receiver, Opcode.CONT, b"b" * 126),
            frame(receiver, Opcode.TEXT, "text: \u20ac".encode()),
        ]
    )
    expected = [b"short", b"a" * 130 + b"b" * 126, "text: \u20ac".encode()]
    for cut in range(len(data) + 1):
        codec = receiver()
        assert codec.feed(data[:cut]) + codec.feed(data[cut:]) == expected
    codec = receiver()
    assert [packet for byte in data for packet in codec.feed(bytes((byte,)))] == expected


def library(receiver: type[FrameCodec], data: bytes) -> tuple[list[bytes], int]:
    """Return the messages that ``websockets`` finds in some bytes, and the close code with which it fails, 0 if not."""
    protocol = Protocol(Side.SERVER if receiver is ServerFrames else Side.CLIENT, max_size=131072 + OVERHEAD)
    protocol.receive_data(data)
    messages: list[bytes] = []
    current = b""
    for event in protocol.events_received():
        assert isinstance(event, Frame)
        if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            current += event.data
            if event.fin:
                messages.append(bytes(current))
                current = b""
    failed = protocol.parser_exc is not None and protocol.close_sent is not None
    return messages, protocol.close_sent.code if failed and protocol.close_sent else 0


@st.composite
def almost_right(draw: st.DrawFn) -> list[tuple[int, bytes, bool, int]]:
    """Return frames of which some break a rule."""
    frames = draw(
        st.lists(
            st.tuples(
                st.sampled_from(list(Opcode)),
                st.one_of(st.binary(max_size=140), st.just(b"\x03\xe8"), st.just(b"\x03\xed"), st.just(b"a" * 125)),
                st.booleans(),
                st.sampled_from([0, 0, 0, 0, 1, 2, 4]),
            ),
            max_size=6,
        )
    )
    return [(opcode, payload, fin, rsv) for opcode, payload, fin, rsv in frames]


@Receiver
@settings(max_examples=300)
@given(frames=almost_right(), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), max_size=2))
def test_what_websockets_refuses_we_refuse_and_what_it_reads_we_read(
    receiver: type[FrameCodec], frames: list[tuple[int, bytes, bool, int]], flips: list[tuple[int, int]]
) -> None:
    data = bytearray(b"".join(frame(receiver, *each) for each in frames))
    for where, bit in flips:
        if where < len(data):
            data[where] ^= 1 << bit
    messages, code = library(receiver, bytes(data))
    codec = receiver()
    try:
        received = codec.feed(bytes(data))
    except BadMessage as error:
        assert codec.error is not None and str(codec.error) == str(error)
        received = []
    # Ours may stop before theirs: at a header whose frame is not complete, or a text that is no UTF-8.
    assert received == messages[: len(received)]
    if codec.error is None:
        assert received == messages
        # They call a message incomplete that a close frame cuts off; to us it is one that never came.
        assert not code or codec.end()
    elif code:
        mine = told(codec, codec.error).code
        assert mine == code or mine in (1002, 1007)


@Receiver
@given(data=st.binary(max_size=2000))
def test_random_bytes_give_messages_or_a_bad_message_and_nothing_else(receiver: type[FrameCodec], data: bytes) -> None:
    codec = receiver()
    try:
        packets = codec.feed(data)
    except BadMessage:
        packets = []
    assert sum(map(len, packets)) <= len(data)
    if codec.error is not None:
        assert str(refusal(codec, b"more")) == str(codec.error)


# Rules


@Receiver
@pytest.mark.parametrize("rsv", [1, 2, 4])
def test_a_reserved_bit_is_a_protocol_error(receiver: type[FrameCodec], rsv: int) -> None:
    codec = receiver()
    error = refusal(codec, frame(receiver, Opcode.BINARY, b"compressed?", rsv=rsv))
    assert told(codec, error).code == 1002


@Receiver
def test_a_reserved_opcode_is_a_protocol_error(receiver: type[FrameCodec]) -> None:
    with every_case() as case:
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            with case(f"opcode {opcode}"):
                codec = receiver()
                assert told(codec, refusal(codec, head(receiver, 0x80 | opcode, 0))).code == 1002


@pytest.mark.parametrize(("receiver", "wrong"), [(ServerFrames, ServerFrames), (ClientFrames, ClientFrames)])
def test_a_frame_masked_the_wrong_way_is_a_protocol_error(receiver: type[FrameCodec], wrong: type[FrameCodec]) -> None:
    codec = receiver()
    error = refusal(codec, wrong().wrap(b"hello"))
    assert "masked" in str(error)
    assert told(codec, error).code == 1002


@Receiver
def test_a_length_with_its_highest_bit_set_is_a_protocol_error(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    error = refusal(codec, head(receiver, 0x82, 127, b"\x80" + bytes(7)))
    assert told(codec, error).code == 1002


@Receiver
@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_a_control_frame_that_is_too_long_or_fragmented_is_a_protocol_error(
    receiver: type[FrameCodec], opcode: int
) -> None:
    for data in (head(receiver, 0x80 | opcode, 126), head(receiver, 0x80 | opcode, 127), head(receiver, opcode, 0)):
        codec = receiver()
        assert told(codec, refusal(codec, data)).code == 1002


@Receiver
def test_a_continuation_of_nothing_is_a_protocol_error(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    assert told(codec, refusal(codec, frame(receiver, Opcode.CONT, b"of what?"))).code == 1002


@Receiver
def test_a_message_inside_of_another_is_a_protocol_error(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    assert codec.feed(frame(receiver, Opcode.BINARY, b"begun", fin=False)) == []
    assert told(codec, refusal(codec, frame(receiver, Opcode.BINARY, b"another"))).code == 1002


@Receiver
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"ok \xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_a_text_message_that_is_no_utf8_is_refused_with_1007(receiver: type[FrameCodec], bad: bytes) -> None:
    codec = receiver(text=True)
    assert told(codec, refusal(codec, frame(receiver, Opcode.TEXT, bad))).code == 1007
    codec = receiver(text=True)
    codec.feed(frame(receiver, Opcode.TEXT, bad[:1], fin=False))
    assert told(codec, refusal(codec, frame(receiver, Opcode.CONT, bad[1:]))).code == 1007


@Receiver
def test_a_character_may_be_cut_between_two_fragments(receiver: type[FrameCodec]) -> None:
    codec = receiver(text=True)
    assert codec.feed(frame(receiver, Opcode.TEXT, b"\xe2\x82", fin=False)) == []
    assert codec.feed(frame(receiver, Opcode.CONT, b"\xac")) == [b"\xe2\x82\xac"]


@Codecs
def test_in_text_mode_what_is_no_utf8_goes_out_as_binary(sender: type[FrameCodec], receiver: type[FrameCodec]) -> None:
    codec = sender(text=True)
    text, binary = codec.wrap(b"plain"), codec.wrap(b"\x00\x10\x00\x00\x00\x00\x00\xc8")
    assert [seen.opcode for seen in parse(text + binary, masked=sender is ClientFrames)] == [Opcode.TEXT, Opcode.BINARY]
    assert receiver(text=True).feed(text + binary) == [b"plain", b"\x00\x10\x00\x00\x00\x00\x00\xc8"]


# Limits


@Receiver
def test_a_message_that_is_too_long_is_refused_at_its_header(receiver: type[FrameCodec]) -> None:
    for size in (1000 + OVERHEAD + 1, 2**40):
        codec = receiver(max_content=1000)
        error = refusal(codec, head(receiver, 0x82, 127, size.to_bytes(8, "big")))
        assert isinstance(error, ContentTooLong) and error.limit == 1000
        assert told(codec, error).code == 1009


@Receiver
def test_a_message_may_be_as_long_as_a_content_with_the_longest_paths(receiver: type[FrameCodec]) -> None:
    longest = bytes(1000 + OVERHEAD)
    assert receiver(max_content=1000).feed(frame(receiver, Opcode.BINARY, longest)) == [longest]


@Receiver
def test_fragments_count_together_towards_the_limit(receiver: type[FrameCodec]) -> None:
    codec = receiver(max_content=1000)
    codec.feed(frame(receiver, Opcode.BINARY, bytes(OVERHEAD), fin=False))
    codec.feed(frame(receiver, Opcode.CONT, bytes(1000), fin=False))
    error = refusal(codec, frame(receiver, Opcode.CONT, b"x"))
    assert isinstance(error, ContentTooLong)
    assert told(codec, error).code == 1009


@Receiver
def test_no_limit_is_no_limit(receiver: type[FrameCodec]) -> None:
    codec = receiver(max_content=0)
    assert codec.feed(head(receiver, 0x82, 127, (2**31).to_bytes(8, "big"))) == []
    assert codec.error is None


@Receiver
def test_endless_empty_fragments_are_refused_with_1008(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    codec.feed(frame(receiver, Opcode.BINARY, b"", fin=False))
    feed(codec, frame(receiver, Opcode.CONT, b"", fin=False) * (MAX_FRAGMENTS - 2))
    whole = receiver()
    whole.feed(frame(receiver, Opcode.BINARY, b"", fin=False))
    feed(whole, frame(receiver, Opcode.CONT, b"", fin=False) * (MAX_FRAGMENTS - 2))
    assert whole.feed(frame(receiver, Opcode.CONT, b"end")) == [b"end"]
    codec.feed(frame(receiver, Opcode.CONT, b"", fin=False))
    error = refusal(codec, frame(receiver, Opcode.CONT, b"one too many"))
    assert told(codec, error).code == 1008


@Receiver
def test_one_call_decodes_a_bounded_number_of_frames_and_the_rest_is_not_lost(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    begin, middle = frame(receiver, Opcode.BINARY, b"a", fin=False), frame(receiver, Opcode.CONT, b"", fin=False)
    data = begin + middle * 2000 + frame(receiver, Opcode.CONT, b"z") + frame(receiver, Opcode.BINARY, b"next")
    calls, packets = 1, codec.feed(data)
    while codec.more:
        assert not packets
        calls, packets = calls + 1, codec.feed(b"")
    assert packets == [b"az", b"next"] and calls >= 4
    assert not codec.pending


@Receiver
def test_of_a_flood_of_pings_the_last_are_answered(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    feed(codec, b"".join(frame(receiver, Opcode.PING, b"%d" % number) for number in range(1000)))
    pongs = parse(codec.replies(), masked=receiver is ClientFrames)
    assert [(pong.opcode, pong.data) for pong in pongs] == [(Opcode.PONG, b"%d" % n) for n in range(984, 1000)]
    assert codec.replies() == b""


@Receiver
def test_a_reader_is_told_to_ask_for_more_inside_of_a_long_message(receiver: type[FrameCodec]) -> None:
    codec = receiver(max_content=1 << 20)
    usual = codec.read_size
    codec.feed(head(receiver, 0x82, 127, (1 << 20).to_bytes(8, "big") + b"mask"))
    assert usual < codec.read_size < 1 << 20


# Order of good and bad


@Receiver
def test_what_came_before_a_bad_frame_is_returned_first(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    data = frame(receiver, Opcode.BINARY, b"good") + frame(receiver, Opcode.BINARY, b"bad", rsv=4)
    assert codec.feed(data) == [b"good"]
    assert isinstance(codec.error, BadPacket)
    assert str(refusal(codec, b"")) == str(codec.error)


# Closing


@Codecs
def test_a_close_frame_is_answered_with_its_code_and_nothing_after_it_counts(
    sender: type[FrameCodec], receiver: type[FrameCodec]
) -> None:
    codec = receiver()
    data = sender().wrap(b"last") + frame(receiver, Opcode.CLOSE, Close(4321, "enough").serialize())
    assert codec.feed(data + sender().wrap(b"too late")) == [b"last"]
    assert codec.feed(sender().wrap(b"much too late")) == []
    assert "4321" in codec.end() and "enough" in codec.end()
    assert told(codec, None).code == 4321
    assert codec.goodbye(None) == b""


@Receiver
def test_a_close_frame_without_a_code_is_answered_without_one(receiver: type[FrameCodec]) -> None:
    codec = receiver()
    assert codec.feed(frame(receiver, Opcode.CLOSE)) == []
    (answer,) = parse(codec.goodbye(None), masked=receiver is ClientFrames)
    assert (answer.opcode, answer.data) == (Opcode.CLOSE, b"")


@Receiver
@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"\x03", 1002), (b"\x03\xed", 1002), (b"\x03\xee", 1002), (b"\x00\x00", 1002), (b"\x03\xe8\xff", 1007)],
)
def test_a_wrong_close_frame_is_answered_with_the_right_code(
    receiver: type[FrameCodec], payload: bytes, code: int
) -> None:
    codec = receiver()
    assert told(codec, refusal(codec, frame(receiver, Opcode.CLOSE, payload))).code == code


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (None, 1000),
        (Closed("socket"), 1001),
        (Disconnected(4401, "log in again"), 4401),
        (BadPacket("any rule", 1002), 1002),
        (BadMessage("its ttl is 0"), 1007),
        (ContentTooLong(2, 1), 1009),
        (Timeout("keepalive", 40.0), 1011),
        (MultiSocketError("anything else " * 20), 1008),
    ],
)
def test_the_reason_for_a_close_decides_its_code(reason: MultiSocketError | None, code: int) -> None:
    for codec in (ServerFrames(), ClientFrames()):
        assert told(codec, reason).code == code


def test_a_ping_is_one() -> None:
    for codec in (ServerFrames(), ClientFrames()):
        (ping,) = parse(codec.ping(), masked=isinstance(codec, ClientFrames))
        assert (ping.opcode, ping.data) == (Opcode.PING, b"")


def test_server_frames_are_the_same_for_every_peer_and_client_frames_never() -> None:
    assert ServerFrames().key == ServerFrames().key != ServerFrames(text=True).key
    assert ServerFrames().wrap(b"hello") == ServerFrames().wrap(b"hello")
    assert ClientFrames().key is None
    assert len({ClientFrames().wrap(b"hello") for _ in range(100)}) > 90
