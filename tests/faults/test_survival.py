"""Only close() ends a dialer or a listener: an error of a function that they call is reported, and they go on."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Negotiation, Socket
from gmultisocket.address import Address
from gmultisocket.core.connecting.dialer import DialerState
from gmultisocket.core.connecting.listener import ListenerState
from gmultisocket.errors import Closed, ConnectionFailed, MultiSocketError
from gmultisocket.options import Options
from gmultisocket.testing import wait_until
from gmultisocket.transport import Connection, Transport, TransportDialer, TransportListener, register, unregister
from gmultisocket.transport.tcp import TCPDialer, TCPListener
from tests.faults.peers import reset
from tests.faults.process import run_script
from tests.transport.wspeers import RawPeer, request

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}
IN_BACKGROUND = {**QUICKLY, "connector.dialer.dial_async": True}
#: An interval in which nothing that was killed can have come back, and a greenlet has had many turns.
TURNS = 20


class Odd(BaseException):
    """An exception that nobody thinks of."""


def fail(error: type[BaseException]) -> Any:
    raise error("a mistake")


def leak_a_timeout() -> Any:
    with gevent.Timeout(0.001):
        gevent.sleep(10)


def kill_the_running_greenlet() -> Any:
    gevent.kill(gevent.getcurrent(), block=False)
    gevent.sleep(10)


MISTAKES: dict[str, Callable[[], Any]] = {
    "ImportError": lambda: fail(ImportError),
    "OSError": lambda: fail(OSError),
    "Closed": lambda: fail(Closed),
    "MemoryError": lambda: fail(MemoryError),
    "BaseException": lambda: fail(Odd),
    "GreenletExit": lambda: fail(GreenletExit),
    "Timeout": leak_a_timeout,
    "kill": kill_the_running_greenlet,
}


@pytest.fixture(params=list(MISTAKES))
def mistake(request: pytest.FixtureRequest) -> Callable[[], Any]:
    return MISTAKES[request.param]


class Faulty(Transport):
    """tcp, with functions that fail a number of times."""

    schemes = ("faulty",)

    def __init__(self) -> None:
        self.mistake: Callable[[], Any] | None = None
        self.left = 0

    def may_fail(self) -> None:
        if self.left:
            self.left -= 1
            assert self.mistake is not None
            self.mistake()

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        faulty = self

        class Dialer(TCPDialer):
            def connect(self) -> Connection:
                faulty.may_fail()
                return super().connect()

        return Dialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        faulty = self

        class Listener(TCPListener):
            def accept(self) -> Connection:
                faulty.may_fail()
                return super().accept()

        return Listener(address, options)


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    transport = Faulty()
    register(transport)
    yield transport
    unregister(transport)


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def exchange(server: Socket, client: Socket) -> None:
    client.send(b"here", timeout=5)
    assert server.recv(timeout=5) == b"here"


# Dialers


def test_a_dialer_outlives_every_error_of_its_transport(
    mistake: Callable[[], Any], faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    with Socket() as server, Socket() as client:
        port = server.listen("tcp://127.0.0.1:0").address
        faulty.mistake, faulty.left = mistake, 3
        seen: list[MultiSocketError | None] = []
        dialer = client.dial(port.replace("tcp", "faulty"), IN_BACKGROUND)
        wait_until(lambda: dialer.last_error is not None or dialer.attempts > 3)
        seen.append(dialer.last_error)
        exchange(server, client)
        assert dialer.attempts == 4
        assert isinstance(seen[0], MultiSocketError)
        assert dialer.last_error is None
        assert len(errors(caplog)) <= 1


def test_a_dialer_says_once_what_nobody_expected(faulty: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    faulty.mistake, faulty.left = MISTAKES["ImportError"], 20
    with Socket() as client:
        dialer = client.dial("faulty://127.0.0.1:1", IN_BACKGROUND)
        wait_until(lambda: dialer.attempts > 10)
        [record] = errors(caplog)
        assert "dialing faulty://127.0.0.1:1 failed by an unexpected error" in record.getMessage()
        assert record.exc_info is not None and record.exc_info[0] is ImportError
        assert "unexpected ImportError: a mistake" in str(dialer.last_error)


def test_a_dial_that_blocks_translates_every_error(mistake: Callable[[], Any], faulty: Faulty) -> None:
    faulty.mistake, faulty.left = mistake, 1
    with Socket() as client:
        with pytest.raises(MultiSocketError):
            client.dial("faulty://127.0.0.1:1", QUICKLY)
        assert not client.dialers


def test_a_dialer_outlives_every_error_after_its_first_connection(mistake: Callable[[], Any], faulty: Faulty) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address.replace("tcp", "faulty"), QUICKLY)
        exchange(server, client)
        faulty.mistake, faulty.left = mistake, 2
        for pipe in list(server.pipes.values()):
            pipe.close()
        wait_until(lambda: client.reconnects == 1)
        exchange(server, client)


def test_a_dialer_outlives_every_error_of_a_headers_function(mistake: Callable[[], Any]) -> None:
    with Socket() as server, Socket() as client:
        calls = 0

        def headers() -> dict[str, str]:
            nonlocal calls
            calls += 1
            if calls <= 2:
                mistake()
            return {}

        address = server.listen("ws://127.0.0.1:0").address
        dialer = client.dial(address, {**IN_BACKGROUND, "transport.ws.headers": headers})
        exchange(server, client)
        assert dialer.attempts == 3


@pytest.mark.parametrize("side", ["dialer", "listener"])
def test_both_sides_outlive_every_error_of_a_negotiator(mistake: Callable[[], Any], side: str) -> None:
    with Socket() as server, Socket() as client:
        calls = 0

        def negotiator(negotiation: Negotiation) -> None:
            nonlocal calls
            calls += 1
            if calls <= 2:
                mistake()

        (client if side == "dialer" else server).set_negotiator(negotiator)
        client.dial(server.listen("tcp://127.0.0.1:0").address, IN_BACKGROUND)
        # A dialer does not know what the listener's negotiator says: what it sends is lost with the connection.
        server.wait_pipes(1, 5)
        exchange(server, client)
        assert calls == 3


def test_a_time_limit_of_the_library_ends_a_headers_function_that_blocks() -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("ws://127.0.0.1:0").address
        options = {"transport.ws.headers": lambda: gevent.sleep(30), "connector.dialer.dial_timeout": 0.05}
        with pytest.raises(ConnectionFailed, match=r"no connection within 0\.05 s"):
            client.dial(address, options)


def test_close_ends_a_dialer_even_in_a_function_that_catches_everything() -> None:
    inside = Event()

    def headers() -> dict[str, str]:
        inside.set()
        try:
            gevent.sleep(30)
        except BaseException:  # noqa: B036
            pass
        return {}

    with Socket() as server, Socket() as client:
        address = server.listen("ws://127.0.0.1:0").address
        dialer = client.dial(address, {**IN_BACKGROUND, "transport.ws.headers": headers})
        inside.wait(5)
        dialer.close()
        dialer._join()
        assert not client.pipes
        assert dialer.attempts == 1


@pytest.mark.parametrize("state", [DialerState.PAUSED, DialerState.DIALING])
def test_killing_a_dialers_greenlet_ends_the_greenlet_and_not_the_dialer(state: DialerState) -> None:
    with gsocket.socket() as full, Socket() as client:
        full.bind(("127.0.0.1", 0))
        if state is DialerState.DIALING:
            full.listen(0)
        with gsocket.socket() as filler:
            if state is DialerState.DIALING:
                filler.connect(full.getsockname())
            dialer = client.dial(f"tcp://127.0.0.1:{full.getsockname()[1]}", IN_BACKGROUND)
            wait_until(lambda: dialer.state is state)
            greenlet = dialer._greenlet
            assert greenlet is not None
            greenlet.kill(timeout=5)
            assert greenlet.dead
            attempts = dialer.attempts
            wait_until(lambda: dialer.attempts > attempts)


def test_a_system_exit_in_a_dialer_reaches_the_main_greenlet_and_the_dialer_goes_on(faulty: Faulty) -> None:
    faulty.mistake, faulty.left = (lambda: fail(SystemExit)), 1
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://127.0.0.1:0").address.replace("tcp", "faulty")
        with pytest.raises(SystemExit):
            client.dial(address, IN_BACKGROUND)
            gevent.sleep(5)
        exchange(server, client)


# Listeners


def test_a_listener_outlives_every_error_of_accept(
    mistake: Callable[[], Any], faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    if mistake is MISTAKES["Closed"]:
        pytest.skip("Closed is how accept() says that there will be no more connections")
    faulty.mistake, faulty.left = mistake, 3
    with Socket() as server, Socket() as client:
        listener = server.listen("faulty://127.0.0.1:0")
        client.dial(listener.address.replace("faulty", "tcp"))
        exchange(server, client)
        assert faulty.left == 0
        assert listener.state is ListenerState.LISTENING
        assert len(errors(caplog)) == 1


def test_a_listener_outlives_every_error_of_a_hook(mistake: Callable[[], Any], address: str) -> None:
    with Socket() as server, Socket() as client:
        left = 2

        def hook(kind: str, pipe: object) -> None:
            nonlocal left
            if left and kind == "add":
                left -= 1
                mistake()

        server._connector.events.hook = hook
        listener = server.listen(address)
        client.dial(listener.address, IN_BACKGROUND)

        def arrives() -> bool:
            # What is sent to a pipe that the listener closes is lost.
            client.send(b"here", timeout=5)
            return not left and bool(server.queued)

        wait_until(arrives)
        assert listener.state is ListenerState.LISTENING


@pytest.mark.parametrize("scheme", ["tcp", "ws", "wss"])
def test_killing_an_accept_loop_ends_the_greenlet_and_not_the_listener(scheme: str) -> None:
    from tests.certificates import dial_options, listen_options

    secure = scheme == "wss"
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://127.0.0.1:0", listen_options() if secure else {})
        loops = [each for each in gc.get_objects() if type(each).__name__ == "AcceptLoop" and not each._stopped]
        gevent.sleep(0)
        greenlets = [loop._greenlet for loop in loops if loop._greenlet is not None and not loop._greenlet.dead]
        assert len(greenlets) == (1 if scheme == "tcp" else 2)
        gevent.killall(greenlets, timeout=5)
        assert all(greenlet.dead for greenlet in greenlets)
        client.dial(listener.address, dial_options() if secure else {})
        exchange(server, client)


def test_peers_that_reset_while_a_handshake_ends_leave_no_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[object] = []
    monkeypatch.setattr(gevent.get_hub(), "print_exception", lambda *details: printed.append(details))
    gone = Event()

    def authorize(_: object) -> None:
        gone.wait()

    with Socket() as server:
        options = {"transport.ws.listener.authorize": authorize, "connector.listener.max_deciding": 500}
        listener = server.listen("ws://127.0.0.1:0", {**options, "connector.listener.max_handshaking": 500})
        for turn in range(1, 6):
            gone.clear()
            peers = [RawPeer(listener.address) for _ in range(100)]
            for peer in peers:
                peer.send(request())
            wait_until(lambda turn=turn: listener.accepted == 100 * turn, timeout=20)
            for peer in peers:
                reset(peer.sock)
            gone.set()
            wait_until(lambda turn=turn: listener.refused == 100 * turn, timeout=20)
    assert not printed
    assert len([record for record in caplog.records if record.levelno > logging.INFO]) == 1


# Descriptors


NO_DESCRIPTORS = """
import os, resource, sys
from pathlib import Path
import gevent
from gmultisocket import Socket
from gmultisocket.testing import wait_until

