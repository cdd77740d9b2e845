from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.errors import AddressError, AddressInUse, BadOptionValue, ConnectionFailed, ConnectionRefused
from gmultisocket.options import Options
from gmultisocket.testing import StreamTransportChecks, wait_until
from gmultisocket.transport import tcp
from gmultisocket.transport.tcp import TRANSPORT, TCPConnection, TCPDialer, TCPListener, format_address
from tests.addresses import plain_connection
from tests.certificates import listen_options

BAD = ("tcp://127.0.0.1", "tcp://:80", "tcp://127.0.0.1:65536", "tcp://::1:80", "tcp://127.0.0.1:80/path")


class TestTcp(StreamTransportChecks):
    address = "tcp://127.0.0.1:0"
    bad_addresses = BAD


class TestTcpOverIPv6(StreamTransportChecks):
    address = "tcp://[::1]:0"
    bad_addresses = ("tcp://[::1]", "tcp://[::1:80", "tcp://[nonsense]:80")


def make_dialer(address: str, options: dict[str, Any] | None = None) -> TCPDialer:
    return TCPDialer(Address.parse(address), Options(options))


def make_listener(address: str, options: dict[str, Any] | None = None) -> TCPListener:
    return TCPListener(Address.parse(address), Options(options))


@contextmanager
def listening(address: str = "tcp://127.0.0.1:0", options: dict[str, Any] | None = None) -> Iterator[TCPListener]:
    listener = make_listener(address, options)
    try:
        listener.listen()
        yield listener
    finally:
        listener.close()


