"""The listening sockets of one listener."""

from __future__ import annotations

import errno

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket.errors import Closed
from gmultisocket.testing import nothing_left
from gmultisocket.transport.listening import ListeningSockets


class _UnixSocket(gsocket.socket):
    """A socket of a system that shuts no listening socket down, such as macOS."""

    def shutdown(self, how: int) -> None:
        raise OSError(errno.ENOTCONN, "Socket is not connected")


@pytest.mark.parametrize("number", [1, 2])
def test_all_are_closed_where_the_system_shuts_no_listening_socket_down(number: int) -> None:
    def accept() -> None:
        with pytest.raises((Closed, OSError)):
            listening.accept()

    with nothing_left():
        socks = [_UnixSocket() for _ in range(number)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
            sock.listen()
        listening = ListeningSockets(socks)
        accepting = gevent.spawn(accept)
        gevent.sleep(0)
        listening.close()
        listening.close()
        assert all(sock.closed for sock in socks)
        accepting.get(timeout=5)
