"""Peers that are there and do not read: they cost their own pipe, and a bounded amount of memory."""

from __future__ import annotations

import contextlib
import os
import signal

import gevent
import pytest

from gmultisocket import Socket, Switch
from gmultisocket.errors import MessageTooLong, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, Decoder
from tests.faults.peers import connected, crowd, frame, read_message, read_until_closed, reset, stuck
from tests.faults.process import MIB, resident, spawn_script

PING, PONG = b"\x01", b"\x02"


def test_a_peer_that_pings_and_never_reads_does_not_pile_up_its_pongs() -> None:
    listener_options = {"transport.tcp.write_buffer": 65536}
    with Socket() as server, stuck(server.listen("tcp://127.0.0.1:0", listener_options), room=65536) as [peer]:
        ping = frame(PING + b"x" * 120, INTERNAL, ttl=1)
        before = resident()
        for _ in range(100):
            peer.sendall(ping * 1000)
        pipe = next(iter(server.pipes.values()))
        wait_until(lambda: pipe.bytes_received == 100_000 * len(ping), timeout=20)
        assert pipe.queued <= server.get_option("socket.send_queue_size") + 1
        assert resident() - before < 8 * MIB
        # What it was not told it never hears; once it reads, it is answered again.
        decoder = Decoder(1)
        while pipe.queued:
            assert {message.content for message in read_message(peer, decoder)} == {PONG + b"x" * 120}
        peer.sendall(frame(PING + b"again", INTERNAL, ttl=1))
        answers: list[bytes] = []
        while PONG + b"again" not in answers:
            answers += [message.content for message in read_message(peer, decoder)]


def test_peers_that_flood_a_program_which_does_not_receive_cost_little_more_than_what_they_sent() -> None:
    """The smallest frames there are: 64 KiB of them from each peer would be a megabyte of messages."""
    with Socket() as server, crowd(server.listen("tcp://127.0.0.1:0"), 200) as peers:
        wait_until(lambda: len(server.pipes) == 200)
        flood = frame() * 8192
        before = resident()
        for peer in peers:
            peer.sendall(flood)
        wait_until(lambda: all(pipe.bytes_received for pipe in server.pipes.values()))
        assert server.queued == server.get_option("socket.recv_queue_size")
        assert resident() - before < 50 * MIB
        for _ in range(1000):
            assert server.recv(timeout=5) == b""


CAP = 64 * 65536


def test_a_peer_that_says_goodbye_keeps_its_pipe_until_what_it_sent_has_room() -> None:
    """A closed pipe counts under no limit: peers that end at once could leave any number of floods here."""
    options = {"connector.pipe_limit": 3, "connector.listener.over_limit": "refuse"}
    with Socket(options) as server:
        listener = server.listen("tcp://127.0.0.1:0")
        flood = b"".join(frame(b"%d" % number) for number in range(200)) + frame(b"\x00", INTERNAL, ttl=1)
        with crowd(listener, 10) as peers:
            for peer in peers:
                with contextlib.suppress(ConnectionError):
                    peer.sendall(flood + frame(b"said behind it"))
            wait_until(lambda: listener.refused == 7)
            assert len(server.pipes) == 3
            received = [server.recv(timeout=5) for _ in range(600)]
            assert sorted(map(int, received)) == sorted(list(range(200)) * 3)
            wait_until(lambda: not server.pipes)
            assert not server.queued


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest", "disconnect"])
def test_a_stuck_peer_costs_a_to_all_sender_its_own_messages_only(policy: str) -> None:
    """100 contents of 64 KiB to three peers of which one does not read, as fast as the others take them."""
    with Socket({"socket.send_overflow": policy}) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 65536})
        with stuck(listener), Socket() as first, Socket() as second:
            server.wait_pipes(1, timeout=5)
            [blocked] = server.pipes.values()
            for client in (first, second):
                client.dial(listener.address)
            server.wait_pipes(3, timeout=5)
            before = resident()
            sent = [b"%d" % number + bytes(65536) for number in range(100)]
            for content in sent:
                server.send_all(content, timeout=5)
                for client in (first, second):
                    assert client.recv(timeout=5) == content
            assert resident() - before < 2 * CAP
            if policy == "disconnect":
                assert blocked.closed
                assert blocked.reason == "its send queue was full (socket.send_overflow is disconnect)"
                assert len(server.pipes) == 2
            else:
                assert blocked.queued <= server.get_option("socket.send_queue_size") + 1
                dropped = blocked.counters.drops["overflow"]
                assert blocked.counters.messages_sent + blocked.queued + dropped == 100