@contextmanager
def connected(options: dict[str, Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """The dialing and the accepting gevent socket of a connection made with these options on both sides."""
    with listening(options=options) as listener:
        ends = []
        try:
            ends.append(make_dialer(listener.address, options).connect_socket())
            ends.append(listener.accept_socket())
            yield ends[0], ends[1]
        finally:
            for end in ends:
                end.close()


# Listening


def test_the_kernel_chooses_a_port_for_port_0() -> None:
    with listening() as one, listening() as other:
        ports = {int(listener.address.rpartition(":")[2]) for listener in (one, other)}
    assert len(ports) == 2 and 0 not in ports


def test_a_listener_is_found_by_the_address_that_was_given_and_by_the_real_one() -> None:
    with Socket() as sock:
        first, second = sock.listen("tcp://127.0.0.1:0"), sock.listen("tcp://127.0.0.1:0")
        assert first.given_address == "tcp://127.0.0.1:0"
        assert sock.stop_listen(first.address) == 1
        assert sock.listeners == (second,)
        assert sock.stop_listen("tcp://127.0.0.1:0") == 1
        assert not sock.listeners


def test_an_ipv6_address_keeps_its_brackets() -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://[::1]:0").address
        assert address.startswith("tcp://[::1]:")
        client.dial(address)
        client.send(b"six")
        assert server.recv(timeout=5) == b"six"
        (pipe,) = client.pipes.values()
        assert pipe.peer_address == address
        assert pipe.local_address.startswith("tcp://[::1]:")


def test_a_listener_on_one_ipv6_address_leaves_ipv4_alone() -> None:
    with listening("tcp://[::1]:0") as listener:
        port = listener.address.rpartition(":")[2]
        with pytest.raises(ConnectionRefused):
            make_dialer(f"tcp://127.0.0.1:{port}").connect()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_star_listens_on_every_interface_of_both_families(host: str) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://*:0").address
        assert address.startswith("tcp://*:")
        client.dial(address.replace("*", host))
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"


def test_an_ipv4_peer_of_a_dual_stack_listener_has_its_own_address() -> None:
    with listening("tcp://*:0") as listener:
        dialed = make_dialer(listener.address.replace("*", "127.0.0.1")).connect()
        accepted = listener.accept()
        try:
            assert accepted.peer_address == dialed.local_address
        finally:
            dialed.close()
            accepted.close()


@pytest.mark.parametrize("address", ["tcp://:80", "tcp://**:80", "tcp://*.example:80"])
def test_nothing_but_a_star_means_every_interface(address: str) -> None:
    with pytest.raises(AddressError):
        make_listener(address)


def test_a_star_cannot_be_dialed() -> None:
    with pytest.raises(AddressError, match=r"\* stands for every interface and can only be listened on"):
        make_dialer("tcp://*:80")


def test_port_0_cannot_be_dialed() -> None:
    with pytest.raises(AddressError, match="port 0 can only be listened on"):
        make_dialer("tcp://127.0.0.1:0")


def test_a_port_can_be_listened_to_again_at_once_though_connections_of_the_last_time_linger() -> None:
    with Socket() as client:
        with Socket() as server:
            address = server.listen("tcp://127.0.0.1:0").address
            client.dial(address, {"connector.dialer.reconnect": False})
            server.wait_pipes(1, 5)
            # The side that closes first keeps the connection in TIME_WAIT.
        with Socket() as server:
            assert server.listen(address).address == address


def test_a_taken_port_is_named_in_the_error() -> None:
    with listening() as first:
        second = make_listener(first.address)
        with pytest.raises(AddressInUse, match="another listener has the port") as caught:
            second.listen()
        assert caught.value.address == first.address
        assert isinstance(caught.value.__cause__, OSError)


def test_an_address_of_another_machine_cannot_be_listened_to() -> None:
    # 192.0.2.0/24 is for documentation: no machine has an address in it.
    with pytest.raises(ConnectionFailed, match="cannot assign requested address") as caught:
        make_listener("tcp://192.0.2.1:0").listen()
    assert not isinstance(caught.value, AddressInUse)


def test_reuse_port_lets_several_listen_at_one_port() -> None:
    options = {"transport.tcp.reuse_port": True}
    with listening(options=options) as first, listening(first.address, options) as second:
        assert first.address == second.address
        with pytest.raises(AddressInUse):
            make_listener(first.address).listen()


def test_the_backlog_is_as_long_as_the_option_says() -> None:
    with listening(options={"connector.listener.backlog": 1}) as listener:
        waiting: list[gsocket.socket] = []
        try:
            # The kernel holds one connection more than it was told. A further one is not answered.
            for _ in range(3):
                sock = gsocket.socket()
                waiting.append(sock)
                sock.settimeout(0.2)
                outcome = sock.connect_ex(("127.0.0.1", int(listener.address.rpartition(":")[2])))
            assert outcome != 0
        finally:
            for sock in waiting:
                sock.close()


# Dialing


def test_a_refused_dial_says_so() -> None:
    with listening() as listener:
        address = listener.address
    with pytest.raises(ConnectionRefused, match="nobody listens there") as caught:
        make_dialer(address).connect()
    assert caught.value.address == address
    assert isinstance(caught.value, ConnectionRefusedError), "code that expects the built-in error finds it"
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_dial_that_nobody_answers_ends_with_the_dial_timeout() -> None:
    with listening(options={"connector.listener.backlog": 1}) as listener, Socket() as sock:
        port = int(listener.address.rpartition(":")[2])
        fillers = [gsocket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            with pytest.raises(ConnectionFailed, match=r"no connection within 0\.3 s"):
                sock.dial(listener.address, {"connector.dialer.dial_timeout": 0.3})
        finally:
            for filler in fillers:
                filler.close()


class Resolver:
    """Stands in for ``getaddrinfo``: what each name means, in the order in which it is asked for."""

    def __init__(self, **answers: list[list[tuple[str, int]] | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *args: Any) -> list[Any]:
        self.asked.append(host)
        answers = self.answers[host.replace(".", "_")]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return [(gsocket.AF_INET, gsocket.SOCK_STREAM, 6, "", name) for name in answer]


@pytest.fixture
def use_resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    return lambda resolver: monkeypatch.setattr(gsocket, "getaddrinfo", resolver)


def bound_port(listener: TCPListener) -> int:
    return int(listener.address.rpartition(":")[2])


def test_every_address_of_a_name_is_tried_in_order(use_resolver: Callable[[Any], None]) -> None:
    with listening() as gone:
        pass
    with listening() as listener:
        resolver = Resolver(
            peer_example=[[("127.0.0.1", bound_port(gone)), ("127.0.0.1", bound_port(listener))]],
        )
        use_resolver(resolver)
        connection = make_dialer("tcp://peer.example:80").connect()
        try:
            assert connection.peer_address == listener.address
        finally:
            connection.close()


def test_the_last_failure_is_told_when_no_address_of_a_name_answers(use_resolver: Callable[[Any], None]) -> None:
    with listening() as one, listening() as other:
        ports = [bound_port(one), bound_port(other)]
    use_resolver(Resolver(peer_example=[[("127.0.0.1", port) for port in ports]]))
    with pytest.raises(ConnectionRefused, match=r"tcp://peer\.example:80: nobody listens there"):
        make_dialer("tcp://peer.example:80").connect()


def test_a_name_is_looked_up_anew_at_every_attempt(use_resolver: Callable[[Any], None]) -> None:
    with Socket() as old, Socket() as new, Socket() as client:
        ports = [int(sock.listen("tcp://127.0.0.1:0").address.rpartition(":")[2]) for sock in (old, new)]
        resolver = Resolver(peer_example=[[("127.0.0.1", port)] for port in ports])
        use_resolver(resolver)
        client.dial("tcp://peer.example:80", {"connector.dialer.min_reconnect_time": 0.01})
        client.send(b"to the old one")
        assert old.recv(timeout=5) == b"to the old one"
        old.close()
        wait_until(lambda: client.reconnects == 1)
        client.send(b"to the new one")
        assert new.recv(timeout=5) == b"to the new one"
        assert resolver.asked[:2] == ["peer.example"] * 2


def test_a_name_that_nobody_knows_is_a_failed_dial(use_resolver: Callable[[Any], None]) -> None:
    use_resolver(Resolver(peer_example=[gsocket.gaierror(gsocket.EAI_NONAME, "Name or service not known")]))
    with pytest.raises(ConnectionFailed, match="the host name cannot be resolved: Name or service not known") as caught:
        make_dialer("tcp://peer.example:80").connect()
    assert not isinstance(caught.value, ConnectionRefused)
    assert caught.value.address == "tcp://peer.example:80"


def test_a_name_that_cannot_be_written_in_dns_is_a_failed_dial() -> None:
    with pytest.raises(ConnectionFailed, match="the host name cannot be resolved"):
        make_dialer(f"tcp://{'ä' * 70}:80").connect()


def test_a_dialer_goes_on_looking_a_name_up_until_it_is_known(use_resolver: Callable[[Any], None]) -> None:
    with Socket() as server, Socket() as client:
        port = int(server.listen("tcp://127.0.0.1:0").address.rpartition(":")[2])
        unknown = gsocket.gaierror(gsocket.EAI_AGAIN, "Temporary failure in name resolution")
        use_resolver(Resolver(peer_example=[unknown, unknown, [("127.0.0.1", port)]]))
        options = {"connector.dialer.dial_async": True, "connector.dialer.min_reconnect_time": 0.01}
        dialer = client.dial("tcp://peer.example:80", options)
        client.send(b"found", timeout=5)
        assert server.recv(timeout=5) == b"found"
        assert dialer.attempts == 3


def test_a_slow_lookup_counts_against_the_dial_timeout(use_resolver: Callable[[Any], None]) -> None:
    never = Event()
    use_resolver(lambda *args: never.wait())
    with Socket() as sock, pytest.raises(ConnectionFailed, match=r"no connection within 0\.05 s"):
        sock.dial("tcp://peer.example:80", {"connector.dialer.dial_timeout": 0.05})


def test_an_ip_address_is_never_looked_up(use_resolver: Callable[[Any], None]) -> None:
    resolver = Resolver()
    use_resolver(resolver)
    for address in ("tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://*:0"):
        with listening(address) as listener:
            make_dialer(listener.address.replace("*", "127.0.0.1")).connect().close()
    assert not resolver.asked


def test_a_name_can_be_listened_to() -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://localhost:0").address
        assert address.startswith("tcp://localhost:")
        client.dial(address)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"


# Options of a connection


def test_small_messages_leave_at_once_unless_asked_otherwise() -> None:
    for value in (True, False):
        with connected({"transport.tcp.no_delay": value}) as ends:
            for sock in ends:
                assert bool(sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY)) is value
    with connected() as ends:
        assert all(sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_NODELAY) for sock in ends)


def test_keepalive_is_on_with_its_values() -> None:
    values = {
        "transport.tcp.keep_alive_period": 7.4,
        "transport.tcp.keep_alive_interval": 3,
        "transport.tcp.keep_alive_probes": 5,
    }
    with connected(values) as ends:
        for sock in ends:
            assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE)
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_KEEPIDLE) == 7
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_KEEPINTVL) == 3
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_KEEPCNT) == 5


