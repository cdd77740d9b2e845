"""Real gunicorns for tests, and peers that talk to what they serve."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gevent import ssl as gssl
from gevent import subprocess
from gunicorn.config import KNOWN_SETTINGS
from websockets.frames import Opcode

from gmultisocket import Message
from gmultisocket.testing import wait_until
from gmultisocket.wire import Decoder, encode
from tests.certificates import authority
from tests.transport.wspeers import RawPeer, frame, request

__all__ = ["PATIENCE", "Gunicorn", "Peer", "running", "say", "standing_still"]

ROOT = Path(__file__).resolve().parent.parent.parent
#: How long a gunicorn may take to come up, and to end, on a busy machine, in seconds.
PATIENCE = 40
#: Newer ones leave a socket in the home directory.
QUIET = ["--no-control-socket"] if any(each.name == "control_socket_disable" for each in KNOWN_SETTINGS) else []
#: What may stand in the log; the example's switch says where it listens, and at the end that nothing was dropped.
_INFO = re.compile(r"\[[^]]+\] \[\d+\] \[INFO\] .*|gmultisocket: (the hub .*|(back|front): .*|\d+ messages forwarded)")


class Peer(RawPeer):
    """A client of a gunicorn."""

    def __init__(self, address: str) -> None:
        super().__init__(address, timeout=20)
        if address.startswith("wss:"):
            context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
            authority().configure_trust(context)
            self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")

    def upgrade(self, early: bytes = b"") -> None:
        """Ask for a WebSocket; ``early`` comes right behind the request."""
        self.send(request("/ws") + early)
        assert (status := self.status()) == 101, (status, self.unread)

    def say(self, content: bytes) -> None:
        self.send(say(content))

    def read_line(self) -> bytes:
        """Return the first line of an answer's body."""
        while b"\n" not in self.unread:
            data = self.sock.recv(4096)
            assert data, f"hung up after {self.unread!r}"
            self.unread += data
        return self.unread.partition(b"\n")[0]

    def hear(self) -> bytes:
        """Return the content of the next message."""
        (message,) = Decoder(1).feed(self.read_frame().data)
        return bytes(message.content)

    def answer_goodbye(self) -> int:
        """Return the code with which the other side closes, and see that nothing comes after the answer to it."""
        code = self.read_close().code
        self.send(frame(Opcode.CLOSE, code.to_bytes(2, "big")))
        assert self.read_rest() == b""
        return int(code)


def say(content: bytes) -> bytes:
    """Return a message as a client sends it."""
    return frame(Opcode.BINARY, encode(Message(content=content)))


class Gunicorn:
    """A gunicorn that runs.

    Attributes:
        address: of its WebSockets.
        process: its master.
    """

    def __init__(self, process: Any, folder: Path, secure: bool, log: Path | None) -> None:
        self.process = process
        self._log = folder / "gunicorn.log" if log is None else log
        self._output = folder / "gunicorn.out"
        wait_until(lambda: "Listening at" in self.log or process.poll() is not None, PATIENCE)
        found = re.search(r"Listening at: https?://127\.0\.0\.1:([0-9]+)", self.log)
        assert found, self.log
        self.address = f"{'wss' if secure else 'ws'}://127.0.0.1:{found[1]}/ws"

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def access_log(self) -> str:
        """Return the requests that it has served, and all that it has printed."""
        return self._output.read_text()

    def workers(self, count: int = 2) -> list[int]:
        """Return the processes of the workers, when so many have started."""
        wait_until(lambda: self.log.count("Booting worker") == count, PATIENCE)
        return [int(pid) for pid in re.findall(r"Booting worker with pid: ([0-9]+)", self.log)]

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        """A client whose WebSocket is open."""
        with Peer(self.address) as peer:
            peer.upgrade()
            yield peer

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to end, and do not wait for that."""
        os.kill(self.process.pid, number)

    def wait_ended(self) -> None:
        """Check that it ends in order, and has logged nothing that is worth more than an INFO."""
        wait_until(lambda: self.process.poll() is not None, PATIENCE, what=f"the end of gunicorn: {self.log}")
        assert self.process.returncode == 0, self.log
        assert [line for line in self.log.splitlines() if not _INFO.fullmatch(line)] == []


@contextmanager
def running(
    folder: Path, *arguments: str, app: str = "tests.contrib.served:application", secure: bool = False,
    log_file: Path | None = None,
) -> Iterator[Gunicorn]:  # fmt: skip
    """Run a gunicorn on a port of its own choice; nothing of it is left when the body has ended.

    Args:
        folder: for its logs.
        arguments: of the command line.
        app: what it serves; "" where the configuration says so.
        secure: whether the arguments turn TLS on.
        log_file: the error log, if the arguments have one.
    """
    # A worker that a test stops is not taken for one that hangs.
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--access-logfile", "-", "--timeout", "120"]
    command += [*QUIET, *arguments]
    with open(folder / "gunicorn.log", "w") as log, open(folder / "gunicorn.out", "w") as output:
        process = subprocess.Popen(
            [*command, app] if app else command,
            stdin=subprocess.DEVNULL, stdout=output, stderr=log, cwd=ROOT, start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "GUNICORN_CMD_ARGS": ""},
        )  # fmt: skip
    try:
        yield Gunicorn(process, folder, secure, log_file)
    finally:
        if process.poll() is None:
            # Its workers are in its session, and in no other's.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Stop a worker from accepting, so that the other one accepts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
