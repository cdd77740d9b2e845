"""Tries out the mutants of :mod:`tests.mutants`: for each, do the tests notice that a protection is missing?

::

    python3 -m tests.mutations                           all mutants; takes hours
    python3 -m tests.mutations --only 'core/.* raise'    those whose name matches
    python3 -m tests.mutations --since main              those on lines that have changed since a commit
    python3 -m tests.mutations --list                    print the names
    python3 -m tests.mutations --tidy                    take names out of mutations.txt that no mutant has any more

Needs CPython 3.12. At first it runs the tests once and records which of them execute which line (:mod:`tests.lines`).
Then it runs, for each mutant, the tests that execute its line in a copy of the checkout, the quick ones first, until
one fails. Recording and results are kept in a folder, and the next run goes on where this one ended; ``--again`` also
tries mutants that have a result, and ``--record PATH`` records the tests of a file that is new or has changed.

A mutant is killed if a test fails or hangs. One that survives needs a test, or a reason in ``mutations.txt``: the
command fails if it has none. One is undecided if only some of the tests that execute its line were run, and passed:
``--seconds`` raises their number. What it cannot see: lines that run in child processes only, and failures by chance.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests import lines
from tests.mutants import LISTED, PACKAGE, Mutant, listed, mutants

ROOT: Final = PACKAGE.parent

#: The tests that are recorded. Those of the packaging, the pages and the examples say nothing about a protection.
_TESTS: Final = (
    "tests/contrib", "tests/core", "tests/faults", "tests/loop", "tests/protocol", "tests/transport",
    "tests/test_address.py", "tests/test_log.py", "tests/test_switch.py", "tests/test_usercode.py",
    "tests/test_wire.py",
)  # fmt: skip
#: No more tests than these are run with a mutant. If all of them pass and there are more, it is undecided.
_MAX_TESTS: Final = 400
#: Seconds that a single test may take with a mutant.
_TEST_LIMIT: Final = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    options = _parse(arguments)
    found = _selected(mutants(), options.only, options.since)
    if options.list:
        print("\n".join(mutant.name for mutant in found))
        return 0
    if options.tidy:
        return _tidy()
    options.work.mkdir(parents=True, exist_ok=True)
    recording = options.work / "lines.json"
    if options.record or not recording.exists():
        _record(recording, options.record or _TESTS, options.work)
    results = _Results(options.work / "results.json")
    tests = _Tests(lines.read(recording))
    waiting = [mutant for mutant in found if options.again or mutant.name not in results.by_name]
    print(f"{len(found)} mutants, {len(waiting)} of them to try")
    try:
        _try_all(waiting, tests, results, options)
    except KeyboardInterrupt:
        print("stopped: the next run goes on here")
    return results.report(found)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python3 -m tests.mutations", description="try out the mutants of the library")
    parser.add_argument("--only", metavar="PATTERN", default="", help="a regular expression that is searched in names")
    parser.add_argument("--since", metavar="COMMIT", help="mutants on lines that have changed since a commit")
    parser.add_argument("--list", action="store_true", help="print the names, and try nothing")
    parser.add_argument("--tidy", action="store_true", help="take names out of mutations.txt that no mutant has")
    parser.add_argument("--record", metavar="PATH", nargs="+", help="record these tests again")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--jobs", type=int, default=2, help="how many run at the same time")
    parser.add_argument("--seconds", type=float, default=40, help="tests that take so long together are tried at most")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir(), "gmultisocket-mutations"),
                        help="the folder that keeps the recording and the results")  # fmt: skip
    return parser.parse_args(arguments)


def _selected(found: list[Mutant], only: str, since: str | None) -> list[Mutant]:
    found = [mutant for mutant in found if re.search(only, mutant.name)]
    if since is None:
        return found
    changed = _changed_lines(since)
    return [mutant for mutant in found if (mutant.path, mutant.line) in changed]


def _changed_lines(since: str) -> set[tuple[str, int]]:
    """Return the path and the number of each line that was added or changed since a commit."""
    diff = subprocess.run(
        ["git", "diff", "--unified=0", "--no-prefix", since, "--", PACKAGE.name],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    path = ""
    changed = set()
    for line in diff.splitlines():
        if line.startswith("+++ "):
            path = line.removeprefix("+++ ").removeprefix(f"{PACKAGE.name}/")
        elif head := re.match(r"@@ \S+ \+(\d+)(?:,(\d+))? @@", line):
            first, count = int(head[1]), int(head[2] or 1)
            changed.update((path, number) for number in range(first, first + count))
    return changed


def _tidy() -> int:
    known = {mutant.name for mutant in mutants()}
    kept = [line for line in LISTED.read_text().splitlines() if not line[:1].isspace() or line.strip() in known]
    LISTED.write_text("\n".join(kept) + "\n")
    return 0


# Tests


class _Tests:
    """The tests that can notice a mutant."""

    def __init__(self, recording: lines.Recording) -> None:
        self._seconds = {test: seconds for test, (seconds, _, _) in recording["tests"].items()}
        self._own: dict[str, list[str]] = {}
        self._far: dict[str, set[str]] = {}
        for test, (_, own, far) in recording["tests"].items():
            for number in own:
                self._own.setdefault(recording["names"][number], []).append(test)
            for number in far:
                self._far.setdefault(recording["names"][number], set()).add(test)

    def of(self, mutant: Mutant, seconds: float) -> tuple[list[str], int]:
        """Return tests, in the order in which they are to run, and the number of all that execute the line."""
        own = self._own.get(mutant.name, [])
        far = self._far.get(mutant.name, set())
        # Few tests reach a limit: the rarer side of a comparison comes first.
        rare = far if len(far) < len(own) / 2 else set()
        mirror = f"/test_{Path(mutant.path).stem}.py::"
        order = sorted(own, key=lambda test: (test not in rare, mirror not in test, self._seconds[test]))
        # Each function once before the other parameters of the same functions.
        functions: set[str] = set()
        first, others = [], []
        for test in order:
            function = test.partition("[")[0]
            (others if function in functions else first).append(test)
            functions.add(function)
        found = []
        for test in first + others:
            seconds -= self._seconds[test]
            if found and seconds < 0 or len(found) == _MAX_TESTS:
                break
            found.append(test)
        return found, len(own)


def _record(path: Path, tests: Sequence[str], work: Path) -> None:
    if sys.version_info < (3, 12):
        raise SystemExit("recording needs CPython 3.12")
    print("recording which tests execute which lines")
    # Not in the checkout: it may change meanwhile.
    tree = _copy(work / "recorded")
    plugin = ["-q", "-p", "no:cacheprovider", "-p", "tests.lines", "--lines", str(path.resolve())]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    subprocess.run([sys.executable, "-m", "pytest", *plugin, *tests], cwd=tree, env=environment)
    shutil.rmtree(tree)


def _copy(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build")
    return Path(shutil.copytree(ROOT, folder, ignore=skipped))


#: Runs pytest again and again, each time in a fork: what all runs import is imported once.
_RUNNER: Final = """
import json, os, signal, sys, time
import pytest
import gevent.monkey, gevent.socket, gevent.ssl, gevent.subprocess, hypothesis.strategies, trustme, websockets

