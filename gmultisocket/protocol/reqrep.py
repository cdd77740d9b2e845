"""Request and reply: a Req sends a request, and one of the Reps that it is connected to replies.

* Who talks to whom: any number of Reqs with any number of Reps, directly or through switches. Each request goes to one
  Rep, fairly among those that can take it; the reply comes back the way that the request went.
* On the wire: a request is a 4-byte id (chosen by the Req at random) and the payload, sent to one; its reply is the
  same 4 bytes and the payload, sent to the request's source.
  If the handler of the Rep fails, the Rep sends an internal message to the request's source instead: the byte 0x10, the
  4 bytes, and maybe a text. Go programs drop it unread, and their requests time out.
* What is lost, and when: nothing silently. A request that has not left when its pipe closes goes to another Rep, as if
  it had never been sent to the first. A request that has left may have been executed. If the pipe closes then, the
  request fails at once with PeerGone; or, if it was made with ``retry``, it is sent to another Rep, and so may be
  *executed twice*. Use ``retry`` only for requests that may be. Through switches this pipe is the one to the first
  switch; a Rep that dies behind a switch is noticed only by the timeout.

A Rep that hangs would let its share of the requests time out for ever. So when a request times out, and nothing has
come by its pipe since it was sent, that pipe gets no more requests while there are others, except for a probe now and
then, until something comes by it. See :mod:`~gmultisocket.protocol.suspects`.

The reply to a request that timed out or was cancelled is dropped and counted (``late``). Other requests are not
affected. If the request is queued for a Rep at that time, it may still be executed; it is withdrawn only while it waits
for any Rep at all.

Source: the former protocol package of the Go code, where a socket waits for one reply at a time.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Literal

import gevent
from gevent import get_hub

from .. import options as opts
from ..core.pipes.pipe import Pipe
from ..errors import Closed, HandlerFailed, PeerGone, Timeout, printable
from ..loop.waiting import Deadline, WaitList
from ..options import OptionValues
from ..wire import SEND_TYPE_MASK, TO_ONE, Message
from .answering import FAILED, MAX_WHY, Answerer, Handler, ReceivedRequest
from .base import ProtocolBase
from .ids import ID_SIZE, Quarantine, new_id, request_ids
from .suspects import Suspects

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Handler", "ReceivedRequest", "Rep", "Req", "Request"]

#: Makes a Message faster than ``Message()`` does.
_new = tuple.__new__

#: Seconds that a request may take by default, as in the Go code.
DEFAULT_TIMEOUT = 16.0


class _State(Enum):
    """The states of a request: ASKED, and five ways in which it ends."""

    ASKED = "asked"
    REPLIED = "replied"
    FAILED = "failed"
    GONE = "gone"
    CANCELLED = "cancelled"
    CLOSED = "closed"


_ASKED = _State.ASKED


class Request:
    """A request in flight, as ``Req.request_async`` returns it.

    Cancel a request that nobody waits for any more: until then its Req remembers it.
    """

    __slots__ = (
        "_content",
        "_overdue",
        "_pipe_id",
        "_reason",
        "_received",
        "_reply",
        "_req",
        "_retries",
        "_state",
        "_waiters",
    )

    def __init__(self, req: Req, content: bytes, retries: int) -> None:
        self._req = req
        #: What is sent: the id, and the payload.
        self._content = content
        self._retries = retries
        self._pipe_id = 0
        #: How many messages had come by that pipe when the request was given to it.
        self._received = 0
        #: Whether somebody has waited for the reply too long.
        self._overdue = False
        self._state = _ASKED
        self._reply = b""
        self._reason = ""
        self._waiters: WaitList | None = None

    def __repr__(self) -> str:
        return f"<Request {self.id} {self._state.value}>"

    @property
    def id(self) -> str:
        """8 hexadecimal digits, the same as at the peer that answers: for logs."""
        return self._content[:ID_SIZE].hex()

    @property
    def done(self) -> bool:
        """Whether it has a reply, has failed, or was cancelled."""
        return self._state is not _ASKED

    def get(self, timeout: float | None = None) -> bytes:
        """Return the reply. Blocks until it has come; may be called by several greenlets and more than once.

        Args:
            timeout: seconds to wait; None without limit. The request goes on after a timeout.

        Raises:
            Timeout: no reply yet.
            HandlerFailed: the handler of the Rep failed.
            PeerGone: the Rep that the request went to has gone, and so have those that ``retry`` asked.
            Closed: the Req was closed, or the request cancelled.
        """
        if self._state is _ASKED:
            self._req._core.check()
            if self._waiters is None:
                # A condition that referred to this request would make a cycle for the garbage collector.
                self._waiters = WaitList(self._req._hub)
            try:
                self._overdue = not self._waiters.wait(timeout)
            except gevent.Timeout:
                self._overdue = True
                raise
        # A match would look up each of these; the first is the usual case.
        state = self._state
        if state is _State.REPLIED:
            return self._reply
        if state is _ASKED:
            raise Timeout("request", timeout)
        if state is _State.GONE:
            raise PeerGone(self._reason)
        if state is _State.FAILED:
            raise HandlerFailed(self._reason)
        raise Closed("request" if state is _State.CANCELLED else "Req", self._reason)

    def cancel(self) -> bool:
        """Cancel the request: its reply will be dropped. Return False if it had ended already."""
        self._req._core.check()
        return self._req._cancel(self)

    def _end(self, state: _State, reply: bytes = b"", reason: str = "") -> None:
        self._state = state
        self._reply = reply
        self._reason = reason
        if self._waiters is not None:
            self._waiters.wake_all()


class Req(ProtocolBase):
    """Sends requests. Any number of greenlets may have any number of requests in flight at once.

    Args:
        options: of the socket underneath.
    """

    # A request that a queue drops would get no reply, so nothing may be dropped.
    fixed = {"socket.no_recv": False, "socket.no_send": False, "socket.send_overflow": "block"}
    instead = {"send": "request()", "recv": "request()"}
    families = ("protocol.reqrep",)

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._hub = get_hub()
        self._ids = request_ids()
        #: Ids of cancelled requests, whose replies may still come.
        self._cancelled = Quarantine()
        #: All requests that have not ended, by id.
        self._asked: dict[bytes, Request] = {}
        #: Those that went to a Rep or are queued for it, by pipe id, then by id. Only this pipe may bring the reply.
        self._by_pipe: dict[int, dict[bytes, Request]] = {}
        self._suspects = Suspects(self._core, lambda: self.options.get(opts.protocol.reqrep.probe_interval))
        self._core.on_message(self._on_message)
        self._core.on_internal(self._on_internal)
        self._core.on_pipe(self._on_pipe)
        self._core.on_requeue(self._on_requeue)

    @property
    def in_flight(self) -> int:
        """How many requests have not ended."""
        return len(self._asked)

    def _own_stats(self) -> dict[str, int]:
        return {"in_flight": self.in_flight}

    # Asking

    def request(self, content: Buffer, timeout: float | None = DEFAULT_TIMEOUT, *, retry: int = 0) -> bytes:
        """Send a request to one Rep and return the reply. Blocks until the reply has come.

        Args:
            content: bytes-like.
            timeout: seconds for everything, including the wait for a Rep that can take the request; None without limit.
            retry: how many more Reps may be asked, one after the other, when a Rep goes away without a reply; see the
                module's docstring.

        Raises:
            Timeout: no reply in time, or no Rep. The request is cancelled.
            HandlerFailed: the handler of the Rep failed. It may have done a part of its work, so ``retry`` asks no
                other Rep.
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
                self._cancel(request)
        except Timeout:
            raise Timeout("request", timeout) from None

    def request_async(self, content: Buffer, timeout: float | None = DEFAULT_TIMEOUT, *, retry: int = 0) -> Request:
        """Send a request to one Rep, and return it without waiting for the reply.

        Blocks while no Rep can take the request, as ``Socket.send`` does.

        Args:
            content: bytes-like.
            timeout: seconds to wait for a Rep that can take it.
            retry: as for :meth:`request`.

        Raises:
            Timeout: no Rep could take it in time. It was not sent.
            NoPeers, MessageTooLong, Closed: as for :meth:`request`.
        """
        core = self._core
        request_id = new_id(self._ids, self._asked, self._cancelled)
        if type(content) is not bytes:
            content = core.check_content(content)
        content = core.check_content(request_id + content)
        request = self._asked[request_id] = Request(self, content, retry)
        try:
            pipe = self._suspects.probe() if self._suspects.pipes and not self._closing else None
            if pipe is None:
                pipe = core.next_pipe(timeout)
        except BaseException:
            self._cancel(request)
            raise
        assert pipe is not None, "socket.send_overflow is fixed"
        # First, as the pipe may break and close during put(); nothing else runs in between.
        self._assign(request, pipe)
        core.put(pipe, _new(Message, (TO_ONE, 0, b"", b"", content, 0)))
        return request

    def _assign(self, request: Request, pipe: Pipe) -> None:
        """Record that a request goes to a pipe."""
        requests = self._by_pipe.get(pipe.id)
        if requests is None:
            requests = self._by_pipe[pipe.id] = {}
        requests[request._content[:ID_SIZE]] = request
        request._pipe_id = pipe.id
        request._received = pipe.messages_received

    def _unassign(self, request: Request) -> None:
        requests = self._by_pipe.get(request._pipe_id)
        if requests is not None:
            requests.pop(request._content[:ID_SIZE], None)
        request._pipe_id = 0

    def _cancel(self, request: Request) -> bool:
        """Cancel a request, unless it has ended."""
        if request.done:
            return False
        del self._asked[request._content[:ID_SIZE]]
        if request._pipe_id:
            if request._overdue:
                self._suspects.timed_out(self.pipes.get(request._pipe_id), request._received)
            self._cancelled.add(request._content[:ID_SIZE])
        self._unassign(request)
        request._end(_State.CANCELLED, reason="it was cancelled")
        return True

    # Callbacks of the core; nothing here blocks

    def _on_message(self, message: Message) -> bool:
        content = message.content
        if message.flags & ~SEND_TYPE_MASK or len(content) < ID_SIZE:
            self._drop(message, "garbage")
            return True
        if self._suspects.pipes:
            self._suspects.answered(message.pipe_id)
        request_id = content[:ID_SIZE]
        requests = self._by_pipe.get(message.pipe_id)
        request = requests.pop(request_id, None) if requests is not None else None
        if request is None:
            # A peer may not answer a request that went to another one.
            self._drop(message, "garbage" if request_id in self._asked else "late")
            self._cancelled.discard(request_id)
            return True
        del self._asked[request_id]
        request._end(_State.REPLIED, content[ID_SIZE:])
        return True

    def _on_internal(self, message: Message) -> bool:
        content = message.content
        if message.destination or content[:1] != FAILED or len(content) < 1 + ID_SIZE:
            return False
        if self._suspects.pipes:
            self._suspects.answered(message.pipe_id)
        request_id = content[1 : 1 + ID_SIZE]
        request = self._by_pipe.get(message.pipe_id, {}).pop(request_id, None)
        if request is None:
            # As with a reply: it failed too late, or a peer makes it up.
            self._drop(message, "garbage" if request_id in self._asked else "late")
            self._cancelled.discard(request_id)
            return True
        del self._asked[request_id]
        why = content[1 + ID_SIZE :]
        request._end(_State.FAILED, reason=printable(why.decode("ascii", "replace"))[:MAX_WHY])
        return True

    def _on_requeue(self, message: Message, pipe: Pipe | None) -> bool:
        request = self._asked.get(message.content[:ID_SIZE])
        if request is None:
            return False
        self._unassign(request)
        if pipe is not None:
            self._assign(request, pipe)
        return True

    def _on_pipe(self, kind: Literal["add", "remove"], pipe: Pipe) -> None:
        self._suspects.on_pipe(kind, pipe)
        if kind == "remove":
            for request in self._by_pipe.pop(pipe.id, {}).values():
                if request._retries:
                    request._retries -= 1
                    self._core.requeue(request._content)
                else:
                    del self._asked[request._content[:ID_SIZE]]
                    request._end(_State.GONE, reason=pipe.reason)

    # Closing

    def _stop(self, deadline: Deadline) -> None:
        """End all requests that are in flight. Those that are queued for a Rep still leave."""
        requests = list(self._asked.values())
        self._asked.clear()
        self._by_pipe.clear()
        for request in requests:
            request._end(_State.CLOSED, reason="closed by close()")


