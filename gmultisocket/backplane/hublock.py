"""One hub for each path: its lock, its files, and starting one.

A hub holds ``flock`` on ``PATH.lock`` as long as it lives, also while it is stopped; the kernel takes the lock back
when it dies. Only the holder listens. So of two that start at once one lives, and nobody starts a second one beside
one that is stopped. The lock file stays: another process may be about to lock it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final

from ..address import Address
from ..errors import AddressInUse, ConnectionFailed
from ..transport.stream import describe_os_error

__all__ = ["KEPT", "HubLock", "HubStarter", "path_of"]

#: The variable of the environment with the path of a hub that somebody keeps, so that nobody else needs to start one.
KEPT: Final = "GMULTISOCKET_HUB_KEPT"
#: Seconds that a hub which nobody keeps stays without clients.
_IDLE: Final = 10


def path_of(address: str) -> str:
    """Return the absolute path of an ipc address, "" for one without a file."""
    parsed = Address.parse(address)
    if parsed.scheme != "ipc" or parsed.location.startswith("@"):
        return ""
    return os.path.abspath(parsed.location)


class HubLock:
    """The lock of a hub's path. Without a path it does nothing.

    Args:
        address: where the hub listens.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._path = path_of(address)
        self._descriptor = -1
        #: The socket file that the hub has made.
        self._file: tuple[int, int] | None = None

    def __enter__(self) -> HubLock:
        """Take the lock. Never blocks.

        Raises:
            AddressInUse: another hub holds it.
            ConnectionFailed: the file cannot be made.
        """
        if not self._path:
            return self
        try:
            self._descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.__exit__(None, None, None)
            if error.errno in (errno.EAGAIN, errno.EACCES) and self._descriptor >= 0:
                raise AddressInUse(self._address, f"another hub holds {self._path}.lock") from None
            raise ConnectionFailed(self._address, f"{self._path}.lock: {describe_os_error(error)}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def made(self) -> None:
        """Remember the socket file, which the hub has just made."""
        if self._path:
            self._file = _identity(self._path)

    def is_mine(self) -> bool:
        """Return whether the socket file and the lock file are still those of this hub."""
        if not self._path:
            return True
        lock = os.fstat(self._descriptor)
        return _identity(self._path) == self._file and _identity(f"{self._path}.lock") == (lock.st_dev, lock.st_ino)


def _identity(path: str) -> tuple[int, int] | None:
    """Return the device and the inode of a file, None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class HubStarter:
    """Starts a hub where there is none, detached from this process. It ends soon after its last client.

    Args:
        address: of the hub.
        history: patterns of the topics whose publications it is to keep.
    """

    def __init__(self, address: str, history: Sequence[str] = ()) -> None:
        self._address = address
        self._history = history
        self._path = path_of(address)
        #: The process that was started last, until it has ended.
        self._pid = 0

    def start_if_none(self) -> None:
        """Start a hub, unless one lives, is starting, or somebody keeps one. Does not block.

        Raises:
            ConnectionFailed: none can live there, and this is why.
        """
        if not self._path or os.environ.get(KEPT) == self._path or self._is_starting():
            return
        try:
            with HubLock(self._address):
                pass
        except AddressInUse:
            return
        null = -1
        try:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            command = [sys.executable, "-m", "gmultisocket", "hub", f"ipc://{self._path}", "--idle", str(_IDLE)]
            command += [f"--history={pattern}" for pattern in self._history]
            # A process group of its own: Ctrl-C is not for it, and it lives on when this process ends.
            self._pid = os.posix_spawn(
                sys.executable,
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, null, descriptor) for descriptor in (0, 1, 2)],
                setsid=True,
            )
        except OSError as error:
            raise ConnectionFailed(self._address, f"no hub can be started: {describe_os_error(error)}") from error
        finally:
            if null >= 0:
                os.close(null)

    def _is_starting(self) -> bool:
        """Return whether the hub that was started lives. It takes its exit status, if it has ended."""
        if self._pid:
            try:
                ended = os.waitpid(self._pid, os.WNOHANG)[0]
            except ChildProcessError:
                # Somebody else has taken it.
                ended = self._pid
            if ended:
                self._pid = 0
        return bool(self._pid)
