"""Peers that open streams without end: their number is bounded by pipe, and many that end at once stop nobody."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from gmultisocket import Message, Socket
from gmultisocket.errors import ConnectionRefused, StreamReset
from gmultisocket.protocol import Stream, StreamSocket, resets
from gmultisocket.protocol import stream as stream_module
from gmultisocket.protocol.streamend import ANSWER, CREDIT, RESET
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_DEST, TO_ONE
from tests import addresses

LONG = 20.0
TRANSPORTS = ["inproc", "ipc", "tcp", "ws"]
LIMIT = {"protocol.stream.max_per_pipe": 20}


def opening(number: int) -> Message:
    return Message(CONTROL | TO_ONE, source=number.to_bytes(4, "big"), content=b"\0")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_more_streams_of_a_pipe_than_allowed_are_refused_and_others_go_on(transport: str, tmp_path: Path) -> None:
    with Stream(LIMIT) as server, Socket({"socket.recv_queue_size": 1000}) as by_hand, Stream() as honest:  # type: ignore[arg-type]
        address = server.listen(addresses.TRANSPORTS[transport](tmp_path)).address
        by_hand.dial(address)
        accepted: list[StreamSocket] = []
        accepting = gevent.spawn(accepted.extend, server)
        for number in range(1, 101):
            by_hand.send_msg(opening(number))
        wait_until(lambda: server.counters.drops == {"too many streams": 80})
        assert server.connections == 20
        answers = [by_hand.recv_msg(LONG) for _ in range(20 + 20 + 80)]
        assert sum(answer.content == RESET for answer in answers) == 80
        assert sum(answer.content == ANSWER for answer in answers) == 20
        honest.dial(address)
        with honest.connect(LONG) as connection:
            wait_until(lambda: server.connections == 21)
            connection.sendall(b"x")
        # One that ends makes a place.
        ended = next(end for end in server._ends.values() if end.pipe is not None and end.by_peer)
        ended.close(abort=True)
        by_hand.send_msg(opening(1000))
        wait_until(lambda: len(accepted) == 22)
        assert server.counters.drops == {"too many streams": 80}
        server.close(0)
        accepting.get(timeout=LONG)


def test_an_honest_peer_is_told_and_its_own_connections_do_not_count() -> None:
    with Stream(LIMIT) as one, Stream(LIMIT) as other:  # type: ignore[arg-type]
        one.dial(other.listen("inproc://both").address)
        here = [one.connect(LONG) for _ in range(20)]
        there = [other.connect(LONG) for _ in range(20)]
        for stream in (one, other):
            with pytest.raises(ConnectionRefused):
                stream.connect(LONG)
        accepted = [stream.accept(LONG) for stream in (one, other) for _ in range(20)]
        for connection in here + there + accepted:
            connection.close()
        wait_until(lambda: not one._opened and not other._opened)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_opens_and_closes_and_does_not_read_costs_a_bounded_amount(
    transport: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_MAX_UNREAD", 50)
    monkeypatch.setattr(resets, "_MAX_WAITING", 10)
    options = {"socket.recv_queue_size": 1}
    with Stream({"socket.send_queue_size": 1}) as server, Socket(options) as stuck:  # type: ignore[arg-type]
        stuck.dial(server.listen(addresses.TRANSPORTS[transport](tmp_path)).address)
        server.wait_pipes(1, LONG)
        (pipe,) = server.pipes.values()

        def serve() -> None:
            for connection in server:
                connection.close()

        serving = gevent.spawn(serve)
        number = 0
        while server.counters.drops.get("refused", 0) < 200:
            number += 1
            stuck.send_msg(opening(number), LONG)
            gevent.sleep(0)
            # Those that were opened before the limit was reached leave two more each when they are closed.
            assert server._outbox.waiting(pipe) <= 2 * 50 + 10 + 4
        stuck.close(0)
        server.close(0)
        serving.get(timeout=LONG)


def test_a_pipe_with_many_streams_ends_them_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_PORTION", 10)
    with Stream() as server, Stream() as client:
        client.dial(server.listen("inproc://portions").address)
        connections = [client.connect(LONG) for _ in range(100)]
        reading = [gevent.spawn(connection.recv, 1) for connection in connections]
        gevent.sleep(0)
        (pipe,) = client.pipes.values()
        pipe.close()
        assert sum(connection._end.error is not None for connection in connections) == 10
        for greenlet in reading:
            with pytest.raises(StreamReset, match="its pipe has closed"):
                greenlet.get(timeout=LONG)
        assert not client._ends and not client._by_pipe
        for connection in connections:
            connection.close()


def test_credits_for_a_peer_that_does_not_read_become_one() -> None:
    quiet = {"protocol.stream.keep_alive_idle": 0}
    options = {**quiet, "protocol.stream.window": 65536, "socket.send_queue_size": 1}
    with Stream(options) as server, Socket({"socket.recv_queue_size": 1}) as by_hand:  # type: ignore[arg-type]
        by_hand.dial(server.listen("inproc://credits").address)
        by_hand.send_msg(opening(7))
        answer = by_hand.recv_msg(LONG)
        assert answer.content == ANSWER
        connection = server.accept(LONG)
        (pipe,) = server.pipes.values()
        total = 0
        for _ in range(100):
            by_hand.send_msg(
                Message(TO_DEST, source=opening(7).source, destination=answer.source, content=bytes(40_000))
            )
            while total < 40_000 * 100 and connection._end.receiving.buffer:
                total += len(connection.recv(65536))
            gevent.sleep(0)
            assert server._outbox.waiting(pipe) <= 1
        while total < 40_000 * 100:
            total += len(connection.recv(65536))
        granted = 0
        while granted <= total - 32768 + 65536 - 1:
            message = by_hand.recv_msg(LONG)
            assert message.content[:1] == CREDIT
            granted += int.from_bytes(message.content[1:], "big")
        assert granted <= total + 65536
        connection.abort()
