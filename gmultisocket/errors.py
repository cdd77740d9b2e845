"""All exceptions of gmultisocket, in one tree under :class:`MultiSocketError`.

Each class stores the facts as attributes, for programs, and makes a sentence of them in ``__str__``, for people. The
public API raises nothing else: ``OSError``, ``ssl.SSLError``, ``queue.Empty`` and the exceptions of other libraries are
translated and chained. There are two exceptions to that rule: ``gevent.Timeout`` and ``greenlet.GreenletExit`` belong
to the caller and pass through unchanged.

What comes from a peer or may be a secret is made safe here, for messages and for log records: :func:`printable`,
:func:`snippet` and :func:`hide_values`. This module imports nothing of the library.
"""

from __future__ import annotations

import re

__all__ = [
    "MultiSocketError", "Closed", "Timeout", "NoPeers", "NotJSON", "NotSupported", "WrongThread",
    "ForkedSocketError", "BadPath", "BadTopic", "BrokenPath", "MessageDropped", "MessageTooLong",
    "PublicationTooLong", "BadMessage", "ContentTooLong", "BadPacket", "OptionError", "UnknownOption",
    "BadOptionValue", "MisplacedOption", "BadFile", "AddressError", "UnknownTransport", "ConnectionFailed",
    "ConnectionRefused", "EngineRefused", "AddressInUse", "HandshakeFailed", "RequestRefused", "TLSError", "NotTLS",
    "BadCertificate", "UntrustedCertificate", "HostnameMismatch", "CertificateExpired", "CertificateNotYetValid",
    "CertificateRequired", "CertificateRefused", "PipeRefused", "Disconnected", "NoIds", "PeerGone",
    "HandlerFailed", "SubscriptionRefused", "StreamClosed", "StreamReset", "hide_values", "printable", "snippet",
]  # fmt: skip


def printable(text: str) -> str:
    """Return a text with escapes in place of everything that could act on a terminal or on the order of the text.

    These are control characters, line breaks, format characters such as those that turn the direction of writing, lone
    surrogates, and white space other than " ".
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def article(noun: str) -> str:
    """Return a noun with its article: ``"a listener"``, ``"an ipc listener"``."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def snippet(data: object, limit: int = 64) -> str:
    """Return data of a peer or caller as printable ASCII, cut to ``limit`` characters."""
    text = ascii(data)[1:-1] if isinstance(data, str) else printable(ascii(data))
    return text if len(text) <= limit else text[: limit - 3] + "..."


def hide_values(address: str) -> str:
    """Return an address without the values of its options, which may be secrets."""
    location, mark, query = address.partition("?")
    return location + mark + re.sub("=[^&#]*", "=***", query)


def _hide_credentials(value: object) -> object:
    """Return a value without the user names and passwords of URLs in it; the same object if there are none."""
    if isinstance(value, str):
        return re.sub(r"//[^/\s]*@", "//***@", value)
    if isinstance(value, list):
        safe = [_hide_credentials(each) for each in value]
        return value if safe == value else safe
    return value


class MultiSocketError(Exception):
    """The base class of all errors that gmultisocket raises on purpose."""


class Closed(MultiSocketError):
    """The socket, pipe, dialer, listener or protocol was closed before or during the call.

    Attributes:
        what: the closed object, e.g. ``"socket"``.
        reason: why it was closed, "" if that is not known.
    """

    def __init__(self, what: str = "socket", reason: str = "") -> None:
        super().__init__(what, reason)
        self.what = what
        self.reason = reason

    def __str__(self) -> str:
        return f"the {self.what} is closed" + (f": {printable(self.reason)}" if self.reason else "")


