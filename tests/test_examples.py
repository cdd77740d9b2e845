"""Every example runs without an argument, ends by itself, and prints what it is there to show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
PATIENCE = 50
#: These two need each other: they have tests of their own.
QUICKSTART = {"quickstart_server.py", "quickstart_client.py"}

#: What an example prints, where that is always the same.
PRINTED = {
    "switch.py": """\
hello -> HELLO CAME THROUGH 2 PIPES
spam -> no answer
good bye -> GOOD BYE CAME THROUGH 2 PIPES
4 messages forwarded, 1 dropped by the middleware
""",
    "raw_pipe.py": """\
peer reads:  b'welcome, stranger\\n'
peer reads:  b'you said just bytes\\n'
peer reads:  b'news for everybody\\n'
""",
    "reqrep.py": """\
one at a time:     [0, 1, 4, 9, 16]
100 at once:       328350
a Rep that closes: 10 answered, 2 failed at once
a bad request:     the handler of the request failed
""",
    "stream.py": """\
'the quick brown fox' has 4 words
'jumps' has 1 words
HTTP over a stream: this is /a/page
1 pipe was enough for both
""",
    "stream_proxy.py": """\
hello -> HELLO
is anybody there? -> IS ANYBODY THERE?
2 connections went through the tunnel
""",
    "pair.py": """\
  guest: Is anybody in?
   host: Come in.
         (a stranger has dialed, and the host still has 1 peer)
   host: Next, please.
""",
}
#: What it prints somewhere, where not.
HOLDS = {
    "bus.py": "Eve heard: hello from Ada, hello from Bob, hello from Cid, hello from Dot\n",
    "custom_transport.py": "through a transport of our own\n",
    "pipeline.py": "total   14850000\n",
    "pubsub.py": "both: rome.apples 3.10, rome.pears 2.80, oslo.apples 4.20\n",
    "retained.py": "late: rooms.2 b'free'\n",
    "recovery.py": "missing: history\norders.us b'6'\norders.us b'7'\norders.us b'8'\n",
    "rights.py": "account.ada goes to 0\n",
    "survey.py": "4 asked, 2 answered: east 70, north 12\n",
}


#: The last line of the error that it shows.
SHOWN = {"reqrep.py": "ValueError: invalid literal for int() with base 10: b'no number'\n"}


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=os.sep,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"},
    )


def finish(process: subprocess.Popen[str], status: int = 0, error: str = "") -> str:
    """Return what an example prints until its end, which must be a good one, with no other error than it shows."""
    with process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert process.returncode == status, out + err
    assert err.count("Traceback") == bool(error) and (error in err if error else err == ""), err
    return out


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - QUICKSTART))
def test_an_example_runs_and_ends_by_itself(name: str) -> None:
    out = finish(start(name), error=SHOWN.get(name, ""))
    assert out.count("\n") >= 1, "an example shows something"
    assert out == PRINTED.get(name, out)
    assert HOLDS.get(name, "") in out


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_is_about_one_screen_long_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) <= 100


def listening(server: subprocess.Popen[str]) -> str:
    stdout: IO[str] | None = server.stdout
    assert stdout is not None
    line = stdout.readline()
    assert line.startswith("listening at tcp://127.0.0.1:"), line
    return line.split()[-1]


def test_the_quick_start_works_in_two_processes_with_two_workers() -> None:
    server = start("quickstart_server.py", "tcp://127.0.0.1:0", "--messages", "8")
    try:
        address = listening(server)
        clients = [
            start("quickstart_client.py", address, "--name", name, "--messages", "4", "--interval", "0.01")
            for name in ("Ada", "Bob")
        ]
        answers = [finish(client).splitlines() for client in clients]
        assert finish(server) == "answered 8 messages\n"
    finally:
        server.kill()
        server.wait()
    for name, lines in zip(("Ada", "Bob"), answers, strict=True):
        assert sorted(line.partition(" ")[2] for line in lines) == [f"Hello, {name} {number}" for number in range(4)]
    assert {line.partition(" ")[0] for lines in answers for line in lines} == {"[#0]", "[#1]"}, "one worker did it all"


def test_the_quick_start_server_ends_on_ctrl_c() -> None:
    server = start("quickstart_server.py", "tcp://127.0.0.1:0")
    try:
        listening(server)
        server.send_signal(signal.SIGINT)
        assert finish(server) == "answered 0 messages\n"
    finally:
        server.kill()
        server.wait()
