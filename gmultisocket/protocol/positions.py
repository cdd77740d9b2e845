"""What a Sub knows of the histories of its publishers: what it has had, what it asks for, and what is missing.

A publisher numbers the publications of topics with history or a retained value (:mod:`.history`). :class:`Positions`
decides for each one that comes whether the program gets it, and finds out when one is missing. It promises: what the
program gets is in order and without duplicates for each history and topic. If something is missing between two
publications, a :class:`Gap` says so before the second one.

* A pattern of the Sub and a history that serves it have a *meeting*. It begins when a publisher has answered the Sub's
  asking (0x06), and goes on over reconnects, and over publishers that serve the same history.
* Several publishers may serve one meeting: several workers behind a backplane do. Only one of them replays what was
  missed, and then all of them are heard; what two of them send comes once.
* If several patterns match a topic, the oldest one that has a meeting with the history decides: its replay counts, and
  the others' replays of this topic are ignored.

Pure: no gevent, no sockets. A source is the path of a publisher, and begins with the id of the pipe that leads to it.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from ..wire import pack_id
from .pubsubwire import MAX_POSITIONS, Ask, Position, Positioned, Replay
from .subscriptions import Subscriptions, overlap

__all__ = ["Gap", "Positions"]

#: Topics of one history whose last offset is remembered. Of a topic beyond them a gap may be told where none is, and
#: what is sent twice, by a second publisher or in another replay, may come twice.
_MAX_TOPICS: Final = 1 << 16
#: Histories that are remembered. If there are more, those without a meeting are forgotten, the oldest ones first.
_MAX_HISTORIES: Final = 64
#: A new meeting is compared with at most this number of others. If there are more, all since the history was met count
#: as overlapping: a gap may then be told for what was published while a pattern was not subscribed to.
_MAX_COMPARED: Final = 256
#: Topics whose deciding meeting is remembered.
_MAX_CACHED: Final = 1 << 14

_random = random.SystemRandom()


class Gap(NamedTuple):
    """Publications are missing, and will not come.

    Attributes:
        pattern: the subscription that they match.
        topic: their topic; None if it may be any that the pattern matches.
        reason: ``"overflow"``: they were dropped on the way, at a queue that was full. ``"history"``: the publisher
            does not have them any more, or the Sub has met more than 16 histories by one pattern, and forgets one of
            them. ``"gone"``: after a reconnect no publisher had their history, or their publisher has another one now,
            because it lives in a server that has lost it; if one comes later that has it, they come after all.
    """

    pattern: str
    topic: str | None
    reason: Literal["overflow", "history", "gone"]


class _Meeting:
    """A pattern and a history.

    Offsets number the publications of all topics of the history. ``lost``, ``since`` and ``ended`` are moments, which
    are numbered too: a later one has a higher number.

    Attributes:
        pattern: the pattern.
        base: no publication up to this offset is awaited: the program has it, or was told of a gap, or it is older
            than the subscription. A replay raises it when it begins, and lowers it if it is broken off.
        position: all publications up to this offset have come, or were dropped on the way. The next asking says so.
        sources: the publishers that serve it. By source: the id of the asking that it replays for, 0 if its replay has
            ended.
        starts: by source whose replay has ended: its live publications begin behind this offset.
        replaying: the source whose replay counts; None while none is needed.
        told: the present replay is the first one, or began with a gap. So the program needs no other gap for what is
            missing in it up to ``base``.
        gone: the program was told of a gap because no publisher had the history.
        lost: when the last publisher went.
        since: the Sub has been subscribed to some of the pattern's topics since then, without a pause. That is when the
            meeting began; or ``since`` of another meeting with the history, if that had not ended then and the two
            patterns overlap.
        ended: when it ended, 0 before.
    """

    __slots__ = (
        "base",
        "ended",
        "gone",
        "lost",
        "pattern",
        "position",
        "replaying",
        "since",
        "sources",
        "starts",
        "told",
    )

    def __init__(self, pattern: str, since: int) -> None:
        self.pattern = pattern
        self.since = since
        self.ended = 0
        self.base = 0
        self.position = 0
        self.sources: dict[bytes, int] = {}
        self.starts: dict[bytes, int] = {}
        self.replaying: bytes | None = None
        self.told = False
        self.gone = False
        self.lost = 0

    def cut_off(self) -> None:
        """Break off the replay that counts, if there is one: what it has not brought is awaited again."""
        if self.replaying is not None:
            self.replaying = None
            self.base = min(self.base, self.position)

    def tell_gone(self) -> Gap:
        """Return the gap for a history that no publisher has, or that one has lost and others may lose later."""
        self.gone = not self.sources
        return Gap(self.pattern, None, "gone")


class _Pattern:
    """A pattern that the Sub has subscribed to.

    Attributes:
        order: when it was added: patterns with a lower number are older.
        meetings: by epoch, the one that began first is first.
        askings: by pipe id: the id of the last asking.
        answered: the publishers that have answered one, as long as their pipes are there.
    """

    __slots__ = ("answered", "askings", "meetings", "order")

    def __init__(self, order: int) -> None:
        self.order = order
        self.meetings: OrderedDict[int, _Meeting] = OrderedDict()
        self.askings: dict[int, int] = {}
        self.answered: set[bytes] = set()


class Positions:
    """The positions of one Sub in all histories that it knows.

    A publication goes through :meth:`take`, and each answer of a publisher through :meth:`answer`.
    """

    def __init__(self) -> None:
        self._patterns: dict[str, _Pattern] = {}
        self._index: Subscriptions[str] = Subscriptions()
        self._count = 0
        #: By the id of an asking that may still be answered: the pattern.
        self._askings: dict[int, str] = {}
        #: By epoch, the one that was met first is first, and by topic: the offset of the last publication that the
        #: program got, the meeting that decided so, and the moment.
        self._last: OrderedDict[int, OrderedDict[str, tuple[int, _Meeting, int]]] = OrderedDict()
        #: The meetings by epoch and pattern.
        self._meetings: dict[int, dict[str, _Meeting]] = {}
        #: By epoch: since which moment there has always been a meeting. No meeting has an earlier ``since``.
        self._since: dict[int, int] = {}
        #: By source: the highest offset of its live publications, by epoch.
        self._heard: dict[bytes, dict[int, int]] = {}
        #: By epoch and topic: the meeting that decides.
        self._deciding: dict[tuple[int, str], _Meeting | None] = {}
        #: Patterns of which live publications were ignored because an answer, or the end of a replay, had not come; and
        #: how often :meth:`overdue` has looked since.
        self._ignored: dict[str, int] = {}

    # Patterns

    def add(self, pattern: str) -> None:
        """Begin with a pattern."""
        self._count += 1
        self._patterns[pattern] = _Pattern(self._count)
        self._index.add(pattern, pattern)
        self._deciding.clear()

    def remove(self, pattern: str) -> None:
        """Forget a pattern."""
        mine = self._patterns.pop(pattern)
        for number in mine.askings.values():
            del self._askings[number]
        for epoch in [*mine.meetings]:
            self._end_meeting(mine, epoch)
        self._ignored.pop(pattern, None)
        self._index.remove(pattern, pattern)
        self._deciding.clear()
        self._forget_epochs()

    def knows(self, pattern: str, epoch: int) -> bool:
        """Return whether a publisher with this history has answered for a pattern."""
        return epoch in self._patterns[pattern].meetings

    # Asking, and answers

    def ask(self, pattern: str, pipe_id: int, *, retained: bool = False, recover: bool = False) -> Ask:
        """Return what to ask the publishers behind a pipe. Answers to an earlier asking do not count any more."""
        mine = self._patterns[pattern]
        before = mine.askings.pop(pipe_id, None)
        if before is not None:
            del self._askings[before]
        number = _random.randrange(1, 1 << 32)
        while number in self._askings:
            number = number % 0xFFFFFFFF + 1
        mine.askings[pipe_id] = number
        self._askings[number] = pattern
        self._ignored.pop(pattern, None)
        if before is not None:
            self._break_off(mine, pattern, pipe_id)
        return self._ask(number, pattern, retained, recover)

    def _break_off(self, mine: _Pattern, pattern: str, pipe_id: int) -> None:
        """End the replays by a pipe: its publishers are asked again."""
        prefix = pack_id(pipe_id)
        for epoch, meeting in mine.meetings.items():
            unended = [source for source, replays in meeting.sources.items() if replays and source.startswith(prefix)]
            if unended and self._remove_sources(epoch, meeting, unended):
                # Those behind other pipes are to be asked as well, soon.
                self._ignored[pattern] = 1

    def ask_another(self, pattern: str, pipe_id: int, *, retained: bool = False, recover: bool = False) -> Ask | None:
        """Return what to ask one more publisher behind a pipe, so that answers of the others still count.

        Returns:
            None if those behind the pipe have not been asked.
        """
        number = self._patterns[pattern].askings.get(pipe_id)
        return None if number is None else self._ask(number, pattern, retained, recover)

    def _ask(self, number: int, pattern: str, retained: bool, recover: bool) -> Ask:
        meetings = self._patterns[pattern].meetings
        positions = [Position(epoch, self._position(epoch, meeting)) for epoch, meeting in meetings.items()]
        return Ask(number, retained, recover, tuple(positions), pattern)

    def asked(self, number: int) -> str | None:
        """Return the pattern of an asking, None if its answers do not count."""
        return self._askings.get(number)

    def serves(self, pattern: str, source: bytes) -> bool:
        """Return whether a publisher has answered the present asking for a pattern."""
        return any(source in meeting.sources for meeting in self._patterns[pattern].meetings.values())

    def has_met(self, source: bytes) -> bool:
        """Return whether a publisher has answered for any pattern, to the end."""
        return source in self._heard

    def answered(self, topic: str) -> dict[str, set[bytes]]:
        """Return the patterns that match a topic, and the publishers that have answered any asking for each."""
        return {pattern: self._patterns[pattern].answered for pattern in self._index.match(topic)}

    def overdue(self) -> list[str]:
        """Return the patterns for which an answer, or the end of a replay, was probably lost: to be asked again.

        They are those of which publications were ignored before the last call, and nothing of a replay came since.
        """
        found = []
        for pattern, looks in self._ignored.items():
            self._ignored[pattern] = looks + 1
            if looks:
                found.append(pattern)
        return found

    def answer(self, source: bytes, replay: Replay) -> list[Gap]:
        """Handle an answer (0x06). Return the gaps; the program must be told of them before anything that follows."""
        pattern = self._askings.get(replay.id)
        if pattern is None:
            return []
        self._ignored.pop(pattern, None)
        mine = self._patterns[pattern]
        mine.answered.add(source)
        gaps: list[Gap] = []
        meeting = mine.meetings.get(replay.epoch)
        first = meeting is None
        if meeting is None:
            gaps = self._first_meeting(pattern, mine, replay.epoch)
            meeting = mine.meetings[replay.epoch]
        if meeting.sources.get(source) != replay.id:
            gaps += self._leave_others(mine, source, replay.epoch)
            # A publisher that was asked before another one with the same history has answered knows no position.
            gap = replay.gap or (not first and replay.first_meeting and replay.offset > meeting.position)
            gaps += self._begin(meeting, source, replay, first, gap)
        if replay.end:
            self._end(meeting, source, replay)
        return gaps

    def _first_meeting(self, pattern: str, mine: _Pattern, epoch: int) -> list[Gap]:
        """Begin a meeting. Return gaps: if a publisher was started again, the rest of its old history is missing."""
        gaps = [one.tell_gone() for one in mine.meetings.values() if not one.sources and not one.gone]
        if len(mine.meetings) >= MAX_POSITIONS:
            # The one that no publisher serves, or that is oldest.
            old = next((old for old, one in mine.meetings.items() if not one.sources), next(iter(mine.meetings)))
            if mine.meetings[old].sources:
                # It gets no place in the next question, so nobody would say what is missing when it comes back.
                gaps.append(Gap(pattern, None, "history"))
            self._end_meeting(mine, old)
        self._count += 1
        others = self._meetings.setdefault(epoch, {})
        since = self._since.setdefault(epoch, self._count)
        if len(others) <= _MAX_COMPARED:
            before = (one.since for one in others.values() if overlap(one.pattern, pattern))
            since = min(before, default=self._count)
        others[pattern] = mine.meetings[epoch] = _Meeting(pattern, since)
        self._last.setdefault(epoch, OrderedDict())
        self._forget_epochs()
        self._deciding.clear()
        return gaps

    def _leave_others(self, mine: _Pattern, source: bytes, epoch: int) -> list[Gap]:
        """A publisher has this history and no other one: end its part in others. Return gaps: their rest is missing."""
        gaps = []
        for other, meeting in mine.meetings.items():
            if other != epoch and source in meeting.sources:
                if self._remove_sources(other, meeting, [source]):
                    # Those that have the other history are to be asked as well, soon.
                    self._ignored[meeting.pattern] = 1
                if not meeting.gone:
                    gaps.append(meeting.tell_gone())
        return gaps

    def _begin(self, meeting: _Meeting, source: bytes, replay: Replay, first: bool, gap: bool) -> list[Gap]:
        """Add a publisher to a meeting. Its replay counts if the meeting has no other publisher."""
        needed = meeting.replaying is None and not meeting.sources
        meeting.sources[source] = replay.id
        meeting.gone = False
        if not needed:
            return []
        meeting.replaying = source
        meeting.told = gap or first
        if meeting.told:
            meeting.base = max(meeting.base, replay.offset)
        return [Gap(meeting.pattern, None, "history")] if gap else []

    def _end(self, meeting: _Meeting, source: bytes, replay: Replay) -> None:
        """End the replay of a publisher. Its live publications begin behind the offset of the answer."""
        meeting.sources[source] = 0
        meeting.starts[source] = replay.offset
        heard = self._heard.setdefault(source, {})
        heard[replay.epoch] = max(heard.get(replay.epoch, 0), replay.offset)
        if meeting.replaying == source:
            meeting.replaying = None
            meeting.position = max(meeting.position, replay.offset)

    # Publications

    def take(self, source: bytes, message: Positioned, topic: str) -> tuple[bool, Gap | None]:
        """Decide whether the program gets a publication.

        Args:
            source: of the publication.
            message: the publication; ``id`` is 0 for a live one.
            topic: its topic.

        Returns:
            Whether the program gets it; and the gap in front of it, None if nothing is missing there.
        """
        epoch, offset = message.epoch, message.offset
        if message.id:
            return self._take_replayed(source, message, topic)
        heard = self._heard.get(source)
        if heard is None:
            return self._ignore(topic)
        if offset > heard.get(epoch, 0):
            heard[epoch] = offset
        meeting = self._meeting_of(epoch, topic)
        # Before the end of the replay, a live publication is a part of it as well.
        if meeting is None or meeting.replaying is not None or meeting.sources.get(source) != 0:
            return self._ignore(topic)
        return self._check(meeting, message, topic)

    def _ignore(self, topic: str) -> tuple[bool, None]:
        for pattern in self._index.match(topic):
            self._ignored.setdefault(pattern, 0)
        return False, None

    def _take_replayed(self, source: bytes, message: Positioned, topic: str) -> tuple[bool, Gap | None]:
        pattern = self._askings.get(message.id)
        meeting = None if pattern is None else self._patterns[pattern].meetings.get(message.epoch)
        if meeting is None or meeting.sources.get(source) != message.id:
            return False, None
        self._ignored.pop(meeting.pattern, None)
        counts = meeting.replaying == source
        if counts:
            meeting.position = max(meeting.position, message.offset)
        if meeting.replaying not in (None, source) or self._meeting_of(message.epoch, topic) is not meeting:
            return False, None
        told = counts and meeting.told and message.offset <= meeting.base
        return self._check(meeting, message, topic, told=told)

    def _check(
        self, meeting: _Meeting, message: Positioned, topic: str, *, told: bool = False
    ) -> tuple[bool, Gap | None]:
        """Find out whether a publication is a duplicate, and whether the one before it in its topic is missing.

        Args:
            meeting: the one that decides about the topic.
            message: the publication.
            topic: its topic.
            told: the program needs no gap in front of this one.

        Returns:
            As :meth:`take`.
        """
        table = self._last[message.epoch]
        last, decided, moment = table.get(topic, (0, meeting, 0))
        if decided.ended and decided.ended <= meeting.since:
            # After that meeting the Sub was not subscribed to the topic for a time. A new subscription gets its value.
            decided, last = meeting, last - (told and moment < self._patterns[meeting.pattern].order)
        if decided is not meeting:
            # It has been subscribed all the time: what is older than this meeting is awaited too.
            last = max(last, decided.base)
            told = False
        elif not told:
            last = max(last, meeting.base)
        if message.offset <= last:
            return False, None
        # While publications are older than this meeting, the one before it goes on to say what is awaited.
        table[topic] = (message.offset, decided if message.offset < meeting.base else meeting, self._count)
        table.move_to_end(topic)
        if len(table) > _MAX_TOPICS:
            table.popitem(last=False)
        gap = None if told or message.previous <= last else Gap(meeting.pattern, topic, "overflow")
        return True, gap

    def _meeting_of(self, epoch: int, topic: str) -> _Meeting | None:
        """Return the meeting that decides about a topic."""
        key = (epoch, topic)
        try:
            return self._deciding[key]
        except KeyError:
            pass
        patterns = sorted((self._patterns[pattern] for pattern in self._index.match(topic)), key=lambda one: one.order)
        found = next((one.meetings[epoch] for one in patterns if epoch in one.meetings), None)
        if len(self._deciding) >= _MAX_CACHED:
            self._deciding.clear()
        self._deciding[key] = found
        return found

    # Publishers that go

    def remove_pipe(self, pipe_id: int) -> list[str]:
        """Forget the publishers behind a pipe. Return the patterns to ask the others for."""
        prefix = pack_id(pipe_id)
        again = []
        for pattern, mine in self._patterns.items():
            number = mine.askings.pop(pipe_id, None)
            if number is not None:
                del self._askings[number]
            mine.answered -= {source for source in mine.answered if source.startswith(prefix)}
            for epoch, meeting in mine.meetings.items():
                gone = [source for source in meeting.sources if source.startswith(prefix)]
                if gone and self._remove_sources(epoch, meeting, gone):
                    again.append(pattern)
        for source in [source for source in self._heard if source.startswith(prefix)]:
            del self._heard[source]
        return again

    def refused(self, source: bytes, pattern: str) -> bool:
        """Remove a publisher that has refused a pattern. Return whether the others must be asked again."""
        mine = self._patterns.get(pattern)
        if mine is None:
            return False
        mine.answered.discard(source)
        again = False
        for epoch, meeting in list(mine.meetings.items()):
            if source in meeting.sources:
                again |= self._remove_sources(epoch, meeting, [source])
                if not meeting.sources and not again:
                    # The refusal says it all.
                    self._end_meeting(mine, epoch)
        return again

    def _remove_sources(self, epoch: int, meeting: _Meeting, gone: Iterable[bytes]) -> bool:
        """Remove publishers from a meeting. Return whether the others must be asked again."""
        meeting.position = self._position(epoch, meeting)
        for source in gone:
            del meeting.sources[source]
            meeting.starts.pop(source, None)
        if not meeting.sources:
            self._count += 1
            meeting.lost = self._count
        if meeting.replaying is None:
            # The others may have begun behind what this one has brought.
            complete = all(start <= meeting.position for start in meeting.starts.values())
        else:
            # They have been ignored while this one replayed.
            complete = meeting.replaying in meeting.sources
        if complete:
            return False
        meeting.cut_off()
        if not meeting.sources:
            return False
        meeting.sources.clear()
        meeting.starts.clear()
        return True

    def now(self) -> int:
        """Return the present moment, for :meth:`expire`."""
        self._count += 1
        return self._count

    def expire(self, pattern: str, before: int | None = None) -> list[Gap]:
        """Forget the histories that no publisher has. Return the gaps that the program was not told of before.

        Args:
            pattern: the subscription.
            before: forget only those that were lost before this moment.
        """
        gaps: list[Gap] = []
        mine = self._patterns.get(pattern)
        if mine is not None:
            for epoch, meeting in [*mine.meetings.items()]:
                if not meeting.sources and (before is None or meeting.lost < before):
                    if not meeting.gone:
                        gaps.append(meeting.tell_gone())
                    self._end_meeting(mine, epoch)
            self._forget_epochs()
        return gaps

    def _end_meeting(self, mine: _Pattern, epoch: int) -> None:
        self._count += 1
        meeting = mine.meetings.pop(epoch)
        meeting.ended = self._count
        meeting.cut_off()
        del self._meetings[epoch][meeting.pattern]
        if not self._meetings[epoch]:
            del self._meetings[epoch], self._since[epoch]
        self._deciding.clear()

    def _forget_epochs(self) -> None:
        """Forget the oldest histories without a meeting, if there are many. Others are kept: they may come back."""
        if len(self._last) > _MAX_HISTORIES:
            unused = [epoch for epoch in self._last if epoch not in self._meetings]
            for epoch in unused[: len(self._last) - _MAX_HISTORIES]:
                del self._last[epoch]

    def _position(self, epoch: int, meeting: _Meeting) -> int:
        """Return the offset up to which a meeting has everything, or lost it on the way."""
        if meeting.replaying is not None:
            return meeting.position
        heard = [self._heard[source].get(epoch, 0) for source, replays in meeting.sources.items() if not replays]
        return max([meeting.position, *heard])
