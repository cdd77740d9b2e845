"""WebSocket connections: a stream connection of tcp or TLS with a :class:`FrameCodec`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from websockets.http11 import Request, Response

from .. import options as opts
from ..errors import MultiSocketError, RequestRefused
from ..options import Options
from .base import PacketCodec, PacketConnection, SharedWrites, StreamConnection
from .peerlimits import PeerOverLimit
from .wsframes import ClientFrames, ServerFrames
from .wshandshake import UpgradeRequest, accept, authorize, check_host, check_origin, refusal

__all__ = ["AcceptedWS", "WSConnection", "answer", "answer_with_refusal", "refusal_for"]


class WSConnection(PacketConnection):
    """A WebSocket connection.

    Args:
        stream: the connection below; belongs to this object from now on.
        scheme: of the address.
        path: of the address, as it is written there.
        options: of the dialer or listener.
        early: bytes that were read after the head of the opening handshake.
    """

    __slots__ = ("_channels", "_codec", "_early", "_options", "_path", "_scheme", "_stream", "recv", "send", "sendmsg",
                 "wait_writable")  # fmt: skip

    # Set in __init__ to methods of the stream: no other Python function in between.
    send: Callable[[bytes | memoryview], int]
    sendmsg: Callable[[list[bytes | memoryview]], int]
    wait_writable: Callable[[], None]
    recv: Callable[[int], bytes]

    def __init__(self, stream: StreamConnection, scheme: str, path: str, options: Options, early: bytes) -> None:
        self._stream = stream
        self._scheme = scheme
        self._path = path
        self._options = options
        self._codec: PacketCodec | None = None
        self._channels: SharedWrites | None = None
        self._early = b""
        self.send = stream.send
        self.sendmsg = stream.sendmsg
        self.wait_writable = stream.wait_writable
        self.recv = stream.recv
        if early:
            self.unread(early)

    @classmethod
    def dialed(
        cls, stream: StreamConnection, scheme: str, path: str, options: Options, early: bytes, *, text: bool
    ) -> WSConnection:
        """Return the dialing end of a connection whose handshake is done."""
        connection = cls(stream, scheme, path, options, early)
        connection._codec = ClientFrames(text, *_codec_options(scheme, options))
        connection._share()
        return connection

    def _share(self) -> None:
        """After the handshake: let several channels write to the stream, if it is a session's."""
        if self._options.get(opts.transport.ws.session):
            # Most programs have no session.
            from .wschannels import SharedStream

            self._stream = self._channels = stream = SharedStream(self._stream)
            self.send = stream.send
            self.sendmsg = stream.sendmsg
            self.wait_writable = stream.wait_writable

    @property
    def channels(self) -> SharedWrites | None:
        return self._channels

    @property
    def codec(self) -> PacketCodec:
        assert self._codec is not None, "the handshake is not done"
        return self._codec

    @property
    def keepalive(self) -> tuple[float, float]:
        interval = self._options.get(opts.transport.ws.ping_interval)
        timeout = self._options.get(opts.transport.ws.ping_timeout)
        return interval, interval + timeout if timeout else 0.0

    @property
    def local_address(self) -> str:
        return self._named(self._stream.local_address)

    @property
    def peer_address(self) -> str:
        return self._named(self._stream.peer_address) + self._path

    def _named(self, address: str) -> str:
        return f"{self._scheme}://{address.partition('://')[2]}"

    @property
    def peer_host(self) -> str:
        return self._stream.peer_host

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._stream.identity

    # Bytes that were read too early

    def unread(self, data: bytes) -> None:
        self._early = data + self._early
        self.recv = self._recv_early

    def _recv_early(self, size: int) -> bytes:
        early = self._early
        if not early:
            self.recv = self._stream.recv
            return self.recv(size)
        self._early = early[size:]
        return early[:size]

    # Passed on to the stream

    def shutdown_write(self) -> None:
        self._stream.shutdown_write()

    def unacknowledged(self) -> int:
        return self._stream.unacknowledged()

    def vanished(self) -> float:
        return self._stream.vanished()

    def hung_up(self, may_half_close: bool = True) -> bool:
        # A WebSocket ends in both directions at once.
        return self._stream.hung_up(may_half_close=False)

    def close(self) -> None:
        self._early = b""
        self._stream.close()

    def abandon(self) -> None:
        self._stream.abandon()


