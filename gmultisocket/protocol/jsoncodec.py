"""The protocols with values in the place of bytes, which travel as JSON::

    from gmultisocket.protocol.jsoncodec import Pub, Rep

    pub = Pub()
    pub.publish("orders.17", {"state": "paid"}, retain=True)
    rep = Rep(lambda order: {"total": sum(order["prices"])})

In all else the classes are those of :mod:`gmultisocket.protocol`, on the wire too: the peer may use bytes, or be a page
with ``message.json()``. A value is what ``json.dumps`` takes, without NaN and infinity, which JSON does not have. For a
value that JSON cannot express sending raises NotJSON, and nothing is sent. A content that comes and is no JSON is
dropped and counted (``garbage``), and the first one is logged.

They are classes, and not an option of the others: so type checkers know that there are no bytes, and the classes for
bytes are as fast as before.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import Closed, NotJSON, snippet
from ..log import get_logger
from ..loop.waiting import Deadline
from ..options import OptionValues
from . import bus, pair, pipeline, plain, pubsub, reqrep, sub
from .base import ProtocolBase
from .reqrep import DEFAULT_TIMEOUT

__all__ = ["Bus", "Pair", "Pub", "Pull", "Push", "Rep", "Req", "Sub", "decode", "encode"]

logger = get_logger("gmultisocket.protocol")


def encode(value: object, what: str) -> bytes:
    """Return a value as JSON, compact and in UTF-8.

    Args:
        what: what it is, for the error.

    Raises:
        NotJSON: JSON cannot express it.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NotJSON(what, f"{error}: {snippet(reprlib.repr(value))}") from None


def decode(content: bytes, what: str) -> Any:
    """Return the value of a content.

    Args:
        what: what it is, for the error.

    Raises:
        NotJSON: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise NotJSON(what, f"{error}: {snippet(content[:64])}") from None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


class _Dropping(ProtocolBase):
    """Drops contents that are no JSON."""

    _warned = False

    def _drop_content(self, error: NotJSON) -> None:
        self._core.count_drop("garbage")
        if not self._warned:
            self._warned = True
            logger.warning("%r drops a content: %s", self, error)


class Pub(pubsub.Pub):
    """A :class:`gmultisocket.Pub` of values."""

    def publish(self, topic: str, content: Any, timeout: float | None = None, *, retain: bool = False) -> int:
        """Send a value to every pipe that has a subscriber to the topic behind it. As ``gmultisocket.Pub.publish``.

        Raises:
            NotJSON: JSON cannot express the value. Nobody gets it.
        """
        return super().publish(topic, encode(content, f"publication under {snippet(topic)!r}"), timeout, retain=retain)


class Sub(sub.Sub, _Dropping):
    """A :class:`gmultisocket.Sub` of values. Iterable: ``for topic, value in sub``."""

    def recv(self, timeout: float | None = None) -> tuple[str, Any]:
        """Return the topic and the value of the next publication. As ``gmultisocket.Sub.recv``."""
        deadline = Deadline(timeout)
        while True:
            topic, content = super().recv(deadline.left())
            try:
                return topic, decode(content, f"publication under {topic!r}")
            except NotJSON as error:
                self._drop_content(error)

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[tuple[str, Any]]: ...


class Req(reqrep.Req):
    """A :class:`gmultisocket.Req` of values. What ``request_async`` sends and gets is bytes."""

    def request(self, content: Any, timeout: float | None = DEFAULT_TIMEOUT, *, retry: int = 0) -> Any:
        """Send a value to one Rep and return the reply's value. As ``gmultisocket.Req.request``.

        Raises:
            NotJSON: JSON cannot express the value, and it was not sent; or the reply is no JSON.
        """
        return decode(super().request(encode(content, "request"), timeout, retry=retry), "reply")


class Rep(reqrep.Rep, _Dropping):
    """A :class:`gmultisocket.Rep` of values, with a handler.

    A request that is no JSON fails at once, and its peer is told why. The answer of a handler that returns None is
    ``null``.

    Args:
        handler: takes a value and returns the reply's; may block.
        options: of the socket underneath.
        concurrency: how many handlers may run at once.
    """

    def __init__(
        self, handler: Callable[[Any], Any], options: OptionValues | None = None, *, concurrency: int = 1
    ) -> None:
        def answer(content: bytes) -> bytes | None:
            try:
                value = decode(content, "request")
            except NotJSON as error:
                self._drop_content(error)
                request = self.current
                assert request is not None, "this is its handler"
                request.fail(str(error))
                return None
            return encode(handler(value), "reply")

        super().__init__(answer, options, concurrency=concurrency)


class _Sender(ProtocolBase):
    def send(self, content: Any, timeout: float | None = None) -> Any:
        """Send a value. As ``send`` of the class for bytes.

        Raises:
            NotJSON: JSON cannot express the value. It was not sent.
        """
        return super().send(encode(content, "message"), timeout)


class _Receiver(plain.PlainReceiver, _Dropping):
    def recv(self, timeout: float | None = None) -> Any:
        """Return the value of the next message. As ``recv`` of the class for bytes."""
        deadline = Deadline(timeout)
        while True:
            try:
                return decode(super().recv(deadline.left()), "message")
            except NotJSON as error:
                self._drop_content(error)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over values as they come; ends when it is closed and everything that had arrived was received."""
        while True:
            try:
                value = self.recv()
            except Closed:
                return
            yield value


class Pair(_Sender, _Receiver, pair.Pair):
    """A :class:`gmultisocket.Pair` of values."""


class Bus(_Sender, _Receiver, bus.Bus):
    """A :class:`gmultisocket.Bus` of values."""


class Push(_Sender, pipeline.Push):
    """A :class:`gmultisocket.Push` of values."""


class Pull(_Receiver, pipeline.Pull):
    """A :class:`gmultisocket.Pull` of values."""
