"""What tests of many parts do with Sockets."""

from __future__ import annotations

from collections.abc import Callable

import gevent

from gmultisocket import Pipe, Socket


def only_pipe(sock: Socket) -> Pipe:
    """Return the one pipe that a Socket has."""
    (pipe,) = sock.pipes.values()
    return pipe


def calls_in_a_turn(call: Callable[[int], object]) -> int:
    """Call a function with 0, 1, 2 and so on, until another greenlet has run. Return the number of calls."""
    other = gevent.spawn(lambda: None)
    count = 0
    while not other.ready():
        call(count)
        count += 1
    return count
