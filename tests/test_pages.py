"""What the pages say of the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    page = (ROOT / "docs" / "reliability.rst").read_text()
    found = re.findall(r"``((?:\w+/)*test_\w+\.py)?(?:::(test_\w+))?``", page)
    file, named, missing = "", 0, []
    for path, test in found:
        if not path and not test:
            continue
        file = path or file
        named += 1
        source = ROOT / "tests" / file
        if not source.exists() or (test and not re.search(rf"def {test}\b", source.read_text())):
            missing.append(f"{file}::{test}")
    assert named >= 40 and not missing
