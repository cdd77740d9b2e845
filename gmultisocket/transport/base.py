"""The contracts between the core and a transport.

A transport turns addresses into connections; the core turns connections into pipes. A connection is of one of
three kinds, told apart by its class:

* :class:`StreamConnection`: a byte stream (tcp, tls, ipc). The core frames messages on it.
* :class:`PacketConnection`: a byte stream with packet boundaries of its own (ws). One message is one packet; the
  connection's codec adds and removes the packet's wrapping, so that a broadcast is wrapped once for all peers.
* :class:`MessageConnection`: no bytes at all (inproc). Whole messages change hands.

Ownership: a connection belongs to whoever called ``connect()`` or ``accept()`` until it is given to a pipe, which
closes it. ``close()`` may be called at any time, from any greenlet, more than once, and never blocks.

Errors: transports raise :mod:`gmultisocket.errors`, except that ``send``, ``recv`` and ``wait_writable`` of a
connection may raise ``OSError``, which the pipe translates into the reason for which it closes.

To add a transport, subclass :class:`Transport` and give it to :func:`gmultisocket.transport.register`;
``gmultisocket.testing`` has the checks that it should pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from ..address import Address
from ..errors import BadMessage, MultiSocketError
from ..options import Options

__all__ = [
    "Connection",
    "MessageConnection",
    "PacketCodec",
    "PacketConnection",
    "StreamConnection",
    "Transport",
    "TransportDialer",
    "TransportListener",
]

_NOBODY: Mapping[str, Any] = MappingProxyType({})


class Connection(ABC):
    """One established connection to one peer."""

    __slots__ = ("__weakref__",)

    #: Whether :meth:`handshake` has work to do; without it the core adds the pipe without another greenlet.
    needs_handshake: ClassVar[bool] = False

    @property
    @abstractmethod
    def local_address(self) -> str:
        """This end, as an address that people can read."""

    @property
    @abstractmethod
    def peer_address(self) -> str:
        """The other end, as an address that people can read."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the transport knows for sure about the peer, e.g. ``{"uid": 1000}``; empty where it knows nothing."""
        return _NOBODY

    def handshake(self) -> None:  # noqa: B027, most have none
        """Do the accepting side's opening handshake. Blocks; the core bounds the time.

        Raises:
            HandshakeFailed: the peer was told, as far as the transport can, and the connection is to be closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection at once. Wakes a greenlet that waits in it."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of the descriptor in a forked child, without a goodbye to the peer and without switching greenlets."""


