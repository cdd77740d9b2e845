from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.cli import notes, progress
from gmultisocket.testing import wait_until
from tests.cli.command import PATIENCE
from tests.cli.terminal import terminal

COMMAND = f"{shlex.quote(sys.executable)} -m gmultisocket"


def test_on_a_terminal_one_line_moves_and_is_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes((b"x" * 59_999 + b"\n") * 200)
    line = re.compile(r"^send: (\d+) %, [\d,]+ of 12,000,000 bytes, [\d,]+ a second, \d+ s left$", re.M)
    with Socket({"socket.recv_queue_size": 1}) as sock:
        address = sock.listen(f"ipc://{tmp_path}/s").address
        command = f"{COMMAND} send -d {address} -o socket.send_queue_size=1 --lines -F {path}"
        with terminal(f"{command}; echo status $?; exec cat") as shown:
            seen: set[str] = set()

            def moves() -> bool:
                # The command is never far ahead of this.
                sock.recv(PATIENCE)
                seen.update(line.findall("\n".join(shown.lines())))
                return len(seen) > 1

            wait_until(moves, PATIENCE)
            taking = gevent.spawn(lambda: [None for _ in sock])
            wait_until(lambda: shown.lines()[-1] == "status 0", PATIENCE)
            # The address takes two lines.
            assert "".join(shown.lines()) == f"gmultisocket: dialed {address}status 0"
    taking.join()


def test_on_a_terminal_ctrl_c_ends_it_and_the_line_goes() -> None:
    with terminal(f"{COMMAND} perf inproc_lat 10 100000000; echo status $?; exec cat") as shown:
        wait_until(lambda: any(re.match(r"remote_lat: \d+ %, ", line) for line in shown.lines()), PATIENCE)
        shown.type("C-c")
        wait_until(lambda: "status 130" in shown.lines(), PATIENCE)
        assert [line for line in shown.lines() if line != "^C"] in (["status 130"], ["^Cstatus 130"])


def test_elsewhere_there_is_a_plain_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes.set_verbosity(0, False)
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with progress.Progress("work", 200) as shown:
        for done in range(100):
            now += 0.25
            shown.show(done)
    with progress.Progress("more work") as shown:
        now += 10
        shown.show(1000)
        now += 10
        shown.show(1000, 2000, "bytes")
    for what, quiet in (("", False), ("quiet", True)):
        notes.set_verbosity(0, quiet)
        with progress.Progress(what, 5) as shown:
            now += 10
            shown.show(2)
    notes.set_verbosity(0, False)
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        [
            "gmultisocket: work: 19 %, 39 of 200 messages, 4 a second, 41 s left",
            "gmultisocket: work: 39 %, 79 of 200 messages, 4 a second, 31 s left",
            "gmultisocket: more work: 50 %, 1,000 of 2,000 bytes, 50 a second, 20 s left",
        ],
    )
