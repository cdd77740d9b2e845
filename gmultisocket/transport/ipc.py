"""ipc: byte streams within a host, through unix sockets.

Addresses are ``ipc:///absolute/path``, ``ipc://relative/path``, or ``ipc://@name`` for Linux' abstract names, which
have no file and no permissions: guard those with ``transport.ipc.allow_uids``.

A socket file that a dead process left is found out by connecting to it, and replaced; one that is alive, or that only
has a full backlog, and anything that is not a socket, is left alone. A new file is bound under a name of its own, given
``transport.ipc.mode``, and only then moved to its place, so there is no moment at which a peer could connect that
may not, and none at which two listeners both believe they have the path. A listener removes only the file
that it made.

Source: transport/ipc of the Go code, which removes a living server's socket.
"""

from __future__ import annotations

import errno
import os
import socket as plain_socket
import stat
import struct
from collections.abc import Mapping
from typing import Any, ClassVar

import gevent
from gevent import socket as gsocket

from .. import options as opts
from ..address import Address
from ..errors import AddressError, AddressInUse, Closed, ConnectionFailed, ConnectionRefused
from ..options import Options
from .base import Connection, Transport, TransportDialer, TransportListener
from .stream import SocketConnection, abandon_socket, describe_os_error

__all__ = ["TRANSPORT", "IPCConnection"]

#: What a unix socket address can hold, in bytes (sun_path, without its closing zero).
_LONGEST_PATH = 107
_CREDENTIALS = struct.Struct("3i")
#: Between attempts to connect to a listener whose backlog is full, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05


class IPCConnection(SocketConnection):
    """A connected unix socket."""

    __slots__ = ("_address", "_identity")

    def __init__(self, sock: gsocket.socket, address: str) -> None:
        super().__init__(sock)
        self._address = address
        raw = sock.getsockopt(gsocket.SOL_SOCKET, gsocket.SO_PEERCRED, _CREDENTIALS.size)
        self._identity = _CREDENTIALS.unpack(raw)

    @property
    def local_address(self) -> str:
        return self._address

    @property
    def peer_address(self) -> str:
        return self._address

    @property
    def identity(self) -> Mapping[str, Any]:
        """The peer's ``pid``, ``uid`` and ``gid`` when it connected or began to listen, as the kernel says."""
        return dict(zip(("pid", "uid", "gid"), self._identity, strict=True))


def _name(address: Address) -> str:
    """Return what to bind or connect to."""
    location = address.location
    abstract = location.startswith("@")
    name = "\0" + location[1:] if abstract else location
    if abstract and len(name) == 1:
        raise AddressError(address.text, "an abstract name follows the @")
    size = len(os.fsencode(name))
    if size > _LONGEST_PATH:
        raise AddressError(address.text, f"the path has {size} bytes, and a unix socket's may have {_LONGEST_PATH}")
    if "\0" in name[1:]:
        raise AddressError(address.text, "the path has a zero byte in it")
    return name


class _Dialer(TransportDialer):
    __slots__ = ("_address", "_name")

    def __init__(self, address: Address) -> None:
        self._address = address.bare
        self._name = _name(address)

    def connect(self) -> Connection:
        sock = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_STREAM)
        try:
            self._connect(sock)
            return IPCConnection(sock, self._address)
        except OSError as error:
            sock.close()
            raise self._failed(error) from error
        except BaseException:
            sock.close()
            raise

    def _connect(self, sock: gsocket.socket) -> None:
        """Connect, waiting while the listener's backlog is full, as tcp does."""
        # A local connect is made or refused at once. EAGAIN says that the backlog is full, and the kernel has no way to
        # say when that changes: the socket counts as writable, so a connect that waits for that would spin.
        sock.setblocking(False)
        pause = _FIRST_PAUSE
        while (answer := sock.connect_ex(self._name)) == errno.EAGAIN:
            gevent.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        if answer:
            raise OSError(answer, os.strerror(answer))
        sock.setblocking(True)

    def _failed(self, error: OSError) -> ConnectionFailed:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            return ConnectionRefused(self._address, "nobody listens there")
        return ConnectionFailed(self._address, describe_os_error(error))


