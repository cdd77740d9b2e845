"""Plain pyzmq: its I/O thread does the network's work, and its calls block the calling thread.

PUSH and PULL are for one way: they block at the high-water mark, 1,000 messages by default, and lose nothing. DEALER at
both ends is for the round trip: it was measured to be faster than REQ and REP, and than PAIR. XPUB is for fan-outs,
without a high-water mark, so that it drops nothing: PUB is the same code, but it does not report subscriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import zmq

from .base import ECHO, FAN_OUT, ONE_WAY, Contestant

__all__ = ["Adapter"]

_LISTENER = {ONE_WAY: zmq.PULL, ECHO: zmq.DEALER, FAN_OUT: zmq.XPUB}
_DIALER = {ONE_WAY: zmq.PUSH, ECHO: zmq.DEALER}
#: A frame with at most this many bytes of content has a length of one byte, a longer one of eight.
_SHORT = 255


class Adapter(Contestant):
    handshake = "zmtp"
    library: ModuleType = zmq
    #: Maximum number of queued messages at each end of a one-way connection; 0 for no limit.
    high_water_mark = 1000

    def __init__(self) -> None:
        self.context = self.library.Context()

    def _use(self, kind: int) -> Any:
        self.socket = self.context.socket(kind)
        self.socket.set_hwm(self.high_water_mark)
        self.send = self.publish = self.socket.send
        self.recv = self.socket.recv
        return self.socket

    def listen(self, purpose: str, address: str) -> str:
        socket = self._use(_LISTENER[purpose])
        if purpose == FAN_OUT:
            socket.setsockopt(zmq.SNDHWM, 0)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            socket.setsockopt(zmq.BACKLOG, 4096)
        socket.bind(address)
        endpoint: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)
        return endpoint.rstrip(b"\0").decode()

    def dial(self, purpose: str, address: str) -> None:
        self._use(_DIALER[purpose]).connect(address)

    def frame_size(self, size: int) -> int:
        return size + (2 if size <= _SHORT else 9)

    def wait_peers(self, count: int) -> None:
        for _ in range(count):
            self.recv()

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        receiver = self.context.socket(zmq.PULL)
        receiver.bind("inproc://benchmark")
        self._use(zmq.PUSH).connect("inproc://benchmark")
        return self.send, receiver.recv
