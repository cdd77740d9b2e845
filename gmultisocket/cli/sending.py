"""Sending what a source yields: how often, and when."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

import gevent

from .notes import report
from .progress import Progress
from .sources import Item, Source

if TYPE_CHECKING:
    from .connecting import Endpoint

__all__ = ["close", "is_endless", "send_items"]


def is_endless(arguments: Namespace, source: Source) -> bool:
    """Return whether the arguments say that the same message is sent until a signal comes."""
    return source.single and arguments.interval is not None and not arguments.count


def send_items(
    arguments: Namespace, source: Source, send: Callable[[Item], object], what: str, times: int | None = None
) -> None:
    """Call ``send`` with each item, as often and at the times that the arguments say. Raises what it raises.

    Args:
        arguments: of a command with ``add_pace``.
        source: of the items.
        send: may block.
        what: the work, for its progress; "" for a command that also prints.
        times: how often each item is sent. None: once, or without an end where a single one has an interval.
    """
    if arguments.delay:
        gevent.sleep(arguments.delay)
    interval = arguments.interval or 0.0
    endless = times is None and source.single and arguments.interval is not None
    times = times or 1
    with Progress(what, times if source.single and not endless else None) as progress:
        due = monotonic()
        for number, item in enumerate(_repeat(source, times, endless)):
            if number and interval:
                # The time that sending takes is part of the interval.
                due = max(due + interval, monotonic() - interval)
                gevent.sleep(max(0.0, due - monotonic()))
            send(item)
            if source.size and not source.single and times == 1:
                progress.show(source.position, source.size, "bytes")
            else:
                progress.show(number + 1)


def _repeat(source: Source, times: int, endless: bool) -> Iterator[Item]:
    """Yield the items so many times, or without an end."""
    if times == 1 and not endless:
        yield from source
        return
    items = list(source)
    while endless or times > 0:
        yield from items
        times -= 1


def close(endpoint: Endpoint) -> int:
    """Close a socket or a protocol, report the messages that are lost, and return the exit status."""
    lost = endpoint.close()
    if lost:
        report(f"{lost} messages were not sent")
    return 1 if lost else 0
