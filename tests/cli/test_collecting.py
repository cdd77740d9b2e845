"""Commands that serve until a signal let the garbage collector run rarely."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gmultisocket.cli.collecting import collect_rarely
from tests.cli.command import PATIENCE, environment

#: Runs a command, ends it when it is about to serve, and prints how the garbage collector was set by then.
_SERVE = """
import gc, os, signal, sys

from gmultisocket.cli import collecting, main

was = gc.get_threshold()
set_threshold = gc.set_threshold

def set_and_end(*thresholds):
    set_threshold(*thresholds)
    os.kill(os.getpid(), signal.SIGTERM)

gc.set_threshold = set_and_end
status = main(sys.argv[1:])
print(status, gc.get_freeze_count() > 1000, gc.get_threshold()[2] > was[2])
"""


@pytest.fixture
def thresholds() -> Iterator[tuple[int, int, int]]:
    """What the collector is set to before the test, and after it."""
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_is_loaded_is_left_alone_and_the_oldest_are_looked_at_rarely(thresholds: tuple[int, int, int]) -> None:
    collect_rarely()
    assert gc.get_freeze_count() > 1000
    young, middle, old = thresholds
    assert gc.get_threshold() == (young, middle, 10 * old)


@pytest.mark.parametrize("words", [["hub", "ipc://{}/hub"], ["switch", "ipc://{}/in", "ipc://{}/out"]])
def test_a_command_that_serves_until_a_signal_does_it(words: list[str], tmp_path: Path) -> None:
    arguments = [word.format(tmp_path) for word in words]
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, *arguments], env=environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "0 True True\n", done.stderr
