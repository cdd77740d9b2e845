"""Peers that connect and say nothing, or too little, in numbers; and functions of this side that take their time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Socket
from gmultisocket.core.connecting import waitingroom
from gmultisocket.core.connecting.negotiation import Negotiation
from gmultisocket.testing import wait_until
from gmultisocket.transport.wshandshake import UpgradeRequest
from tests.addresses import plain_connection
from tests.certificates import dial_options, listen_options
from tests.faults.test_half_handshakes import HELLO, half_open, port_of
from tests.transport.wspeers import RawPeer, request

LONG = 20.0
#: Kinds of listeners whose peers are not in when they have connected: an address, and whether a negotiator is needed.
KINDS = {
    "tls": ("tls+tcp://127.0.0.1:0", False),
    "wss": ("wss://127.0.0.1:0", False),
    "ws": ("ws://127.0.0.1:0", False),
    "negotiator": ("tcp://127.0.0.1:0", True),
    "tls and negotiator": ("tls+tcp://127.0.0.1:0", True),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """A kind of listener; the test runs once for each."""
    name: str = request.param
    return name


def options_of(kind: str, secure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    return secure() if KINDS[kind][0].startswith(("tls", "wss")) else {}


def greet(negotiation: Negotiation) -> None:
    if negotiation.recv(5) != b"hello":
        negotiation.refuse("impolite")


def say_hello(negotiation: Negotiation) -> None:
    negotiation.send(b"hello")


@contextlib.contextmanager
def honest(kind: str, address: str) -> Iterator[Socket]:
    """Connect an honest peer."""
    with Socket() as client:
        if KINDS[kind][1]:
            client.set_negotiator(say_hello)
        client.dial(address, options_of(kind, dial_options))
        yield client


@pytest.fixture
def server(kind: str) -> Iterator[tuple[Socket, Callable[..., str]]]:
    """A socket and a function that makes it listen; the negotiator is set if the kind has one."""
    with Socket() as sock:
        if KINDS[kind][1]:
            sock.set_negotiator(greet)

        def listen(**options: Any) -> str:
            values = {name.replace("__", "."): value for name, value in options.items()}
            return sock.listen(KINDS[kind][0], {**options_of(kind, listen_options), **values}).address

        yield sock, listen
        sock.close(linger=0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("data", [b"", HELLO], ids=["silent", "half a hello"])
def test_2000_silent_peers_hold_up_nobody(kind: str, server: tuple[Socket, Callable[..., str]], data: bytes) -> None:
    if data and kind in ("ws", "negotiator"):
        data = b"GET / HTTP/1.1\r\n" if kind == "ws" else b"hel"
    sock, listen = server
    address = listen(connector__listener__backlog=4096)
    # With 128 places, and a second for each of those that say nothing, the honest peer would wait for 15 s.
    with half_open(port_of(address), 2000, data), gevent.Timeout(8), honest(kind, address) as client:
        client.send(b"here I am")
        assert sock.recv(timeout=LONG) == b"here I am"
        assert len(sock.pipes) == 1


def test_a_full_waiting_room_lets_the_longest_silent_peer_go(
    kind: str, server: tuple[Socket, Callable[..., str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in ("ws", "wss"):
        pytest.skip("the port has places of its own: see tests/transport/test_wsport.py")
    monkeypatch.setattr(waitingroom, "PATIENCE", 0.05)
    sock, listen = server
    address = listen(connector__listener__max_waiting=5)
    with half_open(port_of(address), 20) as silent, honest(kind, address) as client:
        client.send(b"here I am")
        assert sock.recv(timeout=LONG) == b"here I am"
        assert silent[0].recv(1) == b""
        listener = sock.listeners[0]
        # As many as had to leave for those that came after them.
        wait_until(lambda: listener.refused >= 15, LONG)
        assert listener.accepted == 21


def test_silent_peers_take_no_place_of_the_pipe_limit(kind: str, server: tuple[Socket, Callable[..., str]]) -> None:
    sock, listen = server
    sock.set_option("connector.pipe_limit", 2)
    address = listen()
    with half_open(port_of(address), 50), honest(kind, address) as first, honest(kind, address) as second:
        for client in (first, second):
            client.send(b"here I am")
            assert sock.recv(timeout=LONG) == b"here I am"
        assert len(sock.pipes) == 2


@pytest.mark.parametrize("over_limit", ["wait", "refuse"])
def test_of_many_that_shake_hands_at_once_as_many_get_in_as_may(
    kind: str, server: tuple[Socket, Callable[..., str]], over_limit: str
) -> None:
    sock, listen = server
    sock.set_option("connector.pipe_limit", 3)
    most = 0

    def count(event: object) -> None:
        nonlocal most
        most = max(most, len(sock.pipes))

    sock.on_pipe(count)
    address = listen(connector__listener__over_limit=over_limit)
    clients = []
    quick = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05,
             "connector.dialer.dial_async": True}  # fmt: skip
    try:
        for _ in range(12):
            client = Socket()
            clients.append(client)
            if KINDS[kind][1]:
                client.set_negotiator(say_hello)
            client.dial(address, {**options_of(kind, dial_options), **quick})
        sock.wait_pipes(3, timeout=LONG)
        for _ in range(3):
            sock.close_pipe(next(iter(sock.pipes)))
            sock.wait_pipes(3, timeout=LONG)
        assert most <= 3
        sock.set_option("connector.pipe_limit", 12)
        sock.wait_pipes(12, timeout=LONG)
    finally:
        for client in clients:
            client.close(linger=0)


def test_a_pair_is_not_kept_from_its_peer_by_a_silent_connection() -> None:
    from gmultisocket.protocol import Pair

    with Pair() as server, Pair() as client:
        address = server.listen("tls+tcp://127.0.0.1:0", listen_options()).address
        with half_open(port_of(address), 3):
            wait_until(lambda: server.socket.listeners[0].accepted == 3)
            client.dial(address, dial_options())
            client.send(b"here I am")
            assert server.recv(timeout=LONG) == b"here I am"


def test_a_dialer_that_is_not_connected_yet_takes_no_place_from_peers_that_are_in() -> None:
    silent, where = _silent_listener()
    with silent, Socket({"connector.pipe_limit": 1}) as sock, Socket() as client:
        sock.dial(where, {**dial_options(), "connector.dialer.dial_async": True})
        peer, _ = silent.accept()
        with peer:
            client.dial(sock.listen("tcp://127.0.0.1:0").address)
            client.send(b"here I am")
            assert sock.recv(timeout=LONG) == b"here I am"


def _silent_listener() -> tuple[gsocket.socket, str]:
    listener = gsocket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(8)
    listener.settimeout(LONG)
    return listener, f"tls+tcp://127.0.0.1:{listener.getsockname()[1]}"


# Functions of this side


class Slow:
    """An ``authorize`` function and a negotiator that blocks until it is told to go on, and counts."""

    def __init__(self) -> None:
        self.go_on = Event()
        self.running = self.most = self.begun = 0
        self.order: list[object] = []

    def __call__(self, question: UpgradeRequest | Negotiation) -> None:
        self.begun += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.order.append(question.query if isinstance(question, UpgradeRequest) else question.peer_address)
        try:
            self.go_on.wait()
            gevent.sleep(0.005)
        finally:
            self.running -= 1


AUTHORIZE = "transport.ws.listener.authorize"
DECIDING = ["ws", "wss", "negotiator", "tls and negotiator"]


@pytest.fixture(params=DECIDING)
def deciding(request: pytest.FixtureRequest) -> Iterator[tuple[str, Socket, Slow, dict[str, Any]]]:
    """A socket with a slow function, for each way to have one."""
    slow = Slow()
    with Socket() as sock:
        options = options_of(request.param, listen_options)
        if KINDS[request.param][1]:
            sock.set_negotiator(slow)
        else:
            options[AUTHORIZE] = slow
        yield request.param, sock, slow, options
        slow.go_on.set()
        sock.close(linger=0)


@pytest.mark.timeout(120)
def test_a_slow_function_of_this_side_cuts_nobody_and_runs_once_for_each_peer(
    deciding: tuple[str, Socket, Slow, dict[str, Any]],
) -> None:
    kind, sock, slow, options = deciding
    few = {"connector.listener.max_deciding": 4, "connector.listener.max_handshaking": 8,
           "connector.pipe.negotiate_timeout": 1, "connector.listener.handshake_timeout": 1}  # fmt: skip
    listener = sock.listen(KINDS[kind][0], {**options, **few})
    clients = [Socket() for _ in range(40)]
    dials = [gevent.spawn(client.dial, listener.address, options_of(kind, dial_options)) for client in clients]
    try:
        wait_until(lambda: slow.running == 4, LONG)
        # Everything that limits a peer's time is over before the functions have ended.
        gevent.sleep(1.5)
        assert slow.begun == 4
        slow.go_on.set()
        gevent.joinall(dials, timeout=LONG, raise_error=True)
        sock.wait_pipes(40, timeout=LONG)
        assert (slow.begun, slow.most, listener.refused) == (40, 4, 0)
    finally:
        gevent.killall(dials)
        for client in clients:
            client.close(linger=0)


def test_those_that_wait_for_a_function_are_asked_about_in_the_order_in_which_they_came() -> None:
    slow = Slow()
    with Socket() as sock, contextlib.ExitStack() as stack:
        options = {AUTHORIZE: slow, "connector.listener.max_deciding": 2}
        address = sock.listen("ws://127.0.0.1:0", options).address
        for number in range(10):
            peer = stack.enter_context(RawPeer(address))
            peer.send(request(f"/?{number}"))
            listener = sock.listeners[0]
            wait_until(lambda: listener.accepted == number + 1)  # noqa: B023, it ends in this turn
            gevent.sleep(0)
        slow.go_on.set()
        sock.wait_pipes(10, timeout=LONG)
        assert slow.order == [str(number) for number in range(10)]
        sock.close(linger=0)


def test_nobody_is_asked_about_a_peer_that_has_gone_while_it_waited(
    deciding: tuple[str, Socket, Slow, dict[str, Any]],
) -> None:
    kind, sock, slow, options = deciding
    if kind == "negotiator":
        pytest.skip("a peer of plain bytes may have ended its own direction only")
    listener = sock.listen(KINDS[kind][0], {**options, "connector.listener.max_deciding": 1})
    with Socket() as first, Socket() as ghost, Socket() as last:
        dials = [gevent.spawn(first.dial, listener.address, options_of(kind, dial_options))]
        wait_until(lambda: slow.running == 1, LONG)
        dials.append(gevent.spawn(ghost.dial, listener.address, options_of(kind, dial_options)))
        wait_until(lambda: listener._room.functions.waiting == 1, LONG)
        dials[-1].kill()
        ghost.close(linger=0)
        dials.append(gevent.spawn(last.dial, listener.address, options_of(kind, dial_options)))
        wait_until(lambda: listener._room.functions.waiting == 2, LONG)
        slow.go_on.set()
        sock.wait_pipes(2, timeout=LONG)
        wait_until(lambda: listener.refused == 1)
        assert slow.begun == 2
        gevent.killall(dials)


def test_a_function_that_never_ends_is_ended_by_its_own_limit(
    deciding: tuple[str, Socket, Slow, dict[str, Any]],
) -> None:
    kind, sock, slow, options = deciding
    listener = sock.listen(KINDS[kind][0], {**options, "connector.pipe.decide_timeout": 0.05})
    with Socket() as client:
        client.dial(listener.address, {**options_of(kind, dial_options), "connector.dialer.dial_async": True})
        wait_until(lambda: listener.refused >= 1, LONG)
        slow.go_on.set()
        sock.wait_pipes(1, timeout=LONG)
        client.close(linger=0)


def test_a_negotiator_that_waits_for_its_peer_keeps_no_other_from_running(stream_address: str) -> None:
    with Socket() as sock, contextlib.ExitStack() as stack:
        sock.set_negotiator(greet)
        address = sock.listen(stream_address, {"connector.listener.max_deciding": 1}).address
        for _ in range(5):
            stack.enter_context(plain_connection(address))
        polite = stack.enter_context(plain_connection(address))
        polite.sendall(b"hello")
        sock.wait_pipes(1, timeout=LONG)


def test_the_headers_function_of_a_dialer_runs_before_the_listener_waits_for_it() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("ws://127.0.0.1:0", {"connector.listener.handshake_timeout": 0.05})
        accepted: list[int] = []

        def headers() -> dict[str, str]:
            gevent.sleep(0.2)
            accepted.append(listener.accepted)
            return {}

        client.dial(listener.address, {"transport.ws.headers": headers})
        assert accepted == [0]
