"""What the gunicorn of the browser tests serves: a page, a login, and two sessions, one of them for those logged in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from gmultisocket import Pub, Rep, Session
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import RequestRefused

__all__ = ["application"]

#: The protocols of this worker.
_kept: list[object] = []


def _make() -> Session:
    pub = Pub()
    pub.publish("state.worker", b"%d" % os.getpid(), retain=True)

    def handle(content: bytes) -> bytes:
        """Publish what is given, and say which worker this is."""
        topic, _, body = content.decode().partition(" ")
        if topic:
            pub.publish(topic, body.encode())
        return b"%d" % os.getpid()

    rep = Rep(handle, concurrency=10)
    rep.start()
    session = Session({"events": pub, "rpc": rep})
    _kept.extend((pub, rep, session))
    return session


def _log_in(request: Any) -> str:
    cookies = request.headers.get("Cookie", "")
    if "user=" not in cookies:
        raise RequestRefused(401, "log in")
    return str(cookies.partition("user=")[2])


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    headers = [("Content-Type", "text/html")]
    if environ["PATH_INFO"] == "/login":
        headers.append(("Set-Cookie", "user=ada; Path=/"))
    start_response("200 OK", headers)
    return [b"<!DOCTYPE html><title>a page</title>"]


_open = mount(_make, "/ws", _app)
application = mount(_make, "/private", _open, {"transport.ws.listener.authorize": _log_in})
