"""The contracts between the core and a transport.

A transport turns addresses into connections; the core turns connections into pipes. There are three kinds of
connections, each with its base class:

* :class:`StreamConnection`: a byte stream (tcp, tls, ipc). The core sends messages as frames.
* :class:`PacketConnection`: a byte stream with packets (ws). Each message is one packet. The connection's codec wraps
  frames in packets and unwraps them; a message for many peers is wrapped once for all of them.
* :class:`MessageConnection`: no bytes (inproc). Whole messages are passed on.

Ownership: the caller of ``connect()`` or ``accept()`` owns the connection until it gives it to a pipe, which closes it.
``close()`` may be called at any time, from any greenlet, more than once, and never blocks.

Errors: transports raise :mod:`gmultisocket.errors`, except that ``send``, ``recv`` and ``wait_writable`` of a
connection may raise ``OSError``, which the pipe translates into the reason for which it closes.

To add a transport, subclass :class:`Transport` and give it to :func:`gmultisocket.transport.register`;
``gmultisocket.testing`` has the checks that it should pass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from gevent.event import Event

from ..address import Address
from ..errors import BadMessage, MultiSocketError
from ..options import Options

__all__ = [
    "Connection",
    "MessageConnection",
    "PacketCodec",
    "PacketConnection",
    "SharedWrites",
    "StreamConnection",
    "Transport",
    "TransportDialer",
    "TransportListener",
]

_NOBODY: Mapping[str, Any] = MappingProxyType({})


class Connection(ABC):
    """An established connection to one peer."""

    __slots__ = ("__weakref__",)

    #: Whether :meth:`handshake` has work to do. If not, the core adds the pipe without starting a greenlet.
    needs_handshake: ClassVar[bool] = False
    #: Whether :meth:`handshake` may wait for the peer. If not, and if :meth:`decide` does not block either, the core
    #: starts no greenlet for it.
    handshake_waits: ClassVar[bool] = True

    @property
    @abstractmethod
    def local_address(self) -> str:
        """The address of this end, for people."""

    @property
    @abstractmethod
    def peer_address(self) -> str:
        """The address of the other end, for people."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """The verified facts about the peer, e.g. ``{"uid": 1000}``; empty if there are none."""
        return _NOBODY

    @property
    def peer_host(self) -> str:
        """The peer's IP address, "" if it has none."""
        return ""

    # The accepting side calls these four in this order, if needs_handshake is set

    def wait_for_hello(self) -> None:  # noqa: B027, not all handshakes begin with the peer
        """Block until the peer has sent something, if the handshake begins with that. The core limits the time."""

    def handshake(self) -> None:  # noqa: B027, most have none
        """Do the accepting side's opening handshake. Blocks; the core limits the time.

        Raises:
            HandshakeFailed: the caller must close the connection. If the transport can, it has told the peer why.
        """

    @property
    def may_block_to_decide(self) -> bool:
        """Whether :meth:`decide` calls a function of this side's user, which may block."""
        return False

    def decide(self) -> None:  # noqa: B027, most leave that to the core
        """Decide whether the peer may connect. The core does not limit the time: it is not the peer's.

        Raises:
            HandshakeFailed: as for :meth:`handshake`.
        """

    def confirm(self) -> None:  # noqa: B027, most handshakes end in handshake()
        """Tell the peer that it is in. Does not wait for the peer."""

    def turn_away(self, error: MultiSocketError) -> None:  # noqa: B027, most have no words for it
        """Tell a peer that is not let in why, if it can be told. :meth:`close` comes next. Never blocks.

        Args:
            error: why. May be called for errors of this connection's own methods too.
        """

    @property
    def refusal_unread(self) -> bool:
        """Whether :meth:`turn_away` has told the peer something that :meth:`close` might destroy."""
        return False

    def wait_refusal_read(self) -> None:  # noqa: B027, most have no words for it
        """Block until the peer has answered what :meth:`turn_away` told it, for at most a second."""

    def hung_up(self, may_half_close: bool = True) -> bool:
        """Return whether the peer is known to have closed the connection. Reads nothing, and never blocks.

        Args:
            may_half_close: whether a peer that has ended its direction of the stream may still read.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Close the connection at once. Wakes a greenlet that waits in it."""

    @abstractmethod
    def abandon(self) -> None:
        """Close the descriptor in a forked child, without sending anything and without switching greenlets."""


