"""The names that topics have at a broker, and how what was worked out is kept for the next time.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Final, TypeVar

from ..errors import BadTopic
from ..protocol.subscriptions import SEPARATOR, check_topic

__all__ = ["TopicNames", "remember"]

#: Keys that are kept.
_MOST: Final = 4096
#: Longer keys are not kept: together they could take much memory.
_LONGEST: Final = 512

Key = TypeVar("Key", bound=Sized)
Value = TypeVar("Value")


def remember(known: dict[Key, Value], key: Key, value: Value) -> None:
    """Keep what was worked out for a key, for the next time. Bounded: a full dict is emptied before.

    It is a plain dict, because the look-ups are done for each message.
    """
    if len(key) <= _LONGEST:
        if len(known) >= _MOST:
            known.clear()
        known[key] = value


class TopicNames:
    """Translates topics to names at a broker, and back. A name is the prefix and the topic, in UTF-8.

    Args:
        prefix: in front of each topic, e.g. ``"shop."``, with its dot; "" for none.

    Raises:
        BadTopic: the prefix is not made of tokens with dots behind them.
    """

    __slots__ = ("_prefix", "_topics")

    def __init__(self, prefix: str) -> None:
        if prefix and not prefix.endswith(SEPARATOR):
            raise BadTopic(prefix, "a prefix is tokens with a dot behind each, like 'shop.'")
        if prefix:
            check_topic(prefix[:-1])
        self._prefix = prefix.encode()
        self._topics: dict[bytes, str | None] = {}

    def encode(self, topic: str) -> bytes:
        """Return the name of a valid topic."""
        return self._prefix + topic.encode()

    def decode(self, name: bytes) -> str | None:
        """Return the topic that has a name; None if no topic has it."""
        topics = self._topics
        if name in topics:
            return topics[name]
        topic = self._decode(name)
        remember(topics, name, topic)
        return topic

    def _decode(self, name: bytes) -> str | None:
        if not name.startswith(self._prefix):
            return None
        try:
            topic = self._unescape(name[len(self._prefix) :]).decode()
            check_topic(topic)
        except (UnicodeDecodeError, BadTopic):
            return None
        return topic

    def _unescape(self, encoded: bytes) -> bytes:
        """Return the topic in a name, as it was before it was escaped. To override."""
        return encoded
