"""An application for the gunicorns of tests whose own code fails at every place where the library calls it."""

from __future__ import annotations

import gevent

from gmultisocket import PipeEvent, Rep, Req
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import HandlerFailed
from gmultisocket.transport.wshandshake import UpgradeRequest

__all__ = ["application"]

#: What this worker has made; nobody else holds it.
_kept: list[object] = []


def _fail_in_handler(content: bytes) -> bytes:
    raise RuntimeError("failed in the handler")


def _fail_in_callback(event: PipeEvent) -> None:
    raise RuntimeError("failed in the callback")


def _authorize(request: UpgradeRequest) -> None:
    if request.query == "fail":
        raise RuntimeError("failed in authorize")


def _ask(req: Req) -> None:
    for _ in range(10):
        try:
            req.request(b"")
        except HandlerFailed:
            pass


def _make() -> object:
    rep, req = Rep(_fail_in_handler), Req()
    rep.on_pipe(_fail_in_callback)
    rep.start()
    req.dial(rep.listen("inproc://failing").address)
    _kept[:] = [rep, req, gevent.spawn(_ask, req)]
    return rep.socket


application = mount(_make, "/ws", None, {"transport.ws.listener.authorize": _authorize})  # type: ignore[arg-type]