class StreamConnection(Connection):
    """A connection that transports a stream of bytes. One greenlet may read while another one writes."""

    __slots__ = ()

    @abstractmethod
    def send(self, data: bytes | memoryview, /) -> int:
        """Write bytes to the kernel without blocking.

        Returns:
            The number of bytes written, at least 1.

        Raises:
            BlockingIOError: the kernel takes no bytes now.
            OSError: the connection is broken.
        """

    @abstractmethod
    def sendmsg(self, buffers: list[bytes | memoryview], /) -> int:
        """Write several buffers (at most 64) in one call, as :meth:`send` does."""

    @abstractmethod
    def wait_writable(self) -> None:
        """Block until :meth:`send` may take bytes again or fail. One greenlet at a time."""

    @abstractmethod
    def recv(self, size: int, /) -> bytes:
        """Block until there are bytes, and return at most ``size`` of them; ``b""`` is the end of the stream."""

    @property
    def offers(self) -> bool:
        """Whether :meth:`recv_offered` is there. Small messages then need not wake the reader."""
        return False

    def recv_offered(self, size: int, take: Callable[[bytes], bool], /) -> bytes:
        """As :meth:`recv`, but first offer to a callback what would end the wait.

        Args:
            size: in bytes.
            take: called in the hub with what was read, if it is less than ``size``; must not block. Returns whether the
                wait goes on. What it raises is raised here.
        """
        raise NotImplementedError

    #: Whether :meth:`recv_into` and :meth:`wait_readable` are there. Large contents then need no copy.
    reads_into = False

    def recv_into(self, buffers: list[memoryview | bytearray], /) -> int:
        """Read into some buffers, one after the other, without blocking.

        Returns:
            The number of bytes read; 0 is the end of the stream.

        Raises:
            BlockingIOError: there are none now. This is also raised where :meth:`recv` would wait before it looks.
            OSError: the connection is broken.
        """
        raise NotImplementedError

    def wait_readable(self) -> None:
        """Block until :meth:`recv_into` may find bytes, the end, or an error. For the greenlet that reads."""
        raise NotImplementedError

    def shutdown_write(self) -> None:  # noqa: B027, not all streams can
        """End this side's direction of the stream, if the stream can do that."""

    def discard_unsent(self) -> None:  # noqa: B027, not all streams can
        """Make :meth:`close` drop the bytes that the peer has not acknowledged, if the stream can do that.

        Otherwise the kernel sends it again for minutes, and it may arrive after what a newer connection has brought.
        """

    def unacknowledged(self) -> int:
        """Return the number of written bytes that the peer has not acknowledged, if the kernel knows it; else 0."""
        return 0

    def vanished(self) -> float:
        """Return for how many seconds a peer was silent that must have gone without a word.

        That is a peer that acknowledges nothing of what is on its way to it, for as long as the kernel's keepalive
        allows if nothing is on its way. A peer that only does not read acknowledges what the kernel asks it.

        Returns:
            0.0 if there is no such sign, or the kernel looks for it.
        """
        return 0.0

    def read_exactly(self, size: int) -> bytes:
        """Block until ``size`` bytes are read, and return them. For negotiators.

        Raises:
            ConnectionError: the stream ended before that.
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
        """Block until all of ``data`` is written to the kernel. For negotiators."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self.send(rest) :]
            except BlockingIOError:
                self.wait_writable()


class PacketCodec(Protocol):
    """Wraps message frames in packets of the byte stream below, and unwraps them."""

    #: Codecs with the same key make the same packet of a frame: a message for many peers is wrapped once per key.
    #: None if the packets are different for every peer (masked WebSocket frames).
    key: str | None
    #: Whether each received packet is one whole frame. Otherwise packets are pieces of a stream of frames.
    whole: bool
    #: The longest content of a message, in bytes; 0 sets no limit. The pipe sets it when its option changes.
    max_content: int
    #: Why this codec has stopped; None while it works.
    error: BadMessage | None
    #: Whether complete packets are left that ``feed(b"")`` decodes: one call must not keep the loop for long.
    more: bool

    def wrap(self, frame: bytes) -> bytes:
        """Return the packet of one frame. Does not change the codec."""

    def prefix(self, size: int) -> bytes | None:
        """Return the bytes that a packet has before a frame of this size; None if packet and frame differ in more."""

    def unwrap(self, packet: bytes) -> bytes:
        """Return the frame of a packet that :meth:`wrap` made. Does not change the codec."""

    def feed(self, data: bytes) -> list[bytes]:
        """Decode received bytes and return the complete packets: frames, or chunks of bytes for a raw pipe.

        Raises:
            BadMessage: the bytes break the packet protocol, and the pipe must close. If there were complete packets
                before, this call returns them and stores the reason in ``error``, and the next call raises it.
        """

    @property
    def read_size(self) -> int:
        """How many bytes the pipe should ask the kernel for next."""

    @property
    def pending(self) -> bool:
        """Whether an incomplete packet has arrived."""

    def replies(self) -> bytes:
        """Return the answers that the packet protocol requires (pongs). They must be sent before any other packet."""

    def ping(self) -> bytes:
        """Return a packet that the peer must answer, b"" if the packet protocol has none."""

    def pong(self) -> bytes:
        """Return a packet that shows the peer that this side lives, b"" if the packet protocol has none."""

    def goodbye(self, reason: MultiSocketError | None) -> bytes:
        """Return the packet that closes the packet protocol, or answers the peer's close; b"" after the first call.

        Args:
            reason: the error; :class:`~gmultisocket.errors.Closed` if this side goes away, None for a normal end.
        """

    def end(self) -> str:
        """Return why the peer has closed the packet protocol, "" if it has not."""


