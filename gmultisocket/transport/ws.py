"""ws, wss: WebSockets, for browsers, proxies and everything else that speaks HTTP.

Addresses are ``ws://host:port/path``; without a path it is ``/``, and a dialer takes port 80 (wss: 443) where none
is written. ``wss`` is the same over TLS, with the options ``transport.tls.*``. Each message travels in a WebSocket
message of its own; ``ws.sr`` is another name for that, and under ``ws.rw`` WebSocket messages are pieces of one stream.

Several listeners with different paths share one port, across the Sockets of a thread too. With
``transport.ws.listener.external_listen`` a listener binds nothing, and takes the requests that somebody else's HTTP
server hands over; ``gmultisocket.contrib.wsgi`` does that for WSGI servers.

Here are dialer and listener; ``wsport.py`` has the ports, ``wsconnection.py`` the connections, ``wshandshake.py`` what
is asked and answered before, and ``wsframes.py`` the frames after.

Source: transport/ws of the Go code.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gevent.event import Event
from websockets.http11 import Request, Response

from .. import options as opts
from ..address import Address, split_host_port
from ..errors import AddressError, Closed, HandshakeFailed, RequestRefused
from ..options import Options
from . import find
from .base import Connection, StreamConnection, Transport, TransportDialer, TransportListener
from .stream import describe_os_error
from .wsconnection import AcceptedWS, WSConnection
from .wshandshake import DialerHandshake, UpgradeRequest, read_head
from .wsport import Port, join_port

__all__ = ["TRANSPORT", "UpgradeRequest", "WSListener"]

logger = logging.getLogger("gmultisocket.ws")

_PORTS = {"ws": 80, "wss": 443}
_CARRIERS = {"ws": "tcp", "wss": "tls+tcp"}
#: What a path may hold: what a request line may, but for a query of its own and a fragment.
_PATH = re.compile(r"/[!-~]*")


def _split(address: Address) -> tuple[str, str]:
    """Return host and port as they are written, and the path.

    Raises:
        AddressError: the path cannot be asked for.
    """
    authority, slash, path = address.location.partition("/")
    if not _PATH.fullmatch(slash + path or "/"):
        raise AddressError(address.text, "a path has ASCII characters only: percent-encode the others")
    return authority, slash + path or "/"


def _is_secure(address: Address) -> bool:
    return address.scheme == "wss"


def _kind(address: Address) -> str:
    return "wss" if _is_secure(address) else "ws"


class WSDialer(TransportDialer):
    """Connects to one path at one host and port."""

    __slots__ = ("_address", "_carrier", "_host", "_options", "_path", "_port", "_shown_path", "_stream")

    def __init__(self, address: Address, options: Options) -> None:
        authority, self._path = _split(address)
        self._shown_path = address.location[len(authority) :]
        if ":" not in authority[authority.rfind("]") + 1 :]:
            authority = f"{authority}:{_PORTS[_kind(address)]}"
        self._host, self._port = split_host_port(authority, address)
        self._address = address
        self._options = options
        self._stream: StreamConnection | None = None
        self._carrier = find(_CARRIERS[_kind(address)]).dialer(address.replaced(address.scheme, authority), options)

    def connect(self) -> Connection:
        stream = self._carrier.connect()
        assert isinstance(stream, StreamConnection)
        self._stream = stream
        try:
            return self._shake_hands(stream)
        except OSError as error:
            stream.close()
            why = f"the opening handshake failed: {describe_os_error(error)}"
            raise HandshakeFailed(self._address.bare, why) from error
        except BaseException:
            stream.close()
            raise
        finally:
            self._stream = None

    def _shake_hands(self, stream: StreamConnection) -> Connection:
        address = self._address
        secure = _is_secure(address)
        handshake = DialerHandshake(address.bare, self._host, self._port, secure, self._path, self._headers())
        stream.write_all(handshake.request())
        try:
            head, rest = read_head(stream)
        except RequestRefused as error:
            raise HandshakeFailed(address.bare, f"the answer is wrong: {error.why}") from error
        text = handshake.finish(head, rest)
        return WSConnection.dialed(stream, address.scheme, self._shown_path, self._options, rest, text=text)

    def _headers(self) -> Mapping[str, str]:
        headers = self._options.get(opts.transport.ws.headers)
        try:
            return dict(headers()) if callable(headers) else headers
        except Exception as error:
            why = f"the function in transport.ws.headers failed: {type(error).__name__}: {error}"
            raise HandshakeFailed(self._address.bare, why) from error

    def abandon(self) -> None:
        self._carrier.abandon()
        if self._stream is not None:
            self._stream.abandon()


class WSListener(TransportListener):
    """Takes the requests for one path at one host and port."""

    __slots__ = ("_address", "_arrival", "_carrier", "_external", "_listens", "_location", "_options", "_path",
                 "_pending", "_port", "_room", "_scheme", "_shown_path", "_size")  # fmt: skip

    def __init__(self, address: Address, options: Options) -> None:
        authority, self._path = _split(address)
        self._shown_path = address.location[len(authority) :]
        self._address = address
        self._scheme = address.scheme
        self._options = options
        mine = opts.transport.ws.listener
        self._external = options.get(mine.external_listen)
        #: A listener must have room for one: a request that was taken has to be put somewhere.
        self._size = max(1, options.get(mine.pending_size))
        self._location = authority
        self._carrier: TransportListener | None = None
        if not self._external:
            # A scheme says how the port is made: ws.rw shares one with ws.
            below = address.replaced(_kind(address), authority)
            self._carrier = find(_CARRIERS[below.scheme]).listener(below, options)
        self._port: Port | None = None
        self._listens = False
        self._pending: deque[AcceptedWS] = deque()
        self._arrival: Event | None = None
        self._room: Event | None = None

    @property
    def address(self) -> str:
        location = self._location if self._port is None else self._port.location
        return f"{self._scheme}://{location}{self._shown_path}"

    @property
    def path(self) -> str:
        """The path whose requests it takes."""
        return self._path

    def listen(self) -> None:
        if self._carrier is not None:
            below = self._address.replaced(_kind(self._address), self._location)
            self._port = join_port(self, self._carrier, below, self.address, self._options)
            self._location = self._port.location
            if below.scheme == "ws":
                _warn_of_plain(self.address, self._location)
        self._arrival, self._room = Event(), Event()
        self._listens = True

    def hand_over(self, stream: StreamConnection, request: Request, early: bytes) -> None:
        """Take a request. Blocks while :meth:`accept` is behind by ``transport.ws.listener.pending_size``.

        Args:
            stream: where it came from; belongs to the listener from now on.
            request: for this path.
            early: bytes that came behind its head.

        Raises:
            Closed: the listener is closed; the stream was not taken.
        """
        while self._listens and len(self._pending) >= self._size:
            assert self._room is not None
            self._room.clear()
            self._room.wait()
        if not self._listens:
            raise Closed("listener")
        assert self._arrival is not None
        connection = AcceptedWS(stream, self._scheme, self._shown_path, self._options, early, request=request)
        self._pending.append(connection)
        self._arrival.set()

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
        """Return the connection of a request that another HTTP server has read; its handshake has not been done.

        Args:
            stream: where it came from; belongs to the connection from now on.
            request: for this path.
            early: bytes that came behind its head.
            secure: whether that server has TLS below.
            respond: has that server send the answer that accepts it.
            environ: what that server says about the request.
        """
        return AcceptedWS(
            stream, "wss" if secure else self._scheme, self._shown_path, self._options, early,
            request=request, respond=respond, environ=environ,
        )  # fmt: skip

    def accept(self) -> Connection:
        while self._listens:
            assert self._arrival is not None and self._room is not None
            if self._pending:
                connection = self._pending.popleft()
                self._room.set()
                return connection
            self._arrival.clear()
            self._arrival.wait()
        raise Closed("listener")

    def close(self) -> None:
        self._listens = False
        if self._port is not None:
            self._port.leave(self)
        pending, self._pending = self._pending, deque()
        for connection in pending:
            connection.close()
        for event in (self._arrival, self._room):
            if event is not None:
                event.set()

    def join(self) -> None:
        if self._port is not None:
            self._port.wait_closed()

    def abandon(self) -> None:
        self._listens = False
        if self._port is not None:
            self._port.abandon()
        for connection in self._pending:
            connection.abandon()


_warned = False


def _warn_of_plain(address: str, location: str) -> None:
    """Warn, once a process, of a listener that anybody on the network can overhear."""
    global _warned
    host = location.rpartition(":")[0].strip("[]")
    if _warned or _is_loopback(host):
        return
    _warned = True
    logger.warning("%s is reachable from other hosts and not encrypted: use wss://, or a proxy that does TLS", address)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


class WSTransport(Transport):
    """The ws and wss transports."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("ws", "ws.sr", "ws.rw", "wss")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return WSDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return WSListener(address, options)


TRANSPORT = WSTransport()
