"""gmultisocket, with the options that it comes with; but fan-outs have a longer queue, as the others have there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gmultisocket import Socket

from .base import FAN_OUT, Contestant, query_to_dial

__all__ = ["Adapter"]

_HEADER = 8
#: What a WebSocket frame of a server puts in front of a short one of ours.
_WS_HEADER = 2


class Adapter(Contestant):
    green = True
    #: How many messages may wait for each peer of a fan-out; the default is 64.
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
        self.handshake = {"ws": "ws", "tls+tcp": "tls"}.get(scheme, "")
        return self.socket.listen(address).address + query_to_dial(address)

    def dial(self, purpose: str, address: str) -> None:
        self.socket.dial(address)

    def close(self) -> None:
        self.socket.close()

    def echo(self, count: int) -> None:
        for message in self.socket:
            self.socket.send_to(message.source, message.content)
            count -= 1
            if not count:
                return

    def frame_size(self, size: int) -> int:
        return _HEADER + size + (_WS_HEADER if self.handshake == "ws" else 0)

    def wait_peers(self, count: int) -> None:
        self.socket.wait_pipes(count)

    def stuff(self) -> None:
        """Fill the queue of the last peer, which does not read; what a peer cannot take is dropped from now on."""
        self.socket.set_option("socket.send_overflow", "drop_newest")
        pipe = list(self.socket.pipes.values())[-1]
        while not pipe.full:
            self.socket.send_to(pipe.path, bytes(65536))

    def in_process(self) -> tuple[Callable[[bytes], Any], Callable[[], bytes]]:
        receiver = Socket()
        receiver.listen("inproc://benchmark")
        self.socket.dial("inproc://benchmark")
        return self.send, receiver.recv
