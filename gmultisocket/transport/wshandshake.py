"""The WebSocket opening handshake (RFC 6455, section 4): what is asked for, what is accepted, and what refused.

The rules of the RFC are the ``websockets`` package's, by its Sans-I/O protocols. Here are ours on top: subprotocols,
origins, authorization, and the HTTP status of every refusal. Nothing is refused after the 101: a peer that
may not come in is told so in HTTP.

Nothing here reads or writes, except :func:`read_head`.

Source: transport/ws/ws.go of the Go code, which answers 101 to any subprotocol and hangs up then.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .. import options as opts
from ..errors import HandshakeFailed, MultiSocketError, RequestRefused, snippet
from ..options import Options, is_header
from .base import StreamConnection

__all__ = [
    "MAX_HEAD",
    "DialerHandshake",
    "UpgradeRequest",
    "accept",
    "authorize",
    "check_origin",
    "parse_request",
    "read_head",
    "refusal",
]

logger = logging.getLogger("gmultisocket.ws")

#: The longest head of a request or response, in bytes.
MAX_HEAD: Final = 16384

_TEXT: Final = Subprotocol("multisocket.text")
#: In the order in which a dialer offers and a listener prefers them.
_SUBPROTOCOLS: Final = (Subprotocol("multisocket.binary"), _TEXT)

_END_OF_HEAD: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!-~]+) ([!-~]+) (HTTP/[0-9]\.[0-9])")
#: How much of a refusal's body is repeated in an error.
_MOST_REPEATED: Final = 200


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A request to become a WebSocket, as ``authorize`` and ``origin_checker`` functions see it.

    All of it is the peer's claim, but for its address and identity.

    Attributes:
        path: without the query.
        query: what follows "?", "" without one.
        headers: by name in any case; a name may come more than once: ``headers.get_all(name)``.
        peer_address: where it comes from.
        identity: what the transport below knows for sure: a TLS certificate.
        environ: what the WSGI server says, empty for a listener of our own.
    """

    path: str
    query: str
    headers: Headers
    peer_address: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, Any] = field(default_factory=dict)


# What both sides do


def read_head(stream: StreamConnection) -> tuple[bytes, bytes]:
    """Block until the head of a request or response has come; the caller bounds the time.

    Returns:
        The head with the empty line that ends it, and what has come after it.

    Raises:
        RequestRefused: it is too long, or that is no HTTP.
        ConnectionError: the stream ended before.
    """
    head = bytearray()
    while True:
        data = stream.recv(MAX_HEAD)
        if not data:
            raise ConnectionResetError("the peer hung up in the opening handshake")
        # The end may lie across two pieces.
        start = max(0, len(head) - len(_END_OF_HEAD) + 1)
        head += data
        if not head[:1].isalpha():
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "that is no HTTP; with TLS, dial wss://")
        end = head.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
        if end < len(_END_OF_HEAD):
            end = 0
        if (end or len(head)) > MAX_HEAD:
            raise RequestRefused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {MAX_HEAD} bytes"
            )
        if end:
            return bytes(head[:end]), bytes(head[end:])


# The listening side


def parse_request(head: bytes) -> Request:
    """Return the request that a head holds.

    Raises:
        RequestRefused: it is none, or one that cannot ask for a WebSocket.
    """
    match = _REQUEST_LINE.fullmatch(head[: head.index(b"\r\n")])
    if match is None:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "that is no HTTP request")
    method, _, version = match.groups()
    if method != b"GET":
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is", {"Allow": "GET"})
    if version != b"HTTP/1.1":
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is")
    protocol = ServerProtocol(logger=logger)
    protocol.receive_data(head)
    for event in protocol.events_received():
        if isinstance(event, Request):
            return event
    why = str(protocol.handshake_exc)
    status = re.match(rb"HTTP/1.1 ([45][0-9]{2}) ", b"".join(protocol.data_to_send()))
    raise RequestRefused(int(status[1]) if status else HTTPStatus.BAD_REQUEST, why)


