"""The test bench of the transport checks: a listener, connections to it, and what ends all of them.

Nothing here checks anything but that a call ends in time and that nothing is left; the checks stand in the modules
beside this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

import gevent
from gevent import Greenlet

from ..address import Address
from ..options import Options
from ..transport import (
    Connection,
    MessageConnection,
    StreamConnection,
    Transport,
    TransportDialer,
    TransportListener,
    find,
)
from ._wait import wait_until

__all__ = ["Bench", "attempt", "check_connected", "finish", "fill", "never_switches", "nothing_left", "read_all"]

T = TypeVar("T")

#: What the event loop opens for itself, and when it likes: epoll, eventfd, timerfd.
_LOOP_DESCRIPTOR = "anon_inode:"


class Bench:
    """One listener of a transport, and any number of connections to it.

    A context manager: on leaving it closes whatever was made, also when a check failed half way.

    Args:
        address: what to listen at.
        dial_options, listen_options: for dialers and for the listener.
        limit: the longest that a step may take, in seconds.

    Attributes:
        transport: the transport of the address' scheme.
        listener: listens.
    """

    def __init__(
        self, address: str, dial_options: Mapping[str, Any], listen_options: Mapping[str, Any], limit: float
    ) -> None:
        self._address = Address.parse(address)
        self._dial_options = dial_options
        self._listen_options = listen_options
        self._limit = limit
        self._made: list[TransportListener | Connection] = []
        self.transport: Transport = find(self._address.scheme, address)
        self.listener = self.make_listener(self._address)

    def __enter__(self) -> Bench:
        try:
            self.listener.listen()
        except BaseException:
            self.listener.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for made in self._made:
            made.close()

    def make_listener(self, address: str | Address) -> TransportListener:
        """Return another listener, not yet listening."""
        parsed = Address.parse(address)
        listener = self.transport.listener(parsed, Options(parsed.merged(self._listen_options)))
        self._made.append(listener)
        return listener

    def make_dialer(self, address: str | Address = "") -> TransportDialer:
        """Return a dialer, by default for the listener."""
        parsed = Address.parse(address or self.listener.address)
        return self.transport.dialer(parsed, Options(parsed.merged(self._dial_options)))

    def connect(self) -> tuple[Connection, Connection]:
        """Return the dialing and the accepting end of a new connection, each after its handshake."""
        accepting = gevent.spawn(attempt, self._accept)
        try:
            dialed = self.make_dialer().connect()
            self._made.append(dialed)
            accepted = finish(accepting, self._limit, "accept() did not return though a peer had connected")
        finally:
            accepting.kill()
        if isinstance(accepted, BaseException):
            raise AssertionError(f"accept() failed: {accepted!r}") from accepted
        return dialed, accepted

    def connect_streams(self) -> tuple[StreamConnection, StreamConnection]:
        """Do as :meth:`connect`, for transports whose connections are streams."""
        dialed, accepted = self.connect()
        assert isinstance(dialed, StreamConnection), f"{type(dialed).__name__} is no StreamConnection"
        assert isinstance(accepted, StreamConnection), f"{type(accepted).__name__} is no StreamConnection"
        return dialed, accepted

    def _accept(self) -> Connection:
        connection = self.listener.accept()
        self._made.append(connection)
        if connection.needs_handshake:
            connection.handshake()
        return connection


def attempt(call: Callable[..., T], *args: Any) -> T | Exception:
    """Return what a call returns or raises: for greenlets, whose errors would else be printed."""
    try:
        return call(*args)
    except Exception as error:
        return error


def finish(greenlet: Greenlet[..., T], limit: float, what: str) -> T:
    """Return what a greenlet returns.

    Raises:
        AssertionError: it has not ended after ``limit`` seconds; says ``what``. The greenlet is killed.
    """
    greenlet.join(limit)
    if not greenlet.ready():
        greenlet.kill()
        raise AssertionError(f"{what} (waited {limit} s)")
    return greenlet.get()


def check_connected(one: Connection, other: Connection) -> None:
    """Check that two ends reach each other, by bytes where there are any.

    Raises:
        AssertionError: they do not.
    """
    if isinstance(one, MessageConnection):
        assert isinstance(other, MessageConnection)
        assert not (one.closed or other.closed), "one end is closed"
        assert one.peer is other and other.peer is one, "the ends are not each other's peer"
        return
    assert isinstance(one, StreamConnection) and isinstance(other, StreamConnection)
    for sender, receiver, data in ((one, other, b"there"), (other, one, b"and back")):
        try:
            sender.write_all(data)
            received = receiver.read_exactly(len(data))
        except OSError as error:
            raise AssertionError(f"one end does not reach the other: {error}") from error
        assert received == data, f"sent {data!r}, received {received!r}"


def fill(connection: StreamConnection, most: int = 1 << 28) -> int:
    """Send until the connection takes no more, and return how many bytes it took.

    Raises:
        AssertionError: it took ``most`` bytes, or said that it took what it cannot have taken.
    """
    chunk = bytes(1 << 16)
    total = 0
    while total < most:
        try:
            taken = connection.send(chunk)
        except BlockingIOError:
            return total
        assert isinstance(taken, int) and 1 <= taken <= len(chunk), f"send() of {len(chunk)} bytes returned {taken!r}"
        total += taken
    raise AssertionError(f"send() took {total} bytes that nobody reads, and never raised BlockingIOError")


def read_all(connection: StreamConnection, size: int = 1 << 16) -> bytes:
    """Read until the stream ends, and return everything."""
    return b"".join(iter(lambda: connection.recv(size), b""))


@contextmanager
def never_switches(what: str) -> Iterator[None]:
    """Check that no other greenlet gets to run in the body.

    Raises:
        AssertionError: one did: ``what`` blocks.
    """
    switched: list[bool] = []
    gevent.get_hub().loop.run_callback(switched.append, True)
    yield
    assert not switched, f"{what} let other greenlets run: it must not block"


@contextmanager
def nothing_left(limit: float = 5.0) -> Iterator[None]:
    """Check that the body leaves no descriptor and no greenlet behind.

    Blocks after the body until what is still closing has closed.

    Args:
        limit: the longest wait for that, in seconds.

    Raises:
        AssertionError: something is left; says what.
    """
    started: list[Greenlet[..., Any]] = []
    note = started.append
    before = open_descriptors()
    Greenlet.add_spawn_callback(note)
    try:
        yield
    finally:
        Greenlet.remove_spawn_callback(note)

    # Not where the body raised: what that left is of no interest.
    def left() -> list[str]:
        opened = [f"descriptor {number} ({target})" for number, target in open_descriptors() - before]
        return opened + [f"{greenlet!r}" for greenlet in started if not greenlet.ready()]

    try:
        wait_until(lambda: not left(), limit)
    except AssertionError:
        raise AssertionError(f"left behind: {', '.join(left())}") from None


def open_descriptors() -> set[tuple[str, str]]:
    """Return the number and target of the process' descriptors that are not the event loop's own."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            # The descriptor of the listing itself.
            continue
        if not target.startswith(_LOOP_DESCRIPTOR):
            found.add((number, target))
    return found
