"""A stream's connection as programs see it: the methods of a connected socket.

They are those of ``socket.socket`` and do the same, so that code which works on a socket works on a stream:
``http.client``, ``gevent.pywsgi``, your own protocol. Under them is a :class:`~.streamend.StreamEnd`.
"""

from __future__ import annotations

import errno
import io
from copy import copy
from socket import SHUT_RD, SHUT_RDWR, SHUT_WR
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..core.pipes.pipe import Pipe, PipeState
from ..core.pipes.writepipe import LARGE
from ..core.protocolsocket import ProtocolSocket
from ..errors import Closed, StreamClosed, StreamReset, Timeout
from ..loop.waiting import Deadline
from ..loop.yielding import yield_to_loop
from .streamend import MAX_PIECE, EndState, ReaderBuffer, ReceivingState, SendingState, StreamEnd

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["StreamSocket"]

#: After this number of reads without a wait a greenlet lets others run.
_MAX_READS = 256
#: Bytes in one read that make it count as one more.
_READ_SIZE = 4096

_SHUT, _GRANTED = SendingState.SHUT, SendingState.GRANTED
_AT_END = (ReceivingState.READ_SHUT, ReceivingState.ENDED)


class StreamSocket:
    """One end of a stream, with the methods of a socket. They do what a socket's do, except where they say otherwise.

    Any number of greenlets may read and write at the same time. A ``gevent.Timeout`` or a kill that ends a call loses
    nothing; ``sendall`` has then sent a part, as with a socket. It has no descriptor, so ``select`` cannot wait for it,
    and only :meth:`close` closes it.

    Errors are ``OSError`` as well: :class:`~gmultisocket.errors.Timeout` is a ``TimeoutError``,
    :class:`~gmultisocket.errors.StreamReset` a ``ConnectionResetError``, and
    :class:`~gmultisocket.errors.StreamClosed` a ``BrokenPipeError``.

    Source: protocol/stream/stream.go of the Go code, whose connections have no end of data.
    """

    __slots__ = ("__weakref__", "_answer_timeout", "_close_requested", "_core", "_end", "_files", "_reads", "_timeout")

    def __init__(self, end: StreamEnd, core: ProtocolSocket, answer_timeout: float) -> None:
        self._end = end
        self._core = core
        #: Seconds to wait for the answer to a keepalive, which shows whether the peer knows credit.
        self._answer_timeout = answer_timeout
        self._timeout: float | None = None
        self._reads = 0
        #: Open files that :meth:`makefile` has made. Closing the last one closes this end, if ``close()`` was called.
        self._files = 0
        self._close_requested = False

    def __repr__(self) -> str:
        state = "reset" if self._end.error is not None else self._end.state.value
        return f"<StreamSocket {self._end.id.hex()} {state} to {self.peer_address}>"

    def __enter__(self) -> StreamSocket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pipe(self) -> Pipe:
        """The pipe that it goes by."""
        assert self._end.pipe is not None
        return self._end.pipe

    @property
    def peer_address(self) -> str:
        """The address at the other end of the pipe: the peer's, or that of the first switch on the way to it."""
        return self.pipe.peer_address

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._end.state is EndState.CLOSED

    @property
    def knows_end(self) -> bool:
        """Whether the other end has shown that it understands the end of data. A Go program does not."""
        return self._end.sending.knows_credit

    # Timeouts

    def settimeout(self, timeout: float | None) -> None:
        """Set how long a call may block, in seconds; None without limit. With 0 calls raise Timeout at once."""
        if timeout is not None and timeout < 0:
            raise ValueError("a timeout is not negative")
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the timeout that :meth:`settimeout` has set."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Do ``settimeout(None)`` if true, else ``settimeout(0.0)``."""
        self._timeout = None if flag else 0.0

    # Receiving

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Block until bytes come, and return at most ``size`` of them; ``b""`` is the end of data.

        Raises:
            Timeout: none came in time.
            StreamReset: the other end has closed or died without an end of data. All that it had sent was received
                before.
            StreamClosed: this end or its Stream was closed.
        """
        if flags:
            raise _flags_error()
        if size < 0:
            raise ValueError("a size is not negative")
        self._wait_readable(size)
        data = self._end.receiving.buffer.take(size)
        if data:
            self._end.was_read(len(data))
        return data

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Block until bytes come, and put at most ``nbytes`` of them (0: as many as fit) into a buffer.

        Args:
            buffer: bytes-like and writable. What lies behind the bytes that have come may change as well.
            nbytes: see above.
            flags: must be 0.

        Returns:
            How many; 0 is the end of data. Raises as :meth:`recv` does.
        """
        if flags:
            raise _flags_error()
        # Every view is released here: the traceback of an error may keep others alive.
        with memoryview(buffer) as view, view.cast("B") as whole, whole[: nbytes or None] as part:
            if part.readonly:
                raise TypeError(f"a buffer to be written to is needed, not {type(buffer).__name__}")
            size = len(part)
            receiving = self._end.receiving
            if size < LARGE or receiving.buffer.size or receiving.reader_buffer is not None:
                self._wait_readable(size)
                count = receiving.buffer.take_into(part)
            else:
                count = self._recv_in_place(part)
        if count:
            self._end.was_read(count)
        return count

    def _recv_in_place(self, view: memoryview) -> int:
        """Block until bytes come, and have large pieces read directly into a buffer."""
        end = self._end
        receiving = end.receiving
        lent = ReaderBuffer(receiving, view)
        try:
            if self._reads < _MAX_READS and not receiving.readers.waiters and end.pipe is not None:
                # What has come can be had without a switch of greenlets.
                self._core.check()
                self._core.read_now(end.pipe, lent)
                self._reads += 1 + lent.size // _READ_SIZE
            if not lent.size:
                self._wait_readable(len(view), lent)
            return lent.take() or receiving.buffer.take_into(view)
        finally:
            lent.end()

    def _wait_readable(self, size: int, lent: ReaderBuffer | None = None) -> None:
        """Block until there is something to read, perhaps in a buffer that was lent, or the end of data."""
        self._core.check()
        self._reads += 1
        if self._reads > _MAX_READS:
            self._reads = 0
            yield_to_loop()
        end = self._end
        receiving = end.receiving
        other = receiving.reader_buffer
        if other is not None and other is not lent and other.size:
            # What has come is for the one who asks first.
            other.end()
        if receiving.buffer.size:
            return
        deadline = Deadline(self._timeout)
        while not receiving.buffer.size and not (lent is not None and lent.size):
            if end.state is EndState.CLOSED:
                raise StreamClosed(errno.EBADF, "close() was called")
            if receiving.state in _AT_END or not size:
                return
            if end.error is not None:
                raise copy(end.error)
            self._reads = 0
            if not receiving.readers.wait(deadline.left()):
                raise Timeout("recv", self._timeout)

    # Sending

    def send(self, data: Buffer, flags: int = 0) -> int:
        """Block until some of the data can be sent, and return the number of bytes sent.

        Args:
            data: bytes-like.
            flags: must be 0.

        Raises:
            Timeout: none in time.
            StreamReset: the other end has gone, or takes no more.
            StreamClosed: this end or its Stream was closed, or this end was shut down for writing.
        """
        if flags:
            raise _flags_error()
        with memoryview(data) as view, view.cast("B") as whole:
            return self._send_now(whole) or self._send(whole, Deadline(self._timeout))

    def sendall(self, data: Buffer, flags: int = 0) -> None:
        """Block until all of the data is sent.

        Args:
            data: bytes-like.
            flags: must be 0.

        Raises:
            Timeout, StreamReset, StreamClosed: as for :meth:`send`. A part may have been sent.
        """
        if flags:
            raise _flags_error()
        with memoryview(data) as view, view.cast("B") as whole:
            sent = self._send_now(whole)
            if sent and sent == len(whole):
                return
            deadline = Deadline(self._timeout)
            sent = sent or self._send(whole, deadline)
            while sent < len(whole):
                sent += self._send(whole[sent:], deadline)

    def _send_now(self, data: memoryview) -> int:
        """Send some of the data if nobody has to wait for that. Return the number of bytes."""
        core, end = self._core, self._end
        core.check()
        credit = end.sending.credit
        if credit <= 0 or not data or end.pipe is None or not core.may_put(end.pipe):
            return 0
        return end.send(data[:credit], min(MAX_PIECE, core.max_content))

    def _send(self, data: memoryview, deadline: Deadline) -> int:
        """Block until some of the data can be sent, send it, and return the number of bytes."""
        self._core.check()
        end = self._end
        sending = end.sending
        while True:
            self._check_writable()
            if not data:
                return 0
            if sending.credit <= 0:
                self._wait_credit(deadline)
                continue
            pipe = self.pipe
            if not self._wait_writable(pipe, deadline):
                if pipe.state is PipeState.OPEN:
                    raise Timeout("send", self._timeout)
                end.fail(StreamReset(errno.ECONNRESET, "its pipe takes no more"))
                continue
            # During the wait others may have sent or closed, and the other end may have reset the stream.
            if sending.credit > 0:
                sent = end.send(data[: sending.credit], min(MAX_PIECE, self._core.max_content))
                if sent:
                    return sent

    def _wait_writable(self, pipe: Pipe, deadline: Deadline) -> bool:
        try:
            return self._core.wait_writable(pipe, deadline.left())
        except Closed as error:
            raise StreamClosed(errno.EBADF, "its Stream was closed") from error

    def _check_writable(self) -> None:
        end = self._end
        if end.state is EndState.CLOSED:
            raise StreamClosed(errno.EBADF, "close() was called")
        if end.error is not None:
            raise copy(end.error)
        if end.sending.state is _SHUT:
            raise StreamClosed(errno.EPIPE, "it was shut down for writing")

    def _wait_credit(self, deadline: Deadline) -> None:
        """Block until the peer gives credit, or has had the time to show that it knows credit, and has not."""
        sending = self._end.sending
        left = deadline.left()
        if sending.state is _GRANTED:
            if not sending.writers.wait(left):
                raise Timeout("send", self._timeout)
            return
        self._end.ask_credit()
        if sending.writers.wait(self._answer_timeout if left is None else min(left, self._answer_timeout)):
            return
        if left is not None and left <= self._answer_timeout:
            raise Timeout("send", self._timeout)
        if sending.state is not _GRANTED:
            sending.lift_limit()

    # Files

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Return a file that reads from or writes to the connection, as ``socket.makefile`` does.

        The connection closes when :meth:`close` was called and all such files are closed.
        """
        if not set(mode) <= set("rwb"):
            raise ValueError(f"invalid mode {mode!r}: only r, w and b are allowed")
        writing = "w" in mode
        reading = "r" in mode or not writing
        if buffering == 0 and "b" not in mode:
            raise ValueError("a file without a buffer is binary")
        raw = _File(self, reading, writing)
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        buffer: Any
        if reading and writing:
            buffer = io.BufferedRWPair(raw, raw, size)
        else:
            buffer = io.BufferedReader(raw, size) if reading else io.BufferedWriter(raw, size)
        return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

    def _file_opened(self) -> None:
        self._files += 1

    def _file_closed(self) -> None:
        self._files -= 1
        if self._close_requested and not self._files:
            self._end.close()

    # Closing

    def shutdown(self, how: int) -> None:
        """End one direction, or both: SHUT_WR tells the other end, SHUT_RD drops what it sends. Does not block."""
        self._core.check()
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            raise ValueError("how is SHUT_RD, SHUT_WR or SHUT_RDWR")
        if self.closed:
            raise StreamClosed(errno.EBADF, "close() was called")
        if how != SHUT_WR:
            self._end.shut_read()
        if how != SHUT_RD:
            self._end.shut_write()

    def close(self) -> None:
        """Close this end. Does not block; what was sent still arrives. May be repeated.

        The other end reads what was sent, and then the end of data. What it has sent and this end has not read is lost,
        and so is what it sends from now on; it gets a StreamReset error.
        """
        self._core.check()
        self._close_requested = True
        if not self._files:
            self._end.close()

    def abort(self) -> None:
        """Close this end so that the other end gets an error instead of an end of data. Does not block."""
        self._core.check()
        self._close_requested = True
        self._end.close(abort=True)


def _flags_error() -> ValueError:
    return ValueError("flags are for the kernel's sockets: a stream's connection has none")


class _File(io.RawIOBase):
    """The unbuffered file under those that ``makefile`` returns."""

    def __init__(self, connection: StreamSocket, reading: bool, writing: bool) -> None:
        super().__init__()
        self._connection = connection
        self._reading = reading
        self._writing = writing
        connection._file_opened()

    def readable(self) -> bool:
        return self._reading

    def writable(self) -> bool:
        return self._writing

    def readinto(self, buffer: Buffer) -> int:
        self._check()
        return self._connection.recv_into(buffer)

    def write(self, data: Buffer) -> int:
        self._check()
        return self._connection.send(data)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection._file_closed()
