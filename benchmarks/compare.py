"""Compare two versions of this library: ``python3 -m benchmarks.compare REF_TREE [NEW_TREE]``.

A tree is a checkout of this project. Both run the same benchmark code, which is the one that conducts the comparison:
only ``gmultisocket`` comes from the tree, and the benchmarks use nothing but its public API. The rows are those of
``python3 -m benchmarks``, with gmultisocket alone.

A pair starts fresh processes for both trees. Then the trees work in turn, in short rounds: A B, B A, A B, ..., and the
next pair begins with the other tree. The ratio of a pair is the median of the ratios of its rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from .contestants import missing
from .harness import ROOT, Amount, Entry, Failed, Plan, Row
from .paired import MIN_PAIRS, Interval, Verdict, interval, judge, ratio
from .report import machine, number
from .works import all_rows

__all__ = ["Comparison", "Line", "compare", "lines", "main"]

_PAIRS = 10
#: Seconds for a pair, at least: two trees share the machine, and perhaps other programs too.
_MIN_SECONDS = 60.0
_OURS = "gmultisocket"
#: Seconds in which a pair begins rounds, and the number of rounds that it has at least.
_ROUNDS_TIME = 2.0
_MIN_ROUNDS = 4
#: Names of the two trees, and of their folders: of one length, as paths are kept in memory.
_REF, _NEW = "ref", "new"


@dataclass(frozen=True)
class Line:
    """One measurement that is compared: an entry of a row."""

    name: str
    row: Row
    entry: Entry


@dataclass
class Comparison:
    """The results of one line.

    Attributes:
        line: what was measured.
        ratios: one of each pair, above 1 if the new tree is better.
        reference: the median value of each pair, of the reference tree.
        new: the same of the new tree.
        note: why there is no result, or "".
        failed: whether a run failed; otherwise a note says that a library is missing.
    """

    line: Line
    ratios: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    note: str = ""
    failed: bool = False

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the median ratio; None without a result."""
        return None if self.note else interval(self.ratios)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict; None without a result."""
        of = self.interval
        return judge(of) if of else None

    @property
    def bad(self) -> bool:
        """Whether the line makes the whole comparison fail."""
        return self.failed or self.verdict is Verdict.FALLEN


def lines() -> list[Line]:
    """Return all lines, in the order of the rows."""
    found = []
    for row in all_rows():
        entries = [entry for entry in row.entries if entry.name.startswith(_OURS) and not entry.reference]
        for entry in entries:
            suffix = entry.name.removeprefix(_OURS) if len(entries) > 1 else ""
            found.append(Line(row.name + suffix, row, entry))
    return found


def compare(line: Line, folders: dict[str, Path], pairs: int, amount: Amount) -> Comparison:
    """Measure one line.

    Args:
        line: what to measure.
        folders: a folder for each of the two trees, see :func:`folders_of`.
        pairs: how many pairs.
        amount: how much work a round does. With ``Amount.QUICK`` a pair has no more rounds than the minimum.
    """
    result = Comparison(line, note=missing(line.entry.contestant))
    if result.note:
        return result
    plans = {tree: Plan(amount, max(line.row.seconds, _MIN_SECONDS), folder) for tree, folder in folders.items()}
    for number_of_pair in range(pairs):
        order = _in_turn((_REF, _NEW), number_of_pair)
        try:
            values = _measure_pair(line, plans, order)
        except Failed as error:
            result.note, result.failed = str(error), True
            return result
        ratios = [ratio(*both, line.row.more_is_better) for both in zip(values[_REF], values[_NEW], strict=True)]
        result.ratios.append(median(ratios))
        result.reference.append(median(values[_REF]))
        result.new.append(median(values[_NEW]))
    return result


def _measure_pair(line: Line, plans: dict[str, Plan], order: Sequence[str]) -> dict[str, list[float]]:
    """Return the values of each tree's rounds.

    Raises:
        Failed: a run failed. The text names its tree.
    """
    values: dict[str, list[float]] = {tree: [] for tree in order}
    with ExitStack() as running:
        tree = ""
        try:
            do_round = {}
            for tree in order:
                do_round[tree] = running.enter_context(line.entry.run(plans[tree]))
            for turn in _turns(line.row, plans[tree].amount):
                for tree in _in_turn(order, turn):
                    values[tree].append(do_round[tree]().value)
        except Failed as error:
            raise Failed(f"{tree}: {error}") from error
    if not line.row.single_round:
        # The first round warmed up.
        for measured in values.values():
            del measured[0]
    return values


def _turns(row: Row, amount: Amount) -> Iterator[int]:
    """Yield the numbers of a pair's rounds, as long as it is time for another one."""
    yield 0
    if row.single_round:
        return
    end = time.monotonic() + (0 if amount is Amount.QUICK else _ROUNDS_TIME)
    for turn in count(1):
        # An even number of rounds: each tree is the first one in half of them.
        if turn > _MIN_ROUNDS and turn % 2 == 1 and time.monotonic() >= end:
            return
        yield turn


def _in_turn(order: Sequence[str], turn: int) -> Sequence[str]:
    return order if turn % 2 == 0 else order[::-1]


