"""What answers: the half that Rep and Respondent have in common, as their wire is the same.

A question is a 4-byte id and a payload, whoever asks and however it got here; its answer goes to the question's source
and begins with the same 4 bytes. Handlers run in worker greenlets, all of which do the same: take a question, answer
it, take the next. One more is made when all are busy, up to the number allowed.

An asker that does not read its answers holds up nobody: they wait for its pipe apart from everything else, and when
there are too many its pipe is closed.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator

import gevent
from gevent import getcurrent
from gevent.event import Event

from ..errors import BrokenPath, Closed, ForkedSocketError, MessageDropped, NotSupported, Timeout
from ..loop.waiting import Deadline
from ..options import OptionValues
from ..wire import Message, first_id
from .base import Protocol
from .ids import ID_SIZE

__all__ = ["Answerer", "Handler", "Question"]

logger = logging.getLogger("gmultisocket.protocol")

#: Takes a question's payload; returns the answer's, or None to leave the question unanswered.
Handler = Callable[[bytes], bytes | None]

#: Answers that may wait for one pipe, beyond its queue, before the pipe is closed.
_MAX_WAITING = 1024


class Question:
    """A request or survey to be answered, as iteration hands it out.

    Attributes:
        content: the payload.
        source: the way back to the asker, as in ``Message.source``.
        replied: whether it was answered.
    """

    __slots__ = ("_answerer", "_id", "content", "replied", "source")

    def __init__(self, answerer: Answerer, message: Message) -> None:
        self._answerer = answerer
        self._id = message.content[:ID_SIZE]
        self.content = message.content[ID_SIZE:]
        self.source = message.source
        self.replied = False

    def __repr__(self) -> str:
        return f"<Question {self._id.hex()} of {len(self.content)} bytes{' replied' if self.replied else ''}>"

    def reply(self, content: bytes) -> bool:
        """Answer. Never blocks: an answer for whose pipe there is no room waits, and the caller does not.

        Returns:
            False if the asker is known to have gone.

        Raises:
            MessageTooLong: nothing was sent; it may be answered again.
            NotSupported: it was answered already.
            Closed: the socket is closed.
        """
        if self.replied:
            raise NotSupported("a second reply", "a question is answered once")
        if type(content) is not bytes:
            # Joined, as it is going to be anyway: any bytes-like object does, and anything else is a TypeError.
            content = b"".join((content,))
        sent = self._answerer._reply(self.source, self._id + content)
        self.replied = True
        return sent


class Answerer(Protocol):
    """Answers questions, by a handler or by iteration.

    Args:
        handler: called with each question's payload; what it returns is the answer. It may block. None leaves the
            question unanswered, and so does an exception, which is logged; the next one is answered all the same.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}

    def __init__(
        self, handler: Handler | None = None, options: OptionValues | None = None, *, concurrency: int = 1
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency is a number of handlers, at least 1")
        super().__init__(options)
        self._handler = handler
        self._concurrency = concurrency
        self._workers = 0
        #: The questions that are being answered, and the greenlets that do it.
        self._running: dict[Question, object] = {}
        #: By pipe: answers that wait for room in its queue.
        self._waiting: dict[int, deque[tuple[bytes, bytes]]] = {}
        #: For ``close()``: set when one of those is done.
        self._progress: Event | None = None

    @property
    def running(self) -> int:
        """How many questions are being answered now."""
        return len(self._running)

    # By a handler

    def start(self) -> None:
        """Begin to answer with the handler. Does not block; harmless when repeated.

        Raises:
            NotSupported: there is no handler.
            Closed: it is closed.
        """
        if self._handler is None:
            raise NotSupported("serving", "no handler was given")
        self._seam.check()
        if self._closing:
            raise Closed(type(self).__name__)
        if not self._workers:
            self._add_worker()

    def serve_forever(self) -> None:
        """Answer with the handler. Blocks until somebody calls ``close()``. Raises as :meth:`start` does."""
        self.start()
        self._close_done.wait()

    def _add_worker(self) -> None:
        self._workers += 1
        self._spawn(self._work)

    def _work(self) -> None:
        """Answer one question after the other until the socket closes (the worker greenlets)."""
        try:
            while True:
                question = Question(self, self._next(None, ID_SIZE))
                self._running[question] = getcurrent()
                if len(self._running) == self._workers < self._concurrency:
                    self._add_worker()
                try:
                    self._handle(question)
                finally:
                    self._done(question)
        except (Closed, ForkedSocketError):
            pass
        finally:
            self._workers -= 1

    def _handle(self, question: Question) -> None:
        assert self._handler is not None
        try:
            content = self._handler(question.content)
            if content is not None:
                question.reply(content)
        # A gevent.Timeout that the handler let out is its failure too, not the worker's end.
        except (Exception, gevent.Timeout) as error:
            if isinstance(error, Closed) and self._closing:
                # It had more time than there was.
                self._seam.count_drop("closed")
            else:
                logger.exception("a handler of %r failed", self)

    def _done(self, question: Question) -> None:
        del self._running[question]
        if self._progress is not None:
            self._progress.set()

    # By iteration

    def recv(self, timeout: float | None = None) -> Question:
        """Return the next question. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            NotSupported: there is a handler for them.
            Closed: it is closed.
        """
        if self._handler is not None:
            raise NotSupported("recv", "the handler takes what comes")
        return Question(self, self._next(timeout, ID_SIZE))

    def __iter__(self) -> Iterator[Question]:
        """Iterate over questions as they come; ends with ``close()``, which waits for the loop's body."""
        while True:
            try:
                question = self.recv()
            except Closed:
                return
            self._running[question] = getcurrent()
            try:
                yield question
            finally:
                self._done(question)

    # Answers

    def _reply(self, source: bytes, content: bytes) -> bool:
        """Send an answer, now or when there is room in its pipe. Never blocks. False if it cannot arrive."""
        try:
            self.socket.send_to(source, content, timeout=0)
        except Timeout:
            return self._reply_later(first_id(source), source, content)
        except BrokenPath:
            self._seam.count_drop("peer gone")
            return False
        except MessageDropped:
            # Counted by the pipe: the socket's options say that it is not to wait.
            return False
        return True

    def _reply_later(self, pipe_id: int, source: bytes, content: bytes) -> bool:
        waiting = self._waiting.get(pipe_id)
        if waiting is None:
            waiting = self._waiting[pipe_id] = deque()
            self._spawn(self._send_waiting, pipe_id, waiting)
        elif len(waiting) >= _MAX_WAITING:
            self.socket.close_pipe(pipe_id, "the peer asks and does not read the answers")
            self._seam.count_drop("peer gone")
            return False
        waiting.append((source, content))
        return True

    def _send_waiting(self, pipe_id: int, waiting: deque[tuple[bytes, bytes]]) -> None:
        """Send what waits for one pipe (a greenlet for each pipe that is held up)."""
        reason = "closed"
        try:
            while waiting:
                self.socket.send_to(*waiting[0])
                waiting.popleft()
        except BrokenPath:
            reason = "peer gone"
        except (Closed, ForkedSocketError):
            pass
        finally:
            for _ in waiting:
                self._seam.count_drop(reason)
            del self._waiting[pipe_id]
            if self._progress is not None:
                self._progress.set()

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """Take no more questions, and let those that are being answered get their answers."""
        self._seam.stop_receiving("closed by close()")
        self._progress = Event()
        while self._waiting or self._others_run():
            self._progress.clear()
            if not self._progress.wait(deadline.left()):
                return

    def _others_run(self) -> bool:
        return any(greenlet is not getcurrent() for greenlet in self._running.values())
