"""Peers that die: in the middle of a frame, many at once, while they are being written to."""

from __future__ import annotations

from pathlib import Path

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import Timeout
from gmultisocket.testing import wait_until
from tests.faults.peers import connected, crowd, messages, read_until_closed


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
