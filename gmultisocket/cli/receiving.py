"""Receiving until it is enough, and saying why nothing comes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import gevent
from gevent import Greenlet, GreenletExit

from ..errors import Timeout
from .connecting import SILENCE
from .notes import note, report
from .output import Printer

if TYPE_CHECKING:
    from .connecting import Endpoint

    _T = TypeVar("_T")

__all__ = ["Silence", "receive", "until_signal"]


@contextmanager
def until_signal(endless: object) -> Iterator[None]:
    """Take a signal for the normal end of a command that has no other, with status 0."""
    try:
        yield
    except GreenletExit:
        if not endless:
            raise


def receive(
    endpoint: Endpoint,
    arguments: Namespace,
    printer: Printer,
    take: Callable[[float | None], _T],
    handle: Callable[[_T], object],
    hint: str,
) -> int:
    """Receive until ``--count`` have come. Return the exit status: 1 if too little came within ``--timeout``.

    Args:
        endpoint: the socket or protocol.
        arguments: of a command with ``add_count_received``.
        printer: counts.
        take: returns the next one; takes a timeout.
        handle: is called with each.
        hint: why nothing may come though a peer is connected.
    """
    with Silence(endpoint, hint) as silence:
        while not printer.done:
            try:
                item = take(arguments.timeout)
            except Timeout:
                break
            handle(item)
            if printer.printed:
                silence.end()
    needed = arguments.count or 1
    if printer.printed < needed:
        report(f"{printer.printed} of {needed} messages arrived, then none for {arguments.timeout} s")
        return 1
    return 0


class Silence:
    """Says once on standard error that nothing has come. A context manager.

    Args:
        endpoint: the socket or protocol.
        hint: why nothing may come though a peer is connected.
    """

    def __init__(self, endpoint: Endpoint, hint: str) -> None:
        self._endpoint = endpoint
        self._hint = hint
        self._waiting: Greenlet[..., object] | None = None

    def __enter__(self) -> Silence:
        self._waiting = gevent.spawn_later(SILENCE, self._say)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop reporting. May be repeated."""
        if self._waiting is not None:
            self._waiting.kill(block=False)
            self._waiting = None

    def _say(self) -> None:
        pipes = len(self._endpoint.pipes)
        if not pipes:
            note("nobody has connected yet")
        else:
            peers = "1 peer is" if pipes == 1 else f"{pipes} peers are"
            note(f"{peers} connected, but nothing has come: {self._hint}")
