"""inproc: sockets of one process, connected by name. Whole messages are passed on.

All schemes share one set of names. The Go code has the variants ``inproc.channel``, ``.msr``, ``.sr``, ``.rw``,
``inproc.iopipe`` and ``inproc.netpipe``; here they are the same transport. gevent objects belong to their thread, so a
name can be dialed only from the OS thread of its listener.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from gevent import get_hub
from gevent.hub import Hub
from gevent.lock import Semaphore
from gevent.queue import SimpleQueue

from .. import options as opts
from ..address import Address
from ..errors import AddressInUse, Closed, ConnectionFailed, ConnectionRefused
from ..options import Options
from .base import Connection, MessageConnection, Transport, TransportDialer, TransportListener

__all__ = ["TRANSPORT", "InprocConnection", "connected_pair", "names"]

_listeners: dict[str, _Listener] = {}


def names() -> list[str]:
    """Return the names that have a listener, sorted."""
    return sorted(_listeners)


class InprocConnection(MessageConnection):
    """One end of a connection within the process."""

    __slots__ = ("_address", "closed", "peer", "pipe")

    peer: InprocConnection

    def __init__(self, address: str) -> None:
        self._address = address
        self.pipe: Any = None
        self.closed = False

    @property
    def local_address(self) -> str:
        return self._address

    @property
    def peer_address(self) -> str:
        return self._address

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.pipe = None
        peer = self.peer
        if peer.pipe is not None:
            peer.pipe.close("the peer closed the connection")
        else:
            peer.close()

    def abandon(self) -> None:
        self.closed = True
        self.pipe = None


def connected_pair(address: str) -> tuple[InprocConnection, InprocConnection]:
    """Return the two ends of a new connection."""
    ends = InprocConnection(address), InprocConnection(address)
    ends[0].peer, ends[1].peer = ends[1], ends[0]
    return ends


class _Listener(TransportListener):
    __slots__ = ("_address", "_backlog", "_closed", "_hub", "_name", "_places")

    def __init__(self, address: Address, options: Options) -> None:
        self._name = address.location
        self._address = address.bare
        self._hub: Hub = get_hub()
        #: Connections that are not accepted yet; None after close().
        self._backlog: SimpleQueue[InprocConnection | None] = SimpleQueue()
        self._places = Semaphore(options.get(opts.connector.listener.backlog))
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    def listen(self) -> None:
        if self._name in _listeners:
            raise AddressInUse(self._address, "the name is in use by another listener of this process")
        _listeners[self._name] = self

    def connect(self, address: str) -> InprocConnection:
        """Put one end of a new connection into the backlog, and return the other. Blocks while the backlog is full."""
        if self._hub is not get_hub():
            raise ConnectionFailed(address, "its listener is in another OS thread; inproc works within one thread")
        self._places.acquire()
        if self._closed:
            # The next waiting dialer must also find out that the listener is closed.
            self._places.release()
            raise ConnectionRefused(address, "nobody listens to the name")
        near, far = connected_pair(self._address)
        self._backlog.put(far)
        return near

    def accept(self) -> Connection:
        connection = self._backlog.get()
        if connection is None:
            self._backlog.put(None)
            raise Closed("listener")
        self._places.release()
        return connection

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if _listeners.get(self._name) is self:
            del _listeners[self._name]
        while not self._backlog.empty():
            connection = self._backlog.get_nowait()
            if connection is not None:
                connection.close()
                self._places.release()
        self._backlog.put(None)

    def abandon(self) -> None:
        self._closed = True
        _listeners.pop(self._name, None)


class _Dialer(TransportDialer):
    __slots__ = ("_address",)

    def __init__(self, address: Address) -> None:
        self._address = address

    def connect(self) -> Connection:
        listener = _listeners.get(self._address.location)
        if listener is None:
            raise ConnectionRefused(self._address.bare, "nobody listens to the name in this process")
        return listener.connect(self._address.bare)


class InprocTransport(Transport):
    """The inproc transport, under all its names."""

    __slots__ = ()

    schemes: ClassVar[tuple[str, ...]] = (
        "inproc",
        "inproc.channel",
        "inproc.channel.msr",
        "inproc.channel.sr",
        "inproc.channel.rw",
        "inproc.iopipe",
        "inproc.netpipe",
    )

    def families(self, scheme: str) -> tuple[str, ...]:
        return ("transport.inproc",)

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return _Dialer(address)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return _Listener(address, options)


TRANSPORT = InprocTransport()

# A forked child has none of its parent's sockets, and may use the same names.
os.register_at_fork(after_in_child=_listeners.clear)
