"""Bare gevent sockets with a 4-byte length in front of each content: a program without a library."""

from __future__ import annotations

import struct
from typing import Any

from gevent import sleep, socket
from gevent.server import StreamServer

from .base import FAN_OUT, Contestant

__all__ = ["Adapter"]

_LENGTH = struct.Struct("!I")
_READ_SIZE = 65536


class Adapter(Contestant):
    green = True

    def __init__(self) -> None:
        self._listener: Any = None
        self._socket: Any = None
        self._buffer = bytearray()
        self._peers: list[Any] = []
        self.send, self.recv, self.publish = self._send, self._recv, self._publish

    def listen(self, purpose: str, address: str) -> str:
        if address.startswith("ipc://"):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address.removeprefix("ipc://"))
        else:
            self._listener = socket.socket()
            self._listener.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(4096)
        if purpose == FAN_OUT:
            StreamServer(self._listener, self._keep).start()
        return address

    def dial(self, purpose: str, address: str) -> None:
        scheme, _, place = address.partition("://")
        if scheme == "ipc":
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(place)
        else:
            host, _, port = place.rpartition(":")
            self._socket = socket.create_connection((host, int(port)))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def frame_size(self, size: int) -> int:
        return _LENGTH.size + size

    def wait_peers(self, count: int) -> None:
        while len(self._peers) < count:
            sleep(0.005)

    def burst(self, content: bytes, count: int) -> None:
        self._write((_LENGTH.pack(len(content)) + content) * count)

    def _accept(self) -> None:
        self._socket, _ = self._listener.accept()
        if self._socket.family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _send(self, content: bytes) -> None:
        self._socket.sendall(_LENGTH.pack(len(content)) + content)

    def _recv(self) -> bytes:
        buffer = self._buffer
        while len(buffer) < 4 or len(buffer) < 4 + _LENGTH.unpack_from(buffer)[0]:
            if self._socket is None:
                self._accept()
            data = self._socket.recv(_READ_SIZE)
            if not data:
                raise ConnectionError("the peer closed the connection")
            buffer += data
        end = 4 + _LENGTH.unpack_from(buffer)[0]
        content = bytes(buffer[4:end])
        del buffer[:end]
        return content

    def _keep(self, peer: Any, address: object) -> None:
        """Hold a connection and read from it, as any server would."""
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers.append(peer)
        while peer.recv(_READ_SIZE):
            pass

    def _publish(self, content: bytes) -> None:
        self._write(_LENGTH.pack(len(content)) + content)

    def _write(self, data: bytes) -> None:
        """Write the same bytes to every peer's kernel buffer, without waiting."""
        size = len(data)
        for peer in self._peers:
            if peer._sock.send(data) != size:
                raise ConnectionError("a peer reads too slowly for a publisher without queues")