@contextmanager
def folders_of(trees: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Yield a folder for each tree, with links to the tree's ``gmultisocket`` and to these ``benchmarks``.

    Workers that start in the folder import both from there.
    """
    with tempfile.TemporaryDirectory(prefix="compare") as parent:
        folders = {}
        for name, tree in trees.items():
            folder = Path(parent, name)
            folder.mkdir()
            (folder / "gmultisocket").symlink_to(tree / "gmultisocket")
            (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
            folders[name] = folder
        yield folders


def _check_import(folder: Path, tree: Path) -> str:
    """Return why ``gmultisocket`` cannot be imported from a tree, "" if it can."""
    program = "import gmultisocket; print(gmultisocket.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return f"{tree}: {done.stderr.strip().splitlines()[-1]}"
    imported = Path(done.stdout.strip())
    if imported.parent.resolve() != (tree / "gmultisocket").resolve():
        return f"{tree}: Python imports {imported} instead"
    return ""


def main() -> int:
    """Compare two trees. Returns 1 if a row has fallen or failed, and exits with 2 for wrong arguments."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.pairs < MIN_PAIRS:
        parser.error(f"an interval of 95 % needs at least {MIN_PAIRS} pairs")
    trees = {_REF: arguments.ref_tree.absolute(), _NEW: arguments.new_tree.absolute()}
    for tree in trees.values():
        if not (tree / "gmultisocket" / "__init__.py").is_file():
            parser.error(f"{tree} is no checkout of gmultisocket")
    chosen = lines()
    for pattern in arguments.rows or ():
        if not any(pattern in line.name for line in chosen):
            parser.error(f"no row has {pattern!r} in its name; the rows are: {', '.join(line.name for line in chosen)}")
    if arguments.rows:
        chosen = [line for line in chosen if any(pattern in line.name for pattern in arguments.rows)]
    with folders_of(trees) as folders:
        for name, folder in folders.items():
            if problem := _check_import(folder, trees[name]):
                parser.error(problem)
        return _run(chosen, trees, folders, arguments)


def _run(chosen: list[Line], trees: dict[str, Path], folders: dict[str, Path], arguments: argparse.Namespace) -> int:
    amount = Amount.QUICK if arguments.quick else Amount.PART
    print(f"{machine()}{'; quick: the numbers mean nothing' if arguments.quick else ''}")
    for name, tree in trees.items():
        print(f"{name}: {tree}")
    print(f"{arguments.pairs} pairs; a ratio above 1: new is better\n\n{_HEAD}", flush=True)
    results: list[Comparison] = []
    begin = time.monotonic()
    for index, line in enumerate(chosen):
        print(f"[{index + 1}/{len(chosen)}] {line.name}, {_elapsed(begin)} so far", file=sys.stderr, flush=True)
        results.append(compare(line, folders, arguments.pairs, amount))
        print(to_text(results[-1]), flush=True)
        if arguments.json:
            # After each row: an interrupted comparison keeps its results.
            arguments.json.write_text(to_json(results, trees))
    print(f"\n{_summary(results)}, in {_elapsed(begin)}")
    return int(any(result.bad for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.compare",
        description="Compare the speed and the memory of two checkouts of gmultisocket, row by row.",
        epilog="Exit status: 0 if no row has fallen, 1 if a row has fallen or failed, 2 for wrong arguments.",
    )
    parser.add_argument("ref_tree", type=Path, metavar="REF_TREE", help="the checkout to compare with")
    parser.add_argument(
        "new_tree", type=Path, nargs="?", default=ROOT, metavar="NEW_TREE", help="default: the checkout of this file"
    )
    parser.add_argument("--pairs", type=int, default=_PAIRS, metavar="N", help=f"default: {_PAIRS}")
    parser.add_argument("--rows", nargs="+", metavar="PATTERN", help="only rows whose names contain a PATTERN")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every value to FILE as JSON")
    parser.add_argument("--quick", action="store_true", help="do little work: only to show that everything works")
    return parser


_HEAD = f"{'row':<30}{'ref':>12}{'new':>12} {'unit':<14}{'ratio':>7}  {'95 % interval':<16}verdict"


def to_text(result: Comparison) -> str:
    """Return the line of the table."""
    if result.interval is None or result.verdict is None:
        return f"{result.line.name:<30}{result.note}"
    low, high = result.interval
    values = f"{number(median(result.reference)):>12}{number(median(result.new)):>12} {result.line.row.unit:<14}"
    ends = f"{low:.3f} .. {high:.3f}"
    return f"{result.line.name:<30}{values}{median(result.ratios):>7.3f}  {ends:<16}{result.verdict.value}"


def to_json(results: Sequence[Comparison], trees: dict[str, Path]) -> str:
    """Return all results as JSON."""
    rows = [_as_dict(result) for result in results]
    named = {name: str(tree) for name, tree in trees.items()}
    return json.dumps({"machine": machine(), "trees": named, "rows": rows}, indent=2) + "\n"


def _as_dict(result: Comparison) -> dict[str, Any]:
    return {
        "name": result.line.name,
        "unit": result.line.row.unit,
        "more_is_better": result.line.row.more_is_better,
        "ratio": None if result.interval is None else median(result.ratios),
        "interval": result.interval,
        "verdict": result.verdict.value if result.verdict else None,
        "note": result.note,
        "ratios": result.ratios,
        "ref": result.reference,
        "new": result.new,
    }


def _summary(results: Sequence[Comparison]) -> str:
    counts = {verdict.value: 0 for verdict in Verdict}
    counts |= {"failed": 0, "not measured": 0}
    for result in results:
        counts[result.verdict.value if result.verdict else "failed" if result.failed else "not measured"] += 1
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _elapsed(begin: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - begin), 60)
    return f"{minutes} min {seconds} s"


if __name__ == "__main__":
    sys.exit(main())
