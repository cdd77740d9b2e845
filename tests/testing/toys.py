"""Three toy transports, one of each kind of connection, in which names of this process are listened to."""

from __future__ import annotations

from typing import Any, ClassVar

from gevent import socket as gsocket
from gevent.queue import SimpleQueue

from gmultisocket.address import Address
from gmultisocket.errors import AddressError, AddressInUse, BadMessage, Closed, ConnectionRefused
from gmultisocket.options import Options
from gmultisocket.transport import (
    Connection,
    MessageConnection,
    PacketConnection,
    Transport,
    TransportDialer,
    TransportListener,
)
from gmultisocket.transport.stream import SocketConnection


class ToyStream(SocketConnection):
    """One end of a socketpair."""

    __slots__ = ()

    local_address = peer_address = "toy://socketpair"


class NetstringCodec:
    """A packet is a netstring, ``5:hello,``; the empty one says goodbye."""

    key: str | None = "netstring"
    whole = True
    read_size = 1 << 16
    pending = False
    more = False

    def __init__(self) -> None:
        self.max_content = 0
        self.error: BadMessage | None = None
        self._rest = b""
        self._ended = False

    def wrap(self, frame: bytes) -> bytes:
        return b"%d:%s," % (len(frame), frame)

    def prefix(self, size: int) -> bytes | None:
        return None

    def unwrap(self, packet: bytes) -> bytes:
        return packet[packet.index(b":") + 1 : -1]

    def feed(self, data: bytes) -> list[bytes]:
        if self.error is not None:
            raise self.error
        packets: list[bytes] = []
        self._rest += data
        while self._rest:
            digits, colon, rest = self._rest.partition(b":")
            if not (digits.isdigit() or not digits) or len(digits) > 9 or (colon and not digits):
                return self._fail(packets)
            size = int(digits or b"0")
            if not colon or len(rest) <= size:
                break
            if rest[size : size + 1] != b",":
                return self._fail(packets)
            if size:
                packets.append(rest[:size])
            else:
                self._ended = True
            self._rest = rest[size + 1 :]
        return packets

    def _fail(self, packets: list[bytes]) -> list[bytes]:
        self.error = BadMessage("no netstring")
        if not packets:
            raise self.error
        return packets

    def replies(self) -> bytes:
        return b""

    def ping(self) -> bytes:
        return b""

    def pong(self) -> bytes:
        return b""

    def goodbye(self, reason: Exception | None) -> bytes:
        return b"0:,"

    def end(self) -> str:
        return "the peer said goodbye" if self._ended else ""


class ToyPackets(SocketConnection, PacketConnection):
    """One end of a socketpair on which netstrings travel."""

    __slots__ = ("_early", "codec")

    local_address = peer_address = "toy+packets://socketpair"
    make_codec: ClassVar[type[NetstringCodec]] = NetstringCodec

    codec: Any

    def __init__(self, sock: Any) -> None:
        super().__init__(sock)
        self.codec = self.make_codec()
        self._early = b""

    def unread(self, data: bytes) -> None:
        self._early = data + self._early

    def recv(self, size: int, /) -> bytes:
        early, self._early = self._early[:size], self._early[size:]
        return early or super().recv(size)


class ToyMessages(MessageConnection):
    """One end of a connection without bytes."""

    __slots__ = ("closed", "peer", "pipe")

    local_address = peer_address = "toy+messages://here"

    def __init__(self) -> None:
        self.pipe = None
        self.closed = False

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.pipe = None
        if self.peer.pipe is not None:
            self.peer.pipe.close("the other end was closed")
        else:
            self.peer.close()

    def abandon(self) -> None:
        self.closed = True


class ToyTransport(Transport):
    """Names of this process; what a connection is made of is for the subclasses to say."""

    __slots__ = ("listeners",)

    def __init__(self) -> None:
        self.listeners: dict[str, ToyListener] = {}

    def pair(self) -> tuple[Connection, Connection]:
        """Return the two ends of a new connection."""
        raise NotImplementedError

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return ToyDialer(self, address)

    def listener(self, address: Address, options: Options) -> TransportListener:
        return ToyListener(self, address)


class ToyDialer(TransportDialer):
    def __init__(self, transport: ToyTransport, address: Address) -> None:
        if "/" in address.location:
            raise AddressError(address.text, "a toy's name has no slash")
        self._transport = transport
        self._address = address

    def connect(self) -> Connection:
        listener = self._transport.listeners.get(self._address.location)
        if listener is None:
            raise ConnectionRefused(self._address.bare, "nobody listens to the name")
        near, far = self._transport.pair()
        listener.waiting.put(far)
        return near


class ToyListener(TransportListener):
    def __init__(self, transport: ToyTransport, address: Address) -> None:
        if "/" in address.location:
            raise AddressError(address.text, "a toy's name has no slash")
        self._transport = transport
        self._address = address
        self.waiting: SimpleQueue[Any] = SimpleQueue()

    @property
    def address(self) -> str:
        return self._address.bare

    def listen(self) -> None:
        if self._transport.listeners.setdefault(self._address.location, self) is not self:
            raise AddressInUse(self.address, "the name is taken")

    def accept(self) -> Connection:
        connection = self.waiting.get()
        if connection is None:
            self.waiting.put(None)
            raise Closed("listener")
        return connection  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._transport.listeners.get(self._address.location) is self:
            del self._transport.listeners[self._address.location]
        while not self.waiting.empty():
            connection = self.waiting.get()
            if connection is not None:
                connection.close()
        self.waiting.put(None)

    def abandon(self) -> None:
        self._transport.listeners.clear()


class ToyStreamTransport(ToyTransport):
    __slots__ = ("sockets",)

    schemes: ClassVar[tuple[str, ...]] = ("toy",)
    connection: ClassVar[type[SocketConnection]] = ToyStream

    def __init__(self) -> None:
        super().__init__()
        #: All that were ever made, for tests of toys that do not close them.
        self.sockets: list[Any] = []

    def pair(self) -> tuple[Connection, Connection]:
        one, other = gsocket.socketpair()
        self.sockets += (one, other)
        return self.connection(one), self.connection(other)


class ToyPacketTransport(ToyStreamTransport):
    schemes: ClassVar[tuple[str, ...]] = ("toy+packets",)
    connection: ClassVar[type[SocketConnection]] = ToyPackets


class ToyMessageTransport(ToyTransport):
    schemes: ClassVar[tuple[str, ...]] = ("toy+messages",)

    def pair(self) -> tuple[Connection, Connection]:
        one, other = ToyMessages(), ToyMessages()
        one.peer, other.peer = other, one
        return one, other