class StreamConnection(Connection):
    """A connection that carries bytes in order. One greenlet may read while another writes."""

    __slots__ = ()

    @abstractmethod
    def send(self, data: bytes | memoryview, /) -> int:
        """Give bytes to the kernel without blocking.

        Returns:
            How many of them were taken, at least 1.

        Raises:
            BlockingIOError: none can be taken now.
            OSError: the connection is broken.
        """

    @abstractmethod
    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        """Do as :meth:`send` does, with several buffers in one call (at most 64)."""

    @abstractmethod
    def wait_writable(self) -> None:
        """Block until :meth:`send` may take bytes again or fail. One greenlet at a time."""

    @abstractmethod
    def recv(self, size: int, /) -> bytes:
        """Block until bytes come, and return at most ``size`` of them; ``b""`` is the end of the stream."""

    def shutdown_write(self) -> None:  # noqa: B027, not all streams can
        """Tell the peer that nothing more will come, where the stream can."""

    def unacknowledged(self) -> int:
        """Return how many bytes would be lost if the connection were closed now, as far as the kernel tells."""
        return 0

    def read_exactly(self, size: int) -> bytes:
        """Block until ``size`` bytes have come, for negotiators.

        Raises:
            ConnectionError: the stream ended before.
        """
        chunks = []
        while size > 0:
            data = self.recv(size)
            if not data:
                raise ConnectionResetError("the stream ended in the negotiation")
            chunks.append(data)
            size -= len(data)
        return b"".join(chunks)

    def write_all(self, data: bytes) -> None:
        """Block until all of ``data`` is with the kernel, for negotiators."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.send(rest) :]
            except BlockingIOError:
                self.wait_writable()


class PacketCodec(Protocol):
    """How a message frame becomes a packet on the byte stream below, and back."""

    #: Pipes whose codecs have the same key get the same bytes for a frame: a broadcast is wrapped once a key.
    #: None when every packet differs from peer to peer (masked WebSocket frames).
    key: str | None
    #: Whether each packet that comes is one whole frame. Otherwise packets are pieces of a stream of frames.
    whole: bool
    #: The longest content of a message, in bytes; 0 sets no limit. Set by the pipe, whenever its option changes.
    max_content: int
    #: Why this codec has failed, None while it has not.
    error: BadMessage | None
    #: Whether complete packets are left that ``feed(b"")`` decodes: one call must not keep the loop for long.
    more: bool

    def wrap(self, frame: bytes) -> bytes:
        """Return the packet for one frame (pure)."""

    def prefix(self, size: int) -> bytes | None:
        """Return what a packet has in front of a frame of this size, None where that is not the only difference."""

    def unwrap(self, packet: bytes) -> bytes:
        """Return the frame of a packet that :meth:`wrap` made (pure)."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes and return the packets that are complete, each one frame or, for a raw pipe, one chunk.

        Raises:
            BadMessage: the bytes break the packet protocol; the pipe closes. What was complete before is lost to
                nobody: it is returned first, the reason is in ``error``, and the next call raises it.
        """

    @property
    def read_size(self) -> int:
        """How many bytes to ask the kernel for next."""

    @property
    def pending(self) -> bool:
        """Whether a packet has begun to come and is not complete."""

    def replies(self) -> bytes:
        """Return bytes that the packet protocol owes the peer (pongs), to be sent before any packet."""

    def ping(self) -> bytes:
        """Return bytes that make the peer show that it is there, b"" if the packet protocol has none."""

    def goodbye(self, reason: MultiSocketError | None) -> bytes:
        """Return the bytes that end the packet protocol in order, or that answer the peer's; b"" the next time.

        Args:
            reason: what went wrong; :class:`~gmultisocket.errors.Closed` when this side is going away, None when it
                has simply had enough.
        """

    def end(self) -> str:
        """Return why the peer ended the packet protocol, "" if it has not."""


class PacketConnection(StreamConnection):
    """A stream connection on which every message is one packet of the transport's own.

    The methods of a stream see the packets' bytes as they are on the wire.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def codec(self) -> PacketCodec:
        """The state of the packet protocol on this connection, once the handshake is done."""

    @property
    def keepalive(self) -> tuple[float, float]:
        """After how many seconds of silence to ping the peer, and to give it up; 0 never."""
        return 0.0, 0.0

    @abstractmethod
    def unread(self, data: bytes) -> None:
        """Take bytes back that were read too early: the next ``recv`` returns them first."""


class MessageConnection(Connection):
    """One end of a connection inside the process. The pipes at both ends find each other through it.

    ``close()`` of either end closes the pipe of the other one.

    Attributes:
        peer: the other end, a MessageConnection.
        pipe: the pipe that this end was given to, None before and after.
        closed: whether this end was closed.
    """

    __slots__ = ()

    peer: MessageConnection
    pipe: Any
    closed: bool


class TransportDialer(ABC):
    """Makes connections to one address."""

    __slots__ = ()

    @abstractmethod
    def connect(self) -> Connection:
        """Connect, with the dialing side's opening handshake. Blocks; the core bounds the time.

        Names are resolved anew at every call.

        Raises:
            ConnectionFailed: and nothing is left open.
        """

    def abandon(self) -> None:  # noqa: B027, where connecting takes no time there is nothing to let go of
        """Let go, in a forked child, of the descriptor of a connection that is being made; switch to nobody."""


class TransportListener(ABC):
    """Takes connections at one address."""

    __slots__ = ()

    @property
    @abstractmethod
    def address(self) -> str:
        """The address that peers can dial; holds the real port after port 0 once listening."""

    @abstractmethod
    def listen(self) -> None:
        """Bind the address. Does not block.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
        """

    @abstractmethod
    def accept(self) -> Connection:
        """Block until a peer connects and return the connection, before its handshake.

        Raises:
            OSError: this attempt failed; the core waits a little where resources ran out, and tries again.
            Closed: the listener was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening and remove what listening created. Never blocks; harmless when repeated."""

    def join(self) -> None:  # noqa: B027, most have none
        """Block until no greenlet of the transport's own works for the closed listener; the caller may be one."""

    @abstractmethod
    def abandon(self) -> None:
        """Let go of the descriptors in a forked child; remove nothing, switch to nobody."""


class Transport(ABC):
    """A kind of connection, named by the schemes of its addresses."""

    __slots__ = ()

    #: The schemes that addresses of this transport start with.
    schemes: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def dialer(self, address: Address, options: Options) -> TransportDialer:
        """Return a dialer for the address. No I/O.

        Raises:
            AddressError: the address cannot be one of this transport.
        """

    @abstractmethod
    def listener(self, address: Address, options: Options) -> TransportListener:
        """Return a listener for the address, not yet listening. No I/O.

        Raises:
            AddressError: the address cannot be one of this transport.
        """
