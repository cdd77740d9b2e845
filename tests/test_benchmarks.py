"""The benchmarks run to their end and report their results. No test checks how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import compare, contestants, report
from benchmarks.harness import (
    Amount,
    Entry,
    Failed,
    Figure,
    Outcome,
    Plan,
    Result,
    Round,
    Row,
    RunTimeout,
    measure,
    started,
)
from benchmarks.paired import MIN_PAIRS, Verdict, interval, judge, ratio

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, module: str = "benchmarks") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50,
    )  # fmt: skip


def entry(name: str, outcome: Callable[[], float]) -> Entry:
    @contextmanager
    def start(plan: Plan) -> Iterator[Round]:
        yield lambda: Outcome(outcome(), 64)

    return Entry(name, start, "gmultisocket")


def quick(seconds: float) -> Plan:
    return Plan(Amount.QUICK, seconds)


def measured(row: Row, repeats: int = 5) -> list[Result]:
    return measure(row, quick(5), repeats, lambda entry: "")


def fail() -> float:
    raise Failed("failed: on purpose")


#: Row -> content size of its messages.
TINY = {
    "oneway-tcp-64": 64,
    "oneway-ws-64": 64,
    "oneway-tls-65536": 65536,
    "roundtrip-ipc": 64,
    "switch-64": 64,
    "switch-65536": 65536,
    "inproc-64": 64,
    "fanout-burst": 64,
    "fanout-stuck": 64,
    "fanout-ws": 64,
    "fanout-tls": 64,
    "fanout-wss": 64,
    "fanout-ws-json": 1024,
    "fanout-ws-json-bytes": 1024,
    "reqrep-single": 64,
    "reqrep-100": 64,
    "pubsub-1-pattern": 64,
    "pubsub-10000-patterns": 64,
    "pubsub-history-10": 64,
    "plane-publish": 64,
    "plane-receive": 64,
    "plane-history": 64,
    "plane-4-workers-1": 64,
    "plane-4-workers-all": 64,
    "pipeline": 64,
    "stream": 0,
    "memory-tcp": 0,
    "memory-ws": 0,
    "memory-ipc": 0,
    "memory-wss": 0,
    "memory-socket": 0,
    "memory-inproc": 0,
}


@pytest.mark.parametrize(("row", "size"), TINY.items())
def test_a_row_runs_and_its_json_has_the_measured_size(row: str, size: int) -> None:
    done = run(row, "--quick", "--only", "gmultisocket", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (only,) = json.loads(done.stdout)["rows"]
    assert only["name"] == row
    for result in only["results"]:
        if result["note"].endswith("-server is not installed"):
            continue
        assert result["name"].startswith("gmultisocket") or row.startswith("plane-")
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
    results = measure(row, quick(5), 5, lambda entry: contestants.missing("pynng"))
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
    with pytest.raises(RunTimeout), started(quick(0.2)) as start:
        peer = start("worker:hear")
        peer.hear()
    assert peer.ended


def test_a_peer_that_fails_ends_the_wait_for_another_with_its_last_words() -> None:
    with pytest.raises(Failed, match="no_such_function"), started(quick(30)) as start:
        waiting = start("worker:hear")
        start("worker:no_such_function")
        waiting.hear()


def test_a_ratio_is_above_1_if_the_new_value_is_better() -> None:
    assert ratio(100.0, 150.0, more_is_better=True) == 1.5
    assert ratio(150.0, 100.0, more_is_better=False) == 1.5


@pytest.mark.parametrize(
    ("count", "ends"),
    [
        # scipy.stats.mstats.median_cihs of 1, 2, ..., count gives the same.
        (6, (1.3571, 5.6429)),
        (10, (2.6577, 8.3423)),
        (11, (2.9178, 9.0822)),
        (20, (6.2352, 14.7648)),
        (50, (18.6717, 32.3283)),
    ],
)
def test_the_interval_is_interpolated_between_order_statistics(count: int, ends: tuple[float, float]) -> None:
    assert interval([float(number) for number in range(count, 0, -1)]) == pytest.approx(ends, abs=1e-4)


def test_one_wild_ratio_at_either_side_leaves_the_interval_narrow() -> None:
    low, high = interval([0.01, 100.0, *(0.98, 0.99, 1.0, 1.0, 1.01, 1.02, 1.0, 0.99)])
    assert 0.97 < low < 1.0 < high < 1.03


def test_the_interval_contains_the_median_that_often() -> None:
    chance = random.Random(1)
    trials = 2000
    ends = [interval([chance.gauss(1.0, 0.1) for _ in range(10)]) for _ in range(trials)]
    assert 0.93 < sum(low <= 1.0 <= high for low, high in ends) / trials < 0.97


def test_too_few_ratios_have_no_interval() -> None:
    with pytest.raises(ValueError, match=f"at least {MIN_PAIRS}"):
        interval([1.0] * (MIN_PAIRS - 1))


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ((0.80, 0.94), Verdict.FALLEN),
        ((0.50, 0.94), Verdict.FALLEN),
        ((0.90, 0.95), Verdict.HELD),
        ((0.95, 1.10), Verdict.HELD),
        ((1.00, 1.06), Verdict.HELD),
        ((0.90, 1.11), Verdict.UNDECIDED),
        ((1.06, 1.20), Verdict.RISEN),
        ((1.06, 1.30), Verdict.UNDECIDED),
    ],
)
def test_the_verdict(ends: tuple[float, float], verdict: Verdict) -> None:
    assert judge(ends) is verdict


def line(name: str, values: dict[str, Callable[[], float]]) -> compare.Line:
    """Return a line whose rounds call the function of their tree."""

    @contextmanager
    def start(plan: Plan) -> Iterator[Round]:
        yield lambda: Outcome(values[plan.folder.name](), 64)

    row = Row(name, name, "s", False, [Entry("gmultisocket", start, "gmultisocket")])
    return compare.Line(name, row, row.entries[0])


FOLDERS = {"ref": Path("ref"), "new": Path("new")}


def test_the_trees_work_in_turn_and_every_pair_has_one_ratio() -> None:
    order = ""

    def note(name: str, value: float) -> float:
        nonlocal order
        order += name
        return value

    turns = line("x", {"ref": lambda: note("A", 1.0), "new": lambda: note("B", 2.0)})
    result = compare.compare(turns, FOLDERS, MIN_PAIRS, Amount.QUICK)
    # Each pair begins with a round of both that does not count.
    assert order == ("AB" + "BAABBAAB" + "BA" + "ABBAABBA") * (MIN_PAIRS // 2)
    assert result.ratios == [0.5] * MIN_PAIRS
    assert (result.reference, result.new) == ([1.0] * MIN_PAIRS, [2.0] * MIN_PAIRS)
    assert result.verdict is Verdict.FALLEN
    assert result.bad


def test_a_pair_is_the_median_of_the_ratios_of_its_rounds() -> None:
    values = iter([0.1, 1.0, 9.0, 5.0, 1.0] * MIN_PAIRS)
    result = compare.compare(line("x", {"ref": lambda: 1.0, "new": values.__next__}), FOLDERS, MIN_PAIRS, Amount.QUICK)
    assert result.ratios == [pytest.approx((1 + 1 / 5) / 2)] * MIN_PAIRS


def test_a_row_that_fails_has_no_verdict_and_names_the_tree() -> None:
    result = compare.compare(line("x", {"ref": lambda: 1.0, "new": fail}), FOLDERS, MIN_PAIRS, Amount.QUICK)
    assert result.verdict is None
    assert result.bad
    assert "new: failed: on purpose" in compare.to_text(result)


def test_a_comparison_has_own_entries_only_and_names_them_apart() -> None:
    names = [line.name for line in compare.lines()]
    assert len(names) == len(set(names))
    expected = {
        *("oneway-tcp-64", "fanout-burst", "fanout-burst, queue of 64", "fanout-stuck", "memory-ws in gunicorn"),
        *("memory-tcp", "memory-tls", "memory-ws", "memory-wss", "memory-ipc", "memory-socket", "memory-inproc"),
    }
    assert expected <= set(names)
    assert all("pyzmq" not in name and "by tcp" not in name for name in names)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "REF_TREE"),
        (("no-such-folder",), "no-such-folder is no checkout"),
        ((".", "no-such-folder"), "no-such-folder is no checkout"),
        ((".", "--rows", "oneway", "no-such-row"), "no row has 'no-such-row' in its name"),
        ((".", "--pairs", str(MIN_PAIRS - 1)), f"at least {MIN_PAIRS} pairs"),
    ],
)
def test_a_wrong_argument_of_a_comparison_is_an_error(arguments: tuple[str, ...], error: str) -> None:
    done = run(*arguments, module="benchmarks.compare")
    assert done.returncode == 2, done.stdout + done.stderr
    assert error in done.stderr


def test_a_tree_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "gmultisocket").mkdir()
    (tmp_path / "gmultisocket" / "__init__.py").write_text("import no_such_module")
    done = run(str(tmp_path), module="benchmarks.compare")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no_such_module" in done.stderr


def test_a_tree_is_compared_with_itself(tmp_path: Path) -> None:
    file = tmp_path / "compared.json"
    arguments = (".", ".", "--rows", "inproc-64", "--pairs", str(MIN_PAIRS), "--quick", "--json", str(file))
    done = run(*arguments, module="benchmarks.compare")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "inproc-64" in done.stdout
    assert "[1/1] inproc-64" in done.stderr
    (row,) = json.loads(file.read_text())["rows"]
    assert row["name"] == "inproc-64"
    assert row["note"] == ""
    assert len(row["ratios"]) == len(row["ref"]) == len(row["new"]) == MIN_PAIRS
    assert row["verdict"] in [verdict.value for verdict in Verdict]


def test_the_library_comes_from_the_tree_under_test(tmp_path: Path) -> None:
    package = tmp_path / "gmultisocket"
    package.mkdir()
    (package / "__init__.py").write_text("")
    with compare.folders_of({"ref": tmp_path, "new": ROOT}) as folders:
        for tree, file in (("ref", package / "__init__.py"), ("new", ROOT / "gmultisocket" / "__init__.py")):
            program = "import benchmarks.worker, gmultisocket; print(gmultisocket.__file__)"
            imported = subprocess.run(
                [sys.executable, "-c", program], cwd=folders[tree], capture_output=True, text=True, check=True
            )
            assert Path(imported.stdout.strip()).resolve() == file.resolve()


# Two kept runs


def kept(file: Path, **values: list[float]) -> Path:
    """Write a run as ``--json`` does, with one entry in each row."""
    rows = [
        {
            "name": name,
            "unit": "us" if name == "roundtrip" else "messages/s",
            "more_is_better": name != "roundtrip",
            "results": [{"name": "gmultisocket", "values": each}],
        }
        for name, each in values.items()
    ]
    file.write_text(json.dumps({"rows": rows}))
    return file


def test_only_what_differs_by_more_than_the_repeats_is_shown(tmp_path: Path) -> None:
    before = kept(tmp_path / "before.json", oneway=[100.0, 120.0, 110.0], roundtrip=[50.0, 60.0], gone=[1.0], empty=[])
    after = kept(tmp_path / "after.json", oneway=[119.0, 150.0, 140.0], roundtrip=[25.0, 30.0], new=[1.0], empty=[2.0])
    done = run("--compare", str(before), str(after))
    _, line, _, summary = done.stdout.splitlines()
    assert line.split() == ["roundtrip", "gmultisocket", "55", "27.5", "us", "2.00x"]
    assert summary == "1 changed beyond the spread, 1 did not"


def test_a_file_that_is_no_run_is_named(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text("[]")
    done = run("--compare", str(file), str(file))
    assert done.returncode == 1
    assert done.stderr.strip() == f"{file} does not hold what `python3 -m benchmarks --json` prints"


# Plots


def test_each_plot_shows_the_rows_of_a_run_and_leaves_out_what_was_not_measured(tmp_path: Path) -> None:
    def entry(name: str, *values: float) -> dict[str, object]:
        return {"name": name, "values": list(values), "median": values[0] if values else None}

    rows = [
        {"name": "oneway-tcp-64", "title": "tcp one way, 64 B", "unit": "messages/s", "more_is_better": True,
         "results": [entry("gmultisocket", 2000.0), entry("a <b> & c", 1000.0), entry("hung")]},
        {"name": "memory-tcp", "title": "memory", "unit": "KiB", "more_is_better": False,
         "results": [entry("gmultisocket", 10.0)]},
    ]  # fmt: skip
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"machine": "CPython, 2 cores", "rows": rows}))
    done = run(str(file), str(tmp_path / "plots"), module="benchmarks.plots")
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["memory.svg", "throughput.svg"]
    plot = ElementTree.parse(tmp_path / "plots" / "throughput.svg").getroot()
    texts = [each.text for each in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"tcp one way, 64 B", "2,000", "1,000", "a <b> & c", "CPython, 2 cores"} <= set(texts)
    assert "hung" not in texts
    ours, theirs = (float(bar.get("width", "")) for bar in plot.iter("{http://www.w3.org/2000/svg}rect"))
    assert ours == 2 * theirs
    # Pages in dark colours show it too.
    assert "background: white" in plot.attrib["style"]
