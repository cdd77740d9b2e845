"""Full queues, no peers, many callers at once, callers that give up: what was accepted arrives or is counted."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gevent
import pytest
from gevent import socket
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket, pair
from gmultisocket.errors import Closed, MessageDropped, NoPeers, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL, TO_ONE, Decoder
from tests.faults.peers import connected, crowd, frame, listening, messages, read_until_closed, stuck

SIZE = 16384


class Reader:
    """A peer that reads when it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(1, 0)
        self.numbers: list[int] = []

    def read(self, size: int) -> bool:
        """Read at most so many bytes of those that are there; False if there are none."""
        self._sock.settimeout(0)
        try:
            data = self._sock.recv(size)
        except BlockingIOError:
            return False
        for message in self._decoder.feed(data):
            self.numbers.append(int(message.content.rstrip(b".")))
        return bool(data)


def offer(server: Socket, kind: str, destination: bytes, content: bytes) -> bool:
    """Send without waiting. Returns False if the call said that nothing was accepted, and nothing was counted."""
    try:
        if kind == "one":
            server.send(content, timeout=0)
        elif kind == "dest":
            server.send_to(destination, content, timeout=0)
        else:
            server.send_all(content, timeout=0)
    except Timeout:
        return kind == "all"
    except MessageDropped:
        return kind != "one"
    return True


operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["one", "all", "dest"]), st.integers(1, 30)),
        st.tuples(st.just("read"), st.integers(1, 20 * SIZE)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=30,
)


@pytest.mark.parametrize(
    "options",
    [
        {"socket.send_overflow": "block"},
        {"socket.send_overflow": "drop_newest"},
        {"socket.send_overflow": "drop_oldest"},
        {"socket.send_best_effort": True},
        {"socket.send_overflow": "drop_newest", "socket.send_queue_bytes": 2 * SIZE},
        {"socket.send_overflow": "drop_oldest", "socket.send_queue_bytes": 2 * SIZE},
        {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 0},
        {"socket.send_overflow": "drop_oldest", "socket.send_queue_size": 1},
    ],
    ids=str,
)
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(steps=operations)
def test_whatever_the_policy_what_was_offered_has_arrived_in_order_or_is_counted(
    options: dict[str, Any], steps: list[tuple[str, int]]
) -> None:
    with TemporaryDirectory() as folder, Socket({"socket.send_queue_size": 3, **options}) as server:
        with connected(server.listen(f"ipc://{folder}/socket")) as peer:
            server.wait_pipes(1, timeout=5)
            [pipe] = server.pipes.values()
            reader = Reader(peer)
            offered = refused = 0
            for kind, count in steps:
                if kind == "read":
                    reader.read(count)
                elif kind == "turn":
                    gevent.sleep(0)
                else:
                    for _ in range(count):
                        content = b"%d" % offered + b"." * SIZE
                        offered += 1
                        refused += not offer(server, kind, pipe.path, content)
            wait_until(lambda: not reader.read(1 << 20) and not pipe.queued)
            while reader.read(1 << 20):
                pass
            assert reader.numbers == sorted(set(reader.numbers))
            assert offered == len(reader.numbers) + refused + sum(server.counters.drops.values())
            assert pipe.counters.messages_sent == len(reader.numbers)
            assert not pipe.closed


def test_a_full_peer_is_cut_off_where_the_policy_says_so_and_every_loss_is_counted(tmp_path: Path) -> None:
    with Socket({"socket.send_overflow": "disconnect", "socket.send_queue_size": 3}) as server:
        with connected(server.listen(f"ipc://{tmp_path}/socket")) as peer:
            server.wait_pipes(1, timeout=5)
            [pipe] = server.pipes.values()
            offered = 0
            while server.send_all(b"%d" % offered + b"." * SIZE) or not pipe.closed:
                offered += 1
            # The last one found nobody, and the one before it cut the pipe off.
            data = read_until_closed(peer)
            decoder = Decoder(1, 0)
            arrived = [int(message.content.rstrip(b".")) for message in decoder.feed(data)]
            assert arrived == list(range(len(arrived)))
            assert offered + 1 == len(arrived) + sum(pipe.counters.drops.values())
            assert pipe.counters.drops["overflow"] == 1


def test_peers_queues_and_losses_can_be_seen() -> None:
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_size": 2}
    with Socket(options) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with stuck(listener) as [peer]:
            server.wait_pipes(1, timeout=5)
            [pipe] = server.pipes.values()
            assert pipe.peer_address == f"tcp://127.0.0.1:{peer.getsockname()[1]}"
            while not pipe.counters.drops:
                server.send_all(bytes(65536))
            assert pipe.queued == 3 and pipe.full
            peer.sendall(frame(b"1") * 5)
            wait_until(lambda: server.queued == 5)
            assert server.counters.messages_received == 5
            assert server.counters.drops == pipe.counters.drops == {"overflow": 1}
        wait_until(lambda: pipe.closed)
        assert pipe.reason
        assert server.counters.drops == {"overflow": 1, "disconnect": 3}