def test_keepalive_has_the_defaults_of_go() -> None:
    with connected() as ends:
        for sock in ends:
            assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE)
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_KEEPIDLE) == 15
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_KEEPINTVL) == 15


def test_keepalive_can_be_turned_off() -> None:
    with connected({"transport.tcp.keep_alive": False}) as ends:
        assert not any(sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE) for sock in ends)


def test_the_user_timeout_is_set_in_milliseconds() -> None:
    with connected({"transport.tcp.user_timeout": 2.5}) as ends:
        for sock in ends:
            assert sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_USER_TIMEOUT) == 2500


def test_linger_is_the_systems_unless_set() -> None:
    def linger(sock: Any) -> Any:
        return struct.unpack("ii", sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, 8))

    with connected() as ends:
        assert all(not linger(sock)[0] for sock in ends)


@pytest.mark.parametrize("seconds", [1, 3, 32767, -2])
def test_a_linger_that_would_stop_the_process_is_refused(seconds: int) -> None:
    """SO_LINGER blocks close(2) on a non-blocking socket, too, and with it the event loop."""
    with pytest.raises(BadOptionValue, match=r"close\(linger=\.\.\.\)"):
        Options({"transport.tcp.linger": seconds})
    with Socket() as sock, pytest.raises(BadOptionValue):
        sock.listen(f"tcp://127.0.0.1:0?transport.tcp.linger={seconds}")


