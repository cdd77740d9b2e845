"""Listening at several addresses, of a name or of all interfaces: at all of them, or an error says at which not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.errors import AddressInUse, ConnectionFailed, ConnectionRefused
from gmultisocket.testing import wait_until
from gmultisocket.transport.tcp import TCPListener
from tests.certificates import client_context, server_context
from tests.faults.process import needs, run_script

V4, V6 = gsocket.AF_INET, gsocket.AF_INET6
SCHEMES = ["tcp", "tls+tcp", "ws", "wss"]


def options_of(scheme: str, side: str) -> dict[str, Any]:
    if scheme not in ("wss", "tls+tcp"):
        return {}
    return {"transport.tls.context": client_context() if side == "dial" else server_context()}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def taken(family: int, host: str, port: int = 0) -> gsocket.socket:
    sock = gsocket.socket(family)
    sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEADDR, 1)
    try:
        if family == V6:
            sock.setsockopt(gsocket.IPPROTO_IPV6, gsocket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


def is_free(family: int, host: str, port: int) -> bool:
    try:
        taken(family, host, port).close()
    except OSError:
        return False
    return True


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what host.example means."""

    def mean(*hosts: str) -> None:
        def getaddrinfo(host: str, port: int, *rest: object) -> list[Any]:
            return [
                (V6, gsocket.SOCK_STREAM, 6, "", (host, port, 0, 0)) if ":" in host
                else (V4, gsocket.SOCK_STREAM, 6, "", (host, port))
                for host in hosts
            ]  # fmt: skip

        monkeypatch.setattr(gsocket, "getaddrinfo", getaddrinfo)

    return mean


# All interfaces


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("family", "host", "half"),
    [(V4, "0.0.0.0", "for IPv4"), (V6, "::", "for IPv6"), (V4, "127.0.0.1", "for IPv4"), (V6, "::1", "for IPv6")],
)
def test_a_star_of_which_half_is_taken_is_an_error_that_says_which(
    scheme: str, family: int, host: str, half: str
) -> None:
    with taken(family, host) as other, Socket() as server:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"another listener has the port {half}"):
            server.listen(f"{scheme}://*:{port}", options_of(scheme, "listen"))
        assert not server.listeners
        free = (V4, "0.0.0.0") if family == V6 else (V6, "::")
        assert is_free(*free, port)


def test_a_star_that_is_taken_by_another_star_names_no_half() -> None:
    with Socket() as one, Socket() as other:
        address = one.listen("tcp://*:0").address
        with pytest.raises(AddressInUse, match="another listener has the port$"):
            other.listen(address)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_address_of_a_peer_of_a_star_is_one_of_its_own_family(scheme: str, host: str) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://*:0", options_of(scheme, "listen"))
        client.dial(listener.address.replace("*", host), options_of(scheme, "dial"))
        server.wait_pipes(1, 5)
        [pipe], [dialed] = server.pipes.values(), client.pipes.values()
        assert pipe.peer_address == f"{scheme}://{host}:{port_of(dialed.local_address)}"
        assert pipe.local_address.startswith(f"{scheme}://{host}:{port_of(listener.address)}")


# Names


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("hosts", [["127.0.0.1", "::1"], ["::1", "127.0.0.1", "127.0.0.2"], ["127.0.0.1"]])
def test_a_name_is_listened_to_at_all_its_addresses_with_the_same_port(
    scheme: str, hosts: list[str], name: Callable[..., None]
) -> None:
    name(*hosts)
    with Socket() as server:
        listener = server.listen(f"{scheme}://host.example:0", options_of(scheme, "listen"))
        assert listener.address.startswith(f"{scheme}://host.example:")
        port = port_of(listener.address)
        for number, host in enumerate(hosts, 1):
            shown = f"[{host}]" if ":" in host else host
            with Socket() as client:
                options = {**options_of(scheme, "dial"), "connector.dialer.dial_timeout": 10.0}
                if options_of(scheme, "dial"):
                    options["transport.tls.server_hostname"] = "localhost"
                client.dial(f"{scheme}://{shown}:{port}", options)
                client.send(str(number).encode())
                assert server.recv(timeout=5) == str(number).encode()
        listener.close()
        for host in hosts:
            assert is_free(V6 if ":" in host else V4, host, port)


def test_localhost_is_listened_to_at_all_its_addresses() -> None:
    found = gsocket.getaddrinfo("localhost", 80, 0, gsocket.SOCK_STREAM)
    with Socket() as server, Socket() as client:
        port = port_of(server.listen("tcp://localhost:0").address)
        for number, (_, _, _, _, (host, *_)) in enumerate(found, 1):
            client.dial(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
            server.wait_pipes(number, 5)


@pytest.mark.parametrize("blocked", [0, 1, 2])
def test_a_name_with_a_taken_address_is_an_error_that_says_which(blocked: int, name: Callable[..., None]) -> None:
    hosts = ["127.0.0.1", "::1", "127.0.0.2"]
    name(*hosts)
    host = hosts[blocked]
    with taken(V6 if ":" in host else V4, host) as other, Socket() as server:
        port = other.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"another listener has the port at {host}"):
            server.listen(f"tcp://host.example:{port}")
        for free in set(hosts) - {host}:
            assert is_free(V6 if ":" in free else V4, free, port)


