"""The command line of the benchmarks: ``python3 -m benchmarks [row ...]``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from .changes import to_text as to_changes
from .contestants import CONTESTANTS, missing
from .harness import Amount, Entry, Plan, Row, measure
from .report import Measured, machine, to_json, to_rst, to_text
from .worker import raise_descriptor_limit
from .works import all_rows

#: Descriptors that one process of a row with 10,000 peers needs.
_DESCRIPTORS = 10_200


def main() -> int:
    """Run the rows of the command line. Returns 1 if a run of gmultisocket itself failed."""
    rows = all_rows()
    arguments = _parse()
    if arguments.compare:
        try:
            print(to_changes(*arguments.compare))
        except (OSError, ValueError) as error:
            sys.exit(str(error))
        return 0
    if arguments.list:
        for row in rows:
            print(f"{row.name:<26}{row.title.format(size='messages')}")
        return 0
    chosen = _choose(rows, arguments.names)
    if raise_descriptor_limit() < _DESCRIPTORS:
        print(f"rows with 10,000 peers need {_DESCRIPTORS:,} descriptors (ulimit -n)", file=sys.stderr)
    only = arguments.only
    table: list[Measured] = []
    if not arguments.json:
        print(f"{machine()}{'; quick: the numbers mean nothing' if arguments.quick else ''}\n", flush=True)
    for row in chosen:
        row = dataclasses.replace(row, entries=[entry for entry in row.entries if not only or entry.contestant in only])
        if not row.entries:
            continue
        plan = Plan(Amount.QUICK if arguments.quick else Amount.FULL, row.seconds)
        repeats = arguments.repeats or (1 if arguments.quick else row.repeats)
        table.append(Measured(row, measure(row, plan, repeats, _missing)))
        if not arguments.json:
            print(to_text(table[-1]), end="\n\n", flush=True)
    if arguments.json:
        print(to_json(table))
    if arguments.rst:
        arguments.rst.write_text(to_rst(table))
    return int(any(_is_ours(result.entry) and not result.values for measured in table for result in measured.results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description="Compare gmultisocket with others.")
    parser.add_argument("names", nargs="*", metavar="ROW", help="rows, or the beginning of their names; default: all")
    parser.add_argument("--list", action="store_true", help="list the rows")
    parser.add_argument("--only", action="append", choices=CONTESTANTS, help="run only this library; may be repeated")
    parser.add_argument("--quick", action="store_true", help="do little work, once: only to show that everything works")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="runs of each entry; default: mostly 5")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else, at the end")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write the tables to FILE as reStructuredText")
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar="JSON", help="measure nothing: print what differs between two runs"
    )
    return parser.parse_args()


def _choose(rows: list[Row], names: list[str]) -> list[Row]:
    """Return the rows with these names; a name that no row has selects the rows that begin with it."""
    known = [row.name for row in rows]
    chosen: list[str] = []
    for name in names:
        found = [name] if name in known else [each for each in known if each.startswith(name)]
        if not found:
            sys.exit(f"no row begins with {name!r}; see --list")
        chosen += found
    return [row for row in rows if not names or row.name in chosen]


def _missing(entry: Entry) -> str:
    return missing(entry.contestant)


def _is_ours(entry: Entry) -> bool:
    return entry.contestant == "gmultisocket"


if __name__ == "__main__":
    sys.exit(main())
