"""How NATS keeps the present values of topics: a JetStream stream with the last message of each subject.

A value of the topic ``orders.eu`` is published under ``gms-values.orders.eu``, for the prefix ``gms.``. The stream
keeps it, acknowledges it, and publishes it again under ``gms.orders.eu``, with headers of its own. So everybody who
subscribes to the topic gets the values in the order of the stream, its publisher too, and needs no second subscription.
A message with the header ``Gms-Value: none`` says that the topic has no value any more. When the stream has
acknowledged it, it is deleted there.

The first value that is published over a connection makes the stream, if there is none. One that is there is used as it
is: administrators may change its limits and its number of replicas.

When a pattern is first wanted, the last message of its subject is asked for. For a pattern with wildcards a consumer is
asked for, which brings the last messages of all its subjects. Over each connection, the first question is whether the
stream has any message: a server of version 2.9.10 that is asked for a message while it makes the stream crashes.

A server takes values of several clients at the same time, and what it publishes again may be in another order than that
of the stream. So of a value that seems to be older than another one, the last message of its subject is asked for, too.
"""

from __future__ import annotations

import json
import logging
from binascii import a2b_base64, hexlify
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Final

import gevent
from gevent import Greenlet, getcurrent

from ..errors import snippet
from ..log import ThrottledLog, get_logger
from ..loop.ending import LOG_INTERVAL, Ended
from ..protocol.subscriptions import is_literal
from .brokervalues import FetchedValues, ValuePlane
from .engine import FOREIGN, MAX_VALUES, MAX_VALUES_SIZE, SILENCE
from .jetstream import (
    NO_MESSAGE,
    NO_STREAM,
    NOT_ENABLED,
    NOT_ENABLED_FOR_ACCOUNT,
    OTHER_CONFIGURATION,
    JetStream,
    StreamNames,
    acknowledged_sequence,
    consumer_json,
    error_of,
    header_value,
    read_answer,
    stream_json,
)
from .natswire import HEADER_SIZE, Marks, encode_subscribe, encode_unsubscribe

__all__ = ["NatsValues", "ValueHeaders", "stream_configuration"]

_log = ThrottledLog(get_logger("gmultisocket.backplane"), LOG_INTERVAL)

#: What the ids of the subscriptions to consumers begin with. Others are numbers.
_CONSUMER: Final = b"c"
#: Consumers at once.
_MOST_CONSUMERS: Final = 8
#: Seconds between two questions to a consumer that has not brought everything: what it should have brought may have
#: been replaced.
_STEP: Final = 0.25
_END: Final = b"Gms-Value: none\r\n"


def stream_configuration(names: StreamNames) -> bytes:
    """Return the JSON by which the stream of the values is made."""
    everything, topics = names.values.decode() + ">", names.topics.decode() + ">"
    republish = {"src": everything, "dest": topics}
    return stream_json(
        names.stream, [everything], MAX_VALUES, MAX_VALUES_SIZE, max_msgs_per_subject=1, republish=republish
    )


class ValueHeaders:
    """Reads the headers of values.

    Args:
        names: of the stream and its subjects.
    """

    __slots__ = ("_read_mark", "_republished")

    def __init__(self, names: StreamNames) -> None:
        self._read_mark = Marks().read
        self._republished = b"\r\nNats-Subject: " + names.values

    def is_value(self, header: bytes) -> bool:
        """Return whether headers say that the stream of the values has published a message again."""
        return self._republished in header

    def is_end(self, header: bytes) -> bool:
        """Return whether a topic has no value any more."""
        return _END in header

    def identity(self, header: bytes, number: int) -> tuple[bytes, int]:
        """Return what names a value: its origin and sequence. One of another program is named by the stream."""
        origin, sequence = self._read_mark(header[: HEADER_SIZE - 2] + b"\r\n")
        return (origin, sequence) if origin else (FOREIGN, number)


