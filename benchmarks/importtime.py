"""What ``import`` costs, in a fresh interpreter each time."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

from .harness import ROOT, Entry, Failed, Figure, Outcome, Row, RunTimeout, Scale

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
    # A run is short and disk and processor are shared: more runs cost little.
    return [Row("import", "import", "ms", False, entries, [figure], repeats=9)]


def _run(modules: str, scale: Scale) -> Outcome:
    command = [sys.executable, "-c", _PROGRAM.format(modules)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    try:
        # The first one compiles what it imports from a checkout, as installing it would.
        for _ in range(2):
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=scale.seconds,
            )
    except subprocess.TimeoutExpired:
        raise RunTimeout("hangs") from None
    if done.returncode:
        raise Failed(f"failed: {done.stderr.strip().splitlines()[-1]}")
    return Outcome(float(done.stdout) * 1000)