kind, folder = sys.argv[1:]
listening, dialing = "", ""
if kind in ("tls+tcp", "wss"):
    from tests import certificates
    listening = "?" + certificates.listen_query(Path(folder))
    os.environ["SSL_CERT_FILE"] = certificates.write_authority(Path(folder))[certificates.TLS.cafile.name]
address = {"ipc": f"ipc://{folder}/s", "inproc": "inproc://s"}.get(kind, f"{kind}://localhost:0") + listening
# The listener is another process: nothing but the dialer's own work has loaded anything here.
told, tell = os.pipe()
ready, say = os.pipe()
child = os.fork() if kind != "inproc" else 1
if not child:
    gevent.reinit()
    with Socket() as server:
        os.write(tell, server.listen(address).address.encode())
        server.send(server.recv(timeout=30))
        gevent.sleep(30)
address = os.read(told, 1000).decode() if kind != "inproc" else address
late = []
hook = lambda event, details: late.append(details[0]) if event == "import" and watching else None
watching = False
sys.addaudithook(hook)
with Socket({"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.02}) as client:
    dialer = client.dial(address, {"connector.dialer.dial_async": True})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    watching = True
    wait_until(lambda: dialer.attempts > 5)
    assert dialer.last_error is not None and not dialer.closed
    error = str(dialer.last_error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if kind == "inproc":
        # The first listener may import something.
        watching = False
        server = Socket()
        server.listen(address)
        watching = True
    client.send(b"x", timeout=20)
    if kind != "inproc":
        assert client.recv(timeout=20) == b"x"
    watching = False
print(late, error)
if kind != "inproc":
    os.kill(child, 9)
    os.waitpid(child, 0)
if kind == "ipc":
    os.unlink(f"{folder}/s")
"""


@pytest.mark.parametrize("kind", ["tcp", "tls+tcp", "ws", "wss", "ipc", "inproc"])
def test_a_dialer_without_a_descriptor_imports_nothing_and_connects_when_it_has_one(kind: str, tmp_path: Any) -> None:
    answer = run_script(NO_DESCRIPTORS, kind, tmp_path)
    assert answer.startswith("[] "), answer
    assert "unexpected" not in answer
