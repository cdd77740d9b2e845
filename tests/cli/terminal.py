"""A terminal of 80 by 24, by tmux."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gevent import subprocess

from tests.cli.command import PATIENCE, environment

__all__ = ["Terminal", "terminal"]


class Terminal:
    """What a person sees, and types.

    Args:
        server: the socket file of the tmux that is started.
        command: what runs in it; tmux ends when it has ended.
    """

    def __init__(self, server: Path, command: str) -> None:
        self._tmux = ["tmux", "-f", "/dev/null", "-S", str(server)]
        self._call("new-session", "-d", "-x", "80", "-y", "24", command)

    def _call(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], stdout=subprocess.PIPE, env=environment(), timeout=PATIENCE)
        return str(done.stdout.decode())

    def lines(self) -> list[str]:
        """Return the lines on the screen that are not empty."""
        return [line.rstrip() for line in self._call("capture-pane", "-p").splitlines() if line.strip()]

    def type(self, *keys: str) -> None:
        """Press keys, as tmux names them."""
        self._call("send-keys", *keys)

    def close(self) -> None:
        """End everything in the terminal."""
        self._call("kill-server")


@contextmanager
def terminal(command: str) -> Iterator[Terminal]:
    """Run a shell command in a terminal until the body has ended. Skip where there is no tmux."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    with tempfile.TemporaryDirectory(prefix="terminal-") as folder:
        shown = Terminal(Path(folder) / "tmux", command)
        try:
            yield shown
        finally:
            shown.close()
