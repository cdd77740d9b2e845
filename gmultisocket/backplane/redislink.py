"""The two connections to a Redis server: one publishes, the other subscribes.

One connection would do with the newest protocol, but the server disconnects a subscriber that is too slow, and that
must not end what is being published. Each reply to a PUBLISH confirms it, in order. The server sends all copies of one
message behind each other. The plane recognizes copies by the publisher's number. For a message of another program the
rule is: what follows a message with the same channel and value, by a channel or glob that has not brought that message
yet, is its copy.

The connection that publishes also fetches present values, after the other one has subscribed. For a plane with history
the one that subscribes fetches, so that what is fetched and what comes live come in one order. The newest protocol
allows that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import hiredis
from gevent.event import AsyncResult

from ..errors import BadMessage, ConnectionFailed, EngineRefused, MultiSocketError, snippet
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL
from ..protocol.history import Entry
from ..protocol.subscriptions import is_literal
from ..transport.base import StreamConnection
from .brokerengine import BrokerLink
from .brokerline import Line, login_errors
from .brokerurl import Server
from .brokervalues import FetchedValues
from .engine import FOREIGN, Plane
from .redisfetch import HistoryFetch
from .redishistory import (
    HistoryCommands,
    KnownHistory,
    LoggedChannels,
    read_begin,
    read_news,
    read_patterns,
    read_state,
)
from .redisvalues import Fetch, ValueCommands
from .rediswire import (
    LOGGED,
    MARK_SIZE,
    RETAINED,
    UNRETAINED,
    Change,
    Channels,
    Globs,
    encode_command,
    encode_publish,
    read_change,
    read_mark,
)

__all__ = ["Commands", "RedisLink", "log_in"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: What the parser returns when it has no whole reply.
_MORE: Final = object()
#: The most bytes of a reply.
_MAX_REPLY: Final = 64 << 20
_READ: Final = 1 << 14

_PING: Final = encode_command(b"PING")
#: Codes of errors by which a server says that it does not want this client.
_NOT_WANTED: Final = frozenset({"NOAUTH", "WRONGPASS", "NOPERM", "DENIED"})
#: Codes of errors by which the plane counts publications.
_REASONS: Final = {"NOPERM": "permission", "OOM": "out of memory", "LOADING": "loading", "READONLY": "read only",
                   "NOSCRIPT": "no script"}  # fmt: skip
#: Replies up to this number are no offsets but numbers of subscribers.
_NO_OFFSET: Final = 1 << 32


def _parser() -> Any:
    return hiredis.Reader(notEnoughData=_MORE)


def _feed(parser: Any, data: bytes) -> list[Any]:
    """Return the replies that are complete now.

    Raises:
        BadMessage: the server breaks the protocol.
    """
    replies = []
    try:
        parser.feed(data)
        while (reply := parser.gets()) is not _MORE:
            replies.append(reply)
    except hiredis.HiredisError as error:
        raise BadMessage(f"this is not the protocol of Redis: {snippet(str(error))}") from error
    if parser.len() > _MAX_REPLY:
        raise BadMessage(f"a reply has more than {_MAX_REPLY} bytes")
    return replies


def _code(error: object) -> str:
    """Return the first word of an error, e.g. ``"NOPERM"``."""
    return str(error).partition(" ")[0]


def _refusal(error: object, server: Server) -> ConnectionFailed:
    text = str(error)
    refused = _code(error) in _NOT_WANTED or "invalid password" in text or "max number of clients" in text
    kind = EngineRefused if refused else ConnectionFailed
    return kind(server.name, f"the server says: {snippet(text, 400)}")


def log_in(connection: StreamConnection, server: Server, must_be_new: bool = False) -> None:
    """Log in on a new connection, and wait until the server answers a PING. Blocks; the caller limits the time.

    The newer protocol is used where the server knows it.

    Args:
        connection: belongs to the caller.
        server: with the credentials of this client.
        must_be_new: whether the server has to know the newer protocol.

    Raises:
        EngineRefused: the server does not want this client.
        ConnectionFailed: another error.
    """
    user, password = server.credentials
    words = [b"HELLO", b"3"]
    if password is not None:
        words += [b"AUTH", user.encode() or b"default", password.encode()]
    call = _Caller(connection, server).call
    with login_errors(server):
        hello = call(*words)
        if isinstance(hello, hiredis.ReplyError):
            if _code(hello) not in ("ERR", "NOPROTO", "NOPERM"):
                raise _refusal(hello, server)
            if must_be_new:
                raise EngineRefused(
                    server.name, f"history needs Redis 6 and the command HELLO: the server says {snippet(str(hello))}"
                )
            # An old server, or one that does not allow the command.
            if password is not None:
                _check(call(b"AUTH", *([user.encode()] if user else []), password.encode()), server)
        _check(call(b"PING"), server)


def _check(reply: object, server: Server) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise _refusal(reply, server)


class Commands(NamedTuple):
    """Makes the commands of an engine.

    Attributes:
        channels: translates topics.
        values: for present values.
        history: for topics with history.
    """

    channels: Channels
    values: ValueCommands
    history: HistoryCommands


class _Caller:
    """Sends commands one by one, before a line has the connection."""

    def __init__(self, connection: StreamConnection, server: Server) -> None:
        self._connection = connection
        self._server = server
        self._parser = _parser()

    def call(self, *words: bytes) -> Any:
        """Send a command, and return the reply. Blocks."""
        with suppress(OSError):
            # If it has hung up, what it has said before is still to be read.
            self._connection.write_all(encode_command(*words))
        while True:
            data = self._connection.recv(_READ)
            if not data:
                raise ConnectionFailed(self._server.name, "the server has closed the connection in the login")
            replies = _feed(self._parser, data)
            if replies:
                return replies[0]


class _Publisher:
    """The connection that publishes."""

    def __init__(
        self,
        connection: StreamConnection,
        server: Server,
        plane: Plane,
        commands: Commands,
        known: KnownHistory,
        answered: Callable[[], object],
        ended: Callable[[MultiSocketError], object],
    ) -> None:
        self._plane = plane
        self._commands = commands
        self._known = known
        self._answered = answered
        self._server = server
        self._parser = _parser()
        #: Publications: all that were sent, and those without a reply.
        self._sent = 0
        self._waiting = 0
        #: The other commands that have no reply: how many publications are in front of each, and what takes the reply.
        self._others: deque[tuple[int, Callable[[Any], object]]] = deque()
        self.line = Line(connection, server.name, received=self._received, ask=self._ask, ended=ended)
        self.line.start()

    def send(self, command: bytes) -> None:
        """Send a command that publishes. Its reply is a number."""
        self._sent += 1
        self._waiting += 1
        self.line.write(command)

    def load(self) -> None:
        """Make the server know the script that publishes to topics with history."""
        self.call(self._commands.history.load, self._loaded)

    def _loaded(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            error = _refusal(reply, self._server)
            if self._plane.history:
                raise error
            _log.log("script", logging.ERROR, "nothing can be published to topics with history: %s", error)

    def call(self, command: bytes, replied: Callable[[Any], object]) -> None:
        """Send another command; ``replied`` is called with its reply."""
        self._others.append((self._sent, replied))
        self.line.write(command)

    @property
    def is_settled(self) -> bool:
        """Whether the server has answered every publication."""
        return not self._waiting

    def _ask(self) -> None:
        # A command that is on its way asks already.
        if not self._waiting and not self._others:
            self.call(_PING, _ignore)

    def _received(self, data: bytes) -> None:
        confirmed = 0
        offset = max(self._known.offset, _NO_OFFSET)
        for reply in _feed(self._parser, data):
            if self._others and self._others[0][0] == self._sent - self._waiting + confirmed:
                self._others.popleft()[1](reply)
                continue
            if confirmed >= self._waiting:
                raise BadMessage("a reply that nobody has asked for")
            if type(reply) is int:
                confirmed += 1
                if reply > offset:
                    offset = reply
                continue
            if not isinstance(reply, hiredis.ReplyError):
                raise BadMessage(f"a publication was answered by {snippet(reply)}")
            self._confirm(confirmed)
            confirmed = 0
            self._refuse(reply)
        if offset > _NO_OFFSET:
            self._known.offset = offset
        self._confirm(confirmed)
        self._answered()

    def _confirm(self, count: int) -> None:
        if count:
            self._waiting -= count
            self._plane.confirmed(count)

    def _refuse(self, error: object) -> None:
        if _code(error) == "NOAUTH":
            raise _refusal(error, self._server)
        if _code(error) == "NOSCRIPT":
            # Somebody has made the server forget its scripts.
            self.load()
        self._waiting -= 1
        self._plane.refused(_REASONS.get(_code(error), "error"))


def _ignore(reply: object) -> None:
    """Do nothing with a reply."""


class _Subscriber:
    """The connection that subscribes."""

    def __init__(
        self,
        connection: StreamConnection,
        server: Server,
        plane: Plane,
        commands: Commands,
        changed: Callable[[str, Change], object],
        news: Callable[[Sequence[str]], object],
        count: Callable[[str], object],
        subscribed: Callable[[], object],
        ended: Callable[[MultiSocketError], object],
    ) -> None:
        self._plane = plane
        self._server = server
        self._channels = commands.channels
        self._news_channel = commands.history.news
        self._changed = changed
        self._news = news
        self._count = count
        self._subscribed = subscribed
        self._parser = _parser()
        #: The commands that have no reply, oldest first: the name, and the pattern, the glob, or what takes the reply.
        self._commands: deque[tuple[bytes, str | bytes | Callable[[Any], object]]] = deque()
        #: The patterns of the last portion that the server does not allow.
        self.refused: set[str] = set()
        self._globs = Globs()
        #: The globs that were asked for.
        self._asked: set[bytes] = set()
        #: The last message of another program: its channel and value, and the channels and globs that have brought it.
        self._last: tuple[bytes, bytes] | None = None
        self._brought: set[tuple[bytes, bytes]] = set()
        self.line = Line(connection, server.name, received=self._received, ask=self._ask, ended=ended)
        self.line.start()

    # To the server

    def begin(self, replied: Callable[[Any], object]) -> None:
        """Subscribe to the news about topics with history."""
        self._commands.append((b"SUBSCRIBE", replied))
        self.line.write(encode_command(b"SUBSCRIBE", self._news_channel))

    def call(self, command: bytes, replied: Callable[[Any], object]) -> None:
        """Send another command, if the server knows the newer protocol; ``replied`` is called with its reply."""
        self._commands.append((b"EVAL", replied))
        self.line.write(command)

    def subscribe(self, patterns: Sequence[str]) -> None:
        self.refused.clear()
        wild = [pattern for pattern in patterns if not is_literal(pattern)]
        lines = self._change_globs(self._globs.add(wild)) if wild else []
        for pattern in patterns:
            if is_literal(pattern):
                # A command for each: if one channel is not allowed, the server refuses a whole command.
                lines.append(self._command(b"SUBSCRIBE", self._channels.encode(pattern), pattern))
        lines.append(self._command(b"PING", b"", "portion"))
        self.line.write(b"".join(lines))

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        wild = [pattern for pattern in patterns if not is_literal(pattern)]
        lines = [
            self._command(b"UNSUBSCRIBE", self._channels.encode(pattern), pattern)
            for pattern in patterns
            if is_literal(pattern)
        ]
        if wild:
            lines += self._change_globs(self._globs.remove(wild))
        self.line.write(b"".join(lines))

    def _change_globs(self, wanted: set[tuple[str, ...]]) -> list[bytes]:
        """Return the commands after which the server knows the wanted globs and no others.

        The new ones come first. So nothing is lost that the old ones would have brought.
        """
        globs = {self._channels.glob(tokens) for tokens in wanted}
        new, old = globs - self._asked, self._asked - globs
        self._asked = globs
        return [self._command(b"PSUBSCRIBE", glob, glob) for glob in sorted(new)] + [
            self._command(b"PUNSUBSCRIBE", glob, glob) for glob in sorted(old)
        ]

    def _command(self, name: bytes, argument: bytes, about: str | bytes) -> bytes:
        self._commands.append((name, about))
        return encode_command(name, argument) if argument else _PING

    def _ask(self) -> None:
        if not self._commands:
            self.line.write(self._command(b"PING", b"", b""))

    # From the server

    def _received(self, data: bytes) -> None:
        replies = _feed(self._parser, data)
        if len(replies) > 1:
            self._plane.gather()
        for reply in replies:
            if isinstance(reply, list) and reply:
                kind = reply[0]
                if kind == b"message" and len(reply) == 3:
                    self._deliver(kind, reply[1], reply[1], reply[2])
                    continue
                if kind == b"pmessage" and len(reply) == 4:
                    self._deliver(kind, reply[1], reply[2], reply[3])
                    continue
            self._replied(reply)

    def _deliver(self, kind: bytes, source: bytes, channel: bytes, value: bytes) -> None:
        if channel == self._news_channel:
            self._news(read_news(value))
            return
        topic = self._channels.decode(channel)
        if topic is None:
            self._count("garbage")
            return
        origin, number = read_mark(value)
        if origin:
            self._last = None
            self._plane.received(topic, value[MARK_SIZE:], origin, number)
        elif change := read_change(value):
            self._last = None
            self._changed(topic, change)
        elif self._is_first(kind, source, channel, value):
            self._plane.received(topic, value, FOREIGN, 0)

    def _is_first(self, kind: bytes, source: bytes, channel: bytes, value: bytes) -> bool:
        """Return whether a message of another program is not a copy of the one in front of it."""
        if self._last == (channel, value) and (kind, source) not in self._brought:
            self._brought.add((kind, source))
            return False
        self._last = channel, value
        self._brought = {(kind, source)}
        return True

    def _replied(self, reply: Any) -> None:
        """Take the reply to the oldest command."""
        if not self._commands:
            raise BadMessage(f"a reply that nobody has asked for: {snippet(reply)}")
        self._last = None
        name, about = self._commands.popleft()
        if callable(about):
            about(reply)
        elif isinstance(reply, hiredis.ReplyError):
            self._refused(name, about, reply)
        elif isinstance(reply, list) and reply[:1] not in ([name.lower()], [b"pong"]):
            raise BadMessage(f"a {name.decode()} was answered by {snippet(reply)}")
        if name == b"PING" and about == "portion":
            self._subscribed()

    def _refused(self, name: bytes, about: str | bytes, error: object) -> None:
        if name == b"SUBSCRIBE" and isinstance(about, str) and _code(error) == "NOPERM":
            self.refused.add(about)
            self._plane.interest_refused(about, "no permission")
        elif name != b"PING":
            # Out of memory, or not allowed for a glob that many patterns share.
            raise _refusal(error, self._server)


class RedisLink(BrokerLink):
    """Both connections, after their logins.

    Args:
        publisher: a connection; belongs to this object.
        subscriber: another one.
        server: for errors.
        plane: whom it reports to.
        commands: makes the commands.
        known: what this plane knows of the history.
        count: called with the reason when something is dropped.
    """

    def __init__(
        self,
        publisher: StreamConnection,
        subscriber: StreamConnection,
        server: Server,
        plane: Plane,
        commands: Commands,
        known: KnownHistory,
        count: Callable[[str], object],
    ) -> None:
        super().__init__()
        self._plane = plane
        self._has_history = bool(plane.history)
        self._server = server
        self._commands = commands
        self._known = known
        self._count = count
        self._begun: AsyncResult[None] = AsyncResult()
        self._logged = LoggedChannels(commands.channels)
        self._values = FetchedValues(plane)
        #: The patterns of the last portion; and the last number at the server before it knew them.
        self._portion: Sequence[str] = ()
        self._last = 0
        #: The last number that has come live.
        self._last_live = 0
        self._may_fetch = True
        self._subscriber = _Subscriber(
            subscriber, server, plane, commands, self._changed, self._add_logged, count, self._fetch_portion, self._end
        )
        self._publisher = _Publisher(publisher, server, plane, commands, known, self._check_settled, self._end)
        self._lines = (self._publisher.line, self._subscriber.line)

    # Which topics have history

    def begin(self) -> None:
        """Find out which topics have history, and take part. Blocks until then.

        Raises:
            ConnectionFailed: this plane wants a history, and the server does not allow it; or the connection is lost.
        """
        self._subscriber.begin(self._news_subscribed)
        self._begun.get()
        if self._has_history:
            self._plane.began(self._known.epoch, self._last)

    def _end(self, reason: MultiSocketError) -> None:
        super()._end(reason)
        if not self._begun.ready():
            self._begun.set_exception(reason)

    def _news_subscribed(self, reply: Any) -> None:
        history, known = self._commands.history, self._known
        if not self._has_history:
            self._publisher.call(history.patterns(), self._has_patterns)
        else:
            self._check(reply)
            self._publisher.call(history.begin(self._plane.history, known.epoch, known.offset), self._has_begun)

    def _check(self, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            raise _refusal(reply, self._server)

    def _has_patterns(self, reply: Any) -> None:
        # Who may not read them does not take part in any history.
        if not isinstance(reply, hiredis.ReplyError):
            self._add_logged(read_patterns(reply))
        self._begun.set()

    def _has_begun(self, reply: Any) -> None:
        self._check(reply)
        epoch, self._last, patterns = read_begin(reply)
        self._known.begin(epoch)
        self._add_logged(patterns)
        self._begun.set()

    def _add_logged(self, patterns: Sequence[str]) -> None:
        """Topics that match some patterns have history."""
        if patterns and not self._logged.patterns:
            self._publisher.load()
        self._logged.add(patterns)
        if self._has_history:
            self._plane.histories(patterns)

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._known.epoch:
            raise ConnectionFailed(self._server.name, "somebody has deleted the history that the server had")

    def synchronize(self) -> None:
        self._subscriber.call(self._commands.history.look(), self._synchronized)

    def _synchronized(self, reply: Any) -> None:
        self._check(reply)
        state = read_state(reply)
        self._check_epoch(state.epoch)
        self._plane.synchronized(state.last)

    # What the plane asks for

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        if self._logged.patterns and head in self._logged:
            self._publisher.send(self._commands.history.publish(head, content, sequence))
        else:
            self._publisher.send(encode_publish(head, self._plane.origin, sequence, content))

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        self._publisher.send(self._commands.values.retain(head, content, sequence, head in self._logged))

    def unretain(self, head: bytes, sequence: int) -> None:
        self._publisher.send(self._commands.values.unretain(head, sequence))

    def subscribe(self, patterns: Sequence[str]) -> None:
        self._portion = patterns
        if self._has_history:
            self._subscriber.call(self._commands.history.look(), self._look)
        else:
            self._values.begin()
        self._subscriber.subscribe(patterns)

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        self._subscriber.unsubscribe(patterns)

    @property
    def is_settled(self) -> bool:
        return self._publisher.is_settled

    # What comes live

    def _changed(self, topic: str, change: Change) -> None:
        """Take what the server has numbered."""
        kind, content, origin, sequence, number, previous, epoch = change
        if not self._has_history:
            if kind == LOGGED:
                self._plane.received(topic, content, origin, sequence)
            else:
                self._values.live(topic, None if kind == UNRETAINED else content, origin, sequence, number)
            return
        self._check_epoch(epoch)
        if number <= self._last_live:
            # Another pattern has brought it, too.
            return
        self._last_live = number
        if kind == UNRETAINED:
            self._plane.unretained(topic)
            return
        is_logged = self._is_logged(topic)
        if is_logged:
            self._known.offset = max(self._known.offset, number)
        self._plane.positioned(Entry(number, previous, topic, content), is_logged, kind == RETAINED, True)

    def _is_logged(self, topic: str) -> bool:
        return self._commands.channels.encode(topic) in self._logged

    # What is fetched

    def _fetch_portion(self) -> None:
        """Fetch what the server has for the patterns of a portion, which it serves now."""
        commands = self._commands
        if not self._has_history:
            self._fetch_next(Fetch(self._portion, commands.channels))
            return
        patterns = [pattern for pattern in self._portion if pattern not in self._subscriber.refused]
        fetch = HistoryFetch(
            patterns, commands.channels, commands.values, commands.history, self._fetched_entry, self._count
        )
        self._next_step(fetch, fetch.run(), None)

    def _look(self, reply: Any) -> None:
        self._check(reply)
        self._last = read_state(reply).last

    def _next_step(self, fetch: HistoryFetch, steps: Generator[bytes, Any, None], reply: Any) -> None:
        """Take a step of a fetch for a plane with history, with the reply to the last one."""
        self._check(reply)
        try:
            command = steps.send(reply)
        except StopIteration:
            self._check_epoch(fetch.state.epoch)
            for pattern, lost in fetch.lost.items():
                self._plane.fetched(pattern, lost, self._last)
            self._plane.subscribed()
        else:
            self._subscriber.call(command, partial(self._next_step, fetch, steps))

    def _fetched_entry(self, topic: str, change: Change, retained: bool) -> None:
        entry = Entry(change.number, change.previous, topic, change.content)
        self._plane.positioned(entry, self._is_logged(topic), retained, False)

    def _fetch_next(self, fetch: Fetch) -> None:
        """Take a step of a fetch for a plane without history."""
        step = fetch.next if self._may_fetch else None
        if step is None:
            self._values.end()
            self._plane.subscribed()
        else:
            self._publisher.call(self._commands.values.fetch(step), partial(self._fetched, fetch))

    def _fetched(self, fetch: Fetch, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            if _code(reply) != "NOPERM":
                raise _refusal(reply, self._server)
            # Everything else works, so this is no reason to do without the server.
            self._may_fetch = False
            self._count("no permission for values")
            _log.log("values", logging.ERROR, "present values cannot be fetched: %s", _refusal(reply, self._server))
        else:
            for channel, value in fetch.take(reply):
                topic, change = self._commands.channels.decode(channel), read_change(value)
                if topic is None or change is None or change.kind != RETAINED:
                    self._count("garbage")
                else:
                    self._values.fetched(topic, change.content, change.origin, change.sequence, change.number)
        self._fetch_next(fetch)
