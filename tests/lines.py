"""A pytest plugin: records which tests execute the lines of which mutants, and how long each test takes.

``python3 -m pytest -p tests.lines --lines FILE`` adds what it finds to the file. :mod:`tests.mutations` uses it to run
for each mutant only the tests that can notice it. Lines that run in a test's child processes are not seen.

It uses ``sys.monitoring``, so it needs CPython 3.12. An event of a line is switched off when the line has run once in a
test: that costs little, and holds for all greenlets and threads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any, TypedDict

import pytest

from tests.mutants import PACKAGE, mutants

__all__ = ["Recording", "read"]


class Recording(TypedDict):
    """What was recorded.

    Attributes:
        names: the mutants' names.
        tests: for each test that passed its seconds, and the numbers of the mutants whose own line it has executed, and
            of those of which it has executed a far line.
    """

    names: list[str]
    tests: dict[str, tuple[float, list[int], list[int]]]


def read(path: Path) -> Recording:
    """Return what a file holds; a file that is missing holds nothing."""
    if not path.exists():
        return {"names": [], "tests": {}}
    recording: Recording = json.loads(path.read_text())
    return recording


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lines", help="record in this file which tests execute the lines of which mutants")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--lines")
    if path:
        config.pluginmanager.register(_Recorder(Path(path)), "line-recorder")


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        old = read(path)
        found = mutants()
        self._names = [mutant.name for mutant in found]
        numbers = {name: number for number, name in enumerate(self._names)}
        # The numbers of an older recording are those of an older source.
        renumbered = {number: numbers[name] for number, name in enumerate(old["names"]) if name in numbers}
        self._tests: dict[str, tuple[float, list[int], list[int]]] = {
            test: (seconds, *([renumbered[each] for each in some if each in renumbered] for some in (own, far)))
            for test, (seconds, own, far) in old["tests"].items()
        }  # type: ignore[misc]
        self._own: dict[tuple[str, int], list[int]] = {}
        self._far: dict[tuple[str, int], list[int]] = {}
        for number, mutant in enumerate(found):
            module = str(PACKAGE / mutant.path)
            self._own.setdefault((module, mutant.line), []).append(number)
            for line in mutant.far:
                self._far.setdefault((module, line), []).append(number)
        self._hit: set[tuple[str, int]] = set()
        self._seconds = 0.0
        self._passed = False

    def pytest_sessionstart(self) -> None:
        self._tool = sys.monitoring.COVERAGE_ID
        sys.monitoring.use_tool_id(self._tool, "mutants")
        sys.monitoring.register_callback(self._tool, sys.monitoring.events.LINE, self._line)

    def pytest_sessionfinish(self) -> None:
        sys.monitoring.free_tool_id(self._tool)
        self._path.write_text(json.dumps({"names": self._names, "tests": self._tests}))

    def _line(self, code: CodeType, line: int) -> Any:
        place = (code.co_filename, line)
        if place in self._own or place in self._far:
            self._hit.add(place)
        return sys.monitoring.DISABLE

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._hit.clear()
        self._seconds = 0.0
        self._passed = True
        sys.monitoring.restart_events()
        sys.monitoring.set_events(self._tool, sys.monitoring.events.LINE)
        try:
            return (yield)
        finally:
            sys.monitoring.set_events(self._tool, 0)
            if self._passed:
                self._tests[item.nodeid] = (round(self._seconds, 3), self._numbers(self._own), self._numbers(self._far))
            else:
                self._tests.pop(item.nodeid, None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds += report.duration
        self._passed &= report.passed

    def _numbers(self, places: dict[tuple[str, int], list[int]]) -> list[int]:
        return sorted({number for place in self._hit for number in places.get(place, ())})
