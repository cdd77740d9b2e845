from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent import subprocess as gsubprocess

import gmultisocket
from gmultisocket.cli import main
from gmultisocket.testing import wait_until
from tests.cli.command import PATIENCE, address_of, environment, interrupt, run, start

COMMANDS = ("demo", "send", "recv", "cat", "switch", "options")


Parse = Callable[..., tuple[int, str, str]]


@pytest.fixture
def parse(capsys: pytest.CaptureFixture[str]) -> Parse:
    """Runs what argparse alone does, in this process: returns the exit status and both outputs."""

    def parse(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return (int(caught.value.code or 0), *capsys.readouterr())

    return parse


def test_the_version_is_told_by_the_module_as_a_program() -> None:
    out, _ = run("--version")
    assert out == f"gmultisocket {gmultisocket.__version__}\n"


def test_every_command_is_listed_and_explains_itself(parse: Parse) -> None:
    status, out, _ = parse("--help")
    assert status == 0
    for command in COMMANDS:
        assert f"\n    {command} " in out
        assert f"usage: gmultisocket {command}" in parse(command, "--help")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sing",),
        ("recv", "--count", "0", "-l", "tcp://127.0.0.1:0"),
        ("recv", "--count", "many", "-l", "tcp://127.0.0.1:0"),
        ("send", "--timeout", "-1", "-l", "tcp://127.0.0.1:0"),
        ("recv", "--format", "xml", "-l", "tcp://127.0.0.1:0"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: tuple[str, ...], parse: Parse) -> None:
    status, out, err = parse(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: gmultisocket")


def test_arguments_that_do_not_go_together_end_with_status_2() -> None:
    _, err = run("send", "--lines", "-l", "tcp://127.0.0.1:0", "data", status=2)
    assert err.startswith("usage: gmultisocket send") and "--lines reads standard input" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("socket.send_queue_sise=1", "did you mean 'socket.send_queue_size'?"),
        ("socket.send_queue_size=many", "expected a whole number"),
    ],
)
def test_a_wrong_option_is_explained(option: str, why: str, parse: Parse) -> None:
    status, _, err = parse("recv", "-l", "tcp://127.0.0.1:0", "-o", option)
    assert status == 2 and why in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("recv",), "no address was given: use --listen or --dial"),
        (("send", "-d", "tcp://127.0.0.1", "x"), "the port is missing"),
        (("send", "-d", "smoke://signals", "x"), "no transport has the scheme 'smoke'"),
        (("send", "-d", "inproc://nobody", "x"), "nobody listens to the name"),
        (("recv", "-l", "ipc:///missing/folder/socket"), "no such file or directory"),
    ],
)
def test_what_fails_is_told_in_one_line(arguments: tuple[str, ...], why: str) -> None:
    out, err = run(*arguments, status=1)
    assert out == ""
    assert why in err and err.startswith("gmultisocket: ") and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("recv",), 0),
        (("recv", "--count", "1"), 130),
        (("cat",), 0),
        (("cat", "--count", "1"), 130),
        (("send", "data"), 130),
    ],
)
def test_a_signal_ends_a_command_without_a_word(
    arguments: tuple[str, ...], status: int, number: int, tmp_path: Path
) -> None:
    with start(*arguments, "-l", f"ipc://{tmp_path}/socket") as process:
        address_of(process)
        assert interrupt(process, number) == (status, "", "")
    assert not list(tmp_path.iterdir()), "the socket file is still there"


def test_an_output_that_nobody_reads_ends_a_command_without_a_word(tmp_path: Path) -> None:
    with start("recv", "-l", f"ipc://{tmp_path}/socket") as process:
        address = address_of(process)
        process.stdout.close()
        run("send", "-d", address, "into the void")
        process.wait(PATIENCE)
        assert (process.returncode, process.stderr.read()) == (141, b"")
    assert not list(tmp_path.iterdir())


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sysconfig.get_path("scripts"), "gmultisocket")
    if not script.exists():
        pytest.skip("the package is not installed here")
    shown = subprocess.run(
        [sys.executable, str(script), "--version"], capture_output=True, text=True, timeout=PATIENCE, env=environment()
    )
    assert shown.stdout == f"gmultisocket {gmultisocket.__version__}\n"


FULL = Path("/dev/full")


@contextmanager
def started(*arguments: str, program: list[str] | None = None, **files: Any) -> Iterator[Any]:
    """Start the command, or a program that does it, with other files than pipes."""
    process = gsubprocess.Popen(
        program or [sys.executable, "-m", "gmultisocket", *arguments], env=environment(), cwd="/",
        **{"stdin": gsubprocess.DEVNULL, "stdout": gsubprocess.DEVNULL, "stderr": gsubprocess.PIPE} | files,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for stream in (process.stdin, process.stderr):
            if stream is not None:
                stream.close()


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("options",), ("demo",), ("recv", "--help")])
def test_a_full_output_is_one_line_and_a_failure(arguments: tuple[str, ...]) -> None:
    with open(FULL, "w") as full, started(*arguments, stdout=full) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert err == b"gmultisocket: input or output failed: no space left on device\n"
    assert process.returncode == 1


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["recv", "cat"])
def test_a_full_output_ends_what_prints_messages(command: str, tmp_path: Path) -> None:
    with (
        open(FULL, "w") as full,
        started(command, "-l", f"ipc://{tmp_path}/socket", stdout=full, stdin=gsubprocess.PIPE) as process,
    ):
        address_of(process)
        run("send", "-d", f"ipc://{tmp_path}/socket", "one")
        err = process.stderr.read()
        process.wait(PATIENCE)
    assert err == b"gmultisocket: input or output failed: no space left on device\n"
    assert process.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_error_output_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with open(FULL, "w") as full, started("recv", "-l", f"ipc://{path}", "-n", "1", stderr=full) as process:
        wait_until(path.exists, PATIENCE)
        run("send", "-d", f"ipc://{path}", "one")
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_a_closed_file_is_an_error_in_words(closed: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    redirection = "<&-" if closed == "stdin" else ">&-"
    command = f'exec "$0" -m gmultisocket cat -l ipc://{path} {redirection}'
    with started(program=["sh", "-c", command, sys.executable], stdin=gsubprocess.PIPE) as process:
        address_of(process)
        if closed == "stdout":
            run("send", "-d", f"ipc://{path}", "one")
        _, err = process.communicate(timeout=PATIENCE)
    name = {"stdin": "input", "stdout": "output"}[closed]
    assert (err.decode(), process.returncode) == (f"gmultisocket: standard {name} is closed\n", 1)


@pytest.mark.parametrize("ignored", [("INT",), ("TERM",), ("INT", "TERM")])
@pytest.mark.parametrize("command", ["recv", "switch"])
def test_a_signal_that_the_caller_ignores_stays_ignored(command: str, ignored: tuple[str, ...]) -> None:
    address = "tcp://127.0.0.1:0"
    arguments = {"switch": f"{address} {address}", "recv": f"-l {address}"}[command]
    shell = f"trap '' {' '.join(ignored)}; exec \"$0\" -m gmultisocket {command} {arguments}"
    with started(program=["sh", "-c", shell, sys.executable], stdin=gsubprocess.PIPE) as process:
        address_of(process)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = {key: value for key, _, value in (line.partition(":") for line in lines)}
        for name in ("INT", "TERM"):
            bit = 1 << (signal.Signals[f"SIG{name}"] - 1)
            assert bool(int(status["SigIgn"], 16) & bit) == (name in ignored)
            assert bool(int(status["SigCgt"], 16) & bit) == (name not in ignored)
