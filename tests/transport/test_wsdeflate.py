"""Compressed WebSocket messages: the negotiation, the codecs, and pipes of sockets and of other people's programs."""

from __future__ import annotations

import gc
import json
import random
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, NamedTuple

import gevent
import pytest
from gevent import socket as gsocket
from gevent import subprocess
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Close, Frame, Opcode

from gmultisocket import Message, Pub, Socket, Sub
from gmultisocket.errors import BadMessage, BadOptionValue, BadPacket, ContentTooLong, HandshakeFailed, InflatedTooLong
from gmultisocket.options import Options
from gmultisocket.testing import PacketTransportChecks, wait_until
from gmultisocket.transport import wsdeflate
from gmultisocket.transport.wsdeflate import (
    FREE_SIZE,
    MAX_DEFLATED,
    MAX_RATIO,
    PORTION,
    DeflatedClientFrames,
    DeflatedServerFrames,
    Deflater,
)
from gmultisocket.transport.wsframes import ClientFrames, ServerFrames
from gmultisocket.transport.wshandshake import accept, parse_request
from gmultisocket.wire import Decoder, encode
from tests.certificates import dial_options, listen_options
from tests.peers import calls_in_a_turn
from tests.transport.test_ws import run
from tests.transport.test_wsframes import feed
from tests.transport.wspeers import RawPeer, frame, request

OVER = "transport.ws.compress_over"
ON = {OVER: 256}
#: JSON as a feed sends it.
TICKS = json.dumps([{"symbol": "EURUSD", "bid": number / 7, "ask": number / 6} for number in range(400)]).encode()
KINDS = pytest.mark.parametrize(
    ("sender", "receiver"), [(DeflatedServerFrames, DeflatedClientFrames), (DeflatedClientFrames, DeflatedServerFrames)]
)
Codec = DeflatedServerFrames | DeflatedClientFrames


class TestWsCompressed(PacketTransportChecks):
    address = "ws://127.0.0.1:0/"
    dial_options = ON
    listen_options = ON


class TestWsAsOneStreamCompressed(PacketTransportChecks):
    address = "ws.rw://127.0.0.1:0/"
    dial_options = ON
    listen_options = ON


class TestWssCompressed(PacketTransportChecks):
    address = "wss://127.0.0.1:0/"
    dial_options = {**ON, **dial_options()}
    listen_options = {**ON, **listen_options()}
    half_close = False


def deflated(data: bytes, bits: int = 15) -> bytes:
    """Return the payload of a compressed message, made by zlib alone."""
    deflater = zlib.compressobj(wbits=-bits)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


class Seen(NamedTuple):
    """A frame as it is on the wire, unmasked."""

    rsv1: bool
    opcode: int
    data: bytes


def parse(data: bytes) -> list[Seen]:
    """Return whole frames, whatever bits they have: websockets refuses the bit of a compressed one."""
    frames = []
    while data:
        size, start = data[1] & 0x7F, 2
        if size > 125:
            width = 2 if size == 126 else 8
            start += width
            size = int.from_bytes(data[2:start], "big")
        mask = bytes(4)
        if data[1] & 0x80:
            mask, start = data[start : start + 4], start + 4
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data[start : start + size]))
        assert len(payload) == size and data[0] & 0x80
        frames.append(Seen(bool(data[0] & 0x40), data[0] & 0x0F, payload))
        data = data[start + size :]
    return frames


def feed_error(codec: Codec, data: bytes) -> BadMessage:
    with pytest.raises(BadMessage) as caught:
        feed(codec, data)
    assert codec.error is not None and not codec.pending
    return caught.value


# Negotiation


def answered(offer: str | None, over: int = 256) -> tuple[str | None, int]:
    """Return what a listener answers to an offer, and the window in which it will compress."""
    options = Options()
    options.set(OVER, over)
    asked = parse_request(request(changes={"Sec-WebSocket-Extensions": offer}))
    response, agreed = accept(asked, options)
    assert response.status_code == 101
    return response.headers.get("Sec-WebSocket-Extensions"), agreed.window_bits


