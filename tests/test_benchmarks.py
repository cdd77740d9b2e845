"""The benchmarks come to their end and say what they did. How fast anything is, no test asks."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import contestants, report
from benchmarks.harness import Entry, Failed, Figure, Outcome, Result, Row, RunTimeout, Scale, measure, started

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
    )  # fmt: skip


def entry(name: str, outcome: Callable[[], float]) -> Entry:
    return Entry(name, lambda scale: Outcome(outcome(), 64), "gmultisocket")


def measured(row: Row, repeats: int = 5) -> list[Result]:
    return measure(row, Scale(True, 5), repeats, lambda entry: "")


def fail() -> float:
    raise Failed("failed: on purpose")


#: Rows, and the size that their messages have.
TINY = {
    "oneway-tcp-64": 64,
    "oneway-ws-64": 64,
    "oneway-tls-65536": 65536,
    "roundtrip-ipc": 64,
    "inproc-64": 64,
    "fanout-burst": 64,
    "fanout-stuck": 64,
    "fanout-ws": 64,
    "reqrep-single": 64,
    "reqrep-100": 64,
    "pubsub-1-pattern": 64,
    "pubsub-10000-patterns": 64,
    "pipeline": 64,
    "stream": 0,
    "memory-tcp": 0,
    "memory-ws": 0,
}


@pytest.mark.parametrize(("row", "size"), TINY.items())
def test_a_row_runs_and_its_json_has_the_measured_size(row: str, size: int) -> None:
    done = run(row, "--quick", "--only", "gmultisocket", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (only,) = json.loads(done.stdout)["rows"]
    assert only["name"] == row
    for result in only["results"]:
        assert result["name"].startswith("gmultisocket")
        assert result["note"] == ""
        assert len(result["values"]) == 1
        assert result["size"] == size


def test_every_row_is_listed() -> None:
    done = run("--list")
    assert done.returncode == 0, done.stdout + done.stderr
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert len(names) == len(set(names))
    assert {"oneway-tcp-65536", "roundtrip-tcp", "inproc-64", "fanout-10000", "memory-tcp", "import"} <= set(names)


def test_an_unknown_row_is_an_error() -> None:
    done = run("no-such-row")
    assert done.returncode != 0
    assert "no-such-row" in done.stderr


def test_the_tables_are_written_for_the_documentation(tmp_path: Path) -> None:
    path = tmp_path / "tables.rst"
    done = run("inproc-64", "--quick", "--only", "gmultisocket", "--rst", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inproc one way, 64 B" in path.read_text()


def test_a_library_that_is_not_installed_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "find_spec", lambda name: None)
    row = Row("x", "x", "s", False, [entry("absent", fail)])
    results = measure(row, Scale(True, 5), 5, lambda entry: contestants.missing("pynng"))
    assert results[0].note == "pynng is not installed"
    assert "pynng is not installed" in report.to_text(report.Measured(row, results))


def test_every_contestant_has_an_adapter() -> None:
    for place in contestants.CONTESTANTS.values():
        assert importlib.util.find_spec(f"benchmarks.contestants.{place.module}") is not None


def test_the_order_alternates() -> None:
    order = ""

    def note(name: str) -> float:
        nonlocal order
        order += name
        return 1.0

    measured(Row("x", "x", "s", False, [entry(name, lambda name=name: note(name)) for name in "abc"]), repeats=3)
    assert order == "abccbaabc"


def test_what_failed_once_is_not_run_again_and_the_others_are() -> None:
    failed, good = measured(Row("x", "x", "s", False, [entry("failed", fail), entry("good", lambda: 1.0)]))
    assert (failed.values, failed.remark) == ([], "failed: on purpose")
    assert len(good.values) == 5


def test_the_median_counts_and_a_wide_spread_is_told() -> None:
    values = [100.0, 130.0, 104.0, 102.0, 101.0]
    (wide,) = measured(Row("x", "x", "s", False, [entry("wide", iter(values).__next__)]))
    (narrow,) = measured(Row("x", "x", "s", False, [entry("narrow", iter([100.0, 101.0]).__next__)]), repeats=2)
    assert (wide.median, wide.remark) == (102.0, "spread 29%")
    assert narrow.remark == ""


@pytest.mark.parametrize(
    ("figure", "good"),
    [
        (Figure("a", "b", at_least=0.5), True),
        (Figure("a", "b", at_least=0.51), False),
        (Figure("a", "b", at_most=0.5), True),
        (Figure("a", "b", at_most=0.49), False),
        (Figure("a", limit=1.0), True),
        (Figure("a", limit=0.9), False),
    ],
)
def test_a_figure_is_reached_or_not(figure: Figure, good: bool) -> None:
    row = Row("x", "x", "s", False, [entry("a", lambda: 1.0), entry("b", lambda: 2.0)], [figure])
    text = report.to_text(report.Measured(row, measured(row)))
    assert text.endswith("yes" if good else "NO")


def test_a_figure_of_something_that_did_not_run_is_not_measured() -> None:
    row = Row("x", "x", "s", False, [entry("a", lambda: 1.0), entry("b", fail)], [Figure("a", "b", at_least=1)])
    assert report.to_text(report.Measured(row, measured(row))).endswith("not measured")


def test_a_peer_that_hangs_is_given_up_and_ended() -> None:
    with pytest.raises(RunTimeout), started(Scale(True, 0.2)) as start:
        peer = start("worker:hear")
        peer.hear()
    assert peer.ended


def test_a_peer_that_fails_ends_the_wait_for_another_with_its_last_words() -> None:
    with pytest.raises(Failed, match="no_such_function"), started(Scale(True, 30)) as start:
        waiting = start("worker:hear")
        start("worker:no_such_function")
        waiting.hear()
