"""Closing while something is going on: nothing is left behind, nobody waits for ever, and the place is free again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket
from gevent.event import Event

from gmultisocket import Socket
from gmultisocket.errors import Closed


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "tcp://*:0", "ipc://{}/socket", "ipc://@{}", "inproc://{}"])
def test_an_address_can_be_listened_to_again_as_soon_as_its_listener_is_closed(address: str, tmp_path: Path) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(address.format(tmp_path))
        gevent.sleep(0)
        for _ in range(3):
            listener.close()
            listener = server.listen(listener.address)
            client.dial(listener.address.replace("*", "127.0.0.1"))
        client.wait_pipes(3, timeout=5)


def test_closing_a_socket_that_looks_a_listeners_name_up_leaves_nothing_listening(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_up = Event()
    getaddrinfo = socket.getaddrinfo

    def slow(*arguments: Any) -> Any:
        looked_up.wait()
        return getaddrinfo(*arguments)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    server = Socket()
    listen = gevent.spawn(server.listen, "tcp://localhost:0")
    gevent.sleep(0)
    server.close()
    looked_up.set()
    with pytest.raises(Closed):
        listen.get(timeout=5)
    assert not server.listeners
