"""Listeners: who is let in."""

from __future__ import annotations

import logging

import gevent
import pytest

from gmultisocket import Negotiation, Pipe, Socket
from gmultisocket.testing import wait_until
from gmultisocket.transport.tls import TLSConnection
from tests.addresses import plain_connection
from tests.certificates import listen_options

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


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
def test_a_connection_whose_pipe_cannot_be_added_is_refused(scheme: str) -> None:
    mistakes = 1

    def mistake(kind: str, pipe: Pipe) -> None:
        nonlocal mistakes
        if kind == "add" and mistakes:
            mistakes -= 1
            raise ValueError("a mistake")

    with Socket() as server, Socket(QUICK) as client:
        server._for_protocol().on_pipe(mistake)
        listener = server.listen(f"{scheme}://127.0.0.1:0")
        client.dial(listener.address)
        wait_until(lambda: server.pipes, LONG)
        server.send(b"in")
        assert client.recv(LONG) == b"in"
        assert (listener.accepted, listener.refused, len(server.pipes)) == (2, 1, 1)


def test_a_connection_that_breaks_in_its_handshake_becomes_no_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(connection: TLSConnection) -> None:
        raise ConnectionResetError("reset")

    monkeypatch.setattr(TLSConnection, "handshake", breaks)
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", listen_options())
        with plain_connection(listener.address.removeprefix("tls+")) as peer:
            peer.sendall(b"hello")
            wait_until(lambda: listener.refused == 1, LONG)
            assert not server.pipes


def test_a_negotiator_that_was_killed_is_no_mistake_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    def killed(negotiation: Negotiation) -> None:
        raise gevent.GreenletExit

    with Socket() as server:
        server.set_negotiator(killed)
        listener = server.listen("tcp://127.0.0.1:0")
        with plain_connection(listener.address):
            wait_until(lambda: listener.refused == 1, LONG)
    assert any("the negotiator was killed" in record.getMessage() for record in caplog.records)
    assert not any(record.levelno >= logging.ERROR for record in caplog.records)
