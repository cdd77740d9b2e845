"""The WebSocket opening handshake (RFC 6455, section 4): requests, and how they are accepted or refused.

The Sans-I/O protocols of the ``websockets`` package check the rules of the RFC. This module adds subprotocols, origins,
authorization, and the HTTP status of every refusal. A refused peer gets an HTTP answer, and after the answer 101
nothing is refused. There is one exception: with ``transport.ws.listener.refuse_with`` a refusal is a 101 and a close
frame, because a browser does not show a page any other answer.

Only :func:`read_head` does I/O here.

Source: transport/ws/ws.go of the Go code, which answers 101 to any subprotocol and then closes the connection.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from gevent import GreenletExit
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from .. import options as opts
from .. import usercode
from ..errors import HandshakeFailed, MultiSocketError, RequestRefused, snippet
from ..loop.timelimit import time_limit
from ..options import Options, is_header
from .base import StreamConnection

__all__ = [
    "MAX_HEAD",
    "Agreement",
    "DialerHandshake",
    "UpgradeRequest",
    "accept",
    "authorize",
    "check_host",
    "check_origin",
    "client_path",
    "client_script",
    "health_check",
    "healthy",
    "is_loopback",
    "parse_request",
    "read_head",
    "read_words",
    "refusal",
    "refusal_code",
    "refuses_with_code",
    "replace_host",
    "split_target",
]

#: For the websockets package, which would log every header of a handshake: passwords, cookies, and a peer's bytes.
_SILENT: Final = logging.Logger("gmultisocket.ws.handshake", logging.CRITICAL + 1)

#: The longest head of a request or response, in bytes.
MAX_HEAD: Final = 16384

_TEXT: Final = Subprotocol("multisocket.text")
#: In the order of preference, for dialers and listeners.
_SUBPROTOCOLS: Final = (Subprotocol("multisocket.binary"), _TEXT)
#: The same, with transport.ws.session: a WebSocket with channels has none but this one.
_SESSION_SUBPROTOCOLS: Final = (Subprotocol("multisocket.session"),)

_END_OF_HEAD: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([!-~]+) ([!-~]+) (HTTP/[0-9]\.[0-9])")
#: A target that is a whole URL, without a user name: its host and port, and the rest.
_URL: Final = re.compile(r"(?:https?|wss?)://([^/?#@]+)((?:[/?].*)?)", re.IGNORECASE | re.DOTALL)
#: The beginning of a response that refuses a request.
_REFUSAL: Final = re.compile(rb"HTTP/1\.[01] (?!101)([1-5][0-9]{2})(?: |\r\n)")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
#: A status and this make a close code of the range for private use (RFC 6455, section 7.4.2).
_FIRST_CODE: Final = 4000
#: The maximum number of characters of a peer's text in an error.
_MAX_QUOTED: Final = 200
#: Seconds for which a dialer waits for the words of a refusal, when its head has come.
_WORDS_TIME: Final = 1.0


@dataclass(frozen=True, slots=True)
class UpgradeRequest:
    """A request for a WebSocket, as the ``authorize`` and ``origin_checker`` functions get it.

    Except for ``peer_address`` and ``identity``, everything is the peer's claim.

    Attributes:
        path: without the query.
        query: the text after "?", or "".
        headers: by name in any case. ``headers.get_all(name)`` returns all values of a name.
        peer_address: the address of the peer.
        identity: the verified facts from the transport below: a TLS certificate.
        environ: the WSGI environ; empty if the request came to a port of this library.
    """

    # Headers, query and environ hold passwords, cookies and tokens: repr() is for logs.
    path: str
    query: str = field(repr=False)
    headers: Headers = field(repr=False)
    peer_address: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    environ: Mapping[str, Any] = field(default_factory=dict, repr=False)


# Both sides


def read_head(stream: StreamConnection) -> tuple[bytes, bytes]:
    """Block until the head of a request or response has arrived; the caller limits the time.

    Returns:
        The head with the empty line at its end, and the bytes after it that were read.

    Raises:
        RequestRefused: it is too long, or it is not HTTP.
        ConnectionError: the stream ended before that.
    """
    head = bytearray()
    while True:
        data = stream.recv(MAX_HEAD)
        if not data:
            raise ConnectionResetError("the peer closed the connection during the opening handshake")
        # The end mark may be divided between two reads.
        start = max(0, len(head) - len(_END_OF_HEAD) + 1)
        head += data
        if not head[:1].isalpha():
            raise RequestRefused(HTTPStatus.BAD_REQUEST, "this is not HTTP; for TLS, dial wss://")
        end = head.find(_END_OF_HEAD, start) + len(_END_OF_HEAD)
        if end < len(_END_OF_HEAD):
            end = 0
        if (end or len(head)) > MAX_HEAD:
            raise RequestRefused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {MAX_HEAD} bytes"
            )
        if end:
            return bytes(head[:end]), bytes(head[end:])


def read_words(stream: StreamConnection, head: bytes, rest: bytes) -> bytes:
    """Return the bytes behind the head of a response: if it is a refusal, until the text that says why is complete.

    Blocks at most a second.

    Args:
        stream: what the head was read from.
        head: the head. Its Content-Length says how long the text is.
        rest: the bytes behind it that were read.
    """
    stated = _LENGTH.search(head) if _REFUSAL.match(head) else None
    if stated is None:
        return rest
    length = min(int(stated[1]), _MAX_QUOTED)
    late = HandshakeFailed("", "the words of a refusal have not come")
    with suppress(OSError, HandshakeFailed), time_limit(_WORDS_TIME, late):
        while len(rest) < length and (data := stream.recv(length - len(rest))):
            rest += data
    return rest


# The listening side


def health_check(head: bytes, paths: Collection[str]) -> str | None:
    """Return the method if a request is a health check, GET or HEAD with one of these paths, of any HTTP version."""
    match = _REQUEST_LINE.fullmatch(head[: head.index(b"\r\n")]) if paths else None
    if match is None or match[1] not in (b"GET", b"HEAD") or match[2].partition(b"?")[0].decode() not in paths:
        return None
    return match[1].decode()


def healthy(method: str) -> bytes:
    """Return the answer to a health check."""
    body = b"ok\n"
    headers = Headers([("Connection", "close"), ("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return Response(200, "OK", headers, body if method == "GET" else b"").serialize()


def client_path(path: str, options: Options) -> str:
    """Return the path below a listener's at which browsers get the client, "" if they do not get it there."""
    return f"{path.rstrip('/')}/gmultisocket.js" if options.get(opts.transport.ws.listener.serve_client) else ""


