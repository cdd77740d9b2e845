"""The application that gunicorn serves in the tests of metrics and of the live page: a Pub, and what shows it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

from gmultisocket import Pub, Socket
from gmultisocket.contrib.monitor import Monitor
from gmultisocket.contrib.prometheus import Collector
from gmultisocket.contrib.wsgi import mount

__all__ = ["application"]

_FOLDER = os.environ["STATS"]
_registry = CollectorRegistry()
_registry.register(Collector(_FOLDER))
_metrics = make_wsgi_app(_registry)
_kept: list[object] = []


def _make() -> Socket:
    pub = Pub({"socket.name": "news"})
    _kept[:] = [pub, gevent.spawn(_publish, pub)]
    return pub.socket


def _publish(pub: Pub) -> None:
    while True:
        pub.publish("news.weather", b"rain")
        gevent.sleep(0.02)


def _page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        return _metrics(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]


application = Monitor("/monitor", mount(_make, "/ws", _page), authorize=None, folder=_FOLDER)
