"""tcp: byte streams between hosts.

Addresses are ``tcp://host:port``. The host is a name, an IPv4 address, or an IPv6 address in brackets. A listener uses
``*`` for all interfaces; no other text means that, and an empty host is an error. With port 0 the kernel chooses a
port. The zone of a link-local IPv6 address is a part of it: ``tcp://[fe80::1%eth0]:80``.

Names are looked up at every attempt, in ``lookup.py``. A dialer tries all addresses of a name, see ``racing.py``, and a
listener listens at all of them, see ``listening.py``.

Source: transport/tcp of the Go code, where the read buffer option sets the write buffer, names are looked up once, and
a listener takes one address of a name.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import re
import socket as plain_socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, ClassVar, Final

from gevent import socket as gsocket

from .. import options as opts
from ..address import Address, split_host_port
from ..errors import AddressError, AddressInUse, BadOptionValue, Closed, ConnectionFailed, ConnectionRefused
from ..log import get_logger
from ..options import Option, Options
from .base import Connection, Transport, TransportDialer, TransportListener
from .listening import ListeningSockets
from .racing import Race, alternate
from .stream import SocketConnection, describe_os_error

__all__ = [
    "TRANSPORT",
    "TCPConnection",
    "TCPDialer",
    "TCPListener",
    "broken_by",
    "configure",
    "format_address",
    "host_of",
    "resolve",
    "socket_names",
    "unacknowledged",
    "vanished",
]

#: Options of the kernel that not every system has; None for those that this one lacks. macOS has another name for the
#: first.
_KEEPIDLE: int | None = getattr(plain_socket, "TCP_KEEPIDLE", getattr(plain_socket, "TCP_KEEPALIVE", None))
_KEEPINTVL: int | None = getattr(plain_socket, "TCP_KEEPINTVL", None)
_KEEPCNT: int | None = getattr(plain_socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT: int | None = getattr(plain_socket, "TCP_USER_TIMEOUT", None)
_OUTQ: int | None = getattr(termios, "TIOCOUTQ", None)

logger = get_logger("gmultisocket.listener")

#: A host that is an IP address, in any form that ``getaddrinfo`` knows: no top-level domain begins with a digit.
_NUMERIC: Final = r".*:.*|(.*\.)?(0[xX][0-9A-Fa-f]*|[0-9]+)"
#: How many addresses of a host an error names.
_MAX_NAMED: Final = 8
#: How often a port that is free at all addresses of a host is looked for.
_PORT_ATTEMPTS: Final = 16
#: Errors by which kernels refuse the value of a socket option.
_REFUSED_VALUE: Final = {errno.EINVAL, errno.EDOM, errno.ENOPROTOOPT, errno.EOPNOTSUPP, errno.EPERM}
#: Errors of bind for an address that this machine does not have.
_ABSENT: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


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

    A connection stores them: a closed socket has no names, and the log needs them. They are names that can be dialed:
    an IPv4 peer of an IPv6 socket has its IPv4 address, and a link-local IPv6 address has its zone.
    """
    return _name(sock.getsockname), _name(sock.getpeername)


def _name(getter: Callable[[], Any]) -> Any:
    try:
        return _dialable(getter())
    except OSError:
        return None


def _dialable(name: Any) -> Any:
    if not isinstance(name, tuple) or ":" not in name[0]:
        return name
    host, port, *rest = name
    if host.startswith("::ffff:") and "." in host:
        return host.removeprefix("::ffff:"), port
    zone = rest[-1] if len(rest) > 1 else 0
    return (f"{host}%{_zone(zone)}", port, *rest) if zone and "%" not in host else name


def _zone(number: int) -> str:
    """Return the name of a network interface, or its number: that can be dialed too."""
    try:
        return gsocket.if_indextoname(number)
    except OSError:
        return str(number)


def unacknowledged(sock: Any) -> int:
    """Return the number of sent bytes that the peer's kernel has not acknowledged."""
    if _OUTQ is None:
        return 0
    try:
        raw = fcntl.ioctl(sock.fileno(), _OUTQ, b"\0\0\0\0")
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", raw)[0])


#: Where Linux's ``struct tcp_info`` has how many probes of a closed window were not answered, how many segments are on
#: their way, and the milliseconds since data and since an acknowledgement arrived (linux/tcp.h, which only grows).
_TCP_INFO = struct.Struct("3xB20xI24xII")


