"""Connections that the kernel gives up: the reason says so, with TLS as without it."""

from __future__ import annotations

import pytest

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from tests.certificates import dial_options, listen_options
from tests.faults.process import needs, run_script
from tests.faults.proxy import Proxy
from tests.peers import only_pipe

SCHEMES = ["tcp", "tls+tcp", "ws", "wss"]


def options_of(scheme: str) -> tuple[dict[str, object], dict[str, object]]:
    """Return what a listener and a dialer need."""
    return (listen_options(), dial_options()) if scheme in ("tls+tcp", "wss") else ({}, {})


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("traffic", [False, True])
def test_a_reset_is_called_a_reset(scheme: str, traffic: bool) -> None:
    listening, dialing = options_of(scheme)
    once = {"connector.dialer.reconnect": False}
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://127.0.0.1:0", listening)
        with Proxy(listener) as proxy:
            client.dial(proxy.address_of(listener), {**dialing, **once})
            server.wait_pipes(timeout=5)
            pipe = only_pipe(server)
            if traffic:
                client.send(b"first")
                assert server.recv(timeout=5) == b"first"
            proxy.reset_all()
            wait_until(lambda: pipe.closed)
            assert pipe.reason == "receiving failed: connection reset by peer"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_end_of_a_stream_is_not_called_a_reset(scheme: str) -> None:
    listening, dialing = options_of(scheme)
    with Socket() as server:
        address = server.listen(f"{scheme}://127.0.0.1:0", listening).address
        with Socket() as client:
            client.dial(address, dialing)
            client.send(b"all of it")
            assert server.recv(timeout=5) == b"all of it"
            pipe = only_pipe(server)
        wait_until(lambda: pipe.closed)
        assert pipe.reason.startswith("the peer closed the connection")


#: Runs in a network of its own, which then loses everything. Prints the reasons for which pipes closed.
LOST = """
import subprocess, sys
import gevent
from gmultisocket import Socket
from tests.certificates import dial_options, listen_options

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
keepalive = {f"transport.tcp.keep_alive_{name}": 1 for name in ("period", "interval", "probes")}
pairs = []
for scheme in sys.argv[1:]:
    secure = scheme in ("tls+tcp", "wss")
    server, client = Socket(keepalive), Socket(keepalive)
    address = server.listen(f"{scheme}://127.0.0.1:0", listen_options() if secure else {}).address
    client.dial(address, {"connector.dialer.reconnect": False, **(dial_options() if secure else {})})
    server.wait_pipes(1, timeout=10)
    client.send(b"x")
    server.recv(timeout=10)
    pairs.append((server, client))
pipes = [pipe for pair in pairs for sock in pair for pipe in sock.pipes.values()]
while any(pipe._connection.unacknowledged() for pipe in pipes):
    # The kernel's keepalive waits for this too.
    gevent.sleep(0.01)
subprocess.run(["iptables", "-A", "INPUT", "-i", "lo", "-j", "DROP"], check=True)
with gevent.Timeout(35):
    while not all(pipe.closed for pipe in pipes):
        gevent.sleep(0.01)
for pipe in pipes:
    print(pipe.reason)
for pair in pairs:
    for sock in pair:
        sock.close(linger=0)
"""


@needs("unshare -rn iptables -L -n", "unshare -rn ip link")
def test_a_peer_that_was_lost_is_no_peer_that_has_closed_the_connection() -> None:
    reasons = run_script(LOST, *SCHEMES, wrapper=("unshare", "-rn")).splitlines()
    assert reasons == ["receiving failed: connection timed out"] * 2 * len(SCHEMES)
