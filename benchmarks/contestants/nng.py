"""pynng: its own threads do the network's work, and its calls block the calling thread.

Pair0 with buffers of 1,000 messages is for one way and round trip: it loses nothing, and it was measured to be faster
than Push0 and Pull0, and than Req0 and Rep0. Pub0 is for fan-outs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pynng  # type: ignore[import-untyped]

from .base import FAN_OUT, Contestant

__all__ = ["Adapter"]

_BUFFER = 1000
#: Messages. Pub0 drops a message for a peer whose queue is full; it allows no longer queue.
_FAN_OUT_BUFFER = 8192


class Adapter(Contestant):
    handshake = "sp"

    def listen(self, purpose: str, address: str) -> str:
        self._peers = 0
        if purpose == FAN_OUT:
            self._use(pynng.Pub0(send_buffer_size=_FAN_OUT_BUFFER))
            self._socket.add_post_pipe_connect_cb(self._connected)
        else:
            self._use(pynng.Pair0(send_buffer_size=_BUFFER, recv_buffer_size=_BUFFER))
        local = self._socket.listen(address).local_address
        return f"tcp://{local}" if address.startswith("tcp:") else address

    def dial(self, purpose: str, address: str) -> None:
        self._use(pynng.Pair0(send_buffer_size=_BUFFER, recv_buffer_size=_BUFFER))
        self._socket.dial(address, block=True)

    def frame_size(self, size: int) -> int:
        return 8 + size

    def wait_peers(self, count: int) -> None:
        while self._peers < count:
            time.sleep(0.01)

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        receiver = Adapter()
        receiver.listen("", "inproc://benchmark")
        self.dial("", "inproc://benchmark")
        return self.send, receiver.recv

    def _use(self, socket: Any) -> None:
        self._socket = socket
        self.send = self.publish = socket.send
        self.recv = socket.recv

    def _connected(self, pipe: object) -> None:
        self._peers += 1
