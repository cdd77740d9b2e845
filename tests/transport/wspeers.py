"""Peers for the tests of ws: a raw one that may say anything, and what it reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gevent import socket as gsocket
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

__all__ = ["KEY", "RawPeer", "frame", "request", "upgraded"]

#: A key, and nothing secret about it: every request of these tests has the same.
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_RIGHT = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "multisocket.binary",
}


class _Lax(Frame):
    """A frame as it is, however wrong."""

    def check(self) -> None:
        pass


def frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv1: bool = False, masked: bool = True) -> bytes:
    """Return a frame as a client sends it."""
    return _Lax(Opcode(opcode), payload, fin, rsv1).serialize(mask=masked)


def request(
    path: str = "/", changes: Mapping[str, str | None] | None = None, method: str = "GET", version: str = "HTTP/1.1"
) -> bytes:
    """Return a right request with some headers changed, added, or (None) left out."""
    headers = {**_RIGHT, **(changes or {})}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode()


class RawPeer:
    """A plain socket that is connected to a ws listener."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        host, port = re.match(r"ws[a-z.]*://\[?([^/\]]+)\]?:([0-9]+)", address).groups()  # type: ignore[union-attr]
        self.sock = gsocket.create_connection((host, int(port)), timeout=timeout)
        self.unread = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_head(self) -> bytes:
        """Return the head of the answer."""
        while b"\r\n\r\n" not in self.unread:
            data = self.sock.recv(4096)
            assert data, f"hung up after {self.unread!r}"
            self.unread += data
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        return head

    def status(self) -> int:
        """Return the status of the answer."""
        match = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", self.read_head())
        assert match, "that is no answer"
        return int(match[1])

    def read_rest(self) -> bytes:
        """Return what comes until the listener hangs up, as it must."""
        pieces = [self.unread]
        self.unread = b""
        try:
            while data := self.sock.recv(1 << 16):
                pieces.append(data)
        except ConnectionError:
            # What this side has still sent met a closed connection.
            pass
        return b"".join(pieces)

    def read_frame(self) -> Frame:
        """Return the next frame."""
        while True:
            reader = StreamReader()
            reader.feed_data(self.unread)
            try:
                next(Frame.parse(reader.read_exact, mask=False))
            except StopIteration as stop:
                self.unread = bytes(reader.buffer)
                found: Frame = stop.value
                return found
            data = self.sock.recv(1 << 16)
            assert data, "hung up in a frame"
            self.unread += data

    def read_close(self) -> Close:
        """Skip all other frames, and return what the listener says when it closes."""
        while True:
            found = self.read_frame()
            if found.opcode is Opcode.CLOSE:
                return Close.parse(found.data)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def upgraded(address: str, subprotocol: str = "multisocket.binary", early: bytes = b"") -> Iterator[RawPeer]:
    """Connect a peer, and ask for a WebSocket; ``early`` comes right behind the request."""
    path = "/" + address.split("/", 3)[3] if address.count("/") > 2 else "/"
    with RawPeer(address) as peer:
        peer.send(request(path, {"Sec-WebSocket-Protocol": subprotocol}) + early)
        assert peer.status() == 101
        yield peer
