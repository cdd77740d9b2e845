"""The libraries that are compared, and the module of each one's adapter.

Only the process that uses an adapter imports it: this module has names only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .base import Contestant

__all__ = ["CONTESTANTS", "load", "missing"]


class _Place(NamedTuple):
    module: str
    requires: str


CONTESTANTS = {
    "gmultisocket": _Place("ours", "gmultisocket"),
    "gmultisocket, queue of 64": _Place("short_queue", "gmultisocket"),
    "gmultisocket in pywsgi": _Place("mounted", "gevent"),
    "gmultisocket in gunicorn": _Place("ours", "gunicorn"),
    "gunicorn alone": _Place("ours", "gunicorn"),
    "pyzmq": _Place("pyzmq", "zmq"),
    "pyzmq, no limit": _Place("unlimited", "zmq"),
    "zmq.green": _Place("green", "zmq"),
    "pynng": _Place("nng", "pynng"),
    "gevent": _Place("bare", "gevent"),
    "gevent.ssl": _Place("bare_tls", "gevent"),
    "websockets.sync": _Place("websockets_sync", "websockets"),
    "python-socketio": _Place("socketio", "socketio"),
    "SimpleQueue": _Place("queue", "gevent"),
}


def missing(name: str) -> str:
    """Return why a contestant cannot run, "" if it can."""
    requires = CONTESTANTS[name].requires
    return "" if find_spec(requires) else f"{requires} is not installed"


def load(name: str) -> Contestant:
    """Return a new contestant, by its name."""
    adapter = import_module(f".{CONTESTANTS[name].module}", __name__)
    contestant: Contestant = adapter.Adapter()
    return contestant
