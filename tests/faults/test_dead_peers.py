"""Peers that die: in the middle of a frame, many at once, while they are being written to."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest
from gevent import socket

from gmultisocket import Socket
from gmultisocket.core import bytespipe
from gmultisocket.errors import Timeout
from gmultisocket.testing import wait_until
from gmultisocket.transport.tcp import unacknowledged
from tests.faults.peers import connected, crowd, frame, listening, messages, read_until_closed
from tests.faults.process import MIB


def test_a_message_passes_over_any_number_of_dead_peers_to_the_living_one(tmp_path: Path) -> None:
    with Socket({"socket.send_stop_timeout": 0}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 600) as peers, connected(listener) as living:
            wait_until(lambda: len(server.pipes) == 601)
            for peer in peers:
                peer.close()
            for number in range(4):
                server.send(b"message %d" % number)
            assert server.close() == 0
            got = [message.content for message in messages(read_until_closed(living))]
            assert got == [b"message %d" % number for number in range(4)]


def test_a_message_for_dead_peers_only_waits_for_one_that_lives(tmp_path: Path) -> None:
    with Socket() as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 600) as peers:
            wait_until(lambda: len(server.pipes) == 600)
            for peer in peers:
                peer.close()
            server.send(b"patient")
            wait_until(lambda: not server.pipes)
            with pytest.raises(Timeout):
                server.send(b"nobody could take it", timeout=0)
        with connected(listener) as living:
            wait_until(lambda: server.pipes)
            server.close()
            assert [message.content for message in messages(read_until_closed(living))] == [b"patient"]


def test_what_a_peer_did_not_take_reaches_another_one_in_order(tmp_path: Path) -> None:
    with Socket({"socket.send_queue_size": 1000}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with crowd(listener, 1) as [first]:
            wait_until(lambda: server.pipes)
            contents = [b"%d" % number + b"." * 5000 for number in range(200)]
            for content in contents:
                server.send(content)
            pipe = next(iter(server.pipes.values()))
            waiting = pipe.queued
            with crowd(listener, 3) as others, connected(listener) as living:
                wait_until(lambda: len(server.pipes) == 5)
                for peer in others:
                    peer.close()
                first.close()
                reader = gevent.spawn(read_until_closed, living)
                server.close()
                got = [message.content for message in messages(reader.get())]
        # One was half gone, and is lost with its peer.
        assert got == contents[-len(got) :]
        assert waiting - 1 <= len(got) <= waiting


def test_a_peer_that_only_stops_to_read_loses_its_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DEAF_TIME", 0.1)
    with Socket() as server, connected(server.listen(f"ipc://{tmp_path}/socket")) as peer:
        wait_until(lambda: server.pipes)
        peer.shutdown(socket.SHUT_RD)
        server.send_all(b"nobody hears it")
        peer.sendall(frame(b"what it has to say is heard"))
        assert server.recv(timeout=5) == b"what it has to say is heard"
        wait_until(lambda: not server.pipes)
        assert peer.recv(1) == b""


def test_a_dialer_dials_again_though_nobody_takes_what_the_dead_peer_had_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DEAF_TIME", 0.1)
    options = {"socket.recv_queue_size": 4, "connector.dialer.min_reconnect_time": 0.01}
    with Socket(options) as client, listening() as (silent, address):
        client.dial(address)
        peer, _ = silent.accept()
        peer.sendall(frame(b"unread") * 5000)
        wait_until(lambda: client.queued == 4)
        peer.close()
        wait_until(lambda: client.send_all(b"to a peer that does not exist any more") == 0)
        again, _ = silent.accept()
        client.send(b"to one that does", timeout=5)
        assert b"to one that does" in again.recv(100)
        again.close()


def test_what_a_peer_had_sent_before_it_died_is_read_however_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytespipe, "DEAF_TIME", 0.5)
    with Socket({"socket.recv_queue_size": 4}) as server:
        with connected(server.listen("tcp://127.0.0.1:0", {"transport.tcp.read_buffer": MIB})) as peer:
            sent = [b"%d" % number + b"." * 10000 for number in range(50)]
            peer.sendall(b"".join(map(frame, sent)))
            wait_until(lambda: server.queued == 4 and not unacknowledged(peer))
        pipe = next(iter(server.pipes.values()))
        wait_until(lambda: server.send_all(b"knock, knock") and not pipe.state.value == "open")
        received = []
        for _ in sent:
            received.append(server.recv(timeout=5))
            gevent.sleep(0.02)
        assert received == sent
        wait_until(lambda: not server.pipes)


def test_what_nobody_receives_from_dead_peers_is_dropped_and_counted_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytespipe, "DEAF_TIME", 0.1)
    with Socket({"socket.recv_queue_size": 10}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        for _ in range(10):
            with connected(listener) as peer:
                peer.sendall(frame(b"unread") * 100)
                wait_until(lambda: server.pipes and all(pipe.messages_received for pipe in server.pipes.values()))
            server.send_all(b"nobody is there")
            wait_until(lambda: not server.pipes)
        assert server.queued == 10
        assert server.counters.drops["unread"] == 990
