"""What a test asks of the operating system: memory, processor time, descriptors, other processes, tools."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from gevent import subprocess as gsubprocess

__all__ = [
    "MIB",
    "ROOT",
    "cpu_time",
    "descriptors_exhausted",
    "many_descriptors",
    "needs",
    "resident",
    "run_script",
    "spawn_script",
]

ROOT = Path(__file__).resolve().parent.parent.parent
MIB = 1 << 20
_PAGE = resource.getpagesize()


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def cpu_time(pid: int | None = None) -> float:
    """Return the seconds of processor time that a process has used, by default this one."""
    if pid is None:
        return time.process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def descriptors_exhausted(spare: int = 0) -> Iterator[None]:
    """Limit this process to ``spare`` more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    # One above the highest in use: all gaps below are filled.
    top = max(map(int, os.listdir("/proc/self/fd"))) + 16
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    try:
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            for _ in range(spare):
                os.close(held.pop())
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def many_descriptors(count: int) -> Iterator[None]:
    """Raise this process's limit of descriptors; skip the test where the system refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"takes {count} descriptors, and {hard} is the limit here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def needs(*commands: str) -> pytest.MarkDecorator:
    """Skip a test, with the reason, where one of some commands is missing or fails.

    Args:
        commands: each one with arguments that make it try what the test needs and do nothing else.
    """
    why = next(filter(None, map(_why_not, commands)), "")
    return pytest.mark.skipif(bool(why), reason=why or "nothing is missing")


@cache
def _why_not(command: str) -> str:
    if shutil.which(command.split()[0]) is None:
        return f"{command.split()[0]} is not installed"
    tried = subprocess.run(command.split(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    return f"{command!r} fails here: {tried.stderr.strip()[:200]}" if tried.returncode else ""


def _command(script: str, arguments: tuple[object, ...], wrapper: tuple[str, ...]) -> list[str]:
    return [*wrapper, sys.executable, "-c", script, *map(str, arguments)]


def run_script(script: str, *arguments: object, wrapper: tuple[str, ...] = (), timeout: float = 50) -> str:
    """Run a Python program to its end, and return what it printed. Other greenlets run meanwhile.

    Args:
        script: the program; its directory is the checkout.
        wrapper: a command that runs the command that follows it.

    Raises:
        AssertionError: it failed; with what it had to say.
    """
    done = gsubprocess.run(
        _command(script, arguments, wrapper),
        cwd=ROOT,
        stdin=gsubprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return str(done.stdout)


@contextmanager
def spawn_script(script: str, *arguments: object, wrapper: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python program beside the test; it is killed when the test is done with it.

    Its input, which ends with the test, and its output are pipes.
    """
    child = gsubprocess.Popen(
        _command(script, arguments, wrapper), cwd=ROOT, stdin=gsubprocess.PIPE, stdout=gsubprocess.PIPE
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