class Rep(Answerer):
    """Answers requests, with a handler or by iteration::

        with Rep(handler, concurrency=10) as rep:
            rep.listen("tcp://127.0.0.1:30001")
            rep.serve_forever()

        for request in rep:
            request.reply(request.content.upper())

    A handler gets the request's payload and returns the reply's. If it raises an exception, that is logged, the
    request fails at once with HandlerFailed, and the next request is served. With ``protocol.reqrep.send_errors`` the
    Req also gets the text of the exception. If a handler returns None, the request gets no reply and times out.

    Replies never delay other requests. Those to a peer that reads slowly wait in an outbox, for each pipe up to
    ``protocol.answers.max_waiting`` (1024) and ``protocol.answers.max_waiting_bytes`` (16 MiB). From half of it on, the
    peer's further requests wait as well; if too many do, its pipe is closed. A reply to a peer that has gone is dropped
    and counted (``peer gone``).

    ``close()`` takes no more requests. It drops those that have come and are not being answered, so that their peers
    soon get a PeerGone error and may ask another Rep. Handlers that run, and bodies of ``for`` loops, have ``linger``
    seconds to end; handlers are then killed.

    Args:
        handler: takes a payload and returns the reply's, bytes-like; may block.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    instead = {"send": "request.reply()"}
    families = ("protocol.answers", "protocol.reqrep")
    _tells_failures = True