def test_without_a_peer_a_send_waits_its_time_and_a_to_all_send_reaches_nobody() -> None:
    with Socket() as lonely:
        with pytest.raises(Timeout):
            lonely.send(b"anybody?", timeout=0.01)
        with pytest.raises(Timeout):
            lonely.send(b"anybody?", timeout=0)
        assert lonely.send_all(b"anybody?") == 0
        assert lonely.send_msg(Message(flags=TO_ALL, content=b"anybody?")) == 0
        lonely.set_option("socket.fail_no_peers", True)
        with pytest.raises(NoPeers):
            lonely.send(b"anybody?")
        with pytest.raises(NoPeers):
            lonely.send_msg(Message(content=b"anybody?"))


def test_what_timed_out_was_not_sent_and_what_is_sent_later_is() -> None:
    with Socket() as server, Socket() as client:
        with pytest.raises(Timeout):
            client.send(b"too early", timeout=0.01)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        client.send(b"just in time")
        assert server.recv(timeout=5) == b"just in time"
        assert not server.queued


def test_greenlets_that_wait_to_receive_are_served_in_their_order() -> None:
    with Socket() as server, Socket() as client:
        order: list[tuple[int, bytes]] = []

        def receive(number: int) -> None:
            order.append((number, server.recv()))

        workers = []
        for number in range(20):
            workers.append(gevent.spawn(receive, number))
            gevent.sleep(0)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        for number in range(20):
            client.send(b"%d" % number)
        gevent.joinall(workers, timeout=5, raise_error=True)
        assert order == [(number, b"%d" % number) for number in range(20)]


def test_greenlets_that_wait_to_send_are_served_in_their_order() -> None:
    with Socket() as server, Socket() as client:
        workers = []
        for number in range(20):
            workers.append(gevent.spawn(client.send, b"%d" % number))
            gevent.sleep(0)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        gevent.joinall(workers, timeout=5, raise_error=True)
        assert [server.recv(timeout=5) for _ in range(20)] == [b"%d" % number for number in range(20)]


@pytest.mark.parametrize("scheme", ["tcp", "inproc"])
def test_closing_wakes_everybody_who_waits(scheme: str) -> None:
    """100 who send to one, to all and to a destination, and 100 who receive, and one who waits for peers."""
    address = {"tcp": "tcp://127.0.0.1:0", "inproc": "inproc://everybody"}[scheme]
    with Socket({"socket.recv_queue_size": 1, "transport.tcp.read_buffer": 4096}) as server:
        listener = server.listen(address)
        client = Socket({"socket.send_queue_size": 1, "transport.tcp.write_buffer": 4096})
        client.dial(listener.address)
        server.wait_pipes(1, timeout=5)
        [pipe] = client.pipes.values()
        workers = [gevent.spawn(client.recv) for _ in range(100)]
        workers.append(gevent.spawn(client.wait_pipes, 2))
        with pytest.raises(Timeout):
            while True:
                client.send(bytes(SIZE), timeout=0.1)
        for _ in range(34):
            workers.append(gevent.spawn(client.send, b"to one"))
            workers.append(gevent.spawn(client.send_all, b"to all"))
            workers.append(gevent.spawn(client.send_to, pipe.path, b"to it"))
        gevent.sleep(0.01)
        assert not any(worker.ready() for worker in workers)
        client.close(linger=0)
        for worker in workers:
            with pytest.raises(Closed):
                worker.get(timeout=5)


@pytest.mark.parametrize("end", ["timeout", "kill"])
def test_a_sender_that_gives_up_tears_no_frame(end: str, tmp_path: Path) -> None:
    """Contents of a megabyte, given up at every moment: the peer reads whole frames, and each at most once."""
    options = {"socket.max_send_content_length": 0, "socket.send_queue_size": 2}
    with Socket(options) as server, connected(server.listen(f"ipc://{tmp_path}/socket")) as peer:
        server.wait_pipes(1, timeout=5)
        reader = gevent.spawn(read_until_closed, peer, 1 << 30)
        accepted = []

        def send(number: int) -> None:
            server.send(b"%03d" % number + bytes(1 << 18))
            accepted.append(number)

        for number in range(100):
            if end == "timeout":
                with gevent.Timeout(0.001 * (number % 3), False):
                    send(number)
            else:
                worker = gevent.spawn(send, number)
                for _ in range(number % 3):
                    gevent.sleep(0)
                worker.kill()
        assert server.close() == 0
        arrived = [message.content for message in messages(reader.get())]
    assert {len(content) for content in arrived} <= {3 + (1 << 18)}
    assert [int(content[:3]) for content in arrived] == accepted


