"""A limit on the time of something that the library does."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket.errors import PipeRefused
from gmultisocket.loop.timelimit import time_limit


def test_an_error_says_which_limit_was_over() -> None:
    with pytest.raises(PipeRefused, match="inner"):
        with time_limit(60, PipeRefused("outer")), time_limit(0, PipeRefused("inner")):
            gevent.sleep(60)
    went_on = False
    with pytest.raises(PipeRefused, match="outer"):
        with time_limit(0, PipeRefused("outer")):
            with time_limit(60, PipeRefused("inner")):
                gevent.sleep(60)
            went_on = True
    assert not went_on


def test_a_timeout_of_somebody_else_passes_through() -> None:
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0) as own:
        with time_limit(60, PipeRefused("inner")):
            gevent.sleep(60)
    assert caught.value is own