def client_script(request: Request) -> bytes:
    """Return the answer to a request for the client."""
    # Most ports are never asked for it.
    from .. import browser

    given = (", ".join(request.headers.get_all(name)) for name in ("If-None-Match", "Accept-Encoding"))
    status, headers, body = browser.answer("GET", *given)
    return Response(status.value, status.phrase, Headers([("Connection", "close"), *headers]), body).serialize()


def parse_request(head: bytes) -> Request:
    """Parse the head of a request.

    Raises:
        RequestRefused: it is not an HTTP request, or not one that can ask for a WebSocket.
    """
    match = _REQUEST_LINE.fullmatch(head[: head.index(b"\r\n")])
    if match is None:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "this is not an HTTP request")
    method, _, version = match.groups()
    if method != b"GET":
        raise RequestRefused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is allowed", {"Allow": "GET"})
    if version != b"HTTP/1.1":
        raise RequestRefused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "only HTTP/1.1 is supported")
    protocol = ServerProtocol(logger=_SILENT)
    protocol.receive_data(head)
    for event in protocol.events_received():
        if isinstance(event, Request):
            event.path, host = split_target(event.path)
            replace_host(event.headers, host)
            return event
    why = snippet(str(protocol.handshake_exc), _MAX_QUOTED)
    status = re.match(rb"HTTP/1.1 ([45][0-9]{2}) ", b"".join(protocol.data_to_send()))
    raise RequestRefused(int(status[1]) if status else HTTPStatus.BAD_REQUEST, why)


