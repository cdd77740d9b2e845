"""What all pipes share, over every transport: who they are, what they count, and how they end."""

from __future__ import annotations

import logging

import pytest

from gmultisocket import Socket
from gmultisocket.core.pipes.pipe import headers_of
from gmultisocket.errors import BrokenPath, Timeout
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import INTERNAL, TO_ONE, encode_frame, pack_id
from tests.core.streams import frame
from tests.peers import only_pipe


def test_a_pipe_knows_its_ends_and_where_it_comes_from(two: tuple[Socket, Socket], transport: str) -> None:
    server, client = two
    near, far = only_pipe(client), only_pipe(server)
    assert near.dialed and not far.dialed
    assert near.endpoint is client.dialers[0] and far.endpoint is server.listeners[0]
    assert near.peer_address == server.listeners[0].address == far.local_address
    assert str(near.id) in repr(near) and "open" in repr(near)
    if transport.startswith("ipc"):
        assert set(far.identity) == {"pid", "uid", "gid"}


def test_a_pipe_has_an_id_and_the_path_that_it_stands_for(two: tuple[Socket, Socket]) -> None:
    server, client = two
    near, far = only_pipe(client), only_pipe(server)
    assert near.id != far.id
    for pipe in (near, far):
        assert 0 < pipe.id < 1 << 31 and pipe.path == pack_id(pipe.id)
        assert not pipe.raw


def test_an_option_of_one_pipe_concerns_no_other(address: str) -> None:
    with Socket() as server, Socket() as small, Socket() as large:
        where = server.listen(address).address
        for client in (small, large):
            client.dial(where, {"connector.dialer.reconnect": False})
        server.wait_pipes(2, timeout=5)
        small.send(b"mine")
        limited = server.pipes[server.recv_msg(timeout=5).pipe_id]
        limited.options.set("connector.pipe.max_recv_content_length", 10)
        for client in (small, large):
            client.send(bytes(11))
        assert server.recv(timeout=5) == bytes(11)
        wait_until(lambda: len(server.pipes) == 1)
        # Inside of a process it is the sender that looks, and hangs up.
        reason = "the peer closed the connection" if address.startswith("inproc") else "11 bytes"
        assert limited.closed and reason in limited.reason


def test_counters_are_those_of_the_moment(two: tuple[Socket, Socket]) -> None:
    server, client = two
    pipe = only_pipe(client)
    before = pipe.counters
    client.send(b"x")
    assert server.recv(timeout=5) == b"x"
    assert (before.messages_sent, pipe.counters.messages_sent, pipe.messages_sent) == (0, 1, 1)


# Losing


def test_the_first_loss_of_a_pipe_is_logged_and_all_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    stream = FakeStream()
    stream.block()
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 1}
    with FakeTransport([stream]) as fake, Socket(options) as client, caplog.at_level(logging.DEBUG, "gmultisocket"):
        client.dial(fake.address)
        pipe = only_pipe(client)
        for _ in range(5):
            client.send_all(b"x")
        assert pipe.full and pipe.queued == 1
        assert pipe.counters.drops == client.counters.drops == {"overflow": 4}
        # They are a copy: nobody changes the pipe's own.
        pipe.counters.drops["overflow"] = 77  # type: ignore[index]
        assert pipe.counters.drops == {"overflow": 4}
        client.close(linger=0)
    losses = [record for record in caplog.records if "overflow" in record.getMessage()]
    assert [record.levelno for record in losses] == [logging.WARNING]
    assert pipe.peer_address in losses[0].getMessage()


# Closing


def test_a_closed_pipe_may_be_closed_again(two: tuple[Socket, Socket]) -> None:
    server, _ = two
    pipe = only_pipe(server)
    pipe.close("first")
    pipe.close("second")
    assert pipe.reason == "first"
    with pytest.raises(BrokenPath):
        server.send_to(pipe.path, b"x")


def test_a_closed_pipe_still_says_what_it_was(two: tuple[Socket, Socket]) -> None:
    server, client = two
    pipe = only_pipe(client)
    client.send(b"x")
    assert server.recv(timeout=5) == b"x"
    client.dialers[0].close()
    addresses, identity, endpoint = (pipe.local_address, pipe.peer_address), pipe.identity, pipe.endpoint
    pipe.close("enough")
    assert (pipe.closed, pipe.reason, pipe.queued) == (True, "enough", 0)
    assert (pipe.local_address, pipe.peer_address) == addresses
    assert (pipe.identity, pipe.endpoint, pipe.dialed) == (identity, endpoint, True)
    assert pipe.counters.messages_sent == 1
    assert "closed" in repr(pipe) and str(pipe.id) in repr(pipe)
    assert not client.pipes


def test_a_pipe_that_closes_for_an_error_has_its_text_as_the_reason(two: tuple[Socket, Socket]) -> None:
    server, _ = two
    pipe = only_pipe(server)
    error = Timeout("keepalive", 3.0)
    pipe.close(error)
    assert pipe.reason == str(error)


def test_what_is_sent_to_a_pipe_that_has_just_closed_goes_to_another_or_waits(two: tuple[Socket, Socket]) -> None:
    server, client = two
    with Socket() as other:
        other.dial(server.listeners[0].address, {"connector.dialer.reconnect": False})
        server.wait_pipes(2, timeout=5)
        client.dialers[0].close()
        first, second = server.pipes.values()
        first.close()
        for _ in range(3):
            server.send(b"x", timeout=5)
        assert [other.recv(timeout=5) for _ in range(3)] == [b"x"] * 3
        assert second.counters.messages_sent == 3
        second.close()
        with pytest.raises(Timeout):
            server.send(b"nobody", timeout=0)


def test_the_first_loss_is_logged_although_a_useless_message_was_counted_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = FakeStream()
    with FakeTransport([stream]) as fake, Socket({"socket.send_overflow": "drop_newest"}) as sock:
        pipe = sock.dial(fake.address, {"connector.dialer.reconnect": False}).pipe
        assert pipe is not None
        stream.feed(frame(b"\xff", INTERNAL))
        wait_until(lambda: pipe.counters.drops == {"internal": 1})
        assert "drops messages" not in caplog.text
        stream.block()
        while "overflow" not in pipe.counters.drops:
            sock.send_to(pipe.path, b"x")
        sock.send_to(pipe.path, b"x")
        assert pipe.counters.drops == {"internal": 1, "overflow": 2}
        wait_until(lambda: "drops messages" in caplog.text)
        stream.unblock()
    assert caplog.text.count("drops messages: overflow") == 1


def test_headers_are_kept_for_a_bounded_number_of_lengths_and_are_right_for_all() -> None:
    headers = headers_of(7)
    for length in [*range(10_000), 2**32 - 1, 5]:
        assert headers[length] == encode_frame(TO_ONE, 7, b"", b"", b"")[:4] + length.to_bytes(4, "big")
    assert len(headers) <= 4096
