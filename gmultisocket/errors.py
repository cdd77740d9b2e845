"""Every exception of gmultisocket, one tree under :class:`MultiSocketError`.

Each class keeps what went wrong as attributes and makes its sentence in ``__str__``, so that a program
can act on the facts and a person can read them. Nothing else leaves the public API: ``OSError``,
``ssl.SSLError``, ``queue.Empty`` and a library's own exceptions are translated and chained. The two
exceptions to that are ``gevent.Timeout`` and ``greenlet.GreenletExit``, which belong to the caller and
pass through untouched.

This module holds no behaviour and imports nothing.
"""

from __future__ import annotations

__all__ = [
    "MultiSocketError",
    "Closed",
    "Timeout",
    "NoPeers",
    "NotSupported",
    "WrongThread",
    "ForkedSocketError",
    "BadPath",
    "BadTopic",
    "BrokenPath",
    "MessageDropped",
    "MessageTooLong",
    "BadMessage",
    "ContentTooLong",
    "BadPacket",
    "OptionError",
    "UnknownOption",
    "BadOptionValue",
    "BadFile",
    "AddressError",
    "UnknownTransport",
    "ConnectionFailed",
    "ConnectionRefused",
    "AddressInUse",
    "HandshakeFailed",
    "RequestRefused",
    "TLSError",
    "NotTLS",
    "BadCertificate",
    "UntrustedCertificate",
    "HostnameMismatch",
    "CertificateExpired",
    "CertificateNotYetValid",
    "CertificateRequired",
    "CertificateRefused",
    "PipeRefused",
    "PeerGone",
    "StreamClosed",
    "StreamReset",
    "snippet",
]


def snippet(data: object, limit: int = 64) -> str:
    """Return what a peer or caller sent as printable ASCII, cut at ``limit`` characters."""
    text = ascii(data)[1:-1] if isinstance(data, str) else ascii(data)
    return text if len(text) <= limit else text[: limit - 3] + "..."


class MultiSocketError(Exception):
    """The root of everything that gmultisocket raises on purpose."""


class Closed(MultiSocketError):
    """The socket, pipe, dialer, listener or protocol was closed before or during the call.

    Attributes:
        what: what is closed, e.g. ``"socket"``.
        reason: why, where it is known.
    """

    def __init__(self, what: str = "socket", reason: str = "") -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"the {self.what} is closed" + (f": {self.reason}" if self.reason else "")


class Timeout(MultiSocketError, TimeoutError):
    """A ``timeout=`` ran out. Nothing was lost, and the call may be made again.

    Attributes:
        operation: the call, e.g. ``"recv"``.
        seconds: the time that was allowed.
        sent: for ``send_all`` only, the number of pipes that had taken the message by then.
    """

    def __init__(self, operation: str, seconds: float | None, sent: int = 0) -> None:
        super().__init__(operation, seconds, sent)
        self.operation = operation
        self.seconds = seconds
        self.sent = sent

    def __str__(self) -> str:
        return f"{self.operation} timed out after {self.seconds} s"


class NoPeers(MultiSocketError):
    """A send found no pipe while ``socket.fail_no_peers`` or ``socket.send_best_effort`` is set."""

    def __str__(self) -> str:
        return "no peer is connected that could take the message"


class NotSupported(MultiSocketError):
    """The object does not do this, by its kind or by its options.

    Attributes:
        operation: what was asked for.
        why: what forbids it.
    """

    def __init__(self, operation: str, why: str) -> None:
        super().__init__(operation, why)
        self.operation = operation
        self.why = why

    def __str__(self) -> str:
        return f"{self.operation} is not supported here: {self.why}"


class WrongThread(MultiSocketError):
    """The socket was used from an OS thread other than the one that made it."""

    def __str__(self) -> str:
        return (
            "this socket belongs to the thread that made it (gevent objects are not thread-safe); "
            "make a socket in this thread, or send through the handle of Socket.threadsafe()"
        )