@pytest.mark.parametrize("failures", [1, 5, 16])
def test_a_port_that_is_taken_at_the_second_address_is_replaced_by_another(
    failures: int, name: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    name("127.0.0.1", "::1")
    others: list[gsocket.socket] = []
    real = TCPListener._bind

    def bind(self: TCPListener, family: int, address: Any, **options: bool) -> gsocket.socket:
        if family == V6 and len(others) < failures:
            try:
                others.append(taken(V6, "::1", address[1]))
            except OSError:
                # Something else on this machine has it.
                pass
        return real(self, family, address, **options)

    monkeypatch.setattr(TCPListener, "_bind", bind)
    with ExitStack() as stack, Socket() as server:
        stack.callback(lambda: [other.close() for other in others])
        if failures < 16:
            port = port_of(server.listen("tcp://host.example:0").address)
            assert port not in [other.getsockname()[1] for other in others]
            assert not is_free(V4, "127.0.0.1", port)
            assert not is_free(V6, "::1", port)
        else:
            with pytest.raises(AddressInUse):
                server.listen("tcp://host.example:0")


def test_addresses_that_this_machine_does_not_have_are_left_out(name: Callable[..., None]) -> None:
    # 198.51.100.0/24 is for documentation: no machine has an address in it.
    name("198.51.100.1", "127.0.0.1")
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://host.example:0").address.replace("host.example", "127.0.0.1"))
        name("198.51.100.1", "198.51.100.2")
        with pytest.raises(ConnectionFailed, match="cannot assign requested address"):
            server.listen("tcp://host.example:0")


def test_a_busy_address_does_not_keep_the_peers_of_another_one_out(name: Callable[..., None]) -> None:
    name("127.0.0.1", "127.0.0.2")
    with Socket() as server:
        listener = server.listen("tcp://host.example:0")
        port = port_of(listener.address)
        crowd = []
        for host in ["127.0.0.1"] * 50 + ["127.0.0.2"]:
            sock = gsocket.socket()
            sock.setblocking(False)
            sock.connect_ex((host, port))
            crowd.append(sock)
        wait_until(lambda: any(pipe.local_address.startswith("tcp://127.0.0.2") for pipe in server.pipes.values()))
        # It was accepted among the first: the addresses take turns.
        hosts = [pipe.local_address.rpartition(":")[0] for pipe in server.pipes.values()]
        assert hosts.index("tcp://127.0.0.2") <= 2
        for sock in crowd:
            sock.close()


def test_closing_ends_a_wait_for_peers_at_several_addresses(name: Callable[..., None]) -> None:
    name("127.0.0.1", "::1")
    with Socket() as server:
        listener = server.listen("tcp://host.example:0")
        gevent.sleep(0)
        listener.close()
        listener._join()
        with Socket() as client, pytest.raises(ConnectionRefused):
            client.dial(f"tcp://127.0.0.1:{port_of(listener.address)}")


# Zones


ZONES = """
import subprocess
from gmultisocket import Socket

subprocess.run("ip link set lo up; ip addr add fe80::1/64 dev lo nodad", shell=True, check=True)
for scheme in "tcp", "ws":
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://[fe80::1%lo]:0")
        client.dial(listener.address.replace("%lo", "%25lo"))
        server.wait_pipes(1, 5)
        [pipe], [dialed] = server.pipes.values(), client.pipes.values()
        port = listener.address.rpartition(":")[2]
        assert listener.address == f"{scheme}://[fe80::1%lo]:{port}", listener.address
        assert dialed.peer_address.startswith(f"{scheme}://[fe80::1%lo]:{port}"), dialed.peer_address
        assert pipe.local_address.startswith(listener.address), pipe.local_address
        assert pipe.peer_address == dialed.local_address, pipe.peer_address
        assert pipe.peer_address.startswith(f"{scheme}://[fe80::1%lo]:"), pipe.peer_address
        # What is shown can be dialed and listened at.
        Socket().dial(dialed.peer_address)
        again = client.listen(pipe.peer_address.rpartition(":")[0] + ":0")
        server.dial(again.address)
print("all")
"""


@needs("unshare -rn true", "ip -V")
def test_an_address_with_a_zone_is_shown_as_it_is_dialed() -> None:
    assert run_script(ZONES, wrapper=("unshare", "-rn")) == "all\n"


def test_a_zone_that_does_not_exist_is_an_error() -> None:
    with Socket() as client, pytest.raises(ConnectionFailed, match="fe80::1%nowhere"):
        client.dial("tcp://[fe80::1%nowhere]:80")
