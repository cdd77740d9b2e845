"""ipc: byte streams within a host, through unix sockets.

Addresses are ``ipc:///absolute/path``, ``ipc://relative/path``, or ``ipc://@name`` for abstract names of Linux. These
have no file and no permissions: restrict them with ``transport.ipc.allow_uids``. A relative path starts at the working
directory at the time of the call, and a dialer comes back to the same file when the program has changed the directory.

A listener finds out whether an existing socket file is in use, also before its owner listens. If its process is dead,
the file is replaced. The socket file of a live listener, also of one with a full backlog, and any other file are left
alone. A new file has the permissions of ``transport.ipc.mode`` before anybody can connect. A listener removes only the
file that it made.

Source: transport/ipc of the Go code, which removes a living server's socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket as plain_socket
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import gevent
from gevent import socket as gsocket

from .. import options as opts
from ..address import Address
from ..errors import AddressError, AddressInUse, BadOptionValue, Closed, ConnectionFailed, ConnectionRefused
from ..options import Options
from .base import Connection, Transport, TransportDialer, TransportListener
from .stream import SocketConnection, abandon_socket, describe_os_error

__all__ = ["TRANSPORT", "IPCConnection", "IPCListener"]

#: The maximum length of a unix socket's path in bytes (sun_path, without the zero at its end).
_LONGEST_PATH = 107
_CREDENTIALS = struct.Struct("3i")
#: The socket option that names the peer's process and user: not every system has it.
_PEERCRED: int | None = getattr(plain_socket, "SO_PEERCRED", None)
#: Seconds between attempts to connect to a listener whose backlog is full: the first pause and the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
#: Attempts to lock a directory: about a second, if another program holds its lock.
_LOCK_ATTEMPTS = 20


class IPCConnection(SocketConnection):
    """A connected unix socket."""

    __slots__ = ("_address", "_identity")

    def __init__(self, sock: gsocket.socket, address: str) -> None:
        super().__init__(sock)
        self._address = address
        self._identity: tuple[int, ...] = ()
        if _PEERCRED is not None:
            self._identity = _CREDENTIALS.unpack(sock.getsockopt(gsocket.SOL_SOCKET, _PEERCRED, _CREDENTIALS.size))

    @property
    def local_address(self) -> str:
        return self._address

    @property
    def peer_address(self) -> str:
        return self._address

    @property
    def identity(self) -> Mapping[str, Any]:
        """The ``pid``, ``uid`` and ``gid`` that the peer had when it connected or began to listen, from the kernel.

        Empty on systems without SO_PEERCRED.
        """
        return dict(zip(("pid", "uid", "gid"), self._identity, strict=False))


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
    if abstract and not sys.platform.startswith("linux"):
        raise AddressError(address.text, "only Linux has abstract names: expected a path")
    size = len(os.fsencode(name))
    if size > _LONGEST_PATH:
        raise AddressError(address.text, f"the path has {size} bytes; a unix socket's has at most {_LONGEST_PATH}")
    if "\0" in name[1:]:
        raise AddressError(address.text, "the path contains a zero byte")
    return name if abstract or os.path.isabs(name) else _from_here(name)


def _from_here(path: str) -> str:
    """Return a relative path with the working directory before it, because the program may change that later.

    Return the path itself where that is not possible: the result would be too long, or the directory was removed.
    """
    try:
        whole = os.path.join(os.getcwd(), path)
    except OSError:
        return path
    return whole if len(os.fsencode(whole)) <= _LONGEST_PATH else path


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


class IPCListener(TransportListener):
    """Listens at one path or name."""

    __slots__ = ("_address", "_file", "_name", "_options", "_sock", "_uids")

    def __init__(self, address: Address, options: Options) -> None:
        self._address = address.bare
        self._name = _name(address)
        self._options = options
        self._uids = options.get(opts.transport.ipc.allow_uids)
        if self._uids is not None and _PEERCRED is None:
            why = "None on this system, which does not tell a peer's user"
            raise BadOptionValue(opts.transport.ipc.allow_uids.name, self._uids, why)
        self._sock: Any = None
        #: Path, device and inode of the socket file that this listener has made.
        self._file: tuple[str, int, int] | None = None

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        try:
            if self._name.startswith("\0"):
                self._listen_at_name()
            else:
                self._listen_at_path()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                what = "name" if self._name.startswith("\0") else "path"
                raise AddressInUse(self._address, f"another listener has the {what}") from error
            raise ConnectionFailed(self._address, describe_os_error(error)) from error

    def _listen_at_name(self) -> None:
        """Bind the abstract name, and listen."""
        sock = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_STREAM)
        try:
            try:
                sock.bind(self._name)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                # A socket that was closed in this turn of the event loop keeps the name until the turn ends.
                gevent.sleep(0)
                sock.bind(self._name)
            sock.listen(self._options.get(opts.connector.listener.backlog))
        except BaseException:
            sock.close()
            raise
        self._sock = sock

    def _listen_at_path(self) -> None:
        """Bind the path, set the permissions of its file, and listen: nobody can connect before that."""
        mode = self._options.get(opts.transport.ipc.mode)
        self._remove_stale()
        sock = gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_STREAM)
        try:
            # On Linux the file gets the mode of the socket, without the umask's bits: never too many of them.
            with suppress(OSError):
                os.fchmod(sock.fileno(), mode)
            # Fails if the path exists. So if two listeners start at the same time, one of them fails.
            sock.bind(self._name)
            # The program may change its working directory before the file is removed.
            self._file = os.path.abspath(self._name), *_identity_of(os.lstat(self._name))
            os.chmod(self._name, mode)
            sock.listen(self._options.get(opts.connector.listener.backlog))
        except BaseException:
            sock.close()
            self._remove_file()
            raise
        self._sock = sock

    def _remove_stale(self) -> None:
        """Remove the path if it is a socket file without an owner.

        Raises:
            AddressInUse: a live socket has it, or one that cannot be checked.
            ConnectionFailed: it is not a socket.
        """
        if self._is_stale():
            with _locked(os.path.dirname(os.path.abspath(self._name))):
                # Another listener may have replaced the file before the lock was taken.
                if self._is_stale():
                    os.unlink(self._name)

    def _is_stale(self) -> bool:
        """Return whether the path is a socket file without an owner, False if it does not exist. Raises as above."""
        try:
            found = os.lstat(self._name)
        except FileNotFoundError:
            return False
        if not stat.S_ISSOCK(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a socket"
            raise ConnectionFailed(self._address, f"the path exists and is {kind}; it was left alone")
        # A datagram socket never gets through to a stream socket, so its owner does not notice. The kernel names the
        # wrong type if there is an owner, also one that does not listen yet.
        answer = _probe(self._name, plain_socket.SOCK_DGRAM)
        if answer == errno.ECONNREFUSED:
            # For systems that look at the type first. EAGAIN would mean that the backlog of a live listener is full.
            answer = _probe(self._name, plain_socket.SOCK_STREAM)
        if answer in (errno.ECONNREFUSED, errno.ENOENT):
            return answer == errno.ECONNREFUSED
        why = "another listener has the path"
        if answer not in (0, errno.EPROTOTYPE, errno.EAGAIN):
            why = f"a socket has the path, and whether it is in use cannot be checked: {os.strerror(answer).lower()}"
        raise AddressInUse(self._address, why)

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
        uid = connection.identity.get("uid")
        if self._uids is None or uid in self._uids:
            return connection
        connection.close()
        # An error instead of a loop here: the accept loop lets other greenlets run between two errors.
        raise ConnectionAbortedError(errno.ECONNABORTED, f"user {uid} is not in transport.ipc.allow_uids")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._remove_file()

    def _remove_file(self) -> None:
        """Remove the socket file, if it is still the one that this listener has made."""
        made, self._file = self._file, None
        if made is not None:
            path, *identity = made
            # Another program may have removed the file or its directory.
            with suppress(OSError):
                if [*_identity_of(os.lstat(path))] == identity:
                    os.unlink(path)

    def abandon(self) -> None:
        self._file = None
        if self._sock is not None:
            abandon_socket(self._sock)


def _identity_of(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _probe(name: str, kind: int) -> int:
    """Return the error number of a connect by a socket of some type, 0 if it succeeds. Never blocks."""
    with plain_socket.socket(plain_socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        return probe.connect_ex(name)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Hold the directory's lock, which other listeners of this library take before they remove a file there.

    Blocks at most a second. Without the lock, where the system gives none, two listeners that start at the same moment
    at the path of a dead one may both have it.
    """
    descriptor = -1
    try:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            for _ in range(_LOCK_ATTEMPTS):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    gevent.sleep(_LONGEST_PAUSE)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


class IPCTransport(Transport):
    """The ipc transport."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = ("ipc",)

    def families(self, scheme: str) -> tuple[str, ...]:
        return ("transport.ipc",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return _Dialer(address)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return IPCListener(address, options)


TRANSPORT = IPCTransport()
