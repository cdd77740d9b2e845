"""To-one messages whose pipe closed before they left: what the others get, and in which order."""

from __future__ import annotations

import gevent

from gmultisocket import Socket
from gmultisocket.core.pipes.pipe import Pipe
from gmultisocket.testing import wait_until
from tests.faults.peers import listening

_ONCE = {"connector.dialer.reconnect": False}


def _send_numbers(sock: Socket, pipe: Pipe, number: int, until: int = 1000) -> int:
    """Send large messages that begin with a number until so many are queued, or it is full. Return the next number."""
    while pipe.queued < until and not pipe.full:
        sock.send(b"%08d" % number + bytes(100_000), timeout=5)
        number += 1
        gevent.sleep(0)
    return number


def test_requeued_messages_stay_in_order_when_their_next_pipe_closes_too() -> None:
    with Socket({"socket.send_queue_size": 8}) as client, Socket() as last:
        with listening() as (first, first_address), listening() as (second, second_address):
            client.dial(first_address, _ONCE)
            first_peer, _ = first.accept()
            (pipe,) = client.pipes.values()
            end = _send_numbers(client, pipe, 0)
            queued = range(end - pipe.queued, end)
            client.dial(second_address, _ONCE)
            second_peer, _ = second.accept()
            pipe = next(each for each in client.pipes.values() if each is not pipe)
            _send_numbers(client, pipe, 10_000, 3)
            first_peer.close()
            wait_until(lambda: len(client.pipes) == 1)
            second_peer.close()
            wait_until(lambda: not client.pipes)
        left = client._connector.unsent()
        client.dial(last.listen("tcp://127.0.0.1:0").address)
        received = [int(last.recv(timeout=5)[:8]) for _ in range(left)]
        of_first = [number for number in received if number < 10_000]
        # A part of the first one has left, and so has one of the second pipe.
        assert of_first == list(queued)[-len(of_first) :] and len(of_first) >= 6
        of_second = [number for number in received if number >= 10_000]
        assert of_second == sorted(of_second) and of_second
