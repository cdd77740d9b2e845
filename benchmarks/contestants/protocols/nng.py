"""pynng: Req0 and Rep0, with a context for each request in flight, and Push0.

Its Pub0 is not used: it sends every message to every subscriber, and the subscribers filter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice

import pynng  # type: ignore[import-untyped]

from .base import Protocols

__all__ = ["Adapter"]

_ANY_PORT = "tcp://127.0.0.1:0"
_HEADER = 8
#: Messages, as many as zmq's high-water mark.
_BUFFER = 1000


class Adapter(Protocols):
    handshake = "sp"

    def answer(self, address: str, listening: Callable[[str], None]) -> None:
        socket = pynng.Rep0()
        listening(f"tcp://{socket.listen(address).local_address}")
        recv, send = socket.recv, socket.send
        while True:
            send(recv())

    def dial_rep(self, address: str) -> None:
        self._socket = pynng.Req0()
        self._socket.dial(address, block=True)
        send, recv = self._socket.send, self._socket.recv

        def ask(content: bytes) -> bytes:
            send(content)
            reply: bytes = recv()
            return reply

        self.ask = ask

    def ask_many(self, address: str, content: bytes, in_flight: int) -> Callable[[int], int]:
        self.dial_rep(address)
        contexts = [self._socket.new_context() for _ in range(in_flight)]

        def run(count: int) -> int:
            for context in contexts:
                context.send(content)
            for context in islice(cycle(contexts), count - in_flight):
                context.recv()
                context.send(content)
            return min(len(context.recv()) for context in contexts)

        return run

    def listen_push(self) -> str:
        self._peers = 0
        self._socket = pynng.Push0(send_buffer_size=_BUFFER)
        self._socket.add_post_pipe_connect_cb(self._connected)
        self.push = self._socket.send
        return f"tcp://{self._socket.listen(_ANY_PORT).local_address}"

    def wait_takers(self, count: int) -> None:
        while self._peers < count:
            time.sleep(0.01)

    def work_size(self, size: int) -> int:
        return _HEADER + size

    def _connected(self, pipe: object) -> None:
        self._peers += 1