def test_a_linger_of_0_resets_the_connection() -> None:
    with connected({"transport.tcp.linger": 0}) as (one, other):
        one.close()
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_buffers_are_set_each_by_its_own_option() -> None:
    # The kernel doubles what it is asked for, and reports that.
    with connected({"transport.tcp.read_buffer": 10_000, "transport.tcp.write_buffer": 20_000}) as ends:
        for sock in ends:
            assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF) == 20_000
            assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_SNDBUF) == 40_000


def test_an_address_can_set_the_options_of_its_connections() -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://127.0.0.1:0?transport.tcp.keep_alive_period=40s").address
        client.dial(f"{address}?transport.tcp.noDelay=false")
        server.wait_pipes(1, 5)
        (accepted,), (dialed,) = server.pipes.values(), client.pipes.values()
        assert isinstance(accepted._connection, TCPConnection) and isinstance(dialed._connection, TCPConnection)
        protocol = gsocket.IPPROTO_TCP
        assert accepted._connection._sock.getsockopt(protocol, gsocket.TCP_KEEPIDLE) == 40
        assert accepted._connection._sock.getsockopt(protocol, gsocket.TCP_NODELAY)
        assert not dialed._connection._sock.getsockopt(protocol, gsocket.TCP_NODELAY)


def test_the_kernels_buffers_are_set_by_the_option_of_their_name() -> None:
    options = {"transport.tcp.read_buffer": 50_000, "transport.tcp.write_buffer": 100_000}
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address, options)
        [pipe] = client.pipes.values()
        sock = pipe._connection._sock  # type: ignore[attr-defined]
        # The kernel doubles what it is asked for.
        assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_RCVBUF) == 100_000
        assert sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_SNDBUF) == 200_000


