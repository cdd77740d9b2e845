"""Two runs that were kept as JSON, side by side: what has changed by more than the runs differ among themselves.

Use it to look back. To decide whether a change of the code made something slower, measure both versions in turn with
:mod:`benchmarks.compare`: two runs on different days differ by more than most changes do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .report import number

__all__ = ["Change", "changes", "read_run", "to_text"]


@dataclass(frozen=True)
class Change:
    """An entry of a row in both runs.

    Attributes:
        row, entry, unit: what was measured.
        before, after: the values of its repeats.
        more_is_better: whether the larger value is the better one.
    """

    row: str
    entry: str
    unit: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    more_is_better: bool

    @property
    def ratio(self) -> float:
        """How many times better the second run is, by the medians."""
        ratio = median(self.after) / median(self.before)
        return ratio if self.more_is_better else 1 / ratio

    @property
    def beyond_spread(self) -> bool:
        """Whether each value of one run is better than each value of the other one."""
        return max(self.before) < min(self.after) or max(self.after) < min(self.before)


def read_run(file: Path) -> dict[tuple[str, str], tuple[str, bool, tuple[float, ...]]]:
    """Return the unit, whether more is better, and the values of each row and entry that has some.

    Raises:
        ValueError: the file does not hold what ``python3 -m benchmarks --json`` prints.
    """
    try:
        rows = json.loads(file.read_text())["rows"]
        return {
            (row["name"], result["name"]): (row["unit"], row["more_is_better"], tuple(result["values"]))
            for row in rows
            for result in row["results"]
            if result["values"]
        }
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} does not hold what `python3 -m benchmarks --json` prints") from error


def changes(before: Path, after: Path) -> Iterator[Change]:
    """Yield all entries that both runs have, in the order of the first one."""
    old, new = read_run(before), read_run(after)
    for (row, entry), (unit, more_is_better, values) in old.items():
        if (row, entry) in new:
            yield Change(row, entry, unit, values, new[row, entry][2], more_is_better)


def to_text(before: Path, after: Path) -> str:
    """Return a line for each entry that has changed beyond the spread, and one that counts the others."""
    found = list(changes(before, after))
    changed = [change for change in found if change.beyond_spread]
    lines = [f"{'row':<26}{'who':<34}{'before':>12}{'after':>12} {'unit':<14}{'better by':>9}"]
    for change in changed:
        values = f"{number(median(change.before)):>12}{number(median(change.after)):>12}"
        lines.append(f"{change.row:<26}{change.entry:<34}{values} {change.unit:<14}{change.ratio:>8.2f}x")
    lines.append("")
    lines.append(f"{len(changed)} changed beyond the spread, {len(found) - len(changed)} did not")
    return "\n".join(lines)
