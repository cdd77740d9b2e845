"""The receiving side of every fan-out: one plain epoll process that counts bytes, whoever publishes.

It says by hand what a library's own peer would say first, and then wants everything: ZMTP 3.0 with the NULL mechanism
as a SUB that subscribes to all (RFC 23), or the 8 bytes of nanomsg's SP over TCP as a SUB0. No library runs here.
"""

from __future__ import annotations

import select
import socket

from .worker import hear, say

__all__ = ["drain"]

_READ_SIZE = 1 << 18
_PATIENCE = 30.0

_ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_ZMTP_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03SUB"
_ZMTP_SUBSCRIBE_ALL = b"\x00\x01\x01"
_COMMAND = 0x04
_SP_SUB0 = b"\0SP\0\x00\x21\0\0"


def drain() -> None:
    """Connect, say so, and send the publisher one byte whenever a whole burst has come on all connections (worker).

    Hears where: ``address``, ``acks`` (the port for those bytes), ``handshake``; and what: ``peers``, ``stuck`` more
    that never read, ``burst`` messages of ``frame_size`` bytes. Says the ``size`` of a content when the first is there.
    """
    heard = hear()
    host, _, port = heard["address"].removeprefix("tcp://").rpartition(":")
    acks = socket.create_connection((host, heard["acks"])) if heard["acks"] else None
    peers = heard["peers"]
    shake_hands = {"": _say_nothing, "zmtp": _zmtp, "sp": _sp}[heard["handshake"]]
    connections: dict[int, socket.socket] = {}
    stuck = []
    for number in range(peers + heard["stuck"]):
        connection = socket.create_connection((host, int(port)), _PATIENCE)
        shake_hands(connection)
        if number < peers:
            connection.setblocking(False)
            connections[connection.fileno()] = connection
        else:
            stuck.append(connection)
    say(connected=len(connections))
    if acks is None:
        hear()
        return
    _count(connections, acks, heard["burst"], heard["frame_size"])


def _count(connections: dict[int, socket.socket], acks: socket.socket, burst: int, frame_size: int) -> None:
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


def _say_nothing(connection: socket.socket) -> None:
    """Framed or bare: the first byte is the first byte of a message."""


def _zmtp(connection: socket.socket) -> None:
    connection.sendall(_ZMTP_GREETING)
    _read(connection, len(_ZMTP_GREETING))
    connection.sendall(bytes((_COMMAND, len(_ZMTP_READY))) + _ZMTP_READY)
    flags, size = _read(connection, 2)
    assert flags == _COMMAND, "the publisher must say READY"
    _read(connection, size)
    connection.sendall(_ZMTP_SUBSCRIBE_ALL)


def _sp(connection: socket.socket) -> None:
    connection.sendall(_SP_SUB0)
    assert _read(connection, len(_SP_SUB0))[:4] == _SP_SUB0[:4], "the publisher must speak SP"


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the publisher hung up")
        data += more
    return data
