"""Losing peers and finding them again: hostile ones, refusing ones, a thousand at once, and places under a limit."""

from __future__ import annotations

import pytest

from gmultisocket import Dialer, Socket
from gmultisocket.testing import wait_until
from tests.faults.peers import crowd, free_port, frame, listening, reset

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
