"""Answering: the half that Rep and Respondent have in common, because their wire format is the same.

A request, or a survey, is a 4-byte id and a payload. Its answer goes to the request's source and begins with the same 4
bytes. Handlers run in worker greenlets. Each worker takes a request, answers it and takes the next one. When all
workers are busy, another one is started, up to the number allowed.

A peer that does not read its answers delays nobody else: its answers wait in an outbox. While the outbox is half full,
in number or in bytes, the peer's further requests are kept unanswered, as they are mostly smaller. They are answered in
their order when the peer has read. When too many of them wait, or too many answers, the pipe is closed. So a peer that
reads slowly is served at its own pace, and one that does not read costs a bounded amount of memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import gevent
from gevent import GreenletExit, getcurrent
from gevent.event import Event

from .. import options as opts
from ..core.pipes.pipe import Pipe, PipeState
from ..errors import BrokenPath, Closed, ForkedSocketError, MessageDropped, NotSupported, Timeout, snippet
from ..log import get_logger
from ..loop.waiting import Deadline
from ..options import OptionValues
from ..wire import INTERNAL, SEND_TYPE_MASK, TO_DEST, Message, first_id
from .base import ProtocolBase
from .ids import ID_SIZE
from .outbox import Outbox

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["FAILED", "MAX_WHY", "Answerer", "Handler", "ReceivedRequest"]

logger = get_logger("gmultisocket.protocol")

#: Takes a request's payload; returns the answer's, or None to leave the request unanswered.
Handler = Callable[[bytes], "Buffer | None"]

#: The first byte of the internal message that says that a request has failed. The request's id follows, then maybe a
#: text that says why.
FAILED: Final = b"\x10"
#: Characters of that text.
MAX_WHY: Final = 200

_CLOSE_REASON: Final = "the peer asks and does not read the answers"
#: How long a request waits for a handler that nobody has started, in seconds, until that is logged.
_START_PATIENCE: Final = 1.0
#: What a request takes in memory besides its content and its source: the objects around them, in bytes.
_OVERHEAD: Final = 256


class _HeldRequests:
    """The requests of one pipe that are answered when the peer has read answers.

    Attributes:
        messages: the requests, oldest first.
        size: the memory that they take, in bytes, about.
        called: whether a message in the receive queue says that the first may be answered now.
    """

    __slots__ = ("called", "messages", "size")

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()
        self.size = 0
        self.called = False

    def add(self, message: Message) -> None:
        """Add the newest request."""
        self.messages.append(message)
        self.size += _size(message)

    def take(self) -> Message:
        """Remove and return the oldest request."""
        message = self.messages.popleft()
        self.size -= _size(message)
        return message


def _size(message: Message) -> int:
    return _OVERHEAD + len(message.content) + len(message.source)


class ReceivedRequest:
    """A request or survey to be answered, as ``recv()`` and iteration return it.

    Attributes:
        content: the payload.
        id: 8 hexadecimal digits, the same as at the peer that asked: for logs.
        source: the path back to the peer that asked, as in ``Message.source``.
        replied: whether it was answered.
    """

    __slots__ = ("_answerer", "_id", "content", "replied", "source")

    def __init__(self, answerer: Answerer, message: Message) -> None:
        self._answerer = answerer
        self._id = message.content[:ID_SIZE]
        self.content = message.content[ID_SIZE:]
        self.source = message.source
        self.replied = False

    @property
    def id(self) -> str:
        return self._id.hex()

    def __repr__(self) -> str:
        return f"<ReceivedRequest {self.id} of {len(self.content)} bytes{' replied' if self.replied else ''}>"

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """The verified facts about the peer that asked, as ``pipe.identity``.

        None if it has gone, or is behind a switch, which cannot vouch for those whose requests it passes on.
        """
        pipe = self._answerer.socket.pipes.get(first_id(self.source)) if len(self.source) == ID_SIZE else None
        return None if pipe is None else pipe.identity

    def reply(self, content: Buffer) -> bool:
        """Send the answer. Never blocks: if the pipe's queue is full, the answer waits in an outbox.

        Args:
            content: bytes-like.

        Returns:
            False if the peer that asked has gone.

        Raises:
            MessageTooLong: nothing was sent; the request may be answered again.
            NotSupported: it was answered already.
            Closed: the socket is closed.
        """
        if self.replied:
            raise NotSupported("a second reply", "a request is answered once")
        if type(content) is not bytes:
            content = self._answerer._core.check_content(content, self.source)
        sent = self._answerer._reply(self.source, self._id + content)
        self.replied = True
        return sent

    def fail(self, why: str = "") -> bool:
        """Tell the Req that the request has failed: it gets HandlerFailed at once. Never blocks.

        Args:
            why: a text for the Req, of at most 200 characters of ASCII; what is over is cut.

        Returns:
            False if the peer that asked has gone.

        Raises:
            NotSupported: it was answered already, or it is a survey.
            Closed: the socket is closed.
        """
        if self.replied:
            raise NotSupported("fail", "a request is answered once")
        sent = self._answerer._fail(self.source, self._id + snippet(why, MAX_WHY).encode())
        self.replied = True
        return sent


class Answerer(ProtocolBase):
    """Answers requests, by a handler or by iteration.

    Args:
        handler: called with each request's payload; returns the answer, bytes-like. It may block. If it returns None,
            the request stays unanswered. Its errors are logged, and the next request is served.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    #: Whether those who ask are told that a handler has failed.
    _tells_failures = False

    def __init__(
        self, handler: Handler | None = None, options: OptionValues | None = None, *, concurrency: int = 1
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency is a number of handlers, at least 1")
        super().__init__(options)
        self._handler = handler
        self._concurrency = concurrency
        self._workers = 0
        #: The requests that are being answered, and the greenlets that answer them.
        self._running: dict[ReceivedRequest, object] = {}
        self._outbox: Outbox = Outbox(
            self._core,
            self._spawn,
            limits=self._outbox_limits,
            close_reason=_CLOSE_REASON,
            count_drops=True,
            on_sent=self._call_held,
        )
        #: By pipe: the requests that are kept until the peer has read. Has no pipe without any.
        self._held: dict[Pipe, _HeldRequests] = {}
        self._core.on_pipe(self._on_pipe)
        self._start_checked = False
        if handler is not None:
            self._core.on_message(self._first_request)
        #: For ``close()``: set when a request is done.
        self._progress: Event | None = None

    @property
    def running(self) -> int:
        """How many requests are being answered now."""
        return len(self._running)

    def _own_stats(self) -> dict[str, int]:
        return {"running": self.running}

    @property
    def current(self) -> ReceivedRequest | None:
        """The request that the calling greenlet answers: in a handler, or in the body of an iteration. None elsewhere.

        For logs. Takes time for each request that is being answered.
        """
        greenlet = getcurrent()
        return next((request for request, runs_in in self._running.items() if runs_in is greenlet), None)

    # By a handler

    def start(self) -> None:
        """Begin to answer with the handler. Does not block; may be repeated.

        Raises:
            NotSupported: there is no handler.
            Closed: it is closed.
        """
        if self._handler is None:
            raise NotSupported("serving", "no handler was given")
        self._check_open()
        if not self._workers:
            self._add_worker()

    def serve_forever(self) -> None:
        """Answer with the handler. Blocks until ``close()`` is called. Raises as :meth:`start` does."""
        self.start()
        self._wait_closed()

    def _first_request(self, message: Message) -> bool:
        """Start to check, at the first message, whether requests wait for a handler that nobody has started."""
        self._core.on_message(None)
        if not self._workers and not self._start_checked:
            self._start_checked = True
            self._spawn(self._check_started)
        return False

    def _check_started(self) -> None:
        """Warn if requests wait for a handler that nobody has started (a greenlet, at most one)."""
        gevent.sleep(_START_PATIENCE)
        if not self._workers and self.socket.queued and not self._closing:
            logger.warning("%r has requests that nobody answers: call its start(), so that its handler gets them", self)

    def _add_worker(self) -> None:
        self._workers += 1
        self._spawn(self._work)

    def _work(self) -> None:
        """Answer one request after the other until the socket closes (the worker greenlets)."""
        ended = False
        try:
            while True:
                request = ReceivedRequest(self, self._next_request(None))
                self._running[request] = getcurrent()
                if len(self._running) == self._workers < self._concurrency:
                    self._add_worker()
                try:
                    self._handle(request)
                finally:
                    self._done(request)
        except (Closed, ForkedSocketError):
            ended = True
        finally:
            self._workers -= 1
            # A worker that was killed, in its handler or later, must end. close() does that as well.
            if not ended and not self._closing:
                self._add_worker()

    def _handle(self, request: ReceivedRequest) -> None:
        """Answer one request. A kill of this greenlet, and what gevent raises in the main greenlet, passes through."""
        assert self._handler is not None
        try:
            content = self._handler(request.content)
            if content is not None:
                request.reply(content)
        # A gevent.Timeout that the handler lets out is the handler's failure and does not end the worker.
        except (Exception, gevent.Timeout) as error:
            if isinstance(error, Closed) and self._closing:
                # The handler took longer than the linger time of close().
                self._core.count_drop("closed")
            else:
                self._handler_failed(request, error)
        except BaseException as error:
            if not self._closing:
                self._handler_failed(request, error)
            raise

    def _handler_failed(self, request: ReceivedRequest, error: BaseException) -> None:
        """Tell the peer that its request has failed, and report the error."""
        if self._tells_failures and not request.replied and not self.closed:
            shown = self.options.get(opts.protocol.reqrep.send_errors)
            request.fail(f"{type(error).__name__}: {error}" if shown else "")
        if isinstance(error, (Exception, gevent.Timeout, GreenletExit)):
            what = f"a handler of a {type(self).__name__} failed"
            self._report(what, error, pipe_id=first_id(request.source), request_id=request.id)

    def _done(self, request: ReceivedRequest) -> None:
        del self._running[request]
        if self._progress is not None:
            self._progress.set()

    # By iteration

    def recv(self, timeout: float | None = None) -> ReceivedRequest:
        """Return the next request. Blocks until there is one.

        Raises:
            Timeout: none came in time.
            NotSupported: there is a handler, which gets the requests.
            Closed: it is closed.
        """
        if self._handler is not None:
            raise NotSupported("recv", "the handler takes what comes")
        return ReceivedRequest(self, self._next_request(timeout))

    def __iter__(self) -> Iterator[ReceivedRequest]:
        """Iterate over requests as they come; ends with ``close()``, which waits for the loop's body."""
        while True:
            try:
                request = self.recv()
            except Closed:
                return
            self._running[request] = getcurrent()
            try:
                yield request
            finally:
                self._done(request)

    # Requests

    def _next_request(self, timeout: float | None) -> Message:
        """Return the next request that may be answered. Blocks and raises as ``Socket.recv_msg`` does."""
        deadline = None if timeout is None else Deadline(timeout)
        while True:
            message = self.socket.recv_msg(timeout)
            if message.flags & ~SEND_TYPE_MASK or len(message.content) < ID_SIZE:
                # No peer's message that arrives here has this flag.
                if message.flags & INTERNAL:
                    held = self._take_held(message.pipe_id)
                    if held is not None:
                        return held
                else:
                    self._drop(message, "garbage")
            elif not (self._outbox.queues or self._held) or not self._hold(message):
                return message
            if deadline is not None:
                timeout = deadline.left()

    def _hold(self, message: Message) -> bool:
        """Keep a request whose peer is behind with reading. Return False if it may be answered now."""
        pipe = self.pipes.get(message.pipe_id)
        if pipe is None:
            return False
        held = self._held.get(pipe)
        if held is None:
            if not self._is_behind(pipe):
                return False
            held = self._held[pipe] = _HeldRequests()
        number, size = self._outbox_limits()
        if len(held.messages) >= number or (size and held.messages and held.size + _size(message) > size):
            self._core.count_drop("peer gone")
            pipe.close(_CLOSE_REASON)
        else:
            held.add(message)
        return True

    def _is_behind(self, pipe: Pipe) -> bool:
        """Return whether so many answers wait for a pipe that no more should be made."""
        queue = self._outbox.queues.get(pipe)
        if queue is None:
            return False
        number, size = self._outbox_limits()
        return 2 * len(queue.messages) >= number or bool(size) and 2 * queue.size >= size

    def _call_held(self, pipe: Pipe) -> None:
        """Wake a greenlet that takes requests, if a pipe with held ones is not behind any more."""
        held = self._held.get(pipe)
        if held is not None and not held.called and not self._is_behind(pipe):
            held.called = True
            self._core.deliver(Message(INTERNAL, pipe_id=pipe.id))

    def _take_held(self, pipe_id: int) -> Message | None:
        """Return the first request that was kept for a pipe, None if there is none, or the pipe is behind again."""
        pipe = self.pipes.get(pipe_id)
        held = self._held.get(pipe) if pipe is not None else None
        if pipe is None or held is None:
            return None
        held.called = False
        if self._is_behind(pipe):
            return None
        message = held.take()
        if held.messages:
            self._call_held(pipe)
        else:
            del self._held[pipe]
        return message

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "remove" and (held := self._held.pop(pipe, None)) is not None:
            for _ in held.messages:
                self._core.count_drop("peer gone")

    # Answers

    def _outbox_limits(self) -> tuple[int, int]:
        answers = opts.protocol.answers
        return self.options.get(answers.max_waiting), self.options.get(answers.max_waiting_bytes)

    def _reply(self, source: bytes, content: bytes) -> bool:
        """Send an answer, or post it if it must wait. Never blocks. Return False if it cannot arrive."""
        if self._outbox.queues and self._must_wait(source):
            self._core.check()
            self._core.check_content(content, source)
            return self._post(source, content)
        try:
            self.socket.send_to(source, content, timeout=0)
        except Timeout:
            return self._post(source, content)
        except BrokenPath:
            self._core.count_drop("peer gone")
            return False
        except MessageDropped:
            # Counted by the pipe: the socket's options say that the message must not wait.
            return False
        return True

    def _must_wait(self, source: bytes) -> bool:
        """Return whether older answers wait for the same pipe, which this one must not overtake."""
        pipe = self.pipes.get(first_id(source))
        return pipe is not None and self._outbox.waiting(pipe) > 0

    def _post(self, source: bytes, content: bytes) -> bool:
        pipe = self.pipes.get(first_id(source))
        if pipe is None:
            self._core.count_drop("peer gone")
            return False
        # With its own key each, no answer replaces another one.
        return self._outbox.post(pipe, object(), Message(TO_DEST, destination=source, content=content))

    def _fail(self, source: bytes, content: bytes) -> bool:
        """Say that a request has failed: at once, or when its pipe is writable. Never blocks.

        Returns:
            False if the peer that asked has gone.
        """
        if not self._tells_failures:
            raise NotSupported("fail", "the Surveyor does not wait for each single answer")
        self._core.check()
        if self.closed or self.socket.closed:
            raise Closed(type(self).__name__)
        pipe = self.pipes.get(first_id(source))
        if pipe is None or pipe.state is not PipeState.OPEN:
            self._core.count_drop("peer gone")
            return False
        message = Message(INTERNAL | TO_DEST, destination=source, content=FAILED + content)
        if pipe.full or self._outbox.waiting(pipe):
            return self._outbox.post(pipe, object(), message)
        self._core.put(pipe, message)
        return True

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """Stop taking requests, and block until the handlers that run have ended."""
        self._core.stop_receiving("closed by close()")
        for held in self._held.values():
            for _ in held.messages:
                self._core.count_drop("closed")
        self._held.clear()
        self._progress = Event()
        while self._others_run():
            self._progress.clear()
            if not self._progress.wait(deadline.left()):
                return
        self._outbox.flush(deadline.left())

    def _others_run(self) -> bool:
        return any(greenlet is not getcurrent() for greenlet in self._running.values())
