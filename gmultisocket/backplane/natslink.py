"""A connection to a NATS server: the login, and what the bytes in both directions mean to the plane.

A PONG confirms everything in front of its PING. So a turn's publications are followed by a PING if none is on its way,
and those of a busy publisher need one PING for each round trip.

A server sends a message once for each subscription that matches it. The plane recognizes the second one by the
publisher's number. A message of another program has none: ``natscopies.py`` finds the one that counts.

A present value is confirmed when JetStream has it, see ``natsvalues.py``, and a publication of a topic with history as
well, see ``natshistory.py``. What was published behind them is not confirmed before them.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from gevent import socket as gsocket

from ..errors import BadMessage, BadTopic, ConnectionFailed, EngineRefused, HandshakeFailed, MultiSocketError
from ..loop.timelimit import time_limit
from ..transport.base import StreamConnection
from ..transport.tcp import TCPConnection
from . import natswire
from .brokerengine import BrokerLink
from .brokerline import Line, Opener, login_errors
from .brokerurl import Server
from .engine import FOREIGN, RESERVED, SILENCE, Plane
from .jetstream import StreamNames
from .natscopies import Copies
from .natshistory import LoggedTopics, NatsHistory, is_logged
from .natsvalues import NatsValues
from .natswire import HEADER_SIZE, Info, Parser, Ping, Pong, ServerError, Subjects

__all__ = ["NatsLink", "log_in"]

#: Bytes of one read of the login.
_READ: Final = 1 << 14
#: Seconds that a server may be silent after a publication, if it answers others. It writes to a slow subscriber before
#: it reads on from the publisher, and cuts that subscriber off after ``write_deadline``, which is 10 seconds unless it
#: is configured. To leave the server because somebody else is slow would only make publications unconfirmed.
_STALL: Final = 12.0
#: Errors by which a server says that it does not want this client.
_NOT_WANTED: Final = re.compile("authori[sz]ation|authentication|account|revoked|maximum connections", re.I)
_NOT_ALLOWED: Final = re.compile(r"permissions violation for (publish|subscription) to \"?([^\" ]*)", re.I)
_TOO_MANY: Final = re.compile("maximum subscriptions exceeded", re.I)


# The login


def log_in(server: Server, opener: Opener, tls: bool) -> tuple[StreamConnection, Parser, Info]:
    """Connect, and log in. Blocks; the caller limits the time.

    The server speaks first, without TLS: it says whether it wants TLS.

    Args:
        server: with the credentials of this client.
        opener: makes the connection.
        tls: whether to use TLS also if the server only offers it.

    Raises:
        EngineRefused: the server does not want this client.
        ConnectionFailed: another error. Nothing is left open.
    """
    sock = opener.socket(server)
    connection: StreamConnection | None = None
    parser = Parser()
    try:
        with login_errors(server):
            info = _read_info(sock, parser, server)
            secure = tls or info.tls_required
            if not secure:
                connection = TCPConnection(sock, server.scheme)
            elif info.tls_required or info.tls_available:
                connection = opener.start_tls(sock, server)
            else:
                raise HandshakeFailed(server.name, "the server offers no TLS")
            if not info.headers:
                raise EngineRefused(server.name, "the server is configured without headers, which a Backplane needs")
            with suppress(OSError):
                # If it has hung up, what it has said before is still to be read.
                connection.write_all(natswire.encode_connect(_introduction(server, secure)) + natswire.PING)
            _read_pong(connection, parser, server)
        return connection, parser, info
    except BaseException:
        _close(sock, connection)
        raise


def _close(sock: gsocket.socket, connection: StreamConnection | None) -> None:
    if connection is not None:
        connection.close()
    sock.close()


def _read_info(sock: gsocket.socket, parser: Parser, server: Server) -> Info:
    """Read the INFO. Nothing may come behind it before this client has answered."""
    while True:
        data = sock.recv(_READ)
        if not data:
            raise ConnectionFailed(server.name, "the server has closed the connection before the login")
        events = parser.feed(data)
        if parser.error is not None:
            raise parser.error
        if events:
            for event in events:
                if isinstance(event, ServerError):
                    raise _refusal(event.text, server)
            first = events[0]
            if len(events) > 1 or not isinstance(first, Info) or parser.unfinished:
                raise BadMessage("it does not begin with an INFO alone")
            return first


def _read_pong(connection: StreamConnection, parser: Parser, server: Server) -> None:
    """Read until the server has accepted the login."""
    while True:
        data = connection.recv(_READ)
        if not data:
            raise ConnectionFailed(server.name, "the server has closed the connection in the login")
        for event in parser.feed(data):
            if isinstance(event, ServerError):
                raise _refusal(event.text, server)
            if isinstance(event, Pong):
                return
        if parser.error is not None:
            raise parser.error


def _refusal(text: str, server: Server) -> ConnectionFailed:
    kind = EngineRefused if _NOT_WANTED.search(text) else ConnectionFailed
    return kind(server.name, f"the server says: {text}")


def _introduction(server: Server, secure: bool) -> dict[str, Any]:
    """Return what the CONNECT says."""
    facts: dict[str, Any] = {
        "verbose": False,
        "pedantic": False,
        "tls_required": secure,
        "name": "gmultisocket",
        "lang": "python",
        "protocol": 1,
        "echo": False,
        "headers": True,
        "no_responders": True,
    }
    user, password = server.credentials
    if password is not None:
        facts |= {"user": user, "pass": password}
    elif user:
        facts["auth_token"] = user
    return facts


# After the login


class _Asked(NamedTuple):
    """A PING that has no PONG yet.

    Attributes:
        published: how many publications were in front of it.
        portion: the patterns of a ``subscribe`` in front of it, with their subjects, None for those that cannot be
            subjects; None if there was none.
        left: the subscriptions of an ``unsubscribe`` in front of it.
    """

    published: int
    portion: Mapping[str, bytes | None] | None = None
    left: Sequence[bytes] = ()


class NatsLink(BrokerLink):
    """A connection after its login.

    Args:
        connection: belongs to this object.
        parser: of the login.
        server: for errors.
        probe: logs in on another connection, and closes it. Blocks; raises if that fails.
        plane: whom it reports to.
        subjects: translates topics.
        names: of the streams; None if the server cannot keep any.
        logged: the topics with history; None if the plane wants none.
        count: called with the reason when something is dropped.
    """

    def __init__(
        self,
        connection: StreamConnection,
        parser: Parser,
        server: Server,
        probe: Callable[[], object],
        plane: Plane,
        subjects: Subjects,
        names: StreamNames | None,
        logged: LoggedTopics | None,
        count: Callable[[str], object],
    ) -> None:
        super().__init__()
        self._plane = plane
        self._parser = parser
        self._server = server
        self._probe = probe
        self._subjects = subjects
        self._count = count
        self._read_mark = natswire.Marks().read
        self._format = natswire.publication_format(plane.origin)
        self._pings: deque[_Asked] = deque()
        #: Publications: all, those in front of a PING, those in front of a PONG, those that were reported; and those
        #: that were refused since the last PONG.
        self._published = 0
        self._asked = 0
        self._ponged = 0
        self._confirmed = 0
        self._refused = 0
        #: What JetStream keeps and was not reported, oldest first, by its number among the publications: why one was
        #: refused, "" if it was not, None if that is not known yet. (Where entries leave at the front, no dict: the
        #: more have left, the longer the search.)
        self._outcomes: OrderedDict[int, str | None] = OrderedDict()
        self._has_outcomes = False
        #: Subscriptions by pattern, and subjects that were refused since the last PONG.
        self._sids: dict[str, bytes] = {}
        self._last_sid = 0
        self._refused_subjects: list[bytes] = []
        self._too_many = 0
        self._copies = Copies()
        self._line = Line(
            connection,
            server.name,
            received=self._received,
            ask=self._ask,
            excuse=self._excuse,
            last=self._last,
            ended=self._end,
        )
        self._lines = (self._line,)
        self._values: NatsValues | None = None
        #: Whether the values for the last portion are still fetched, and whether its PONG has come.
        self._fetching = False
        self._portion_confirmed = False
        self._portion: tuple[str, ...] = ()
        self._history: NatsHistory | None = None
        self._keep(names, logged)
        self._line.start()

    def _keep(self, names: StreamNames | None, logged: LoggedTopics | None) -> None:
        """Make what JetStream is needed for."""
        write, plane = self._line.write, self._plane
        if logged is not None:
            self._history = NatsHistory(
                write, plane, logged, self._server.name, self._acknowledged, self._end_fetch, self._line.close
            )
        if names is not None:
            shown = self._history or plane
            self._values = NatsValues(write, shown, names, self._decided, self._fetched, self._count)

    def begin_history(self) -> None:
        """Report the history, if the plane wants one. Blocks; the caller limits the time.

        Raises:
            EngineRefused: the server cannot keep it, or keeps that of other topics.
        """
        if self._history is not None:
            self._plane.began(*self._history.begin())

    # To the server

    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        self._published += 1
        history = self._history
        if history is not None and is_logged(head):
            self._outcomes[self._published] = None
            head = history.address(head, self._published)
        self._line.write(self._format % (head, len(content) + HEADER_SIZE, sequence, content))

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        self._change_value(head, content, sequence)

    def unretain(self, head: bytes, sequence: int) -> None:
        self._change_value(head, None, sequence)

    def _change_value(self, head: bytes, content: bytes | None, sequence: int) -> None:
        assert self._values is not None
        self._published += 1
        self._outcomes[self._published] = None
        self._values.publish(self._published, head, content, sequence)

    def subscribe(self, patterns: Sequence[str]) -> None:
        lines = []
        portion: dict[str, bytes | None] = {}
        for pattern in patterns:
            try:
                subject = self._subjects.encode(pattern)
            except BadTopic:
                portion[pattern] = None
                continue
            portion[pattern] = subject
            if self._history is not None and self._history.brings_all(pattern):
                continue
            self._last_sid += 1
            sid = self._sids[pattern] = b"%d" % self._last_sid
            self._copies.add(pattern, sid)
            lines.append(natswire.encode_subscribe(subject, sid))
        self._portion_confirmed = False
        if self._values is not None:
            self._fetching = True
            subjects = [(pattern, subject) for pattern, subject in portion.items() if subject is not None]
            self._portion = tuple(pattern for pattern, _ in subjects)
            # What planes tell each other has no values.
            subjects = [each for each in subjects if not each[0].startswith(RESERVED)]
            self._line.write(b"".join(lines))
            lines = [self._values.fetch(subjects)]
        self._ping(b"".join(lines), portion)

    def unsubscribe(self, patterns: Sequence[str]) -> None:
        left = [self._sids.pop(pattern) for pattern in patterns if pattern in self._sids]
        if self._history is not None:
            self._history.leave(patterns)
        self._copies.leave(left)
        self._ping(b"".join(map(natswire.encode_unsubscribe, left)), left=left)

    def _ping(
        self,
        lines: bytes,
        portion: Mapping[str, bytes | None] | None = None,
        left: Sequence[bytes] = (),
    ) -> None:
        """Write lines and a PING that confirms them."""
        self._asked = self._published
        self._pings.append(_Asked(self._published, portion, left))
        self._line.write(lines + natswire.PING)

    def _last(self) -> bytes:
        """Return the PING behind a turn's publications (in the hub)."""
        if self._pings or self._published == self._asked:
            return b""
        self._asked = self._published
        self._pings.append(_Asked(self._published))
        return natswire.PING

    def _ask(self) -> None:
        # A PING that is on its way asks already.
        if not self._pings:
            self._ping(b"")

    def _excuse(self, seconds: float) -> bool:
        """Return whether the server lives, and only does not read from this connection. Blocks for a moment."""
        if self._confirmed == self._published or seconds >= _STALL:
            return False
        try:
            with time_limit(SILENCE, ConnectionFailed(self._server.name, "the server does not answer")):
                self._probe()
        except MultiSocketError:
            return False
        return True

    def synchronize(self) -> None:
        assert self._history is not None
        self._history.synchronize()

    # From the server

    def _received(self, data: bytes) -> None:
        deliver = self._deliver
        events = self._parser.feed(data)
        if len(events) > 1:
            self._plane.gather()
        for event in events:
            if type(event) is tuple:
                deliver(*event)
            elif isinstance(event, Pong):
                self._pong()
            elif isinstance(event, Ping):
                self._line.write(natswire.PONG)
            elif isinstance(event, ServerError):
                self._complaint(event.text)
        if self._has_outcomes:
            self._has_outcomes = False
            self._confirm()
            self._check_settled()
        if self._parser.error is not None:
            raise self._parser.error

    def _deliver(self, sid: bytes, subject: bytes, header: bytes, content: bytes, reply: bytes) -> None:
        history = self._history
        if history is not None and history.take(sid, subject, header, content, reply):
            return
        topic = self._subjects.decode(subject)
        values = self._values
        if topic is None:
            if values is None or not values.take(sid, subject, header, content, reply):
                self._count("garbage")
            return
        if history is not None and topic in history.topics:
            # The consumer brings it, in the order of the stream.
            return
        origin, number = self._read_mark(header)
        if origin:
            self._plane.received(topic, content, origin, number)
        elif header and values is not None and values.headers.is_value(header):
            values.live(topic, header, content)
        elif self._copies.counts(sid, topic, content):
            self._plane.received(topic, content, FOREIGN, 0)

    def _pong(self) -> None:
        if not self._pings:
            raise BadMessage("a PONG that nobody has asked for")
        asked = self._pings.popleft()
        if not asked.left:
            self._copies.settle()
        for topic, content in self._copies.end(asked.left):
            self._plane.received(topic, content, FOREIGN, 0)
        self._ponged = asked.published
        self._confirm()
        if asked.portion is not None:
            self._subscribed(asked.portion)
        if self._published > self._asked:
            # The end of this turn asks for those that were published meanwhile.
            self._line.write(b"")
        self._check_settled()

    def _decided(self, number: int, reason: str) -> None:
        """JetStream has a present value, or refuses it."""
        self._outcomes[number] = reason
        self._confirm()
        self._check_settled()

    def _acknowledged(self, number: int, reason: str) -> None:
        """The stream of the history has a publication, or refuses it. Reported when all that was read is taken."""
        self._outcomes[number] = reason
        self._has_outcomes = True

    def _confirm(self) -> None:
        """Report the publications in front of a PONG, up to the first one about which JetStream has not decided."""
        end = self._ponged
        while self._outcomes:
            number, outcome = next(iter(self._outcomes.items()))
            if number > end:
                break
            if outcome is None:
                end = number - 1
                break
            del self._outcomes[number]
            if outcome:
                self._report(number - 1)
                self._confirmed = number
                self._plane.refused(outcome)
        self._report(end)

    def _report(self, published: int) -> None:
        """Report so many publications in all. It is known how many of them were refused, but not which."""
        new = published - self._confirmed
        if new <= 0:
            return
        self._confirmed = published
        refused, self._refused = min(self._refused, new), 0
        if new > refused:
            self._plane.confirmed(new - refused)
        for _ in range(refused):
            self._plane.refused("permission")

    def _subscribed(self, portion: Mapping[str, bytes | None]) -> None:
        """Report the subscriptions in front of a PONG."""
        if self._refused_subjects or self._too_many or None in portion.values():
            # The server has a limit, so all behind the first that was over it were over it too.
            limited = set([*portion][len(portion) - self._too_many :] if self._too_many else ())
            for pattern, subject in portion.items():
                why = ""
                if subject is None:
                    why = "too long"
                elif subject in self._refused_subjects:
                    why = "no permission"
                elif pattern in limited:
                    why = "the server's limit of subscriptions"
                if why:
                    self._forget(pattern)
                    self._plane.interest_refused(pattern, why)
            self._refused_subjects = []
            self._too_many = 0
        self._portion_confirmed = True
        if not self._fetching:
            self._plane.subscribed()

    def _fetched(self) -> None:
        """All values for the last portion were reported."""
        if self._history is not None:
            self._history.fetch(self._portion)
        else:
            self._end_fetch()

    def _end_fetch(self) -> None:
        """All that the server keeps for the last portion was reported."""
        self._fetching = False
        if self._portion_confirmed:
            self._plane.subscribed()

    def _forget(self, pattern: str) -> None:
        sid = self._sids.pop(pattern, None)
        if sid is not None:
            self._copies.end([sid])

    def _complaint(self, text: str) -> None:
        """Act on an error. After most of them the server closes the connection."""
        match = _NOT_ALLOWED.search(text)
        if match is not None and self._history is not None and self._history.denied(match[2].encode()):
            return
        if match is not None and self._values is not None and self._values.denied(match[2].encode()):
            return
        if match is not None and match[1].lower() == "publish":
            self._refused += 1
        elif match is not None:
            self._refused_subjects.append(match[2].encode())
        elif _TOO_MANY.search(text):
            self._too_many += 1
        else:
            self._line.reason = _refusal(text, self._server)

    @property
    def is_settled(self) -> bool:
        return not self._pings and self._confirmed == self._published

    def close(self, reason: MultiSocketError) -> None:
        super().close(reason)
        for each in (self._values, self._history):
            if each is not None:
                each.close()

    def join(self) -> None:
        super().join()
        for each in (self._values, self._history):
            if each is not None:
                each.join()
