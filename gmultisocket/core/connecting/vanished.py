"""Peers that vanish while data is on its way to them. The kernel's keepalive looks only for those with none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import gevent
from gevent import Greenlet, getcurrent
from gevent.hub import Hub

from ...errors import Timeout, snippet
from ...log import ThrottledLog, get_logger
from ...loop.ending import LOG_INTERVAL, survive
from ...loop.yielding import yield_to_loop
from ..pipes.bytespipe import BytesPipe
from ..pipes.pipe import Pipe, PipeState

__all__ = ["VanishedPeers"]

_log: Final = ThrottledLog(get_logger("gmultisocket.pipe"), LOG_INTERVAL)
#: Seconds between two looks at the pipes.
_STEP: Final = 5.0
#: After this number of pipes other greenlets run.
_BATCH: Final = 1000


class _Vanished(Timeout):
    """Why the pipe of a vanished peer closes."""

    def __init__(self, seconds: float) -> None:
        super().__init__("keepalive", seconds)

    def __str__(self) -> str:
        return f"the peer has acknowledged nothing for {self.seconds:.1f} s"


class VanishedPeers:
    """Closes the pipes of such peers, for one socket.

    It looks in the hub, by a timer: a greenlet would take 4 KB. It has one only while it looks at many pipes.

    Args:
        hub: the hub of the socket's thread.
        pipes: the open pipes of the socket.
    """

    __slots__ = ("_greenlet", "_hub", "_pipes", "_timer")

    def __init__(self, hub: Hub, pipes: Mapping[int, Pipe]) -> None:
        self._hub = hub
        self._pipes = pipes
        #: Exists while there are pipes, and one of them may be to another machine.
        self._timer: Any = None
        self._greenlet: Greenlet[..., Any] | None = None

    def watch(self, pipe: BytesPipe) -> None:
        """Begin to look, if the pipe's peer has an address in a network. Never blocks."""
        if self._timer is None and pipe._connection.peer_host:
            self._timer = self._hub.loop.timer(_STEP, _STEP, ref=False)
            self._timer.start(self._tick)

    def stop(self) -> None:
        """Stop looking. Never blocks."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if self._greenlet is not None:
            self._greenlet.kill(block=False)

    def join(self) -> None:
        """Block until the greenlet has ended. Return at once if the caller is that greenlet."""
        if self._greenlet is not None and self._greenlet is not getcurrent():
            self._greenlet.join()

    def _tick(self) -> None:
        if len(self._pipes) < _BATCH:
            self._look()
        elif self._greenlet is None or self._greenlet.ready():
            self._greenlet = gevent.spawn(self._look)

    def _look(self) -> None:
        for number, pipe in enumerate([*self._pipes.values()], 1):
            if number % _BATCH == 0:
                yield_to_loop()
            if not isinstance(pipe, BytesPipe) or pipe.state is PipeState.CLOSED:
                continue
            try:
                if seconds := pipe._connection.vanished():
                    pipe.close(_Vanished(seconds))
            except Exception as error:
                # The others must be looked at. Never blocks, so no kill of the greenlet arrives here.
                text = "the check of pipe %d to %s failed, and will be repeated"
                survive(_log, type(error).__name__, error, text, pipe.id, snippet(pipe.peer_address))
        if not self._pipes and self._timer is not None:
            self._timer.close()
            self._timer = None
