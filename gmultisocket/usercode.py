"""Errors that come out of the program's own code where the library calls it, and nobody else would see them.

That is code such as handlers, pipe callbacks, middlewares, negotiators, and the functions in options. After any error
of such code the library goes on: it reports the error here, and does what its documentation says for that place.

* An ``Exception``, or a ``gevent.Timeout`` that the code did not catch, is logged as an error with its traceback.
* ``GreenletExit`` ends the greenlet that handlers, pipe callbacks and middlewares run in, as everywhere in gevent. It
  is logged as a warning, and another greenlet does the work from then on. A greenlet that the library itself ends, by
  ``close()``, is not replaced: the state of its owner makes the difference, not the exception. A negotiator or function
  that is killed while it decides about a connection has refused it.
* ``KeyboardInterrupt`` and ``SystemExit`` are raised in the main greenlet, as gevent does it for any greenlet.

A peer can cause such errors as often as it likes. So in each ``_INTERVAL`` only the first error of a kind is logged at
its own level, with the number of those before it that were not; these are logged as DEBUG records. Errors are of the
same kind if the same object's code raised the same class at the same place in the source.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

import gevent
from gevent import GreenletExit, get_hub, getcurrent
from gevent.hub import Hub

from .errors import snippet
from .log import get_logger, report_failure

__all__ = ["LibraryTimeout", "report"]

#: Seconds between two records of the same kind at their own level.
_INTERVAL: Final = 10.0
#: Kinds that are remembered for one object.
_MAX_KINDS: Final = 64


class LibraryTimeout(gevent.Timeout):
    """A timeout of the library around the program's code: not an error of that code, so it passes through."""


class _Kinds:
    """Counts the errors of each kind."""

    def __init__(self) -> None:
        #: By kind, the oldest first: when it was last logged at its own level, and how many errors were not since.
        self._kinds: dict[object, tuple[float, int]] = {}

    def count(self, kind: object) -> int:
        """Count an error. Return how many were not logged before it, or -1 if it is one of them."""
        now = monotonic()
        at, hidden = self._kinds.get(kind, (now - _INTERVAL, 0))
        if now - at < _INTERVAL:
            self._kinds[kind] = at, hidden + 1
            return -1
        self._kinds.pop(kind, None)
        if len(self._kinds) >= _MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
        self._kinds[kind] = now, 0
        return hidden


#: By the object that called the code.
_owners: WeakKeyDictionary[object, _Kinds] = WeakKeyDictionary()


def report(
    logger_name: str,
    what: str,
    error: BaseException,
    owner: object,
    *,
    pipe_id: int = 0,
    peer: str = "",
    request_id: str = "",
) -> None:
    """Log an error of the program's own code. Blocks as the handlers of ``logging`` do. In the hub, where nothing may
    block, another greenlet logs it.

    ``KeyboardInterrupt`` and ``SystemExit`` are not logged. They are raised in the main greenlet, unless the caller is
    that. So the caller must not let them out of its own greenlet as well.

    Args:
        logger_name: the logger.
        what: what has failed, a sentence.
        error: the exception.
        owner: the object that called the code; it must have weak references.
        pipe_id: of the pipe that the work was for, 0 for none. An attribute of the record, as are the next two.
        peer: the address of the peer that the work was for.
        request_id: the id of the request that the work was for.
    """
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        hub: Hub = get_hub()
        hub.handle_system_error(type(error), error)
        return
    kinds = _owners.get(owner)
    if kinds is None:
        kinds = _owners[owner] = _Kinds()
    hidden = kinds.count((what, *_origin(error)))
    level = logging.DEBUG if hidden < 0 else logging.WARNING if isinstance(error, GreenletExit) else logging.ERROR
    for_peer = f", for {snippet(peer)}" if peer else ""
    more = f" ({hidden} more like this were not shown)" if hidden > 0 else ""
    extra: dict[str, object] = {"pipe_id": pipe_id, "peer": snippet(peer), "request_id": request_id}
    if getcurrent() is get_hub():
        # Nothing may block there.
        gevent.spawn(_log, logger_name, level, (what, for_peer, more), error, extra)
    else:
        _log(logger_name, level, (what, for_peer, more), error, extra)


def _log(
    logger_name: str, level: int, text: tuple[str, str, str], error: BaseException, extra: dict[str, object]
) -> None:
    try:
        get_logger(logger_name, at_once=True).log(level, "%s%s%s", *text, exc_info=error, extra=extra)
    except LibraryTimeout:
        raise
    except gevent.Timeout:
        # A filter or handler has not caught it: in these greenlets no timeout of a caller runs.
        report_failure()


def _origin(error: BaseException) -> tuple[object, ...]:
    """Return the class of an error, and the place in the source that raised it."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return (type(error), step and step.tb_frame.f_code.co_filename, step and step.tb_lineno)