class Timeout(MultiSocketError, TimeoutError):
    """A call did not finish within its ``timeout=``. Nothing was lost, and the call may be repeated.

    Attributes:
        operation: the call, e.g. ``"recv"``.
        seconds: the timeout.
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
    """A send found no pipe, and ``socket.fail_no_peers`` or ``socket.send_best_effort`` is set."""

    def __str__(self) -> str:
        return "no peer is connected that can take the message"


class NotSupported(MultiSocketError):
    """An object of this kind, or with these options, does not support the operation.

    Attributes:
        operation: the operation.
        why: the kind or the option that forbids it.
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
    """A destination that is not a path: empty, too long, or not a multiple of 4 bytes.

    Attributes:
        path: the destination as it was given.
        why: what is wrong with it.
    """

    def __init__(self, path: object, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"bad path {snippet(self.path)}: {self.why}"


class BadTopic(MultiSocketError, ValueError):
    """A text that cannot be a topic to publish under, or a pattern to subscribe to.

    Attributes:
        topic: the topic or pattern as it was given.
        why: what is wrong with it, and what would be right.
    """

    def __init__(self, topic: object, why: str) -> None:
        super().__init__(topic, why)
        self.topic = topic
        self.why = why

    def __str__(self) -> str:
        return f"bad topic {snippet(self.topic)!r}: {self.why}"


class NotJSON(MultiSocketError, ValueError):
    """A value that JSON cannot express, or a content that is no JSON: see ``gmultisocket.protocol.jsoncodec``.

    Attributes:
        what: what it is: ``"request"``, ``"publication under 'orders.17'"``.
        why: what is wrong with it, and how it begins.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what, why)
        self.what = what
        self.why = why

    def __str__(self) -> str:
        return f"the {self.what} is no JSON: {self.why}"


class BrokenPath(MultiSocketError):
    """No open pipe of this socket has the first id of the destination: the peer has disconnected.

    Attributes:
        pipe_id: the first id of the destination.
    """

    def __init__(self, pipe_id: int) -> None:
        super().__init__(pipe_id)
        self.pipe_id = pipe_id

    def __str__(self) -> str:
        return f"no open pipe has the id {self.pipe_id}: the peer has disconnected"


class MessageDropped(MultiSocketError):
    """A message must not be forwarded.

    Attributes:
        reason: ``"ttl"``, ``"arrived"``, ``"hops"``, ``"raw"``, or the name of an overflow policy.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the message was dropped: {self.reason}"


class MessageTooLong(MultiSocketError, ValueError):
    """A content is longer than this socket may send, or than the wire format allows. No peer was sent anything.

    Attributes:
        size: the length of the content in bytes.
        limit: the longest allowed length in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"a content of {self.size} bytes is over the limit of {self.limit} bytes: raise "
            "socket.max_send_content_length here, and connector.pipe.max_recv_content_length at the peer"
        )


class PublicationTooLong(MessageTooLong):
    """A content is longer than the server of a backplane takes. Nobody got it, not even a subscriber in this process.

    Attributes:
        size: the length of the content in bytes.
        limit: the longest that the server takes, in bytes.
    """

    def __str__(self) -> str:
        return (
            f"a content of {self.size} bytes is over the limit of {self.limit} bytes of the backplane's server: raise "
            "it there, and socket.max_send_content_length of the Pubs that pass it on"
        )


class BadMessage(MultiSocketError):
    """A peer sent bytes that are not a message. Its pipe closes; other pipes are not affected.

    Attributes:
        why: the rule that the peer broke.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"bad message: {printable(self.why)}"


class ContentTooLong(BadMessage):
    """A peer announced a content that is longer than ``connector.pipe.max_recv_content_length``.

    Attributes:
        size: the announced length in bytes.
        limit: the limit in bytes.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"content of {size} bytes is over the limit of {limit} bytes")
        # The arguments of the constructor, for copy and pickle.
        self.args = (size, limit)
        self.size = size
        self.limit = limit


class InflatedTooLong(ContentTooLong):
    """A compressed WebSocket message grew too long when it was decompressed, or too long for what has arrived of it.

    Attributes:
        arrived: the bytes that have arrived of it.
        size: how many bytes of them it had grown to, and was still not complete.
        limit: ``connector.pipe.max_recv_content_length``.
    """

    def __init__(self, arrived: int, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.args = (arrived, size, limit)
        self.arrived = arrived

    def __str__(self) -> str:
        return (
            f"a compressed message of {self.arrived} bytes grows to more than {self.size} bytes; "
            f"the limit of a content is {self.limit} bytes"
        )


class BadPacket(BadMessage):
    """A peer broke a rule of WebSocket, the protocol that carries the messages.

    Attributes:
        why: the rule that the peer broke.
        code: the close code of RFC 6455 that is sent to the peer.
    """

    def __init__(self, why: str, code: int) -> None:
        super().__init__(why)
        # The arguments of the constructor, for copy and pickle.
        self.args = (why, code)
        self.code = code

    def __str__(self) -> str:
        return f"bad packet: {printable(self.why)}"


class OptionError(MultiSocketError):
    """The base class of the errors of options."""


class UnknownOption(OptionError, KeyError):
    """No option has this name.

    Attributes:
        name: the name as it was given.
        suggestion: the most similar known name, or "".
    """

    def __init__(self, name: object, suggestion: str = "") -> None:
        super().__init__(name, suggestion)
        self.name = name
        self.suggestion = suggestion

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion!r}?" if self.suggestion else ""
        return f"unknown option {snippet(self.name)!r}{hint}"


class BadOptionValue(OptionError, ValueError):
    """A value that the option cannot have.

    Attributes:
        name: the option's name.
        value: the value as it was given; ``"***"`` in place of a secret.
        expected: which values would be right.
    """

    def __init__(self, name: str, value: object, expected: str) -> None:
        value = _hide_credentials(value)
        super().__init__(name, value, expected)
        self.name = name
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        return f"option {self.name} cannot be {snippet(self.value)}: expected {self.expected}"


class MisplacedOption(OptionError):
    """An option was set where it has no effect. Nothing changed.

    Attributes:
        name: the option's name.
        place: where it was set: ``"socket"``, ``"dialer"``, ``"listener"``, ``"pipe"``, ``"plane"``, or with the
            transport or the protocol, ``"tcp listener"``, ``"Pub"``.
        places: where it may be set.
        families: if it is an option of another transport or protocol: the beginnings of the names of those that are
            read there.
    """

    def __init__(
        self, name: str, place: str, places: tuple[str, ...], families: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(name, place, places, families)
        self.name = name
        self.place = place
        self.places = places
        self.families = families

    def __str__(self) -> str:
        if self.families is not None:
            start = self.name.partition(".")[0]
            read = " and ".join(f"{each}.*" for each in self.families if each.startswith(start)) or f"no {start}.*"
            return f"option {self.name} has no effect on {article(self.place)}, which reads {read}"
        at = " or ".join("the Socket" if each == "socket" else f"a {each}" for each in self.places)
        return f"option {self.name} has no effect on a {self.place}: set it on {at}"


class BadFile(OptionError):
    """A file that an option names (a certificate, a key) cannot be used.

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
        address: the address, without a user name and password, and without the values of options.
        why: what is wrong with it, and what would be right.
    """

    def __init__(self, address: object, why: str) -> None:
        address = hide_values(address) if isinstance(address, str) else address
        super().__init__(address, why)
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"bad address {snippet(self.address, 200)!r}: {self.why}"


class UnknownTransport(AddressError):
    """No transport is registered for the address' scheme."""


class ConnectionFailed(MultiSocketError):
    """A dial or listen failed.

    Attributes:
        address: the address, without a user name and password.
        why: the reason in words.
    """

    def __init__(self, address: str, why: str) -> None:
        super().__init__(address, why)
        self.address = address
        self.why = why

    def __str__(self) -> str:
        return f"{snippet(self.address, 200)}: {printable(self.why)}"


class ConnectionRefused(ConnectionFailed, ConnectionRefusedError):
    """Nobody listens at the address, or the peer of a Stream accepts no connection."""


class EngineRefused(ConnectionFailed):
    """The server of a Backplane has answered, and does not want this client: a wrong password, for example."""


class AddressInUse(ConnectionFailed):
    """Another listener already uses the address."""


class HandshakeFailed(ConnectionFailed):
    """A connection was made, but its opening handshake (TLS, WebSocket, negotiator) failed or took too long."""


class RequestRefused(HandshakeFailed):
    """A WebSocket request was answered with an HTTP status other than 101.

    A dialer raises it when the listener refused. An ``authorize`` function raises it to refuse with its own status.

    Attributes:
        status: the HTTP status, 400 to 599.
        why: the reason in words; a listener sends it to the peer as well.
        headers: additional headers of the answer, for example ``WWW-Authenticate``.
        address: the peer.
    """

    def __init__(self, status: int, why: str = "", headers: dict[str, str] | None = None, address: str = "") -> None:
        super().__init__(address, why)
        self.args = (status, why, headers, address)
        self.status = status
        self.headers = headers or {}

    def __str__(self) -> str:
        where = f"{snippet(self.address, 200)}: " if self.address else ""
        return f"{where}refused with HTTP status {self.status}" + (f": {printable(self.why)}" if self.why else "")


class TLSError(HandshakeFailed):
    """TLS failed, in the handshake or later. Subclasses name the common reasons.

    With TLS 1.3 a dialer's handshake ends before the listener has checked the dialer's certificate. If the listener
    refuses the certificate, the dialer's pipe closes for that reason right after it was added.
    """


class NotTLS(TLSError):
    """The peer does not speak TLS, or closed the connection when TLS began."""


class BadCertificate(TLSError):
    """This side did not accept the peer's certificate. Subclasses name the common reasons."""


class UntrustedCertificate(BadCertificate):
    """The peer's certificate was not issued by an authority that this side trusts."""


class HostnameMismatch(BadCertificate):
    """The peer's certificate was not issued for the dialed host."""


class CertificateExpired(BadCertificate):
    """The peer's certificate, or one of its authorities' certificates, has expired."""


class CertificateNotYetValid(BadCertificate):
    """The peer's certificate, or one of its authorities' certificates, is not valid yet; maybe a clock is wrong."""


class CertificateRequired(TLSError):
    """The listener requires a certificate, and the dialer sent none."""


class CertificateRefused(TLSError):
    """The peer did not accept the certificate of this side."""


class PipeRefused(MultiSocketError):
    """A negotiator, the pipe limit or a protocol refused a peer.

    Attributes:
        reason: why it was refused.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the pipe was refused: {printable(self.reason)}"


class Disconnected(MultiSocketError):
    """This side closes a pipe, and tells the peer why: ``pipe.close(Disconnected(4401, "log in again"))``.

    A WebSocket peer gets the code and the reason in the close frame. Over other transports nothing is sent.

    Attributes:
        code: from 4000 to 4999, which RFC 6455 leaves to applications.
        reason: for the peer; at most 123 bytes are sent.

    Raises:
        ValueError: the code is not in that range.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        if type(code) is not int or not 4000 <= code <= 4999:
            raise ValueError(f"a code of this side's own is a number from 4000 to 4999, not {code!r}")
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        return printable(self.reason)


class NoIds(MultiSocketError, OverflowError):
    """No id is left for a new pipe, or for a new connection of a Stream.

    Attributes:
        used: how many ids are used.
    """

    def __init__(self, used: int) -> None:
        super().__init__(used)
        self.used = used

    def __str__(self) -> str:
        return f"all ids are used up: {self.used} of them"


class PeerGone(MultiSocketError):
    """The pipe that a request was sent by closed before the reply arrived.

    Attributes:
        reason: why the pipe closed.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the peer disconnected before it answered: {printable(self.reason)}"


class SubscriptionRefused(MultiSocketError):
    """A publisher refused or revoked a subscription.

    Attributes:
        pattern: of the subscription.
        reason: the publisher's.
    """

    def __init__(self, pattern: str, reason: str) -> None:
        super().__init__(pattern, reason)
        self.pattern = pattern
        self.reason = reason

    def __str__(self) -> str:
        return f"a publisher refuses the subscription to {snippet(self.pattern)!r}: {printable(self.reason)}"


class HandlerFailed(MultiSocketError):
    """The handler of the Rep that a request went to has failed. The Rep's log has the error.

    Attributes:
        why: the error, if the Rep sends that: ``protocol.reqrep.send_errors``; or the text of ``fail()``. "" if not.
    """

    def __init__(self, why: str = "") -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return "the handler of the request failed" + (f": {printable(self.why)}" if self.why else "")


class StreamClosed(Closed, BrokenPipeError):
    """This side has closed the connection of a stream or the Stream, or has shut down the direction that a call needs.

    Attributes:
        errno: EBADF or EPIPE, as with a socket.
        reason: what this side did.
    """

    def __init__(self, errno: int, reason: str) -> None:
        OSError.__init__(self, errno, reason)
        self.what = "stream"
        self.reason = reason


class StreamReset(MultiSocketError, ConnectionResetError):
    """The connection of a stream ended before the peer closed it. Data that had arrived was received before this error.

    Attributes:
        errno: ECONNRESET, as with a socket.
        strerror: why it ended.
    """

    def __str__(self) -> str:
        return f"the stream was reset: {self.strerror}"