for line in sys.stdin:
    arguments, limit = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(nothing, number)
        os._exit(pytest.main(arguments))
    end = time.monotonic() + limit
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < end:
        time.sleep(0.02)
        ended, status = os.waitpid(child, os.WNOHANG)
    try:
        os.killpg(child, signal.SIGKILL)  # what the tests have started ends with them
    except ProcessLookupError:
        pass
    if not ended:
        os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status) if ended else "hangs", flush=True)
"""


class _Runner:
    """A copy of the checkout, and a process that runs tests in it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER], cwd=tree, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            # The copy keeps compiled code, whatever this process does.
            env=os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": ""},
        )  # fmt: skip

    def run(self, tests: Sequence[str], limit: float) -> str:
        """Return pytest's exit status, or ``hangs``."""
        assert self._process.stdin is not None and self._process.stdout is not None
        # Hypothesis is a plugin, and was imported before the fork.
        quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        arguments = ["-x", *quiet, f"--timeout={_TEST_LIMIT}", *tests]
        self._process.stdin.write(json.dumps([arguments, limit]) + "\n")
        self._process.stdin.flush()
        status = self._process.stdout.readline().strip()
        assert status, "the process that runs the tests has ended"
        return status

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()


# Trying


class _Results:
    """What is known of each mutant, also from earlier runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.by_name: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, mutant: Mutant, result: str, note: str) -> None:
        with self._lock:
            self.by_name[mutant.name] = result
            self._path.write_text(json.dumps(self.by_name, indent=0))
            print(f"{result:9}{note:>22}  {mutant.name}", flush=True)

    def report(self, found: Sequence[Mutant]) -> int:
        """Print a summary. Return 1 if a mutant survives that is not listed."""
        reasons = listed(LISTED.read_text())
        names = [mutant.name for mutant in found]
        counts = Counter(self.by_name.get(name, "not tried") for name in names)
        print(", ".join(f"{count} {result}" for result, count in counts.most_common()))
        alive = [name for name in names if self.by_name.get(name) in ("survived", "unrun")]
        unlisted = [name for name in alive if name not in reasons]
        for name in names:
            if name in reasons and self.by_name.get(name) == "killed":
                print(f"listed, and killed: {name}")
        for name in unlisted:
            print(f"not listed: {name}")
        return 1 if unlisted else 0


def _try_all(waiting: Sequence[Mutant], tests: _Tests, results: _Results, options: argparse.Namespace) -> None:
    runners: SimpleQueue[_Runner] = SimpleQueue()
    with (
        tempfile.TemporaryDirectory(prefix="mutants-", dir=options.work) as folder,
        ExitStack() as stack,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        for number in range(options.jobs):
            runner = stack.enter_context(closing(_Runner(_copy(Path(folder, str(number))))))
            if runner.run(["tests/test_wire.py"], 120) != "0":
                raise SystemExit("tests/test_wire.py fails without any change")
            runners.put(runner)

        def attempt(mutant: Mutant) -> None:
            runner = runners.get()
            try:
                _try(mutant, runner, tests, results, options.seconds)
            finally:
                runners.put(runner)

        try:
            for future in [pool.submit(attempt, mutant) for mutant in waiting]:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _try(mutant: Mutant, runner: _Runner, tests: _Tests, results: _Results, seconds: float) -> None:
    chosen, count = tests.of(mutant, seconds)
    if not chosen:
        results.add(mutant, "unrun", "by no test")
        return
    path = runner.tree / PACKAGE.name / mutant.path
    source = path.read_text()
    began = time.monotonic()
    try:
        _write(path, mutant.apply(source))
        status = runner.run(chosen, 3 * seconds + _TEST_LIMIT)
    finally:
        _write(path, source)
    note = f"{len(chosen)} of {count}, {time.monotonic() - began:.0f} s"
    # Others mean that pytest did not come to run them: the tests have changed since they were recorded.
    survived = "survived" if len(chosen) == count else "undecided"
    results.add(mutant, {"0": survived, "1": "killed", "hangs": "killed"}.get(status, "broken"), note)


def _write(path: Path, source: str) -> None:
    """Write a module. Python takes compiled code for current if a file's size and its second of change are the same."""
    changed = int(path.stat().st_mtime) + 2
    path.write_text(source)
    os.utime(path, (changed, changed))


if __name__ == "__main__":
    sys.exit(main())
