"""fd: listening sockets that another program has made, and left open for this one: systemd, or a parent process.

``fd://3`` listens with descriptor 3, over tcp or ipc, as the socket is. ``tls+fd://3`` adds TLS; ``ws+fd://3/path`` and
``wss+fd://3/path`` are in ``ws.py``. Instead of the number, an address may have a name of ``LISTEN_FDNAMES``.

A listener uses a copy of the descriptor, which it closes. The descriptor itself stays open, so it is never closed
twice, its number never becomes another socket's, and it can be listened with again. The program's children do not
inherit it. Nothing shuts the socket down: other processes may listen with it too. While none does, peers wait in its
backlog.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from gevent import socket as gsocket

from ..address import Address
from ..errors import AddressError, ConnectionFailed
from ..options import Options
from .base import Transport, TransportDialer, TransportListener
from .ipc import IPCListener
from .listening import ListeningSockets
from .tcp import TCPListener, check_options, format_address
from .tls import TLSListener

__all__ = ["TRANSPORT", "given_by_systemd"]

#: The first descriptor that systemd passes (sd_listen_fds(3)).
_FIRST = 3


def given_by_systemd() -> dict[int, str]:
    """Return the descriptors that systemd has passed to this process, with their names.

    They are named by ``FileDescriptorName=`` in the socket unit. A descriptor without a name has the name "unknown", as
    in systemd. Empty in a process that was not started by a socket unit, also in a child of one that was.

    Source: sd_listen_fds(3).
    """
    count, names = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_FDNAMES", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return {}
    found = names.split(":") if names else []
    found += ["unknown"] * int(count)
    return {_FIRST + index: found[index] for index in range(int(count))}


def _number(address: Address) -> int:
    """Return the descriptor that an address names.

    Raises:
        AddressError: it names none.
    """
    location = address.location
    if location.isascii() and location.isdigit():
        return int(location)
    given = given_by_systemd()
    numbers = [number for number, name in given.items() if name == location]
    if len(numbers) == 1:
        return numbers[0]
    if numbers:
        raise AddressError(address.text, f"{len(numbers)} descriptors have the name {location!r}: write a number")
    names = ", ".join(f"{name} ({number})" for number, name in given.items())
    why = f"systemd has passed {names}" if given else "systemd has passed none to this process"
    raise AddressError(address.text, f"no descriptor has the name {location!r}; {why}")


def _copy(address: Address) -> gsocket.socket:
    """Return a socket for the descriptor that an address names. It has a descriptor of its own.

    Raises:
        AddressError: it names none.
        ConnectionFailed: the descriptor is no listening socket of a kind that the address allows.
    """
    number = _number(address)
    try:
        sock = _socket_of(number)
    except OSError as error:
        # The numbers beyond those of the process are refused in other words.
        raise ConnectionFailed(address.bare, f"descriptor {number} is not an open socket") from error
    try:
        if not sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_ACCEPTCONN):
            raise ConnectionFailed(address.bare, f"descriptor {number} is a socket that does not listen")
        if sock.family not in (gsocket.AF_INET, gsocket.AF_INET6) and (address.scheme != "fd" or not _is_unix(sock)):
            kinds = "TCP or unix socket" if address.scheme == "fd" else "TCP socket"
            raise ConnectionFailed(address.bare, f"descriptor {number} is not a {kinds}")
        os.set_inheritable(number, False)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket_of(number: int) -> gsocket.socket:
    copy = -1
    try:
        copy = os.dup(number)
        return gsocket.socket(fileno=copy)
    except OverflowError as error:
        raise OSError(str(error)) from error
    except BaseException:
        if copy >= 0:
            os.close(copy)
        raise


def _is_unix(sock: gsocket.socket) -> bool:
    return sock.family == gsocket.AF_UNIX and sock.type == gsocket.SOCK_STREAM


def _real_address(address: Address) -> Address:
    """Return the address of the socket that an address names: ``tcp://127.0.0.1:80`` or ``ipc:///path``."""
    with _copy(address) as sock:
        name = sock.getsockname()
        if not _is_unix(sock):
            scheme = "tls+tcp" if address.scheme == "tls+fd" else "tcp"
            return address.replaced(scheme, format_address(scheme, name).partition("://")[2])
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    return address.replaced("ipc", f"@{name[1:]}" if name.startswith("\0") else name)


class _TCP(TCPListener):
    """Listens with a TCP socket that another program has made."""

    __slots__ = ("_given",)

    def __init__(self, given: Address, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._given = given

    def listen(self) -> None:
        check_options(self._options)
        self._socks = ListeningSockets([_copy(self._given)], shared=True)


class _TLS(TLSListener):
    """The same for peers with TLS."""

    __slots__ = ("_given",)

    def __init__(self, given: Address, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._given = given

    listen = _TCP.listen


class _IPC(IPCListener):
    """Listens with a unix socket that another program has made. Its file is not this listener's."""

    __slots__ = ("_given",)

    def __init__(self, given: Address, address: Address, options: Options) -> None:
        super().__init__(address, options)
        self._given = given

    def listen(self) -> None:
        self._sock = _copy(self._given)


class InheritedTransport(Transport):
    """The fd transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("fd", "tls+fd")

    def families(self, scheme: str) -> tuple[str, ...]:
        return ("transport.tcp", "transport.tls" if scheme == "tls+fd" else "transport.ipc")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        raise AddressError(address.text, "a descriptor can only be listened on: dial the address of its socket")

    def listener(self, address: Address, options: Options) -> TransportListener:
        real = _real_address(address)
        kinds: dict[str, Any] = {"tcp": _TCP, "tls+tcp": _TLS, "ipc": _IPC}
        listener: TransportListener = kinds[real.scheme](address, real, options)
        return listener


TRANSPORT = InheritedTransport()
