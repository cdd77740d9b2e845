"""Many cases in one test: all of them run, and the failure names every case that failed.

::

    with every_case() as case:
        for text, number in TABLE:
            with case(text):
                assert parse(text) == number

Use it for tables of values, where a separate test for each row says nothing that the name of the row does not say. Use
parameters or separate tests for transports and for different behaviours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

__all__ = ["every_case"]

#: The summary shows this many characters of a case's name and of its error. Pytest shows the first error in full.
_MAX_NAME, _MAX_TEXT = 100, 200


@contextmanager
def every_case() -> Iterator[Callable[[object], AbstractContextManager[None]]]:
    """Yield a context manager that runs one case; at the end, fail if a case failed or if there was no case.

    A case fails by an assertion, by any other exception, or by ``pytest.raises``. The deadline of the test still ends
    the whole test.
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
