"""python-socketio under gevent.pywsgi: a server that emits an event with a text to all its WebSocket clients.

Its pings are put off: they would be counted with the events. Everything else is its default.
"""

from __future__ import annotations

from typing import Any

import socketio  # type: ignore[import-not-found]
from gevent import sleep
from gevent.pywsgi import WSGIServer

from .base import Contestant

__all__ = ["Adapter"]

_NO_PINGS = 10_000
#: Around a short text: the header of a WebSocket frame, the type of the packet, and the event's name as JSON.
_AROUND = 2 + len('42["m",""]')


class Adapter(Contestant):
    green = True
    handshake = "socket.io"

    def __init__(self) -> None:
        self._server: Any = socketio.Server(async_mode="gevent", ping_interval=_NO_PINGS, ping_timeout=_NO_PINGS)
        self._server.on("connect", self._connected)
        self._connections = 0
        self.publish = self._publish

    def listen(self, purpose: str, address: str) -> str:
        self._wsgi = WSGIServer(("127.0.0.1", 0), socketio.WSGIApp(self._server), log=None, backlog=4096)
        self._wsgi.start()
        return f"ws://127.0.0.1:{self._wsgi.server_port}/"

    def frame_size(self, size: int) -> int:
        return _AROUND + size

    def wait_peers(self, count: int) -> None:
        while self._connections < count:
            sleep(0.01)

    def _connected(self, client: str, environ: object) -> None:
        self._connections += 1

    def _publish(self, content: bytes) -> None:
        self._server.emit("m", content.decode())