BOTH = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
CHROMIUM = "permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize(
    ("offer", "answer", "bits"),
    [
        (None, None, 0),
        ("permessage-deflate", BOTH, 15),
        (CHROMIUM, BOTH, 15),
        (BOTH, BOTH, 15),
        ("permessage-deflate; server_max_window_bits=9", f"{BOTH}; server_max_window_bits=9", 9),
        ("permessage-deflate; server_max_window_bits=12", f"{BOTH}; server_max_window_bits=12", 12),
        ("permessage-deflate; server_max_window_bits=15", f"{BOTH}; server_max_window_bits=15", 15),
        ('permessage-deflate; server_max_window_bits="10"', f"{BOTH}; server_max_window_bits=10", 10),
        # zlib has no window of 8 bits to compress with. Decompressing takes any.
        ("permessage-deflate; server_max_window_bits=8", None, 0),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", BOTH, 15),
        ("permessage-deflate; client_max_window_bits=8", f"{BOTH}; client_max_window_bits=8", 15),
        # The first offer that is possible.
        (f"{CHROMIUM}; server_max_window_bits=10, permessage-deflate", f"{BOTH}; server_max_window_bits=10", 10),
        ("x-webkit-deflate-frame, permessage-deflate", BOTH, 15),
        # Offers that break the RFC are declined, and the WebSocket opens without compression.
        ("x-webkit-deflate-frame", None, 0),
        ("permessage-deflate; server_max_window_bits", None, 0),
        ("permessage-deflate; server_max_window_bits=16", None, 0),
        ("permessage-deflate; server_max_window_bits=7", None, 0),
        ("permessage-deflate; server_max_window_bits=010", None, 0),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=11", None, 0),
        ("permessage-deflate; server_no_context_takeover=1", None, 0),
        ("permessage-deflate; level=9", None, 0),
        ("permessage-deflate, permessage-deflate", BOTH, 15),
    ],
)
def test_a_listener_answers_an_offer(offer: str | None, answer: str | None, bits: int) -> None:
    assert answered(offer) == (answer, bits)
    # Without the option every offer is declined.
    assert answered(offer, over=0) == (None, 0)


@pytest.mark.parametrize("over", [1, 255, -1])
def test_short_messages_are_never_compressed(over: int) -> None:
    with pytest.raises(BadOptionValue, match="at least 256" if over > 0 else "0"):
        Options().set(OVER, over)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (BOTH, True),
        ("permessage-deflate; server_no_context_takeover", True),
        (f"{BOTH}; server_max_window_bits=9", True),
        # What this side did not offer, and a listener that keeps a context.
        ("permessage-deflate", False),
        (f"{BOTH}; client_max_window_bits=12", False),
        ("permessage-deflate; client_no_context_takeover", False),
        (f"{BOTH}, {BOTH}", False),
        ("x-webkit-deflate-frame", False),
    ],
)
def test_a_dialer_checks_the_answer(answer: str, right: bool) -> None:
    with Socket() as client, AnswerWith(answer) as address:
        if right:
            client.dial(address, ON)
            assert client.recv(timeout=5) == TICKS
        else:
            with pytest.raises(HandshakeFailed):
                client.dial(address, ON)


class AnswerWith:
    """A server that answers one request for a WebSocket with some extensions, and sends one compressed message."""

    def __init__(self, answer: str) -> None:
        self._answer = answer

    def __enter__(self) -> str:
        self._sock = gsocket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen()
        self._greenlet = gevent.spawn(self._serve)
        return f"ws://127.0.0.1:{self._sock.getsockname()[1]}/"

    def _serve(self) -> None:
        client, _ = self._sock.accept()
        with client:
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            options = Options()
            response, _ = accept(parse_request(head), options)
            assert f"Sec-WebSocket-Extensions: {BOTH}\r\n".encode() in head
            response.headers["Sec-WebSocket-Extensions"] = self._answer
            message = encode(Message(content=TICKS))
            client.sendall(response.serialize() + frame(Opcode.BINARY, deflated(message, 9), rsv1=True, masked=False))
            while client.recv(4096):
                pass

    def __exit__(self, *error: object) -> None:
        self._greenlet.kill()
        self._sock.close()


# The codecs


