"""Request and reply: a Req asks, one of the Reps that it is connected to answers.

* Who talks to whom: any number of Reqs with any number of Reps, directly or through switches. Each request goes to one
  Rep, fairly among those that can take it; the reply comes back the way the request went.
* On the wire: a request is a 4-byte id (big-endian, chosen by the Req) and the payload, sent to one; its reply is the
  same 4 bytes and the payload, sent to the request's source.
* What is lost, and when: nothing silently. A request whose pipe closes before it left goes to another Rep, as if it had
  never been with the first. Once it has left, its Rep may have acted upon it: when the pipe closes then, it fails at
  once with PeerGone, or, if it was made with ``retry``, is sent to another Rep, and so may be *executed twice*. Use
  ``retry`` for requests that may be. Through switches the pipe is that to the first switch; a Rep that dies behind one
  is noticed by the timeout.

A request that timed out or was cancelled concerns nobody: its reply, if it comes, is dropped and counted (``late``),
and the requests beside and after it are untouched. If it is queued for a Rep by then it may still be executed; only one
that waits for any Rep at all is withdrawn.

Source: the former protocol package of the Go code, where a socket waits for one reply at a time.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

from gevent import get_hub

from ..core.pipe import Pipe
from ..errors import Closed, PeerGone, Timeout
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..wire import SEND_TYPE_MASK, Message
from .answering import Answerer, Handler, Question
from .base import Protocol
from .ids import ID_SIZE, new_id, question_ids

__all__ = ["Handler", "Question", "Rep", "Req", "Request"]

#: Seconds that a request may take unless it says otherwise, as in the Go code.
DEFAULT_TIMEOUT = 16.0


class _State(Enum):
    """Where a request stands."""

    ASKED = "asked"
    REPLIED = "replied"
    GONE = "gone"
    CANCELLED = "cancelled"
    CLOSED = "closed"


_ASKED = _State.ASKED


def _always() -> bool:
    """Say whether those who wait for a request may go on: all are woken at once, when it is decided.

    A condition that knew its request would make a cycle for the garbage collector of each.
    """
    return True


class Request:
    """A request in flight, as ``Req.request_async`` returns it.

    One that nobody waits for any more should be cancelled: until then its Req remembers it.
    """

    __slots__ = ("_content", "_pipe_id", "_reason", "_reply", "_req", "_retries", "_state", "_waiters")

    def __init__(self, req: Req, content: bytes, retries: int) -> None:
        self._req = req
        #: What is sent: the id, and the payload.
        self._content = content
        self._retries = retries
        self._pipe_id = 0
        self._state = _ASKED
        self._reply = b""
        self._reason = ""
        self._waiters: WaitList | None = None

    def __repr__(self) -> str:
        return f"<Request {self._content[:ID_SIZE].hex()} {self._state.value}>"

    @property
    def done(self) -> bool:
        """Whether it is decided: replied to, failed, or cancelled."""
        return self._state is not _ASKED

    def get(self, timeout: float | None = None) -> bytes:
        """Return the reply. Blocks until it is there; may be called by several and more than once.

        Args:
            timeout: seconds to wait; None without limit. When it is over the request goes on.

        Raises:
            Timeout: no reply yet.
            PeerGone: the Rep that the request went to has gone, and so have those that ``retry`` asked.
            Closed: the Req was closed, or the request cancelled.
        """
        if self._state is _ASKED:
            self._req._seam.check()
            if self._waiters is None:
                self._waiters = WaitList(self._req._hub, _always)
            self._waiters.wait(timeout)
        # A match would look up each of these; the first is the usual case.
        state = self._state
        if state is _State.REPLIED:
            return self._reply
        if state is _ASKED:
            raise Timeout("request", timeout)
        if state is _State.GONE:
            raise PeerGone(self._reason)
        raise Closed("request" if state is _State.CANCELLED else "Req", self._reason)

    def cancel(self) -> bool:
        """Give it up: its reply will be dropped. Returns False if it was decided already."""
        self._req._seam.check()
        return self._req._forget(self)

    def _decide(self, state: _State, reply: bytes = b"", reason: str = "") -> None:
        self._state = state
        self._reply = reply
        self._reason = reason
        if self._waiters is not None:
            self._waiters.wake_all()


class Req(Protocol):
    """Asks. Any number of greenlets may have any number of requests in flight at once.

    Args:
        options: of the socket underneath.
    """

    # What a queue drops would be waited for in vain.
    fixed = {"socket.no_recv": False, "socket.no_send": False, "socket.send_overflow": "block"}
    instead = {"send": "request()", "recv": "request()"}

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        self._ids = question_ids()
        #: All requests that are not decided, by id.
        self._asked: dict[bytes, Request] = {}
        #: By pipe, then by id: those that are with a Rep or queued for it. Only there may their replies come from.
        self._at: dict[int, dict[bytes, Request]] = {}
        self._seam.on_message(self._received)
        self._seam.on_pipe(self._pipe_changed)
        self._seam.on_move(self._moved)

    @property
    def in_flight(self) -> int:
        """How many requests are not decided."""
        return len(self._asked)

    # Asking

    def request(self, content: bytes, timeout: float | None = DEFAULT_TIMEOUT, *, retry: int = 0) -> bytes:
        """Ask one Rep and return its reply. Blocks until it is there.

        Args:
            content: bytes-like.
            timeout: seconds for all of it, waiting for a Rep that can take the request included; None without limit.
            retry: how many more Reps may be asked when one goes away without an answer; see on top.

        Raises:
            Timeout: no reply in time, or no Rep. The request is given up.
            PeerGone: the Rep that the request went to has gone.
            NoPeers: nobody is connected, and ``socket.fail_no_peers`` is set.
            MessageTooLong: with its 4 bytes of id it is over ``socket.max_send_content_length``.
            Closed: the Req is closed.
        """
        deadline = Deadline(timeout)
        try:
            request = self.request_async(content, timeout, retry=retry)
            try:
                return request.get(deadline.left())
            finally:
                self._forget(request)
        except Timeout:
            raise Timeout("request", timeout) from None

    def request_async(self, content: bytes, timeout: float | None = DEFAULT_TIMEOUT, *, retry: int = 0) -> Request:
        """Ask one Rep, and return the request without waiting for the reply.

        Blocks while no Rep can take the request, as ``Socket.send`` does.

        Args:
            content: bytes-like.
            timeout: seconds to wait for a Rep that can take it.
            retry: as for :meth:`request`.

        Raises:
            Timeout: no Rep could take it in time. It was not sent.
            NoPeers, MessageTooLong, Closed: as for :meth:`request`.
        """
        question_id = new_id(self._ids, self._asked)
        if type(content) is not bytes:
            content = b"".join((content,))
        request = Request(self, question_id + content, retry)
        self._asked[question_id] = request
        try:
            self._seam.send_one(request._content, timeout, lambda pipe: self._place(request, pipe))
        except BaseException:
            self._forget(request)
            raise
        return request

    def _place(self, request: Request, pipe: Pipe) -> None:
        """Note that a pipe is about to get a request."""
        requests = self._at.get(pipe.id)
        if requests is None:
            requests = self._at[pipe.id] = {}
        requests[request._content[:ID_SIZE]] = request
        request._pipe_id = pipe.id

    def _unplace(self, request: Request) -> None:
        requests = self._at.get(request._pipe_id)
        if requests is not None:
            requests.pop(request._content[:ID_SIZE], None)
        request._pipe_id = 0

    def _forget(self, request: Request) -> bool:
        """Give a request up, if it is not decided."""
        if request.done:
            return False
        del self._asked[request._content[:ID_SIZE]]
        self._unplace(request)
        request._decide(_State.CANCELLED, reason="it was cancelled")
        return True

    # What the seam shows; nothing here blocks

    def _received(self, message: Message) -> bool:
        content = message.content
        if message.flags & ~SEND_TYPE_MASK or len(content) < ID_SIZE:
            self._drop(message, "garbage")
            return True
        question_id = content[:ID_SIZE]
        requests = self._at.get(message.pipe_id)
        request = requests.pop(question_id, None) if requests is not None else None
        if request is None:
            # One that is asked of somebody else is no business of this peer's.
            self._drop(message, "garbage" if question_id in self._asked else "late")
            return True
        del self._asked[question_id]
        request._decide(_State.REPLIED, content[ID_SIZE:])
        return True

    def _moved(self, message: Message, pipe: Pipe | None) -> bool:
        request = self._asked.get(message.content[:ID_SIZE])
        if request is None:
            return False
        self._unplace(request)
        if pipe is not None:
            self._place(request, pipe)
        return True

    def _pipe_changed(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        if kind == "remove":
            for request in self._at.pop(pipe.id, {}).values():
                if request._retries:
                    request._retries -= 1
                    self._seam.send_again(request._content)
                else:
                    del self._asked[request._content[:ID_SIZE]]
                    request._decide(_State.GONE, reason=pipe.reason)

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """Decide what is in flight: nobody is left to hear of it. What is queued for a Rep still leaves."""
        requests = list(self._asked.values())
        self._asked.clear()
        self._at.clear()
        for request in requests:
            request._decide(_State.CLOSED, reason="closed by close()")


class Rep(Answerer):
    """Answers requests, with a handler or by iteration::

        with Rep(handler, concurrency=10) as rep:
            rep.listen("tcp://127.0.0.1:30001")
            rep.serve_forever()

        for request in rep:
            request.reply(request.content.upper())

    A handler gets the request's payload and returns the reply's. One that raises answers nothing: that is logged, the
    asker's request times out, and the next one is served. So it is with None, without a log entry.

    A reply is never waited for by other requests: one whose asker does not read stays apart, up to 1024 for each pipe,
    and then that pipe is closed. A reply whose asker has gone is dropped and counted (``peer gone``).

    ``close()`` takes no more requests; what has come and is not being answered is dropped, so that its asker hears
    PeerGone soon and may ask another. Handlers that run, and bodies of ``for`` loops, have ``linger`` seconds to end;
    handlers are then killed.

    Args:
        handler: takes and returns a payload; may block.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    instead = {"send": "request.reply()"}
