"""Survey: a Surveyor asks everybody, and takes what is answered before the deadline.

* Who talks to whom: any number of Surveyors with any number of Respondents, directly or through switches. Each survey
  goes to everybody who is connected at that moment.
* On the wire: a survey is a 4-byte id (big-endian, chosen by the Surveyor) and the payload, sent to all; a reply is the
  same 4 bytes and the payload, sent to the survey's source.
* What is lost, and when: a Respondent whose queue is full misses the survey, which waits for nobody; that is counted on
  its pipe. A reply that comes after the deadline is dropped and counted (``late``), and so is one of too many that
  nobody has taken (``overflow``).
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from weakref import WeakValueDictionary

from gevent import get_hub

from ..errors import Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..wire import SEND_TYPE_MASK, Message
from .answering import Answerer, Handler, Question
from .base import Protocol
from .ids import ID_SIZE, new_id, question_ids

__all__ = ["Handler", "Question", "Respondent", "Survey", "Surveyor"]

#: Replies to one survey that may wait to be taken, and their bytes.
_MAX_WAITING = 10_000
_MAX_WAITING_BYTES = 64 << 20


class Survey:
    """An iterator over the replies to one survey, in the order in which they come, which ends at the deadline.

    What came before the deadline can be taken after it. One that is dropped, or closed, takes no more replies.

    Attributes:
        sent: to how many pipes it went.
    """

    def __init__(self, surveyor: Surveyor, timeout: float) -> None:
        self._surveyor = surveyor
        self._end = monotonic() + timeout
        self._replies: deque[bytes] = deque()
        self._bytes = 0
        # Those who wait look for themselves; a condition that knew this survey would keep it when nobody holds it.
        self._arrivals = WaitList(surveyor._hub, lambda: True)
        self._over = False
        self.sent = 0

    def __iter__(self) -> Survey:
        return self

    def __next__(self) -> bytes:
        """Return the next reply. Blocks until there is one; ends at the deadline, or when the Surveyor is closed."""
        self._surveyor._seam.check()
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
        """End it before its deadline. What has come can still be taken. Harmless when repeated."""
        self._surveyor._seam.check()
        self._over = True
        self._arrivals.wake_all()

    def _take(self, reply: bytes) -> str:
        """Take a reply; returns why not, "" if it was taken."""
        if not self.seconds_left:
            return "late"
        if len(self._replies) >= _MAX_WAITING or self._bytes + len(reply) > _MAX_WAITING_BYTES:
            return "overflow"
        self._bytes += len(reply)
        self._replies.append(reply)
        self._arrivals.wake()
        return ""


class Surveyor(Protocol):
    """Asks everybody. Any number of surveys may be out at once.

    Args:
        options: of the socket underneath.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "survey()", "recv": "survey()"}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        self._ids = question_ids()
        # A survey that nobody holds any more takes no replies.
        self._surveys: WeakValueDictionary[bytes, Survey] = WeakValueDictionary()
        self._seam.on_message(self._received)

    def survey(self, content: bytes, timeout: float) -> Survey:
        """Ask everybody who is connected now. Does not block; the iterator that it returns does.

        Args:
            content: bytes-like.
            timeout: seconds until the deadline.

        Returns:
            An iterator over the replies. It has ended already if nobody is connected.

        Raises:
            MessageTooLong: with its 4 bytes of id it is over ``socket.max_send_content_length``.
            Closed: the Surveyor is closed.
        """
        question_id = new_id(self._ids, self._surveys)
        survey = Survey(self, timeout)
        self._surveys[question_id] = survey
        try:
            survey.sent = self.socket.send_all(b"".join((question_id, content)), timeout=0)
        except Timeout as error:
            survey.sent = error.sent
        if not survey.sent:
            survey.close()
        return survey

    def _received(self, message: Message) -> bool:
        content = message.content
        if message.flags & ~SEND_TYPE_MASK or len(content) < ID_SIZE:
            self._drop(message, "garbage")
            return True
        survey = self._surveys.get(content[:ID_SIZE])
        reason = "late" if survey is None else survey._take(content[ID_SIZE:])
        if reason:
            self._drop(message, reason)
        return True

    def _stop(self, deadline: Deadline) -> None:
        """End the surveys: no more replies are coming."""
        for survey in list(self._surveys.values()):
            survey.close()


class Respondent(Answerer):
    """Answers surveys, with a handler or by iteration::

        with Respondent(handler) as respondent:
            respondent.dial("tcp://127.0.0.1:30001")
            respondent.serve_forever()

        for survey in respondent:
            survey.reply(b"here")

    A handler gets the survey's payload and returns the reply's, or None to stay silent. One that raises stays silent
    too; that is logged, and the next survey is answered. Replies wait for nobody, and ``close()`` waits for handlers,
    as with a :class:`~gmultisocket.protocol.reqrep.Rep`.

    Args:
        handler: takes a payload and returns one, or None; may block.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    instead = {"send": "survey.reply()"}