def test_a_to_all_sender_that_waits_for_a_stuck_peer_has_served_the_others_first() -> None:
    """With ``block``: 2 of 3 get everything up to the message that the third has no room for, that one included."""
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 65536})
        with stuck(listener), Socket() as first, Socket() as second:
            server.wait_pipes(1, timeout=5)
            for client in (first, second):
                client.dial(listener.address)
            server.wait_pipes(3, timeout=5)
            number = 0
            with pytest.raises(Timeout) as caught:
                while True:
                    server.send_all(b"%d" % number + bytes(65536), timeout=0.1)
                    for client in (first, second):
                        assert client.recv(timeout=5).rstrip(b"\0") == b"%d" % number
                    number += 1
            assert caught.value.sent == 2
            for client in (first, second):
                assert client.recv(timeout=5).rstrip(b"\0") == b"%d" % number
            # To one, to a destination, a look at the pipes, a close: none of it waits for the stuck peer.
            server.send(b"to one", timeout=5)
            first.send(b"hello")
            message = server.recv_msg(timeout=5)
            server.send_to(message.source, b"to you", timeout=5)
            server.close(linger=0)


def test_peers_that_are_full_for_a_moment_do_not_wait_behind_one_that_is_stuck() -> None:
    with Socket({"socket.send_queue_size": 2}) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 65536})
        with stuck(listener), stuck(listener, room=65536) as [slow]:
            server.wait_pipes(2, timeout=5)
            with pytest.raises(Timeout):
                while True:
                    server.send_all(bytes(65536), timeout=0)
            while not all(pipe.full for pipe in server.pipes.values()):
                with contextlib.suppress(Timeout):
                    server.send_all(bytes(65536), timeout=0)
            sender = gevent.spawn(server.send_all, b"last")
            decoder = Decoder(1)
            while b"last" not in [message.content for message in read_message(slow, decoder)]:
                pass
            assert not sender.ready()
            sender.kill()


def test_a_stuck_peer_that_dies_during_a_to_all_send_locks_nothing_up() -> None:
    """After its reset: to-all, to-one and to-destination sends, new peers, and close() all go on."""
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 65536})
        with stuck(listener) as [peer], Socket() as client:
            client.dial(listener.address)
            server.wait_pipes(2, timeout=5)

            def send_for_ever() -> None:
                while True:
                    server.send_all(bytes(65536))

            sender = gevent.spawn(send_for_ever)
            stuck_pipe = next(pipe for pipe in server.pipes.values() if pipe.peer_address != client_end(client))
            while not stuck_pipe.full:
                client.recv(timeout=5)
            reset(peer)
            for _ in range(300):
                assert len(client.recv(timeout=5)) == 65536
            sender.kill()
            with Socket() as late:
                late.dial(listener.address)
                server.wait_pipes(2, timeout=5)
                late.send(b"hello")
                way_back = server.recv_msg(timeout=5).source
                server.send_to(way_back, b"to you", timeout=5)
                assert late.recv(timeout=5) == b"to you"
            assert server.close(linger=0) >= 0


def test_a_stuck_client_behind_a_switch_holds_up_nobody_where_its_socket_may_drop() -> None:
    with Socket() as back, Socket({"socket.send_overflow": "drop_newest"}) as front, Socket() as server:
        server.dial(back.listen("inproc://back").address)
        listener = front.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with Switch(back, front) as switch, stuck(listener) as [peer], connected(listener) as other:
            peer.sendall(frame(b"never reads"))
            stuck_way = server.recv_msg(timeout=5).source
            other.sendall(frame(b"reads"))
            other_way = server.recv_msg(timeout=5).source
            for _ in range(200):
                server.send_to(stuck_way, bytes(65536), timeout=5)
            server.send_to(other_way, b"reply", timeout=5)
            with gevent.Timeout(5):
                assert other.recv(100).endswith(b"reply")
            assert switch.running
            assert front.counters.drops["overflow"] > 50


