"""Negotiators: who may connect is asked before anything else, and nobody else waits for the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import gevent
import pytest
from gevent.event import Event
from websockets.frames import Opcode

from gmultisocket import Message, Negotiation, Socket
from gmultisocket.core.connecting.opening import time_limit
from gmultisocket.errors import NotSupported, PipeRefused
from gmultisocket.testing import wait_until
from gmultisocket.transport.peerlimits import PeerLimits
from gmultisocket.transport.tcp import TCPConnection
from gmultisocket.wire import encode
from tests.addresses import STREAMS, plain_connection, plain_listener
from tests.faults.peers import reset
from tests.transport.wspeers import frame, upgraded

QUICK = {"connector.dialer.min_reconnect_time": 0.005, "connector.dialer.max_reconnect_time": 0.01}
ONCE = {"connector.dialer.reconnect": False}


def refuse(negotiation: Negotiation) -> None:
    negotiation.refuse("not you")


def test_who_is_accepted_is_a_peer_like_any_other(address: str) -> None:
    seen: list[tuple[int, bool, str]] = []
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda n: seen.append((n.pipe_id, n.dialed, n.peer_address)))
        client.dial(server.listen(address).address)
        client.send(b"hello")
        message = server.recv_msg(timeout=5)
        assert message.content == b"hello"
        # The id is the one that the pipe has later.
        assert seen == [(message.pipe_id, False, server.pipes[message.pipe_id].peer_address)]


def test_who_is_refused_is_no_pipe_at_any_time_and_loses_the_connection(address: str) -> None:
    events: list[object] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(events.append)
        server.set_negotiator(refuse)
        listener = server.listen(address)
        with suppress(PipeRefused):
            client.dial(listener.address, ONCE)
        wait_until(lambda: listener.refused == 1)
        wait_until(lambda: not client.pipes)
        assert (listener.accepted, events, dict(server.pipes)) == (1, [], {})


def test_nothing_that_a_peer_sends_is_received_before_it_is_accepted(stream_address: str) -> None:
    with Socket() as server:
        decide = Event()

        def wait(negotiation: Negotiation) -> None:
            decide.wait()

        server.set_negotiator(wait)
        with plain_connection(server.listen(stream_address).address) as peer:
            peer.sendall(encode(Message(content=b"early")))
            wait_until(lambda: server.listeners[0].accepted)
            gevent.sleep(0.01)
            assert server.queued == 0 and server.send_all(b"not for strangers") == 0
            decide.set()
            assert server.recv(timeout=5) == b"early"


@pytest.mark.parametrize(
    "negotiator",
    [refuse, lambda negotiation: 1 / 0, lambda negotiation: [].pop(), lambda negotiation: gevent.Timeout(0).start()],
    ids=["refuses", "divides", "pops", "times out"],
)
def test_every_error_of_a_dialers_negotiator_refuses(negotiator: Callable[[Negotiation], object]) -> None:
    def failing(negotiation: Negotiation) -> None:
        negotiator(negotiation)
        gevent.sleep(1)

    with Socket() as server, Socket() as client:
        client.set_negotiator(failing)
        with pytest.raises(PipeRefused):
            client.dial(server.listen("tcp://127.0.0.1:0").address)
        assert client.dialers == () and not client.pipes
        wait_until(lambda: not server.pipes)
        client.set_negotiator(None)
        client.dial(server.listeners[0].address)


def test_other_peers_go_on_while_one_is_silent(stream_address: str) -> None:
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda negotiation: None if negotiation.recv(1) == b"!" else negotiation.refuse("rude"))
        where = server.listen(stream_address).address
        with plain_connection(where), plain_connection(where) as polite, plain_connection(where) as rude:
            wait_until(lambda: server.listeners[0].accepted == 3)
            rude.sendall(b"?")
            assert rude.recv(1) == b""
            polite.sendall(b"!" + encode(Message(content=b"good day")))
            assert server.recv(timeout=5) == b"good day"
            # Everything else goes on as well.
            server.listen("inproc://meanwhile")
            server.set_negotiator(None)
            client.dial("inproc://meanwhile")
            assert server.send_all(b"news") == 2
            assert client.recv(timeout=5) == b"news"
            server.close()


def test_a_silent_peer_is_refused_when_its_time_is_up(stream_address: str) -> None:
    with Socket({"connector.pipe.negotiate_timeout": 0.02}) as server:
        server.set_negotiator(lambda negotiation: negotiation.recv(1))
        listener = server.listen(stream_address)
        with plain_connection(listener.address) as silent:
            assert silent.recv(1) == b""
        wait_until(lambda: listener.refused == 1)


def test_a_dialer_whose_peer_is_silent_gives_up_in_time() -> None:
    listener, where = plain_listener()
    with listener, Socket({"connector.pipe.negotiate_timeout": 0.02}) as client:
        client.set_negotiator(lambda negotiation: negotiation.recv(1))
        with pytest.raises(PipeRefused, match=r"within 0\.02 s"):
            client.dial(where)
        assert client.dialers == ()


def test_a_peer_that_hangs_up_in_the_negotiation_is_refused(stream_address: str) -> None:
    errors: list[BaseException] = []

    def listen_closely(negotiation: Negotiation) -> None:
        try:
            negotiation.recv(4)
        except BaseException as error:
            errors.append(error)
            raise

    with Socket() as server:
        server.set_negotiator(listen_closely)
        listener = server.listen(stream_address)
        with plain_connection(listener.address) as peer:
            peer.sendall(b"ab")
        wait_until(lambda: listener.refused == 1)
        assert [type(error) for error in errors] == [PipeRefused]


def test_both_sides_may_speak_any_number_of_bytes_and_frames_follow_at_once(stream_address: str) -> None:
    large = bytes(range(256)) * 4000

    def ask(negotiation: Negotiation) -> None:
        assert negotiation.dialed
        negotiation.send(b"secret" + large)
        if negotiation.recv(2) != b"ok":
            negotiation.refuse("not ok")

    def answer(negotiation: Negotiation) -> None:
        assert not negotiation.dialed
        if negotiation.recv(6) != b"secret" or negotiation.recv(len(large)) != large:
            negotiation.refuse("wrong secret")
        negotiation.send(b"ok")

    with Socket() as server, Socket() as client:
        server.set_negotiator(answer)
        client.set_negotiator(ask)
        client.dial(server.listen(stream_address).address)
        client.send(b"first frame")
        assert server.recv(timeout=5) == b"first frame"
        server.send(b"and back")
        assert client.recv(timeout=5) == b"and back"


def test_no_bytes_can_be_exchanged_in_process() -> None:
    said: list[str] = []

    def speak(negotiation: Negotiation) -> None:
        for call in (lambda: negotiation.recv(1), lambda: negotiation.send(b"x")):
            try:
                call()
            except NotSupported as error:
                said.append(str(error))

    with Socket() as server, Socket() as client:
        server.set_negotiator(speak)
        client.dial(server.listen("inproc://mute").address)
        client.send(b"let in all the same")
        assert server.recv(timeout=5) == b"let in all the same"
        assert len(said) == 2


def test_a_peer_is_dialed_again_until_it_is_accepted(address: str) -> None:
    attempts = 0

    def fourth_time_lucky(negotiation: Negotiation) -> None:
        nonlocal attempts
        attempts += 1
        if attempts < 4:
            negotiation.refuse("try again")

    with Socket() as server, Socket(QUICK) as client:
        server.set_negotiator(fourth_time_lucky)
        client.dial(server.listen(address).address, {"connector.dialer.dial_async": True})
        server.wait_pipes(timeout=5)
        wait_until(lambda: client.pipes)
        client.send(b"in")
        assert server.recv(timeout=5) == b"in"
        assert attempts == 4


def test_a_negotiator_is_asked_for_each_connection_and_may_be_replaced(address: str) -> None:
    asked: list[str] = []
    with Socket() as server, Socket() as one, Socket() as two, Socket() as three:
        where = server.listen(address).address
        server.set_negotiator(lambda negotiation: asked.append("first"))
        one.dial(where)
        server.wait_pipes(1, timeout=5)
        server.set_negotiator(lambda negotiation: asked.append("second"))
        two.dial(where)
        server.wait_pipes(2, timeout=5)
        server.set_negotiator(None)
        three.dial(where)
        server.wait_pipes(3, timeout=5)
        assert asked == ["first", "second"]


def test_more_peers_than_may_negotiate_at_once_are_served_one_after_the_other() -> None:
    at_once = most = 0

    def count(negotiation: Negotiation) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        gevent.sleep(0.001)
        at_once -= 1

    with Socket() as server, Socket() as client:
        server.set_negotiator(count)
        where = server.listen("tcp://127.0.0.1:0", {"connector.listener.max_handshaking": 3}).address
        for _ in range(20):
            client.dial(where)
        server.wait_pipes(20, timeout=5)
        assert 1 <= most <= 3


def test_what_is_known_of_a_peer_is_there_for_the_decision(transport: str, address: str) -> None:
    known: list[dict[str, object]] = []
    with Socket() as server, Socket() as client:
        server.set_negotiator(lambda negotiation: known.append(dict(negotiation.identity)))
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        if transport.startswith("ipc"):
            assert set(known[0]) == {"pid", "uid", "gid"}
        elif transport in STREAMS:
            assert known == [{}]
        else:
            assert len(known) == 1


def test_a_killed_dial_ends_its_negotiation_and_leaves_nothing() -> None:
    ended = Event()

    def wait(negotiation: Negotiation) -> None:
        try:
            gevent.sleep(60)
        finally:
            ended.set()

    listener, where = plain_listener()
    with listener, Socket() as client:
        client.set_negotiator(wait)
        dialing = gevent.spawn(client.dial, where)
        peer, _ = listener.accept()
        with peer:
            dialing.kill()
            assert ended.is_set()
            assert peer.recv(1) == b""
            assert client.dialers == () and not client.pipes


def test_a_negotiation_that_ends_after_its_socket_was_closed_makes_no_pipe() -> None:
    """A negotiator that does not let itself be killed gets its way, and its connection is closed all the same."""
    finish = Event()

    def stubborn(negotiation: Negotiation) -> None:
        with suppress(gevent.GreenletExit):
            gevent.sleep(60)
        finish.set()

    server = Socket()
    server.set_negotiator(stubborn)
    with plain_connection(server.listen("tcp://127.0.0.1:0").address) as peer:
        wait_until(lambda: server.listeners[0].accepted)
        gevent.sleep(0.01)
        server.close()
        assert finish.is_set()
        assert not server.pipes
        assert peer.recv(1) == b""


# Peers that leave in the middle


@pytest.mark.parametrize("end", ["hang up", "reset", "close frame"])
def test_a_ws_peer_that_leaves_in_the_negotiation_is_refused(end: str) -> None:
    left: list[PipeRefused] = []

    def negotiator(negotiation: Negotiation) -> None:
        try:
            negotiation.recv(10)
        except PipeRefused as error:
            left.append(error)
            raise

    with Socket() as server:
        server.set_negotiator(negotiator)
        listener = server.listen("ws://127.0.0.1:0")
        with upgraded(listener.address) as peer:
            peer.send(frame(Opcode.BINARY, b"half"))
            if end == "close frame":
                peer.send(frame(Opcode.CLOSE, b"\x03\xe8"))
            elif end == "reset":
                reset(peer.sock)
            else:
                peer.close()
            wait_until(lambda: left)
        wait_until(lambda: listener.refused == 1)
        assert not server.pipes
    assert ("1000" if end == "close frame" else "in the negotiation") in left[0].reason


def test_a_negotiator_that_sends_to_a_peer_that_has_left_hears_of_it(stream_address: str) -> None:
    left: list[PipeRefused] = []

    def negotiator(negotiation: Negotiation) -> None:
        try:
            while True:
                negotiation.send(bytes(1 << 16))
        except PipeRefused as error:
            left.append(error)
            raise

    with Socket() as server:
        server.set_negotiator(negotiator)
        listener = server.listen(stream_address)
        plain_connection(listener.address).close()
        wait_until(lambda: listener.refused == 1)
        assert "closed" in left[0].reason
        assert not server.pipes


def test_a_timeout_of_somebody_else_passes_through_a_time_limit() -> None:
    for own, expected in ((60.0, gevent.Timeout), (0.001, PipeRefused)):
        with pytest.raises(expected), gevent.Timeout(0.05), time_limit(own, PipeRefused("took too long")):
            gevent.sleep(5)


def test_an_error_in_letting_a_peer_in_is_shown_and_the_next_peer_is_let_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = PeerLimits.admit
    mistakes = [ZeroDivisionError("in the limits")]

    def admit(self: PeerLimits, host: str) -> object:
        if mistakes:
            raise mistakes.pop()
        return real(self, host)

    monkeypatch.setattr(PeerLimits, "admit", admit)
    with Socket() as server:
        listener = server.listen("tcp://127.0.0.1:0")
        for _ in range(2):
            with plain_connection(listener.address) as peer:
                peer.sendall(encode(Message(content=b"x")))
                wait_until(lambda: listener.accepted == listener.refused + server.queued)
        assert server.recv(timeout=5) == b"x"
        assert listener.refused == 1
    assert "in the limits" in caplog.text


def test_a_timeout_of_a_server_that_serves_a_connection_is_no_failure_of_the_negotiator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listening, address = plain_listener()
    with listening, Socket() as server, plain_connection(address):
        server.set_negotiator(lambda negotiation: gevent.sleep(60))
        listener = server.listen("tcp://127.0.0.1:0")
        connection = TCPConnection(listening.accept()[0])
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as own:
            listener.serve(connection)
        assert caught.value is own
        assert (listener.accepted, listener.refused) == (1, 1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
