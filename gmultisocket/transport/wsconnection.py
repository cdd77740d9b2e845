"""WebSocket connections: a stream connection of tcp or TLS with a :class:`FrameCodec`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final

import gevent
from websockets.http11 import Request, Response

from .. import options as opts
from ..errors import BadMessage, MultiSocketError, RequestRefused
from ..loop.yielding import yield_to_loop
from ..options import Options
from .base import PacketCodec, PacketConnection, SharedWrites, StreamConnection
from .peerlimits import PeerOverLimit
from .wsframes import ClientFrames, FrameCodec, ServerFrames
from .wshandshake import (
    Agreement,
    UpgradeRequest,
    accept,
    authorize,
    check_host,
    check_origin,
    refusal,
    refusal_code,
    refuses_with_code,
)

__all__ = ["AcceptedWS", "WSConnection", "answer", "answer_with_refusal", "refusal_for", "refuse_with_code"]

#: Seconds that a peer has to answer the close frame that refuses it.
_CLOSE_TIMEOUT: Final = 1.0
#: Bytes that are read at a time meanwhile: so few that the codec decodes all of them at once.
_DROP_SIZE: Final = 2048


class WSConnection(PacketConnection):
    """A WebSocket connection.

    Args:
        stream: the connection below; belongs to this object from now on.
        scheme: of the address.
        path: of the address, as it is written there.
        options: of the dialer or listener.
        early: bytes that were read after the head of the opening handshake.
    """

    __slots__ = ("_codec", "_early", "_offers", "_options", "_path", "_scheme", "_stream", "recv", "send", "sendmsg",
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
        self._codec: FrameCodec | None = None
        self._early = b""
        self._offers = False
        self.send = stream.send
        self.sendmsg = stream.sendmsg
        self.wait_writable = stream.wait_writable
        self.recv = stream.recv
        if early:
            self.unread(early)

    @classmethod
    def dialed(
        cls, stream: StreamConnection, scheme: str, path: str, options: Options, early: bytes, agreed: Agreement
    ) -> WSConnection:
        """Return the dialing end of a connection whose handshake is done."""
        connection = cls(stream, scheme, path, options, early)
        connection._begin(agreed, dials=True)
        return connection

    def _begin(self, agreed: Agreement, *, dials: bool) -> None:
        """Speak in frames from now on: the handshake is done. Several channels may write to a session's stream."""
        self._codec = _make_codec(agreed, self._scheme, self._options, dials=dials)
        if self._options.get(opts.transport.ws.session):
            # Most programs have no session.
            from .wschannels import SharedStream

            self._stream = stream = SharedStream(self._stream)
            self.send = stream.send
            self.sendmsg = stream.sendmsg
            self.wait_writable = stream.wait_writable
        # A few compressed bytes may be a lot of messages, and so may the last bytes of a packet of several frames.
        self._offers = self._stream.offers and self._codec.whole and not agreed.window_bits

    @property
    def channels(self) -> SharedWrites | None:
        stream = self._stream
        return stream if isinstance(stream, SharedWrites) else None

    @property
    def codec(self) -> PacketCodec:
        assert self._codec is not None, "the handshake is not done"
        return self._codec

    def account(self, spend: Callable[[int, int], object]) -> None:
        assert self._codec is not None, "the handshake is not done"
        self._codec.account(spend)

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

    # Reading

    @property
    def offers(self) -> bool:
        return self._offers and not self._early

    def recv_offered(self, size: int, take: Callable[[bytes], bool], /) -> bytes:
        return self._stream.recv_offered(size, take)

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

    __slots__ = ("_agreed", "_answer", "_environ", "_identity", "_name", "_refusal", "_request", "_respond")

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
        #: The response that accepts the request, until it is sent; and what it agrees to.
        self._answer: Response | None = None
        self._agreed: Agreement | None = None
        #: The codec that has made the close frame by which the request was refused.
        self._refusal: ServerFrames | None = None

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
            self._answer, self._agreed = accept(self._request, self._options)

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
        answer, agreed, respond = self._answer, self._agreed, self._respond
        assert answer is not None and agreed is not None, "handshake() comes first"
        # From now on the request cannot be refused.
        self._request = self._respond = self._environ = self._answer = self._agreed = None
        if respond is None:
            self.write_all(answer.serialize())
        else:
            respond(answer)
        self._begin(agreed, dials=False)

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
        request, self._request = self._request, None
        if request is None:
            return
        self._refusal = refuse_with_code(self._stream, request, error, self._options, self._respond)
        if self._refusal is None and self._respond is None:
            answer_with_refusal(self._stream, error)

    def turn_away(self, error: MultiSocketError) -> None:
        self.refuse(error if isinstance(error, RequestRefused) else refusal_for(error))

    @property
    def refusal_unread(self) -> bool:
        return self._refusal is not None

    def wait_refusal_read(self) -> None:
        codec, self._refusal = self._refusal, None
        if codec is None:
            return
        # The peer hangs up, breaks a rule, or takes too long.
        with suppress(OSError, BadMessage), gevent.Timeout(_CLOSE_TIMEOUT, TimeoutError()):
            while not codec.end() and (data := self.recv(_DROP_SIZE)):
                codec.feed(data)
                yield_to_loop()

    def close(self) -> None:
        if self._respond is None:
            self.refuse(refusal_for(None))
        self._request = self._refusal = None
        super().close()