def split_target(target: str) -> tuple[str, str | None]:
    """Return the path of a request's target, with its query, and the host that a whole URL names instead of the Host.

    Source: RFC 9112, section 3.2.2: a server accepts URLs too, and the host in them replaces the header.

    Raises:
        RequestRefused: it is neither a path nor a URL of http or WebSocket.
    """
    if target.startswith("/"):
        return target, None
    match = _URL.fullmatch(target)
    if match is None:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "the target of the request is neither a path nor an http URL")
    host, path = match.groups()
    return path if path.startswith("/") else f"/{path}", host


def replace_host(headers: Headers, host: str | None) -> None:
    """Replace the Host header by what :func:`split_target` returned. A wrong number of such headers stays wrong."""
    if host is not None and len(headers.get_all("Host")) == 1:
        del headers["Host"]
        headers["Host"] = host


class Agreement(NamedTuple):
    """What the two sides of a connection have agreed on.

    Attributes:
        text: whether the subprotocol is ``multisocket.text``.
        window_bits: the window of what this side compresses, 9 to 15; 0 if messages are not compressed.
    """

    text: bool
    window_bits: int


def _subprotocols(options: Options) -> tuple[Subprotocol, ...]:
    return _SESSION_SUBPROTOCOLS if options.get(opts.transport.ws.session) else _SUBPROTOCOLS


def _compresses(options: Options) -> bool:
    return options.get(opts.transport.ws.compress_over) > 0


