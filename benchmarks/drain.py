"""The receiving side of every fan-out: one plain epoll process that counts bytes, the same for every library.

It writes by hand the bytes with which a library's own peer would start, and subscribes to everything: ZMTP 3.0 with the
NULL mechanism as a SUB (RFC 23), the 8 bytes of nanomsg's SP over TCP as a SUB0, the request for a WebSocket
(RFC 6455), the same with the packets that open Socket.IO, or a TLS handshake. This process uses no library.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
from collections.abc import Callable
from functools import cache

from .worker import hear, say

__all__ = ["count", "drain", "greet_zmtp", "read_exactly"]

_HOST = "127.0.0.1"
_READ_SIZE = 1 << 18
_CONNECT_TIMEOUT = 30.0

_ZMTP_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_ZMTP_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00"
_ZMTP_SUBSCRIBE_ALL = b"\x00\x01\x01"
_COMMAND = 0x04
_WS_REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: multisocket.binary\r\n\r\n"
)
#: What browsers add to the request.
_WS_DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
#: Connects to the default namespace: a text frame with a mask of zeros.
_SOCKETIO_REQUEST = _WS_REQUEST.replace(b"GET / ", b"GET /socket.io/?EIO=4&transport=websocket ")
_SOCKETIO_CONNECT = b"\x81\x82" + bytes(4) + b"40"
_SP_SUB0 = b"\0SP\0\x00\x21\0\0"


def drain() -> None:
    """Connect, and send the publisher one byte after every burst that is complete on all connections (worker).

    The parent sends ``address``, ``acks`` (the port for those bytes, or 0), ``handshake``, ``peers``, ``stuck`` (more
    peers, which never read), and ``burst`` (messages of ``frame_size`` bytes). The worker sends ``connected``, and the
    ``size`` of a content after the first burst.
    """
    heard = hear()
    acks = socket.create_connection((_HOST, heard["acks"])) if heard["acks"] else None
    peers = heard["peers"]
    shake_hands = _HANDSHAKES[heard["handshake"]]
    connections: dict[int, socket.socket] = {}
    stuck = []
    for number in range(peers + heard["stuck"]):
        connection = shake_hands(_connect(heard["address"]))
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
    """Read everything until the publisher closes a connection. Send a byte to ``acks`` after every burst."""
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
            try:
                read = readers[descriptor](buffer)
            except ssl.SSLWantReadError:
                # Only a part of a record has come, or one without data.
                continue
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


def _connect(address: str) -> socket.socket:
    """Connect to an address of any transport, below TLS and WebSocket."""
    scheme, _, place = address.partition("://")
    if scheme == "ipc":
        connection = socket.socket(socket.AF_UNIX)
        # With a timeout, as a socket that does not block, it would fail while the listener's backlog is full.
        connection.connect(place)
        connection.settimeout(_CONNECT_TIMEOUT)
        return connection
    port = re.match(rf"{_HOST}:([0-9]+)", place)
    assert port, f"{address} has no port of {_HOST}"
    return socket.create_connection((_HOST, int(port[1])), _CONNECT_TIMEOUT)


def _no_handshake(connection: socket.socket) -> socket.socket:
    """Return the connection: its first byte is the first byte of a message."""
    return connection


def _zmtp(connection: socket.socket) -> socket.socket:
    greet_zmtp(connection, b"SUB")
    connection.sendall(_ZMTP_SUBSCRIBE_ALL)
    return connection


def greet_zmtp(connection: socket.socket, kind: bytes) -> None:
    """Do the handshake of ZMTP 3.0 with the NULL mechanism (RFC 23) as a socket of one kind; block until it is done."""
    connection.sendall(_ZMTP_GREETING)
    read_exactly(connection, len(_ZMTP_GREETING))
    ready = _ZMTP_READY + bytes((len(kind),)) + kind
    connection.sendall(bytes((_COMMAND, len(ready))) + ready)
    flags, size = read_exactly(connection, 2)
    assert flags == _COMMAND, "the publisher must say READY"
    read_exactly(connection, size)


def _sp(connection: socket.socket) -> socket.socket:
    connection.sendall(_SP_SUB0)
    assert read_exactly(connection, len(_SP_SUB0))[:4] == _SP_SUB0[:4], "the publisher must speak SP"
    return connection


def _ws(connection: socket.socket, request: bytes = _WS_REQUEST) -> socket.socket:
    connection.sendall(request)
    answer = b""
    # Byte by byte: the first message may follow the last answer at once.
    while not answer.endswith(b"\r\n\r\n"):
        answer += read_exactly(connection, 1)
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    return connection


def _ws_deflate(connection: socket.socket) -> socket.socket:
    return _ws(connection, _WS_REQUEST[:-2] + _WS_DEFLATE)


def _socketio(connection: socket.socket) -> socket.socket:
    _ws(connection, _SOCKETIO_REQUEST)
    assert _read_text(connection).startswith(b"0{"), "the server must open Engine.IO"
    connection.sendall(_SOCKETIO_CONNECT)
    assert _read_text(connection).startswith(b"40{"), "the server must accept the connection"
    return connection


def _read_text(connection: socket.socket) -> bytes:
    """Read a WebSocket message of a server."""
    kind, size = read_exactly(connection, 2)
    assert kind == 0x81, "a text in one frame is expected"
    if size == 126:
        size = int.from_bytes(read_exactly(connection, 2), "big")
    return read_exactly(connection, size)


def _tls(connection: socket.socket) -> socket.socket:
    return _trust_all().wrap_socket(connection)


def _wss(connection: socket.socket) -> socket.socket:
    return _ws(_tls(connection))


@cache
def _trust_all() -> ssl.SSLContext:
    """Return a context that accepts every certificate: the work of the receivers is not measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def read_exactly(connection: socket.socket, size: int) -> bytes:
    """Read ``size`` bytes."""
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectionError("the publisher closed the connection")
        data += more
    return data


_HANDSHAKES: dict[str, Callable[[socket.socket], socket.socket]] = {
    "": _no_handshake,
    "zmtp": _zmtp,
    "sp": _sp,
    "ws": _ws,
    "ws-deflate": _ws_deflate,
    "socket.io": _socketio,
    "wss": _wss,
    "tls": _tls,
}
