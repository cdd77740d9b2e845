"""The test bench of the transport checks: a listener, connections to it, and the functions that close all of them.

The code here checks only that calls end in time and that nothing is left; all other checks are in the modules beside
this one.
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

__all__ = [
    "Bench",
    "attempt",
    "check_connected",
    "fill",
    "finish",
    "greenlets_started",
    "never_switches",
    "nothing_left",
    "read_all",
]

T = TypeVar("T")

#: The targets of the event loop's own descriptors (epoll, eventfd, timerfd) start with this.
_LOOP_DESCRIPTOR = "anon_inode:"


class Bench:
    """One listener of a transport, and any number of connections to it.

    A context manager: at the end of the ``with`` statement it closes all that it has made, also when a check failed.

    Args:
        address: the address to listen at.
        dial_options, listen_options: options for the dialers and for the listener.
        limit: the longest time for one step, in seconds.

    Attributes:
        transport: the transport for the address's scheme.
        listener: the listener.
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
        """Return another listener, which does not listen yet."""
        parsed = Address.parse(address)
        listener = self.transport.listener(parsed, Options(parsed.merged(self._listen_options)))
        self._made.append(listener)
        return listener

    def make_dialer(self, address: str | Address = "") -> TransportDialer:
        """Return a dialer, by default for the listener's address."""
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
        """Return the same as :meth:`connect`, for a transport whose connections are streams."""
        dialed, accepted = self.connect()
        assert isinstance(dialed, StreamConnection), f"{type(dialed).__name__} is no StreamConnection"
        assert isinstance(accepted, StreamConnection), f"{type(accepted).__name__} is no StreamConnection"
        return dialed, accepted

    def _accept(self) -> Connection:
        connection = self.listener.accept()
        self._made.append(connection)
        if connection.needs_handshake:
            connection.wait_for_hello()
            connection.handshake()
            connection.decide()
            connection.confirm()
        return connection


def attempt(call: Callable[..., T], *args: Any) -> T | Exception:
    """Return what a call returns, or the exception that it raises: gevent would print an exception of a greenlet."""
    try:
        return call(*args)
    except Exception as error:
        return error


def finish(greenlet: Greenlet[..., T], limit: float, what: str) -> T:
    """Block until a greenlet has ended, and return its value.

    Raises:
        AssertionError: the greenlet has not ended after ``limit`` seconds, and was killed. The text starts with
            ``what``.
    """
    greenlet.join(limit)
    if not greenlet.ready():
        greenlet.kill()
        raise AssertionError(f"{what} (waited {limit} s)")
    return greenlet.get()


def check_connected(one: Connection, other: Connection) -> None:
    """Check that two ends are connected to each other; streams exchange some bytes.

    Raises:
        AssertionError: the ends are not connected.
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


def fill(connection: StreamConnection, limit: int = 1 << 28) -> int:
    """Send until the connection takes no more, and return how many bytes it took.

    Raises:
        AssertionError: the connection took ``limit`` bytes, or ``send`` returned an impossible number.
    """
    chunk = bytes(1 << 16)
    total = 0
    while total < limit:
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
    """Check that no other greenlet runs while the body runs.

    Raises:
        AssertionError: another greenlet ran, so ``what`` blocks.
    """
    switched: list[bool] = []
    gevent.get_hub().loop.run_callback(switched.append, True)
    yield
    assert not switched, f"{what} let other greenlets run: it must not block"


@contextmanager
def greenlets_started() -> Iterator[list[Greenlet[..., Any]]]:
    """Collect the greenlets that are started while the body runs."""
    started: list[Greenlet[..., Any]] = []
    on_spawn = started.append
    Greenlet.add_spawn_callback(on_spawn)
    try:
        yield started
    finally:
        Greenlet.remove_spawn_callback(on_spawn)


@contextmanager
def nothing_left(limit: float = 5.0) -> Iterator[None]:
    """Check that the body leaves no descriptor open and no greenlet running.

    Blocks after the body until all of them have closed or ended.

    Args:
        limit: the longest wait for that, in seconds.

    Raises:
        AssertionError: something is left; the text says what.
    """
    before = open_descriptors()
    with greenlets_started() as started:
        yield

    # If the body raised, this is not reached: its own error matters, and not what it has left.
    def left() -> list[str]:
        opened = [f"descriptor {number} ({target})" for number, target in open_descriptors() - before]
        return opened + [f"{greenlet!r}" for greenlet in started if not greenlet.ready()]

    try:
        wait_until(lambda: not left(), limit)
    except AssertionError:
        raise AssertionError(f"left behind: {', '.join(left())}") from None


def open_descriptors() -> set[tuple[str, str]]:
    """Return the number and target of each descriptor of the process, without those of the event loop."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            # The descriptor by which the directory was listed.
            continue
        if not target.startswith(_LOOP_DESCRIPTOR):
            found.add((number, target))
    return found
