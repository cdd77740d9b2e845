"""ipc: byte streams within a host, through unix sockets.

Addresses are ``ipc:///absolute/path``, ``ipc://relative/path``, or ``ipc://@name`` for abstract names of Linux. These
have no file and no permissions: restrict them with ``transport.ipc.allow_uids``.

A listener finds out whether an existing socket file is in use by connecting to it. If its process is dead, the file is
replaced. The socket file of a live listener, also of one with a full backlog, and any other file are left alone. A new
file is first bound under a temporary name, gets the permissions of ``transport.ipc.mode``, and is then linked to its
path. So a peer without permission can connect at no moment, and two listeners never both have the path. A listener
removes only the file that it made.

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

#: The maximum length of a unix socket's path in bytes (sun_path, without the zero at its end).
_LONGEST_PATH = 107
_CREDENTIALS = struct.Struct("3i")
#: Seconds between attempts to connect to a listener whose backlog is full: the first pause and the longest.
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
        """The ``pid``, ``uid`` and ``gid`` that the peer had when it connected or began to listen, from the kernel."""
        return dict(zip(("pid", "uid", "gid"), self._identity, strict=True))


def _name(address: Address) -> str:
    """Return the name to bind or connect to.

    Raises:
        AddressError: a unix socket cannot have the name.
    """
    location = address.location
    abstract = location.startswith("@")
    name = "\0" + location[1:] if abstract else location
    if abstract and len(name) == 1:
        raise AddressError(address.text, "the name after the @ is missing: expected ipc://@name")
    size = len(os.fsencode(name))
    if size > _LONGEST_PATH:
        raise AddressError(address.text, f"the path has {size} bytes; a unix socket's has at most {_LONGEST_PATH}")
    if "\0" in name[1:]:
        raise AddressError(address.text, "the path contains a zero byte")
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
        """Connect. Blocks while the listener's backlog is full, as tcp does."""
        # A local connect succeeds or fails at once. EAGAIN means that the backlog is full. The kernel cannot report
        # when that changes: the socket is always writable, so waiting for that would be a busy loop.
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
        #: Path, device and inode of the socket file that this listener has made.
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
                raise AddressInUse(self._address, "another listener has the name") from error
            raise ConnectionFailed(self._address, describe_os_error(error)) from error

    def _bind_abstract(self) -> gsocket.socket:
        try:
            return self._bind(self._name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        # A socket that was closed in this turn of the event loop keeps the name until the turn ends.
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
        """Bind a temporary name beside the path, set the permissions, listen, and then link the path to it."""
        self._remove_stale()
        temporary = self._temporary_name()
        sock = self._bind(temporary)
        try:
            os.chmod(temporary, self._options.get(opts.transport.ipc.mode))
            sock.listen(self._options.get(opts.connector.listener.backlog))
            made = os.lstat(temporary)
            # A link fails if the path exists. So if two listeners start at the same time, one of them fails.
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
        # The program may change its working directory before the file is removed.
        self._file = os.path.abspath(self._name), made.st_dev, made.st_ino

    def _temporary_name(self) -> str:
        """Return a name of allowed length in the same directory as the path, so that the path can be linked to it."""
        folder, name = os.path.split(self._name)
        mark = os.urandom(4).hex()
        short = os.path.join(folder, f".{mark}")
        if len(os.fsencode(short)) > _LONGEST_PATH:
            raise ConnectionFailed(self._address, "the directory's path is too long for a temporary name in it")
        longer = os.path.join(folder, f".{name}.{mark}")
        return longer if len(os.fsencode(longer)) <= _LONGEST_PATH else short

    def _remove_stale(self) -> None:
        """Remove the path if it is a socket file without a listener.

        Raises:
            AddressInUse: a listener uses it.
            ConnectionFailed: it is not a socket.
        """
        try:
            found = os.lstat(self._name)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
            raise ConnectionFailed(self._address, f"the path exists and is {kind}; it was left alone")
        with plain_socket.socket(plain_socket.AF_UNIX, plain_socket.SOCK_STREAM) as probe:
            # A local connect succeeds or fails at once. EAGAIN means that the backlog of a live listener is full.
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
        # An error instead of a loop here: the accept loop lets other greenlets run between two errors.
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
                # Another program has removed the file or its directory.
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
