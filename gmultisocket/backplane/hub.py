"""The engine of our own hub: ``ipc:///PATH`` on one host, ``tcp://HOST:PORT`` or ``tls+tcp://`` for several.

Where nobody has started a hub at an ipc path, the first plane does. A hub for several hosts is started by people:
``gmultisocket hub tcp://10.0.0.5:5600``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from struct import error as struct_error
from typing import Any, Final, Literal

import gevent
from gevent import Greenlet, GreenletExit, getcurrent
from gevent.event import Event

from .. import options as opts
from ..address import Address
from ..core.pipes.pipe import Pipe
from ..errors import BadTopic, Closed, ConnectionFailed, EngineRefused, MultiSocketError
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, Ended, survive
from ..loop.waiting import Deadline
from ..options import Options, OptionValues
from ..protocol.base import ProtocolBase
from ..protocol.history import Entry, publication
from ..protocol.pubsubwire import (
    REFUSED,
    SUBSCRIBE,
    SUBSCRIBED,
    UNSUBSCRIBE,
    WHO,
    Malformed,
    is_control,
    read_pattern,
    read_refused,
)
from ..protocol.subscriptions import check_topic
from ..protocol.upstream import control
from ..transport import find
from ..wire import SEND_TYPE_MASK, Message
from . import hubwire
from .brokertopics import remember
from .engine import MAX_BACKOFF, SILENCE, Engine, Plane
from .hublock import HubStarter

__all__ = ["HubEngine"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

_length, _stamp = hubwire.length, hubwire.stamp
#: The first pause before another attempt to connect, in seconds, and the factor by which the next ones are longer.
_FIRST_PAUSE: Final = 0.05
_FACTOR: Final = 1.5
_KILLED: Final = "something has killed a greenlet of this Backplane"
#: Messages that are taken from the receive queue at once.
_PORTION: Final = 64


class HubClient(ProtocolBase):
    """The socket of an engine. Statistics show it under the name of this class.

    Attributes:
        pipe: the pipe to the hub, None while there is none.
        lost: set when it has closed.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}

    def __init__(self, options: OptionValues) -> None:
        super().__init__(options)
        self.pipe: Pipe | None = None
        self.lost = Event()
        self.put = self._core.put
        self.put_one = self._core.put_one
        self.recv_batch = self._core.recv_batch
        self._core.on_pipe(self._on_pipe)

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "add":
            self.pipe = pipe
            self.lost.clear()
        elif pipe is self.pipe:
            # From now on nothing is put into it.
            self.pipe = None
            self.lost.set()


