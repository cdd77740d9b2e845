"""What the checks of protocols need from their subclasses, and how they make and connect two ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import gevent

from ..core.socket import Socket
from ..errors import MultiSocketError
from ..options import OptionValues
from ..protocol import ProtocolBase
from ..wire import CONTROL, Message
from ._bench import finish, nothing_left

__all__ = ["QUICK", "Call", "ProtocolSetup", "outcome_of"]

Call = Callable[[float | None], object]

#: A lost pipe comes back soon.
QUICK: dict[str, Any] = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}


class ProtocolSetup:
    """What ``ProtocolChecks`` has besides the checks. Its docstring has the attributes."""

    address: ClassVar[str] = ""
    waits: ClassVar[tuple[str, ...]] = ()
    lacks: ClassVar[tuple[str, ...]] = ()
    garbage: ClassVar[tuple[Message, ...]] = (Message(flags=CONTROL, content=b"who are you?"),)
    limit: ClassVar[float] = 10.0

    def make_address(self) -> str:
        """Return an address to listen at; by default ``address``."""
        assert self.address, f"{type(self).__name__} must set 'address' or override make_address()"
        return self.address

    # For subclasses to override

    def make(self, options: OptionValues | None = None) -> ProtocolBase:
        """Return a new object of the protocol to check."""
        raise NotImplementedError

    def make_peer(self, options: OptionValues | None = None) -> ProtocolBase:
        """Return a new peer for it."""
        raise NotImplementedError

    def exchange(self, protocol: Any, peer: Any, content: bytes) -> bytes:
        """Send a content from one to the other, in the protocol's own way, and return the content that arrived.

        If ``protocol`` can receive, it must receive something. Exchanges that run at the same time may get each other's
        contents.
        """
        raise NotImplementedError

    def exchange_by_hand(self, protocol: Any, sock: Socket, content: bytes) -> bytes:
        """Exchange a content with a plain Socket as the peer, which sends and receives the documented bytes.

        So the bytes on the wire are what is documented, and programs without the protocol's code can be peers.
        """
        raise NotImplementedError

    def calls(self, protocol: Any) -> Mapping[str, Call]:
        """Return the protocol's calls by name. Each takes a timeout, and may ignore it if it never blocks."""
        raise NotImplementedError

    # Used by the checks

    @contextmanager
    def connected(self) -> Iterator[tuple[Any, Any]]:
        """Make both ends and connect them. Check afterwards that they have left no greenlet or descriptor behind."""
        with nothing_left(), self.make(QUICK) as protocol, self.make_peer(QUICK) as peer:
            peer.dial(protocol.listen(self.make_address()).address)
            self.wait_connected(protocol, peer)
            yield protocol, peer

    def wait_connected(self, *protocols: ProtocolBase) -> None:
        """Block until each protocol has a peer."""
        for protocol in protocols:
            protocol.wait_pipes(1, self.limit)

    def check_exchange(self, protocol: ProtocolBase, peer: ProtocolBase, content: bytes = b"content") -> None:
        """Check that one content arrives, in time."""
        work = gevent.spawn(self.exchange, protocol, peer, content)
        arrived = finish(work, self.limit, "the exchange did not end")
        assert arrived == content, f"sent {content[:50]!r}, and {arrived[:50]!r} arrived"

    def blocked(self, protocol: ProtocolBase, name: str, timeout: float | None = None) -> gevent.Greenlet[..., Any]:
        """Return a greenlet that is blocked in one of the calls."""
        greenlet = gevent.spawn(outcome_of, self.calls(protocol)[name], timeout)
        gevent.sleep(0)
        assert not greenlet.ready(), f"{name} did not wait but ended with {greenlet.value!r}"
        return greenlet


def outcome_of(call: Call, timeout: float | None, outside: gevent.Timeout | None = None) -> object:
    """Return the result or the error of a call. An error may be a ``gevent.Timeout`` of the caller."""
    try:
        if outside is None:
            return call(timeout)
        with outside:
            return call(timeout)
    except (MultiSocketError, gevent.Timeout) as error:
        return error
