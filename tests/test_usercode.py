"""Reports of errors of the program's own code."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import gevent
import pytest

from gmultisocket import Socket, usercode
from gmultisocket.errors import PipeRefused
from gmultisocket.loop.timelimit import time_limit


class Slow(logging.Handler):
    """A handler that never comes back."""

    def emit(self, record: logging.LogRecord) -> None:
        gevent.sleep(60)


@pytest.fixture
def slow() -> Iterator[None]:
    handler = Slow()
    logger = logging.getLogger("gmultisocket.slow")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)


@pytest.mark.usefixtures("slow")
def test_a_limit_of_the_library_holds_also_while_a_report_is_written() -> None:
    with Socket() as owner, pytest.raises(PipeRefused, match="too long"):
        with time_limit(0, PipeRefused("too long")):
            usercode.report("gmultisocket.slow", "it failed", ValueError("of the user's"), owner)
