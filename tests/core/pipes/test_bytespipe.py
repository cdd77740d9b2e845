"""Pipes over bytes: when they write, and what becomes of their messages when they break."""

from __future__ import annotations

import gevent
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import Decoder
from tests.core.streams import CountingStream, frame
from tests.peers import only_pipe

# Writing


def test_the_first_message_of_a_turn_leaves_at_once_and_the_others_together() -> None:
    stream = CountingStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        client.dial(fake.address)
        for turn in range(3):
            for number in range(10):
                client.send(b"x" * 92)
                assert stream.sizes == [100, 900] * turn + [100], number
            gevent.sleep(0)
        assert stream.sizes == [100, 900] * 3
        # Nobody waits for the end of the turn once a queue is full.
        for _ in range(65):
            client.send(b"x" * 92)
        assert stream.sizes[6:] == [100, 6400]


@settings(max_examples=150)
@given(
    takes=st.lists(st.integers(0, 3000), max_size=60),
    sizes=st.lists(st.sampled_from([0, 1, 100, 1000, 40_000, 70_000]), min_size=1, max_size=25),
    turns=st.integers(1, 5),
)
def test_no_frame_is_torn_or_reordered_whatever_the_kernel_takes_at_a_time(
    takes: list[int], sizes: list[int], turns: int
) -> None:
    stream = FakeStream(takes=takes)
    contents = [b"%d " % number + bytes(size) for number, size in enumerate(sizes)]
    with FakeTransport([stream]) as fake, Socket({"socket.send_queue_size": 4}) as client:
        client.dial(fake.address)
        path = only_pipe(client).path
        for number, content in enumerate(contents):
            match number % 3:
                case 0:
                    client.send(content, timeout=5)
                case 1:
                    client.send_all(content, timeout=5)
                case 2:
                    client.send_to(path, content, timeout=5)
            if number % turns == 0:
                gevent.sleep(0)
        assert client.close(linger=5) == 0
    messages = Decoder(1).feed(bytes(stream.sent))
    assert [Message(*fields).content for fields in messages] == contents
    assert client.counters.messages_sent == len(contents)
    assert client.counters.bytes_sent == len(stream.sent)


# Pipes that break


def test_a_pipe_whose_write_fails_still_delivers_what_its_peer_had_sent() -> None:
    stream = FakeStream([], takes=[ConnectionResetError(104, "reset")])
    with FakeTransport([stream]) as fake, Socket() as client:
        dialer = client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = dialer.pipe
        assert pipe is not None
        client.send_all(b"lost")
        assert pipe.state.value == "draining" and client.send_all(b"nobody") == 0
        stream.feed(frame(b"sent before"), frame(b"and this"), b"")
        assert [client.recv(timeout=5) for _ in range(2)] == [b"sent before", b"and this"]
        wait_until(lambda: pipe.closed)
        assert pipe.reason == "sending failed: connection reset by peer"
        assert client.counters.drops == {"disconnect": 1}


def test_a_writer_that_fails_later_gives_its_messages_to_another_pipe() -> None:
    broken = FakeStream(takes=[0, 0, BrokenPipeError(32, "broken")])
    good = FakeStream()
    with FakeTransport([broken, good]) as fake, Socket() as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        client.send(b"1")
        client.send(b"2")
        client.dial(fake.address)
        broken.feed(b"")
        wait_until(lambda: len(client.pipes) == 1)
        client.close()
    contents = [Message(*fields).content for fields in Decoder(1).feed(bytes(good.sent))]
    assert contents == [b"1", b"2"]


def test_a_message_that_is_half_gone_is_lost_with_its_pipe_and_counted_and_never_sent_twice() -> None:
    broken = FakeStream(takes=[3, 0, BrokenPipeError(32, "broken")])
    good = FakeStream()
    with FakeTransport([broken, good]) as fake, Socket() as client:
        client.dial(fake.address, {"connector.dialer.reconnect": False})
        client.send(b"half")
        client.send(b"whole")
        client.dial(fake.address)
        broken.feed(b"")
        wait_until(lambda: len(client.pipes) == 1)
        client.close()
    contents = [Message(*fields).content for fields in Decoder(1).feed(bytes(good.sent))]
    assert contents == [b"whole"]
    assert client.counters.drops == {"disconnect": 1}


def test_a_reader_error_is_the_reason() -> None:
    stream = FakeStream()
    with FakeTransport([stream]) as fake, Socket() as client:
        dialer = client.dial(fake.address, {"connector.dialer.reconnect": False})
        pipe = dialer.pipe
        assert pipe is not None
        # The kernel's ETIMEDOUT is no timeout of anybody's: the connection is gone.
        stream.feed(frame(b"x"), TimeoutError(110, "timed out"))
        assert client.recv(timeout=5) == b"x"
        wait_until(lambda: pipe.closed)
        assert pipe.reason == "receiving failed: connection timed out"


def test_a_peer_that_always_has_more_to_send_leaves_turns_to_others() -> None:
    count = 400
    stream = FakeStream([frame(bytes(60_000))] * count)
    with FakeTransport([stream]) as fake, Socket({"socket.no_recv": True}) as client:
        client.dial(fake.address)
        pipe = only_pipe(client)
        turns = 0
        while pipe.messages_received < count:
            gevent.sleep(0)
            turns += 1
        assert turns > 20
        client.close(linger=0)
