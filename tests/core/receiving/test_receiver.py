"""Receiving: one queue for the messages of all pipes, and who waits before and behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from time import monotonic

import gevent
import pytest

from gmultisocket import Message, Socket
from gmultisocket.errors import Closed, NotSupported, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, encode
from tests.addresses import plain_connection
from tests.cases import every_case
from tests.peers import calls_in_a_turn


@pytest.fixture
def two(address: str) -> Iterator[tuple[Socket, Socket]]:
    """A server and a client that dialed it."""
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        yield server, client
        client.close(linger=0)


def test_recv_returns_contents_and_recv_msg_messages(two: tuple[Socket, Socket]) -> None:
    server, client = two
    client.send(b"first")
    client.send_all(b"second")
    assert server.recv(timeout=5) == b"first"
    message = server.recv_msg(timeout=5)
    assert isinstance(message, Message)
    assert (message.content, message.hops, message.ttl) == (b"second", 1, 15)
    assert message.pipe_id in server.pipes


def test_a_socket_is_iterated_until_it_closes(two: tuple[Socket, Socket]) -> None:
    server, client = two
    received: list[bytes] = []

    def collect() -> None:
        for message in server:
            received.append(message.content)

    collector = gevent.spawn(collect)
    for number in range(10):
        client.send(b"%d" % number)
    wait_until(lambda: len(received) == 10)
    server.close()
    collector.get(timeout=5)
    assert received == [b"%d" % number for number in range(10)]


def test_what_had_arrived_can_be_received_after_closing(two: tuple[Socket, Socket]) -> None:
    server, client = two
    for number in range(10):
        client.send(b"%d" % number)
    wait_until(lambda: server.queued == 10)
    server.close()
    assert server.recv() == b"0"
    assert [message.content for message in server] == [b"%d" % number for number in range(1, 10)]
    with pytest.raises(Closed):
        server.recv()
    with pytest.raises(Closed):
        server.recv_msg(timeout=0)
    assert list(server) == []


def test_a_timeout_says_what_and_how_long_and_loses_nothing(two: tuple[Socket, Socket]) -> None:
    server, client = two
    with every_case() as case:
        for timeout in (0, 0.0, -1, 0.01):
            with case(timeout):
                with pytest.raises(Timeout) as caught:
                    server.recv(timeout=timeout)
                assert isinstance(caught.value, TimeoutError)
                assert (caught.value.operation, caught.value.seconds) == ("recv", timeout)
                client.send(b"later")
                assert server.recv(timeout=5) == b"later"


def test_a_timeout_is_not_shorter_than_asked_for_after_the_program_was_busy(two: tuple[Socket, Socket]) -> None:
    server, _ = two
    gevent.sleep(0.001)
    end = monotonic() + 0.1
    while monotonic() < end:
        pass
    start = monotonic()
    with pytest.raises(Timeout):
        server.recv(timeout=0.08)
    assert monotonic() - start >= 0.07


def test_a_poll_finds_what_is_there(two: tuple[Socket, Socket]) -> None:
    server, client = two
    client.send(b"x")
    wait_until(lambda: server.queued)
    assert server.recv(timeout=0) == b"x"


def test_a_greenlet_that_polls_lets_the_others_run(two: tuple[Socket, Socket]) -> None:
    server, client = two
    client.send(b"x")
    for _ in range(200_000):
        try:
            content = server.recv(timeout=0)
            break
        except Timeout:
            continue
    assert content == b"x"


def test_a_greenlet_that_always_finds_a_message_lets_the_others_run(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_size", 5000)
    server.set_option("socket.yield_messages", 100)
    for number in range(5000):
        client.send(b"%d" % number, timeout=5)
    wait_until(lambda: server.queued == 5000)
    assert calls_in_a_turn(lambda _: server.recv()) <= 101


def test_many_receivers_are_served_in_the_order_in_which_they_came(two: tuple[Socket, Socket]) -> None:
    server, client = two
    got: list[tuple[int, bytes]] = []
    receivers = []
    for number in range(30):
        receivers.append(gevent.spawn(lambda number=number: got.append((number, server.recv(timeout=5)))))
        gevent.sleep(0)
    for number in range(30):
        client.send(b"%d" % number)
    gevent.joinall(receivers, timeout=5, raise_error=True)
    assert got == [(number, b"%d" % number) for number in range(30)]


def test_a_newcomer_does_not_take_the_message_of_one_that_waits(two: tuple[Socket, Socket]) -> None:
    server, client = two
    waiting = gevent.spawn(server.recv)
    gevent.sleep(0)
    client.send(b"for the first")
    wait_until(lambda: server.queued or waiting.ready())
    with pytest.raises(Timeout):
        server.recv(timeout=0)
    assert waiting.get(timeout=5) == b"for the first"


def test_a_killed_receiver_leaves_its_message_to_the_next(two: tuple[Socket, Socket]) -> None:
    server, client = two
    first, second = gevent.spawn(server.recv), gevent.spawn(server.recv)
    gevent.sleep(0)
    first.kill()
    client.send(b"x")
    assert second.get(timeout=5) == b"x"


# The queue and its limits


def test_a_full_queue_holds_the_peers_up_and_loses_nothing(two: tuple[Socket, Socket]) -> None:
    server, client = two
    content = bytes(50_000)
    sender = gevent.spawn(lambda: [client.send(b"%d " % number + content) for number in range(400)])
    wait_until(lambda: server.queued == 64)
    gevent.sleep(0.01)
    assert server.queued == 64 and not sender.ready()
    assert [int(server.recv(timeout=5).split()[0]) for _ in range(400)] == list(range(400))
    sender.get(timeout=5)


def test_the_queue_is_limited_in_bytes_too(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_bytes", 1000)
    for number in range(20):
        client.send(b"%3d" % number + bytes(397))
    wait_until(lambda: server.queued == 3)
    gevent.sleep(0.01)
    assert server.queued == 3
    assert [int(server.recv(timeout=5)[:3]) for _ in range(20)] == list(range(20))


def test_one_content_over_the_limit_in_bytes_still_gets_in(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_bytes", 10)
    for content in (b"a" * 100, b"b" * 100, b""):
        client.send(content)
    assert [server.recv(timeout=5) for _ in range(3)] == [b"a" * 100, b"b" * 100, b""]


def test_the_limit_in_bytes_holds_also_after_peers_went_while_they_were_held_up(stream_address: str) -> None:
    with Socket({"socket.recv_queue_bytes": 1000}) as server:
        where = server.listen(stream_address).address
        batch = encode(Message(content=bytes(400))) * 10
        for _ in range(5):
            with plain_connection(where) as peer:
                peer.sendall(batch)
                wait_until(lambda: server.queued >= 3)
                (pipe,) = server.pipes.values()
                pipe.close()
                # What had been read of it is not lost.
                wait_until(lambda: server.queued >= 10)
            while server.queued:
                server.recv()
        with plain_connection(where) as peer:
            peer.sendall(batch)
            wait_until(lambda: server.queued >= 3)
            gevent.sleep(0.01)
            assert server.queued == 3


@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_changing_the_receive_queue_of_a_live_socket_keeps_what_is_queued(
    two: tuple[Socket, Socket], size: int
) -> None:
    server, client = two
    for number in range(40):
        client.send(b"%d" % number)
    wait_until(lambda: server.queued == 40)
    server.set_option("socket.recv_queue_size", size)
    assert server.queued >= 40
    for number in range(40, 60):
        client.send(b"%d" % number)
    assert [int(server.recv(timeout=5)) for _ in range(60)] == list(range(60))


def test_a_larger_queue_lets_held_up_peers_go_on(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_size", 1)
    for number in range(5):
        client.send(b"%d" % number)
    wait_until(lambda: server.queued == 1)
    server.set_option("socket.recv_queue_size", 5)
    wait_until(lambda: server.queued == 5)
    assert [server.recv() for _ in range(5)] == [b"%d" % number for number in range(5)]


def test_without_a_queue_messages_wait_with_their_pipes(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_size", 0)
    for number in range(10):
        client.send(b"%d" % number)
    gevent.sleep(0.01)
    assert server.queued == 0
    assert [server.recv(timeout=5) for _ in range(10)] == [b"%d" % number for number in range(10)]


def test_without_a_queue_a_poll_finds_what_waits_with_a_pipe(two: tuple[Socket, Socket]) -> None:
    server, client = two
    server.set_option("socket.recv_queue_size", 0)
    client.send(b"x")

    def poll() -> bytes | None:
        try:
            return server.recv(timeout=0)
        except Timeout:
            return None

    received: list[bytes | None] = []
    wait_until(lambda: received.append(poll()) or received[-1])
    assert received[-1] == b"x"


@pytest.mark.parametrize("kind", ["inproc", "tcp"])
def test_peers_that_wait_for_room_get_it_before_newcomers(kind: str) -> None:
    """As many clients as to fill the queue, each with one request at a time, leave room to one more."""
    address = {"inproc": "inproc://room", "tcp": "tcp://127.0.0.1:0"}[kind]
    with Socket({"socket.recv_queue_size": 8}) as server, ExitStack() as stack:
        where = server.listen(address).address
        clients = [stack.enter_context(Socket()) for _ in range(24)]
        done: Counter[int] = Counter()

        def ask(number: int) -> None:
            while True:
                clients[number].send(b"request")
                clients[number].recv()
                done[number] += 1

        def answer() -> None:
            for message in server:
                gevent.sleep(0)
                server.send_to(message.source, b"reply")

        for client in clients:
            client.dial(where)
        workers = [gevent.spawn(answer), *(gevent.spawn(ask, number) for number in range(24))]
        wait_until(lambda: sum(done.values()) >= 2400)
        gevent.killall(workers)
        for client in clients:
            client.close(linger=0)
        assert min(done[number] for number in range(24)) >= 20, done


# no_recv


def test_a_socket_with_no_recv_refuses_to_receive_and_drops_and_counts_what_comes(address: str) -> None:
    with Socket({"socket.no_recv": True}) as deaf, Socket() as peer:
        peer.dial(deaf.listen(address).address)
        for _ in range(200):
            peer.send(b"x", timeout=5)
        wait_until(lambda: deaf.counters.drops == {"no_recv": 200})
        for receive in (deaf.recv, deaf.recv_msg, lambda: next(iter(deaf))):
            with pytest.raises(NotSupported):
                receive()
        deaf.send(b"it can still send")
        assert peer.recv(timeout=5) == b"it can still send"


def test_no_recv_on_a_live_socket_ends_receiving_and_frees_the_peers(two: tuple[Socket, Socket]) -> None:
    server, client = two
    receiver = gevent.spawn(server.recv)
    gevent.sleep(0)
    server.set_option("socket.no_recv", True)
    with pytest.raises(NotSupported):
        receiver.get(timeout=5)
    server.set_option("socket.no_recv", False)
    server.set_option("socket.recv_queue_size", 1)
    for number in range(20):
        client.send(b"%d" % number)
    wait_until(lambda: server.queued == 1)
    server.set_option("socket.no_recv", True)
    wait_until(lambda: server.counters.drops == {"no_recv": 19})
    # What had been queued before was not dropped.
    assert server.recv() == b"0"


def test_flags_of_protocols_arrive(two: tuple[Socket, Socket]) -> None:
    server, client = two
    client.send_msg(Message(CONTROL, content=b"control"))
    assert server.recv_msg(timeout=5).flags == CONTROL


def test_a_greenlet_that_receives_from_a_long_queue_lets_others_run_also_when_the_queue_was_made_longer_later() -> None:
    with Socket({"socket.yield_messages": 10}) as server, Socket({"socket.send_queue_size": 1000}) as client:
        client.dial(server.listen("inproc://longer").address)
        server.set_option("socket.recv_queue_size", 1000)
        for _ in range(500):
            client.send(b"")
        wait_until(lambda: server.queued == 500)
        turns = 0

        def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                gevent.sleep(0)

        worker = gevent.spawn(others)
        for _ in range(500):
            server.recv(timeout=5)
        worker.kill()
        assert turns > 10
