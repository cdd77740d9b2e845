"""Survey: a Surveyor asks all Respondents, and takes the replies that come before a deadline.

* Who talks to whom: any number of Surveyors with any number of Respondents, directly or through switches. Each survey
  goes to all peers that are connected at that moment.
* On the wire: a survey is a 4-byte id (chosen by the Surveyor at random) and the payload, sent to all; a reply is the
  same 4 bytes and the payload, sent to the survey's source.
* What is lost, and when: a Respondent whose queue is full misses the survey, which does not wait; that is counted on
  its pipe. A reply that comes after the deadline is dropped and counted (``late``), and so is one beyond the limit of
  replies that wait to be taken (``overflow``), and a second one of the same source (``second reply``). But a peer may
  claim to be a switch and make up sources: the limits hold for all of them together.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from gevent import get_hub

from ..errors import Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..wire import SEND_TYPE_MASK, Message
from .answering import Answerer, Handler, ReceivedRequest
from .base import ProtocolBase
from .ids import ID_SIZE, new_id, request_ids

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Handler", "ReceivedRequest", "Respondent", "Survey", "Surveyor"]

#: Replies to one survey that may wait to be taken, and their bytes.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 64 << 20
#: Sources whose replies to one survey are taken, and the bytes of their paths.
_MAX_SOURCES = 100_000
_MAX_SOURCES_BYTES = 16 << 20


class Survey:
    """An iterator over the replies to one survey, in the order in which they come. It ends at the deadline.

    Replies that came before the deadline can be taken after it. A survey that is closed, or that nobody refers to any
    more, takes no more replies.

    Attributes:
        sent: the number of pipes that it went to.
    """

    def __init__(self, surveyor: Surveyor, timeout: float) -> None:
        self._surveyor = surveyor
        self._end = monotonic() + timeout
        self._replies: deque[bytes] = deque()
        self._bytes = 0
        #: Those that have replied, and their bytes.
        self._sources: set[bytes] = set()
        self._sources_bytes = 0
        # A condition that referred to this survey would keep it alive.
        replies = self._replies
        self._arrivals = WaitList(surveyor._hub, lambda: replies)
        self._over = False
        self.sent = 0

    def __iter__(self) -> Survey:
        return self

    def __next__(self) -> bytes:
        """Return the next reply. Blocks until there is one; ends at the deadline, or when the Surveyor is closed."""
        self._surveyor._core.check()
        while not self._replies:
            left = self.seconds_left
            if not left:
                self._over = True
                raise StopIteration
            self._arrivals.wait(left)
        reply = self._replies.popleft()
        self._bytes -= len(reply)
        return reply

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline, 0.0 once it is over."""
        return 0.0 if self._over else max(0.0, self._end - monotonic())

    def close(self) -> None:
        """End the survey before its deadline. Replies that have come can still be taken. May be repeated."""
        self._surveyor._core.check()
        self._finish()

    def _add(self, source: bytes, reply: bytes) -> str:
        """Add a reply. Return "", or the reason why it is dropped."""
        if not self.seconds_left:
            return "late"
        if source in self._sources:
            return "second reply"
        if len(self._replies) >= _MAX_WAITING or self._bytes + len(reply) > _MAX_WAITING_BYTES:
            return "overflow"
        if len(self._sources) >= _MAX_SOURCES or self._sources_bytes + len(source) > _MAX_SOURCES_BYTES:
            return "overflow"
        self._sources.add(source)
        self._sources_bytes += len(source)
        self._bytes += len(reply)
        self._replies.append(reply)
        self._arrivals.wake()
        return ""

    def _finish(self) -> None:
        """Stop taking replies, and wake the greenlets that wait for one."""
        self._over = True
        self._sources.clear()
        self._arrivals.wake_all()


class Surveyor(ProtocolBase):
    """Asks all peers. Any number of surveys may run at once.

    Args:
        options: of the socket underneath.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "survey()", "recv": "survey()"}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        self._ids = request_ids()
        # A survey that nobody refers to any more takes no replies.
        self._surveys: WeakValueDictionary[bytes, Survey] = WeakValueDictionary()
        self._core.on_message(self._on_message)

    def survey(self, content: Buffer, timeout: float) -> Survey:
        """Ask all peers that are connected now. Does not block; the iterator that it returns does.

        Args:
            content: bytes-like.
            timeout: seconds until the deadline.

        Returns:
            An iterator over the replies. It has ended already if nobody is connected.

        Raises:
            MessageTooLong: with its 4 bytes of id it is over ``socket.max_send_content_length``.
            Closed: the Surveyor is closed.
        """
        if type(content) is not bytes:
            content = self._core.check_content(content)
        survey_id = new_id(self._ids, self._surveys)
        survey = Survey(self, timeout)
        self._surveys[survey_id] = survey
        try:
            survey.sent = self.socket.send_all(survey_id + content, timeout=0)
        except Timeout as error:
            survey.sent = error.sent
        if not survey.sent:
            survey.close()
        return survey

    def _on_message(self, message: Message) -> bool:
        content = message.content
        if message.flags & ~SEND_TYPE_MASK or len(content) < ID_SIZE:
            self._drop(message, "garbage")
            return True
        survey = self._surveys.get(content[:ID_SIZE])
        reason = "late" if survey is None else survey._add(message.source, content[ID_SIZE:])
        if reason:
            self._drop(message, reason)
        return True

    def _stop(self, deadline: Deadline) -> None:
        """End all surveys: no more replies can come."""
        for survey in list(self._surveys.values()):
            survey.close()


class Respondent(Answerer):
    """Answers surveys, with a handler or by iteration::

        with Respondent(handler) as respondent:
            respondent.dial("tcp://127.0.0.1:30001")
            respondent.serve_forever()

        for survey in respondent:
            survey.reply(b"here")

    A handler gets the survey's payload and returns the reply's, or None to send no reply. If it raises an exception,
    that is logged and no reply is sent, and the next survey is answered. Replies do not delay each other, and
    ``close()`` waits for handlers, as with a :class:`~gmultisocket.protocol.reqrep.Rep`.

    Args:
        handler: takes a payload and returns the reply's, bytes-like, or None; may block.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    instead = {"send": "survey.reply()"}
    families = ("protocol.answers",)
