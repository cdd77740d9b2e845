"""The Socket: a connector, a sender and a receiver under one roof.

This is the doorway between users and the parts. Each method checks who calls, hands over to the part whose business it
is, and adds nothing: what blocks blocks there. What the methods promise is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import gevent
from gevent import Greenlet, get_hub
from gevent.event import Event

from .. import options as opts
from ..address import Address
from ..counters import Counters
from ..errors import AddressError, Closed
from ..loop import owner
from ..loop.waiting import Deadline
from ..options import Option, Options, OptionValues
from ..wire import Message
from .connector import Connector
from .dialer import Dialer
from .events import PipeCallback
from .listener import Listener
from .negotiation import Negotiator
from .pipe import Pipe
from .protocolsocket import ProtocolSocket
from .threadsafe import ThreadsafeSender

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Socket", "live_sockets"]

_current_thread = owner.current_thread
_new = tuple.__new__


class Socket:
    """A message socket: any number of peers, over any transports, sending and receiving independent of each other.

    Any number of greenlets may call any method at the same time; calls are served in the order in which they came. A
    ``gevent.Timeout`` or a kill that ends a blocking call leaves the socket whole: no message is lost or half sent.

    A socket belongs to the OS thread and the process that made it; from elsewhere every call raises
    :class:`~gmultisocket.errors.WrongThread` or :class:`~gmultisocket.errors.ForkedSocketError`. It starts no greenlet
    and opens no descriptor before the first ``dial`` or ``listen``.

    Wherever there is a ``timeout``, it is in seconds: None waits for ever, 0 does not wait, and when it runs out the
    call raises :class:`~gmultisocket.errors.Timeout` and nothing is lost.

    Args:
        options: values by name or :class:`~gmultisocket.options.Option`, e.g. ``{"socket.no_recv": True}``.

    Source: socket.go of the Go code (``New``, ``NewDefault``, ``NewNoRecv``, ``NewNoSend``).
    """

    def __init__(self, options: OptionValues | None = None) -> None:
        hub = get_hub()
        #: The socket's options. Dialers, listeners and pipes inherit what is not set on them.
        self.options = Options(options)
        self._thread = _current_thread()
        self._connector = Connector(hub, self.options)
        self._sender = self._connector.sender
        self._receiver = self._connector.receiver
        self._closing = False
        self._closed: Event | None = None
        owner.register(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} pipes={len(self._connector.pipes)}>"

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _check(self) -> None:
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)

    # Connecting

    def dial(self, address: str | Address, options: OptionValues | None = None) -> Dialer:
        """Connect to an address, and connect again whenever the connection is lost.

        Blocks until connected, unless ``connector.dialer.dial_async`` is set: then the dialer tries in the background
        until it succeeds, from the first time on.

        Args:
            address: e.g. ``"tcp://host:port"``; options may follow, ``"?transport.tcp.no_delay=false"``.
            options: for this dialer and its pipes; they override those in the address.

        Raises:
            AddressError, OptionError: the address or an option is wrong.
            ConnectionFailed: no connection could be made. Nothing is tried again.
            PipeRefused: a negotiator said no, or ``connector.pipe_limit`` is reached.
        """
        self._check()
        parsed = Address.parse(address)
        _not("listen", parsed)
        return self._connector.dial(parsed, Options(parsed.merged(options), parent=self.options))

    def listen(self, address: str | Address, options: OptionValues | None = None) -> Listener:
        """Accept connections at an address. Blocks only to look a host name up.

        Args:
            address: e.g. ``"tcp://127.0.0.1:0"``: the listener's ``address`` then has the real port.
            options: for this listener and its pipes; they override those in the address.

        Raises:
            AddressError, OptionError: the address or an option is wrong.
            AddressInUse, ConnectionFailed: the address could not be bound.
        """
        self._check()
        parsed = Address.parse(address)
        _not("dial", parsed)
        return self._connector.listen(parsed, Options(parsed.merged(options), parent=self.options))

    def connect(self, address: str | Address, options: OptionValues | None = None) -> Dialer | Listener:
        """Dial or listen, as the address says: ``"tcp://host:port?name=value#dial"``. Blocks and raises as those do."""
        return Address.parse(address).connect(self, options)

    def stop_dial(self, address: str | Address) -> int:
        """Close the dialers to an address; their pipes stay. Returns how many there were."""
        self._check()
        return _stop(self._connector.dialers, address)

    def stop_listen(self, address: str | Address) -> int:
        """Close the listeners at an address, given as it was or with the real port; their pipes stay.

        Returns:
            How many there were.
        """
        self._check()
        return _stop(self._connector.listeners, address)

    def set_negotiator(self, negotiator: Negotiator | None) -> None:
        """Have every new connection pass a negotiator, called as ``negotiator(negotiation)``, before it may be a pipe.

        It refuses by raising, e.g. by ``negotiation.refuse(reason)``, and may block, within
        ``connector.pipe.negotiate_timeout``; other peers go on meanwhile. None lets everybody in again.
        """
        self._check()
        self._connector.negotiator = negotiator

    # Pipes

    @property
    def pipes(self) -> Mapping[int, Pipe]:
        """The open pipes by id, live and read-only."""
        return MappingProxyType(self._connector.pipes)

    @property
    def dialers(self) -> tuple[Dialer, ...]:
        """The dialers that are not closed."""
        return tuple(self._connector.dialers)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The listeners that are not closed."""
        return tuple(self._connector.listeners)

    def close_pipe(self, pipe_id: int, reason: str = "closed by the user") -> bool:
        """Close one pipe at once. Its dialer dials again. Returns False if no open pipe has the id."""
        self._check()
        pipe = self._connector.pipes.get(pipe_id)
        if pipe is None:
            return False
        pipe.close(reason)
        return True

    def on_pipe(self, callback: PipeCallback) -> Callable[[], None]:
        """Call ``callback(event)`` when a pipe comes (``event.kind == "add"``) or goes (``"remove"``, with the reason).

        Callbacks are called in the order of the events, one at a time, in a greenlet of their own; they may block, and
        may close the socket. An error in one is logged and does not concern the others.

        Returns:
            A callable that ends it.
        """
        self._check()
        return self._connector.events.subscribe(callback)

    def wait_pipes(self, count: int = 1, timeout: float | None = None) -> None:
        """Block until at least ``count`` pipes are open.

        Raises:
            Timeout: they did not come in time.
            Closed: the socket was closed meanwhile.
        """
        self._check()
        self._connector.wait_pipes(count, timeout)

    # Sending

    def send(self, content: Buffer, timeout: float | None = None) -> None:
        """Send to one peer, fairly chosen among those that can take a message.

        Blocks while there is none. A message whose pipe closes before it left goes to another peer.

        Raises:
            Timeout: nobody could take it in time. It was not sent.
            NoPeers: nobody is connected, and ``socket.fail_no_peers`` is set.
            MessageTooLong: it is over ``socket.max_send_content_length``.
            Closed: the socket is closed.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        self._sender.send(content, timeout)

    def send_all(self, content: Buffer, timeout: float | None = None) -> int:
        """Send to every peer that is connected now.

        Blocks while a peer's queue is full, if ``socket.send_overflow`` is ``block``; the others have got it by then.

        Returns:
            The number of pipes that it went to, 0 if there is none.

        Raises:
            Timeout: some queues stayed full. ``error.sent`` pipes have the message, the others have lost it.
            MessageTooLong, Closed: as for :meth:`send`.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return self._sender.send_all(content, timeout)

    def send_to(self, destination: bytes, content: Buffer, timeout: float | None = None) -> None:
        """Send along a path, usually the ``source`` of a message that came from there.

        Blocks while the pipe's queue is full, if ``socket.send_overflow`` is ``block``.

        Raises:
            BrokenPath: the pipe that the path starts with has closed.
            BadPath: that is no path.
            Timeout, MessageTooLong, Closed: as for :meth:`send`.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        self._sender.send_to(destination, content, timeout)

    def send_msg(self, message: Message, timeout: float | None = None) -> int:
        """Send or forward a message as its own fields say: flags, ttl, paths. Blocks as the send of its type does.

        Returns:
            The number of pipes that it went to.

        Raises:
            MessageDropped: it may not go further: its ttl is 0, it has arrived, or it came from a raw pipe.
            BrokenPath, Timeout, NoPeers, MessageTooLong, Closed: as for the send of its type.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return self._sender.send_msg(message, timeout)

    def send_some(self, pipes: Iterable[Pipe], content: Buffer, timeout: float | None = None, flags: int = 0) -> int:
        """Send to all of some pipes, as :meth:`send_all` does to all of them; for protocols.

        Args:
            pipes: open pipes of this socket; those that have closed are passed over.
            content: bytes-like.
            timeout: see above.
            flags: flags of the message, e.g. ``wire.CONTROL``.

        Returns:
            The number of pipes that it went to.
        """
        self._check()
        return self._sender.send_some(pipes, content, timeout, flags)

    def threadsafe(self) -> ThreadsafeSender:
        """Return a handle through which other OS threads may send. Made, and closed, in the socket's own thread."""
        self._check()
        return ThreadsafeSender(self)

    def _for_protocol(self) -> ProtocolSocket:
        """Return a protocol's access to this socket."""
        return ProtocolSocket(self)

    # Receiving

    def recv(self, timeout: float | None = None) -> bytes:
        """Return the content of the next message from any peer. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            Closed: the socket is closed, and everything that had arrived was received.
            NotSupported: the socket has ``socket.no_recv`` set.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return self._receiver.take_next(timeout)[4]

    def recv_msg(self, timeout: float | None = None) -> Message:
        """Return the next message from any peer, with its ``source``. Blocks and raises as :meth:`recv` does."""
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return _new(Message, self._receiver.take_next(timeout))

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages as they come; ends when the socket closes."""
        while True:
            try:
                message = self.recv_msg()
            except Closed:
                return
            yield message

    # Options and counters

    def set_option(self, option: str | Option[Any], value: Any) -> None:
        """Set an option, for the socket and what belongs to it and has no value of its own.

        Raises:
            UnknownOption, BadOptionValue: nothing changed.
        """
        self._check()
        self.options.set(option, value)

    def get_option(self, option: str | Option[Any]) -> Any:
        """Return an option's value in force."""
        return self.options.get(option)

    @property
    def counters(self) -> Counters:
        """What has been counted on this socket and all its pipes, open and closed."""
        return self._connector.counters()

    @property
    def reconnects(self) -> int:
        """How often the open dialers have found their peer again."""
        return sum(dialer.reconnects for dialer in self._connector.dialers)

    @property
    def queued(self) -> int:
        """How many received messages nobody has taken yet."""
        return len(self._receiver.queue)

    # Closing

    @property
    def closed(self) -> bool:
        """Whether ``close()`` has done its work."""
        return self._closing and (self._closed is None or self._closed.is_set())

    def close(self, linger: float | None = None) -> int:
        """Close the socket: no more sending, then what is queued leaves, then everything is let go.

        Blocks while queued messages leave, at most ``linger`` seconds, and until every greenlet, descriptor and socket
        file of the socket is gone. What has arrived can still be received. May be called from anywhere, a pipe callback
        or a greenlet that this very socket runs included, and more than once; a second call waits for the first.

        Args:
            linger: seconds; None for ``socket.send_stop_timeout``.

        Returns:
            How many messages that were accepted for sending are lost. 0 for a second call.
        """
        if self._thread == owner.FORKED:
            return 0
        self._check()
        if self._closing:
            if self._closed is not None and not self._closed.is_set():
                self._wait_closed()
            return 0
        if linger is None:
            linger = self.options.get(opts.socket.send_stop_timeout)
        return self._close(Deadline(linger))

    def close_nowait(self, linger: float | None = None) -> Greenlet[..., Any]:
        """Have a greenlet close the socket, and return it; for where nothing may block, such as signal handlers."""
        return gevent.spawn(self.close, linger)

    def _close(self, deadline: Deadline) -> int:
        connector = self._connector
        self._closing = True
        self._closed = Event()
        lost_before = connector.lost()
        try:
            reason = "closed by close()"
            self._sender.stop(reason)
            stopped = connector.stop()
            self._receiver.stop(reason)
            try:
                connector.flush(deadline)
            finally:
                # Whatever ended the flush, a kill included: nothing stays behind.
                pipes = connector.close_pipes("the socket was closed", deadline)
            for worker in [*stopped, *pipes]:
                worker.join()
            connector.join()
            # What was closed before this call may be waiting for the loop's next turn to be let go.
            gevent.sleep(0)
            return connector.lost() - lost_before
        finally:
            owner.unregister(self)
            self._closed.set()

    def _wait_closed(self) -> None:
        assert self._closed is not None
        if not self._connector.is_mine(gevent.getcurrent()):
            self._closed.wait()

    def abandon(self) -> None:
        """Become unusable in a forked child; called by the fork itself."""
        self._thread = owner.FORKED
        self._closing = True
        self._connector.abandon()


def _not(wrong: str, address: Address) -> None:
    """Refuse an address that says it is for the other call."""
    if address.connect_type == wrong:
        raise AddressError(address.text, f"it says #{wrong}: use {wrong}() or connect()")


def _stop(endpoints: list[Any], address: str | Address) -> int:
    """Close those of some dialers or listeners that have an address."""
    bare = Address.parse(address).bare
    found = [endpoint for endpoint in endpoints if bare in (endpoint.address, endpoint.given_address)]
    for endpoint in found:
        endpoint.close()
    return len(found)


def live_sockets() -> list[Socket]:
    """Return the sockets of this process that are not closed."""
    return [owned for owned in owner.live() if isinstance(owned, Socket)]
