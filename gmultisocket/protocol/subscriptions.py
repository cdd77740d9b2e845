"""Topics, patterns, and an index that finds the subscribers whose patterns match a topic.

A topic is one or more tokens joined by dots: ``orders.eu.created``. A pattern is a topic in which ``*`` stands for any
one token and ``>``, as its last token, for all that follow, at least one. These are the rules of NATS, except that a
wildcard inside a longer token is refused. NATS takes it for an ordinary character.

The index is a tree with a level for each token. A search follows the topic's tokens and the wildcards beside them, and
does not visit other patterns, however many there are. But a topic of n tokens has 2^n patterns with wildcards. A search
counts the nodes that it visits, and :meth:`Subscriptions.crowd` finds who has so many of these patterns.

Pure: no gevent, no sockets. A subscriber may be anything that a dictionary takes as a key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from itertools import islice
from typing import Final, Generic, TypeVar

from ..errors import BadTopic

__all__ = ["MAX_TOKENS", "MAX_TOPIC", "ONE", "REST", "SEPARATOR", "Subscriptions", "check_pattern", "check_topic",
           "is_literal", "matches", "matching", "overlap"]  # fmt: skip

SEPARATOR: Final = "."
ONE: Final = "*"
REST: Final = ">"
#: The most bytes that a topic has: the highest number that the 2 bytes of its length can hold.
MAX_TOPIC: Final = 65535
#: The most tokens that a pattern has. Each may add a level to the index, so peers must not choose the number freely.
MAX_TOKENS: Final = 64

#: Nodes that :meth:`Subscriptions.crowd` looks at.
_SAMPLE: Final = 256
#: It names a key if at least this part of them is due to the key.
_LEAST_SHARE: Final = 1 / 64

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def check_topic(topic: str) -> bytes:
    """Return a topic's bytes.

    Raises:
        BadTopic: it is not a topic; the message says why.
    """
    encoded = _encode(topic, "a topic")
    if ONE in topic or REST in topic:
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
    if REST in tokens[:-1]:
        raise BadTopic(pattern, "> stands for all that follows, so it is the last token: 'a.>'")
    for token in tokens:
        if len(token) > 1 and (ONE in token or REST in token):
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


def is_literal(pattern: str) -> bool:
    """Return whether a pattern has no wildcard: it matches one topic."""
    return ONE not in pattern and REST not in pattern


def matches(pattern: str, topic: str) -> bool:
    """Return whether a pattern matches a topic. Both must be valid."""
    if pattern == topic or pattern == REST:
        return True
    wanted, tokens = pattern.split(SEPARATOR), topic.split(SEPARATOR)
    if wanted[-1] == REST:
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(one in (ONE, token) for one, token in zip(wanted, tokens, strict=False))


def matching(pattern: str, by_topic: Mapping[str, Value]) -> list[tuple[str, Value]]:
    """Return the items of a mapping whose topics match a pattern, in their order. The pattern must be valid."""
    if is_literal(pattern):
        return [(pattern, by_topic[pattern])] if pattern in by_topic else []
    return [item for item in by_topic.items() if matches(pattern, item[0])]


def overlap(one: str, other: str) -> bool:
    """Return whether some topic matches both patterns. Both must be valid."""
    mine, others = one.split(SEPARATOR), other.split(SEPARATOR)
    for token, another in zip(mine, others, strict=False):
        if REST in (token, another):
            return True
        if token != another and ONE not in (token, another):
            return False
    return len(mine) == len(others)


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
    """An index of subscriptions. A subscription that was added twice must be removed twice.

    Attributes:
        visits: the number of nodes that the last :meth:`match` has visited.
    """

    __slots__ = ("_count", "_root", "visits")

    def __init__(self) -> None:
        self._root: _Node[Key] = _Node()
        self._count = 0
        self.visits = 0

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
        """Return the keys that have a pattern which matches the topic: a new set."""
        found: set[Key] = set()
        tokens = topic.split(SEPARATOR)
        node = self._root
        # While only one node is left, as for most topics.
        for depth, token in enumerate(tokens):
            below = node.below
            if below is None:
                self.visits = depth
                return found
            rest = below.get(REST)
            if rest is not None and rest.here is not None:
                found.update(rest.here)
            same, one = below.get(token), below.get(ONE)
            if same is not None and one is not None:
                self._match_several([same, one], tokens[depth + 1 :], found)
                self.visits += depth
                return found
            if same is None and one is None:
                self.visits = depth
                return found
            node = same or one  # type: ignore[assignment]
        self.visits = len(tokens)
        if node.here is not None:
            found.update(node.here)
        return found

    def _match_several(self, nodes: list[_Node[Key]], tokens: list[str], found: set[Key]) -> None:
        """Add the keys that have a pattern which matches the rest of a topic, below some nodes."""
        visits = len(nodes)
        for token in tokens:
            for node in nodes:
                rest = node.below.get(REST) if node.below is not None else None
                if rest is not None and rest.here is not None:
                    found.update(rest.here)
            nodes = _further(nodes, token)
            visits += len(nodes)
            if not nodes:
                break
        self.visits = visits
        for node in nodes:
            if node.here is not None:
                found.update(node.here)

    def crowd(self, topic: str) -> Key | None:
        """Return the key that makes the search for a topic longest; None if many keys do, each a little."""
        nodes = widest = [self._root]
        for token in topic.split(SEPARATOR):
            nodes = _further(nodes, token)
            if len(nodes) >= len(widest):
                widest = nodes
        sample = widest[:: len(widest) // _SAMPLE + 1]
        shares: Counter[Key] = Counter()
        for node in sample:
            # Any pattern that begins here: the search is long because of those that begin alike and end differently.
            while node.here is None and node.below is not None:
                node = next(iter(node.below.values()))
            shares.update(islice(node.here or (), _SAMPLE))
        key, share = max(shares.items(), key=lambda item: item[1], default=(None, 0))
        return key if share >= _LEAST_SHARE * len(sample) else None


def _further(nodes: list[_Node[Key]], token: str) -> list[_Node[Key]]:
    """Return the nodes that a topic's next token leads to."""
    further = []
    for node in nodes:
        below = node.below
        if below is not None:
            for same in (below.get(token), below.get(ONE)):
                if same is not None:
                    further.append(same)
    return further
