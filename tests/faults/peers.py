"""Peers that are no Sockets: plain connections that speak the wire by hand, badly, or not at all.

Everything here is gevent's and in this process; what has to be another process is in :mod:`tests.faults.process`.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

from gevent import socket

from gmultisocket import Listener
from gmultisocket.wire import TO_ONE, Decoder, Message

__all__ = [
    "connected",
    "crowd",
    "frame",
    "free_port",
    "header",
    "listening",
    "messages",
    "port_of",
    "read_message",
    "read_until_closed",
    "reset",
    "stuck",
]


def header(flags: int = TO_ONE, ttl: int = 16, hops: int = 0, distance: int = 0, length: int = 0) -> bytes:
    """Return a frame's first eight bytes, whether they make sense or not."""
    return struct.pack(">BBBBI", flags, ttl, hops, distance, length)


def frame(
    content: bytes = b"", flags: int = TO_ONE, ttl: int = 16, source: bytes = b"", destination: bytes = b""
) -> bytes:
    """Return a whole frame."""
    return header(flags, ttl, len(source) // 4, len(destination) // 4, len(content)) + source + destination + content


def messages(data: bytes) -> list[Message]:
    """Return what a peer that read these bytes has received; fails if the last frame is torn."""
    decoder = Decoder(1, 0)
    found = decoder.feed(data)
    assert decoder.error is None
    assert not decoder.pending, "the stream ends in the middle of a frame"
    return found


def port_of(listener: Listener) -> int:
    """Return the port of a tcp listener."""
    return int(listener.address.rpartition(":")[2])


def free_port() -> int:
    """Return a tcp port of loopback that nobody has, below those that the kernel gives to outgoing connections.

    For those who listen at it a second time: in between, nobody dials from it by chance.
    """
    for port in random.sample(range(20000, 32768), 1000):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen(1)
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def _connect(target: Listener | str, receive_buffer: int = 0) -> socket.socket:
    address = target if isinstance(target, str) else target.address
    scheme, _, location = address.partition("://")
    sock = socket.socket(socket.AF_UNIX if scheme == "ipc" else socket.AF_INET)
    try:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        if scheme == "ipc":
            sock.connect(location.replace("@", "\0", 1) if location.startswith("@") else location)
        else:
            host, _, port = location.rpartition(":")
            sock.connect((host, int(port)))
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def connected(target: Listener | str) -> Iterator[socket.socket]:
    """Connect to a listener, or to an address of tcp or ipc."""
    with closing(_connect(target)) as sock:
        yield sock


@contextmanager
def stuck(target: Listener | str, count: int = 1, room: int = 128) -> Iterator[list[socket.socket]]:
    """Connect peers that have little room for what is sent to them (SO_RCVBUF), and read nothing unless told to.

    With next to no room, as by default, they read slowly when they do: TCP waits before it opens so small a window.
    """
    with _all_closed() as socks:
        for _ in range(count):
            socks.append(_connect(target, receive_buffer=room))
        yield socks


@contextmanager
def crowd(target: Listener | str, count: int) -> Iterator[list[socket.socket]]:
    """Connect many peers."""
    with _all_closed() as socks:
        for _ in range(count):
            socks.append(_connect(target))
        yield socks


@contextmanager
def listening(port: int = 0, backlog: int = 1024) -> Iterator[tuple[socket.socket, str]]:
    """Listen as no Socket does; gives the listening socket, and its address for ``dial``."""
    with closing(socket.socket()) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(backlog)
        sock.settimeout(10)
        yield sock, f"tcp://127.0.0.1:{sock.getsockname()[1]}"


@contextmanager
def _all_closed() -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def reset(sock: socket.socket) -> None:
    """Close a connection by a reset, as a crashing machine or an angry peer does."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_message(sock: socket.socket, decoder: Decoder) -> list[Message]:
    """Block until the decoder has at least one more message from a connection, and return what it has."""
    while True:
        data = sock.recv(65536)
        assert data, "the connection was closed"
        found = decoder.feed(data)
        if found:
            return found


def read_until_closed(sock: socket.socket, limit: int = 1 << 24) -> bytes:
    """Return everything that comes until the other side closes, in order or by a reset."""
    chunks = []
    size = 0
    while size < limit:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            break
        if not data:
            break
        chunks.append(data)
        size += len(data)
    return b"".join(chunks)
