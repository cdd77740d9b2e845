"""Hosts with several addresses, of which some drop packets or refuse: dialers find the one that answers."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from gevent import Greenlet
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.core.connecting.dialer import DialerState
from gmultisocket.errors import Closed, ConnectionFailed, ConnectionRefused
from gmultisocket.testing import wait_until
from gmultisocket.testing._bench import attempt
from gmultisocket.testing._fork import in_forked_child
from gmultisocket.transport import racing
from gmultisocket.transport.racing import alternate
from tests.certificates import authority, client_context, server_context
from tests.faults.peers import free_port
from tests.faults.process import needs, run_script

V4, V6 = gsocket.AF_INET, gsocket.AF_INET6
SCHEMES = ["tcp", "tls+tcp", "ws", "wss"]
NAME = "host.example"
RESTING = {"connector.dialer.min_reconnect_time": 60.0, "connector.dialer.max_reconnect_time": 60.0}

Names = Callable[..., None]


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Sets what the name means: hosts and ports, in the resolver's order."""

    def mean(*addresses: tuple[str, int]) -> None:
        found = [
            (V6, gsocket.SOCK_STREAM, 6, "", (host, port, 0, 0)) if ":" in host
            else (V4, gsocket.SOCK_STREAM, 6, "", (host, port))
            for host, port in addresses
        ]  # fmt: skip
        monkeypatch.setattr(gsocket, "getaddrinfo", lambda *args: found)

    return mean


