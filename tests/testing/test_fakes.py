from __future__ import annotations

from collections.abc import Callable

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed, ConnectionRefused, UnknownTransport
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import TO_DEST, Message, encode, pack_id

FRAME = encode(Message(content=b"hello"))


# The stream


def test_a_script_arrives_step_by_step() -> None:
    stream = FakeStream([b"hello", b"!", ConnectionResetError("gone"), b""])
    assert stream.recv(3) == b"hel"
    assert stream.recv(100) == b"lo"
    assert stream.recv(100) == b"!"
    with pytest.raises(ConnectionResetError, match="gone"):
        stream.recv(100)
    assert stream.recv(100) == stream.recv(100) == b""


def test_a_reader_waits_for_the_next_step() -> None:
    stream = FakeStream()
    reading = gevent.spawn(stream.read_exactly, 6)
    stream.feed(b"one", b"two")
    assert reading.get(timeout=5) == b"onetwo"


def test_the_kernel_takes_what_the_script_says() -> None:
    stream = FakeStream(takes=[2, 0, OSError("broken")])
    assert stream.send(b"hello") == 2
    with pytest.raises(BlockingIOError):
        stream.send(b"llo")
    with pytest.raises(OSError, match="broken"):
        stream.send(b"llo")
    assert stream.sendmsg([b"l", memoryview(b"lo")]) == 3
    assert stream.sent == b"hello"


def test_a_blocked_kernel_takes_nothing_until_it_is_unblocked() -> None:
    stream = FakeStream()
    stream.block()
    writing = gevent.spawn(stream.write_all, b"hello")
    gevent.sleep(0)
    assert not stream.sent and not writing.ready()
    stream.unblock()
    writing.get(timeout=5)
    assert stream.sent == b"hello"


@pytest.mark.parametrize("wait", [lambda stream: stream.recv(1), lambda stream: stream.wait_writable()])
def test_close_ends_whoever_waits(wait: Callable[[FakeStream], object]) -> None:
    stream = FakeStream()
    stream.block()

    def waiter() -> object:
        with pytest.raises(OSError, match="the connection was closed") as caught:
            wait(stream)
        return caught.value

    waiting = gevent.spawn(waiter)
    gevent.sleep(0)
    stream.close()
    assert isinstance(waiting.get(timeout=5), OSError)
    assert stream.closed and not stream.abandoned


def test_it_remembers_how_it_was_left() -> None:
    stream = FakeStream()
    stream.shutdown_write()
    stream.abandon()
    assert stream.write_ended and stream.abandoned


# The transport


@pytest.mark.parametrize("cut", range(1, len(FRAME)))
def test_a_socket_reads_a_frame_in_any_two_pieces(cut: int) -> None:
    with FakeTransport([FakeStream([FRAME[:cut], FRAME[cut:]])]) as fake, Socket() as sock:
        sock.dial(fake.address)
        assert sock.recv(timeout=5) == b"hello"


def test_a_socket_writes_a_frame_in_the_pieces_that_the_kernel_takes() -> None:
    stream = FakeStream(takes=[3, 0, 1, 0, 0, 5])
    with FakeTransport([stream]) as fake, Socket() as sock:
        sock.dial(fake.address)
        sock.send(b"hello")
        wait_until(lambda: stream.sent == FRAME)


def test_a_dialer_goes_on_to_the_next_connection_of_the_script() -> None:
    streams = [FakeStream([ConnectionResetError()]), ConnectionRefused("fake://there", "no"), FakeStream([FRAME])]
    with FakeTransport(streams) as fake, Socket() as sock:
        sock.dial(fake.address, {"connector.dialer.min_reconnect_time": 0.001})
        assert sock.recv(timeout=5) == b"hello"
        assert fake.attempts == 3
        assert fake.given == [streams[0], streams[2]]


def test_a_dial_fails_as_the_script_says_and_when_it_is_used_up() -> None:
    with FakeTransport([OSError("no route")]) as fake, Socket() as sock:
        with pytest.raises(ConnectionFailed, match="no route"):
            sock.dial(fake.address)
        with pytest.raises(ConnectionRefused, match="no connection is left in the script"):
            sock.dial(fake.address)
        fake.will_connect(FakeStream([FRAME]))
        sock.dial(fake.address)
        assert sock.recv(timeout=5) == b"hello"


def test_peers_arrive_at_a_listener() -> None:
    stream = FakeStream([FRAME])
    with FakeTransport() as fake, Socket() as sock:
        sock.listen(fake.address)
        fake.arrive(stream)
        message = sock.recv_msg(timeout=5)
        sock.send_to(message.source, b"back")
        reply = Message(flags=TO_DEST, destination=pack_id(message.pipe_id), content=b"back")
        wait_until(lambda: stream.sent == encode(reply))
    assert stream.closed


def test_the_scheme_is_known_only_inside_the_with_statement() -> None:
    with FakeTransport() as fake:
        address = fake.address
    with Socket() as sock, pytest.raises(UnknownTransport):
        sock.dial(address)
