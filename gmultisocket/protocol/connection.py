"""A stream's connection as programs see it: the methods of a connected socket.

They are those of ``socket.socket`` and do what theirs do, so that what works on a socket works on a stream:
``http.client``, ``gevent.pywsgi``, a protocol of one's own. What lies under them is a :class:`~.link.Link`.
"""

from __future__ import annotations

import errno
import io
from copy import copy
from socket import SHUT_RD, SHUT_RDWR, SHUT_WR
from types import TracebackType
from typing import Any

import gevent

from ..core.pipe import Pipe, PipeState
from ..core.seam import Seam
from ..errors import StreamClosed, StreamReset, Timeout
from ..loop.waiting import Deadline
from .link import PIECE, Link, LinkState

__all__ = ["Connection"]

#: After so many reads without a wait a greenlet lets others run.
_READS = 256


class Connection:
    """One end of a stream. What is said of a socket's methods holds for these, except where they say otherwise.

    Any number of greenlets may read and write at the same time. A ``gevent.Timeout`` or a kill that ends a call loses
    nothing; ``sendall`` has then sent a part, as with a socket. It has no descriptor, so nothing can ``select`` it, and
    nothing but :meth:`close` closes it.

    Errors are ``OSError`` as well: :class:`~gmultisocket.errors.Timeout` is a ``TimeoutError``,
    :class:`~gmultisocket.errors.StreamReset` a ``ConnectionResetError``, and
    :class:`~gmultisocket.errors.StreamClosed` a ``BrokenPipeError``.

    Source: protocol/stream/stream.go of the Go code, whose connections know no end of data.
    """

    __slots__ = ("__weakref__", "_close_asked", "_files", "_link", "_patience", "_reads", "_seam", "_timeout")

    def __init__(self, link: Link, seam: Seam, patience: float) -> None:
        self._link = link
        self._seam = seam
        self._patience = patience
        self._timeout: float | None = None
        self._reads = 0
        #: Open files that :meth:`makefile` has made; the last one to be closed closes, if ``close()`` was called.
        self._files = 0
        self._close_asked = False

    def __repr__(self) -> str:
        state = "reset" if self._link.error is not None else self._link.state.value
        return f"<Connection {self._link.id.hex()} {state} to {self.peer_address}>"

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def pipe(self) -> Pipe:
        """The pipe that it goes by."""
        assert self._link.pipe is not None
        return self._link.pipe

    @property
    def peer_address(self) -> str:
        """The address at the other end of the pipe: the peer's, or the first switch's on the way to it."""
        return self.pipe.peer_address

    @property
    def closed(self) -> bool:
        """Whether it was closed on this side."""
        return self._link.state is LinkState.CLOSED

    # Timeouts

    def settimeout(self, timeout: float | None) -> None:
        """Set how long a call may block, in seconds; None for ever. 0 does not block: it raises Timeout as well."""
        if timeout is not None and timeout < 0:
            raise ValueError("a timeout is not negative")
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return what :meth:`settimeout` has set."""
        return self._timeout

    def setblocking(self, flag: bool) -> None:
        """Do ``settimeout(None)`` if true, else ``settimeout(0.0)``."""
        self._timeout = None if flag else 0.0

    # Receiving

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Block until bytes come, and return at most ``size`` of them; ``b""`` is the end.

        Raises:
            Timeout: none came in time.
            StreamReset: the other end has gone without a word. What it had sent was received before.
            StreamClosed: this end was closed.
        """
        _no_flags(flags)
        if size < 0:
            raise ValueError("a size is not negative")
        self._wait_readable(size)
        data = self._link.buffer.take(size)
        if data:
            self._link.was_read(len(data))
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Block until bytes come, and put at most ``nbytes`` of them (0: as many as fit) into a buffer.

        Returns:
            How many; 0 is the end. Raises as :meth:`recv` does.
        """
        _no_flags(flags)
        with memoryview(buffer) as view, view.cast("B") as whole:
            if whole.readonly:
                raise TypeError(f"a buffer to be written to is needed, not {type(buffer).__name__}")
            size = min(nbytes or len(whole), len(whole))
            self._wait_readable(size)
            count = self._link.buffer.take_into(whole[:size])
        if count:
            self._link.was_read(count)
        return count

    def _wait_readable(self, size: int) -> None:
        """Block until there is something to read, or the end."""
        self._seam.check()
        self._reads += 1
        if self._reads > _READS:
            self._reads = 0
            gevent.sleep(0)
        link = self._link
        if link.buffer:
            return
        deadline = Deadline(self._timeout)
        while not link.buffer:
            if link.state is LinkState.CLOSED:
                raise StreamClosed(errno.EBADF, "close() was called")
            if link.ended or link.deaf or not size:
                return
            if link.error is not None:
                raise copy(link.error)
            self._reads = 0
            if not link.readers.wait(deadline.left()):
                raise Timeout("recv", self._timeout)

    # Sending

    def send(self, data: Any, flags: int = 0) -> int:
        """Block until some of the data can be sent, and return how many bytes of it were.

        Raises:
            Timeout: none in time.
            StreamReset: the other end has gone, or takes no more.
            StreamClosed: this end was closed, or shut down for writing.
        """
        _no_flags(flags)
        with memoryview(data) as view, view.cast("B") as whole:
            return self._send(whole, Deadline(self._timeout))

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Block until all of the data is on its way. Raises as :meth:`send` does, when a part may have been sent."""
        _no_flags(flags)
        deadline = Deadline(self._timeout)
        with memoryview(data) as view, view.cast("B") as whole:
            sent = self._send(whole, deadline)
            while sent < len(whole):
                sent += self._send(whole[sent:], deadline)

    def _send(self, data: memoryview, deadline: Deadline) -> int:
        self._seam.check()
        link = self._link
        while True:
            self._check_writable()
            if not data:
                return 0
            if link.credit <= 0:
                self._wait_credit(deadline)
                continue
            pipe = self.pipe
            if not self._seam.wait_room(pipe, deadline.left()):
                if pipe.state is PipeState.OPEN:
                    raise Timeout("send", self._timeout)
                link.fail(StreamReset(errno.ECONNRESET, "its pipe takes no more"))
                continue
            # The wait may have let others send or close, and the other end reset the stream.
            credit = link.credit
            if credit > 0 and not link.said_end and not link.over:
                break
        size = min(len(data), credit, PIECE, self._seam.max_content)
        whole = data.obj
        # What nobody can change and goes in one piece is not copied.
        link.send(whole if type(whole) is bytes and len(whole) == size else bytes(data[:size]))
        return size

    def _check_writable(self) -> None:
        link = self._link
        if link.state is LinkState.CLOSED:
            raise StreamClosed(errno.EBADF, "close() was called")
        if link.error is not None:
            raise copy(link.error)
        if link.said_end:
            raise StreamClosed(errno.EPIPE, "it was shut down for writing")

    def _wait_credit(self, deadline: Deadline) -> None:
        """Block until the peer takes more, or has had its time to show that it is one that would say so."""
        link = self._link
        left = deadline.left()
        if link.knows_credit:
            if not link.writers.wait(left):
                raise Timeout("send", self._timeout)
            return
        link.ask_credit()
        if link.writers.wait(self._patience if left is None else min(left, self._patience)):
            return
        if left is not None and left <= self._patience:
            raise Timeout("send", self._timeout)
        if not link.knows_credit:
            link.trust()

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
        if self._close_asked and not self._files:
            self._link.close()

    # Closing

    def shutdown(self, how: int) -> None:
        """End one direction, or both: SHUT_WR tells the other end, SHUT_RD drops what it sends. Does not block."""
        self._seam.check()
        if how not in (SHUT_RD, SHUT_WR, SHUT_RDWR):
            raise ValueError("how is SHUT_RD, SHUT_WR or SHUT_RDWR")
        if self.closed:
            raise StreamClosed(errno.EBADF, "close() was called")
        if how != SHUT_WR:
            self._link.listen_no_more()
        if how != SHUT_RD:
            self._link.say_end()

    def close(self) -> None:
        """Close this end. Does not block; what was sent arrives all the same. Harmless when repeated.

        The other end reads what was sent, and then the end. What it has sent and nobody here has read, and what it
        sends from now on, is lost; it is told so.
        """
        self._seam.check()
        self._close_asked = True
        if not self._files:
            self._link.close()

    def abort(self) -> None:
        """Close this end, and have the other one see an error instead of an end of data. Does not block."""
        self._seam.check()
        self._close_asked = True
        self._link.close(abort=True)


def _no_flags(flags: int) -> None:
    if flags:
        raise ValueError("flags are for sockets of the kernel's: a stream's connection knows none")


class _File(io.RawIOBase):
    """What ``makefile`` builds upon."""

    def __init__(self, connection: Connection, reading: bool, writing: bool) -> None:
        super().__init__()
        self._connection = connection
        self._reading = reading
        self._writing = writing
        connection._file_opened()

    def readable(self) -> bool:
        return self._reading

    def writable(self) -> bool:
        return self._writing

    def readinto(self, buffer: Any) -> int:
        self._check()
        return self._connection.recv_into(buffer)

    def write(self, data: Any) -> int:
        self._check()
        return self._connection.send(data)

    def _check(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection._file_closed()
