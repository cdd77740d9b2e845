"""What the tests of the engines for NATS and Redis use: a plane that only remembers, and a plain client."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from gevent import socket as gsocket
from gevent.pool import Group

from gmultisocket.backplane.engine import FOREIGN, Engine
from gmultisocket.backplane.engines import find_engine
from gmultisocket.errors import MultiSocketError
from gmultisocket.loop.waiting import Deadline
from gmultisocket.options import PlaneOptions
from gmultisocket.protocol.history import Entry
from gmultisocket.testing import wait_until
from tests.backplane.servers import BrokerServer

__all__ = ["PlainClient", "RecordingPlane", "answering", "client", "publish_until", "values_of"]


class RecordingPlane:
    """Remembers what an engine reports.

    Attributes:
        up: whether the engine is connected.
        connections: how often it was.
        errors: of ``disconnected``.
        confirmed_count: publications.
        refused_reasons: how many were refused, by reason.
        portions: that were confirmed.
        refused_patterns: with the reasons.
        got: publications of planes: topic, content, origin and sequence.
        foreign: topic and content of others.
        gathered: how often several publications came together.
        values: changes of present values: topic, content, and whether it was live; the content None for the end of one.
        all_history: the patterns of topics with history of which the engine has told.
        epochs, began_at: of each ``began``: the epoch, and the last offset.
        positions: what was ``positioned``.
        fetches: by pattern that was ``fetched``: from where it is complete, and the last offset.
        synchronized_to: the answers to ``synchronize``.
    """

    def __init__(self, history: Sequence[str] = ()) -> None:
        self.origin = os.urandom(8)
        self.history = history
        self.all_history: set[str] = set()
        self.epochs: list[int] = []
        self.began_at: list[int] = []
        self.positions: list[tuple[Entry, bool, bool, bool]] = []
        self.fetches: dict[str, tuple[int, int]] = {}
        self.synchronized_to: list[int] = []
        self.up = False
        self.connections = 0
        self.errors: list[MultiSocketError] = []
        self.confirmed_count = 0
        self.refused_reasons: Counter[str] = Counter()
        self.portions = 0
        self.refused_patterns: list[tuple[str, str]] = []
        self.got: list[tuple[str, bytes, bytes, int]] = []
        self.foreign: list[tuple[str, bytes]] = []
        self.values: list[tuple[str, bytes | None, bool]] = []
        self.sequence = 0
        self.gathered = 0
        self.engine: Engine

    def connected(self) -> None:
        assert not self.up
        self.up = True
        self.connections += 1

    def disconnected(self, error: MultiSocketError) -> None:
        self.up = False
        self.errors.append(error)

    def subscribed(self) -> None:
        assert self.up
        self.portions += 1

    def interest_refused(self, pattern: str, reason: str) -> None:
        self.refused_patterns.append((pattern, reason))

    def confirmed(self, count: int) -> None:
        assert self.up
        assert count > 0
        self.confirmed_count += count

    def refused(self, reason: str) -> None:
        self.refused_reasons[reason] += 1

    def gather(self) -> None:
        self.gathered += 1

    def received(self, topic: str, content: bytes, origin: bytes, sequence: int) -> None:
        assert type(content) is bytes
        if origin == FOREIGN:
            self.foreign.append((topic, content))
        else:
            self.got.append((topic, content, origin, sequence))

    def retained(self, topic: str, content: bytes, origin: bytes, sequence: int, live: bool) -> None:
        self.values.append((topic, content, live))

    def unretained(self, topic: str) -> None:
        self.values.append((topic, None, True))

    def histories(self, patterns: Iterable[str]) -> None:
        self.all_history.update(patterns)

    def began(self, epoch: int, last_offset: int) -> None:
        assert self.history
        assert not self.up
        self.epochs.append(epoch)
        self.began_at.append(last_offset)

    def positioned(self, entry: Entry, logged: bool, retained: bool, live: bool) -> None:
        assert self.history
        self.positions.append((entry, logged, retained, live))

    def fetched(self, pattern: str, complete_from: int, last_offset: int) -> None:
        assert self.history
        self.fetches[pattern] = complete_from, last_offset

    def synchronized(self, last_offset: int) -> None:
        self.synchronized_to.append(last_offset)

    def gap(self, reason: str) -> None:
        raise AssertionError(reason)

    # What a plane does with its engine

    def wait_up(self, timeout: float = 10.0) -> None:
        wait_until(lambda: self.up, timeout, "the engine is connected")

    def subscribe(self, *patterns: str) -> None:
        """Subscribe, and wait until the server has confirmed it."""
        wanted = self.portions + 1
        self.engine.subscribe(patterns)
        wait_until(lambda: self.portions == wanted, what=f"{patterns[:3]} are confirmed")

    def synchronize(self) -> None:
        """Wait until all that was published before has come."""
        wanted = len(self.synchronized_to) + 1
        self.engine.synchronize()
        wait_until(lambda: len(self.synchronized_to) == wanted)

    def publish(self, topic: str, content: bytes) -> None:
        self.sequence += 1
        self.engine.publish(self.engine.head(topic), content, self.sequence)

    def retain(self, topic: str, content: bytes) -> None:
        self.sequence += 1
        self.engine.retain(self.engine.head(topic), content, self.sequence)

    def unretain(self, topic: str) -> None:
        self.sequence += 1
        self.engine.unretain(self.engine.head(topic), self.sequence)

    def wait_answered(self) -> None:
        """Wait until the server has confirmed or refused everything."""
        wait_until(lambda: self.confirmed_count + self.refused_reasons.total() == self.sequence)

    def topics(self) -> list[str]:
        return [topic for topic, *_ in self.got]

    @property
    def entries(self) -> list[Entry]:
        """The publications with positions that came live."""
        return [entry for entry, _, _, live in self.positions if live]

    @property
    def fetched_entries(self) -> list[Entry]:
        """Those that came otherwise, each once, in their order."""
        return sorted({entry for entry, _, _, live in self.positions if not live})

    def contents(self) -> list[bytes]:
        return [content for _, content, *_ in self.got]


@contextmanager
def client(
    url: str, *, wait: bool = True, options: dict[str, Any] | None = None, history: Sequence[str] = ()
) -> Iterator[RecordingPlane]:
    """Run an engine. Wait until it is connected, and close it at the end."""
    plane = RecordingPlane(history)
    plane.engine = find_engine(url)(url, plane, PlaneOptions({"plane.prefix": "t.", **(options or {})}))
    plane.engine.start()
    try:
        if wait:
            plane.wait_up()
        yield plane
    finally:
        plane.engine.close(Deadline(5))


def values_of(url: str, *patterns: str) -> list[tuple[str, bytes | None]]:
    """Return the present values that a new engine fetches, sorted."""
    with client(url) as plane:
        plane.subscribe(*patterns)
        assert not any(live for *_, live in plane.values)
        return sorted((topic, content) for topic, content, _ in plane.values)


def publish_until(publisher: RecordingPlane, server: BrokerServer, logged: str) -> int:
    """Publish, and wait until that is confirmed, again and again until the server's log has a text. Return how many."""
    sent = 0
    while logged not in server.log():
        for _ in range(20):
            publisher.publish("a", bytes(50_000))
        sent += 20
        wait_until(lambda: publisher.confirmed_count == sent)  # noqa: B023
    return sent


