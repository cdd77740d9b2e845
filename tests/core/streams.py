"""Byte streams for tests of the core: frames made by hand, what a plain peer reads, and fakes that take notes."""

from __future__ import annotations

from collections.abc import Iterable

from gevent import socket as gsocket

from gmultisocket import Message
from gmultisocket.testing import FakeStream
from gmultisocket.wire import TO_ONE, Decoder, encode

__all__ = ["CountingStream", "PartsStream", "contents", "frame", "read_exactly"]


def frame(content: bytes, flags: int = TO_ONE, ttl: int = 16, source: bytes = b"", destination: bytes = b"") -> bytes:
    """Return a whole frame."""
    return encode(Message(flags, ttl, source, destination, content))


def contents(data: bytes | bytearray) -> list[bytes]:
    """Return the contents of the frames in some bytes, which end with a whole frame."""
    decoder = Decoder(1, 0)
    messages = decoder.feed(bytes(data))
    assert decoder.error is None
    assert not decoder.pending, "the bytes end in the middle of a frame"
    return [message.content for message in messages]


def read_exactly(peer: gsocket.socket, size: int) -> bytes:
    """Block until so many bytes have come from a plain connection, and return them."""
    chunks = []
    while size:
        data = peer.recv(size)
        assert data, "the stream ended early"
        chunks.append(data)
        size -= len(data)
    return b"".join(chunks)


class CountingStream(FakeStream):
    """A stream that keeps what it was given at a time, and how much that was."""

    __slots__ = ("given", "sizes")

    def __init__(self, script: Iterable[bytes | Exception] = (), takes: Iterable[int | Exception] = ()) -> None:
        super().__init__(script, takes)
        self.given: list[bytes | memoryview] = []
        self.sizes: list[int] = []

    def send(self, data: bytes | memoryview, /) -> int:
        self.given.append(data)
        self.sizes.append(len(data))
        return super().send(data)


class PartsStream(FakeStream):
    """A stream that keeps the parts of what it was given in parts, and the sizes of its reads."""

    __slots__ = ("parts", "read_sizes")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes | memoryview] = []
        self.read_sizes: list[int] = []

    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        self.parts += buffers
        return super().sendmsg(buffers)

    def recv(self, size: int, /) -> bytes:
        data = super().recv(size)
        self.read_sizes.append(len(data))
        return data
