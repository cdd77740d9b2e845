"""Which pipes a message goes to, when pipes break or are full."""

from __future__ import annotations

import socket
import struct

import pytest
from gevent.socket import create_connection

from gmultisocket import Socket
from gmultisocket.errors import Timeout
from gmultisocket.testing import wait_until


def test_a_send_survives_hundreds_of_pipes_that_have_broken_at_once() -> None:
    with Socket() as sender:
        host, port = sender.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").split(":")
        peers = []
        for count in range(1, 401):
            peers.append(create_connection((host, int(port))))
            sender.wait_pipes(count, timeout=10)
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        sender.send(b"content")
        with Socket() as survivor:
            survivor.dial(f"tcp://{host}:{port}")
            assert survivor.recv(timeout=10) == b"content"


def test_a_timed_out_send_all_says_how_many_pipes_had_taken_the_message() -> None:
    with Socket({"socket.send_queue_size": 1}) as sender, Socket() as reader:
        address = sender.listen("tcp://127.0.0.1:0").address
        reader.dial(address)
        sender.wait_pipes(1, timeout=5)
        (in_step,) = sender.pipes.values()
        sender.send(b"first")
        assert reader.recv(timeout=5) == b"first"
        host, port = address.removeprefix("tcp://").split(":")
        with create_connection((host, int(port))):
            sender.wait_pipes(2, timeout=5)
            (stuck,) = [pipe for pipe in sender.pipes.values() if pipe is not in_step]
            while not stuck.full:
                sender.send_some([stuck], bytes(100_000))
            wait_until(lambda: in_step.fan_out is not None, what="the reader's pipe is in step again")
            with pytest.raises(Timeout) as failure:
                sender.send_all(b"to all", timeout=0)
            assert failure.value.sent == 1
            assert reader.recv(timeout=5) == b"to all"
            stuck.close()