@KINDS
@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("text", [False, True])
def test_what_is_compressed_is_what_arrives(sender: type[Codec], receiver: type[Codec], bits: int, text: bool) -> None:
    one, other = sender(bits, 256, text), receiver(15, 256, max_content=0)
    # As websockets reads it, with the window that was agreed on and no other.
    reader = PerMessageDeflate(True, True, bits, 15)
    for message in (b"", b"x" * 256, b"x" * 257, TICKS, TICKS * 20, "ä€".encode() * 500, bytes(70_000)):
        packet = one.wrap(message)
        assert feed(other, packet) == [message]
        assert one.unwrap(packet) == message
        (seen,) = parse(packet)
        assert seen.rsv1 is (len(message) > 256)
        assert seen.opcode == (Opcode.TEXT if text else Opcode.BINARY)
        assert reader.decode(Frame(Opcode(seen.opcode), seen.data, rsv1=seen.rsv1)).data == message
        assert len(packet) < 300 or len(packet) < len(message) * 0.4


@KINDS
@given(message=st.binary(max_size=2000), over=st.sampled_from([256, 300, 1000]))
def test_whatever_is_sent_arrives(sender: type[Codec], receiver: type[Codec], message: bytes, over: int) -> None:
    one, other = sender(15, over), receiver(15, over)
    packet = one.wrap(message)
    assert feed(other, packet) == [message] and one.unwrap(packet) == message
    assert len(packet) <= len(message) + 14


@KINDS
def test_what_does_not_get_shorter_is_sent_as_it_is(sender: type[Codec], receiver: type[Codec]) -> None:
    noise = random.Random(1).randbytes(3000)
    codec = sender(15, 256)
    assert len(noise) > 256 and not codec.wrap(noise)[0] & 0x40
    assert receiver(15, 256).feed(codec.wrap(noise)) == [noise]
    assert codec.prefix(1 << 19) is None
    if sender is DeflatedServerFrames:
        assert codec.prefix(MAX_DEFLATED + 1) == ServerFrames().prefix(MAX_DEFLATED + 1)
        assert codec.wrap(bytes(MAX_DEFLATED + 1)) == ServerFrames().wrap(bytes(MAX_DEFLATED + 1))