# Connections


def test_what_the_peer_has_not_acknowledged_is_counted() -> None:
    with listening(options={"transport.tcp.read_buffer": 4096}) as listener:
        one = make_dialer(listener.address).connect()
        other = listener.accept()
        assert isinstance(one, TCPConnection) and isinstance(other, TCPConnection)
        try:
            sent = 0
            try:
                while True:
                    sent += one.send(bytes(65536))
            except BlockingIOError:
                pass
            assert 0 < one.unacknowledged() <= sent
            assert other.read_exactly(sent) == bytes(sent)
            wait_until(lambda: one.unacknowledged() == 0)
        finally:
            one.close()
            other.close()


def test_a_socket_that_has_lost_its_name_is_shown_as_unknown() -> None:
    assert format_address("tcp", None) == "tcp://?"
    assert format_address("tcp", ()) == "tcp://?"
    assert format_address("tcp", ("10.0.0.1", 80)) == "tcp://10.0.0.1:80"
    assert format_address("tcp", ("fe80::1", 80, 0, 0)) == "tcp://[fe80::1]:80"


def test_the_transport_knows_its_scheme() -> None:
    assert TRANSPORT.schemes == ("tcp",)


def test_an_ipv4_port_that_is_taken_on_a_system_without_ipv6_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(listener: TCPListener, family: int, *args: Any, **more: Any) -> None:
        raise OSError(errno.EAFNOSUPPORT if family == gsocket.AF_INET6 else errno.EADDRINUSE, "no")

    monkeypatch.setattr(TCPListener, "_bind", bind)
    with Socket() as server, pytest.raises(AddressInUse):
        server.listen("tcp://*:0")


# Socket options that the kernel refuses

REFUSED = {"no_delay": "TCP_NODELAY", "keep_alive_probes": "_KEEPCNT", "user_timeout": "_USER_TIMEOUT"}
#: No kernel has an option with this number.
NO_OPTION = 9999


def refuse(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    name = REFUSED[option]
    monkeypatch.setattr(tcp.gsocket if name == "TCP_NODELAY" else tcp, name, NO_OPTION)


@pytest.mark.parametrize("option", REFUSED)
@pytest.mark.parametrize("scheme", ["tcp", "tls+tcp", "ws", "wss"])
def test_a_listener_does_not_open_with_an_option_that_the_kernel_refuses_for_every_connection(
    scheme: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, option)
    secure = listen_options() if scheme in ("tls+tcp", "wss") else {}
    with Socket({"transport.tcp.user_timeout": 7.0}) as server:
        with pytest.raises(BadOptionValue, match=f"transport.tcp.{option}"):
            server.listen(f"{scheme}://127.0.0.1:0", secure)
        assert not server.listeners


def test_an_option_that_the_kernel_refuses_later_is_logged_once_with_its_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("tcp://127.0.0.1:0")
        with monkeypatch.context() as patch:
            refuse(patch, "keep_alive_probes")
            for _ in range(3):
                with plain_connection(listener.address) as peer:
                    assert peer.recv(1) == b""
            (record,) = [each for each in caplog.records if each.exc_info]
            assert "transport.tcp.keep_alive_probes" in str(record.exc_info)
        client.dial(listener.address)
        server.wait_pipes(timeout=5)


def test_a_dialer_says_which_option_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen("tcp://127.0.0.1:0").address
        refuse(monkeypatch, "keep_alive_probes")
        with pytest.raises(ConnectionFailed, match=r"transport\.tcp\.keep_alive_probes"):
            client.dial(address)