def test_a_receiver_that_gives_up_takes_no_message_with_it() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        received: list[bytes] = []

        def receive() -> None:
            while True:
                received.append(server.recv())

        for number in range(200):
            worker = gevent.spawn(receive)
            gevent.sleep(0)
            client.send(b"%d" % number)
            with gevent.Timeout(0.001 * (number % 2), False):
                gevent.sleep(0.001 * (number % 3))
            worker.kill()
        while len(received) < 200:
            received.append(server.recv(timeout=5))
        assert received == [b"%d" % number for number in range(200)]


def test_changing_a_queues_size_keeps_what_is_queued(tmp_path: Path) -> None:
    with Socket({"socket.send_queue_size": 50}) as server:
        with connected(server.listen(f"ipc://{tmp_path}/socket")) as peer:
            server.wait_pipes(1, timeout=5)
            for number in range(60):
                server.send(b"%d" % number + b"." * SIZE, timeout=5)
            for size in (1, 0, 100, 3):
                server.set_option("socket.send_queue_size", size)
                server.set_option("socket.recv_queue_size", size)
            with pytest.raises(Timeout):
                server.send(b"full", timeout=0)
            reader = gevent.spawn(read_until_closed, peer)
            server.close()
            arrived = [int(message.content.rstrip(b".")) for message in messages(reader.get())]
    assert arrived == list(range(60))


def test_a_smaller_receive_queue_loses_nothing_that_is_in_it() -> None:
    with Socket() as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        peer.sendall(b"".join(frame(b"%d" % number) for number in range(500)))
        wait_until(lambda: server.queued == 64)
        for size in (1, 0, 1000, 7):
            server.set_option("socket.recv_queue_size", size)
        assert [server.recv(timeout=5) for _ in range(500)] == [b"%d" % number for number in range(500)]


def test_a_limit_in_bytes_holds_for_what_is_received_also_after_peers_were_closed() -> None:
    with Socket({"socket.recv_queue_bytes": 10_000, "socket.recv_queue_size": 1000}) as server:
        listener = server.listen("tcp://127.0.0.1:0")
        for _ in range(5):
            with connected(listener) as peer:
                peer.sendall(frame(bytes(1000)) * 50)
                wait_until(lambda: server.queued >= 10)
                [pipe] = server.pipes.values()
                # What it had brought and nobody had room for is received all the same.
                pipe.close()
                wait_until(lambda: server.queued == 50)
                while server.queued:
                    server.recv(timeout=5)
        with connected(listener) as peer:
            peer.sendall(frame(bytes(1000)) * 50)
            wait_until(lambda: server.queued >= 10)
            gevent.sleep(0.01)
            assert server.queued == 10


def test_a_pair_with_a_peer_that_is_gone_fails_at_once() -> None:
    one, other = pair()
    other.close()
    with one:
        for send in (one.send, one.send_all):
            with pytest.raises(Closed):
                send(b"nobody")


def test_many_peers_share_the_work_and_a_full_one_gets_none(tmp_path: Path) -> None:
    with Socket({"socket.send_queue_size": 1}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with stuck(listener), crowd(listener, 4) as workers:
            server.wait_pipes(5, timeout=5)
            first = min(server.pipes.values(), key=lambda pipe: list(server.pipes).index(pipe.id))
            readers = [gevent.spawn(read_until_closed, worker) for worker in workers]
            for number in range(400):
                server.send(b"%d" % number + b"." * SIZE, timeout=5)
            assert first.full
            taken = sorted(pipe.messages_sent for pipe in server.pipes.values() if pipe is not first)
            server.close(linger=0)
            arrived = [int(message.content.rstrip(b".")) for reader in readers for message in messages(reader.get())]
    assert len(arrived) == len(set(arrived))
    assert sum(taken) >= 350
    assert taken[0] * 4 > taken[-1]


def test_messages_of_both_kinds_to_a_peer_keep_their_order() -> None:
    with Socket() as server, listening() as (silent, address):
        server.dial(address)
        peer, _ = silent.accept()
        for number in range(300):
            if number % 3:
                server.send_all(b"%d" % number)
            else:
                server.send(b"%d" % number)
            if number % 50 == 0:
                gevent.sleep(0)
        server.close()
        arrived = messages(read_until_closed(peer))
        peer.close()
    assert [int(message.content) for message in arrived] == list(range(300))
    assert {message.flags for message in arrived} == {TO_ONE, TO_ALL}