def test_a_long_message_is_tried_before_it_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of a MiB would keep the loop for 40 ms, for nothing."""
    given: list[int] = []

    class Counting:
        def __init__(self, *args: Any) -> None:
            self._deflater = zlib.compressobj(*args)

        def compress(self, data: bytes) -> bytes:
            given.append(len(data))
            return self._deflater.compress(data)

        def flush(self, mode: int) -> bytes:
            return self._deflater.flush(mode)

    monkeypatch.setattr(wsdeflate, "zlib", SimpleNamespace(**{**vars(zlib), "compressobj": Counting}))
    codec = DeflatedServerFrames(15, 256)
    picture = TICKS[:3000] + random.Random(3).randbytes(500_000)
    assert codec.wrap(picture) == ServerFrames().wrap(picture)
    assert sum(given) == 4096
    assert len(codec.wrap(TICKS * 20)) < len(TICKS) * 20 / 4
    assert sum(given[1:]) == 4096 + len(TICKS) * 20


@KINDS
@pytest.mark.parametrize("size", [1, 2, 7, 1000, 70_000])
def test_a_message_may_come_in_pieces_and_fragments(sender: type[Codec], receiver: type[Codec], size: int) -> None:
    """Compressed messages between plain ones, in fragments with control frames between them, byte by byte."""
    masked = receiver is DeflatedServerFrames
    payload = deflated(TICKS)
    cut = len(payload) // 3
    data = b"".join(
        [
            frame(Opcode.BINARY, b"short", masked=masked),
            frame(Opcode.BINARY, payload[:cut], fin=False, rsv1=True, masked=masked),
            frame(Opcode.PING, b"between", masked=masked),
            frame(Opcode.CONT, b"", fin=False, masked=masked),
            frame(Opcode.CONT, payload[cut:-1], fin=False, masked=masked),
            frame(Opcode.PONG, b"", masked=masked),
            frame(Opcode.CONT, payload[-1:], masked=masked),
            frame(Opcode.TEXT, b"plain ", fin=False, masked=masked),
            frame(Opcode.CONT, b"text", masked=masked),
            frame(Opcode.TEXT, deflated("ä".encode() * 10), rsv1=True, masked=masked),
            frame(Opcode.BINARY, b"s", masked=masked),
        ]
    )
    codec = receiver(15, 256)
    packets = []
    for start in range(0, len(data), size):
        packets += feed(codec, data[start : start + size])
    assert packets == [b"short", TICKS, b"plain text", "ä".encode() * 10, b"s"]
    (pong,) = parse(codec.replies())
    assert (pong.opcode, pong.data) == (Opcode.PONG, b"between")
    assert not codec.pending and not codec.more


BFINAL = zlib.compressobj(wbits=-15)
BFINAL_HELLO = BFINAL.compress(b"Hello") + BFINAL.flush()


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        # The examples of RFC 7692, section 7.2.3.
        (bytes.fromhex("f248cdc9c90700"), b"Hello"),
        (bytes.fromhex("000500faff48656c6c6f00"), b"Hello"),
        (bytes.fromhex("f348cdc9c9070000"), b"Hello"),
        (bytes.fromhex("f248050000 00ffffcac9c90700"), b"Hello"),
        (b"\x00", b""),
        (b"\x02\x00", b""),
        (BFINAL_HELLO, b"Hello"),
    ],
)
def test_every_form_that_the_rfc_shows_is_read(payload: bytes, message: bytes) -> None:
    codec = DeflatedServerFrames(15, 256)
    for _ in range(2):
        assert feed(codec, frame(Opcode.BINARY, payload, rsv1=True)) == [message]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        deflated(TICKS)[:-1],
        deflated(TICKS)[: len(deflated(TICKS)) // 2],
        deflated(TICKS)[:200] + b"\xff" * 50,
        b"\xff\xff\xff",
        bytes(9),
        zlib.compress(TICKS),
        BFINAL_HELLO + b"and more",
        BFINAL_HELLO + bytes(40_000),
    ],
    ids=range(9),
)
def test_damaged_data_close_the_pipe(payload: bytes) -> None:
    codec = DeflatedServerFrames(15, 256)
    error = feed_error(codec, frame(Opcode.BINARY, payload, rsv1=True))
    assert isinstance(error, BadPacket) and error.code == 1007 and "compressed message" in str(error)
    (goodbye,) = parse(codec.goodbye(error))
    assert Close.parse(goodbye.data).code == 1007


@pytest.mark.parametrize("size", [10, PORTION, PORTION + 1, 2 * PORTION])
@pytest.mark.parametrize("behind", [b"", b"x" * 5, b"x" * 40_000])
def test_a_message_of_any_number_of_portions_may_end_anywhere(size: int, behind: bytes) -> None:
    message = TICKS[:1000] * (size // 1000) + behind
    codec = DeflatedServerFrames(15, 256, max_content=0)
    packet = frame(Opcode.BINARY, deflated(message), rsv1=True)
    calls = 0
    packets = codec.feed(packet + frame(Opcode.BINARY, b"next"))
    while codec.more:
        assert codec.pending
        calls += 1
        packets += codec.feed(b"")
    assert packets == [message, b"next"]
    assert calls == max(0, (len(message) - 1) // PORTION) or len(message) % PORTION == 0


def test_many_compressed_messages_go_in_portions_too() -> None:
    codec = DeflatedServerFrames(15, 256)
    packet = frame(Opcode.BINARY, deflated(bytes(100_000)), rsv1=True)
    sizes = [len(b"".join(codec.feed(packet * 100)))]
    while codec.more:
        sizes.append(len(b"".join(codec.feed(b""))))
    assert sum(sizes) == 100 * 100_000 and max(sizes) <= PORTION + 100_000


def test_empty_blocks_go_in_portions() -> None:
    blocks = b"\x00\x00\x00\xff\xff" * 200_000
    codec = DeflatedServerFrames(15, 256, max_content=0)
    assert codec.feed(frame(Opcode.BINARY, blocks + deflated(b"at last"), rsv1=True)) == []
    assert codec.more
    assert feed(codec, b"") == [b"at last"]


def wrong_frames() -> Iterator[tuple[str, bytes]]:
    hello = deflated(b"Hello")
    start = frame(Opcode.BINARY, hello[:3], fin=False, rsv1=True)
    yield "a continuation with the bit", start + frame(Opcode.CONT, hello[3:], rsv1=True)
    yield "a plain continuation with it", frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.CONT, b"x", rsv1=True)
    yield "nothing to continue", frame(Opcode.CONT, hello, rsv1=True)
    for opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
        yield f"a {opcode.name} with the bit", frame(opcode, b"", rsv1=True)
    yield "a message in a message", start + frame(Opcode.BINARY, hello, rsv1=True)
    for reserved in (0x20, 0x10, 0x60):
        yield f"the reserved bits {reserved:x}", bytes((0x82 | reserved, 0x80)) + bytes(4)
    yield "no mask", frame(Opcode.BINARY, hello, rsv1=True, masked=False)
    yield "a length of 2**63", b"\xc2\xff" + b"\x80" + bytes(7) + bytes(4)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in wrong_frames()])
def test_wrong_frames_close_the_pipe(data: bytes) -> None:
    error = feed_error(DeflatedServerFrames(15, 256), data)
    assert isinstance(error, BadPacket) and error.code == 1002


@pytest.mark.parametrize("codec", [ServerFrames, ClientFrames])
def test_nobody_may_compress_who_has_not_agreed_on_it(codec: type[ServerFrames | ClientFrames]) -> None:
    data = frame(Opcode.BINARY, deflated(TICKS), rsv1=True, masked=codec is ServerFrames)
    with pytest.raises(BadPacket, match="reserved"):
        codec().feed(data)


def test_text_is_checked_after_decompression() -> None:
    codec = DeflatedServerFrames(15, 256)
    assert feed(codec, frame(Opcode.TEXT, deflated("€".encode() * 100), rsv1=True)) == ["€".encode() * 100]
    error = feed_error(codec, frame(Opcode.TEXT, deflated(b"\xff" * 100), rsv1=True))
    assert isinstance(error, BadPacket) and error.code == 1007


# Bombs


def test_a_message_that_grows_too_long_is_cut_off() -> None:
    codec = DeflatedServerFrames(15, 256, max_content=100_000)
    bomb = deflated(bytes(5_000_000))
    packets = codec.feed(frame(Opcode.BINARY, b"kept") + frame(Opcode.BINARY, bomb, rsv1=True))
    assert packets == [b"kept"]
    assert isinstance(codec.error, InflatedTooLong) and isinstance(codec.error, ContentTooLong)
    assert codec.error.limit == 100_000 and codec.error.arrived == len(bomb)
    assert "100000 bytes" in str(codec.error) and f"{len(bomb)} bytes" in str(codec.error)
    (goodbye,) = parse(codec.goodbye(codec.error))
    assert Close.parse(goodbye.data).code == 1009


def test_a_message_of_the_longest_content_is_none() -> None:
    message = encode(Message(content=bytes(100_000)))
    codec = DeflatedServerFrames(15, 256, max_content=100_000)
    assert feed(codec, frame(Opcode.BINARY, deflated(message), rsv1=True)) == [message]
    # And one that cannot be compressed, by a peer that does it nevertheless.
    stored = b"".join(b"\x00\x01\x00\xfe\xff" + bytes((number % 256,)) for number in range(1000)) + b"\x00"
    assert len(feed(codec, frame(Opcode.BINARY, stored, rsv1=True))[0]) == 1000


def test_without_a_limit_the_ratio_is_limited() -> None:
    codec = DeflatedServerFrames(15, 256, max_content=0)
    free = bytes(FREE_SIZE)
    assert feed(codec, frame(Opcode.BINARY, deflated(free), rsv1=True)) == [free]
    bomb = deflated(bytes(16 << 20))
    assert len(bomb) * MAX_RATIO < 16 << 20
    error = feed_error(codec, frame(Opcode.BINARY, bomb, rsv1=True))
    assert isinstance(error, InflatedTooLong) and error.size == len(bomb) * MAX_RATIO
    # What people send is far from it.
    codec = DeflatedServerFrames(15, 256, max_content=0)
    much = TICKS * 100
    assert feed(codec, frame(Opcode.BINARY, deflated(much), rsv1=True)) == [much]


def test_a_compressed_frame_may_not_be_announced_longer_than_a_message() -> None:
    codec = DeflatedServerFrames(15, 256, max_content=100_000)
    announced = bytes((0xC2, 0xFF)) + (1 << 30).to_bytes(8, "big") + bytes(4)
    assert isinstance(feed_error(codec, announced), ContentTooLong)


# Sockets


class Counter:
    """Counts the messages that are compressed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        compressobj = zlib.compressobj

        def count(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return compressobj(*args, **kwargs)

        monkeypatch.setattr(wsdeflate.zlib, "compressobj", count)
        # Without what earlier tests have left.
        monkeypatch.setattr(wsdeflate, "_deflaters", {bits: Deflater(bits) for bits in range(9, 16)})


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def opened(address: str, offer: str | None) -> RawPeer:
    peer = RawPeer(address)
    peer.send(request(changes={"Sec-WebSocket-Extensions": offer}))
    assert peer.status() == 101
    return peer


def read_message(peer: RawPeer) -> tuple[bool, bytes]:
    """Return whether the next message is compressed, and its content."""
    first, second = read_bytes(peer, 2)
    size = second if second < 126 else int.from_bytes(read_bytes(peer, 2 if second == 126 else 8), "big")
    data = read_bytes(peer, size)
    if first & 0x40:
        data = zlib.decompress(data + b"\x00\x00\xff\xff\x01\x00\x00\xff\xff", -15)
    (message,) = Decoder(1).feed(data)
    return bool(first & 0x40), bytes(message.content)


def read_bytes(peer: RawPeer, size: int) -> bytes:
    while len(peer.unread) < size:
        data = peer.sock.recv(1 << 16)
        assert data, "hung up"
        peer.unread += data
    taken, peer.unread = peer.unread[:size], peer.unread[size:]
    return taken


def test_a_publication_is_compressed_once_for_each_window(counter: Counter) -> None:
    """In step or not, by however many sends: 12 peers of three windows, and 4 without compression."""
    offers = [CHROMIUM, "permessage-deflate; server_max_window_bits=9", "permessage-deflate", None] * 4
    with Socket() as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        peers = [opened(address, offer) for offer in offers]
        server.wait_pipes(len(peers), timeout=5)
        for number in range(3):
            content = b"%d" % number + TICKS
            assert server.send_all(content) == len(peers)
            for peer, offer in zip(peers, offers, strict=True):
                assert read_message(peer) == (offer is not None, content)
            assert counter.calls == 2 * (number + 1)
        for peer in peers:
            peer.close()


def test_peers_that_are_not_in_step_take_the_same_compressed_bytes(counter: Counter) -> None:
    with Socket() as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        peers = [opened(address, CHROMIUM) for _ in range(6)]
        server.wait_pipes(6, timeout=5)
        gevent.sleep(0)
        paths = []
        for peer in peers[:3]:
            peer.send(frame(Opcode.BINARY, encode(Message(content=b"hello"))))
            paths.append(server.recv_msg(timeout=5).source)
        for path in paths:
            server.send_to(path, b"short")
        server.send_all(TICKS)
        for peer in peers[:3]:
            assert read_message(peer) == (False, b"short")
        for peer in peers:
            assert read_message(peer) == (True, TICKS)
            peer.close()
        assert counter.calls == 1


def test_a_pub_compresses_a_publication_once_whatever_the_patterns(counter: Counter) -> None:
    with Pub() as pub, ExitStack() as stack:
        address = pub.listen("ws://127.0.0.1:0", ON).address
        subs = [stack.enter_context(Sub()) for _ in range(6)]
        for number, sub in enumerate(subs):
            sub.dial(address, ON)
            sub.subscribe(["orders.>", "orders.eu", "*.eu"][number % 3], timeout=5)
        for number in range(3):
            content = b"%d" % number + TICKS
            pub.publish("orders.eu", content)
            assert [sub.recv(timeout=5)[1] for sub in subs] == [content] * 6
            assert counter.calls == number + 1


def test_dialers_share_the_work_too(counter: Counter) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("ws://127.0.0.1:0", ON).address
        for _ in range(5):
            client.dial(address, ON)
        client.send_all(TICKS)
        assert [server.recv(timeout=5) for _ in range(5)] == [TICKS] * 5
        assert counter.calls == 1


_WEBSOCKETS = """
import json, ssl, sys
from websockets.sync.client import connect
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
address, bits, takeover, *frames = sys.argv[1:]
offer = ClientPerMessageDeflateFactory(
    server_max_window_bits=int(bits) or None, client_max_window_bits=int(bits) or True,
    server_no_context_takeover=takeover == "no", client_no_context_takeover=takeover == "no")
with connect(address, subprotocols=["multisocket.binary"], compression=None, extensions=[offer]) as peer:
    received = []
    for each in frames:
        peer.send(bytes.fromhex(each))
        peer.send([bytes.fromhex(each)[:5], b"", bytes.fromhex(each)[5:]])
        received += [peer.recv(timeout=20).hex(), peer.recv(timeout=20).hex()]
print(json.dumps({"extensions": [repr(each) for each in peer.protocol.extensions], "received": received}))
"""


@pytest.mark.parametrize(("bits", "takeover"), [(0, "yes"), (0, "no"), (9, "yes"), (12, "no"), (15, "yes")])
def test_the_websockets_client_compresses_with_us(bits: int, takeover: str) -> None:
    """Whole messages and fragments, in every window; websockets checks what it gets against that window."""
    contents = [b"", b"short", TICKS, TICKS * 2, random.Random(2).randbytes(5000)]
    frames = [encode(Message(content=content)).hex() for content in contents]
    with Socket() as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        client = gevent.spawn(run, _WEBSOCKETS, address, str(bits), takeover, *frames)
        for content in [each for each in contents for _ in range(2)]:
            message = server.recv_msg(timeout=30)
            assert message.content == content
            server.send_to(message.source, content)
        found = client.get(timeout=30)
    answers = [Decoder(1).feed(bytes.fromhex(answer))[0].content for answer in found["received"]]
    assert answers == [each for each in contents for _ in range(2)]
    (agreed,) = found["extensions"]
    assert "remote_no_context_takeover=True, local_no_context_takeover=True" in agreed
    assert f"remote_max_window_bits={bits or 15}, local_max_window_bits={bits or 15}" in agreed


_WEBSOCKETS_SERVER = """
import sys
from websockets.sync.server import serve
def answer(peer):
    for message in peer:
        peer.send(message)
        peer.send([message[:5], b"", message[5:]])
with serve(answer, "127.0.0.1", 0, subprotocols=["multisocket.binary"]) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
"""


def test_a_dialer_compresses_with_the_websockets_server() -> None:
    process = subprocess.Popen([sys.executable, "-c", _WEBSOCKETS_SERVER], stdout=subprocess.PIPE)
    try:
        port = int(process.stdout.readline())
        with Socket() as client:
            client.dial(f"ws://127.0.0.1:{port}/", ON)
            (pipe,) = client.pipes.values()
            for content in b"short", TICKS, TICKS * 4:
                client.send(content)
                assert [client.recv(timeout=20) for _ in range(2)] == [content] * 2
            assert pipe.bytes_sent < len(TICKS) * 3 and pipe.bytes_received < len(TICKS) * 6
            client.close(linger=0)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_without_the_option_nothing_is_compressed(counter: Counter) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("ws://127.0.0.1:0").address
        client.dial(address, ON)
        client.send(TICKS)
        message = server.recv_msg(timeout=5)
        server.send_to(message.source, TICKS)
        assert client.recv(timeout=5) == TICKS
        assert counter.calls == 0
        with opened(address, CHROMIUM) as peer:
            server.wait_pipes(2, timeout=5)
            assert server.send_all(TICKS) == 2
            assert read_message(peer) == (False, TICKS)


def test_what_a_queue_holds_goes_to_another_pipe_decompressed() -> None:
    """Messages to one that are queued for a pipe that closes are sent by another one."""
    with Socket() as server, Socket() as plain:
        address = server.listen("ws://127.0.0.1:0", {**ON, "transport.tcp.write_buffer": 4096}).address
        with opened(address, CHROMIUM) as stuck:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            sent = 0
            noise = [TICKS + b"%d" % number for number in range(3000)]
            while not pipe.full and sent < len(noise):
                server.send(noise[sent])
                sent += 1
            assert pipe.queued
            plain.dial(address)
            server.wait_pipes(2, timeout=5)
            stuck.close()
            wait_until(lambda: len(server.pipes) == 1)
            got = plain.recv(timeout=5)
            assert got in noise[:sent]


def test_a_bomb_closes_its_own_pipe_and_no_other() -> None:
    with Socket() as server:
        closed: list[str] = []
        server.on_pipe(lambda event: closed.append(event.reason) if event.kind == "remove" else None)
        address = server.listen("ws://127.0.0.1:0", ON).address
        with opened(address, CHROMIUM) as bomber, opened(address, CHROMIUM) as other:
            server.wait_pipes(2, timeout=5)
            bomb = deflated(encode(Message(content=bytes(1 << 24))))
            bomber.send(frame(Opcode.BINARY, bomb, rsv1=True))
            assert bomber.read_close().code == 1009
            other.send(frame(Opcode.BINARY, deflated(encode(Message(content=TICKS))), rsv1=True))
            assert server.recv(timeout=5) == TICKS
            wait_until(lambda: bool(closed))
            assert "grows to more than" in str(closed[0])


def test_others_run_while_a_long_message_is_decompressed() -> None:
    with Socket({"connector.pipe.max_recv_content_length": 0}) as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        content = TICKS * 400
        data = frame(Opcode.BINARY, deflated(encode(Message(content=content))), rsv1=True)
        with opened(address, CHROMIUM) as peer:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            # All but the last byte has arrived, and nothing is decompressed.
            peer.send(data[:-1])
            wait_until(lambda: pipe.bytes_received == len(data) - 1)
            turns = 0

            def count() -> None:
                nonlocal turns
                while not server.queued:
                    turns += pipe._codec._inflation is not None
                    gevent.sleep(0)

            counting = gevent.spawn(count)
            peer.send(data[-1:])
            counting.get(timeout=20)
            assert server.recv(timeout=5) == content
            assert turns >= len(content) // PORTION - 1


def test_messages_that_few_bytes_make_are_delivered_before_the_next_are_decompressed() -> None:
    """A full receive queue stops the decompression of what one read has brought."""
    with Socket({"socket.recv_queue_size": 4}) as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        one = frame(Opcode.BINARY, deflated(encode(Message(content=bytes(120_000)))), rsv1=True)
        count = 40
        assert len(one) * count < 1 << 16
        with opened(address, CHROMIUM) as peer:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            peer.send(one * count)
            wait_until(lambda: pipe._reading_paused)
            assert pipe.messages_received < 10
            for _ in range(count):
                assert server.recv(timeout=5) == bytes(120_000)


def test_an_idle_peer_keeps_nothing_of_zlib() -> None:
    kinds = (type(zlib.compressobj()), type(zlib.decompressobj()))
    with Socket() as server, Socket() as client:
        address = server.listen("ws://127.0.0.1:0", ON).address
        for _ in range(5):
            client.dial(address, ON)
        client.send_all(TICKS)
        for _ in range(5):
            message = server.recv_msg(timeout=5)
            server.send_to(message.source, TICKS)
        for _ in range(5):
            client.recv(timeout=5)
        gc.collect()
        assert not [found for found in gc.get_objects() if isinstance(found, kinds)]
        codecs = [pipe._codec for pipe in (*server.pipes.values(), *client.pipes.values())]
        assert len(codecs) == 10
        assert not [codec for codec in codecs if codec._inflation is not None or codec._message is not None]


def test_compressing_counts_for_the_budget_of_the_sender() -> None:
    """A greenlet that sends long messages to one peer lets others run before it has sent a MiB of them."""
    with Socket({"socket.send_queue_size": 10_000}) as server:
        address = server.listen("ws://127.0.0.1:0", ON).address
        with opened(address, CHROMIUM):
            server.wait_pipes(1, timeout=5)
            sent = calls_in_a_turn(lambda number: server.send(b"%d" % number + TICKS))
            assert sent * len(TICKS) < 1 << 18
            server.close(linger=0)


@pytest.mark.parametrize("scheme", ["ws", "ws.rw"])
def test_raw_pipes_are_compressed_too(scheme: str) -> None:
    with Socket() as server:
        address = server.listen(f"{scheme}://127.0.0.1:0", {**ON, "connector.pipe.raw": True}).address
        with opened(address, CHROMIUM) as peer:
            hello = server.recv_msg(timeout=5)
            peer.send(frame(Opcode.BINARY, deflated(TICKS), rsv1=True))
            assert server.recv(timeout=5) == TICKS
            server.send_to(hello.source, TICKS)
            first, second = read_bytes(peer, 2)
            assert first & 0x40 and second == 126
            data = read_bytes(peer, int.from_bytes(read_bytes(peer, 2), "big"))
            assert zlib.decompress(data + b"\x00\x00\xff\xff\x01\x00\x00\xff\xff", -15) == TICKS
