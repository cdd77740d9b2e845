"""A tcp proxy that does to a connection what networks do: a test stands it between a dialer and its listener.

::

    with Proxy(listener) as proxy:
        client.dial(proxy.address)
        proxy.to_server.latency = 0.05      # from now on, for what the client sends
        proxy.reset_all()                   # and now every connection is reset

What a direction suffers is said by its :class:`Faults`, which may be changed at any time and hold for all connections.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from urllib.parse import urlsplit

import gevent
from gevent import Greenlet, socket
from gevent.event import Event
from gevent.server import StreamServer

from gmultisocket import Listener

__all__ = ["Faults", "Proxy"]

#: Bytes that a direction takes in before it holds up the sender.
_BUFFER = 65536


@dataclass(slots=True)
class Faults:
    """What happens to the bytes of one direction.

    Attributes:
        latency: seconds that every byte is late.
        bandwidth: bytes a second; 0 for any number.
        slice: pass bytes on in pieces of at most this size, each in a packet of its own; 0 for as they come.
        slice_pause: seconds between two pieces.
        limit: bytes that a connection passes in all; when they have passed it is closed, or reset where ``reset`` is
            set. None for any number.
        reset: end connections by a reset where they would be closed.
        swallow: bytes are taken and go nowhere, and neither does the end of the stream: a peer that has vanished.
        slow_close: seconds between the end of the stream and passing it on.
    """

    latency: float = 0.0
    bandwidth: int = 0
    slice: int = 0
    slice_pause: float = 0.0
    limit: int | None = None
    reset: bool = False
    swallow: bool = False
    slow_close: float = 0.0


class Proxy:
    """A proxy in front of one tcp listener.

    Args:
        target: the listener, which may be of any transport over tcp, or its port.
        room: how much the kernel takes from the server before the proxy has read it (SO_RCVBUF); 0 for its default.

    Attributes:
        to_server: what happens to the bytes that dialers send.
        to_client: what happens to the bytes that they get.
        accepted: how many connections have come.
        passed: bytes that have gone to the server, and to clients.
    """

    def __init__(self, target: Listener | int, room: int = 0) -> None:
        self._room = room
        self._target = target if isinstance(target, int) else _port(target.address)
        self.to_server = Faults()
        self.to_client = Faults()
        self.accepted = 0
        self.passed = [0, 0]
        self._links: set[_Link] = set()
        self._server: StreamServer | None = None
        self._port = 0
        self.up()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def address(self) -> str:
        """Where to dial, also while the proxy is down."""
        return f"tcp://127.0.0.1:{self._port}"

    def address_of(self, listener: Listener) -> str:
        """Return where to dial a listener of any transport over tcp through this proxy, which stands before it."""
        return listener.address.replace(f":{_port(listener.address)}", f":{self._port}")

    @property
    def connections(self) -> int:
        """How many connections pass through it now."""
        return len(self._links)

    def up(self) -> None:
        """Listen, again at the same port after :meth:`down`."""
        if self._server is None:
            self._server = StreamServer(("127.0.0.1", self._port), self._accept)
            self._server.start()
            self._port = self._server.server_port

    def down(self) -> None:
        """Close every connection, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut_all()

    def cut_all(self) -> None:
        """Close every connection in order, in both directions at once. New ones are taken."""
        for link in list(self._links):
            link.close()

    def reset_all(self) -> None:
        """Reset every connection on both sides. New ones are taken."""
        for link in list(self._links):
            link.close(by_reset=True)

    def close(self) -> None:
        """End everything. Blocks until all greenlets have ended."""
        links = list(self._links)
        self.down()
        for link in links:
            link.join()

    def _accept(self, client: socket.socket, _: object) -> None:
        """Join a client to the server (a greenlet of the StreamServer's for each)."""
        self.accepted += 1
        server = socket.socket()
        try:
            if self._room:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._room)
            server.connect(("127.0.0.1", self._target))
        except OSError:
            _reset(client)
            server.close()
            return
        if self._server is None:
            # It went down meanwhile.
            _reset(client)
            server.close()
            return
        link = _Link(self, client, server)
        self._links.add(link)
        try:
            link.join()
        finally:
            link.close()
            self._links.discard(link)


class _Link:
    """One connection through the proxy: two sockets and the two directions between them."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socks = (client, server)
        directions = [
            _Direction(self, client, server, proxy.to_server, proxy.passed, 0),
            _Direction(self, server, client, proxy.to_client, proxy.passed, 1),
        ]
        self._greenlets = [greenlet for direction in directions for greenlet in direction.start()]

    def close(self, by_reset: bool = False) -> None:
        for sock in self._socks:
            if by_reset:
                _reset(sock)
            else:
                sock.close()
        for greenlet in self._greenlets:
            if greenlet is not gevent.getcurrent():
                greenlet.kill(block=False)

    def join(self) -> None:
        gevent.joinall(self._greenlets)


class _Direction:
    """Carries bytes from one socket to the other: one greenlet takes them in, another lets them out when it is time."""

    def __init__(
        self, link: _Link, source: socket.socket, target: socket.socket, faults: Faults, passed: list[int], index: int
    ) -> None:
        self._link = link
        self._source = source
        self._target = target
        self._faults = faults
        self._passed = passed
        self._index = index
        #: When to let out, and what; None is the end of the stream.
        self._late: deque[tuple[float, bytes | None]] = deque()
        self._held = 0
        self._changed = Event()
        self._mine = 0

    def start(self) -> list[Greenlet[..., None]]:
        return [gevent.spawn(self._take_in), gevent.spawn(self._let_out)]

    def _take_in(self) -> None:
        data: bytes | None = b""
        while data is not None:
            while self._held >= _BUFFER:
                self._changed.clear()
                self._changed.wait()
            try:
                data = self._source.recv(16384) or None
            except OSError:
                data = None
            if not self._faults.swallow:
                self._held += len(data or b"")
                self._late.append((monotonic() + self._faults.latency, data))
                self._changed.set()

    def _let_out(self) -> None:
        while True:
            while not self._late:
                self._changed.clear()
                self._changed.wait()
            due, data = self._late.popleft()
            gevent.sleep(max(0.0, due - monotonic()))
            if data is None:
                gevent.sleep(self._faults.slow_close)
                self._end()
                return
            self._held -= len(data)
            self._changed.set()
            if not self._pass_on(data):
                self._link.close(self._faults.reset)
                return

    def _pass_on(self, data: bytes) -> bool:
        """Send bytes, as slowly and in such pieces as the faults say. False when the connection is to end."""
        faults = self._faults
        limit = faults.limit
        if limit is not None:
            data = data[: max(0, limit - self._mine)]
        size = faults.slice or len(data)
        try:
            for start in range(0, len(data), size or 1):
                piece = data[start : start + size]
                self._target.sendall(piece)
                self._mine += len(piece)
                self._passed[self._index] += len(piece)
                gevent.sleep(faults.slice_pause + (len(piece) / faults.bandwidth if faults.bandwidth else 0))
        except OSError:
            return False
        return limit is None or self._mine < limit

    def _end(self) -> None:
        """Pass the end of the stream on."""
        if self._faults.reset:
            self._link.close(by_reset=True)
            return
        try:
            self._target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has gone already


def _port(address: str) -> int:
    return urlsplit(address).port or 0


def _reset(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # closed already
    sock.close()
