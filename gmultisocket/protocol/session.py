"""Sessions: several protocols over one WebSocket.

A page has one WebSocket, and a Session gives it a Pub, a Rep and any other protocols, each as a channel::

    session = Session({"events": pub, "rpc": rep})
    application = mount(session, "/ws", app)

* Who talks to whom: the socket of each channel gets a pipe for each peer that opens the channel. It is a pipe as any
  other: it has its own id, queue, limits and counters, and the address and identity of the WebSocket's peer. It closes
  with the WebSocket, at the latest. The other side of a Session is a Session too, with the same names and the matching
  protocols (``Session({"events": sub, "rpc": req})``), or the client in a browser.
* On the wire: the subprotocol ``multisocket.session``. A WebSocket message is the number of a channel (1 byte) and one
  frame. With the number 0 it is a JSON text about the channels. From the listening side comes first a list of
  ``{"channel", "name", "protocol"}``. The dialing side says ``{"open": number}`` before it uses a channel. ``{"close":
  number, "reason": text}`` comes from either side, and the other side answers it by the same; after that the channel
  may be opened again. ``{"ping": value}`` is answered by ``{"pong": value}``.
* What is lost, and when: a channel never waits for another one. If the socket of a channel does not receive, 64
  messages or 256 KiB wait in its pipe; with one more the channel closes (drop reason ``unread``). The dialing side
  opens a channel that was closed again, after a pause.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from time import monotonic
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import gevent

from .. import options as opts
from ..address import Address
from ..core.pipes.channelpipe import CarrierPipe, ChannelPipe
from ..core.pipes.pipe import Pipe
from ..core.socket import Socket
from ..errors import AddressError, Closed, PipeRefused, printable, snippet
from ..log import get_logger
from ..options import OptionValues
from ..transport.wschannels import MAX_CHANNELS
from .base import ProtocolBase
from .plain import PlainReceiver

if TYPE_CHECKING:
    from ..core.connecting.channels import ChannelEndpoint
    from ..core.connecting.dialer import Dialer
    from ..core.connecting.listener import Listener

__all__ = ["Session"]

logger = get_logger("gmultisocket.session")

_SCHEMES: Final = ("ws", "ws.sr", "wss", "ws+fd", "wss+fd")
_ABOUT: Final = b"\0"
#: The longest text about channels, in bytes.
_MAX_TEXT: Final = 1 << 16
#: Seconds until a channel is opened again, at first and at most.
_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
#: The maximum number of characters of a channel's name, and of a reason that is sent.
_MAX_NAME: Final = 128
_MAX_REASON: Final = 200


class _Member:
    """A socket of the session.

    Attributes:
        name: of its channel.
        protocol: what the list says.
        accepting, dialing: make its pipes, at the two sides.
    """

    __slots__ = ("accepting", "dialing", "name", "protocol")

    def __init__(self, name: str, member: ProtocolBase | Socket) -> None:
        sock = member if isinstance(member, Socket) else member.socket
        core = sock._for_protocol()
        core.check()
        self.name = name
        self.protocol = _protocol_of(member)
        self.accepting: ChannelEndpoint = core.channel_endpoint(name, sock.options, False)
        self.dialing: ChannelEndpoint = core.channel_endpoint(name, sock.options, True)


class _Channels:
    """The channels of one WebSocket, as both sides see them.

    Args:
        pipe: of the WebSocket.
        members: the sockets, by the numbers of their channels.
        garbage: called for each message that makes no sense.

    Nothing here blocks, and no message of the peer makes it raise.
    """

    __slots__ = ("_garbage", "_members", "_pipe", "_pipes")

    def __init__(self, pipe: CarrierPipe, members: Mapping[int, _Member], garbage: Callable[[], object]) -> None:
        self._pipe = pipe
        self._members = members
        self._garbage = garbage
        #: The pipes by channel; None for a channel that this side has closed, and the peer has not yet.
        self._pipes: dict[int, ChannelPipe | None] = {}
        pipe.take = self._take

    def _tell(self, value: object) -> None:
        """Send a text about the channels."""
        self._pipe.tell(_ABOUT + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    def _take(self, packet: bytes) -> None:
        """Handle a message of the WebSocket."""
        number = packet[0] if packet else 0
        pipe = self._pipes.get(number)
        if pipe is not None:
            pipe.take(packet[1:])
        elif number:
            # What was on its way when this side closed the channel is late. Anything else is a mistake of the peer.
            if number not in self._pipes:
                self._garbage()
        elif not self._take_text(packet):
            self._garbage()

    def _take_text(self, packet: bytes) -> bool:
        """Act on a text about the channels. Return whether it makes sense."""
        if len(packet) > _MAX_TEXT:
            return False
        try:
            text = json.loads(packet[1:])
        except (ValueError, RecursionError):
            return False
        match text:
            case list():
                return self._welcomed(text)
            case {"open": int(number)} if number is not True:
                return self._asked(number)
            case {"close": int(number)} if number is not True:
                return self._peer_closes(number, text.get("reason"))
            case {"ping": int() | str() | None as value} if len(packet) < _MAX_REASON:
                self._tell({"pong": value})
                return True
            case {"pong": _}:
                return True
        return False

    def _welcomed(self, entries: list[Any]) -> bool:
        """The peer says which channels it has. Return whether that makes sense."""
        return False

    def _asked(self, number: int) -> bool:
        """The peer opens a channel. Return whether that makes sense."""
        return False

    def _freed(self, number: int) -> None:
        """Both sides have closed a channel, and it may be opened again."""

    def _make(self, number: int, endpoint: ChannelEndpoint) -> None:
        """Make the pipe of a channel that the dialing side has opened. If the socket takes none, close the channel."""
        try:
            pipe = endpoint.open(self._pipe, self._pipe.channel(number, self._closed))
        except (Closed, PipeRefused) as error:
            self._close(number, error)
        except Exception as error:
            logger.error("channel %r of pipe %d failed: %s", self._members[number].name, self._pipe.id, error)
            self._close(number, "an unexpected error")
        else:
            if pipe.closed:
                self._close(number, pipe.reason)
            else:
                self._pipes[number] = pipe

    def _closed(self, number: int) -> None:
        """The pipe of a channel has closed."""
        pipe = self._pipes.get(number)
        if pipe is not None:
            self._close(number, pipe.reason)

    def _close(self, number: int, reason: object) -> None:
        self._pipes[number] = None
        self._tell({"close": number, "reason": snippet(str(reason), _MAX_REASON)})

    def _peer_closes(self, number: int, reason: object) -> bool:
        if number not in self._pipes:
            return False
        pipe = self._pipes.pop(number)
        if pipe is not None:
            self._tell({"close": number})
            why = f": {printable(reason[:_MAX_REASON])}" if isinstance(reason, str) and reason else ""
            pipe.end(f"the peer closed the channel{why}")
        self._freed(number)
        return True

    def end(self, reason: str) -> None:
        """Close the pipes of all channels: the WebSocket has closed."""
        while self._pipes:
            _, pipe = self._pipes.popitem()
            if pipe is not None:
                pipe.end(reason)


class _AcceptedChannels(_Channels):
    """The channels of a peer that has dialed."""

    __slots__ = ()

    def greet(self) -> None:
        """Send the list of channels."""
        self._tell(
            [
                {"channel": number, "name": member.name, "protocol": member.protocol}
                for number, member in self._members.items()
            ]
        )

    def _asked(self, number: int) -> bool:
        if number in self._pipes or number not in self._members:
            return False
        self._make(number, self._members[number].accepting)
        return True


class _DialedChannels(_Channels):
    """The channels of a peer that this side has dialed. It opens all that both sides have.

    Args:
        wanted: the sockets by name.
        spawn: runs a function in a greenlet that the Session ends.
    """

    __slots__ = ("_opened", "_spawn", "_wanted")

    _members: dict[int, _Member]

    def __init__(
        self,
        pipe: CarrierPipe,
        wanted: Mapping[str, _Member],
        garbage: Callable[[], object],
        spawn: Callable[..., object],
    ) -> None:
        super().__init__(pipe, {}, garbage)
        self._wanted = wanted
        self._spawn = spawn
        #: By channel: the seconds of the pause before it was opened, and when that was.
        self._opened: dict[int, tuple[float, float]] = {}

    def _welcomed(self, entries: list[Any]) -> bool:
        if self._members:
            return False
        for entry in entries:
            match entry:
                case {"channel": int(number), "name": str(name)} if 0 < number <= MAX_CHANNELS and name in self._wanted:
                    self._members[number] = self._wanted[name]
        for name in self._wanted.keys() - {member.name for member in self._members.values()}:
            logger.warning("the peer has no channel %r", name)
        for number in self._members:
            self._opened[number] = _PAUSE / 2, monotonic()
            self._open_channel(number)
        return True

    def _open_channel(self, number: int) -> None:
        endpoint = self._members[number].dialing
        if number not in self._pipes and not self._pipe.closed and not endpoint.closed:
            self._tell({"open": number})
            self._make(number, endpoint)

    def _freed(self, number: int) -> None:
        """Open the channel again, after a pause. It grows each time, unless the channel was open for longer."""
        before, opened = self._opened[number]
        pause = _PAUSE if monotonic() - opened > max(1.0, before) else min(_LONGEST_PAUSE, 2 * before)
        self._spawn(self._open_later, number, pause)

    def _open_later(self, number: int, pause: float) -> None:
        gevent.sleep(pause * random.uniform(0.5, 1.0))
        self._opened[number] = pause, monotonic()
        self._open_channel(number)


class Session(ProtocolBase):
    """Some protocols, or plain Sockets, that share each WebSocket.

    The Session's own socket listens, dials, and has the pipes of the WebSockets; no message can be sent by these. Close
    the Session after the protocols: what they have still to send goes through it. They stay open when it closes.

    Args:
        channels: the protocols by name, at most 255, all of this OS thread. A socket with a negotiator takes no
            channels.
        options: of the Session's socket: ``transport.ws.*``, limits of connections, keepalive. A content may be as long
            as the largest ``connector.pipe.max_recv_content_length`` of the channels, if that is not set here.

    Raises:
        ValueError: a name is empty or longer than 128 characters, or there are no channels, or more than 255.
        WrongThread: a protocol belongs to another thread.
    """

    fixed = {"transport.ws.session": True}
    instead: ClassVar[Mapping[str, str]] = {"send": "its channels", "recv": "its channels"}

    def __init__(self, channels: Mapping[str, ProtocolBase | Socket], options: OptionValues | None = None) -> None:
        if not 0 < len(channels) <= MAX_CHANNELS:
            raise ValueError(f"a Session has between 1 and {MAX_CHANNELS} channels: not {len(channels)}")
        for name in channels:
            if not 0 < len(name) <= _MAX_NAME:
                raise ValueError(f"the name of a channel has between 1 and {_MAX_NAME} characters: not {name!r}")
        super().__init__(options)
        #: The protocols by name.
        self.channels: Mapping[str, ProtocolBase | Socket] = MappingProxyType(dict(channels))
        self._members = {number: _Member(name, one) for number, (name, one) in enumerate(channels.items(), 1)}
        self._by_name = {member.name: member for member in self._members.values()}
        self._carriers: dict[int, _Channels] = {}
        size = opts.connector.pipe.max_recv_content_length
        if size.name not in self.options.own():
            limits = [member.accepting.options.get(size) for member in self._members.values()]
            self.options.set(size, 0 if 0 in limits else max(limits))
        self._core.on_pipe(self._on_pipe)

    def dial(self, address: str | Address, options: OptionValues | None = None) -> Dialer:
        """Connect to a Session, as ``Socket.dial`` does. Only ``ws`` and ``wss`` have channels.

        Returns before the peer has said which channels it has; those whose names both sides have are then opened.

        Raises:
            AddressError: the address is of another transport.
        """
        return super().dial(_checked(address), options)

    def listen(self, address: str | Address, options: OptionValues | None = None) -> Listener:
        """Accept WebSockets, as ``Socket.listen`` does. Only ``ws`` and ``wss`` have channels.

        Raises:
            AddressError: the address is of another transport.
        """
        return super().listen(_checked(address), options)

    def connect(self, address: str | Address, options: OptionValues | None = None) -> Dialer | Listener:
        """Dial or listen, as the address says. As :meth:`dial` and :meth:`listen`."""
        return super().connect(_checked(address), options)

    # WebSockets

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "remove":
            channels = self._carriers.pop(pipe.id, None)
            if channels is not None:
                channels.end(pipe.reason)
            return
        assert isinstance(pipe, CarrierPipe), "transport.ws.session is set"

        def garbage() -> None:
            self._core.count_drop("garbage", pipe.id)

        if pipe.dialed:
            self._carriers[pipe.id] = _DialedChannels(pipe, self._by_name, garbage, self._spawn)
        else:
            accepted = self._carriers[pipe.id] = _AcceptedChannels(pipe, self._members, garbage)
            accepted.greet()


def _checked(address: str | Address) -> Address:
    parsed = Address.parse(address)
    if parsed.scheme not in _SCHEMES:
        raise AddressError(parsed.text, f"a Session needs ws:// or wss://, not {parsed.scheme}://")
    return parsed


def _protocol_of(member: ProtocolBase | Socket) -> str:
    """Return the name of the library's protocol that a class is, or is derived from; or else of the class."""
    if isinstance(member, Socket):
        return "socket"
    package = __name__.rpartition(".")[0]
    kinds = [kind for kind in type(member).__mro__ if kind.__module__.startswith(f"{package}.")]
    # Bases of all protocols, which say nothing about this one.
    named = [kind for kind in kinds if kind not in (ProtocolBase, PlainReceiver)] or [type(member)]
    return named[0].__name__.lower()
