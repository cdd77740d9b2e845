"""Dialers: one pipe to one address, again and again, and ever more slowly where there is no peer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Address, Dialer, Pipe, Socket
from gmultisocket.core.connecting import dialer as dialer_module
from gmultisocket.errors import Closed, ConnectionFailed, ConnectionRefused, PipeRefused
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.transport import Connection
from gmultisocket.transport.tcp import TCPDialer
from tests.addresses import plain_listener
from tests.oracle import descriptors

QUICK = {"connector.dialer.min_reconnect_time": 0.005, "connector.dialer.max_reconnect_time": 0.02}
ASYNC = {"connector.dialer.dial_async": True}


class Pauses:
    """The pauses of all dialers, which take no time."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def sleep(self, seconds: float = 0) -> None:
        self.asked.append(seconds)
        gevent.sleep(0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    found = Pauses()

    class Gevent:
        spawn = staticmethod(gevent.spawn)
        sleep = staticmethod(found.sleep)
        Timeout = gevent.Timeout

    monkeypatch.setattr(dialer_module, "gevent", Gevent)
    return found


def resetting(count: int) -> Iterator[FakeStream]:
    """Connections whose peer hangs up at once."""
    for _ in range(count):
        yield FakeStream([b""])


# Again and again


def test_the_pauses_are_short_again_after_a_pipe_that_lasted_though_it_brought_nothing() -> None:
    options = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 60.0}
    listener, address = plain_listener()
    with closing(listener), Socket(options) as client:
        dialer = client.dial(address)
        for lasted in (False, False, False, False, True):
            peer, _ = listener.accept()
            wait_until(lambda: dialer.pipe)
            if lasted:
                assert dialer._pause > 0.011
                dialer._connected_at -= 3600
            peer.close()
            wait_until(lambda: not dialer.pipe)
        assert dialer._pause == 0.01


def test_a_dialer_dials_again_when_its_pipe_is_lost(address: str) -> None:
    with Socket() as server, Socket(QUICK) as client:
        dialer = client.dial(server.listen(address).address)
        for number in range(5):
            server.wait_pipes(timeout=5)
            (pipe,) = server.pipes.values()
            pipe.close()
            wait_until(lambda pipe=pipe: server.pipes and pipe.id not in server.pipes)
            client.send(b"%d" % number)
            assert server.recv(timeout=5) == b"%d" % number
        assert dialer.reconnects == client.reconnects == 5
        assert dialer.attempts >= 6


def test_a_dialer_finds_a_listener_that_was_started_again(address: str) -> None:
    with Socket(QUICK) as client:
        server = Socket()
        listener = server.listen(address)
        where = Address.parse(address).with_location(listener.address.partition("://")[2])
        dialer = client.dial(listener.address)
        for _ in range(3):
            server.close()
            wait_until(lambda: dialer.last_error is not None)
            server = Socket()
            server.listen(where)
            server.wait_pipes(timeout=5)
            client.send(b"found you")
            assert server.recv(timeout=5) == b"found you"
            assert dialer.last_error is None
        server.close()


def test_a_dialer_that_may_not_dial_again_does_not(address: str) -> None:
    with Socket() as server, Socket({**QUICK, "connector.dialer.reconnect": False}) as client:
        dialer = client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        server.close_pipe(next(iter(server.pipes)))
        wait_until(lambda: not client.pipes)
        gevent.sleep(0.05)
        assert dialer.attempts == 1 and not dialer.closed and dialer.pipe is None


def test_a_dialer_in_the_background_tries_until_somebody_listens(address: str) -> None:
    with Socket() as nobody:
        listener = nobody.listen(address)
        where = Address.parse(address).with_location(listener.address.partition("://")[2])
    with Socket() as server, Socket({**QUICK, **ASYNC}) as client:
        dialer = client.dial(listener.address)
        assert dialer.attempts == 0
        wait_until(lambda: dialer.attempts >= 3)
        assert isinstance(dialer.last_error, ConnectionRefused)
        server.listen(where)
        client.send(b"at last", timeout=5)
        assert server.recv(timeout=5) == b"at last"
        assert (dialer.last_error, dialer.reconnects) == (None, 0)


def test_failed_attempts_leave_nothing_for_the_garbage_collector(address: str) -> None:
    # Thousands of dialers that have lost their peer would make it look at everything, again and again.
    with Socket() as nobody:
        address = nobody.listen(address).address
    often = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.002}
    with Socket({**ASYNC, **often}) as sock:
        dialer = sock.dial(address)
        wait_until(lambda: dialer.attempts > 5)
        gc.collect()
        gc.disable()
        try:
            before = dialer.attempts
            wait_until(lambda: dialer.attempts >= before + 20)
            assert gc.collect() < 20
        finally:
            gc.enable()