class _Listener(TransportListener):
    __slots__ = ("_address", "_file", "_name", "_options", "_sock", "_uids")

    def __init__(self, address: Address, options: Options) -> None:
        self._address = address.bare
        self._name = _name(address)
        self._options = options
        self._uids = options.get(opts.transport.ipc.allow_uids)
        self._sock: Any = None
        #: Path, device and inode of the socket file that this listener made.
        self._file: tuple[str, int, int] | None = None

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        try:
            if self._name.startswith("\0"):
                self._sock = self._bind_abstract()
            else:
                self._listen_at_path()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise AddressInUse(self._address, "another listener has it") from error
            raise ConnectionFailed(self._address, describe_os_error(error)) from error

    def _bind_abstract(self) -> gsocket.socket:
        try:
            return self._bind(self._name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        # One that was closed in this very turn of the loop has the name until the turn ends.
        gevent.sleep(0)
        return self._bind(self._name)

    def _bind(self, name: str) -> gsocket.socket:
        sock = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_STREAM)
        try:
            sock.bind(name)
        except BaseException:
            sock.close()
            raise
        if name.startswith("\0"):
            sock.listen(self._options.get(opts.connector.listener.backlog))
        return sock

    def _listen_at_path(self) -> None:
        """Bind at a name beside the path, set the mode, listen, and only then take the path."""
        self._remove_stale()
        temporary = self._temporary_name()
        sock = self._bind(temporary)
        try:
            os.chmod(temporary, self._options.get(opts.transport.ipc.mode))
            sock.listen(self._options.get(opts.connector.listener.backlog))
            made = os.lstat(temporary)
            # A link fails where the path exists: of two listeners that start at once, one is told so.
            os.link(temporary, self._name)
        except FileExistsError as error:
            sock.close()
            raise AddressInUse(self._address, "another listener took the path at the same moment") from error
        except BaseException:
            sock.close()
            raise
        finally:
            os.unlink(temporary)
        self._sock = sock
        # The program may have changed its folder when the file is to be removed.
        self._file = os.path.abspath(self._name), made.st_dev, made.st_ino

    def _temporary_name(self) -> str:
        """Return a name in the path's own folder, so that the file can be moved, that is not longer than allowed."""
        folder, name = os.path.split(self._name)
        mark = os.urandom(4).hex()
        short = os.path.join(folder, f".{mark}")
        if len(os.fsencode(short)) > _LONGEST_PATH:
            raise ConnectionFailed(self._address, "the path leaves no room for a temporary name beside it")
        longer = os.path.join(folder, f".{name}.{mark}")
        return longer if len(os.fsencode(longer)) <= _LONGEST_PATH else short

    def _remove_stale(self) -> None:
        """Remove the path if it is a socket that nobody listens to any more.

        Raises:
            AddressInUse: somebody does.
            ConnectionFailed: it is not a socket, or nobody can tell.
        """
        try:
            found = os.lstat(self._name)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
            raise ConnectionFailed(self._address, f"the path exists and is {kind}; it was left alone")
        with plain_socket.socket(plain_socket.AF_UNIX, plain_socket.SOCK_STREAM) as probe:
            # A local connect is made or refused at once; EAGAIN says that a living listener's backlog is full.
            probe.setblocking(False)
            answer = probe.connect_ex(self._name)
        if answer == errno.ENOENT:
            return
        if answer != errno.ECONNREFUSED:
            raise AddressInUse(self._address, "another listener has the path")
        again = os.lstat(self._name)
        if (again.st_dev, again.st_ino) == (found.st_dev, found.st_ino):
            os.unlink(self._name)

    def accept(self) -> Connection:
        sock = self._sock
        if sock is None or sock.closed:
            raise Closed("listener")
        client: gsocket.socket = sock.accept()[0]
        try:
            connection = IPCConnection(client, self._address)
        except BaseException:
            client.close()
            raise
        uid = connection.identity["uid"]
        if self._uids is None or uid in self._uids:
            return connection
        connection.close()
        # An error for each, not a loop here: the core lets others run between two of them.
        raise ConnectionAbortedError(errno.ECONNABORTED, f"user {uid} is not in transport.ipc.allow_uids")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        made, self._file = self._file, None
        if made is not None:
            path, device, inode = made
            try:
                found = os.lstat(path)
                if (found.st_dev, found.st_ino) == (device, inode):
                    os.unlink(path)
            except OSError:
                # Somebody else removed it, or its folder.
                pass

    def abandon(self) -> None:
        self._file = None
        if self._sock is not None:
            abandon_socket(self._sock)


class IPCTransport(Transport):
    """The ipc transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("ipc",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return _Dialer(address)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return _Listener(address, options)


TRANSPORT = IPCTransport()
