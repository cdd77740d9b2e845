"""Plain pyzmq: REQ and REP, XPUB and PUSH, with its own handling of topics.

For many requests in flight a DEALER sends them, which need not wait for a reply, and a REP answers as before. XPUB is
PUB that reports subscriptions; without a high-water mark it drops nothing. A topic is the beginning of the message, as
SUB requires.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import zmq

from .base import Protocols

__all__ = ["Adapter"]

_ANY_PORT = "tcp://127.0.0.1:0"
#: A frame with at most this many bytes of content has a length of one byte, a longer one of eight.
_SHORT = 255


class Adapter(Protocols):
    handshake = "zmtp"
    library: ModuleType = zmq

    def __init__(self) -> None:
        self.context = self.library.Context()

    def answer(self, address: str, listening: Callable[[str], None]) -> None:
        listening(self._listen(zmq.REP, address))
        recv, send = self.socket.recv, self.socket.send
        while True:
            send(recv())

    def dial_rep(self, address: str) -> None:
        self._use(zmq.REQ).connect(address)
        send, recv = self.socket.send, self.socket.recv

        def ask(content: bytes) -> bytes:
            send(content)
            reply: bytes = recv()
            return reply

        self.ask = ask

    def ask_many(self, address: str, content: bytes, in_flight: int) -> Callable[[int], int]:
        self._use(zmq.DEALER).connect(address)
        send, recv = self.socket.send_multipart, self.socket.recv_multipart
        question = [b"", content]

        def run(count: int) -> int:
            for _ in range(in_flight):
                send(question)
            for _ in range(count - in_flight):
                recv()
                send(question)
            return min(len(recv()[1]) for _ in range(in_flight))

        return run

    def listen_pub(self) -> str:
        address = self._listen(zmq.XPUB, _ANY_PORT)
        send = self.socket.send
        self.publish = lambda topic, content: send(topic.encode() + content)
        return address

    def wait_subscriptions(self, count: int) -> None:
        for _ in range(count):
            self.socket.recv()

    def publication_size(self, topic: str, size: int) -> int:
        return self.work_size(len(topic) + size)

    def listen_push(self) -> str:
        address = self._listen(zmq.PUSH, _ANY_PORT)
        self.push = self.socket.send
        return address

    def work_size(self, size: int) -> int:
        return size + (2 if size <= _SHORT else 9)

    def _use(self, kind: int) -> Any:
        self.socket = self.context.socket(kind)
        return self.socket

    def _listen(self, kind: int, address: str) -> str:
        socket = self._use(kind)
        if kind == zmq.XPUB:
            socket.set_hwm(0)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            socket.setsockopt(zmq.BACKLOG, 4096)
        socket.bind(address)
        endpoint: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)
        return endpoint.rstrip(b"\0").decode()
