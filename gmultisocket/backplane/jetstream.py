"""Requests to JetStream over one connection to NATS, and what its answers say.

All answers come under one inbox, which no other connection has: a server that does not know yet that the connection
before has ended goes on to answer it. A request that is never answered is forgotten with the connection, or by
:meth:`JetStream.forget`.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

import json
import os
import re
from binascii import hexlify
from collections.abc import Callable, Sequence
from typing import Any, Final

from .natswire import Subjects, encode_subscribe

__all__ = [
    "NO_MESSAGE",
    "NO_STREAM",
    "NOT_ENABLED",
    "NOT_ENABLED_FOR_ACCOUNT",
    "OTHER_CONFIGURATION",
    "JetStream",
    "StreamNames",
    "acknowledged_sequence",
    "consumer_json",
    "error_of",
    "header_value",
    "read_answer",
    "stream_json",
]

#: Codes of errors.
NO_MESSAGE: Final = 10037
NO_STREAM: Final = 10059
OTHER_CONFIGURATION: Final = 10058
NOT_ENABLED: Final = 10076
NOT_ENABLED_FOR_ACCOUNT: Final = 10039

_SAFE: Final = re.compile(rb"[^A-Za-z0-9_-]")

#: Called with the headers and the content of an answer.
Answered = Callable[[bytes, bytes], object]


class StreamNames:
    """The names that a prefix gives to streams, and to the subjects of topics and of values.

    Args:
        subjects: of the topics.
        prefix: of the plane, e.g. ``"gms."``.

    Attributes:
        topics: what the subjects of topics begin with: ``b"gms."``.
        values: what the subjects of values begin with: ``b"gms-values."``.
        stream: the stream of the values: ``b"GMS_gms"``.
        log: the stream of the history: ``b"GMS_gms_history"``.
    """

    __slots__ = ("_subjects", "log", "stream", "topics", "values")

    def __init__(self, subjects: Subjects, prefix: str) -> None:
        self._subjects = subjects
        self.topics = subjects.encode("x")[:-1]
        self.values = self.topics[:-1] + b"-values."
        self.stream = b"GMS_" + _SAFE.sub(lambda found: b"_%02X" % ord(found[0]), prefix[:-1].encode())
        self.log = self.stream + b"_history"

    def value(self, subject: bytes) -> bytes:
        """Return the subject of the values of a topic or pattern, by its own subject."""
        return self.values + subject[len(self.topics) :]

    def value_of(self, topic: str) -> bytes:
        """Return the subject of the values of a topic."""
        return self.value(self._subjects.encode(topic))

    def topic(self, subject: bytes) -> str | None:
        """Return the topic of a subject of a topic; None if it is none."""
        return self._subjects.decode(subject)

    def topic_of_value(self, subject: bytes) -> str | None:
        """Return the topic of a subject of values; None if it is none."""
        if not subject.startswith(self.values):
            return None
        return self._subjects.decode(self.topics + subject[len(self.values) :])


class JetStream:
    """Asks JetStream, and hands the answers over.

    Args:
        write: sends bytes.
        name: of this object: the id of its subscription to answers. Those of topics are numbers.

    Attributes:
        inbox: what the subjects begin with of all that comes for this object only.
    """

    __slots__ = ("_answers", "_calls", "_has_inbox", "_last_number", "_name", "_write", "inbox")

    def __init__(self, write: Callable[[bytes], object], name: bytes) -> None:
        self._write = write
        self._name = name
        self.inbox = b"_INBOX.%b." % hexlify(os.urandom(8))
        self._answers = self.inbox + name + b"."
        self._has_inbox = False
        self._last_number = 0
        #: By the last token of its subject: what takes an answer.
        self._calls: dict[bytes, Answered] = {}

    def reply_to(self, answered: Answered) -> bytes:
        """Return a subject for one answer."""
        if not self._has_inbox:
            self._has_inbox = True
            self._write(encode_subscribe(self._answers + b"*", self._name))
        self._last_number += 1
        key = b"%d" % self._last_number
        self._calls[key] = answered
        return self._answers + key

    def ask(self, what: bytes, body: bytes, answered: Callable[[dict[str, Any]], object]) -> bytes:
        """Return the lines of a request. An answer that is no JSON object counts as an error."""
        reply = self.reply_to(lambda header, content: answered(read_answer(header, content)))
        return b"PUB $JS.API.%b %b %d\r\n%b\r\n" % (what, reply, len(body), body)

    def take(self, sid: bytes, subject: bytes, header: bytes, content: bytes) -> bool:
        """Take a message. Return False if it is no answer."""
        if sid != self._name:
            return False
        answered = self._calls.pop(subject[len(self._answers) :], None)
        if answered is not None:
            answered(header, content)
        return True

    def forget(self) -> None:
        """Expect no answers any more."""
        self._calls.clear()


def stream_json(name: bytes, subjects: Sequence[str], max_messages: int, max_bytes: int, **more: Any) -> bytes:
    """Return the JSON by which a stream is made that drops its oldest messages when it has too many.

    Args:
        name: of the stream.
        subjects: what it takes.
        max_messages, max_bytes: its limits.
        more: other parts of its configuration.
    """
    return json.dumps({
        "name": name.decode(), "subjects": subjects, "storage": "file", "retention": "limits",
        "max_msgs": max_messages, "max_bytes": max_bytes, "discard": "old", "num_replicas": 1, **more,
    }).encode()  # fmt: skip


def consumer_json(stream: bytes, subject: bytes, **more: Any) -> bytes:
    """Return the JSON by which a consumer is made that needs no acknowledgements, and ends with its connection.

    Args:
        stream: what it reads.
        subject: where it brings the messages.
        more: other parts of its configuration.
    """
    return json.dumps({
        "stream_name": stream.decode(),
        "config": {
            "deliver_subject": subject.decode(), "ack_policy": "none", "mem_storage": True, "num_replicas": 1,
            "inactive_threshold": 5_000_000_000, **more,
        },
    }).encode()  # fmt: skip


def read_answer(header: bytes, content: bytes) -> dict[str, Any]:
    """Return an answer. What is none counts as an error; its headers may say that nobody answers."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        return answer
    if header.startswith(b"NATS/1.0 503"):
        return {"error": {"err_code": NOT_ENABLED, "description": "nobody answers: is JetStream enabled?"}}
    return {"error": {"description": "the answer is no JSON object"}}


def error_of(answer: dict[str, Any]) -> tuple[int, str]:
    """Return the code and the text of an error, 0 and "" if it is none."""
    error = answer.get("error")
    if error is None:
        return 0, ""
    if not isinstance(error, dict):
        return 0, "an error without a description"
    return error.get("err_code", 0), str(error.get("description", "")) or "an error without a description"


def header_value(header: bytes, name: bytes) -> int:
    """Return the number in the first header line of a name; 0 for none."""
    digits = header.partition(b"\r\n%b: " % name)[2].partition(b"\r\n")[0]
    return int(digits) if digits.isdigit() else 0


def acknowledged_sequence(reply: bytes) -> int:
    """Return the number that a message has in its stream, by where it wants to be acknowledged; 0 for none.

    It is ``$JS.ACK.STREAM.CONSUMER.DELIVERED.NUMBER...``; with a domain and an account there are two more tokens.
    """
    tokens = reply.split(b".")
    digits = tokens[5 if len(tokens) < 11 else 7] if len(tokens) >= 9 else b""
    return int(digits) if digits.isdigit() else 0