def client_end(client: Socket) -> str:
    """Return the address under which a client's only pipe is known to its server."""
    return next(iter(client.pipes.values())).local_address


RECEIVES = """
import sys
from gmultisocket import Socket
with Socket() as sock:
    sock.dial(sys.argv[1])
    sock.send(b"ready")
    while True:
        content = sock.recv()
        if content[:4] == b"last":
            sock.send(b"%d" % sock.counters.messages_received)
"""


def test_a_stopped_process_costs_bounded_memory_and_goes_on_when_it_is_continued() -> None:
    """SIGSTOP for as long as it takes to offer 128 MiB, then SIGCONT: what comes out is in order and whole."""
    with Socket({"socket.send_overflow": "drop_newest"}) as server:
        listener = server.listen("tcp://127.0.0.1:0")
        with spawn_script(RECEIVES, listener.address) as child:
            assert server.recv(timeout=20) == b"ready"
            [pipe] = server.pipes.values()
            os.kill(child.pid, signal.SIGSTOP)
            before = resident()
            for number in range(2048):
                server.send_all(b"%d" % number + bytes(65536))
            assert pipe.full
            assert resident() - before < 2 * CAP
            assert pipe.counters.drops["overflow"] > 1000
            os.kill(child.pid, signal.SIGCONT)
            wait_until(lambda: not pipe.queued, timeout=20)
            server.send_all(b"last")
            arrived = int(server.recv(timeout=20))
            assert arrived == 2049 - pipe.counters.drops["overflow"]
            assert len(server.pipes) == 1


def test_stuck_peers_of_a_fan_out_share_the_memory_of_what_waits_for_them() -> None:
    """1 MiB waits for each of 50 stuck peers, the same for all of them."""
    options = {"socket.send_overflow": "drop_newest", "socket.send_queue_bytes": MIB}
    with Socket(options) as server:
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with stuck(listener, 50), crowd(listener, 50) as readers:
            server.wait_pipes(100, timeout=5)
            before = resident()
            workers = [gevent.spawn(read_until_closed, reader) for reader in readers]
            for _ in range(64):
                server.send_all(bytes(131072))
                gevent.sleep(0)
            full = [pipe for pipe in server.pipes.values() if pipe.full]
            assert len(full) >= 50
            assert resident() - before < 24 * MIB
            server.close(linger=0)
            gevent.joinall(workers, raise_error=True)


def test_a_content_over_the_limit_is_an_error_of_the_sender_and_harms_no_connection() -> None:
    with Socket() as server, Socket() as client:
        dialer = client.dial(server.listen("tcp://127.0.0.1:0").address)
        poison = bytes(8 * MIB)
        for send in (client.send, client.send_all):
            with pytest.raises(MessageTooLong) as caught:
                send(poison)
            assert (caught.value.size, caught.value.limit) == (8 * MIB, 131072)
        client.send(b"harmless")
        assert server.recv(timeout=5) == b"harmless"
        assert dialer.reconnects == 0


def test_a_content_over_the_peers_limit_costs_one_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It is not offered to one peer after the other: each of them would close its pipe."""
    options = {"socket.max_send_content_length": 0, "connector.dialer.min_reconnect_time": 0.01}
    with Socket() as one, Socket() as other, Socket(options) as client:
        dialers = [client.dial(server.listen("tcp://127.0.0.1:0").address) for server in (one, other)]
        client.send(bytes(8 * MIB))
        for number in range(20):
            client.send(b"%d" % number, timeout=5)
        wait_until(lambda: sum(dialer.reconnects for dialer in dialers) == 1 and len(client.pipes) == 2)
        wait_until(lambda: one.queued + other.queued == 20)
        assert client.counters.drops == {"disconnect": 1}
        client.send(b"still two peers", timeout=5)
        wait_until(lambda: one.queued + other.queued == 21)
        assert sum(dialer.reconnects for dialer in dialers) == 1
    assert "max_recv_content_length" in caplog.text
