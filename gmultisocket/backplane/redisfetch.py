"""Reads what Redis has of some patterns: present values and the history. In steps, so that no script runs for long.

All steps go by the connection that subscribes. So what was published before a step has come before its reply.

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final

from ..protocol.subscriptions import is_literal, matches
from .redishistory import HistoryCommands, State, read_state
from .redisvalues import Fetch, ValueCommands
from .rediswire import LOGGED, RETAINED, Change, Channels, bad_reply, first_tokens, pairs, shortest

__all__ = ["HistoryFetch"]

#: The most steps in search of what is lost of patterns with wildcards. After these more may be taken for lost than is.
_MAX_LOOKS: Final = 16

#: What a step yields, is sent, and returns.
_Steps = Generator[bytes, Any, None]


class HistoryFetch:
    """Reads what the server has of the patterns of a portion, which it serves already.

    Args:
        patterns: the patterns.
        channels: translates topics.
        values: makes the commands for present values.
        history: makes the others.
        report: called as ``report(topic, change, retained)`` for each publication and value. A publication that is the
            present value of its topic is reported twice, first as the value.
        count: called with the reason when something is dropped.

    Attributes:
        lost: by pattern, when it is done: of its topics with history, everything behind this offset was reported.
        state: at the end.
    """

    def __init__(
        self,
        patterns: Sequence[str],
        channels: Channels,
        values: ValueCommands,
        history: HistoryCommands,
        report: Callable[[str, Change, bool], object],
        count: Callable[[str], object],
    ) -> None:
        self._patterns = patterns
        self._channels = channels
        self._value_commands = values
        self._commands = history
        self._report = report
        self._count = count
        self._literals = [pattern for pattern in patterns if is_literal(pattern)]
        self._wild = [pattern for pattern in patterns if not is_literal(pattern)]
        tokens = shortest({first_tokens(pattern) for pattern in self._wild})
        #: What the channels of patterns with wildcards begin with.
        self._beginnings = [channels.encode_tokens(each) for each in tokens]
        #: By topic and offset of what was reported: the offset before it.
        self._found: dict[str, dict[int, int]] = {}
        self.lost = dict.fromkeys(patterns, 0)
        self.state = State(0, 0, 0, 0)

    def run(self) -> _Steps:
        """Yield each command, and take its reply.

        Raises:
            BadMessage: a reply has another form.
        """
        yield from self._fetch_values()
        if self._literals:
            yield from self._follow()
        if self._wild:
            yield from self._scan()
            yield from self._search("offsets")
            yield from self._search("lost")
        self.state = read_state((yield self._commands.look()))
        for pattern, lost in self.lost.items():
            unknown = 0 if is_literal(pattern) else self.state.forgotten
            self.lost[pattern] = max(lost, unknown, self.state.floor)

    def _fetch_values(self) -> _Steps:
        fetch = Fetch(self._patterns, self._channels)
        while (step := fetch.next) is not None:
            reply = yield self._value_commands.fetch(step)
            self._take(fetch.take(reply), True)

    def _follow(self) -> _Steps:
        """Read the topics of patterns without wildcards, each from its last publication back."""
        asked = [(pattern, self._channels.encode(pattern), b"") for pattern in self._literals]
        while asked:
            reply = yield self._commands.follow([word for _, *words in asked for word in words])
            if not isinstance(reply, list) or len(reply) != 4 or not isinstance(reply[1], list):
                raise bad_reply()
            count, ends, rest, found = reply
            self._take(pairs(found), False)
            for (topic, _, _), end in zip(asked, ends, strict=False):
                self.lost[topic] = self._go_back(topic, end)
            del asked[:count]
            if rest:
                asked[0] = *asked[0][:2], b"%d" % rest

    def _scan(self) -> _Steps:
        """Read everything."""
        start = 0
        while True:
            reply = yield self._commands.scan(start, self._beginnings)
            start, found = self._numbered(reply)
            self._take(found, False)
            if not start:
                break
        for topic, known in self._found.items():
            lost = self._go_back(topic, max(known))
            for pattern in self._wild:
                if lost > self.lost[pattern] and matches(pattern, topic):
                    self.lost[pattern] = lost

    def _search(self, key: str) -> _Steps:
        """Look for topics of which a publication is lost that no other one has told of."""
        below = b""
        for _ in range(_MAX_LOOKS):
            reply = yield self._commands.lost(key, below, self._beginnings)
            number, found = self._numbered(reply)
            for channel, last in found:
                topic = self._channels.decode(channel)
                if topic is None or last in self._found.get(topic, ()):
                    continue
                for pattern in self._wild:
                    if last > self.lost[pattern] and matches(pattern, topic):
                        self.lost[pattern] = last
            if number <= min(self.lost[pattern] for pattern in self._wild):
                return
            below = b"%d" % number
        for pattern in self._wild:
            self.lost[pattern] = max(self.lost[pattern], number)

    @staticmethod
    def _numbered(reply: Any) -> tuple[int, list[tuple[Any, Any]]]:
        """Return the number and the pairs in a reply."""
        match reply:
            case [int(number), found]:
                return number, pairs(found)
        raise bad_reply()

    def _take(self, found: list[tuple[bytes, bytes]], retained: bool) -> None:
        """Report present values, or publications of the log, which may be values as well."""
        kinds = (RETAINED,) if retained else (LOGGED, RETAINED)
        for topic, change in self._channels.read_changes(found, kinds, self._count):
            self._found.setdefault(topic, {})[change.number] = change.previous
            self._report(topic, change, retained)

    def _go_back(self, topic: str, offset: int) -> int:
        """Return the offset of a topic's last publication that was not reported, from one that may have been."""
        known = self._found.get(topic, {})
        while offset in known:
            offset = known[offset]
        return offset
