"""ws, wss: WebSocket, for browsers, HTTP proxies and all other HTTP programs.

Addresses are ``ws://host:port/path``. The default path is ``/``, and a dialer's default port is 80 (wss: 443). ``wss``
is WebSocket over TLS, with the options ``transport.tls.*``. Each message is one WebSocket message; ``ws.sr`` is another
name for that. With ``ws.rw`` WebSocket messages are pieces of one stream.

``ws+fd://3/path`` and ``wss+fd://3/path`` listen with a descriptor that another program has made: see ``inherited.py``.

Listeners with different paths, of all Sockets of a thread, can share one port. With
``transport.ws.listener.external_listen`` a listener binds nothing, and another HTTP server passes its requests to it;
``gmultisocket.contrib.wsgi`` does that for WSGI servers.

This module has the dialer and the listener. Ports are in ``wsport.py``, connections in ``wsconnection.py``, the opening
handshake in ``wshandshake.py``, and frames in ``wsframes.py``.

Source: transport/ws of the Go code.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gevent import GreenletExit
from gevent.event import Event
from websockets.http11 import Request, Response

from .. import options as opts
from .. import usercode
from ..address import Address, split_host_port
from ..errors import AddressError, Closed, HandshakeFailed, RequestRefused
from ..log import get_logger
from ..loop.ending import Ended
from ..options import Options
from ..usercode import LibraryTimeout
from . import find
from .base import Connection, StreamConnection, Transport, TransportDialer, TransportListener
from .stream import describe_os_error
from .wsconnection import AcceptedWS, WSConnection, refuse_with_code
from .wshandshake import DialerHandshake, UpgradeRequest, client_path, is_loopback, read_head, read_words
from .wsport import Port, join_port

__all__ = ["TRANSPORT", "UpgradeRequest", "WSListener"]

logger = get_logger("gmultisocket.ws")

_DEFAULT_PORTS = {"ws": 80, "wss": 443}
_STREAM_SCHEMES = {"ws": "tcp", "wss": "tls+tcp"}
#: The end of the schemes that listen with a descriptor of another program; and the schemes below them.
_INHERITED = "+fd"
_INHERITED_STREAM_SCHEMES = {"ws": "fd", "wss": "tls+fd"}
#: The characters of a path in a request line. An address has no "?" and no "#" there.
_PATH = re.compile(r"/[!-~]*")


def _split(address: Address) -> tuple[str, str]:
    """Return host and port as they are written, and the path.

    Raises:
        AddressError: the path contains characters that are not allowed in a request.
    """
    authority, slash, path = address.location.partition("/")
    if not _PATH.fullmatch(slash + path or "/"):
        raise AddressError(address.text, "a path has ASCII characters only: percent-encode all others")
    return authority, slash + path or "/"


def _is_secure(address: Address) -> bool:
    return address.scheme.removesuffix(_INHERITED) == "wss"


def _kind(address: Address) -> str:
    return "wss" if _is_secure(address) else "ws"


class WSDialer(TransportDialer):
    """Connects to one path at one host and port."""

    __slots__ = ("_address", "_host", "_options", "_path", "_port", "_shown_path", "_stream", "_stream_dialer")

    def __init__(self, address: Address, options: Options) -> None:
        authority, self._path = _split(address)
        self._shown_path = address.location[len(authority) :]
        if ":" not in authority[authority.rfind("]") + 1 :]:
            authority = f"{authority}:{_DEFAULT_PORTS[_kind(address)]}"
        self._host, self._port = split_host_port(authority, address)
        self._address = address
        self._options = options
        self._stream: StreamConnection | None = None
        below = address.replaced(address.scheme, authority)
        self._stream_dialer = find(_STREAM_SCHEMES[_kind(address)]).dialer(below, options)

    def connect(self) -> Connection:
        # Before the connection: a function may block, and the listener must not wait for it.
        headers = self._headers()
        stream = self._stream_dialer.connect()
        assert isinstance(stream, StreamConnection)
        self._stream = stream
        try:
            return self._shake_hands(stream, headers)
        except OSError as error:
            stream.close()
            why = f"the opening handshake failed: {describe_os_error(error)}"
            raise HandshakeFailed(self._address.bare, why) from error
        except BaseException:
            stream.close()
            raise
        finally:
            self._stream = None

    def _shake_hands(self, stream: StreamConnection, headers: Mapping[str, str]) -> Connection:
        address = self._address
        secure = _is_secure(address)
        handshake = DialerHandshake(
            address.bare, self._host, self._port, secure, self._path, headers, self._options
        )  # fmt: skip
        stream.write_all(handshake.request())
        try:
            head, rest = read_head(stream)
        except RequestRefused as error:
            raise HandshakeFailed(address.bare, f"the answer is wrong: {error.why}") from error
        rest = read_words(stream, head, rest)
        agreed = handshake.finish(head, rest)
        return WSConnection.dialed(stream, address.scheme, self._shown_path, self._options, rest, agreed)

    def _headers(self) -> Mapping[str, str]:
        headers = self._options.get(opts.transport.ws.headers)
        try:
            return dict(headers()) if callable(headers) else headers
        except (LibraryTimeout, Ended):
            raise
        except BaseException as error:
            what = "the function in transport.ws.headers failed"
            # The library ends this greenlet by Ended: somebody has killed the function.
            if not isinstance(error, GreenletExit):
                usercode.report(logger.name, what, error, self._options, peer=self._address.bare)
            why = f"{what}: {type(error).__name__}: {error}"
            raise HandshakeFailed(self._address.bare, why) from error

    @property
    def unfinished(self) -> str:
        return self._stream_dialer.unfinished

    def abandon(self) -> None:
        self._stream_dialer.abandon()
        if self._stream is not None:
            self._stream.abandon()


class WSListener(TransportListener):
    """Accepts the requests for one path at one host and port."""

    __slots__ = ("_address", "_external", "_listening", "_location", "_max_pending", "_name", "_not_empty", "_not_full",
                 "_options", "_path", "_pending", "_port", "_scheme", "_shown_path", "_stream_listener")  # fmt: skip

    def __init__(self, address: Address, options: Options) -> None:
        authority, self._path = _split(address)
        self._shown_path = address.location[len(authority) :]
        self._address = address
        self._scheme = address.scheme.removesuffix(_INHERITED)
        self._options = options
        listener_options = opts.transport.ws.listener
        self._external = options.get(listener_options.external_listen)
        #: At least 1: hand_over() must put the request that it takes somewhere.
        self._max_pending = max(1, options.get(listener_options.pending_size))
        self._location = authority
        self._name = authority.rpartition(":")[0]
        self._stream_listener: TransportListener | None = None
        if address.scheme.endswith(_INHERITED):
            given = address.replaced(_INHERITED_STREAM_SCHEMES[_kind(address)], authority)
            self._stream_listener = find(given.scheme).listener(given, options)
            # The real address: another descriptor or address of the same port joins it.
            self._location = self._stream_listener.address.partition("://")[2]
            self._name = ""
        elif not self._external:
            # Ports are shared by kind: ws.rw shares a port with ws.
            below = address.replaced(_kind(address), authority)
            self._stream_listener = find(_STREAM_SCHEMES[below.scheme]).listener(below, options)
        self._port: Port | None = None
        self._listening = False
        self._pending: deque[AcceptedWS] = deque()
        self._not_empty: Event | None = None
        self._not_full: Event | None = None

    @property
    def address(self) -> str:
        location = self._location if self._port is None else self._port.location
        return f"{self._scheme}://{location}{self._shown_path}"

    @property
    def path(self) -> str:
        """The path of the requests that it accepts."""
        return self._path

    @property
    def client_path(self) -> str:
        """The path at which its port serves the client for browsers, "" for none."""
        return client_path(self._path, self._options)

    @property
    def refused_by_port(self) -> int:
        """How many connections its port has closed before any listener had their request.

        They failed in TLS, sent no complete request or one for a path without a listener, or were over
        ``connector.listener.max_per_address``. The number is that of the port, which several listeners may share.
        """
        return 0 if self._port is None else self._port.refused

    def listen(self) -> None:
        if self._stream_listener is not None:
            below = self._address.replaced(_kind(self._address), self._location)
            self._port = join_port(self, self._stream_listener, below, self.address, self._options)
            self._location = self._port.location
            if below.scheme == "ws":
                _warn_of_plain(self.address, self._location)
        self._not_empty, self._not_full = Event(), Event()
        self._listening = True

    def hand_over(self, stream: StreamConnection, request: Request, early: bytes) -> None:
        """Take a request. Blocks while ``transport.ws.listener.pending_size`` requests wait for :meth:`accept`.

        Args:
            stream: its connection; belongs to the listener from now on.
            request: a request for this path.
            early: bytes that were read after its head.

        Raises:
            Closed: the listener is closed; the stream was not taken.
        """
        while self._listening and len(self._pending) >= self._max_pending:
            assert self._not_full is not None
            self._not_full.clear()
            self._not_full.wait()
        if not self._listening:
            raise Closed("listener")
        assert self._not_empty is not None
        connection = AcceptedWS(
            stream, self._scheme, self._shown_path, self._options, early, request=request, name=self._name
        )
        self._pending.append(connection)
        self._not_empty.set()

    def refuse(self, stream: StreamConnection, request: Request, error: RequestRefused) -> bool:
        """Refuse a request that :meth:`hand_over` has not taken. Return False if an HTTP status is to refuse it."""
        return refuse_with_code(stream, request, error, self._options) is not None

    def connection(
        self,
        stream: StreamConnection,
        request: Request,
        early: bytes,
        *,
        secure: bool = False,
        respond: Callable[[Response], object],
        environ: Mapping[str, Any],
    ) -> AcceptedWS:
        """Return the connection of a request that another HTTP server has read, before its handshake.

        Args:
            stream: the connection of that server; belongs to the returned connection from now on.
            request: a request for this path.
            early: bytes that were read after its head.
            secure: whether that server uses TLS.
            respond: called with the answer that accepts the request; makes that server send it.
            environ: that server's WSGI environ of the request.
        """
        return AcceptedWS(
            stream, "wss" if secure else self._scheme, self._shown_path, self._options, early,
            request=request, respond=respond, environ=environ,
        )  # fmt: skip

    def accept(self) -> Connection:
        while self._listening:
            assert self._not_empty is not None and self._not_full is not None
            if self._pending:
                connection = self._pending.popleft()
                self._not_full.set()
                return connection
            self._not_empty.clear()
            self._not_empty.wait()
        raise Closed("listener")

    def close(self) -> None:
        self._listening = False
        if self._port is not None:
            self._port.leave(self)
        pending, self._pending = self._pending, deque()
        for connection in pending:
            connection.close()
        for event in (self._not_empty, self._not_full):
            if event is not None:
                event.set()

    def join(self) -> None:
        if self._port is not None:
            self._port.wait_closed()

    def abandon(self) -> None:
        self._listening = False
        if self._port is not None:
            self._port.abandon()
        for connection in self._pending:
            connection.abandon()


_warned = False


def _warn_of_plain(address: str, location: str) -> None:
    """Warn, once per process, of a listener without encryption that other hosts can reach."""
    global _warned
    if _warned or location.startswith(("/", "@")) or is_loopback(location.rpartition(":")[0]):
        return
    _warned = True
    logger.warning("%s is not encrypted and other hosts can reach it: use wss://, or a proxy that does TLS", address)


class WSTransport(Transport):
    """The ws and wss transports."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("ws", "ws.sr", "ws.rw", "wss", "ws+fd", "wss+fd")

    def families(self, scheme: str) -> tuple[str, ...]:
        if scheme.startswith("wss"):
            return ("transport.tcp", "transport.tls", "transport.ws")
        # A descriptor may be a unix socket.
        ipc = ("transport.ipc",) if scheme.endswith(_INHERITED) else ()
        return ("transport.tcp", *ipc, "transport.ws")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        if address.scheme.endswith(_INHERITED):
            raise AddressError(address.text, "a descriptor can only be listened on: dial the address of its socket")
        return WSDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return WSListener(address, options)


TRANSPORT = WSTransport()