def accept(request: Request, options: Options) -> tuple[Response, Agreement]:
    """Return the answer that accepts a request, and what was agreed on.

    Args:
        request: the request.
        options: of the listener.

    Raises:
        RequestRefused: it breaks a rule of RFC 6455, or offers no subprotocol of this library.
    """
    headers = request.headers
    if len(headers.get_all("Host")) != 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "there must be exactly one Host header")
    versions = headers.get_all("Sec-WebSocket-Version")
    if versions and versions != ["13"] and "Upgrade" in headers:
        why = "only version 13 of the WebSocket protocol is supported"
        raise RequestRefused(HTTPStatus.UPGRADE_REQUIRED, why, {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    protocol = ServerProtocol(subprotocols=_subprotocols(options), logger=_SILENT)
    if _compresses(options):
        from . import wsdeflate

        protocol.available_extensions = [wsdeflate.server_extension()]
    response = protocol.accept(request)
    if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
        more = {"Upgrade": "websocket"} if response.status_code == HTTPStatus.UPGRADE_REQUIRED else {}
        raise RequestRefused(response.status_code, snippet(_chain(protocol.handshake_exc), _MAX_QUOTED), more)
    return response, _agreement(protocol)


def _agreement(protocol: ClientProtocol | ServerProtocol) -> Agreement:
    bits = 0
    if protocol.extensions:
        from . import wsdeflate

        bits = wsdeflate.window_bits(protocol.extensions)
    return Agreement(protocol.subprotocol == _TEXT, bits)


def _chain(error: BaseException | None) -> str:
    """Return the texts of an error and of its causes."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__
    return "; ".join(words)


def check_host(request: UpgradeRequest, options: Options) -> None:
    """Check the name that the peer used for this server, if ``transport.ws.listener.hosts`` names the right ones.

    Raises:
        RequestRefused: the Host header has another name.
    """
    allowed = options.get(opts.transport.ws.listener.hosts)
    if allowed is None or "*" in allowed:
        return
    host = request.headers["Host"].lower()
    if host not in allowed and _without_port(host) not in allowed:
        raise RequestRefused(HTTPStatus.FORBIDDEN, "the Host header has a name that is not served here")


def _without_port(host: str) -> str:
    """Return the host of a Host header: IPv6 addresses in brackets, names without a closing dot."""
    return re.sub(":[0-9]*$", "", host).removesuffix(".")


#: Headers that only a proxy sets: a page cannot, in a request for a WebSocket.
_PROXY_HEADERS: Final = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")


def _may_be_rebound(request: UpgradeRequest, local_address: str, name: str) -> bool:
    """Return whether a page could have made its own host name point to this machine, to pass as a page of this server.

    It matters for a server that is reached through loopback, because strangers cannot reach that one themselves. No
    page can do it with an IP address or localhost, through a proxy, which receives the name first, or with TLS: the
    certificate does not have the page's name.

    Args:
        request: a request whose origin is its host.
        local_address: the address of the connection's local end, "" if it does not matter.
        name: the host name that the listener was given.
    """
    if not is_loopback(_without_port(local_address.partition("://")[2])):
        return False
    host = _without_port(request.headers["Host"].lower())
    if host in ("localhost", name.lower()) or host.endswith(".localhost") or _is_ip_address(host.strip("[]")):
        return False
    return not any(header in request.headers for header in _PROXY_HEADERS)


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine only. Brackets around an IPv6 address are allowed."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_origin(request: UpgradeRequest, options: Options, local_address: str = "", name: str = "") -> None:
    """Check that the web page that sent a request may connect. Other programs send no Origin header, and pass.

    Args:
        request: the request.
        options: of the listener.
        local_address: the address of a plain connection's local end, "" with TLS.
        name: the host name that the listener was given.

    Raises:
        RequestRefused: the page may not connect.
    """
    listener_options = opts.transport.ws.listener
    if not options.get(listener_options.check_origin):
        return
    checker = options.get(listener_options.origin_checker)
    if checker is not None:
        if not _call("the origin checker", checker, request, options):
            raise RequestRefused(HTTPStatus.FORBIDDEN, "this origin may not connect")
        return
    origins = request.headers.get_all("Origin")
    if not origins:
        return
    if len(origins) > 1:
        raise RequestRefused(HTTPStatus.BAD_REQUEST, "there is more than one Origin header")
    origin = origins[0]
    # A page without an origin sends "null". Its host is empty here, and must not match an empty Host header.
    host = origin.partition("://")[2].lower()
    same_host = host and [host] == [name.lower() for name in request.headers.get_all("Host")]
    hosts_checked = options.get(listener_options.hosts) is not None
    if same_host and (hosts_checked or not _may_be_rebound(request, local_address, name)):
        return
    if not any(
        allowed.fullmatch(origin) if isinstance(allowed, re.Pattern) else allowed == origin.lower()
        for allowed in options.get(listener_options.origins)
    ):
        why = "; its host name is not in transport.ws.listener.hosts" if same_host else ""
        raise RequestRefused(HTTPStatus.FORBIDDEN, f"this origin may not connect{why}")


def authorize(request: UpgradeRequest, options: Options) -> Mapping[str, Any]:
    """Call the program's ``authorize`` function, and return the identity of the peer. Blocks as the function does.

    Raises:
        RequestRefused: the function refused the request, by an HTTP status, False or an exception.
    """
    function = options.get(opts.transport.ws.listener.authorize)
    verdict = None if function is None else _call("the authorize function", function, request, options)
    if verdict is None or verdict is True:
        return request.identity
    if verdict is False:
        raise RequestRefused(HTTPStatus.FORBIDDEN)
    if isinstance(verdict, int):
        raise RequestRefused(verdict)
    return {**request.identity, **(verdict if isinstance(verdict, Mapping) else {"user": verdict})}


def _call(what: str, function: Any, request: UpgradeRequest, options: Options) -> Any:
    """Return the result of a program's function. An error in it is reported, and refuses the request."""
    try:
        return function(request)
    except RequestRefused:
        raise
    except MultiSocketError as error:
        raise RequestRefused(HTTPStatus.FORBIDDEN, str(error)) from error
    except usercode.LibraryTimeout:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and request.environ:
            # The greenlet belongs to a server, which stops, or has a timeout of its own.
            raise
        if not isinstance(error, GreenletExit):
            usercode.report("gmultisocket.ws", f"{what} failed", error, options, peer=request.peer_address)
        raise RequestRefused(HTTPStatus.INTERNAL_SERVER_ERROR) from error


def _status_of(error: RequestRefused) -> HTTPStatus:
    """Return the status of a refusal. A function of the program may have set a wrong one."""
    try:
        status = HTTPStatus(error.status)
    except ValueError:
        return HTTPStatus.FORBIDDEN
    # A function cannot accept or redirect a request by a status.
    return status if status >= HTTPStatus.BAD_REQUEST else HTTPStatus.FORBIDDEN


def refusal(error: RequestRefused) -> Response:
    """Return the answer that refuses a request: a status and a line of text."""
    status = _status_of(error)
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


def refuses_with_code(headers: Headers, options: Options) -> bool:
    """Return whether a request is refused by a close code (``transport.ws.listener.refuse_with``).

    Args:
        headers: of the request.
        options: of the listener.
    """
    way = options.get(opts.transport.ws.listener.refuse_with)
    return way == "code" or (way == "code_to_pages" and "Origin" in headers)


def refusal_code(error: RequestRefused) -> tuple[int, str]:
    """Return the close code and the text that refuse a request after the 101."""
    status = _status_of(error)
    return _FIRST_CODE + status.value, error.why or status.phrase


# The dialing side


class DialerHandshake:
    """The handshake of one dialer: makes the request and checks the answer.

    Args:
        address: the dialed address, for errors.
        host: the host, for the Host header.
        port: its port.
        secure: whether the connection uses TLS.
        path: the path of the request, with its query.
        headers: more headers. They replace headers of the same name.
        options: of the dialer.
    """

    def __init__(
        self,
        address: str,
        host: str,
        port: int,
        secure: bool,
        path: str,
        headers: Mapping[str, str],
        options: Options,
    ) -> None:
        self._address = address
        self._subprotocols = _subprotocols(options)
        # The zone of an IPv6 address means something on this machine only (RFC 6874, section 4).
        uri = WebSocketURI(secure, host.partition("%")[0], port, path, "")
        self._protocol = ClientProtocol(uri, subprotocols=self._subprotocols, logger=_SILENT)
        if _compresses(options):
            from . import wsdeflate

            self._protocol.available_extensions = [wsdeflate.client_extension()]
        self._request = self._protocol.connect()
        for name, value in _checked(headers.items(), address):
            if name in self._request.headers:
                del self._request.headers[name]
            self._request.headers[name] = value

    def request(self) -> bytes:
        """Return the request."""
        return self._request.serialize()

    def finish(self, head: bytes, rest: bytes = b"") -> Agreement:
        """Check the answer, and return what was agreed on.

        Args:
            head: the head of the answer.
            rest: the bytes after it that were read; in a refusal the text that says why.

        Raises:
            RequestRefused: the peer refused the request.
            HandshakeFailed: the answer is wrong, or has no subprotocol that was offered.
        """
        protocol = self._protocol
        refused = _REFUSAL.match(head)
        if refused is not None:
            words = snippet(rest.decode(errors="replace").strip(), _MAX_QUOTED)
            raise RequestRefused(int(refused[1]), words, address=self._address)
        protocol.receive_data(head)
        error = protocol.handshake_exc
        if error is not None:
            raise HandshakeFailed(self._address, snippet(_chain(error), _MAX_QUOTED)) from error
        if protocol.subprotocol is None:
            why = f"the peer accepted none of the subprotocols: {' '.join(self._subprotocols)}"
            raise HandshakeFailed(self._address, why)
        return _agreement(protocol)


def _checked(headers: Iterable[tuple[str, str]], address: str) -> Iterable[tuple[str, str]]:
    for name, value in headers:
        if not is_header(name, value):
            raise HandshakeFailed(address, f"transport.ws.headers contains a wrong header: {snippet(name)}")
        yield name, value