class AcceptedWS(WSConnection):
    """The listening end. A request has arrived, and :meth:`handshake` answers it.

    Args:
        stream: the connection below; belongs to this object from now on.
        scheme: of the listener's address.
        path: of the listener's address, as it is written there.
        options: of the listener.
        early: bytes that were read after the request.
        request: the request.
        respond: sends the answer that accepts the request, if another server has to send it.
        environ: the WSGI environ of the request.
        name: the host name that the listener was given.
    """

    __slots__ = ("_answer", "_environ", "_identity", "_name", "_request", "_respond", "_text")

    needs_handshake = True
    handshake_waits = False

    def __init__(
        self,
        stream: StreamConnection,
        scheme: str,
        path: str,
        options: Options,
        early: bytes,
        *,
        request: Request,
        respond: Callable[[Response], object] | None = None,
        environ: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        super().__init__(stream, scheme, path, options, early)
        # Set to None after the handshake: an idle peer should cost little memory.
        self._request: Request | None = request
        self._respond = respond
        self._environ = environ
        self._name = name
        self._identity: Mapping[str, Any] | None = None
        #: The response that accepts the request, until it is sent; and whether text frames were agreed on.
        self._answer: Response | None = None
        self._text = False

    @property
    def local_address(self) -> str:
        return self._named(self._stream.local_address) + self._path

    @property
    def peer_address(self) -> str:
        return self._named(self._stream.peer_address)

    @property
    def identity(self) -> Mapping[str, Any]:
        """The identity from the stream, and what ``transport.ws.listener.authorize`` has added to it."""
        return self._stream.identity if self._identity is None else self._identity

    def handshake(self) -> None:
        assert self._request is not None, "the handshake was done"
        with self._refusing():
            self._answer, self._text = accept(self._request, self._options.get(opts.transport.ws.session))

    @property
    def may_block_to_decide(self) -> bool:
        mine = opts.transport.ws.listener
        return any(self._options.get(option) is not None for option in (mine.authorize, mine.origin_checker))

    def decide(self) -> None:
        assert self._request is not None, "the handshake was done"
        request = self._upgrade_request(self._request)
        with self._refusing():
            check_host(request, self._options)
            local_address = "" if self._scheme == "wss" else self._stream.local_address
            check_origin(request, self._options, local_address, self._name)
            identity = authorize(request, self._options)
        if identity is not request.identity:
            self._identity = identity

    def confirm(self) -> None:
        answer = self._answer
        assert answer is not None, "handshake() comes first"
        with self._refusing():
            if self._respond is None:
                self.write_all(answer.serialize())
            else:
                self._respond(answer)
        self._request = self._respond = self._environ = self._answer = None
        self._codec = ServerFrames(self._text, *_codec_options(self._scheme, self._options))
        self._share()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Tell the peer when the body refuses it."""
        try:
            yield
        except RequestRefused as error:
            self.refuse(error)
            raise

    def _upgrade_request(self, request: Request) -> UpgradeRequest:
        path, _, query = request.path.partition("?")
        identity = self._stream.identity
        return UpgradeRequest(path, query, request.headers, self.peer_address, identity, self._environ or {})

    def refuse(self, error: RequestRefused) -> None:
        """Refuse the request, if it was not answered yet. Never blocks."""
        if self._request is not None:
            self._request = None
            if self._respond is None:
                answer_with_refusal(self._stream, error)

    def turn_away(self, error: MultiSocketError) -> None:
        self.refuse(refusal_for(error))

    def close(self) -> None:
        self.refuse(refusal_for(None))
        super().close()


def refusal_for(error: MultiSocketError | None) -> RequestRefused:
    """Return how a request is refused for an error, or because its connection closes.

    The status says whether the reason is the peer's or this side's: 429 if it has too many connections, or else 503.
    """
    if isinstance(error, PeerOverLimit):
        return RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, error.reason)
    return RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "not now")


def answer_with_refusal(stream: StreamConnection, error: RequestRefused) -> None:
    """Refuse a request."""
    answer(stream, refusal(error).serialize())


def answer(stream: StreamConnection, data: bytes) -> None:
    """Send the only answer. Nothing was sent on the stream before, so the kernel takes it at once."""
    try:
        stream.send(data)
        stream.shutdown_write()
    except OSError:
        # The peer has closed the connection first.
        pass


def _codec_options(scheme: str, options: Options) -> tuple[int, bool]:
    """Return the longest content, and whether each WebSocket message is a whole frame."""
    return options.get(opts.connector.pipe.max_recv_content_length), not scheme.endswith(".rw")