def refusal_for(error: MultiSocketError | None) -> RequestRefused:
    """Return how a request is refused for an error, or because its connection closes.

    The status says whether the reason is the peer's or this side's: 429 if it has too many connections, or else 503.
    """
    if isinstance(error, PeerOverLimit):
        return RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, error.reason)
    return RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, "not now")


def refuse_with_code(
    stream: StreamConnection,
    request: Request,
    error: RequestRefused,
    options: Options,
    respond: Callable[[Response], object] | None = None,
) -> ServerFrames | None:
    """Accept a request, and close its WebSocket with a code, if the listener refuses so. Never blocks.

    Args:
        stream: the connection, on which nothing was sent before.
        request: a complete request.
        error: why the request is refused.
        options: of the listener.
        respond: sends the answer that accepts the request, if another server has to send it.

    Returns:
        The codec that has made the close frame. None if the peer was sent nothing: it has to get an HTTP status,
        because the options say so, or because the request is not one that can be accepted.
    """
    if not refuses_with_code(request.headers, options):
        return None
    codec = ServerFrames()
    try:
        response, _ = accept(request, options)
        if respond is not None:
            respond(response)
    except RequestRefused:
        return None
    except OSError:
        # The peer has closed the connection first.
        return codec
    head = response.serialize() if respond is None else b""
    with suppress(OSError):
        stream.send(head + codec.goodbye_with(*refusal_code(error)))
    return codec


def answer_with_refusal(stream: StreamConnection, error: RequestRefused) -> None:
    """Refuse a request by an HTTP answer."""
    answer(stream, refusal(error).serialize())


def answer(stream: StreamConnection, data: bytes) -> None:
    """Send the only answer. Nothing was sent on the stream before, so the kernel takes it at once."""
    try:
        stream.send(data)
        stream.shutdown_write()
    except OSError:
        # The peer has closed the connection first.
        pass


def _make_codec(agreed: Agreement, scheme: str, options: Options, *, dials: bool) -> FrameCodec:
    max_content: int = options.get(opts.connector.pipe.max_recv_content_length)
    # Whether each WebSocket message is a whole frame.
    whole = not scheme.endswith(".rw")
    if not agreed.window_bits:
        return (ClientFrames if dials else ServerFrames)(agreed.text, max_content, whole)
    from . import wsdeflate

    kind = wsdeflate.DeflatedClientFrames if dials else wsdeflate.DeflatedServerFrames
    over = options.get(opts.transport.ws.compress_over)
    return kind(agreed.window_bits, over, agreed.text, max_content, whole)
