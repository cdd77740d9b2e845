"""Many cases in one test: all of them run, and the failure names every case that failed.

::

    with every_case() as case:
        for text, number in TABLE:
            with case(text):
                assert parse(text) == number

This is for tables of values: a test of its own for each row would say no more than the row's name does. Transports, and
what is a behaviour of its own, are parameters or tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

__all__ = ["every_case"]

#: How much of a case's name, and of its error, the summary shows, in characters. The first error also stands in full.
_MAX_NAME, _MAX_TEXT = 100, 200


@contextmanager
def every_case() -> Iterator[Callable[[object], AbstractContextManager[None]]]:
    """Give what runs one case; at the end, fail if a case failed or if there was none.

    A case may fail by an assertion, by any other exception, and by ``pytest.raises``. The test's deadline ends the
    test as ever.
    """
    __tracebackhide__ = True
    count = 0
    failed: list[tuple[str, BaseException]] = []

    @contextmanager
    def case(name: object) -> Iterator[None]:
        nonlocal count
        count += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            if _is_deadline(error):
                error.add_note(f"in the case {name}")
                raise
            failed.append((_in_one_line(str(name), _MAX_NAME), error))

    yield case
    if not count:
        raise AssertionError("there was no case")
    if failed:
        lines = [f"  {name}: {type(error).__name__}: {_in_one_line(str(error), _MAX_TEXT)}" for name, error in failed]
        raise AssertionError("\n".join([f"{len(failed)} of {count} cases failed:", *lines])) from failed[0][1]


def _is_deadline(error: BaseException) -> bool:
    return isinstance(error, pytest.fail.Exception) and str(error).startswith("Timeout (>")


def _in_one_line(text: str, size: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[:size] + "..."