@contextmanager
def answering(answer: Callable[[gsocket.socket], object]) -> Iterator[int]:
    """Accept connections, and call ``answer`` with each in a greenlet of its own. Gives the port.

    A connection stays open until the end, unless ``answer`` closes it.
    """
    peers: list[gsocket.socket] = []
    greenlets = Group()

    def serve(peer: gsocket.socket) -> None:
        # A client resets a connection that it has given up.
        with suppress(ConnectionResetError):
            answer(peer)

    def accept() -> None:
        while True:
            peers.append(listener.accept()[0])
            greenlets.spawn(serve, peers[-1])

    with gsocket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        greenlets.spawn(accept)
        try:
            yield listener.getsockname()[1]
        finally:
            greenlets.kill()
            for peer in peers:
                peer.close()


class PlainClient:
    """A program that speaks the protocol of a server by itself.

    Args:
        scheme: ``"nats"`` or ``"redis"``.
        port: of a server on loopback.
    """

    def __init__(self, scheme: str, port: int) -> None:
        self._scheme = scheme
        self._sock = gsocket.create_connection(("127.0.0.1", port), timeout=20)
        self._rest = b""
        if scheme == "nats":
            self.write(b'CONNECT {"verbose": false, "headers": true}\r\nPING\r\n')
            self.read_until(b"PONG\r\n")

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def write(self, data: bytes) -> None:
        self._sock.sendall(data)

    def read_until(self, end: bytes) -> bytes:
        """Return what comes up to some bytes, with them."""
        while end not in self._rest:
            data = self._sock.recv(65536)
            assert data, f"the server has closed the connection: {self._rest!r}"
            self._rest += data
        found, _, self._rest = self._rest.partition(end)
        return found + end

    def command(self, *words: bytes) -> bytes:
        """Send a command to Redis, and return the line of its reply."""
        self.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        return self.read_until(b"\r\n")

    def publish(self, messages: Sequence[tuple[bytes, bytes]]) -> None:
        """Publish under channels or subjects, and wait until the server has all."""
        if self._scheme == "nats":
            self.write(b"".join(b"PUB %b %d\r\n%b\r\n" % (to, len(content), content) for to, content in messages))
            self.write(b"PING\r\n")
            self.read_until(b"PONG\r\n")
        else:
            for to, content in messages:
                assert self.command(b"PUBLISH", to, content).startswith(b":")