def vanished(sock: Any) -> float:
    """Return for how many seconds a vanished peer was silent, 0.0 if it has not vanished.

    The kernel's keepalive watches only connections on which nothing is on its way, and after data was sent the kernel
    tries for 15 minutes. TCP_USER_TIMEOUT is no general remedy: it also ends the connections of peers that do not read
    for so long, though they answer.
    """
    if sys.platform != "linux" or not unacknowledged(sock):
        return 0.0
    protocol = gsocket.IPPROTO_TCP
    try:
        probes, segments, *silences = _TCP_INFO.unpack(sock.getsockopt(protocol, gsocket.TCP_INFO, _TCP_INFO.size))
        if not segments and probes < 2:
            # The peer's window is closed, and it answers probes of that, which are up to two minutes apart.
            return 0.0
        if not sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE):
            return 0.0
        if sock.getsockopt(protocol, gsocket.TCP_USER_TIMEOUT):
            return 0.0
        allowed = sock.getsockopt(protocol, gsocket.TCP_KEEPIDLE)
        allowed += sock.getsockopt(protocol, gsocket.TCP_KEEPINTVL) * sock.getsockopt(protocol, gsocket.TCP_KEEPCNT)
    except OSError:
        return 0.0
    silent = min(silences) / 1000
    return silent if silent >= allowed else 0.0


#: The beginning of ``struct tcp_info``: the state, and how many segments and probes were not answered.
_TCP_STATE: Final = struct.Struct("BxBB")
_TCP_CLOSE: Final = 7


def broken_by(sock: Any) -> OSError | None:
    """Return why the kernel has given up a connection on which nothing was shut down here.

    For a caller that has lost the error of a system call. The kernel reports an error once. What remains is the state:
    after the peer's end of stream it is not closed. Segments or probes without an answer mean that the peer was not
    there. So a peer whose machine was down for a moment, and which resets then, counts as timed out.

    Returns:
        None if the peer has ended the stream, or this system does not say.
    """
    if sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(gsocket.IPPROTO_TCP, gsocket.TCP_INFO, _TCP_STATE.size)
        pending = sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_ERROR)
    except OSError:
        # It is closed, or no TCP socket.
        return None
    state, segments, probes = _TCP_STATE.unpack(info)
    if state != _TCP_CLOSE:
        return None
    number = pending or (errno.ETIMEDOUT if segments or probes else errno.ECONNRESET)
    return OSError(number, os.strerror(number))


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

    def vanished(self) -> float:
        return vanished(self._sock)


def _seconds(value: float) -> int:
    return round(value)


def _socket_options(options: Options) -> Iterator[tuple[Option[Any], int, int, int | bytes]]:
    """Yield the socket options of a connection: whose value it is, level, number, and value."""
    tcp = opts.transport.tcp
    protocol = gsocket.IPPROTO_TCP
    yield tcp.no_delay, protocol, gsocket.TCP_NODELAY, options.get(tcp.no_delay)
    keep_alive = options.get(tcp.keep_alive)
    yield tcp.keep_alive, gsocket.SOL_SOCKET, gsocket.SO_KEEPALIVE, keep_alive
    if keep_alive:
        if _KEEPIDLE is not None:
            yield tcp.keep_alive_period, protocol, _KEEPIDLE, _seconds(options.get(tcp.keep_alive_period))
        if _KEEPINTVL is not None:
            yield tcp.keep_alive_interval, protocol, _KEEPINTVL, _seconds(options.get(tcp.keep_alive_interval))
        if _KEEPCNT is not None:
            yield tcp.keep_alive_probes, protocol, _KEEPCNT, options.get(tcp.keep_alive_probes)
    user_timeout = options.get(tcp.user_timeout)
    if user_timeout and _USER_TIMEOUT is not None:
        yield tcp.user_timeout, protocol, _USER_TIMEOUT, round(user_timeout * 1000)
    linger = options.get(tcp.linger)
    if linger >= 0:
        yield tcp.linger, gsocket.SOL_SOCKET, gsocket.SO_LINGER, struct.pack("ii", 1, linger)


def configure(sock: gsocket.socket, options: Options) -> None:
    """Set the socket options of a connection.

    Raises:
        OSError: the peer has already disconnected, or the kernel refuses a value; see :func:`check_options`.
    """
    for _, level, number, value in _socket_options(options):
        sock.setsockopt(level, number, value)


def check_options(options: Options) -> None:
    """Try the socket options of connections on a socket that has no peer.

    Raises:
        BadOptionValue: the kernel refuses one of them, and would for every connection.
    """
    # Not on a listening socket: its connections would inherit the values, also after the options have changed.
    try:
        sock = gsocket.socket(gsocket.AF_INET, gsocket.SOCK_STREAM)
    except OSError:
        # There is no descriptor, or no IPv4. Connections will show whether the options are right.
        return
    with sock:
        for option, level, number, value in _socket_options(options):
            try:
                sock.setsockopt(level, number, value)
            except OSError as error:
                expected = f"a value that this system takes: {describe_os_error(error)}"
                raise BadOptionValue(option.name, options.get(option), expected) from error


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


