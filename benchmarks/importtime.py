"""The time of an ``import``, in a fresh interpreter each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from .harness import Entry, Failed, Figure, Outcome, Plan, Round, Row, RunTimeout

__all__ = ["rows"]

_GEVENT = "gevent.socket and gevent.queue"
_PROGRAM = "import time; begin = time.perf_counter(); import {}; print(time.perf_counter() - begin)"


def rows() -> list[Row]:
    """Return the rows of this work."""
    entries = [
        Entry("gmultisocket", partial(_run, "gmultisocket"), "gmultisocket"),
        Entry(_GEVENT, partial(_run, "gevent.socket, gevent.queue"), "gevent"),
        Entry("pyzmq", partial(_run, "zmq"), "pyzmq"),
        Entry("zmq.green", partial(_run, "zmq.green"), "zmq.green"),
        Entry("pynng", partial(_run, "pynng"), "pynng"),
    ]
    figure = Figure("gmultisocket", _GEVENT, at_most=1.5)
    # A run is short, and other programs use the disk and the processor too: more runs cost little.
    return [Row("import", "import", "ms", False, entries, [figure], repeats=9)]


@contextmanager
def _run(modules: str, plan: Plan) -> Iterator[Round]:
    # The first import compiles the modules of a checkout, as an installation would.
    _import(modules, plan)
    yield lambda: _import(modules, plan)


def _import(modules: str, plan: Plan) -> Outcome:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM.format(modules)],
            cwd=plan.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=plan.seconds,
        )
    except subprocess.TimeoutExpired:
        raise RunTimeout(f"hangs: not done in {plan.seconds:g} s") from None
    if done.returncode:
        raise Failed(f"failed: {done.stderr.strip().splitlines()[-1]}")
    return Outcome(float(done.stdout) * 1000)
