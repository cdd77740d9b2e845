"""The contract of an engine: what carries the publications of a Backplane from process to process.

An engine is a client of one server: of our own hub, of NATS, of Redis. It opens connections, logs in, finds out when
the server is gone or silent, and connects again. What all engines would have to do alike, the plane does once:

* :mod:`.interest` decides which patterns the engine has to ask for, and when.
* :mod:`.ledger` keeps publications while the engine is away or slow, and counts what became of each.
* :mod:`.once` gives every publication an origin and a sequence, and recognizes echoes and duplicates.

So an engine keeps no patterns and no publications over a reconnect, and drops none by a policy of its own. All its
methods but :meth:`Engine.close` are called in the plane's thread, never block, and never switch greenlets. It reports
to the plane by the methods of :class:`Plane`, from greenlets of its own, which may block there for a moment.

The life of a connection, as the plane sees it::

    engine.start()                           once
        plane.disconnected(error)            for each attempt that fails, as often as it likes
        plane.connected()                    the server has answered, and a login has succeeded
            engine.subscribe(patterns)       at most 512; the next ones only after
            plane.subscribed()               the server has all of them: what is published from now on comes
            engine.unsubscribe(patterns)     not confirmed
            engine.publish(...)              as long as the plane's window is not full
            plane.confirmed(n)               the oldest n of them have reached the server
            plane.received(...)
        plane.disconnected(error)            everything that was not confirmed is given up
    engine.close(deadline)                   nothing is reported any more

A connection knows no pattern when it is reported. ``connected`` may be called only when a reply has come over it: a
server that is stopped still accepts connections. An engine that hears nothing for :data:`SILENCE` seconds after it has
asked something reports ``disconnected``, and closes the connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from ..errors import MultiSocketError
from ..loop.waiting import Deadline
from ..options import Options
from ..protocol.history import Entry

__all__ = [
    "FOREIGN",
    "MAX_BACKOFF",
    "MAX_HISTORY",
    "MAX_HISTORY_SIZE",
    "MAX_VALUES",
    "MAX_VALUES_SIZE",
    "ORIGIN_SIZE",
    "RESERVED",
    "SILENCE",
    "Engine",
    "Plane",
]

#: Bytes of an origin.
ORIGIN_SIZE: Final = 8
#: The origin of messages that were not published by a Backplane.
FOREIGN: Final = b""
#: What the topics begin with under which planes talk to each other.
RESERVED: Final = "$plane."
#: Seconds that a server may be silent when it has been asked something. Engines ask when nothing came for half of it.
SILENCE: Final = 2.0
#: The longest pause between two attempts to connect, in seconds. Engines begin with much less, and add jitter.
MAX_BACKOFF: Final = 1.0
#: The most present values, and bytes of them, that a server keeps. Those that were set longest ago go first.
MAX_VALUES: Final = 65_536
MAX_VALUES_SIZE: Final = 64 << 20


#: The most publications, and bytes of them, that a server keeps as history. The oldest go first.
MAX_HISTORY: Final = 10_000
MAX_HISTORY_SIZE: Final = 16 << 20


class Plane(Protocol):
    """What an engine tells its plane. Called in the plane's thread, in a greenlet of the engine, not in its hub.

    Attributes:
        origin: names this plane in this process, for as long as it lives: :data:`ORIGIN_SIZE` random bytes. They go
            with each publication.
        history: the patterns of the topics with history, empty if the plane wants none.
    """

    origin: bytes
    history: Sequence[str]

    def connected(self) -> None:
        """A connection works. The plane subscribes, and publishes what it has kept, perhaps before this returns."""

    def disconnected(self, error: MultiSocketError) -> None:
        """The connection is lost, or an attempt has failed. Does not block.

        Args:
            error: why, for people and for ``connect(timeout)``. :class:`~gmultisocket.errors.EngineRefused` and
                :class:`~gmultisocket.errors.TLSError` are not likely to go away by themselves: ``connect`` raises them
                at once. The engine tries again all the same.
        """

    def subscribed(self) -> None:
        """The server has confirmed all patterns of the oldest :meth:`Engine.subscribe` that was not confirmed."""

    def interest_refused(self, pattern: str, reason: str) -> None:
        """The server does not allow a pattern. Call it before :meth:`subscribed` of its portion."""

    def confirmed(self, count: int) -> None:
        """The server has the ``count`` oldest publications that were neither confirmed nor refused."""

    def refused(self, reason: str) -> None:
        """The server has refused the oldest publication that was neither confirmed nor refused.

        Args:
            reason: a short name; the plane counts by it, so it must not have a number or a text of the message in it.
        """

    def gather(self) -> None:
        """Several publications follow in this turn of the loop, so that subscribers may get them together."""

    def received(self, topic: str, content: bytes, origin: bytes, sequence: int) -> None:
        """A publication came. May come more than once, and may be this plane's own: the plane finds out.

        Args:
            topic: decoded, and a valid topic. What is not one, the engine drops and counts.
            content: as it was published.
            origin: of the publisher, or :data:`FOREIGN`. A foreign message has no sequence by which it would be
                recognized, so the engine hands it over once only, however many patterns it matches.
            sequence: the publisher's. Rises with each publication of an origin.
        """

    def retained(self, topic: str, content: bytes, origin: bytes, sequence: int, live: bool) -> None:
        """The present value of a topic came. Each change comes once only, however many patterns it matches.

        Args:
            topic, content: as for :meth:`received`.
            origin, sequence: of the publication; together they name the value.
            live: it was published now. Otherwise the server had it when a pattern was asked for: such values come
                before :meth:`subscribed` of their portion, and never after a newer one of their topic.
        """

    def unretained(self, topic: str) -> None:
        """A topic has no present value any more. In order with the live ones of :meth:`retained`."""

    # The following ones only for a plane with history.

    def histories(self, patterns: Iterable[str]) -> None:
        """The server keeps the history of more topics than ``history`` names: other planes want it.

        Args:
            patterns: of these topics. From now on they count as if this plane had named them.
        """

    def began(self, epoch: int, last_offset: int) -> None:
        """A connection has reached a history. Called before each :meth:`connected`.

        Args:
            epoch: names it, see :class:`~gmultisocket.protocol.History`.
            last_offset: the offset of its last publication.
        """

    def positioned(self, entry: Entry, logged: bool, retained: bool, live: bool) -> None:
        """A publication with a position came: of a topic with history, or a present value; also this plane's own.

        They come instead of :meth:`received` and :meth:`retained`, the live ones in the order of their offsets.

        Args:
            entry: the publication.
            logged: whether its topic has history.
            retained: whether it is the present value of its topic.
            live: it was published now. Otherwise the server had it when a pattern was asked for.
        """

    def fetched(self, pattern: str, complete_from: int, last_offset: int) -> None:
        """All that the server has of a pattern was reported. Called for each, before :meth:`subscribed`.

        Args:
            pattern: as it was asked for.
            complete_from: the server still has all publications behind this offset.
            last_offset: of its history, when it took the pattern.
        """

    def synchronized(self, last_offset: int) -> None:
        """The answer to the oldest :meth:`Engine.synchronize`: what was published up to this offset has come."""

    def gap(self, reason: str) -> None:
        """Messages for this process were lost though the connection holds. Lost connections are found without it."""


class Engine(ABC):
    """A client of one server. Makes connections from :meth:`start` to :meth:`close`.

    Args:
        url: where the server is; may hold a password.
        plane: whom it reports to.
        options: of the plane: ``plane.*``, and those of the transports.

    Attributes:
        max_content: the longest content that the server takes, in bytes, 0 while that is not known. Set before
            ``connected``.
        counters: what the engine has dropped, by reason, e.g. ``"garbage"`` for what is no publication.

    Raises:
        AddressError: the URL is not one of this engine. Nothing has been opened.
    """

    #: Why the server cannot keep the present values of topics, for people; "" if it can, or while that is not known.
    no_values: str = "its engine keeps no values"

    def __init__(self, url: str, plane: Plane, options: Options) -> None:
        self.url = url
        self.plane = plane
        self.options = options
        self.max_content = 0
        self.counters: dict[str, int] = {}

    @abstractmethod
    def start(self) -> None:
        """Begin to connect, in the background, and go on until :meth:`close`."""

    @abstractmethod
    def close(self, deadline: Deadline) -> None:
        """Send what was handed over, say goodbye, and end every greenlet and descriptor. Blocks until then.

        May be called in any state, and once more. The plane has waited for confirmations before.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Close the descriptors in a forked child, without a word to the server and without switching greenlets."""

    @abstractmethod
    def head(self, topic: str) -> bytes:
        """Return what :meth:`publish` needs of a topic: its bytes in the server's own form.

        The plane remembers it, so it must not depend on the connection.

        Args:
            topic: a valid topic.

        Raises:
            BadTopic: the server cannot have such a topic: it is too long, for example.
        """

    @abstractmethod
    def publish(self, head: bytes, content: bytes, sequence: int) -> None:
        """Send a publication, together with others of this turn of the loop. Called only while connected.

        Needs no limit: the plane's window bounds what is not confirmed, in bytes and in number. An error of the
        connection is reported by ``disconnected``, later.
        """

    def retain(self, head: bytes, content: bytes, sequence: int) -> None:
        """Publish as :meth:`publish` does; the server keeps it as the topic's present value, instead of the last one.

        It also comes back to this engine, if this has asked for a pattern that matches: so all processes get the values
        of a topic in one order. Called only while ``no_values`` is "".
        """
        raise NotImplementedError

    def unretain(self, head: bytes, sequence: int) -> None:
        """Remove the present value of a topic from the server.

        Like a value, the removal comes to all engines that have asked for a pattern that matches, also to this one. It
        is confirmed like a publication.
        """
        raise NotImplementedError

    @abstractmethod
    def subscribe(self, patterns: Sequence[str]) -> None:
        """Ask for patterns. Called only while connected, and not before ``subscribed`` was called for the last ones."""

    @abstractmethod
    def unsubscribe(self, patterns: Sequence[str]) -> None:
        """Ask no longer for patterns. Called only while connected, and for what was confirmed.

        Some messages may still come.
        """

    def synchronize(self) -> None:
        """Ask what the last offset of the history is. Called only while connected, and if the plane has one."""
        raise NotImplementedError

    def count(self, reason: str, number: int = 1) -> None:
        """Count what the engine has dropped."""
        self.counters[reason] = self.counters.get(reason, 0) + number
