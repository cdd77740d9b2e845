"""Listeners: who is let in."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.testing import wait_until

LONG = 10.0
QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.01}


@pytest.mark.parametrize("address", ["inproc://limit", "tcp://127.0.0.1:0"])
def test_over_the_pipe_limit_peers_wait_or_are_refused_as_the_option_says(address: str) -> None:
    options = {"connector.pipe_limit": 1, "connector.listener.over_limit": "refuse"}
    with Socket(options) as server, Socket() as first, Socket(QUICK) as second:
        listener = server.listen(address)
        first.dial(listener.address)
        server.wait_pipes(1, LONG)
        second.dial(listener.address)
        wait_until(lambda: listener.refused >= 2, LONG)
        assert len(server.pipes) == 1
        listener.options.set("connector.listener.over_limit", "wait")
        refused = listener.refused
        wait_until(lambda: second.pipes, LONG)
        first.close()
        second.send(b"in")
        assert server.recv(LONG) == b"in"
        assert listener.refused <= refused + 1


def test_a_wait_for_a_place_that_is_cancelled_takes_none() -> None:
    with Socket({"connector.pipe_limit": 1}) as server, Socket() as first, Socket(QUICK) as second:
        address = server.listen("tcp://127.0.0.1:0").address
        first.dial(address)
        server.wait_pipes(1, LONG)
        waiting = gevent.spawn(server._connector.places.reserve_in_turn)
        gevent.sleep(0)
        waiting.kill(timeout=LONG)
        assert waiting.dead
        first.close()
        second.dial(address)
        second.send(b"in")
        assert server.recv(LONG) == b"in"
