"""Places under the pipe limit: who gets one, who waits for one, and what changes that."""

from __future__ import annotations

from contextlib import ExitStack

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import PipeRefused
from gmultisocket.testing import wait_until
from tests.addresses import plain_connection, plain_listener

QUICK = {"connector.dialer.min_reconnect_time": 0.005, "connector.dialer.max_reconnect_time": 0.02}


def turns(count: int = 20) -> None:
    """Give the loop time to do what it should not do."""
    for _ in range(count):
        gevent.sleep(0.001)


def test_a_listener_takes_no_more_peers_than_the_limit_allows(address: str) -> None:
    with Socket({"connector.pipe_limit": 2}) as server, ExitStack() as stack:
        where = server.listen(address).address
        clients = [stack.enter_context(Socket(QUICK)) for _ in range(4)]
        for client in clients:
            client.dial(where, {"connector.dialer.dial_async": True})
        server.wait_pipes(2, timeout=5)
        turns()
        assert len(server.pipes) == 2
        assert server.send_all(b"in") == 2


def test_those_who_wait_are_let_in_when_there_is_room(address: str) -> None:
    with Socket({"connector.pipe_limit": 1}) as server, ExitStack() as stack:
        where = server.listen(address).address
        clients = [stack.enter_context(Socket(QUICK)) for _ in range(3)]
        for client in clients:
            client.dial(where, {"connector.dialer.dial_async": True})
        seen = set()
        for _ in clients:
            server.wait_pipes(1, timeout=5)
            (pipe,) = server.pipes.values()
            server.send_to(pipe.path, b"your turn")
            wait_until(lambda: any(client.queued for client in clients))
            (chosen,) = [client for client in clients if client.queued]
            assert chosen.recv(timeout=5) == b"your turn"
            seen.add(chosen)
            chosen.close()
            wait_until(lambda pipe=pipe: pipe.closed)
        assert len(seen) == 3


def test_a_message_of_a_peer_that_waits_for_room_is_not_lost(address: str) -> None:
    with Socket({"connector.pipe_limit": 1}) as server, Socket() as first, Socket() as second:
        where = server.listen(address).address
        first.dial(where)
        server.wait_pipes(timeout=5)
        sending = gevent.spawn(lambda: (second.dial(where), second.send(b"patient")))
        turns()
        assert server.queued == 0
        first.close()
        assert server.recv(timeout=5) == b"patient"
        sending.get(timeout=5)


def test_a_dial_over_the_limit_is_refused_and_leaves_nothing(address: str) -> None:
    with Socket() as server, Socket({"connector.pipe_limit": 1}) as client:
        where = server.listen(address).address
        client.dial(where)
        with pytest.raises(PipeRefused, match="pipe_limit"):
            client.dial(where)
        assert len(client.dialers) == 1
        turns()
        assert len(server.pipes) == 1


def test_dialers_are_held_at_the_limit_and_go_on_when_a_pipe_closes(address: str) -> None:
    with Socket() as server, Socket({"connector.pipe_limit": 2, **QUICK}) as client:
        where = server.listen(address).address
        dialers = [client.dial(where, {"connector.dialer.dial_async": True}) for _ in range(5)]
        client.wait_pipes(2, timeout=5)
        wait_until(lambda: sum(dialer.state.value == "held" for dialer in dialers) == 3)
        attempts = sum(dialer.attempts for dialer in dialers)
        turns()
        assert sum(dialer.attempts for dialer in dialers) == attempts == 2
        connected = [dialer for dialer in dialers if dialer.pipe]
        for dialer in connected:
            pipe = dialer.pipe
            dialer.close()
            assert pipe is not None
            pipe.close()
        wait_until(lambda: len(client.pipes) == 2)
        assert sum(dialer.pipe is not None for dialer in dialers) == 2


def test_the_limit_may_be_changed_while_the_socket_lives(address: str) -> None:
    with Socket() as server, Socket({"connector.pipe_limit": 1, **QUICK}) as client:
        where = server.listen(address).address
        dialers = [client.dial(where, {"connector.dialer.dial_async": True}) for _ in range(4)]
        wait_until(lambda: sum(dialer.state.value == "held" for dialer in dialers) == 3)
        client.set_option("connector.pipe_limit", 3)
        wait_until(lambda: len(client.pipes) == 3)
        turns()
        assert len(client.pipes) == 3
        # A lower limit throws nobody out.
        client.set_option("connector.pipe_limit", 1)
        turns()
        assert len(client.pipes) == 3
        for pipe in list(client.pipes.values()):
            pipe.close()
        wait_until(lambda: len(client.pipes) == 1)
        turns()
        assert len(client.pipes) == 1
        client.set_option("connector.pipe_limit", -1)
        wait_until(lambda: len(client.pipes) == 4)


def test_lifting_the_limit_frees_those_who_wait_though_a_connection_is_still_in_the_making() -> None:
    silent, where = plain_listener()
    with silent, Socket() as server, Socket({"connector.pipe_limit": 1, **QUICK}) as client:
        real = server.listen("tcp://127.0.0.1:0").address
        client.set_negotiator(lambda negotiation: negotiation.peer_address == real or negotiation.recv(1))
        dialing = gevent.spawn(client.dial, where)
        peer, _ = silent.accept()
        with peer:
            held = client.dial(real, {"connector.dialer.dial_async": True})
            wait_until(lambda: held.state.value == "held")
            client.set_option("connector.pipe_limit", -1)
            wait_until(lambda: held.pipe)
            peer.sendall(b"x")
            dialing.get(timeout=5)


def test_one_place_is_enough_for_a_socket_that_listens_and_dials(address: str) -> None:
    options = {"connector.pipe_limit": 1, **QUICK}
    with Socket(options) as middle, Socket() as upstream, Socket(QUICK) as downstream:
        below = middle.listen("inproc://below").address
        dialer = middle.dial(upstream.listen(address).address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.pipe)
        downstream.dial(below, {"connector.dialer.dial_async": True})
        turns()
        assert list(middle.pipes.values()) == [dialer.pipe]
        dialer.close()
        assert dialer.pipe is not None
        dialer.pipe.close()
        wait_until(lambda: len(middle.pipes) == 1)
        downstream.send(b"now me")
        assert middle.recv(timeout=5) == b"now me"
        # And the other way round: while the listener has the place, the dialer waits.
        dialer = middle.dial(upstream.listeners[0].address, {"connector.dialer.dial_async": True})
        wait_until(lambda: dialer.state.value == "held")
        downstream.close()
        wait_until(lambda: dialer.pipe)


def test_several_listeners_share_the_limit() -> None:
    with Socket({"connector.pipe_limit": 3}) as server, ExitStack() as stack:
        addresses = [server.listen("tcp://127.0.0.1:0").address for _ in range(3)]
        for number in range(9):
            stack.enter_context(plain_connection(addresses[number % 3]))
        server.wait_pipes(3, timeout=5)
        turns()
        assert len(server.pipes) == 3
        for _ in range(2):
            for pipe in list(server.pipes.values()):
                pipe.close()
            server.wait_pipes(3, timeout=5)
            turns()
            assert len(server.pipes) == 3


def test_peers_that_are_refused_give_their_places_back() -> None:
    with Socket({"connector.pipe_limit": 1}) as server, Socket(QUICK) as client:
        refusals = 10

        def refuse_at_first(negotiation: object) -> None:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise PipeRefused("not yet")

        server.set_negotiator(refuse_at_first)
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        server.wait_pipes(timeout=5)
        client.send(b"in at last")
        assert server.recv(timeout=5) == b"in at last"
