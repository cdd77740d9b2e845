"""Check that the tests which the pages name have run and passed: ``python3 -m tests.promises REPORT.xml``.

The report is pytest's own, by ``--junitxml=REPORT.xml``. A test that was skipped is named, and is no failure: it says
why itself. Exit status: 0 if nothing failed and no test is missing, else 1; 2 for wrong arguments.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("promises", "reliability")
_NAME = re.compile(r"``(?:tests/)?((?:\w+/)*test_\w+\.py|\.\.\.)?(?:::(test_\w+))?(?:\[[^`]*\])?``")


class Named(NamedTuple):
    """A test that a page names.

    Attributes:
        page: the page's name.
        file: the module's path below ``tests/``.
        test: the function's name; empty: all tests of the module.
    """

    page: str
    file: str
    test: str


def named_tests() -> Iterator[Named]:
    """Yield the tests that the pages name. A name without a file is one of the file that was named last."""
    for page in PAGES:
        file = ""
        for path, test in _NAME.findall((ROOT / "docs" / f"{page}.rst").read_text()):
            file = path if path.endswith(".py") else file
            if path.endswith(".py") or test:
                yield Named(page, file, test)


def outcomes(report: Path) -> dict[str, dict[str, set[str]]]:
    """Return what became of the tests: by file and function, ``"passed"``, ``"skipped"`` and ``"failed"``."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").split(".Test")[0]
        test = case.get("name", "").partition("[")[0]
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        found[module.replace(".", "/") + ".py"][test].add(outcome)
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python3 -m tests.promises REPORT.xml", file=sys.stderr)
        return 2
    ran = outcomes(Path(arguments[0]))
    kept, skipped, broken = 0, 0, 0
    for named in dict.fromkeys(named_tests()):
        tests = ran.get(named.file, {})
        found = set().union(*tests.values()) if not named.test else tests.get(named.test, set())
        if "failed" not in found and "passed" in found:
            kept += 1
        elif found == {"skipped"}:
            skipped += 1
            print(f"skipped: {named.file}::{named.test} ({named.page})")
        else:
            broken += 1
            print(f"{'failed' if found else 'did not run'}: {named.file}::{named.test} ({named.page})")
    print(f"{kept} promises are kept, {skipped} tests were skipped, {broken} are broken")
    return 1 if broken or not kept else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