class SharedWrites(StreamConnection):
    """A stream to which the pipes of several channels write; see ``wschannels.py``.

    ``send`` and ``sendmsg`` take all that they are given, or raise.

    Attributes:
        taken: how many bytes it has taken from all pipes.
    """

    __slots__ = ()

    taken: int

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Block until the stream may be writable, or is broken, or somebody sets the event."""

    @abstractmethod
    def put(self, packet: bytes) -> bool:
        """Send a packet, now or as soon as the kernel takes it. Never blocks. Return False if too many wait."""

    @abstractmethod
    def join(self) -> None:
        """Block until no greenlet works for the closed stream, except the caller."""


class PacketConnection(StreamConnection):
    """A stream connection on which every message is one packet of the transport.

    The methods of the stream send and receive the bytes of the packets. A connection may :attr:`offer <offers>` what it
    reads only if packets are whole frames, and its codec never sets :attr:`PacketCodec.more` for up to 1 KiB.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def codec(self) -> PacketCodec:
        """The codec of this connection. Exists after the handshake."""

    @property
    def channels(self) -> SharedWrites | None:
        """What all channels of this connection write to; None if a packet is a frame, and belongs to no channel."""
        return None

    @property
    def keepalive(self) -> tuple[float, float]:
        """The seconds of silence after which to ping the peer, and after which to close the pipe. 0: never."""
        return 0.0, 0.0

    def account(self, spend: Callable[[int, int], object]) -> None:  # noqa: B027, most have no such work
        """Set the function that the codec calls for work that takes much longer than sending, such as compressing.

        Args:
            spend: takes a number of messages and of bytes whose sending would take as long. Never blocks.
        """

    @abstractmethod
    def unread(self, data: bytes) -> None:
        """Put back bytes that were read too early: the next ``recv`` returns them first."""


class MessageConnection(Connection):
    """One end of a connection within the process. The pipes at both ends find each other through it.

    ``close()`` of one end closes the pipe of the other end.

    Attributes:
        peer: the other end, a MessageConnection.
        pipe: the pipe that owns this end; None before it has one, and when it is closed.
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
        """Connect, and do the dialing side's opening handshake. Blocks; the core limits the time.

        Host names are looked up at every call.

        Raises:
            ConnectionFailed: nothing is left open.
        """

    @property
    def unfinished(self) -> str:
        """What the last :meth:`connect` was waiting for when its time was over, for the error; "" if it is unknown."""
        return ""

    def abandon(self) -> None:  # noqa: B027, not needed if connecting takes no time
        """Close the descriptor of an unfinished connection in a forked child, without switching greenlets."""


class TransportListener(ABC):
    """Accepts connections at one address."""

    __slots__ = ()

    @property
    @abstractmethod
    def address(self) -> str:
        """The address that peers can dial. After :meth:`listen` it has the real port in place of port 0."""

    @abstractmethod
    def listen(self) -> None:
        """Bind the address. Does not block.

        Raises:
            AddressInUse, ConnectionFailed: nothing is left bound.
        """

    @abstractmethod
    def accept(self) -> Connection:
        """Block until a peer connects, and return the connection before its handshake.

        Raises:
            OSError: this attempt failed. The core tries again, after a pause if descriptors or memory have run out.
            Closed: the listener was closed.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop listening, and remove what :meth:`listen` created. Never blocks; may be repeated."""

    def join(self) -> None:  # noqa: B027, most have none
        """Block until the transport's own greenlets for the closed listener have ended, except the caller."""

    @abstractmethod
    def abandon(self) -> None:
        """Close the descriptors in a forked child. Removes no file, and does not switch greenlets."""


class Transport(ABC):
    """A kind of connection, with the schemes of its addresses."""

    __slots__ = ()

    #: The schemes of the addresses of this transport.
    schemes: ClassVar[tuple[str, ...]] = ()

    def families(self, scheme: str) -> tuple[str, ...] | None:
        """Return the families of options that an endpoint with this scheme reads, like ``("transport.tcp",)``.

        Options of the library's other transports are refused there. None, as by default: nothing is refused.
        """
        return None

    @abstractmethod
    def dialer(self, address: Address, options: Options) -> TransportDialer:
        """Return a dialer for the address. No I/O.

        Raises:
            AddressError: this transport cannot dial the address.
        """

    @abstractmethod
    def listener(self, address: Address, options: Options) -> TransportListener:
        """Return a listener for the address, not yet listening. No I/O.

        Raises:
            AddressError: this transport cannot listen at the address.
        """
