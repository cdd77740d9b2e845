"""The Socket: what users call.

Each method checks that the caller's thread and process are right, and calls the part that does the work: the sender,
the receiver or the connector. What the methods promise is said here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import gevent
from gevent import get_hub
from gevent.hub import Hub

from .. import options as opts
from ..address import Address
from ..counters import Counters
from ..errors import AddressError, Closed
from ..loop import owner
from ..loop.waiting import Deadline
from ..options import DialerOptions, ListenerOptions, Option, Options, OptionValues
from ..options.places import Place, Reader, endpoint_reader, socket_reader
from ..transport import Transport, find
from ..wire import Message
from .closing import Closable
from .connecting.connector import Connector
from .connecting.dialer import Dialer
from .connecting.events import CallbackGreenlet, PipeCallback
from .connecting.negotiation import Negotiator
from .flushing import Flushable
from .pipes.pipe import Pipe

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .connecting.listener import Listener
    from .protocolsocket import ProtocolSocket
    from .threadsafe import ThreadsafeSender

__all__ = ["Socket", "live_sockets", "on_closed"]

#: Called with each socket that has closed. They must not block or raise.
on_closed: list[Callable[[Socket], object]] = []

_current_thread = owner.current_thread
_new = tuple.__new__
_BARE = socket_reader()


class Socket(Closable):
    """A message socket: any number of peers, over any transports, sending and receiving independent of each other.

    Any number of greenlets may call any method at the same time; calls are served in the order in which they came. A
    ``gevent.Timeout`` or a kill that ends a blocking call leaves the socket whole: no message is lost or half sent.

    A socket belongs to the OS thread and the process that made it. In another thread every call raises
    :class:`~gmultisocket.errors.WrongThread`, in a forked process
    :class:`~gmultisocket.errors.ForkedSocketError`. It starts no greenlet and opens no descriptor before the first
    ``dial`` or ``listen``.

    Every ``timeout`` is in seconds: None waits for ever, 0 does not wait. When it runs out, the call raises
    :class:`~gmultisocket.errors.Timeout` and nothing is lost. Every ``content`` is a bytes-like object.

    Args:
        options: values by name or :class:`~gmultisocket.options.Option`, e.g. ``{"socket.no_recv": True}``.

    Source: socket.go of the Go code (``New``, ``NewDefault``, ``NewNoRecv``, ``NewNoSend``).
    """

    #: The protocol on this socket, None for a bare socket.
    _protocol: weakref.ref[Flushable] | None = None

    def __init__(self, options: OptionValues | None = None, *, _reader: Reader = _BARE) -> None:
        hub = get_hub()
        #: The socket's options. Dialers, listeners and pipes inherit the values that are not set on them.
        self.options = Options(options, reader=_reader)
        self._thread = _current_thread()
        self._connector = Connector(hub, self.options)
        self._sender = self._connector.sender
        self._receiver = self._connector.receiver
        owner.register(self)

    def __repr__(self) -> str:
        state = "closed" if self.closed else "closing" if self._closing else "open"
        return f"<{type(self).__name__} {state} pipes={len(self._connector.pipes)}>"

    def _forked(self) -> bool:
        return bool(self._thread == owner.FORKED)

    def _is_mine(self, greenlet: object) -> bool:
        return isinstance(greenlet, CallbackGreenlet)

    def _check(self) -> None:
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)

    # Connecting

    def dial(self, address: str | Address, options: OptionValues | None = None) -> Dialer:
        """Connect to an address, and connect again whenever the connection is lost.

        Blocks until connected. If ``connector.dialer.dial_async`` is set, returns at once, and the dialer tries in the
        background until it succeeds.

        Args:
            address: e.g. ``"tcp://host:port"``; options may follow, ``"?transport.tcp.no_delay=false"``.
            options: for this dialer and its pipes; they override those in the address.

        Raises:
            AddressError, OptionError: the address or an option is wrong.
            ConnectionFailed: no connection could be made. Nothing is tried again.
            PipeRefused: a negotiator said no, or ``connector.pipe_limit`` is reached.
        """
        self._check()
        parsed = _parse(address, "dial")
        transport = find(parsed.scheme, parsed)
        values = DialerOptions(parsed.merged(options), self.options, _endpoint_reader(transport, parsed, "dialer"))
        self._connector.check_open("dialing")
        dialer = Dialer(self._connector, parsed, values, transport.dialer(parsed, values))
        self._connector.endpoints[dialer] = None
        if values.get(opts.connector.dialer.dial_async):
            dialer._dial_later()
            return dialer
        try:
            dialer._dial_now()
        except BaseException:
            dialer.close()
            raise
        return dialer

    def listen(self, address: str | Address, options: OptionValues | None = None) -> Listener:
        """Accept connections at an address. Blocks only to look a host name up.

        Args:
            address: e.g. ``"tcp://127.0.0.1:0"``: the listener's ``address`` then has the real port.
            options: for this listener and its pipes; they override those in the address.

        Raises:
            AddressError, OptionError: the address or an option is wrong.
            AddressInUse, ConnectionFailed: the address could not be bound.
        """
        # Programs that only dial do without.
        from .connecting.listener import Listener

        self._check()
        parsed = _parse(address, "listen")
        transport = find(parsed.scheme, parsed)
        values = ListenerOptions(parsed.merged(options), self.options, _endpoint_reader(transport, parsed, "listener"))
        self._connector.check_open("listening")
        listener = Listener(self._connector, parsed, values, transport.listener(parsed, values))
        self._connector.endpoints[listener] = None
        try:
            listener._listen()
        except BaseException:
            listener.close()
            raise
        return listener

    def connect(self, address: str | Address, options: OptionValues | None = None) -> Dialer | Listener:
        """Dial or listen, as the address says: ``"tcp://host:port?name=value#dial"``. Blocks and raises as those do."""
        return Address.parse(address).connect(self, options)

    def stop_dial(self, address: str | Address) -> int:
        """Close the dialers to an address, and return how many there were. Their pipes stay open."""
        self._check()
        return _close_at(self.dialers, address)

    def stop_listen(self, address: str | Address) -> int:
        """Close the listeners at an address, and return how many there were. Their pipes stay open.

        Args:
            address: as it was given to :meth:`listen`, or with the real port.
        """
        self._check()
        return _close_at(self.listeners, address)

    def set_negotiator(self, negotiator: Negotiator | None) -> None:
        """Call ``negotiator(negotiation)`` for every new connection before it becomes a pipe.

        It refuses by raising, e.g. by ``negotiation.refuse(reason)``. It may block; other peers are served meanwhile.
        It may wait for its peer within ``connector.pipe.negotiate_timeout``. None lets everybody in again.
        """
        self._check()
        self._connector.maker.negotiator = negotiator

    # Pipes

    @property
    def pipes(self) -> Mapping[int, Pipe]:
        """The open pipes by id, live and read-only."""
        return MappingProxyType(self._connector.pipes)

    @property
    def dialers(self) -> tuple[Dialer, ...]:
        """The dialers that are not closed."""
        return tuple(cast(Dialer, each) for each in self._connector.endpoints if each.dials)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The listeners that are not closed."""
        return tuple(cast("Listener", each) for each in self._connector.endpoints if not each.dials)

    def close_pipe(self, pipe_id: int, reason: str = "closed by the user") -> bool:
        """Close one pipe at once. Its dialer dials again. Return False if no open pipe has the id."""
        self._check()
        pipe = self._connector.pipes.get(pipe_id)
        if pipe is None:
            return False
        pipe.close(reason)
        return True

    def on_pipe(self, callback: PipeCallback) -> Callable[[], None]:
        """Call ``callback(event)`` when a pipe is added (``event.kind == "add"``) or removed (``"remove"``).

        ``event.reason`` is why it closed.

        Callbacks are called in the order of the events, one at a time, in a greenlet of their own; they may block, and
        may close the socket. An error in one is logged and does not affect the others.

        Returns:
            A function that ends the calls.
        """
        self._check()
        return self._connector.events.add(callback)

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
            Timeout: no peer could take it in time. It was not sent.
            NoPeers: nobody is connected, and ``socket.fail_no_peers`` is set.
            MessageTooLong: it is over ``socket.max_send_content_length``.
            Closed: the socket is closed.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        self._sender.send(content, timeout)

    def send_all(self, content: Buffer, timeout: float | None = None) -> int:
        """Send to every peer that is connected now.

        Blocks while a peer's queue is full, if ``socket.send_overflow`` is ``block``; the other peers have the message
        by then.

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

        Blocks while the pipe's queue is full, if ``socket.send_overflow`` is ``block``. All such calls without a
        timeout share ``socket.send_to_patience``: when it is used up, a peer in another process whose queue is full is
        closed, so that a peer that does not read cannot stop a server for all others.

        Raises:
            BrokenPath: the pipe that the path starts with has closed, or was closed for that reason.
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

    def threadsafe(self) -> ThreadsafeSender:
        """Return a handle by which other OS threads may send. It is made, and closed, in the socket's own thread."""
        self._check()
        # Most programs have one thread.
        from .threadsafe import ThreadsafeSender

        return ThreadsafeSender(self)

    # Receiving

    def recv(self, timeout: float | None = None) -> bytes:
        """Return the content of the next message from any peer. Blocks until there is one.

        Raises:
            Timeout: none arrived in time.
            Closed: the socket is closed, and everything that had arrived was received.
            NotSupported: the socket has ``socket.no_recv`` set.
        """
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return self._receiver.next(timeout)[4]

    def recv_msg(self, timeout: float | None = None) -> Message:
        """Return the next message from any peer, with its ``source``. Blocks and raises as :meth:`recv` does."""
        if _current_thread() != self._thread:
            raise owner.wrong_owner(self._thread)
        return _new(Message, self._receiver.next(timeout))

    def __iter__(self) -> Iterator[Message]:
        """Iterate over messages as they arrive; ends when the socket closes."""
        while True:
            try:
                message = self.recv_msg()
            except Closed:
                return
            yield message

    # Options and counters

    def set_option(self, option: str | Option[Any], value: Any) -> None:
        """Set an option for the socket, and for its dialers, listeners and pipes that have no value of their own.

        Raises:
            UnknownOption, BadOptionValue: nothing changed.
        """
        self._check()
        self.options.set(option, value)

    def get_option(self, option: str | Option[Any]) -> Any:
        """Return the value of an option that is in force."""
        return self.options.get(option)

    @property
    def counters(self) -> Counters:
        """What was counted on this socket and all its pipes, open and closed."""
        return self._connector.counters()

    def stats(self) -> dict[str, Any]:
        """Return the numbers of the socket as a plain dict; "Monitoring" in the documentation lists the keys.

        May be called in any thread, and never blocks. Takes about a microsecond for each pipe; the numbers of one pipe
        are in ``pipe.stats()``. The first call starts to measure how late the event loop is.
        """
        from .stats import socket_stats

        return socket_stats(self._connector, self.options)

    @property
    def reconnects(self) -> int:
        """How often the open dialers have connected again."""
        return sum(dialer.reconnects for dialer in self.dialers)

    @property
    def queued(self) -> int:
        """How many messages have arrived and were not received yet."""
        return len(self._receiver.queue)

    # Flushing

    def _flush(self, deadline: Deadline) -> bool:
        return self._connector.flush(deadline, requeued=True)

    def _unsent(self) -> int:
        return self._connector.unsent()

    def _unclosed(self) -> bool:
        return not self._closing and self._connector.in_use

    def _push_now(self) -> None:
        self._connector.scheduler.end_turn()

    @property
    def _home(self) -> tuple[int, Hub]:
        return self._thread, self._connector.hub

    @property
    def _whole(self) -> Flushable:
        return self if self._protocol is None else self._protocol() or self

    def __del__(self) -> None:
        # A protocol is collected with its socket, and closes it.
        if self._protocol is None:
            super().__del__()

    # Closing

    def _close(self, deadline: Deadline) -> int:
        # Once more, because a socket that is being collected is not registered any more.
        owner.register(self)
        connector = self._connector
        lost_before = connector.lost()
        try:
            reason = "closed by close()"
            self._sender.stop(reason)
            stopped = connector.stop()
            self._receiver.stop(reason)
            try:
                connector.flush(deadline)
            finally:
                # Whatever ended the flush, even a kill: nothing stays open.
                pipes = connector.close_pipes("the socket was closed", deadline)
            for endpoint in stopped:
                endpoint._join()
            for pipe in pipes:
                pipe._join()
            connector.join()
            # Descriptors that were closed before this call are released in the next turn of the loop.
            gevent.sleep(0)
            return connector.lost() - lost_before
        finally:
            owner.unregister(self)
            for callback in on_closed:
                callback(self)

    def _abandon(self) -> None:
        """Become unusable in a forked child. Called by the fork."""
        self._thread = owner.FORKED
        self._closing = self._close_done = True
        self._connector.abandon()

    # Protocols

    def _for_protocol(self, protocol: Flushable | None = None) -> ProtocolSocket:
        """Return what a protocol on this socket may do beyond users."""
        if protocol is not None:
            self._protocol = weakref.ref(protocol)
        from .protocolsocket import ProtocolSocket

        return ProtocolSocket(self._connector, self._check, self._forked)


def _parse(address: str | Address, wanted: str) -> Address:
    """Parse an address for one call, and refuse one that says it is for the other call."""
    parsed = Address.parse(address)
    if parsed.connect_type not in ("", wanted):
        raise AddressError(parsed.text, f"it says #{parsed.connect_type}: use {parsed.connect_type}() or connect()")
    return parsed


def _endpoint_reader(transport: Transport, address: Address, kind: Place) -> Reader | None:
    """Return what reads the options of an endpoint; None if the transport does not say which ones it has."""
    families = transport.families(address.scheme)
    return None if families is None else endpoint_reader(address.scheme, kind, families)


def _close_at(endpoints: tuple[Dialer, ...] | tuple[Listener, ...], address: str | Address) -> int:
    """Close those dialers or listeners that have an address, and return their number."""
    bare = Address.parse(address).bare
    found = [endpoint for endpoint in endpoints if bare in (endpoint.address, endpoint.given_address)]
    for endpoint in found:
        endpoint.close()
    return len(found)


def live_sockets() -> list[Socket]:
    """Return the sockets of this process that are not closed."""
    return [owned for owned in owner.live() if isinstance(owned, Socket)]
