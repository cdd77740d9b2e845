from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import gmultisocket
from tests.cli.command import PATIENCE, address_of, environment, interrupt, run, start

COMMANDS = ("demo", "send", "recv", "cat", "switch", "options")


def test_the_version_is_told() -> None:
    out, _ = run("--version")
    assert out == f"gmultisocket {gmultisocket.__version__}\n"


def test_every_command_is_listed_and_explains_itself() -> None:
    out, _ = run("--help")
    for command in COMMANDS:
        assert f"\n    {command} " in out
        assert f"usage: gmultisocket {command}" in run(command, "--help")[0]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("sing",),
        ("recv", "--count", "0", "-l", "tcp://127.0.0.1:0"),
        ("recv", "--count", "many", "-l", "tcp://127.0.0.1:0"),
        ("send", "--timeout", "-1", "-l", "tcp://127.0.0.1:0"),
        ("recv", "--format", "xml", "-l", "tcp://127.0.0.1:0"),
        ("send", "--lines", "-l", "tcp://127.0.0.1:0", "data"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: tuple[str, ...]) -> None:
    _, err = run(*arguments, status=2)
    assert "usage: gmultisocket" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("socket.send_queue_sise=1", "did you mean 'socket.send_queue_size'?"),
        ("socket.send_queue_size=many", "expected a whole number"),
    ],
)
def test_a_wrong_option_is_explained(option: str, why: str) -> None:
    _, err = run("recv", "-l", "tcp://127.0.0.1:0", "-o", option, status=2)
    assert why in err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("recv",), "where to? Give an address"),
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
