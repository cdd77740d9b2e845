"""What a Pub answers to a subscriber that says its positions (0x05).

Pure: no gevent, no sockets.
"""

from __future__ import annotations

from .history import Entry, History
from .pubsubwire import Ask, Replay

__all__ = ["begin_replay"]


def begin_replay(history: History, ask: Ask, max_bytes: int) -> tuple[Replay, list[Entry]]:
    """Return the head of a replay, and the publications in it, oldest first.

    * A subscriber that gives no position in this history meets it for the first time: it gets the retained values.
    * With a position it gets what is behind it. If something of that is not there any more, or it does not ask for it,
      or it is too much, the head says that there is a gap.

    Args:
        history: the Pub's.
        ask: what the subscriber says.
        max_bytes: the most bytes that the publications may have. If there are more, only the retained values are sent,
            and not even those if they are too many.
    """
    epoch, last = history.epoch, history.last_offset
    position = next((offset for known, offset in ask.positions if known == epoch), None)
    retained = history.retained(ask.pattern) if ask.retained else []
    if position is None:
        entries, recovered, gap = retained, False, False
    else:
        since = history.since(ask.pattern, position)
        recovered = since.complete and (ask.recover or not since.entries)
        gap = not recovered
        entries = since.entries if ask.recover else [entry for entry in retained if entry.offset > position]
    if _size(entries) > max_bytes:
        gap, recovered = True, False
        entries = retained if _size(retained) <= max_bytes else []
    return Replay(ask.id, epoch, last, recovered, gap, first_meeting=position is None), entries


def _size(entries: list[Entry]) -> int:
    return sum(len(entry.topic) + len(entry.content) for entry in entries)
