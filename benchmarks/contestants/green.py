"""zmq.green: pyzmq with calls that wait in gevent's loop. It is used in the same way as pyzmq."""

from __future__ import annotations

import zmq.green

from . import pyzmq

__all__ = ["Adapter"]


class Adapter(pyzmq.Adapter):
    green = True
    library = zmq.green