class ForkedSocketError(MultiSocketError):
    """The socket was made before ``os.fork()`` and is used in the child."""

    def __str__(self) -> str:
        return (
            "this socket was made before os.fork() and stays with the parent process; "
            "make a socket after the fork (with gunicorn: in the worker, not at import under --preload)"
        )


class BadPath(MultiSocketError, ValueError):
    """A destination that is no path: empty, too long, or not a multiple of 4 bytes."""

    def __init__(self, path: object, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"bad path {snippet(self.path)}: {self.why}"


class BadTopic(MultiSocketError, ValueError):
    """What is no topic to publish under, or no pattern to subscribe to.

    Attributes:
        topic: the topic or pattern as it was given.
        why: what is wrong and what would be right.
    """

    def __init__(self, topic: object, why: str) -> None:
        super().__init__(topic, why)
        self.topic = topic
        self.why = why

    def __str__(self) -> str:
        return f"bad topic {snippet(self.topic)!r}: {self.why}"


class BrokenPath(MultiSocketError):
    """A destination's first id names no open pipe of this socket: the peer has gone.

    Attributes:
        pipe_id: the id that was looked for.
    """

    def __init__(self, pipe_id: int) -> None:
        super().__init__(pipe_id)
        self.pipe_id = pipe_id

    def __str__(self) -> str:
        return f"no open pipe has the id {self.pipe_id}: the peer has gone"


class MessageDropped(MultiSocketError):
    """A message may not be forwarded any further.

    Attributes:
        reason: ``"ttl"``, ``"arrived"``, ``"hops"``, ``"raw"``, or the name of an overflow policy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the message was dropped: {self.reason}"


class MessageTooLong(MultiSocketError, ValueError):
    """A content that is longer than this socket or the wire can send. Nothing left for any peer.

    Attributes:
        size: its length in bytes.
        limit: the longest that is allowed, in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return f"a content of {self.size} bytes is over the limit of {self.limit} bytes"


class BadMessage(MultiSocketError):
    """A peer sent what is not a message. The pipe closes; other pipes are untouched.

    Attributes:
        why: the rule that was broken.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"bad message: {self.why}"


class ContentTooLong(BadMessage):
    """A peer announced a content over ``connector.pipe.max_recv_content_length``.

    Attributes:
        size: the announced length in bytes.
        limit: the limit in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"content of {size} bytes is over the limit of {limit} bytes")
        # What makes the error anew, for copy and pickle.
        self.args = (size, limit)
        self.size = size
        self.limit = limit


class BadPacket(BadMessage):
    """A peer broke the rules of the protocol that carries the messages: WebSocket.

    Attributes:
        why: the rule that was broken.
        code: what the peer is told, a close code of RFC 6455.
    """

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        # What makes the error anew, for copy and pickle.
        self.args = (why, code)
        self.code = code

    def __str__(self) -> str:
        return f"bad packet: {self.why}"


class OptionError(MultiSocketError):
    """The root of what can be wrong with an option."""


class UnknownOption(OptionError, KeyError):
    """No option has this name.

    Attributes:
        name: the name as it was given.
        suggestion: the nearest known name, or "".
    """

    def __init__(self, name: object, suggestion: str = "") -> None:
        super().__init__(name, suggestion)
        self.name = name
        self.suggestion = suggestion

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"unknown option {snippet(self.name)!r}{hint}"


class BadOptionValue(OptionError, ValueError):
    """A value that the option cannot take.

    Attributes:
        name: the option's name.
        value: the value as it was given.
        expected: what would be right.
    """

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(name, value, expected)
        self.name = name
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"option {self.name} cannot be {snippet(self.value)}: expected {self.expected}"


class BadFile(OptionError):
    """A file that an option names cannot be used: a certificate, a key.

    Attributes:
        name: the option's name.
        path: the file.
        why: what is wrong with it.
    """

    def __init__(self, name: str, path: str, why: str) -> None:
        super().__init__(name, path, why)
        self.name = name
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.name} {snippet(self.path, 400)}: {self.why}"