@contextmanager
def black_hole(host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """An address that drops every packet: its backlog is full."""
    family = V6 if ":" in host else V4
    with gsocket.socket(family) as full:
        full.bind((host, 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [gsocket.socket(family) for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex((host, port))
        # The first of them has been accepted by the kernel; the others wait for an answer that does not come.
        wait_until(lambda: any(_connected(filler) for filler in fillers))
        yield host, port
        for filler in fillers:
            filler.close()


def _connected(sock: gsocket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def options_of(scheme: str, side: str) -> dict[str, Any]:
    if scheme not in ("wss", "tls+tcp"):
        return {}
    certificate = authority().issue_cert(NAME)
    context = client_context() if side == "dial" else server_context(certificate)
    return {"transport.tls.context": context}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def greenlets() -> int:
    return len([each for each in gc.get_objects() if isinstance(each, Greenlet) and each.started and not each.dead])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("holes", [(["127.0.0.1"]), (["127.0.0.1", "::1"]), (["::1", "127.0.0.1", "127.0.0.1"])])
def test_addresses_that_drop_packets_do_not_keep_a_dialer_from_one_that_answers(
    scheme: str, holes: list[str], name: Names
) -> None:
    with Socket() as server, Socket() as client, gevent.Timeout(60):
        listener = server.listen(f"{scheme}://127.0.0.1:0", options_of(scheme, "listen"))
        contexts = [black_hole(host) for host in holes]
        dead = [context.__enter__() for context in contexts]
        try:
            name(*dead, ("127.0.0.1", port_of(listener.address)))
            before = descriptors()
            client.dial(f"{scheme}://{NAME}:80", options_of(scheme, "dial"))
            client.send(b"found")
            assert server.recv(timeout=5) == b"found"
            # Both ends of the connection are in this process, and the losers are closed.
            assert descriptors() == before + 2
        finally:
            for context in contexts:
                context.__exit__(None, None, None)


def test_the_first_address_is_taken_if_it_answers(name: Names) -> None:
    with Socket() as first, Socket() as second, Socket() as client:
        ports = [port_of(sock.listen("tcp://127.0.0.1:0").address) for sock in (first, second)]
        name(*(("127.0.0.1", port) for port in ports))
        client.dial(f"tcp://{NAME}:80")
        first.wait_pipes(1, 5)
        assert not second.pipes


def test_a_slow_address_still_wins_if_no_other_answers(name: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(racing, "_DELAY", 0.0)
    with Socket() as client, gsocket.socket() as slow, black_hole() as dead:
        slow.bind(("127.0.0.1", 0))
        slow.listen(0)
        with gsocket.create_connection(slow.getsockname()):
            name(slow.getsockname(), dead, ("127.0.0.1", free_port()))
            dialing = gevent.spawn(client.dial, f"tcp://{NAME}:80", {"connector.dialer.dial_timeout": 30.0})
            gevent.sleep(0.05)
            assert not dialing.ready()
            slow.accept()[0].close()
            dialing.get(timeout=30)


@pytest.mark.parametrize("no_family", [V4, V6])
def test_a_machine_without_a_family_uses_the_other_one(
    no_family: int, name: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = gsocket.socket

    def make(family: int = V4, *args: Any, **options: Any) -> gsocket.socket:
        if family == no_family and "fileno" not in options:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *args, **options)

    with Socket() as server, Socket() as client:
        host = "127.0.0.1" if no_family == V6 else "::1"
        listener = server.listen(f"tcp://[{host}]:0" if ":" in host else f"tcp://{host}:0")
        port = port_of(listener.address)
        monkeypatch.setattr(gsocket, "socket", make)
        for order in (["::1", "127.0.0.1"], ["127.0.0.1", "::1"]):
            name(*((host, port) for host in order))
            client.dial(f"tcp://{NAME}:80")
        server.wait_pipes(2, 5)


NO_IPV6 = """
import subprocess
from gevent import socket
from gmultisocket import Socket

subprocess.run("ip link set lo up; echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6", shell=True, check=True)
found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 5000, 0, 0)),
         (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 5000, 0, 0)),
         (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 5000))]
socket.getaddrinfo = lambda *args: found
for host in "*", "127.0.0.1", "host.example":
    if host == "host.example":
        del found[0]
    with Socket() as server, Socket() as client:
        listener = server.listen(f"tcp://{host}:5000")
        client.dial("tcp://host.example:5000")
        client.send(b"found")
        print(listener.address, server.recv(timeout=5).decode())
"""


@needs("unshare -rn true", "ip -V")
def test_without_ipv6_dialers_and_listeners_use_ipv4() -> None:
    answer = run_script(NO_IPV6, wrapper=("unshare", "-rn"))
    hosts = ["*", "127.0.0.1", "host.example"]
    assert answer.split("\n")[:-1] == [f"tcp://{host}:5000 found" for host in hosts]


def test_the_error_names_every_address_with_its_own_error(name: Names) -> None:
    port = free_port()
    name(("127.0.0.1", port), ("::1", port), ("255.255.255.255", port))
    with Socket() as client, pytest.raises(ConnectionFailed) as caught:
        client.dial(f"tcp://{NAME}:80")
    why = caught.value.why
    assert "127.0.0.1: connection refused" in why
    assert "::1: connection refused" in why
    assert "255.255.255.255: " in why
    assert not isinstance(caught.value, ConnectionRefused)


def test_the_error_says_that_nobody_listens_if_all_refuse(name: Names) -> None:
    port = free_port()
    name(("127.0.0.1", port), ("::1", port))
    with Socket() as client, pytest.raises(ConnectionRefused, match=r"nobody listens there, at 127\.0\.0\.1 and ::1"):
        client.dial(f"tcp://{NAME}:80")


def test_a_host_without_an_address_is_an_error(name: Names) -> None:
    name()
    with Socket() as client, pytest.raises(ConnectionFailed, match="the host has no address"):
        client.dial(f"tcp://{NAME}:80")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_error_of_the_dial_timeout_names_what_did_not_answer(scheme: str, name: Names) -> None:
    with black_hole() as dead, Socket() as client:
        before = descriptors()
        name(("127.0.0.1", free_port()), dead)
        with pytest.raises(
            ConnectionFailed,
            match=r"no connection within 0\.1 s: 127\.0\.0\.1: connection refused; 127\.0\.0\.1 does not answer",
        ):
            client.dial(f"{scheme}://{NAME}:80", {"connector.dialer.dial_timeout": 0.1, **options_of(scheme, "dial")})
        assert descriptors() == before


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("end", ["close the dialer", "close the socket", "give up", "kill"])
def test_nothing_is_left_of_attempts_that_were_ended(
    scheme: str, end: str, name: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(racing, "_DELAY", 0.0)
    with black_hole() as one, black_hole("::1") as other, Socket() as client:
        name(one, other, one)
        # What the test itself imports or makes at first is there now.
        options = {**options_of(scheme, "dial"), **RESTING}
        before, running = descriptors(), greenlets()
        address = f"{scheme}://{NAME}:80"
        if end in ("give up", "kill"):
            dialing = gevent.spawn(attempt, client.dial, address, options)
            wait_until(lambda: descriptors() == before + 2)
            dialing.kill(gevent.GreenletExit if end == "kill" else TimeoutError)
        else:
            dialer = client.dial(address, {**options, "connector.dialer.dial_async": True})
            wait_until(lambda: descriptors() == before + 2)
            # The dialer's greenlet, and no other.
            assert greenlets() == running + 1
            (dialer if end == "close the dialer" else client).close()
        wait_until(lambda: descriptors() == before and greenlets() == running)


def test_a_dialer_that_is_closed_while_addresses_are_tried_says_so(name: Names) -> None:
    with black_hole() as one, black_hole() as other, Socket() as client:
        name(one, other)
        dialing = gevent.spawn(client.dial, f"tcp://{NAME}:80")
        wait_until(lambda: bool(client.dialers) and client.dialers[0].state is DialerState.DIALING)
        client.dialers[0].close()
        with pytest.raises(Closed):
            dialing.get(timeout=5)


def test_a_wrong_certificate_is_an_error_and_no_reason_to_try_another_address(name: Names) -> None:
    with Socket() as wrong, Socket() as right, Socket() as client:
        options = {"transport.tls.context": server_context(authority().issue_cert("other.example"))}
        addresses = [wrong.listen("tls://127.0.0.1:0", options).address]
        addresses.append(right.listen("tls://127.0.0.1:0", options_of("wss", "listen")).address)
        name(*(("127.0.0.1", port_of(address)) for address in addresses))
        with pytest.raises(ConnectionFailed, match="certificate"):
            client.dial(f"tls://{NAME}:80", options_of("wss", "dial"))
        assert right.listeners[0].accepted == 0


def test_a_forked_child_does_not_go_on_with_its_parents_addresses(name: Names) -> None:
    with gsocket.socket() as second, black_hole() as dead, Socket() as client:
        second.bind(("127.0.0.1", 0))
        second.listen()
        name(dead, second.getsockname())
        dialing = gevent.spawn(client.dial, f"tcp://{NAME}:80")
        wait_until(lambda: bool(client.dialers) and client.dialers[0].state is DialerState.DIALING)

        def child(report: int) -> None:
            gevent.sleep(2 * racing._DELAY)
            second.setblocking(False)
            with pytest.raises(BlockingIOError):
                second.accept()

        in_forked_child(child)
        dialing.get(timeout=10)
        second.accept()[0].close()


@pytest.mark.parametrize(
    ("families", "order"),
    [
        ("6644", "6464"), ("4466", "4646"), ("6664", "6466"), ("4", "4"), ("", ""), ("46", "46"), ("444466", "464644"),
    ],
)  # fmt: skip
def test_families_alternate_and_the_resolver_chooses_the_first(families: str, order: str) -> None:
    found = [({"4": V4, "6": V6}[family], 1, 6, "", (str(number), 80)) for number, family in enumerate(families)]
    ordered = alternate(found)
    assert "".join({V4: "4", V6: "6"}[family] for family, *_ in ordered) == order
    for family in (V4, V6):
        assert [each[3] for each in ordered if each[0] == family] == [each[4] for each in found if each[0] == family]


def test_an_address_that_the_resolver_repeats_is_tried_once() -> None:
    one = (V4, gsocket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
    assert len(alternate([one, one])) == 1
