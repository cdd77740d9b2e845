"""zmq.green: pyzmq with calls that wait in gevent's loop. Used as pyzmq is."""

from __future__ import annotations

import zmq.green

from . import pyzmq

__all__ = ["Adapter"]


class Adapter(pyzmq.Adapter):
    green = True
    library = zmq.green