class _Consumer:
    """A consumer that brings the values of a pattern.

    Attributes:
        sid: of the subscription to it.
        create: the request that makes it.
        name: at the server, "" while that is not known.
        brought: messages that it has brought.
        due: those that it should bring, None while that is not known.
    """

    __slots__ = ("brought", "create", "due", "name", "sid")

    def __init__(self, sid: bytes, create: bytes) -> None:
        self.sid = sid
        self.create = create
        self.name = ""
        self.brought = 0
        self.due: int | None = None


class NatsValues:
    """The present values, over one connection.

    Args:
        write: sends bytes.
        plane: whom it reports values to.
        names: of the stream and its subjects.
        decided: called as ``decided(number, reason)`` when the stream has a publication (reason ""), or refuses it.
        fetched: called when all values for the last portion were reported.
        count: called with the reason when something is dropped.

    Attributes:
        headers: reads the headers of values.
    """

    def __init__(
        self,
        write: Callable[[bytes], object],
        plane: ValuePlane,
        names: StreamNames,
        decided: Callable[[int, str], object],
        fetched: Callable[[], object],
        count: Callable[[str], object],
    ) -> None:
        self._write = write
        self._plane = plane
        self._names = names
        self._jetstream = JetStream(write, b"v")
        self._decided = decided
        self._fetched = fetched
        self._count = count
        self._values = FetchedValues(plane, self._ask_last)
        self._mark = b"NATS/1.0\r\nGms: %b-%%016x\r\n" % hexlify(plane.origin)
        self.headers = ValueHeaders(names)
        self._last_consumer = 0
        #: Whether the stream is there; and publications that wait until it is: their numbers and what is written.
        self._has_stream = False
        self._waiting: deque[tuple[int, bytes, bytes]] = deque()
        #: By the number of a publication that the stream has not decided about: when that is due.
        self._undecided: dict[int, float] = {}
        #: Whether the stream is known to have messages; and what is fetched when that is known.
        self._has_messages = False
        self._wanted: Sequence[tuple[str, bytes]] = ()
        #: What is fetched: consumers by their sid, those that were not begun, and values of single topics.
        self._consumers: dict[bytes, _Consumer] = {}
        self._more: deque[_Consumer] = deque()
        self._singles = 0
        self._fetch_due = 0.0
        self._may_fetch = True
        self._watcher: Greenlet[..., Any] | None = None

    def _ask(self, what: bytes, body: bytes, answered: Callable[[dict[str, Any]], object]) -> bytes:
        """Return the lines of a request to JetStream."""
        self._watch()
        return self._jetstream.ask(what, body, answered)

    def take(self, sid: bytes, subject: bytes, header: bytes, content: bytes, reply: bytes) -> bool:
        """Take a message that is no publication. Return False if it does not belong here."""
        if self._jetstream.take(sid, subject, header, content):
            return True
        if sid[:1] == _CONSUMER:
            # It may have ended.
            if (consumer := self._consumers.get(sid)) is not None:
                self._value(subject, header, content, acknowledged_sequence(reply))
                consumer.brought += 1
                self._check_consumer(consumer)
            return True
        # Of a subscription to everything that has no prefix. The stream publishes it again.
        return False

    # Publications

    def publish(self, number: int, head: bytes, content: bytes | None, sequence: int) -> None:
        """Publish a value; None is the end of one. ``decided`` is called later.

        Args:
            number: of the publication.
            head: as ``encode_head`` has made it.
            content: its content.
            sequence: the plane's.
        """
        header = self._mark % sequence + (_END if content is None else b"") + b"\r\n"
        subject = self._names.value(head.split(b" ", 2)[1])
        self._undecided[number] = monotonic() + SILENCE
        self._waiting.append((number, subject, header + (content or b"")))
        if self._has_stream:
            self._publish_waiting()
        elif len(self._waiting) == 1:
            create = b"STREAM.CREATE." + self._names.stream
            self._write(self._ask(create, stream_configuration(self._names), self._stream_made))

    def _stream_made(self, answer: dict[str, Any]) -> None:
        code, why = error_of(answer)
        if not why and not (answer.get("config") or {}).get("republish"):
            why = "the server is too old to publish what a stream keeps again: 2.9 is needed"
        if why and code != OTHER_CONFIGURATION:
            _log.log("stream", logging.ERROR, "JetStream cannot keep present values: %s", snippet(why, 200))
            for number, _, _ in [*self._waiting]:
                self._decide(number, "JetStream")
            return
        self._has_stream = True
        self._publish_waiting()

    def _publish_waiting(self) -> None:
        while self._waiting:
            number, subject, data = self._waiting.popleft()
            size = data.index(b"\r\n\r\n") + 4
            ends = data.startswith(_END, HEADER_SIZE - 2)

            def replied(header: bytes, content: bytes, number: int = number, ends: bool = ends) -> None:
                self._acknowledged(number, ends, header, content)

            self._watch()
            reply = self._jetstream.reply_to(replied)
            self._write(b"HPUB %b %b %d %d\r\n%b\r\n" % (subject, reply, size, len(data), data))

    def _acknowledged(self, number: int, ends: bool, header: bytes, content: bytes) -> None:
        answer = read_answer(header, content)
        if why := error_of(answer)[1]:
            # Perhaps somebody has deleted the stream: the next value makes it again.
            self._has_stream = False
            _log.log("value", logging.ERROR, "JetStream did not keep a present value: %s", snippet(why, 200))
        elif ends:
            body = json.dumps({"seq": answer.get("seq"), "no_erase": True}).encode()
            self._write(self._ask(b"STREAM.MSG.DELETE." + self._names.stream, body, lambda answer: None))
        self._decide(number, "JetStream" if why else "")

    def _decide(self, number: int, reason: str) -> None:
        if self._undecided.pop(number, None) is not None:
            if self._waiting and self._waiting[0][0] == number:
                self._waiting.popleft()
            self._decided(number, reason)

    def denied(self, subject: bytes) -> bool:
        """The server does not allow a subject. Return whether it was used here."""
        if subject.startswith(self._names.values):
            if self._undecided:
                self._decide(min(self._undecided), "permission")
            return True
        if subject.startswith(b"$JS.API.STREAM.CREATE"):
            self._stream_made({"error": {"description": f"no permission for {subject.decode()}"}})
            return True
        if subject.startswith((b"$JS.", self._jetstream.inbox)):
            self._may_fetch = False
            self._count("no permission for values")
            why = f"no permission for {subject.decode(errors='replace')}"
            _log.log("denied", logging.ERROR, "present values cannot be fetched: %s", snippet(why, 200))
            self._end_fetch()
            return True
        return False

    # What the stream publishes again

    def live(self, topic: str, header: bytes, content: bytes) -> None:
        """Take a change of a value that has come live."""
        number = header_value(header, b"Nats-Sequence")
        value = None if self.headers.is_end(header) else content
        self._values.live(topic, value, *self.headers.identity(header, number), number)

    def _ask_last(self, topic: str) -> None:
        """Ask for the last change of a topic."""
        if self._may_fetch:
            self._write(self._get(self._names.value_of(topic), partial(self._last_is, topic)))

    def _last_is(self, topic: str, answer: dict[str, Any]) -> None:
        code, why = error_of(answer)
        message = None if why else self._read_message(answer)
        if message is not None:
            _, header, content, number = message
            value = None if self.headers.is_end(header) else content
            self._values.answered(topic, (number, value, *self.headers.identity(header, number)))
        elif code in (NO_MESSAGE, NO_STREAM):
            self._values.answered(topic, None)
        else:
            self._values.unanswered()

    # Fetching

    def fetch(self, subjects: Sequence[tuple[str, bytes]]) -> bytes:
        """Begin to fetch values. ``fetched`` is called later, once, unless the connection ends.

        Args:
            subjects: the patterns of a portion, and their subjects, whose subscriptions are written in front of this.

        Returns:
            The requests.
        """
        self._values.begin()
        self._fetch_due = monotonic() + SILENCE
        self._wanted = subjects if self._may_fetch else ()
        if not self._wanted:
            # Nothing can be asked for.
            self._has_fetched()
            return b""
        if self._has_messages:
            return b"".join(self._begin_fetch())
        return self._ask(b"STREAM.INFO." + self._names.stream, b"", partial(self._described, subjects))

    def _described(self, wanted: Sequence[tuple[str, bytes]], answer: dict[str, Any]) -> None:
        """Fetch values if the stream has any."""
        if self._wanted is not wanted:
            # It took too long.
            return
        state = answer.get("state")
        self._has_messages = self._is_there(answer) and isinstance(state, dict) and bool(state.get("messages"))
        if self._has_messages:
            self._write(b"".join(self._begin_fetch()))
        elif self._fetch_due:
            self._end_fetch()

    def _begin_fetch(self) -> Iterator[bytes]:
        """Yield the requests for what is wanted."""
        wanted, self._wanted = self._wanted, ()
        for pattern, subject in wanted:
            if is_literal(pattern):
                self._singles += 1
                yield self._get(self._names.value(subject), self._single)
            else:
                self._last_consumer += 1
                sid = _CONSUMER + b"%d" % self._last_consumer
                self._more.append(_Consumer(sid, self._configuration(sid, self._names.value(subject).decode())))
        yield from self._begin_consumers()

    def _get(self, subject: bytes, answered: Callable[[dict[str, Any]], object]) -> bytes:
        """Return the request for the last message of a subject."""
        body = json.dumps({"last_by_subj": subject.decode()}).encode()
        return self._ask(b"STREAM.MSG.GET." + self._names.stream, body, answered)

    def _configuration(self, sid: bytes, wanted: str) -> bytes:
        return consumer_json(
            self._names.stream,
            self._jetstream.inbox + sid,
            deliver_policy="last_per_subject",
            filter_subject=wanted,
        )

    @property
    def _fetches(self) -> bool:
        return bool(self._singles or self._consumers or self._more)

    def _begin_consumers(self) -> Iterator[bytes]:
        while self._more and len(self._consumers) < _MOST_CONSUMERS:
            consumer = self._more.popleft()
            self._consumers[consumer.sid] = consumer

            def created(answer: dict[str, Any], consumer: _Consumer = consumer) -> None:
                self._consumer_says(consumer, answer)

            # A subscription to more than this subject would not do: the server wants to see one to it.
            yield encode_subscribe(self._jetstream.inbox + consumer.sid, consumer.sid)
            yield self._ask(b"CONSUMER.CREATE." + self._names.stream, consumer.create, created)

    def _single(self, answer: dict[str, Any]) -> None:
        """Take the value of one topic."""
        if not self._singles:
            return
        self._singles -= 1
        if self._is_there(answer) and (message := self._read_message(answer)) is not None:
            self._value(*message)
        if self._fetch_due:
            self._check_fetched()

    def _read_message(self, answer: dict[str, Any]) -> tuple[bytes, bytes, bytes, int] | None:
        """Return the subject, the headers, the content and the number of a message; None if the answer has none."""
        message: Any = answer.get("message")
        try:
            header, content = (a2b_base64(message.get(name, "")) for name in ("hdrs", "data"))
            return message["subject"].encode(), header, content, int(message["seq"])
        except (TypeError, KeyError, AttributeError, ValueError):
            self._count("garbage")
            return None

    def _consumer_says(self, consumer: _Consumer, answer: dict[str, Any]) -> None:
        """Take what the server says of a consumer, when it is made and later."""
        if consumer.sid not in self._consumers:
            return
        if not self._is_there(answer):
            # After some errors all consumers have ended.
            if consumer.sid in self._consumers:
                self._end_consumer(consumer)
            return
        pending, delivered = answer.get("num_pending"), answer.get("delivered")
        if type(pending) is not int or not isinstance(delivered, dict):
            self._count("garbage")
            pending, delivered = 0, {}
        consumer.name = str(answer.get("name", ""))
        consumer.due = pending + int(delivered.get("consumer_seq", 0))
        self._check_consumer(consumer)

    def _check_consumer(self, consumer: _Consumer) -> None:
        if consumer.due is not None and consumer.brought >= consumer.due:
            self._end_consumer(consumer)

    def _end_consumer(self, consumer: _Consumer) -> None:
        del self._consumers[consumer.sid]
        # The server deletes a consumer that nobody listens to.
        self._write(encode_unsubscribe(consumer.sid) + b"".join(self._begin_consumers()))
        self._check_fetched()

    def _is_there(self, answer: dict[str, Any]) -> bool:
        """Return whether there is an answer to a question for values. Some errors only mean that there are none."""
        code, why = error_of(answer)
        if code in (NOT_ENABLED, NOT_ENABLED_FOR_ACCOUNT):
            self._may_fetch = False
            self._end_fetch()
        elif why and code not in (NO_MESSAGE, NO_STREAM):
            self._give_up(why)
        if code == NO_STREAM:
            self._has_messages = False
        return not why

    def _value(self, subject: bytes, header: bytes, content: bytes, number: int) -> None:
        """Report a value that was fetched, with its number in the stream."""
        self._fetch_due = monotonic() + SILENCE
        topic = self._names.topic_of_value(subject)
        if topic is None:
            self._count("garbage")
        elif not self.headers.is_end(header):
            self._values.fetched(topic, content, *self.headers.identity(header, number), number)

    def _check_fetched(self) -> None:
        if not self._fetches:
            self._has_fetched()

    def _has_fetched(self) -> None:
        self._fetch_due = 0.0
        self._values.end()
        self._fetched()

    def _give_up(self, why: str) -> None:
        """End a fetch that has failed: what it should have brought is missing here."""
        if self._fetch_due:
            self._plane.gap(f"present values could not be fetched: {snippet(why, 200)}")
            self._end_fetch()

    def _end_fetch(self) -> None:
        if self._fetch_due:
            self._wanted = ()
            self._singles = 0
            self._more.clear()
            self._write(b"".join(map(encode_unsubscribe, self._consumers)))
            self._consumers.clear()
            self._has_fetched()

    # What takes too long

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = gevent.spawn(self._watch_all)

    def _watch_all(self) -> None:
        """Look after what was asked for (a greenlet while there is something)."""
        with suppress(Ended):
            while self._undecided or self._fetch_due:
                gevent.sleep(_STEP)
                now = monotonic()
                for number in [number for number, due in self._undecided.items() if due < now]:
                    self._decide(number, "JetStream")
                if self._fetch_due and self._fetch_due < now:
                    self._give_up(f"the server has not answered in {SILENCE:g} s")
                if not self._undecided and not self._fetch_due:
                    self._jetstream.forget()
                    self._values.unanswered()
                for consumer in self._consumers.values():
                    if consumer.due is not None:
                        self._ask_consumer(consumer)
        self._watcher = None

    def _ask_consumer(self, consumer: _Consumer) -> None:
        what = b"CONSUMER.INFO.%b.%b" % (self._names.stream, consumer.name.encode())
        self._write(self._ask(what, b"", lambda answer: self._consumer_says(consumer, answer)))

    def close(self) -> None:
        """End the greenlet. Does not block."""
        if self._watcher is not None and self._watcher is not getcurrent():
            self._watcher.kill(Ended, block=False)

    def join(self) -> None:
        """Block until the greenlet has ended, unless it is the caller."""
        if self._watcher is not None and self._watcher is not getcurrent():
            self._watcher.join()
