"""What the pages say of the tests is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.promises import main, named_tests

ROOT = Path(__file__).resolve().parent.parent


def test_the_tests_that_the_pages_name_are_there() -> None:
    named = list(named_tests())
    missing = []
    for page, file, test in named:
        source = ROOT / "tests" / file
        if not source.exists() or (test and not re.search(rf"def {test}\b", source.read_text())):
            missing.append((page, file, test))
    assert not missing
    for page in ("promises", "reliability"):
        assert sum(each.page == page for each in named) >= 80


def test_no_promise_is_without_a_test() -> None:
    for page in ("promises", "reliability"):
        text = (ROOT / "docs" / f"{page}.rst").read_text()
        rows = re.split(r"^   \* - ", text, flags=re.MULTILINE)[1:]
        without = [row for row in rows if not re.search(r"``[^`]*test_\w+|^\w+\n     - (Test|What happens)\b", row)]
        assert not without


def test_what_the_page_for_contributors_names_is_there() -> None:
    page = (ROOT / "docs/contributing.rst").read_text()
    modules = set(re.findall(r"python3 -m ((?:tests|benchmarks)[\w.]*)", page))
    assert len(modules) >= 6
    for module in modules:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    paths = set(re.findall(r"(?:tests|benchmarks|docs|examples|gmultisocket)/[\w./]*", page)) - {"docs/_build"}
    assert len(paths) >= 12
    assert [path for path in paths if not (ROOT / path).exists()] == []
    ((file, test),) = re.findall(r"pytest (\S+)::(\w+)", page)
    assert f"def {test}(" in (ROOT / file).read_text()


def test_the_first_page_describes_each_page_in_the_order_of_the_sidebar() -> None:
    first = (ROOT / "docs/index.rst").read_text()
    described = re.findall(r"^- :doc:`(.+?)`: \S", first, re.MULTILINE)
    listed = re.findall(r"^   ([a-z][\w/-]*)$", first, re.MULTILINE)
    assert described == listed
    assert set(listed) >= {page.stem for page in (ROOT / "docs").glob("*.rst")} - {"index"}


def test_the_page_says_which_versions_of_python_are_tested() -> None:
    classified = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    *first, last = classified
    assert f"CPython {', '.join(first)} and {last} are tested." in (ROOT / "docs/quickstart.rst").read_text()
    assert f"({first[0]} to {last} are tested)" in (ROOT / "README.rst").read_text()


REPORT = """<testsuites><testsuite>
{}
</testsuite></testsuites>
"""


def _report(path: Path, outcome: str) -> Path:
    """Write a report in which every named test passed, but one has another outcome."""
    lines = []
    for number, (_, file, test) in enumerate(dict.fromkeys(named_tests())):
        module = "tests." + file.removesuffix(".py").replace("/", ".")
        inside = f"<{outcome}/>" if number == 1 and outcome != "missing" else ""
        if number != 1 or outcome != "missing":
            lines.append(f'<testcase classname="{module}" name="{test or "test_any"}[x-1]">{inside}</testcase>')
    path.write_text(REPORT.format("\n".join(lines)))
    return path


@pytest.mark.parametrize(
    ("outcome", "status", "said"),
    [
        ("passed", 0, "promises are kept, 0 tests were skipped, 0 are broken"),
        ("skipped", 0, "1 tests were skipped, 0 are broken"),
        ("failure", 1, "0 tests were skipped, 1 are broken"),
        ("error", 1, "failed: "),
        ("missing", 1, "did not run: "),
    ],
)
def test_a_promise_whose_test_did_not_pass_is_named(
    outcome: str, status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(_report(tmp_path / "report.xml", outcome))]) == status
    assert said in capsys.readouterr().out