def accept(request: Request) -> tuple[Response, bool]:
    """Return the answer that accepts a request, and whether text was agreed on.

    Raises:
        RequestRefused: it breaks a rule of RFC 6455, or offers no subprotocol of ours.
    """
    headers = request.headers
    if len(headers.get_all("Host")) != 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "there must be one Host header")
    versions = headers.get_all("Sec-WebSocket-Version")
    if versions and versions != ["13"] and "Upgrade" in headers:
        why = "only version 13 of the WebSocket protocol is spoken here"
        raise RequestRefused(HTTPStatus.UPGRADE_REQUIRED, why, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    protocol = ServerProtocol(subprotocols=_SUBPROTOCOLS, logger=logger)
    response = protocol.accept(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        more = {"Upgrade": "websocket"} if response.status_code == HTTPStatus.UPGRADE_REQUIRED else {}
        raise RequestRefused(response.status_code, _chain(protocol.handshake_exc), more)
    return response, protocol.subprotocol == _TEXT


def _chain(error: BaseException | None) -> str:
    """Return an error and what it came from, in words."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__
    return "; ".join(words)


def check_origin(request: UpgradeRequest, options: Options) -> None:
    """Check that the page which a browser runs may connect. What is no browser sends no Origin, and passes.

    Raises:
        RequestRefused: it may not.
    """
    mine = opts.transport.ws.listener
    if not options.get(mine.check_origin):
        return
    checker = options.get(mine.origin_checker)
    if checker is not None:
        if not _ask(checker, request):
            raise RequestRefused(HTTPStatus.FORBIDDEN, "this origin may not connect")
        return
    origins = request.headers.get_all("Origin")
    if not origins:
        return
    if len(origins) > 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "there is more than one Origin header")
    origin = origins[0]
    # Of "null", which pages without an origin send, nothing is left to compare, and of an empty Host header neither.
    host = origin.partition("://")[2].lower()
    if host and [host] == [name.lower() for name in request.headers.get_all("Host")]:
        return
    if not any(
        allowed.fullmatch(origin) if isinstance(allowed, re.Pattern) else allowed == origin.lower()
        for allowed in options.get(mine.origins)
    ):
        raise RequestRefused(HTTPStatus.FORBIDDEN, "this origin may not connect")


def authorize(request: UpgradeRequest, options: Options) -> Mapping[str, Any]:
    """Ask the user's ``authorize`` function, which may block, and return what is known of the peer then.

    Raises:
        RequestRefused: the function says no: by an HTTP status, False or an exception.
    """
    function = options.get(opts.transport.ws.listener.authorize)
    verdict = None if function is None else _ask(function, request)
    if verdict is None or verdict is True:
        return request.identity
    if verdict is False:
        raise RequestRefused(HTTPStatus.FORBIDDEN)
    if isinstance(verdict, int):
        raise RequestRefused(verdict)
    return {**request.identity, **(verdict if isinstance(verdict, Mapping) else {"user": verdict})}


def _ask(function: Any, request: UpgradeRequest) -> Any:
    """Return what a user's function says; an error in it lets nobody in."""
    try:
        return function(request)
    except RequestRefused:
        raise
    except MultiSocketError as error:
        raise RequestRefused(HTTPStatus.FORBIDDEN, str(error)) from error
    except Exception as error:
        logger.exception("%r failed for %s", function, snippet(request.peer_address))
        raise RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR) from error


def refusal(error: RequestRefused) -> Response:
    """Return the answer that refuses a request: a status, and a line of text for people."""
    try:
        status = HTTPStatus(error.status)
    except ValueError:
        status = HTTPStatus.FORBIDDEN
    if status < HTTPStatus.BAD_REQUEST:
        # No function of the user's can let a peer in, or send it elsewhere, by a status.
        status = HTTPStatus.FORBIDDEN
    body = f"{status.value} {status.phrase}{': ' if error.why else ''}{snippet(error.why, 500)}\n".encode()
    headers = Headers(
        [
            *((name, value) for name, value in error.headers.items() if is_header(name, value)),
            ("Connection", "close"),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        ]
    )
    return Response(status.value, status.phrase, headers, body)


# The dialing side


class DialerHandshake:
    """One dialer's handshake: what to send, and what the answer means.

    Args:
        address: what is dialed, for errors.
        host: where to, for the Host header.
        port: its port.
        secure: whether TLS is below.
        path: what to ask for, with its query.
        headers: further headers, which go before our own.
    """

    def __init__(self, address: str, host: str, port: int, secure: bool, path: str, headers: Mapping[str, str]) -> None:
        self._address = address
        uri = WebSocketURI(secure, host, port, path, "")
        self._protocol = ClientProtocol(uri, subprotocols=_SUBPROTOCOLS, logger=logger)
        self._request = self._protocol.connect()
        for name, value in _checked(headers.items(), address):
            if name in self._request.headers:
                del self._request.headers[name]
            self._request.headers[name] = value

    def request(self) -> bytes:
        """Return what to send."""
        return self._request.serialize()

    def finish(self, head: bytes, rest: bytes = b"") -> bool:
        """Read the answer, and return whether text was agreed on.

        Args:
            head: its head.
            rest: what has come after it: of a refusal, some words why.

        Raises:
            RequestRefused: the peer said no.
            HandshakeFailed: the answer is wrong, or names no subprotocol that was offered.
        """
        protocol = self._protocol
        refused = re.match(rb"HTTP/1\.[01] (?!101)([1-5][0-9]{2})(?: |\r\n)", head)
        if refused is not None:
            words = snippet(rest.decode(errors="replace").strip(), _MOST_REPEATED)
            raise RequestRefused(int(refused[1]), words, address=self._address)
        protocol.receive_data(head)
        error = protocol.handshake_exc
        if error is not None:
            raise HandshakeFailed(self._address, snippet(_chain(error), _MOST_REPEATED)) from error
        if protocol.subprotocol is None:
            raise HandshakeFailed(self._address, "the peer speaks WebSocket, and chose no subprotocol of ours")
        return protocol.subprotocol == _TEXT


def _checked(headers: Iterable[tuple[str, str]], address: str) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if not is_header(name, value):
            raise HandshakeFailed(address, f"transport.ws.headers holds a header that is none: {snippet(name)}")
        yield name, value
