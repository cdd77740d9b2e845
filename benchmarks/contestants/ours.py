"""gmultisocket with its default options; but fan-outs have a longer queue, as with the other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gmultisocket import Socket

from .base import FAN_OUT, Contestant, query_to_dial

__all__ = ["Adapter"]

_HEADER = 8
#: Bytes of the header of a server's WebSocket frame with a short message.
_WS_HEADER = 2


class Adapter(Contestant):
    green = True
    #: Maximum number of queued messages for each peer of a fan-out; the default is 64.
    fan_out_queue = 1000

    def __init__(self) -> None:
        self.socket = Socket()
        self.send = self.socket.send
        self.recv = self.socket.recv
        self.publish = self.socket.send_all

    def listen(self, purpose: str, address: str) -> str:
        if purpose == FAN_OUT:
            self.socket.set_option("socket.send_queue_size", self.fan_out_queue)
        scheme = address.partition("://")[0]
        self.handshake = {"ws": "ws", "wss": "wss", "tls+tcp": "tls"}.get(scheme, "")
        return self.socket.listen(address).address + query_to_dial(address)

    def dial(self, purpose: str, address: str) -> None:
        self.socket.dial(address)

    def echo(self) -> None:
        for message in self.socket:
            self.socket.send_to(message.source, message.content)

    def frame_size(self, size: int) -> int:
        return _HEADER + size + (_WS_HEADER if self.handshake in ("ws", "wss") else 0)

    def wait_peers(self, count: int) -> None:
        self.socket.wait_pipes(count)

    def stuff(self) -> None:
        """Fill the queue of the last peer, which does not read. Then the socket drops messages for full queues."""
        self.socket.set_option("socket.send_overflow", "drop_newest")
        pipe = list(self.socket.pipes.values())[-1]
        while not pipe.full:
            self.socket.send_to(pipe.path, bytes(65536))

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        receiver = Socket()
        receiver.listen("inproc://benchmark")
        self.socket.dial("inproc://benchmark")
        return self.send, receiver.recv
