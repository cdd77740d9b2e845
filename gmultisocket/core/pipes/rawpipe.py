"""Pipes whose peers speak plain bytes."""

from __future__ import annotations

from collections.abc import Iterable

from ... import options as opts
from ...transport import StreamConnection
from ...wire import DEFAULT_TTL, RAW, SEND_TYPE_MASK, TO_ONE, Fields, Message
from .bytespipe import BytesPipe
from .pipe import PipeEndpoint, PipeOwner

__all__ = ["RawPipe"]


class RawPipe(BytesPipe):
    """A pipe whose peer speaks plain bytes. Each chunk that is read becomes a message; only contents are written.

    The pipe announces itself to the socket by an empty message, so that a program can greet a peer before it speaks.

    Source: the Go code's connector/pipe.go.
    """

    __slots__ = ("_size",)

    raw = True
    _eligible = False
    _copied = {opts.connector.pipe.raw_recv_buf_size: "_size"}

    def __init__(self, pipe_id: int, connection: StreamConnection, owner: PipeOwner, endpoint: PipeEndpoint) -> None:
        super().__init__(pipe_id, connection, owner, endpoint)
        self._size: int = endpoint.options.get(opts.connector.pipe.raw_recv_buf_size)

    def _put(self, flags: int, ttl: int, source: bytes, destination: bytes, content: bytes) -> None:
        if flags & ~SEND_TYPE_MASK:
            self._drop("flags")
        elif content:
            self._push(content)

    def _message(self, content: bytes) -> Message:
        return Message(RAW | TO_ONE, DEFAULT_TTL - 1, self.path, b"", content, self.id)

    def _read_size(self) -> int:
        return self._size

    def _read_all(self) -> str | None:
        self._deliver([self._message(b"")])
        return super()._read_all()

    def _decode(self, data: bytes) -> list[Fields]:
        return [self._message(data)]

    def _portions(self, data: bytes) -> Iterable[bytes]:
        return (data,)

    def _end_of_stream(self) -> str | None:
        if self.options.get(opts.connector.pipe.close_on_eof):
            return super()._end_of_stream()
        # Half closed: the pipe still sends to the peer, until somebody closes it.
        self._deliver([self._message(None)])  # type: ignore[arg-type]
        return None
