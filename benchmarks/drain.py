"""The receiving side of every fan-out: one plain epoll process that counts bytes, whoever publishes.

It says by hand what a library's own peer would say first, and then wants everything: ZMTP 3.0 with the NULL mechanism
as a SUB that subscribes to all (RFC 23), the 8 bytes of nanomsg's SP over TCP as a SUB0, the request for a WebSocket
(RFC 6455), or a TLS handshake; those who were given a TLS connection only hold it. No library runs here.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from functools import cache

from .worker import hear, say

__all__ = ["count", "drain", "greet_zmtp", "read"]

_READ_SIZE = 1 << 18
_PATIENCE = 30.0

_ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_ZMTP_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00"
_ZMTP_SUBSCRIBE_ALL = b"\x00\x01\x01"
_COMMAND = 0x04
_WS_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: multisocket.binary\r\n\r\n"
)
_SP_SUB0 = b"\0SP\0\x00\x21\0\0"


def drain() -> None:
    """Connect, say so, and send the publisher one byte whenever a whole burst has come on all connections (worker).

    Hears where: ``address``, ``acks`` (the port for those bytes), ``handshake``; and what: ``peers``, ``stuck`` more
    that never read, ``burst`` messages of ``frame_size`` bytes. Says the ``size`` of a content when the first is there.
    """
    heard = hear()
    host, port = re.search(r"://([^:/]+):([0-9]+)", heard["address"]).groups()  # type: ignore[union-attr]
    acks = socket.create_connection((host, heard["acks"])) if heard["acks"] else None
    peers = heard["peers"]
    shake_hands = {"": _say_nothing, "zmtp": _zmtp, "sp": _sp, "ws": _ws, "tls": _tls}[heard["handshake"]]
    connections: dict[int, socket.socket] = {}
    stuck = []
    for number in range(peers + heard["stuck"]):
        connection = shake_hands(socket.create_connection((host, int(port)), _PATIENCE))
        if number < peers:
            connection.setblocking(False)
            connections[connection.fileno()] = connection
        else:
            stuck.append(connection)
    say(connected=len(connections))
    if acks is None:
        hear()
        return
    count(connections, acks, heard["burst"], heard["frame_size"])


def count(connections: dict[int, socket.socket], acks: socket.socket, burst: int, frame_size: int) -> None:
    """Read everything until the publisher hangs up."""
    poll = select.epoll()
    for descriptor in connections:
        poll.register(descriptor, select.EPOLLIN)
    acks.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = bytearray(_READ_SIZE)
    readers = {descriptor: connection.recv_into for descriptor, connection in connections.items()}
    missing = whole = burst * frame_size * len(connections)
    contents = 0
    first = True
    while True:
        for descriptor, _ in poll.poll():
            read = readers[descriptor](buffer)
            if not read:
                return
            missing -= read
            if first:
                contents += buffer.count(b"x", 0, read)
        if missing <= 0:
            assert not missing, f"{-missing} bytes more than were published"
            missing = whole
            if first:
                say(size=contents / burst / len(connections))
                first = False
            acks.send(b".")


def _say_nothing(connection: socket.socket) -> socket.socket:
    """Framed or bare: the first byte is the first byte of a message."""
    return connection


def _zmtp(connection: socket.socket) -> socket.socket:
    greet_zmtp(connection, b"SUB")
    connection.sendall(_ZMTP_SUBSCRIBE_ALL)
    return connection


def greet_zmtp(connection: socket.socket, kind: bytes) -> None:
    """Shake hands by ZMTP 3.0 with the NULL mechanism (RFC 23), as a socket of a kind; blocks until the peer has."""
    connection.sendall(_ZMTP_GREETING)
    read(connection, len(_ZMTP_GREETING))
    ready = _ZMTP_READY + bytes((len(kind),)) + kind
    connection.sendall(bytes((_COMMAND, len(ready))) + ready)
    flags, size = read(connection, 2)
    assert flags == _COMMAND, "the publisher must say READY"
    read(connection, size)


def _sp(connection: socket.socket) -> socket.socket:
    connection.sendall(_SP_SUB0)
    assert read(connection, len(_SP_SUB0))[:4] == _SP_SUB0[:4], "the publisher must speak SP"
    return connection


def _ws(connection: socket.socket) -> socket.socket:
    connection.sendall(_WS_REQUEST)
    answer = b""
    # Byte by byte: behind the answer to the last of all requests the first message may follow at once.
    while not answer.endswith(b"\r\n\r\n"):
        answer += read(connection, 1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return connection


def _tls(connection: socket.socket) -> socket.socket:
    return _trusting().wrap_socket(connection)


@cache
def _trusting() -> ssl.SSLContext:
    """Return a context that trusts everybody: to whom the receivers talk is not what is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def read(connection: socket.socket, size: int) -> bytes:
    """Read exactly so many bytes."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the publisher hung up")
        data += more
    return data
