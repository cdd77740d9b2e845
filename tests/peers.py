"""What tests of many parts do with Sockets."""

from __future__ import annotations

from gmultisocket import Pipe, Socket


def only_pipe(sock: Socket) -> Pipe:
    """Return the one pipe that a Socket has."""
    (pipe,) = sock.pipes.values()
    return pipe
