"""tcp: byte streams between hosts.

Addresses are ``tcp://host:port``. The host is a name, an IPv4 address, or an IPv6 address in brackets. A listener uses
``*`` for all interfaces; no other text means that, and an empty host is an error. With port 0 the kernel chooses a
port. Names are looked up at every attempt, and all addresses of a name are tried.

Source: transport/tcp of the Go code, where the read buffer option sets the write buffer, and names are looked up once.
"""

from __future__ import annotations

import errno
import fcntl
import socket as plain_socket
import struct
import termios
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from gevent import socket as gsocket
from gevent.monkey import get_original

from .. import options as opts
from ..address import Address, split_host_port
from ..errors import AddressError, AddressInUse, Closed, ConnectionFailed, ConnectionRefused
from ..options import Options
from .base import Connection, Transport, TransportDialer, TransportListener
from .stream import SocketConnection, abandon_socket, describe_os_error

__all__ = [
    "TRANSPORT",
    "TCPConnection",
    "TCPDialer",
    "TCPListener",
    "configure",
    "format_address",
    "host_of",
    "socket_names",
    "unacknowledged",
]

#: Options of the kernel that not every system has; None for those that this one lacks. macOS has another name for the
#: first.
_KEEPIDLE: int | None = getattr(plain_socket, "TCP_KEEPIDLE", getattr(plain_socket, "TCP_KEEPALIVE", None))
_KEEPINTVL: int | None = getattr(plain_socket, "TCP_KEEPINTVL", None)
_KEEPCNT: int | None = getattr(plain_socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: int | None = getattr(plain_socket, "TCP_USER_TIMEOUT", None)
_OUTQ: int | None = getattr(termios, "TIOCOUTQ", None)

_read_numbers: Callable[..., list[Any]] = get_original("socket", "getaddrinfo")


def format_address(scheme: str, name: Any) -> str:
    """Return the name of a socket as an address."""
    try:
        host, port = name[0], name[1]
    except (IndexError, TypeError):
        return f"{scheme}://?"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def host_of(name: Any) -> str:
    """Return the host of a socket's name, "" if it has none."""
    return name[0] if isinstance(name, tuple) else ""


def socket_names(sock: Any) -> tuple[Any, Any]:
    """Return the names of both ends of a connected socket, None for a name that is no longer known.

    A connection stores them: a closed socket has no names, and the log needs them.
    """
    return _name(sock.getsockname), _name(sock.getpeername)


def _name(getter: Any) -> Any:
    try:
        return getter()
    except OSError:
        return None


def unacknowledged(sock: Any) -> int:
    """Return the number of sent bytes that the peer's kernel has not acknowledged."""
    if _OUTQ is None:
        return 0
    try:
        raw = fcntl.ioctl(sock.fileno(), _OUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", raw)[0])


class TCPConnection(SocketConnection):
    """A connected TCP socket."""

    __slots__ = ("_names", "_scheme")

    def __init__(self, sock: gsocket.socket, scheme: str = "tcp") -> None:
        super().__init__(sock)
        self._scheme = scheme
        self._names = socket_names(sock)

    @property
    def local_address(self) -> str:
        return format_address(self._scheme, self._names[0])

    @property
    def peer_address(self) -> str:
        return format_address(self._scheme, self._names[1])

    @property
    def peer_host(self) -> str:
        return host_of(self._names[1])

    def unacknowledged(self) -> int:
        return unacknowledged(self._sock)


def _seconds(value: float) -> int:
    return round(value)


def configure(sock: gsocket.socket, options: Options) -> None:
    """Set the socket options of a connection.

    Raises:
        OSError: the peer has already disconnected, or the kernel refuses a value.
    """
    tcp = opts.transport.tcp
    protocol = gsocket.IPPROTO_TCP
    sock.setsockopt(protocol, gsocket.TCP_NODELAY, options.get(tcp.no_delay))
    keep_alive = options.get(tcp.keep_alive)
    sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE, keep_alive)
    if keep_alive:
        for number, value in (
            (_KEEPIDLE, _seconds(options.get(tcp.keep_alive_period))),
            (_KEEPINTVL, _seconds(options.get(tcp.keep_alive_interval))),
            (_KEEPCNT, options.get(tcp.keep_alive_probes)),
        ):
            if number is not None:
                sock.setsockopt(protocol, number, value)
    user_timeout = options.get(tcp.user_timeout)
    if user_timeout and _USER_TIMEOUT is not None:
        sock.setsockopt(protocol, _USER_TIMEOUT, round(user_timeout * 1000))
    linger = options.get(tcp.linger)
    if linger >= 0:
        sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, linger))


def _check_other_end(sock: gsocket.socket) -> None:
    """Refuse a connection of a socket to itself.

    TCP makes one if nobody listens and the kernel chooses the dialed port for this end. If the dialer kept it, the
    listener could not get its port.
    """
    if sock.getsockname() == sock.getpeername():
        # Reset the connection. In TIME_WAIT it would still occupy the port.
        sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, 0))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "it was connected to itself")


def _set_buffers(sock: gsocket.socket, options: Options) -> None:
    """Set the kernel's buffer sizes. Must come before connect or listen, where TCP negotiates the window by them."""
    for option, name in (
        (opts.transport.tcp.read_buffer, gsocket.SO_RCVBUF),
        (opts.transport.tcp.write_buffer, gsocket.SO_SNDBUF),
    ):
        size = options.get(option)
        if size:
            sock.setsockopt(gsocket.SOL_SOCKET, name, size)


