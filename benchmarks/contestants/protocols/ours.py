"""gmultisocket's protocols with their default options; but a Pub drops no messages, as with the other libraries."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from gevent import sleep

from gmultisocket.protocol import Pub, Push, Rep, Req

from .base import Protocols

__all__ = ["Adapter"]

_HEADER = 8
_TOPIC_LENGTH = 2
_ANY_PORT = "tcp://127.0.0.1:0"


class Adapter(Protocols):
    green = True
    handshake = "gmultisocket"

    def answer(self, address: str, listening: Callable[[str], None]) -> None:
        with Rep(bytes) as rep:
            listening(rep.listen(address).address)
            rep.serve_forever()

    def dial_rep(self, address: str) -> None:
        self._protocol: Any = Req()
        self._protocol.dial(address)
        self.ask = self._protocol.request

    def ask_many(self, address: str, content: bytes, in_flight: int) -> Callable[[int], int]:
        self.dial_rep(address)
        ask = self._protocol.request_async

        def run(count: int) -> int:
            asked = deque(ask(content) for _ in range(in_flight))
            for _ in range(count - in_flight):
                asked.popleft().get()
                asked.append(ask(content))
            return min(len(request.get()) for request in asked)

        return run

    def listen_pub(self) -> str:
        self._protocol = Pub({"socket.send_overflow": "block"})
        self.publish = self._protocol.publish
        return str(self._protocol.listen(_ANY_PORT).address)

    def wait_subscriptions(self, count: int) -> None:
        while self._protocol.subscriptions < count:
            sleep(0.005)

    def publication_size(self, topic: str, size: int) -> int:
        return _HEADER + _TOPIC_LENGTH + len(topic) + size

    def listen_push(self) -> str:
        self._protocol = Push()
        self.push = self._protocol.send
        return str(self._protocol.listen(_ANY_PORT).address)

    def wait_takers(self, count: int) -> None:
        self._protocol.wait_pipes(count)

    def work_size(self, size: int) -> int:
        return _HEADER + size
