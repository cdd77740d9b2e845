"""Peers that are there and do not read: they cost their own pipe, and a bounded amount of memory."""

from __future__ import annotations

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, Decoder
from tests.faults.peers import crowd, frame, read_message, stuck
from tests.faults.process import MIB, resident

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
