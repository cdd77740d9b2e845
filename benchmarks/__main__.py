"""The command line of the benchmarks: ``python3 -m benchmarks [row ...]``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from . import fanout, importtime, inproc, memory, oneway, pipeline, pubsub, reqrep, roundtrip, stream
from .contestants import CONTESTANTS, missing
from .harness import Entry, Row, Scale, measure
from .report import Measured, machine, to_json, to_rst, to_text
from .worker import raise_descriptor_limit

_WORKS = (oneway, roundtrip, inproc, fanout, reqrep, pubsub, pipeline, stream, memory, importtime)
_DESCRIPTORS = 10_200


def main() -> int:
    """Run what the command line asks for. Returns 1 where gmultisocket itself came to no result."""
    rows = [row for work in _WORKS for row in work.rows()]
    arguments = _parse()
    if arguments.list:
        for row in rows:
            print(f"{row.name:<26}{row.title.format(size='messages')}")
        return 0
    chosen = _choose(rows, arguments.names)
    if raise_descriptor_limit() < _DESCRIPTORS:
        print(f"the rows of 10,000 peers need {_DESCRIPTORS:,} descriptors (ulimit -n)", file=sys.stderr)
    only = arguments.only
    table: list[Measured] = []
    if not arguments.json:
        print(f"{machine()}{'; quick: the numbers mean nothing' if arguments.quick else ''}\n", flush=True)
    for row in chosen:
        row = dataclasses.replace(row, entries=[entry for entry in row.entries if not only or entry.contestant in only])
        if not row.entries:
            continue
        scale = Scale(arguments.quick, row.seconds)
        repeats = arguments.repeats or (1 if arguments.quick else row.repeats)
        table.append(Measured(row, measure(row, scale, repeats, _missing)))
        if not arguments.json:
            print(to_text(table[-1]), end="\n\n", flush=True)
    if arguments.json:
        print(to_json(table))
    if arguments.rst:
        arguments.rst.write_text(to_rst(table))
    return int(any(_is_ours(result.entry) and not result.values for measured in table for result in measured.results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks", description="Compare gmultisocket with others.")
    parser.add_argument("names", nargs="*", metavar="ROW", help="rows, or how their names begin; default: all")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--only", action="append", choices=CONTESTANTS, help="leave out the others; may be repeated")
    parser.add_argument("--quick", action="store_true", help="little work, once: only shows that everything works")
    parser.add_argument("--repeats", type=int, default=0, metavar="N", help="runs of each; default: 5 mostly")
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing before the end")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="also write the tables there as reStructuredText")
    return parser.parse_args()


def _choose(rows: list[Row], names: list[str]) -> list[Row]:
    unknown = [name for name in names if not any(row.name.startswith(name) for row in rows)]
    if unknown:
        sys.exit(f"no row begins with {unknown[0]!r}; --list says which there are")
    return [row for row in rows if not names or any(row.name.startswith(name) for name in names)]


def _missing(entry: Entry) -> str:
    return missing(entry.contestant)


def _is_ours(entry: Entry) -> bool:
    return entry.contestant == "gmultisocket"


if __name__ == "__main__":
    sys.exit(main())
