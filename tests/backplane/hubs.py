"""Hubs for tests: real processes."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable

from gmultisocket.testing.engines import ServerProcess

__all__ = ["history_arguments", "hub", "listens"]


def hub(address: str, *arguments: str) -> ServerProcess:
    """Return a hub that was not started yet."""
    command = [sys.executable, "-m", "gmultisocket", "hub", address, *arguments]
    return ServerProcess(command, lambda: listens(address))


def history_arguments(patterns: Iterable[str]) -> list[str]:
    """Return the arguments by which a hub keeps the history of topics."""
    return [word for pattern in patterns for word in ("--history", pattern)]


def listens(address: str) -> bool:
    """Return whether a connection to an address is accepted."""
    scheme, _, location = address.partition("://")
    family = socket.AF_UNIX if scheme == "ipc" else socket.AF_INET
    host, _, port = location.rpartition(":")
    target = location if scheme == "ipc" else (host, int(port))
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(target) == 0
