"""The ``gmultisocket`` command as a subprocess, and the examples of its help."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gevent import subprocess
from gevent.fileobject import FileObjectPosix

from gmultisocket.cli import COMMANDS
from gmultisocket.cli.arguments import Parser

ROOT = Path(__file__).resolve().parent.parent.parent
#: Long enough for a busy machine: nothing below waits for it to pass.
PATIENCE = 30.0


def environment() -> dict[str, str]:
    """An environment in which the package of this checkout is found, and warnings are shown."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(*arguments: str, data: bytes = b"", status: int = 0) -> tuple[str, str]:
    """Run the command to its end, check its exit status, and return what it wrote to both outputs."""
    with start(*arguments) as process:
        return end(process, status, data)


def end(process: Any, status: int = 0, data: bytes = b"") -> tuple[str, str]:
    """Wait for the end of a command, check its exit status, and return what was left to read of both outputs."""
    out, err = process.communicate(data, timeout=PATIENCE)
    assert process.returncode == status, (process.returncode, out, err)
    return out.decode(), without_hints(err)


def without_hints(err: bytes) -> str:
    """Return a standard error without what a command says when it waits for long: machines may be busy."""
    hints = r"nobody has connected yet|waiting for .*|\d+ peers? (is|are) connected, but .*"
    return re.sub(f"^gmultisocket: ({hints})\n", "", err.decode(), flags=re.M)


@contextmanager
def start(*arguments: str, program: list[str] | None = None, **more: Any) -> Iterator[Any]:
    """Start the command, or a program, and end it when the body has ended, if it still runs then."""
    process = subprocess.Popen(
        [*(program or [sys.executable, "-m", "gmultisocket"]), *arguments],
        **{
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": environment(),
            "cwd": os.sep,
        }
        | more,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def read_line(stream: FileObjectPosix) -> str:
    """Return the next line, waiting for it in this greenlet only."""
    return str(stream.readline().decode())


def write_line(process: Any, line: bytes) -> None:
    """Write a line to the command's standard input."""
    process.stdin.write(line + b"\n")
    process.stdin.flush()


def address_of(process: Any) -> str:
    """Return the address that the command says it listens at."""
    line = read_line(process.stderr)
    assert "listening at " in line or "listens at " in line, line + process.stderr.read().decode()
    return line.rpartition(" ")[2].strip()


def interrupt(process: Any, number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Send a signal, and return the exit status and what was left to read of both outputs."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), without_hints(err)


def parser_of(command: str) -> Parser:
    """Return the parser of a command."""
    parser = Parser(command)
    getattr(import_module(f"gmultisocket.cli.{COMMANDS[command]}"), command)(parser)
    return parser


def help_of(command: str) -> str:
    """Return what ``gmultisocket COMMAND --help`` prints."""
    return parser_of(command).format_help()


def examples_of(command: str) -> tuple[str, ...]:
    """Return the command lines with which the help of a command ends."""
    lines = help_of(command).rpartition("\nexamples:\n")[2]
    return tuple(line.strip() for line in lines.splitlines())