def test_a_peer_that_accepts_and_hangs_up_at_once_does_not_end_the_redialing() -> None:
    """A pipe that has closed before its dialer has seen that it was open must not be taken for one that is open."""
    with FakeTransport(resetting(200)) as fake, Socket({**QUICK, **ASYNC}) as client:
        dialer = client.dial(fake.address, {"connector.dialer.min_reconnect_time": 0.001})
        client.set_option("connector.dialer.max_reconnect_time", 0.002)
        wait_until(lambda: dialer.attempts >= 50)
        good = FakeStream()
        fake._to_dial.clear()
        fake.will_connect(good)
        wait_until(lambda: dialer.pipe is not None and fake.given[-1] is good)


# Ever more slowly


def test_pauses_grow_by_a_random_factor_up_to_the_longest(pauses: Pauses) -> None:
    options = {"connector.dialer.min_reconnect_time": 0.1, "connector.dialer.max_reconnect_time": 8.0, **ASYNC}
    with FakeTransport() as fake, Socket(options) as client:
        dialer = client.dial(fake.address)
        wait_until(lambda: dialer.attempts >= 60)
    asked = pauses.asked[:60]
    assert 0.05 <= asked[0] <= 0.1
    assert all(pause <= 8.0 for pause in asked)
    # By a factor of 1.1 at least: after 50 pauses the longest is reached, and then half of it at least is kept.
    assert all(4.0 <= pause <= 8.0 for pause in asked[50:])
    # Jitter: no two are alike.
    assert len(set(asked)) == len(asked)


def test_pauses_grow_without_end_where_there_is_no_longest(pauses: Pauses) -> None:
    options = {"connector.dialer.min_reconnect_time": 1.0, "connector.dialer.max_reconnect_time": 0.0, **ASYNC}
    with FakeTransport() as fake, Socket(options) as client:
        dialer = client.dial(fake.address)
        wait_until(lambda: dialer.attempts >= 100)
    assert max(pauses.asked) > 1000


def test_dialers_that_lost_their_peer_at_once_do_not_come_back_at_once(pauses: Pauses) -> None:
    with FakeTransport() as fake, Socket(ASYNC) as client:
        dialers = [client.dial(fake.address) for _ in range(50)]
        wait_until(lambda: all(dialer.attempts >= 2 for dialer in dialers))
    first = pauses.asked[:50]
    assert len(set(first)) == 50
    assert min(first) < 0.06 and max(first) > 0.09


def test_a_peer_that_hangs_up_at_once_is_dialed_ever_more_slowly(pauses: Pauses) -> None:
    with FakeTransport(resetting(60)) as fake, Socket(ASYNC) as client:
        dialer = client.dial(fake.address)
        wait_until(lambda: dialer.attempts >= 60)
    assert min(pauses.asked[50:60]) >= 4.0


def test_a_peer_that_refuses_is_dialed_ever_more_slowly(pauses: Pauses) -> None:
    def refuse(negotiation: object) -> None:
        raise PipeRefused("no")

    with FakeTransport(FakeStream() for _ in range(1000)) as fake, Socket(ASYNC) as client:
        client.set_negotiator(refuse)
        dialer = client.dial(fake.address)
        wait_until(lambda: dialer.attempts >= 60)
        assert isinstance(dialer.last_error, PipeRefused)
    assert min(pauses.asked[50:60]) >= 4.0


def test_a_peer_that_has_proved_to_be_one_is_dialed_quickly_again(pauses: Pauses) -> None:
    message = b"\0\x10\0\0\0\0\0\1x"
    with FakeTransport() as fake, Socket(ASYNC) as client:
        dialer = client.dial(fake.address)
        wait_until(lambda: dialer.attempts >= 30)
        assert pauses.asked[-1] > 0.5
        fake.will_connect(FakeStream([message, b""]))
        assert client.recv(timeout=5) == b"x"
        count = len(pauses.asked)
        wait_until(lambda: len(pauses.asked) > count + 1)
    assert min(pauses.asked[count - 1 : count + 2]) <= 0.1


def test_held_dialers_do_not_all_dial_at_the_moment_at_which_the_limit_is_lifted(pauses: Pauses) -> None:
    with FakeTransport() as fake, Socket({**ASYNC, "connector.pipe_limit": 1}) as client:
        for _ in range(12):
            fake.will_connect(FakeStream())
        dialers = [client.dial(fake.address) for _ in range(11)]
        wait_until(lambda: sum(dialer.state.value == "held" for dialer in dialers) == 10)
        pauses.asked.clear()
        client.set_option("connector.pipe_limit", -1)
        wait_until(lambda: all(dialer.pipe for dialer in dialers))
        assert len(set(pauses.asked)) == 10
        assert all(0 <= pause <= 0.1 for pause in pauses.asked)


