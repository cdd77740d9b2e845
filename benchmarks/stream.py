"""One long stream of bytes by tcp: from the first ``sendall`` to the end of data at the other end."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from gevent import socket

from .harness import Entry, Figure, Outcome, Row, Scale, started
from .worker import hear, say

__all__ = ["rows"]

_MIB = 1 << 20
#: What is sent and received at once, by everybody.
_PIECE = 1 << 18


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [Entry(name, partial(_run, name), name) for name in ("gmultisocket", "gevent")]
    figure = Figure("gmultisocket", "gevent", at_least=0.5)
    return [Row("stream", "1 GiB by one stream, by tcp", "MiB/s", True, entries, [figure], repeats=3)]


def _run(contestant: str, scale: Scale) -> Outcome:
    mebibytes = scale.count(1024, 16)
    with started(scale) as start:
        reader = start("stream:read", contestant=contestant, size=mebibytes * _MIB)
        writer = start("stream:write", contestant=contestant, size=mebibytes * _MIB)
        writer.tell(address=reader.hear()["address"])
        begin = writer.hear()["begin"]
        return Outcome(mebibytes / (reader.hear()["end"] - begin))


def read(contestant: str, size: int) -> None:
    """Accept a connection and read it to its end (worker)."""
    connection = _accept() if contestant == "gevent" else _accept_stream()
    recv_into, buffer = connection.recv_into, bytearray(_PIECE)
    got = 0
    while read := recv_into(buffer):
        got += read
    end = time.monotonic()
    assert got == size, f"{got} bytes instead of {size}"
    say(end=end)
    hear()


def write(contestant: str, size: int) -> None:
    """Connect, and send so many bytes (worker)."""
    host, _, port = hear()["address"].removeprefix("tcp://").rpartition(":")
    if contestant == "gevent":
        connection: Any = socket.create_connection((host, int(port)))
    else:
        from gmultisocket.protocol import Stream

        stream = Stream()
        stream.dial(f"tcp://{host}:{port}")
        connection = stream.connect()
    piece = b"x" * _PIECE
    sendall = connection.sendall
    begin = time.monotonic()
    for _ in range(size // _PIECE):
        sendall(piece)
    connection.shutdown(socket.SHUT_WR)
    say(begin=begin)
    # What is still on its way leaves while this waits: the conductor ends the process when all of it is there.
    connection.recv(1)


def _accept() -> Any:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    say(address=f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    return listener.accept()[0]


def _accept_stream() -> Any:
    from gmultisocket.protocol import Stream

    stream = Stream()
    say(address=stream.listen("tcp://127.0.0.1:0").address)
    return stream.accept()
