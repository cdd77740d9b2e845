"""The examples of every --help run, at once where there are several, and print what they should."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess

from gmultisocket.cli import COMMANDS
from tests.cli.command import PATIENCE, address_of, environment, examples_of, start

_JOBS = "one\ntwo\nthree\nfour\n"
#: By the first words of the examples: all lines that they print together. Several are in no order.
PRINTED = {
    "pub": {"1.09", "prices.eur 1.09"},
    "rep": {"what time is it?", "it is noon", "and now?", '{"content": "it is noon"}'},
    "push": None,
    "bus": {"first", "second", "third"},
    "pair": {"only me", "who is there?"},
    "survey": {"who is there?", "Ada", "Bob"},
    "recv -l tcp://127.0.0.1:5555 -n 5": {"hello", "one", "two", "three", "four"},
    "recv -l tcp://127.0.0.1:5555 -n 1": {"question", "answer"},
    "switch": {"through the switch"},
    "hub": set(),
    "perf": {"message size: 100 [B]", "round trip count: 1000"},
    "demo": {"one Socket listens at", "and a client has dialed each"},
    "options": {"socket.send_queue_size = 64", "socket.send_queue_bytes = 0"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the command, as if it was installed, and the files that the examples use."""
    command = tmp_path / "bin" / "gmultisocket"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m gmultisocket "$@"\n')
    command.chmod(0o755)
    (tmp_path / "jobs.txt").write_text(_JOBS)
    return tmp_path


def run_all(examples: tuple[str, ...], folder: Path) -> Iterator[str]:
    """Run the examples at once; those that listen first. Yield what each has printed."""
    listening = re.compile(r"gmultisocket (switch|hub|.* -l |perf local_)")
    ordered = sorted(examples, key=lambda example: not listening.match(example))
    with ExitStack() as stack:
        processes: list[Any] = []
        for example in ordered:
            process = stack.enter_context(start_example(example, folder))
            processes.append(process)
            if listening.match(example):
                for _ in range(2 if "switch" in example else 1):
                    address_of(process)
        # A switch ends when nobody needs it any more, and so does a hub.
        for process, example in zip(reversed(processes), reversed(ordered), strict=True):
            if example.split()[1] in ("switch", "hub"):
                process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, (example, out, err)
            yield out.decode()


def start_example(example: str, folder: Path) -> AbstractContextManager[Any]:
    """Start a command line, with other addresses."""
    line = example.replace("tcp://127.0.0.1:5555", f"ipc://{folder}/s").replace("ipc:///run/", f"ipc://{folder}/")
    return start(
        # A signal is for the command, not for the shell.
        program=["sh", "-c", line if "|" in line else f"exec {line}"],
        cwd=folder,
        env=environment() | {"PATH": f"{folder}/bin:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
    )


EXAMPLES = sorted({examples_of(command) for command in COMMANDS})


@pytest.mark.parametrize("examples", EXAMPLES, ids=lambda each: each[0][13:24])
def test_the_examples_of_the_help_run_and_print_what_they_should(examples: tuple[str, ...], folder: Path) -> None:
    (name,) = (name for name in PRINTED if f"{examples[0]} ".startswith(f"gmultisocket {name} "))
    printed = [line for out in run_all(examples, folder) for line in out.splitlines()]
    wanted = PRINTED[name]
    if wanted is None:
        contents = [line if not line.startswith("{") else line.split('"')[3] for line in printed]
        assert sorted(contents) == sorted(_JOBS.split())
    elif name in ("perf", "demo", "options"):
        assert wanted <= set(printed)
    else:
        assert set(printed) == wanted


def test_every_command_has_examples_that_were_tried() -> None:
    tried = {example for command in COMMANDS for example in examples_of(command)}
    for command in COMMANDS:
        assert any(re.search(rf"gmultisocket {command}\b", example) for example in tried), command