# Giving up


def test_a_dial_that_takes_too_long_fails_and_leaves_nothing() -> None:
    with Socket() as client:
        listener, where = plain_listener(backlog=0)
        with listener:
            fillers = [gsocket.socket() for _ in range(4)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
            before = descriptors()
            with pytest.raises(ConnectionFailed, match=r"no connection within 0\.05 s"):
                client.dial(where, {"connector.dialer.dial_timeout": 0.05})
            assert client.dialers == ()
            assert descriptors() == before
            for filler in fillers:
                filler.close()


def test_a_timeout_of_the_callers_around_a_dial_passes_through_and_leaves_nothing() -> None:
    streams = [FakeStream(), FakeStream()]
    with FakeTransport(streams) as fake, Socket() as client:
        client.set_negotiator(lambda negotiation: gevent.sleep(60))
        with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as mine:
            client.dial(fake.address)
        assert caught.value is mine
        dialing = gevent.spawn(client.dial, fake.address)
        wait_until(lambda: fake.attempts == 2)
        dialing.kill()
        assert all(stream.closed for stream in streams)
        assert client.dialers == () and not client.pipes


def test_a_failed_dial_leaves_nothing_that_dials_on() -> None:
    with FakeTransport() as fake, Socket(QUICK) as client:
        for _ in range(3):
            with pytest.raises(ConnectionRefused):
                client.dial(fake.address)
        assert client.dialers == ()
        gevent.sleep(0.03)
        assert fake.attempts == 3


@pytest.mark.parametrize("state", ["dialing", "paused", "held", "connected"])
def test_a_dialer_may_be_closed_in_every_state(state: str) -> None:
    listener, where = plain_listener()
    with listener, Socket({**ASYNC, "connector.pipe_limit": 1}) as client:
        if state == "held":
            first = client.dial(where)
            wait_until(lambda: first.pipe)
        if state == "dialing":
            client.set_negotiator(lambda negotiation: gevent.sleep(60))
        if state == "paused":
            listener.close()
        dialer = client.dial(where)
        wait_until(lambda: dialer.state.value == state)
        dialer.close()
        dialer.close()
        assert dialer.closed and dialer not in client.dialers
        assert "closed" in repr(dialer)
        attempts = dialer.attempts
        gevent.sleep(0.01)
        assert dialer.attempts == attempts
        assert (dialer.pipe is not None) == (state == "connected")


def test_no_pipe_comes_of_a_dialer_that_was_closed_while_it_dialed() -> None:
    listener, where = plain_listener()
    with listener, Socket() as client:
        client.set_negotiator(lambda negotiation: negotiation.recv(1))
        dialing = gevent.spawn(client.dial, where)
        peer, _ = listener.accept()
        with peer:
            assert client.stop_dial(where) == 1
            with pytest.raises(Closed):
                dialing.get(timeout=5)
            assert not client.pipes
            assert peer.recv(1) == b""


def test_a_dialer_says_where_it_stands(address: str) -> None:
    with Socket() as server, Socket() as client:
        where = server.listen(address).address
        dialer = client.dial(where)
        assert isinstance(dialer, Dialer)
        assert repr(dialer) == f"<Dialer {where} connected>"


def test_a_pipe_that_cannot_be_added_is_a_failed_dial() -> None:
    def mistake(kind: str, pipe: Pipe) -> None:
        if kind == "add":
            raise ValueError("a mistake")

    with Socket() as server, Socket() as client:
        client._for_protocol().on_pipe(mistake)
        with pytest.raises(ConnectionFailed, match="ValueError: a mistake"):
            client.dial(server.listen("tcp://127.0.0.1:0").address)
        assert not client.pipes


class Strange(Connection):
    """A connection of no kind that there is."""

    local_address = peer_address = "strange://"
    closed = False

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        pass

    def hung_up(self, may_half_close: bool = True) -> bool:
        return False


def test_a_transport_that_makes_a_connection_of_no_known_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    strange = Strange()
    monkeypatch.setattr(TCPDialer, "connect", lambda dialer: strange)
    with Socket() as client, pytest.raises(ConnectionFailed, match="Strange is none of the kinds of connection"):
        client.dial("tcp://127.0.0.1:1")
    assert strange.closed
