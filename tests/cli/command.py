"""The ``gmultisocket`` command as a subprocess."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gevent import subprocess
from gevent.fileobject import FileObjectPosix

ROOT = Path(__file__).resolve().parent.parent.parent
#: Long enough for a busy machine: nothing below waits for it to pass.
PATIENCE = 30.0


def environment() -> dict[str, str]:
    """An environment in which the package of this checkout is found, and warnings are shown."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def run(*arguments: str, data: bytes = b"", status: int = 0) -> tuple[str, str]:
    """Run the command to its end, check its exit status, and return what it wrote to both outputs."""
    with start(*arguments) as process:
        out, err = process.communicate(data, timeout=PATIENCE)
    assert process.returncode == status, (process.returncode, out, err)
    return out.decode(), err.decode()


@contextmanager
def start(*arguments: str, program: list[str] | None = None) -> Iterator[Any]:
    """Start the command, and end it when the body has ended, if it still runs then."""
    process = subprocess.Popen(
        [sys.executable, *(program or ["-m", "gmultisocket"]), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=os.sep,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(PATIENCE)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def read_line(stream: FileObjectPosix) -> str:
    """Return the next line, waiting for it in this greenlet only."""
    return str(stream.readline().decode())


def address_of(process: Any) -> str:
    """Return the address that the command says it listens at."""
    line = read_line(process.stderr)
    assert "listening at " in line, line + process.stderr.read().decode()
    return line.rpartition(" ")[2].strip()


def interrupt(process: Any, number: int = signal.SIGINT) -> tuple[int, str, str]:
    """Send a signal, and return the exit status and what was left to read of both outputs."""
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), err.decode()
