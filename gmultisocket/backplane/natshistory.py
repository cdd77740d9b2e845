"""How NATS keeps the history of topics: a JetStream stream that takes all publications of these topics.

The stream takes what is published under the subjects of the topics, by any client: other planes and other programs need
not know of it. Its numbers are the offsets, and the moment at which it was made is the epoch. A plane with history asks
for an acknowledgement of what it publishes there.

The stream publishes nothing again: a server takes publications of several clients at the same time, and what it
publishes again may be in another order than that of the stream. A consumer brings them in that order. So a process that
wants a topic with history has one consumer, for all topics of the stream, and keeps a copy of the stream. What it
fetches for a pattern comes out of this copy, and only what matches its patterns is reported to the plane.

A present value of such a topic comes into this stream when the stream of the values publishes it again, see
``natsvalues.py``. This one knows whether a topic still has its value.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from gevent.event import AsyncResult

from ..errors import ConnectionFailed, EngineRefused, MultiSocketError, snippet
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL
from ..loop.periodic import Periodic
from ..loop.yielding import yield_to_loop
from ..protocol.history import Entry
from ..protocol.pubsubwire import LIMIT
from ..protocol.subscriptions import Subscriptions, overlap
from .brokertopics import remember
from .engine import MAX_HISTORY, MAX_HISTORY_SIZE, MAX_VALUES, RESERVED, SILENCE, Plane
from .interest import PatternTree
from .jetstream import (
    OTHER_CONFIGURATION,
    JetStream,
    StreamNames,
    acknowledged_sequence,
    consumer_json,
    error_of,
    header_value,
    stream_json,
)
from .logcopy import LogCopy
from .natsvalues import ValueHeaders
from .natswire import Subjects, encode_subscribe
from .planehistory import HistoryTopics

__all__ = ["REPLY", "LoggedTopics", "NatsHistory", "is_logged"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: Where the acknowledgement of a publication is wanted to, before it is known over which connection that goes.
REPLY: Final = b"@"
_REPLY_WORD: Final = b" %b " % REPLY
#: The ids of the subscriptions to acknowledgements, to the consumer, and to the end of the stream.
_ACKNOWLEDGEMENTS: Final = b"ha"
_CONSUMER: Final = b"hc"
_DELETED: Final = b"hd"
_DELETED_SUBJECT: Final = b"$JS.EVENT.ADVISORY.STREAM.DELETED."
#: Publications that are reported before others run.
_PORTION: Final = 256
#: Seconds between two looks whether the server answers.
_STEP: Final = 0.25
#: Seconds between two heartbeats of the consumer.
_HEARTBEAT: Final = 1.0
#: Seconds that the server may leave everything unanswered.
_PATIENCE: Final = 2 * SILENCE
_ACKNOWLEDGED: Final = b'{"stream":'

#: For what the copy of the stream must be complete.
_Purpose = Literal["fetch", "synchronize"]


def is_logged(head: bytes) -> bool:
    """Return whether a publication with a head goes into the stream."""
    return _REPLY_WORD in head


class LoggedTopics:
    """The topics with history, and what the server calls them.

    Args:
        patterns: of these topics.
        subjects: translates topics.
        names: of the streams.

    Attributes:
        topics: the topics with history.
    """

    def __init__(self, patterns: Sequence[str], subjects: Subjects, names: StreamNames) -> None:
        self.topics = HistoryTopics(patterns)
        self.names = names
        self._tree = PatternTree()
        for pattern in self.topics.patterns:
            self._tree.add(pattern)
        # A stream takes no subject that another one of its subjects covers.
        self._patterns = [each for each in sorted(self.topics.patterns) if not any(self._tree.covering(each))]
        self.subjects = [subjects.encode(each).decode() for each in self._patterns]

    def covers(self, pattern: str) -> bool:
        """Return whether all topics that match a pattern have history."""
        if overlap(pattern, RESERVED + ">"):
            return False
        return pattern in self.topics.patterns or any(self._tree.covering(pattern))

    def touches(self, pattern: str) -> bool:
        """Return whether some topic that matches a pattern has history."""
        return any(overlap(pattern, each) for each in self._patterns)

    def configuration(self) -> bytes:
        """Return the JSON by which the stream is made."""
        return stream_json(self.names.log, self.subjects, MAX_HISTORY, MAX_HISTORY_SIZE)

    def consumer(self, subject: bytes) -> bytes:
        """Return the JSON by which a consumer is made that brings everything to a subject."""
        return consumer_json(self.names.log, subject, deliver_policy="all", idle_heartbeat=int(_HEARTBEAT * 1e9))


class NatsHistory:
    """The history, over one connection. Stands between the present values and the plane, too.

    Args:
        write: sends bytes.
        plane: whom it reports to.
        logged: the topics.
        server: the server's name, for errors.
        decided: called as ``decided(number, reason)`` when the stream has a publication (reason ""), or refuses it.
        fetched: called when all was reported that the server has for the last portion.
        lost: called with an error when the connection cannot be used any more.

    Attributes:
        origin: of the plane.
        topics: the topics with history.
        brings_all: returns whether all that matches a pattern comes by the consumer.
        gap: the plane's.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        plane: Plane,
        logged: LoggedTopics,
        server: str,
        decided: Callable[[int, str], object],
        fetched: Callable[[], object],
        lost: Callable[[MultiSocketError], object],
    ) -> None:
        self.origin = plane.origin
        self.topics = logged.topics
        self.brings_all = logged.covers
        self.gap = plane.gap
        self._write = write
        self._plane = plane
        self._logged = logged
        self._server = server
        self._decided = decided
        self._fetched = fetched
        self._lost = lost
        self._jetstream = JetStream(write, b"h")
        self._stream = logged.names.log
        self._headers = ValueHeaders(logged.names)
        self._acknowledgements = self._jetstream.inbox + _ACKNOWLEDGEMENTS
        self._addressed = b" %b " % self._acknowledgements
        self._begun: AsyncResult[tuple[int, int]] = AsyncResult()
        self._last_at_begin = 0
        #: Publications that the stream has not acknowledged, oldest first, by their numbers.
        self._undecided: deque[int] = deque()
        self._copy = LogCopy()
        self._has_consumer = False
        self._consumer_name = b""
        #: Patterns whose publications are reported when they come; and by topic: whether one matches.
        self._served: Subscriptions[None] = Subscriptions()
        self._served_patterns: set[str] = set()
        self._wanted: dict[str, bool] = {}
        #: By topic: the present value that was fetched: content, origin and sequence.
        self._values: dict[str, tuple[bytes, bytes, int]] = {}
        #: By topic: the number of the last value that has come, 0 if its end came later.
        self._last_values: dict[str, int] = {}
        #: By topic: what names the value that was reported without a position. It may come once more, with one.
        self._early: dict[str, tuple[bytes, int]] = {}
        #: The patterns of the portion that is fetched; and up to which number the copy must have come for "fetch" and
        #: for "synchronize", while they wait for that: -1 while the server has not said it.
        self._portion: Sequence[str] = ()
        self._goals: dict[_Purpose, int] = {}
        #: The number of messages that the consumer has brought.
        self._brought = 0
        #: Whether something that was waited for has come since the last look, and for how long nothing has.
        self._heard = False
        self._silent = 0.0
        #: The same for the consumer, which sends heartbeats when it has nothing else.
        self._beats = False
        self._still = 0.0
        self._closed = False
        self._watch = Periodic(self._interval, self._look)

    # The stream

    def begin(self) -> tuple[int, int]:
        """Make the stream if there is none. Return its epoch, and its last number. Blocks; the caller limits the time.

        Raises:
            EngineRefused: the server cannot keep the history, or keeps that of other topics.
        """
        deleted = _DELETED_SUBJECT + self._stream
        self._write(encode_subscribe(self._acknowledgements, _ACKNOWLEDGEMENTS) + encode_subscribe(deleted, _DELETED))
        create = b"STREAM.CREATE." + self._stream
        self._write(self._jetstream.ask(create, self._logged.configuration(), self._made))
        begun = self._begun.get()
        assert begun is not None
        return begun

    def _made(self, answer: dict[str, Any]) -> None:
        code, why = error_of(answer)
        if code == OTHER_CONFIGURATION:
            self._write(self._jetstream.ask(b"STREAM.INFO." + self._stream, b"", self._take_info))
        elif why:
            self._refuse(f"JetStream cannot keep the history: {snippet(why, 200)}")
        else:
            self._take_info(answer)

    def _take_info(self, answer: dict[str, Any]) -> None:
        """Compare the stream that is there with what is expected."""
        _, why = error_of(answer)
        configuration, created = answer.get("config"), answer.get("created")
        last = _last_number(answer)
        if why or last is None or not isinstance(configuration, dict) or not isinstance(created, str):
            why = why or "its description makes no sense"
            self._refuse(f"the stream of the history cannot be used: {snippet(why, 200)}")
            return
        subjects = configuration.get("subjects") or []
        if {*subjects} != {*self._logged.subjects}:
            kept, wanted = (" ".join(sorted(map(str, each))) for each in (subjects, self._logged.subjects))
            self._refuse(f"the stream {self._stream.decode()} keeps {snippet(kept, 200)}, and this Backplane expects "
                         f"that it keeps {snippet(wanted, 200)}")  # fmt: skip
            return
        self._last_at_begin = last
        self._begun.set((_epoch(created), last))

    def _refuse(self, why: str) -> None:
        self._begun.set_exception(EngineRefused(self._server, why))

    # Publications

    def address(self, head: bytes, number: int) -> bytes:
        """Return the head of a publication that is written now and goes into the stream, with this connection's reply.

        Args:
            head: as it is without a connection, with :data:`REPLY`.
            number: of the publication.
        """
        self._expect()
        self._undecided.append(number)
        return head.replace(_REPLY_WORD, self._addressed, 1)

    def _acknowledge(self, header: bytes, content: bytes) -> None:
        if not self._undecided:
            return
        self._heard = True
        if content.startswith(_ACKNOWLEDGED):
            self._decided(self._undecided.popleft(), "")
        elif header.startswith(b"NATS/1.0 503"):
            self._end(f"the stream {self._stream.decode()} is gone")
        else:
            _log.log("log", logging.ERROR, "JetStream did not keep a publication: %s", snippet(content, 200))
            self._decided(self._undecided.popleft(), "JetStream")

    def denied(self, subject: bytes) -> bool:
        """The server does not allow a subject. Return whether it was used here."""
        if subject.startswith((b"$JS.API.STREAM.", b"$JS.API.CONSUMER.", self._jetstream.inbox)):
            if not self._begun.ready():
                self._refuse(f"no permission for {subject.decode(errors='replace')}, which the history needs")
                return True
            return False
        topic = self._logged.names.topic(subject)
        if topic is not None and topic in self.topics and self._undecided:
            self._decided(self._undecided.popleft(), "permission")
            return True
        return False

    # What the consumer brings

    def take(self, sid: bytes, subject: bytes, header: bytes, content: bytes, reply: bytes) -> bool:
        """Take a message. Return False if it is none of the history."""
        if sid == _CONSUMER:
            self._take_next(subject, header, content, acknowledged_sequence(reply))
        elif sid == _ACKNOWLEDGEMENTS:
            self._acknowledge(header, content)
        elif sid == _DELETED:
            self._end(f"the stream {self._stream.decode()} was deleted")
        else:
            return self._jetstream.take(sid, subject, header, content)
        return True

    def _take_next(self, subject: bytes, header: bytes, content: bytes, number: int) -> None:
        """Take the next publication of the stream."""
        self._beats = True
        if not number:
            # A heartbeat.
            return
        self._heard = True
        copy = self._copy
        self._brought += 1
        topic = self._logged.names.topic(subject)
        if topic is None or topic not in self.topics:
            # What planes tell each other, or what another program has published under a name that is no topic.
            copy.pass_over(number)
        elif not self._headers.is_value(header):
            self._report(copy.add(number, topic, content), False)
        elif self._headers.is_end(header):
            copy.pass_over(number)
            self._note_value(topic, 0)
            if self._is_served(topic):
                self._plane.unretained(topic)
        else:
            self._note_value(topic, number)
            entry = copy.add(number, topic, content)
            name = self._headers.identity(header, header_value(header, b"Nats-Sequence"))
            if self._early.pop(topic, None) == name:
                self._plane.positioned(entry, True, False, False)
            else:
                self._report(entry, True)
        if self._goals:
            self._check()

    def _note_value(self, topic: str, number: int) -> None:
        if len(self._last_values) >= MAX_VALUES:
            # Of what is older than the copy, the stream of the values knows more.
            floor = self._copy.floor
            self._last_values = {topic: last for topic, last in self._last_values.items() if last > floor}
        self._last_values[topic] = number

    def _report(self, entry: Entry, retained: bool) -> None:
        if self._is_served(entry.topic):
            self._plane.positioned(entry, True, retained, True)

    def _is_served(self, topic: str) -> bool:
        wanted = self._wanted.get(topic)
        if wanted is None:
            wanted = bool(self._served.match(topic))
            remember(self._wanted, topic, wanted)
        return wanted

    # Present values: what the values' stream reports goes through here

    def retained(self, topic: str, content: bytes, origin: bytes, sequence: int, live: bool) -> None:
        """Pass a value on to the plane. That of a topic with history waits until the history is fetched."""
        if topic not in self.topics:
            self._plane.retained(topic, content, origin, sequence, live)
        elif not live and not self._is_served(topic):
            self._values[topic] = content, origin, sequence

    def unretained(self, topic: str) -> None:
        """Pass the end of a value on. That of a topic with history comes in order with its publications."""
        if topic not in self.topics:
            self._plane.unretained(topic)

    # Fetching

    def fetch(self, patterns: Sequence[str]) -> None:
        """Report what there is of patterns, whose present values were fetched. ``fetched`` is called later, once."""
        self._portion = patterns
        if not any(map(self._logged.touches, patterns)):
            self._report_fetched()
            return
        if not self._has_consumer:
            self._has_consumer = True
            self._write(self._make_consumer())
        self._ask_last("fetch")

    def _make_consumer(self) -> bytes:
        subject = self._jetstream.inbox + _CONSUMER
        create = b"CONSUMER.CREATE." + self._stream
        asking = self._jetstream.ask(create, self._logged.consumer(subject), self._consumer_made)
        return encode_subscribe(subject, _CONSUMER) + asking

    def _consumer_made(self, answer: dict[str, Any]) -> None:
        _, why = error_of(answer)
        if why:
            self._end(f"the history cannot be fetched: {snippet(why, 200)}")
        self._consumer_name = str(answer.get("name", "")).encode()

    def synchronize(self) -> None:
        """Find out what the last number is, and tell the plane when all up to it has come."""
        self._ask_last("synchronize")

    def _ask_last(self, purpose: _Purpose) -> None:
        """Ask for the last number of the stream, and wait until all up to it has come."""
        self._expect()
        self._goals[purpose] = -1

        def read(answer: dict[str, Any]) -> None:
            last = _last_number(answer)
            if last is None:
                why = error_of(answer)[1] or "the description of the stream makes no sense"
                self._end(f"the history cannot be fetched: {snippet(why, 200)}")
                return
            self._heard = True
            self._goals[purpose] = last
            self._check()

        self._write(self._jetstream.ask(b"STREAM.INFO." + self._stream, b"", read))

    def _has_come(self, purpose: _Purpose) -> bool:
        """Return whether all has come for a purpose that waits."""
        number = self._goals.get(purpose, -1)
        return number >= 0 and (self._copy.last >= number or not self._has_consumer)

    def _check(self) -> None:
        """Report what was waited for, if it has come. Lets others run meanwhile (in the reader's greenlet)."""
        if self._has_come("fetch"):
            del self._goals["fetch"]
            self._report_fetched()
        if self._has_come("synchronize"):
            self._plane.synchronized(self._goals.pop("synchronize"))

    def _report_fetched(self) -> None:
        """Report what the copy has of the portion."""
        copy, topics = self._copy, self.topics
        number = 0
        for pattern in self._portion:
            # Each is added before others run, so that nothing that comes meanwhile is left out.
            if pattern not in self._served_patterns:
                self._served_patterns.add(pattern)
                self._served.add(pattern, None)
            self._wanted.clear()
            complete_from, last = copy.floor, max(copy.last, self._last_at_begin)
            for entry in copy.matching(pattern) if self._logged.touches(pattern) else ():
                topic = entry.topic
                is_value = topic in self._values and self._last_values.get(topic) == entry.offset
                self._plane.positioned(entry, topic in topics, is_value, False)
                number += 1
                if number % _PORTION == 0:
                    yield_to_loop()
                    self._heard = True
                    if self._closed:
                        return
            self._plane.fetched(pattern, complete_from, last)
        self._report_old_values()
        self._fetched()

    def _report_old_values(self) -> None:
        """Report the values that are older than the history, or not in it yet: they have no positions."""
        values, self._values = self._values, {}
        for topic, value in values.items():
            last = self._last_values.get(topic)
            if last is None or 0 < last <= self._copy.floor:
                self._early[topic] = value[1:]
                self._plane.retained(topic, *value, False)

    def leave(self, patterns: Sequence[str]) -> None:
        """Patterns are not wanted any more."""
        for pattern in patterns:
            if pattern in self._served_patterns:
                self._served_patterns.remove(pattern)
                self._served.remove(pattern, None)
        self._wanted.clear()
        self._early = {topic: name for topic, name in self._early.items() if self._is_served(topic)}

    # What takes too long, and the end

    @property
    def _waits(self) -> bool:
        return bool(self._undecided or self._goals)

    def _expect(self) -> None:
        """Something is to come from now on. Called before it is written down what."""
        if not self._waits:
            self._silent = 0.0
        self._watch.start()

    def _interval(self) -> float:
        if self._closed:
            return 0.0
        return _STEP if self._waits else _HEARTBEAT if self._has_consumer else 0.0

    def _look(self, elapsed: float, late: float) -> None:
        # A process that was stopped itself has heard nobody in that time.
        passed = elapsed - late
        self._still = 0.0 if self._beats else self._still + passed
        self._silent = 0.0 if self._heard or not self._waits else self._silent + passed
        heard, self._beats, self._heard = self._heard, False, False
        if self._silent >= _PATIENCE:
            self._end(f"JetStream does not answer, for {self._silent:.1f} s")
        elif self._has_consumer and self._still >= _PATIENCE:
            # The server does not always tell that a stream was deleted.
            self._end(f"the consumer of the history is silent, for {self._still:.1f} s")
        elif not heard and self._consumer_name and self._last_goal > self._copy.last:
            # What should come may have been deleted.
            what = b"CONSUMER.INFO.%b.%b" % (self._stream, self._consumer_name)
            self._write(self._jetstream.ask(what, b"", self._take_progress))

    @property
    def _last_goal(self) -> int:
        """Up to which number the copy must have come for all purposes that wait."""
        return max(self._goals.values(), default=0)

    def _take_progress(self, answer: dict[str, Any]) -> None:
        """Take what the server says of the consumer: whether it has brought all."""
        delivered = answer.get("delivered")
        brought = delivered.get("consumer_seq") if isinstance(delivered, dict) else None
        if answer.get("num_pending") == 0 and brought == self._brought:
            self._copy.skip_to(self._last_goal)
            self._check()

    def _end(self, why: str) -> None:
        if not self._closed:
            self._lost(ConnectionFailed(self._server, why))

    def close(self) -> None:
        """End the greenlet. Does not block."""
        self._closed = True
        self._watch.stop()

    def join(self) -> None:
        """Block until the greenlet has ended, unless it is the caller."""
        self._watch.join()


def _last_number(answer: dict[str, Any]) -> int | None:
    """Return the last number of a stream, by its description; None if it does not say that."""
    state = answer.get("state")
    last = state.get("last_seq") if isinstance(state, dict) else None
    return last if type(last) is int and 0 <= last < LIMIT else None


def _epoch(created: str) -> int:
    """Return what names a stream, by the moment at which it was made, e.g. ``2026-11-29T06:31:14.122055024Z``."""
    return int("".join(filter(str.isdigit, created)) or "0") % (LIMIT - 1) + 1
