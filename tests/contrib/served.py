"""The application that the gunicorns of tests serve: who sends to it hears which process has answered, and what.

It compresses for peers that can, and refuses those with the query ``out``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import gevent

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import BrokenPath

__all__ = ["application"]

#: Socket and greenlet of this worker; nobody else holds them.
_kept: list[object] = []


def _make() -> Socket:
    sock = Socket()
    _kept[:] = [sock, gevent.spawn(_answer, sock)]
    return sock


def _answer(sock: Socket) -> None:
    for message in sock:
        with suppress(BrokenPath):
            sock.send_to(message.source, b"%d %b" % (os.getpid(), message.content))


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"a page"]


application = mount(
    _make, "/ws", _page,
    {"transport.ws.compress_over": 256,
     "transport.ws.listener.refuse_with": "code_to_pages",
     "transport.ws.listener.authorize": lambda request: 401 if request.query == "out" else None},
)  # fmt: skip