class AddressError(MultiSocketError, ValueError):
    """An address that cannot be used.

    Attributes:
        address: the address, without any user name or password in it.
        why: what is wrong and what would be right.
    """

    def __init__(self, address: object, why: str) -> None:
        super().__init__(address, why)
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"bad address {snippet(self.address, 200)!r}: {self.why}"


class UnknownTransport(AddressError):
    """No transport is registered for the address' scheme."""


class ConnectionFailed(MultiSocketError):
    """A dial or listen did not succeed.

    Attributes:
        address: the address, without any user name or password in it.
        why: the reason in words.
    """

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address, why)
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"{snippet(self.address, 200)}: {self.why}"


class ConnectionRefused(ConnectionFailed, ConnectionRefusedError):
    """Nobody listens at the address."""


class AddressInUse(ConnectionFailed):
    """Another listener has the address."""


class HandshakeFailed(ConnectionFailed):
    """A connection was made, but its opening handshake (WebSocket, negotiator) failed or took too long."""


class RequestRefused(HandshakeFailed):
    """A WebSocket request was answered with an HTTP status other than 101.

    Raised where the dialed listener refused; and by an ``authorize`` function, to refuse with a status of its choice.

    Attributes:
        status: the HTTP status, 400 to 599.
        why: the reason in words, which is what the peer reads as well.
        headers: further headers of the answer, ``WWW-Authenticate`` say.
        address: who refused, or was refused.
    """

    def __init__(self, status: int, why: str = "", headers: dict[str, str] | None = None, address: str = "") -> None:
        super().__init__(address, why)
        self.args = (status, why, headers, address)
        self.status = status
        self.headers = headers or {}

    def __str__(self) -> str:
        where = f"{snippet(self.address, 200)}: " if self.address else ""
        return f"{where}refused with HTTP status {self.status}" + (f": {self.why}" if self.why else "")


class TLSError(HandshakeFailed):
    """TLS failed, in the handshake or after it; subclasses name the reason where it is known.

    With TLS 1.3 a dialer's handshake is over before the listener has looked at its certificate. What the listener
    finds wrong with it is then the reason for which the dialer's pipe closes, right after it was added.
    """


class NotTLS(TLSError):
    """The peer does not speak TLS, or hung up at the first word of it."""


class BadCertificate(TLSError):
    """The peer's certificate was not accepted here; subclasses name the reason where it is a common one."""


class UntrustedCertificate(BadCertificate):
    """No certificate authority that is trusted here stands behind the peer's certificate."""


class HostnameMismatch(BadCertificate):
    """The peer's certificate was not issued for the host that was dialed."""


class CertificateExpired(BadCertificate):
    """The peer's certificate, or one that stands behind it, is no longer valid."""


class CertificateNotYetValid(BadCertificate):
    """The peer's certificate, or one that stands behind it, is not valid yet; maybe a clock is wrong."""


class CertificateRequired(TLSError):
    """The listener requires a certificate of its peers, and the dialer has shown none."""


class CertificateRefused(TLSError):
    """The peer did not accept the certificate of this side."""


class PipeRefused(MultiSocketError):
    """A negotiator, a pipe limit or a protocol turned a peer away.

    Attributes:
        reason: why.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the pipe was refused: {self.reason}"


class PeerGone(MultiSocketError):
    """The pipe that a request went out on closed before its reply came.

    Attributes:
        reason: why the pipe closed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the peer has gone before it answered: {self.reason}"


class StreamClosed(Closed, BrokenPipeError):
    """A stream's connection was closed, or shut down for this, on this side.

    Attributes:
        errno: EBADF or EPIPE, as with a socket.
        reason: what was done.
    """

    def __init__(self, errno: int, reason: str) -> None:
        OSError.__init__(self, errno, reason)
        self.what = "stream"
        self.reason = reason


class StreamReset(MultiSocketError, ConnectionResetError):
    """A stream's connection has ended without its peer's goodbye. What had arrived was received before this.

    Attributes:
        errno: ECONNRESET, as with a socket.
        strerror: why.
    """

    def __str__(self) -> str:
        return f"the stream was reset: {self.strerror}"
