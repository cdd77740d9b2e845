"""The transport checks pass for toys of each kind, and each of them fails for a toy that breaks what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket.errors import BadMessage
from gmultisocket.testing import (
    MessageTransportChecks,
    PacketTransportChecks,
    StreamTransportChecks,
    TransportChecks,
    check_transport,
    nothing_left,
    run_checks,
)
from gmultisocket.transport import Connection, register, unregister
from gmultisocket.transport.stream import SocketConnection, abandon_socket
from tests.testing.toys import (
    NetstringCodec,
    ToyDialer,
    ToyListener,
    ToyMessages,
    ToyMessageTransport,
    ToyPackets,
    ToyPacketTransport,
    ToyStream,
    ToyStreamTransport,
)


@pytest.fixture(autouse=True)
def toys() -> Iterator[None]:
    streams, packets, messages = ToyStreamTransport(), ToyPacketTransport(), ToyMessageTransport()
    for transport in (streams, packets, messages):
        register(transport)
    yield
    for transport in (streams, packets, messages):
        unregister(transport)
    for sock in streams.sockets + packets.sockets:
        sock.close()


class TestToyStream(StreamTransportChecks):
    address = "toy://checks"
    bad_addresses = ("toy://with/slash",)


class TestToyPackets(PacketTransportChecks):
    address = "toy+packets://checks"


class TestToyMessages(MessageTransportChecks):
    address = "toy+messages://checks"


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("toy://checks", StreamTransportChecks),
        ("toy+packets://checks", PacketTransportChecks),
        ("toy+messages://checks", MessageTransportChecks),
    ],
)
def test_all_checks_of_a_kind_run_without_a_test_runner(address: str, kind: type[TransportChecks]) -> None:
    names = check_transport(lambda: address, bad_addresses=(f"{address}/",))
    assert names == [name for name in dir(kind) if name.startswith("test_")]


def test_every_failure_is_told_by_the_name_of_its_check() -> None:
    class Checks(MessageTransportChecks):
        address = "toy+messages://checks"

        def test_one_thing(self) -> None:
            raise AssertionError("one thing is wrong")

        def test_another(self) -> None:
            raise KeyError("another")

    with pytest.raises(AssertionError) as caught:
        run_checks(Checks())
    text = str(caught.value)
    assert text.startswith("2 of ")
    assert "test_one_thing:" in text and "one thing is wrong" in text
    assert "test_another:" in text and "KeyError: 'another'" in text


def test_a_subclass_that_says_no_address_is_told_so() -> None:
    class Checks(StreamTransportChecks):
        pass

    with pytest.raises(AssertionError, match="Checks must set 'address' or override make_address"):
        Checks().test_many_can_be_connected_at_once()


# Toys that are broken, each in one way, and the check that finds it out.


def nothing(*args: Any) -> None:
    """Stands in for a method that does its work."""


def for_ever(*args: Any) -> None:
    gevent.sleep(60)


def connect_with_os_error(dialer: ToyDialer) -> Connection:
    raise ConnectionRefusedError("nobody there")


def listen_anyway(listener: ToyListener) -> None:
    listener._transport.listeners[listener._address.location] = listener


def close_without_waking(listener: ToyListener) -> None:
    listener._transport.listeners.pop(listener._address.location, None)


def close_slowly(stream: ToyStream) -> None:
    gevent.sleep(0)
    stream._sock.close()


def abandon_with_goodbye(stream: ToyStream) -> None:
    stream._sock._sock.shutdown(gsocket.SHUT_RDWR)
    abandon_socket(stream._sock)


def recv_more(stream: ToyStream, size: int) -> bytes:
    return SocketConnection.recv(stream, size + 1)


def close_one_end(end: ToyMessages) -> None:
    end.closed = True


class BlockingSend(ToyStream):
    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.send = self.send_all_of_it

    def send_all_of_it(self, data: bytes | memoryview) -> int:
        with gevent.Timeout(0.1, BlockingIOError):
            self._sock.sendall(data)
        return len(data)


class BoastingSend(ToyStream):
    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.send = lambda data: sock._sock.send(data) + 1


class ReversingSendmsg(ToyStream):
    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.sendmsg = lambda buffers: sock._sock.sendmsg(buffers[::-1])


class ForgetfulAddress(ToyStream):
    @property
    def peer_address(self) -> str:  # type: ignore[override]
        return "" if self._sock.closed else "toy://there"


class ReversingCodec(NetstringCodec):
    def wrap(self, frame: bytes) -> bytes:
        return super().wrap(frame[::-1])


class ForgetfulCodec(NetstringCodec):
    def feed(self, data: bytes) -> list[bytes]:
        try:
            return super().feed(data)
        finally:
            self._rest = b""


class CodecOfItsOwn(NetstringCodec):
    made = 0

    def wrap(self, frame: bytes) -> bytes:
        type(self).made += 1
        return b"0" * (self.made % 2) + super().wrap(frame)


class CrashingCodec(NetstringCodec):
    def feed(self, data: bytes) -> list[bytes]:
        try:
            return super().feed(data)
        except BadMessage:
            raise IndexError("out of range") from None


class EndedCodec(NetstringCodec):
    def end(self) -> str:
        return "it has ended"


class Impatient(StreamTransportChecks):
    """For those that are found out by waiting in vain."""

    address = "toy://checks"
    limit = 0.5


@pytest.mark.parametrize(
    ("checks", "owner", "attribute", "broken", "name", "text"),
    [
        (TestToyStream, ToyDialer, "connect", connect_with_os_error, "a_dial_to_nobody", "expected ConnectionFailed"),
        (TestToyStream, ToyListener, "listen", listen_anyway, "be_taken_only_once", "expected AddressInUse"),
        (Impatient, ToyListener, "close", close_without_waking, "ends_a_waiting_accept", "did not end an accept()"),
        (TestToyStream, ToyListener, "close", nothing, "a_dial_to_nobody", "nobody listens"),
        (Impatient, ToyListener, "abandon", for_ever, "a_forked_child", "did not end within"),
        (TestToyStream, ToyStream, "close", close_slowly, "close_never_blocks", "must not block"),
        (Impatient, ToyStream, "close", nothing, "nothing_is_left", "left behind: descriptor"),
        (Impatient, ToyStream, "close", nothing, "close_ends_a_waiting_recv", "did not end a recv()"),
        (Impatient, ToyStream, "close", nothing, "close_ends_a_waiting_writer", "did not end a wait_writable()"),
        (Impatient, ToyStream, "close", nothing, "nothing_can_be_done_after_close", "after close()"),
        (Impatient, ToyStream, "close", nothing, "a_peer_that_has_gone", "sending to nobody went on"),
        (TestToyStream, ToyStream, "abandon", nothing, "a_forked_child", "holds"),
        (TestToyStream, ToyStream, "abandon", abandon_with_goodbye, "a_forked_child", "does not reach"),
        (TestToyStream, ToyStream, "recv", recv_more, "recv_returns_what_is_there", "recv(4) returned"),
        (TestToyStream, ToyStream, "wait_writable", nothing, "wait_writable_ends", "while nothing could be sent"),
        (Impatient, ToyStream, "wait_writable", for_ever, "wait_writable_returns", "waits although"),
        (Impatient, ToyStream, "shutdown_write", nothing, "one_side_can_end", "shutdown_write() ended nothing"),
        (TestToyStream, ToyStreamTransport, "connection", ForgetfulAddress, "still_known", "comes after the close"),
        (TestToyStream, ToyStreamTransport, "connection", BlockingSend, "a_full_send", "must not block"),
        (TestToyStream, ToyStreamTransport, "connection", BoastingSend, "send_says_how_many", "returned 2"),
        (TestToyStream, ToyStreamTransport, "connection", ReversingSendmsg, "sendmsg_sends", "another order"),
        (TestToyPackets, ToyPackets, "make_codec", ReversingCodec, "what_one_side_wraps", "others came"),
        (TestToyPackets, ToyPackets, "make_codec", ReversingCodec, "unwrap_undoes_wrap", "is not the frame"),
        (TestToyPackets, ToyPackets, "make_codec", ForgetfulCodec, "in_pieces_of_any_size", "byte by byte came"),
        (TestToyPackets, ToyPackets, "make_codec", CodecOfItsOwn, "the_same_key", "wrap a frame differently"),
        (TestToyPackets, ToyPackets, "make_codec", CrashingCodec, "no_packets", "random bytes gave IndexError"),
        (TestToyPackets, ToyPackets, "make_codec", EndedCodec, "a_goodbye", "before anybody said goodbye"),
        (TestToyMessages, ToyMessages, "close", close_one_end, "closing_one_end", "did not notice the close"),
    ],
)
def test_a_broken_transport_is_found_out(
    checks: type[TransportChecks],
    owner: type,
    attribute: str,
    broken: object,
    name: str,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (method,) = (method for method in dir(checks) if method.startswith("test_") and name in method)
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises(AssertionError) as caught:
        getattr(checks(), method)()
    assert text in str(caught.value)


def test_what_is_left_behind_is_named() -> None:
    with pytest.raises(AssertionError, match=r"left behind: <Greenlet .*for_ever"), nothing_left(0.01):
        left = gevent.spawn(for_ever)
        gevent.sleep(0)
    left.kill()


def test_an_error_in_the_body_is_not_hidden_by_what_it_leaves() -> None:
    with pytest.raises(KeyError), nothing_left(0.01):
        left = gevent.spawn(for_ever)
        raise KeyError
    left.kill()