def resolve(host: str, port: int, address: str, passive: bool = False) -> list[Any]:
    """Return the result of ``getaddrinfo`` for a host. Blocks while a name is looked up; the caller limits the time.

    Raises:
        ConnectionFailed: the name cannot be resolved.
    """
    flags = gsocket.AI_PASSIVE if passive else 0
    try:
        # An IP address needs no lookup. It must not wait in the resolver's queue behind names that get no answer.
        return _read_numbers(host, port, 0, gsocket.SOCK_STREAM, 0, flags | gsocket.AI_NUMERICHOST)
    except (gsocket.gaierror, UnicodeError):
        pass
    try:
        return gsocket.getaddrinfo(host, port, 0, gsocket.SOCK_STREAM, 0, flags)
    except (gsocket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConnectionFailed(address, f"the host name cannot be resolved: {why}") from error


class TCPDialer(TransportDialer):
    """Connects to one host and port."""

    __slots__ = ("_abandon", "_address", "_host", "_options", "_port")

    def __init__(self, address: Address, options: Options) -> None:
        #: Abandons the unfinished connection, while there is one.
        self._abandon: Callable[[], None] | None = None
        self._address = address.bare
        self._host, self._port = split_host_port(address.location, address)
        if self._host == "*":
            raise AddressError(address.text, "* stands for every interface and can only be listened on: dial a host")
        if not self._port:
            raise AddressError(address.text, "port 0 can only be listened on: dial the listener's real port")
        self._options = options

    def connect(self) -> Connection:
        return TCPConnection(self.connect_socket())

    def connect_socket(self) -> gsocket.socket:
        """Return a connected and configured socket."""
        failure: OSError | None = None
        for family, kind, protocol, _, name in resolve(self._host, self._port, self._address):
            sock = gsocket.socket(family, kind, protocol)
            self._abandon = partial(abandon_socket, sock)
            try:
                _set_buffers(sock, self._options)
                sock.connect(name)
                _check_other_end(sock)
                configure(sock, self._options)
                return sock
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                # The time is up, or the dialer was closed.
                sock.close()
                raise
            finally:
                self._abandon = None
        raise self._failed(failure) from failure

    def abandon(self) -> None:
        if self._abandon is not None:
            self._abandon()

    def _failed(self, error: OSError | None) -> ConnectionFailed:
        if isinstance(error, ConnectionRefusedError):
            return ConnectionRefused(self._address, "nobody listens there")
        return ConnectionFailed(self._address, describe_os_error(error) if error else "the host has no address")


class TCPListener(TransportListener):
    """Listens at one host and port."""

    __slots__ = ("_address", "_host", "_options", "_port", "_scheme", "_sock")

    def __init__(self, address: Address, options: Options) -> None:
        self._address = address.bare
        self._scheme = address.scheme
        self._host, self._port = split_host_port(address.location, address)
        self._options = options
        self._sock: Any = None

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        host = "" if self._host == "*" else self._host
        failure: OSError | None = None
        # For all interfaces the IPv6 socket accepts IPv4 as well, if the system has IPv6.
        found = _every_interface(self._port) if not host else resolve(host, self._port, self._address, passive=True)
        for family, kind, protocol, _, name in found:
            try:
                self._sock = self._bind(family, kind, protocol, name)
            except OSError as error:
                failure = error
                continue
            port = self._sock.getsockname()[1]
            shown = f"[{self._host}]" if ":" in self._host else self._host
            self._address = f"{self._scheme}://{shown}:{port}"
            return
        if failure is not None and failure.errno == errno.EADDRINUSE:
            raise AddressInUse(self._address, "another listener has the port") from failure
        why = describe_os_error(failure) if failure else "the host has no address"
        raise ConnectionFailed(self._address, why) from failure

    def _bind(self, family: int, kind: int, protocol: int, name: Any) -> gsocket.socket:
        sock = gsocket.socket(family, kind, protocol)
        try:
            sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEADDR, 1)
            if self._options.get(opts.transport.tcp.reuse_port):
                sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEPORT, 1)
            if family == gsocket.AF_INET6:
                sock.setsockopt(gsocket.IPPROTO_IPV6, gsocket.IPV6_V6ONLY, self._host != "*")
            _set_buffers(sock, self._options)
            sock.bind(name)
            sock.listen(self._options.get(opts.connector.listener.backlog))
        except BaseException:
            sock.close()
            raise
        return sock

    def accept(self) -> Connection:
        return TCPConnection(self.accept_socket())

    def accept_socket(self) -> gsocket.socket:
        """Block until a peer connects, and return its configured socket."""
        sock = self._sock
        if sock is None or sock.closed:
            raise Closed("listener")
        client: gsocket.socket = sock.accept()[0]
        try:
            configure(client, self._options)
        except OSError as error:
            client.close()
            why = f"the socket options of a connection could not be set: {error}"
            raise ConnectionAbortedError(errno.ECONNABORTED, why) from error
        return client

    def close(self) -> None:
        if self._sock is not None and not self._sock.closed:
            # While a greenlet waits for a socket, the event loop closes it later. The port must be free now.
            self._sock.shutdown(gsocket.SHUT_RDWR)
            self._sock.close()

    def abandon(self) -> None:
        if self._sock is not None:
            abandon_socket(self._sock)


def _every_interface(port: int) -> list[Any]:
    stream = gsocket.SOCK_STREAM
    return [
        (gsocket.AF_INET6, stream, 0, "", ("::", port)),
        (gsocket.AF_INET, stream, 0, "", ("0.0.0.0", port)),
    ]


class TCPTransport(Transport):
    """The tcp transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("tcp",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TCPDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return TCPListener(address, options)


TRANSPORT = TCPTransport()
