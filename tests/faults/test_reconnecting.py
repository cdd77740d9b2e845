"""Losing peers and finding them again: hostile ones, refusing ones, a thousand at once, and places under a limit."""

from __future__ import annotations

import pytest

from gmultisocket import Dialer, Socket
from gmultisocket.testing import wait_until
from tests.faults.process import needs, run_script

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.1}


def test_without_a_pipe_limit_no_dialer_hears_of_other_peoples_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Dialer] = []
    monkeypatch.setattr(Dialer, "limit_changed", told.append)
    with Socket() as server, Socket(QUICKLY) as client:
        listener = server.listen("tcp://127.0.0.1:0")
        for _ in range(20):
            client.dial(listener.address)
        for pipe_id in list(client.pipes):
            client.close_pipe(pipe_id)
        wait_until(lambda: client.reconnects == 20)
    assert not told


MEETS_ITSELF = """
import fcntl, struct
from gevent import socket
from gmultisocket import Socket
from gmultisocket.errors import ConnectionRefused

with socket.socket() as sock:  # the loopback of this network namespace goes up
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh", b"lo", 1))
with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as ports:
    ports.write("20001 20001")
with Socket() as client:
    for attempt in range(3):
        try:
            client.dial("tcp://127.0.0.1:20001")
        except ConnectionRefused:
            print("refused", len(client.pipes))
    client.listen("tcp://127.0.0.1:20001")
"""


@needs("unshare -rn true")
def test_a_dialer_does_not_take_itself_for_its_peer() -> None:
    """Where the port that nobody listens to is the one that the kernel chooses for the dialing end."""
    assert run_script(MEETS_ITSELF, wrapper=("unshare", "-rn")) == "refused 0\n" * 3