def _load_lookup(host: str) -> None:
    """Import what a lookup of this host needs. Later there may be no descriptor left for it."""
    if not re.fullmatch(_NUMERIC, host):
        import_module(".lookup", __package__)


def resolve(host: str, port: int, address: str, passive: bool = False) -> list[Any]:
    """Return the result of ``getaddrinfo`` for a host. Blocks while a name is looked up; the caller limits the time.

    Raises:
        ConnectionFailed: the name cannot be resolved.
    """
    flags = gsocket.AI_PASSIVE if passive else 0
    try:
        if re.fullmatch(_NUMERIC, host):
            # In bytes, or Python would import its codec for international names.
            numeric = flags | gsocket.AI_NUMERICHOST
            return _socket.getaddrinfo(host.encode("ascii"), port, 0, gsocket.SOCK_STREAM, 0, numeric)
        from .lookup import look_up

        return look_up(host, port, flags)
    except (OSError, UnicodeError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or error
        raise ConnectionFailed(address, f"the host name cannot be resolved: {why}") from error


class TCPDialer(TransportDialer):
    """Connects to one host and port."""

    __slots__ = ("_abandon", "_address", "_host", "_looks_up", "_options", "_port", "_race")

    def __init__(self, address: Address, options: Options) -> None:
        #: Abandons the connection whose handshake is not done, while there is one.
        self._abandon: Callable[[], None] | None = None
        #: What an attempt waits for; stays after one that was ended.
        self._looks_up = False
        self._race: Race | None = None
        self._address = address.bare
        self._host, self._port = split_host_port(address.location, address)
        if self._host == "*":
            raise AddressError(address.text, "* stands for every interface and can only be listened on: dial a host")
        if not self._port:
            raise AddressError(address.text, "port 0 can only be listened on: dial the listener's real port")
        self._options = options
        _load_lookup(self._host)

    def connect(self) -> Connection:
        return TCPConnection(self.connect_socket())

    def connect_socket(self) -> gsocket.socket:
        """Return a connected and configured socket. Blocks; the caller limits the time.

        All addresses of the host take part. For TLS and WebSocket only this step is a race, and the first connection
        does the handshake: further handshakes would be work and log records for the peers that lose, and a wrong
        certificate must be an error, and not a reason to use another address.

        Raises:
            ConnectionFailed: none of the addresses answers. Nothing is left open.
        """
        self._race = None
        self._looks_up = True
        found = resolve(self._host, self._port, self._address)
        self._looks_up = False
        race = self._race = Race(found, self._prepare, self._finish)
        sock = race.run()
        self._race = None
        if sock is None:
            if any(error.errno in _REFUSED_VALUE for _, error in race.failures):
                try:
                    check_options(self._options)
                except BadOptionValue as error:
                    raise ConnectionFailed(self._address, str(error)) from error
            raise _failed(self._address, race.failures) from (race.failures[-1][1] if race.failures else None)
        return sock

    def _prepare(self, sock: gsocket.socket) -> None:
        _set_buffers(sock, self._options)

    def _finish(self, sock: gsocket.socket) -> None:
        _check_other_end(sock)
        configure(sock, self._options)

    @property
    def unfinished(self) -> str:
        if self._looks_up:
            return "the host name was not resolved"
        race = self._race
        if race is None:
            return ""
        hosts = [host_of(_dialable(name)) for name in race.unanswered]
        return "; ".join([*_named(race.failures), *(f"{host} does not answer" for host in hosts[:_MAX_NAMED])])

    def abandon(self) -> None:
        if self._race is not None:
            self._race.abandon()
        if self._abandon is not None:
            self._abandon()


def _failed(address: str, failures: Sequence[tuple[Any, OSError]]) -> ConnectionFailed:
    """Return the error for a host none of whose addresses answers."""
    if not failures:
        return ConnectionFailed(address, "the host has no address")
    refused = all(isinstance(error, ConnectionRefusedError) for _, error in failures)
    if len(failures) == 1:
        why = "nobody listens there" if refused else describe_os_error(failures[0][1])
    elif refused:
        why = f"nobody listens there, at {' and '.join(host_of(_dialable(name)) for name, _ in failures[:_MAX_NAMED])}"
    else:
        why = f"no address of the host answers: {'; '.join(_named(failures))}"
    return (ConnectionRefused if refused else ConnectionFailed)(address, why)


def _named(failures: Sequence[tuple[Any, OSError]]) -> list[str]:
    """Return a text for each address that has failed."""
    return [f"{host_of(_dialable(name))}: {describe_os_error(error)}" for name, error in failures[:_MAX_NAMED]]


class TCPListener(TransportListener):
    """Listens at one host and port: at all addresses of the host, or of the machine."""

    __slots__ = ("_address", "_host", "_options", "_port", "_scheme", "_socks")

    def __init__(self, address: Address, options: Options) -> None:
        self._address = address.bare
        self._scheme = address.scheme
        self._host, self._port = split_host_port(address.location, address)
        self._options = options
        self._socks: ListeningSockets | None = None
        if self._host != "*":
            _load_lookup(self._host)

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        check_options(self._options)
        if self._host == "*":
            bound = [self._bind_every_interface()]
        else:
            bound = self._bind_host(alternate(resolve(self._host, self._port, self._address, passive=True)))
        self._socks = ListeningSockets(bound)
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self._address = f"{self._scheme}://{shown}:{bound[0].getsockname()[1]}"

    def _bind_every_interface(self) -> gsocket.socket:
        """Return a socket for IPv6 and IPv4, or for IPv4 if the system has no IPv6."""
        try:
            return self._bind(gsocket.AF_INET6, ("::", self._port), both=True)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(self._address, self._taken_half()) from error
        try:
            return self._bind(gsocket.AF_INET, ("0.0.0.0", self._port))
        except OSError as error:
            raise self._not_bound(error) from error

    def _taken_half(self) -> str:
        """Say for which of IPv6 and IPv4 another listener has the port."""
        taken = []
        for text, family, host in ("IPv6", gsocket.AF_INET6, "::"), ("IPv4", gsocket.AF_INET, "0.0.0.0"):
            try:
                self._bind(family, (host, self._port)).close()
            except OSError:
                taken.append(text)
        if len(taken) != 1:
            return "another listener has the port"
        return f"another listener has the port for {taken[0]}, and * needs it for IPv6 and IPv4"

    def _bind_host(self, found: Sequence[Any]) -> list[gsocket.socket]:
        """Return sockets for all addresses of a host, with the same port."""
        attempts = _PORT_ATTEMPTS if self._port == 0 and len(found) > 1 else 1
        while True:
            attempts -= 1
            try:
                return self._bind_all(found)
            except AddressInUse:
                # The port that the system chose for the first address may be taken at another one.
                if not attempts:
                    raise

    def _bind_all(self, found: Sequence[Any]) -> list[gsocket.socket]:
        bound: list[gsocket.socket] = []
        absent: OSError | None = None
        port = self._port
        try:
            for family, _, _, (host, own_port, *rest) in found:
                try:
                    sock = self._bind(family, (host, own_port or port, *rest))
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise self._not_bound(error, host if len(found) > 1 else "") from error
                    # Another machine has this address of the host, or the system has no IPv6.
                    logger.info("%s does not listen at %s: %s", self._address, host, describe_os_error(error))
                    absent = error
                    continue
                bound.append(sock)
                port = sock.getsockname()[1]
            if not bound:
                raise self._not_bound(absent) from absent
        except BaseException:
            for sock in bound:
                sock.close()
            raise
        return bound

    def _not_bound(self, error: OSError | None, host: str = "") -> ConnectionFailed:
        """Return the error for an address that could not be bound; ``host`` if the name has several."""
        where = f" at {host}" if host else ""
        if error is None:
            return ConnectionFailed(self._address, "the host has no address")
        if error.errno == errno.EADDRINUSE:
            return AddressInUse(self._address, f"another listener has the port{where}")
        return ConnectionFailed(self._address, f"{describe_os_error(error)}{where}")

    def _bind(self, family: int, name: Any, *, both: bool = False) -> gsocket.socket:
        sock = gsocket.socket(family, gsocket.SOCK_STREAM)
        try:
            sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEADDR, 1)
            if self._options.get(opts.transport.tcp.reuse_port):
                sock.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_REUSEPORT, 1)
            if family == gsocket.AF_INET6:
                sock.setsockopt(gsocket.IPPROTO_IPV6, gsocket.IPV6_V6ONLY, not both)
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
        if self._socks is None:
            raise Closed("listener")
        client = self._socks.accept()
        try:
            configure(client, self._options)
        except OSError as error:
            client.close()
            # An option may have changed since. Then this is no error of the peer.
            check_options(self._options)
            why = f"the socket options of a connection could not be set: {error}"
            raise ConnectionAbortedError(errno.ECONNABORTED, why) from error
        return client

    def close(self) -> None:
        if self._socks is not None:
            self._socks.close()

    def abandon(self) -> None:
        if self._socks is not None:
            self._socks.abandon()


class TCPTransport(Transport):
    """The tcp transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("tcp",)

    def families(self, scheme: str) -> tuple[str, ...]:
        return ("transport.tcp",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return TCPDialer(address, options)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return TCPListener(address, options)


TRANSPORT = TCPTransport()
