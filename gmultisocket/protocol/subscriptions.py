"""Topics, patterns, and an index that finds the subscribers whose patterns match a topic.

A topic is one or more tokens joined by dots: ``orders.eu.created``. A pattern is a topic in which ``*`` stands for any
one token and ``>``, as its last token, for all that follow, at least one. These are the rules of NATS, except that a
wildcard inside a longer token is refused. NATS takes it for an ordinary character.

The index is a tree with a level for each token. A search follows the topic's tokens and the wildcards beside them, and
does not visit other patterns, however many there are.

Pure: no gevent, no sockets. A subscriber may be anything that a dictionary takes as a key.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from ..errors import BadTopic

__all__ = ["MAX_TOKENS", "MAX_TOPIC", "SEPARATOR", "Subscriptions", "check_pattern", "check_topic"]

SEPARATOR: Final = "."
_ONE: Final = "*"
_REST: Final = ">"
#: The most bytes that a topic has: the highest number that the 2 bytes of its length can hold.
MAX_TOPIC: Final = 65535
#: The most tokens that a pattern has. Each may add a level to the index, so peers must not choose the number freely.
MAX_TOKENS: Final = 64

Key = TypeVar("Key", bound=Hashable)


def check_topic(topic: str) -> bytes:
    """Return a topic's bytes.

    Raises:
        BadTopic: it is not a topic; the message says why.
    """
    encoded = _encode(topic, "a topic")
    if _ONE in topic or _REST in topic:
        raise BadTopic(topic, "a topic has no wildcards: * and > are for the patterns of those who subscribe")
    return encoded


def check_pattern(pattern: str) -> bytes:
    """Return a pattern's bytes.

    Raises:
        BadTopic: it is not a pattern; the message says why.
    """
    encoded = _encode(pattern, "a pattern")
    tokens = pattern.split(SEPARATOR)
    if len(tokens) > MAX_TOKENS:
        raise BadTopic(pattern, f"a pattern has at most {MAX_TOKENS} tokens, and this one has {len(tokens)}")
    if _REST in tokens[:-1]:
        raise BadTopic(pattern, "> stands for all that follows, so it is the last token: 'a.>'")
    for token in tokens:
        if len(token) > 1 and (_ONE in token or _REST in token):
            raise BadTopic(pattern, "a wildcard is a whole token: 'a.*' or 'a.>', not 'a*' or 'a>'")
    return encoded


def _encode(text: str, what: str) -> bytes:
    if not isinstance(text, str):
        raise BadTopic(text, f"{what} is a str of tokens with dots between, like 'orders.eu.created'")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise BadTopic(text, f"{what} is text that UTF-8 can encode: this one has half of a surrogate pair") from None
    if not all(text.split(SEPARATOR)):
        raise BadTopic(text, f"{what} is tokens with single dots between, like 'orders.eu.created': none is empty")
    if len(encoded) > MAX_TOPIC:
        raise BadTopic(text, f"{what} has at most {MAX_TOPIC} bytes, and this one has {len(encoded)}")
    return encoded


class _Node(Generic[Key]):
    """A node of the tree: the patterns that begin with the tokens on the way to it.

    Attributes:
        below: by the next token: the nodes below.
        here: by key: the number of subscriptions that end here.
    """

    __slots__ = ("below", "here")

    def __init__(self) -> None:
        # Made when first needed: most nodes have one of the two.
        self.below: dict[str, _Node[Key]] | None = None
        self.here: dict[Key, int] | None = None


class Subscriptions(Generic[Key]):
    """An index of subscriptions. A subscription that was added twice must be removed twice."""

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[Key] = _Node()
        self._count = 0

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return self._count

    def add(self, pattern: str, key: Key) -> None:
        """Add a subscription. The pattern must be valid, see :func:`check_pattern`."""
        node = self._root
        for token in pattern.split(SEPARATOR):
            if node.below is None:
                node.below = {}
            below = node.below.get(token)
            if below is None:
                below = node.below[token] = _Node()
            node = below
        if node.here is None:
            node.here = {}
        node.here[key] = node.here.get(key, 0) + 1
        self._count += 1

    def remove(self, pattern: str, key: Key) -> None:
        """Remove a subscription.

        Raises:
            KeyError: there is none.
        """
        way: list[tuple[_Node[Key], str]] = []
        node = self._root
        for token in pattern.split(SEPARATOR):
            way.append((node, token))
            node = (node.below or {})[token]
        here = node.here or {}
        left = here[key] - 1
        self._count -= 1
        if left:
            here[key] = left
            return
        del here[key]
        node.here = here or None
        for above, token in reversed(way):
            if node.here or node.below:
                return
            assert above.below is not None
            del above.below[token]
            if above.below:
                return
            above.below = None
            node = above

    def match(self, topic: str) -> set[Key]:
        """Return the keys that have a pattern which matches the topic."""
        found: set[Key] = set()
        nodes = [self._root]
        for token in topic.split(SEPARATOR):
            further = []
            for node in nodes:
                below = node.below
                if below is None:
                    continue
                rest = below.get(_REST)
                if rest is not None and rest.here is not None:
                    found.update(rest.here)
                for same in (below.get(token), below.get(_ONE)):
                    if same is not None:
                        further.append(same)
            if not further:
                return found
            nodes = further
        for node in nodes:
            if node.here is not None:
                found.update(node.here)
        return found
