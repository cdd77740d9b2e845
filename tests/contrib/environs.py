"""Requests as WSGI servers hand them over, without a server."""

from __future__ import annotations

import io
from typing import Any

from gmultisocket.contrib.wsgi import Mount
from tests.transport.wspeers import KEY

__all__ = ["Unreader", "call", "gunicorn"]


def call(mounted: Mount, **changes: Any) -> tuple[int, bytes]:
    """Call the application as a server does, and return status and body."""
    told: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": "/ws", "QUERY_STRING": "", "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "x", "HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade", "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "HTTP_SEC_WEBSOCKET_KEY": KEY, "HTTP_SEC_WEBSOCKET_PROTOCOL": "multisocket.binary",
        "wsgi.input": io.BytesIO(),
    } | changes  # fmt: skip
    body = b"".join(mounted(environ, lambda status, headers: told.append(status)))
    return int(told[0][:3]), body


def gunicorn(sock: Any) -> dict[str, Any]:
    """Return what gunicorn says beside: its gevent worker."""
    return {"gunicorn.socket": sock, "wsgi.multithread": True, "SERVER_SOFTWARE": "gunicorn/99.0"}


class Unreader:
    """Where a gunicorn before version 27 keeps what it has read ahead."""

    def __init__(self, data: bytes) -> None:
        self.unreader = self.reader = self
        self.buf = io.BytesIO()
        self.buf.write(data)
