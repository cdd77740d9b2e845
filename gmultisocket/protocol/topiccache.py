"""The topics that a Pub has published, and the pipes that each went to, until a subscription changes that.

A change of one subscription concerns few topics. A tree of the topics' first tokens finds those that its pattern may
match; only they are forgotten, and only if the change makes a difference. The tree is made when it is first needed.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

from .subscriptions import ONE, REST, SEPARATOR

__all__ = ["TopicCache"]

#: Topics that are remembered.
_MAX_TOPICS: Final = 1024
#: Keys that are remembered for them, all together.
_MAX_KEYS: Final = 1 << 18
#: When there are so many, others are not remembered, until so many times as many have come: the topics of a publisher
#: that has too many, in turn, would push each other out, and cost more than if none was remembered.
_PATIENCE: Final = 8
#: The number of first tokens of a topic by which it is found.
_DEPTH: Final = 3
#: Nodes of the tree that one search visits. A pattern that needs more makes the cache forget all topics.
_MAX_VISITS: Final = 256
#: The key of a node's own topics. No token is empty.
_HERE: Final = ""

Key = TypeVar("Key", bound=Hashable)


class TopicCache(Generic[Key]):
    """Remembers topics.

    Attributes:
        groups: by topic: the bytes in front of a publication's content, and the keys of those who want it. Read-only.
    """

    __slots__ = ("_keys", "_new", "_refused", "_tree", "groups")

    def __init__(self) -> None:
        self.groups: dict[str, tuple[bytes, set[Key]]] = {}
        self._keys = 0
        #: Topics that were too many, since all were forgotten.
        self._refused = 0
        #: By token, as deep as ``_DEPTH``; under ``_HERE`` is a dict with the topics themselves.
        self._tree: dict[str, Any] = {}
        #: Topics that are not in the tree yet.
        self._new: list[str] = []

    def add(self, topic: str, head: bytes, keys: set[Key]) -> tuple[bytes, set[Key]]:
        """Return the group of a topic, and remember it if there are not too many. In time, others make room for it."""
        if len(self.groups) >= _MAX_TOPICS or self._keys > _MAX_KEYS:
            self._refused += 1
            if self._refused <= _PATIENCE * len(self.groups):
                return head, keys
            self.clear()
        self._keys += len(keys)
        self._new.append(topic)
        group = self.groups[topic] = (head, keys)
        return group

    def clear(self) -> None:
        """Forget all topics."""
        self.groups.clear()
        self._tree = {}
        self._new.clear()
        self._keys = self._refused = 0

    def changed(self, pattern: str, key: Key, added: bool) -> None:
        """Forget the topics for which it makes a difference that a key's subscription was added or removed."""
        if not self.groups:
            return
        topics = self._search(pattern.split(SEPARATOR))
        if topics is None:
            self.clear()
            return
        for topic in topics:
            if (key in self.groups[topic][1]) is not added:
                self._forget(topic)

    def forget_key(self, key: Key) -> None:
        """Forget the topics that a key wants."""
        for topic in [topic for topic, (_, keys) in self.groups.items() if key in keys]:
            self._forget(topic)

    def _forget(self, topic: str) -> None:
        self._keys -= len(self.groups.pop(topic)[1])
        self._sort()
        way: list[tuple[dict[str, Any], str]] = []
        node = self._tree
        for token in _first_tokens(topic):
            way.append((node, token))
            node = node[token]
        way.append((node, _HERE))
        del node[_HERE][topic]
        for above, token in reversed(way):
            if above[token]:
                return
            del above[token]

    def _sort(self) -> None:
        """Put the new topics into the tree."""
        for topic in self._new:
            node = self._tree
            for token in _first_tokens(topic):
                node = node.setdefault(token, {})
            node.setdefault(_HERE, {})[topic] = None
        self._new.clear()

    def _search(self, pattern: list[str]) -> list[str] | None:
        """Return the topics that a pattern may match; None if the search takes too long."""
        self._sort()
        nodes = [self._tree]
        visits = 0
        for token in pattern[:_DEPTH]:
            further: list[dict[str, Any]] = []
            for node in nodes:
                if token == REST:
                    return _all_below(nodes, visits)
                if token == ONE:
                    further += [below for token_below, below in node.items() if token_below != _HERE]
                elif (below := node.get(token)) is not None:
                    further.append(below)
                if visits + len(further) > _MAX_VISITS:
                    return None
            visits += len(further)
            nodes = further
        return [topic for node in nodes for topic in node.get(_HERE, ())]


def _first_tokens(topic: str) -> list[str]:
    return topic.split(SEPARATOR, _DEPTH)[:_DEPTH]


def _all_below(nodes: list[dict[str, Any]], visits: int) -> list[str] | None:
    """Return the topics of all nodes below some nodes; None if there are too many nodes."""
    topics: list[str] = []
    nodes = list(nodes)
    while nodes:
        visits += 1
        if visits > _MAX_VISITS:
            return None
        for token, below in nodes.pop().items():
            if token == _HERE:
                topics += below
            else:
                nodes.append(below)
    return topics