class HubEngine(Engine):
    """A client of a hub."""

    no_values = ""

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        super().__init__(url, plane, options)
        self._address = Address.parse(url)
        # A copy without the options of planes, which a socket does not have.
        values = {name: value for name, value in options.own().items() if name.startswith("transport.")}
        self._options: dict[str, Any] = {
            "socket.recv_queue_size": 4096,
            "socket.send_queue_size": 0xFFFF,
            "socket.max_send_content_length": 0,
            "connector.pipe.max_recv_content_length": 0,
            "connector.pipe.heartbeat_interval": SILENCE / 2,
            "connector.pipe.heartbeat_timeout": SILENCE,
            "connector.dialer.dial_timeout": SILENCE,
            "connector.dialer.reconnect": False,
            **values,
        }
        # Only for the errors of a wrong address.
        find(self._address.scheme, url).dialer(self._address, Options(values))
        self._starter = HubStarter(url, plane.history) if options.get(opts.plane.start_hub) else None
        self._client: HubClient | None = None
        self._greenlets: list[Greenlet[..., Any]] = []
        #: The pipe by which the hub has said welcome, None while there is none.
        self._pipe: Pipe | None = None
        #: Why this client cannot use the hub.
        self._refusal = ""
        #: Whether the hub has said what history it has, or need not.
        self._knows_history = False
        #: What the hub has not confirmed of the last portion.
        self._asked: set[str] = set()
        #: By a topic's bytes: the topic.
        self._topics: dict[bytes, str] = {}
        self._origin = plane.origin
        self._received = plane.received

    def start(self) -> None:
        self._client = HubClient(self._options)
        for work in (self._connect, self._receive):
            self._greenlets.append(gevent.spawn(self._run, work, self._client))

    def _run(self, work: Callable[[HubClient], object], client: HubClient) -> None:
        """Do one of the two works of this engine until it is closed (a greenlet for each)."""
        try:
            work(client)
        except Ended:
            pass
        except GreenletExit as error:
            survive(_log, "killed", error, "something has killed a greenlet of a Backplane, and another one goes on")
            if client.pipe is not None:
                # What this greenlet was about to do is lost: the plane has to know that.
                client.pipe.close(_KILLED)
            others = [each for each in self._greenlets if each is not getcurrent()]
            self._greenlets = [*others, gevent.spawn(self._run, work, client)]

    def close(self, deadline: Deadline) -> None:
        if self._client is None:
            return
        gevent.killall([each for each in self._greenlets if each is not getcurrent()], Ended)
        self._client.close(deadline.left())

    def abandon(self) -> None:
        """Do nothing: the client's socket does it."""

    # Connecting

    def _connect(self, client: HubClient) -> None:
        """Keep a connection to the hub (one greenlet)."""
        pause = 0.0
        while True:
            pause = min(pause * _FACTOR, MAX_BACKOFF) if pause else _FIRST_PAUSE
            try:
                self._connect_once(client)
                pause = 0.0
            except Closed:
                return
            except MultiSocketError as error:
                self.plane.disconnected(error)
            except Exception as error:
                survive(_log, "connect", error, "connecting to the hub has failed by an unexpected error")
            gevent.sleep(pause * random.uniform(0.5, 1.0))

    def _connect_once(self, client: HubClient) -> None:
        """Connect, and block until the connection is lost.

        Raises:
            MultiSocketError: there was none. After a connection that has worked, nothing is raised.
        """
        try:
            dialer = client.dial(self._address)
        except ConnectionFailed:
            if self._starter is not None:
                self._starter.start_if_none()
            raise
        try:
            pipe = client.pipe
            if pipe is None:
                raise ConnectionFailed(self._address.bare, "the hub has closed the connection")
            self._knows_history = not self.plane.history
            hello = hubwire.HELLO + bytes([hubwire.VERSION]) + (b"\1" if self.plane.history else b"")
            client.put(pipe, control(hello))
            if not client.lost.wait(SILENCE) and self._pipe is not pipe:
                pipe.close("the hub has not answered")
                raise ConnectionFailed(self._address.bare, f"the hub has not answered in {SILENCE:g} s")
            client.lost.wait()
            worked = self._forget_pipe()
            if self._refusal:
                raise EngineRefused(self._address.bare, self._refusal)
            error = ConnectionFailed(self._address.bare, f"the connection was lost: {pipe.reason}")
            if not worked:
                raise error
            self.plane.disconnected(error)
        except Ended:
            raise
        except GreenletExit:
            if self._forget_pipe():
                self.plane.disconnected(ConnectionFailed(self._address.bare, _KILLED))
            raise
        finally:
            dialer.close()

    def _forget_pipe(self) -> bool:
        """Forget the connection, which is lost. Return whether it has worked."""
        worked, self._pipe = self._pipe is not None, None
        self._asked = set()
        return worked

    # Sending

    def head(self, topic: str) -> bytes:
        return publication(topic, b"")

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        client = self._client
        # If it has just been lost, the plane does not know that yet, and gives the publication up when it does.
        if client is not None and (pipe := client.pipe) is not None:
            client.put_one(pipe, head + _stamp.pack(self._origin, sequence) + content)

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        self._send(hubwire.RETAIN + head + _stamp.pack(self._origin, sequence) + content)

    def unretain(self, head: bytes, sequence: int) -> None:
        self._send(hubwire.UNRETAIN + head + _stamp.pack(self._origin, sequence))

    def synchronize(self) -> None:
        self._send(hubwire.SYNC)

    def subscribe(self, patterns: Sequence[str]) -> None:
        self._asked = set(patterns)
        self._send_all(SUBSCRIBE, patterns)

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        self._send_all(UNSUBSCRIBE, patterns)

    def _send_all(self, kind: bytes, patterns: Sequence[str]) -> None:
        for pattern in patterns:
            self._send(kind + pattern.encode())

    def _send(self, message: bytes) -> None:
        """Send a control message."""
        client = self._client
        if client is not None and (pipe := client.pipe) is not None:
            client.put(pipe, control(message))

    # Receiving

    def _receive(self, client: HubClient) -> None:
        """Read what the hub sends (one greenlet)."""
        while True:
            try:
                messages = client.recv_batch(_PORTION)
            except Closed:
                return
            if len(messages) > 1:
                self.plane.gather()
            for flags, ttl, source, destination, content, pipe_id in messages:
                try:
                    if not flags & ~SEND_TYPE_MASK:
                        self._take(content)
                    elif (kind := content[:1]) in (hubwire.RETAIN, hubwire.KEPT, hubwire.UNRETAIN):
                        self._take(content[1:], kind)
                    elif kind == hubwire.ENTRY:
                        self._on_entry(content)
                    else:
                        self._on_control(client, Message(flags, ttl, source, destination, content, pipe_id))
                except Exception as error:
                    survive(_log, "receive", error, "a message of the hub could not be handled")

    def _take(self, content: bytes, kind: bytes = b"") -> None:
        """Hand a publication to the plane."""
        end = 2 + _length.unpack_from(content)[0] if len(content) > 2 else 0
        encoded = content[2:end]
        try:
            topic = self._topics.get(encoded) or self._topic(encoded)
        except (UnicodeDecodeError, BadTopic):
            self.count("garbage")
            return
        if len(content) < end + _stamp.size:
            self.count("garbage")
            return
        origin, sequence = _stamp.unpack_from(content, end)
        content = content[end + _stamp.size :]
        if kind == hubwire.UNRETAIN:
            self.plane.unretained(topic)
        elif kind:
            self.plane.retained(topic, content, origin, sequence, kind == hubwire.RETAIN)
        else:
            self._received(topic, content, origin, sequence)

    def _on_entry(self, content: bytes) -> None:
        """Hand a publication with its position to the plane."""
        try:
            _, flags, offset, previous = hubwire.entry_head.unpack_from(content)
            topic, stamped = hubwire.split(content, hubwire.entry_head.size)
            check_topic(topic)
        except (struct_error, Malformed, BadTopic):
            self.count("garbage")
            return
        if not self._knows_history:
            self.count("garbage")
            return
        entry = Entry(offset, previous, topic, stamped[_stamp.size :])
        logged, retained = bool(flags & hubwire.LOGGED), bool(flags & hubwire.IS_RETAINED)
        self.plane.positioned(entry, logged, retained, not flags & hubwire.FETCHED)

    def _topic(self, encoded: bytes) -> str:
        topic = encoded.decode()
        check_topic(topic)
        remember(self._topics, encoded, topic)
        return topic

    def _on_control(self, client: HubClient, message: Message) -> None:
        pipe = client.pipe
        if pipe is None or message.pipe_id != pipe.id:
            # Of a connection that is lost already.
            return
        content = message.content
        kind = content[:1] if is_control(message) else b""
        try:
            if kind == hubwire.CONFIRM and len(content) == hubwire.confirm.size:
                self.plane.confirmed(hubwire.confirm.unpack(content)[1])
            elif kind == SUBSCRIBED:
                self._confirmed(read_pattern(content))
            elif kind == REFUSED:
                pattern, reason = read_refused(content)
                if pattern in self._asked:
                    self.plane.interest_refused(pattern, reason)
                    self._confirmed(pattern)
            elif kind == hubwire.SINCE and len(content) > hubwire.history_head.size:
                _, complete_from, last_offset = hubwire.history_head.unpack_from(content)
                pattern = str(content[hubwire.history_head.size :], "utf-8")
                # It may be of a subscription that was left.
                if pattern in self._asked:
                    self.plane.fetched(pattern, complete_from, last_offset)
            elif kind == hubwire.SYNC and len(content) == hubwire.sync.size:
                self.plane.synchronized(hubwire.sync.unpack(content)[1])
            elif kind == hubwire.HISTORY and len(content) >= hubwire.history_head.size:
                _, epoch, last_offset = hubwire.history_head.unpack_from(content)
                self._on_history(pipe, epoch, last_offset, content[hubwire.history_head.size :])
            elif kind == hubwire.WELCOME and len(content) == hubwire.welcome.size:
                self._on_welcome(pipe, *hubwire.welcome.unpack(content)[1:])
            elif kind != WHO:
                self.count("garbage")
        except (Malformed, IndexError, UnicodeDecodeError, struct_error):
            self.count("garbage")

    def _on_history(self, pipe: Pipe, epoch: int, last_offset: int, rest: bytes) -> None:
        patterns = set()
        while rest:
            end = _length.size + _length.unpack_from(rest)[0]
            patterns.add(str(rest[_length.size : end], "utf-8"))
            rest = rest[end:]
        if patterns != set(self.plane.history):
            kept, wanted = (" ".join(sorted(each)) or "nothing" for each in (patterns, self.plane.history))
            self._refusal = f"the hub keeps the history of {kept}, and this Backplane expects that of {wanted}"
            pipe.close(self._refusal)
            return
        self._knows_history = True
        self.plane.began(epoch, last_offset)

    def _on_welcome(self, pipe: Pipe, version: int, limit: int) -> None:
        if version != hubwire.VERSION:
            ours = hubwire.VERSION
            self._refusal = f"the hub speaks version {version} of its protocol, and this library version {ours}"
            pipe.close(self._refusal)
            return
        if not self._knows_history:
            # It has other patterns.
            return
        self._refusal = ""
        self.max_content = max(1, limit - hubwire.OVERHEAD) if limit else 0
        self._pipe = pipe
        self.plane.connected()

    def _confirmed(self, pattern: str) -> None:
        if pattern in self._asked:
            self._asked.remove(pattern)
            if not self._asked:
                self.plane.subscribed()
