from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import gmultisocket
from gmultisocket import Message, Socket
from gmultisocket.cli import main
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL
from tests.certificates import authority, server_certificate
from tests.cli.command import PATIENCE, address_of, end, environment, interrupt, read_line, run, start, without_hints


def test_the_version_is_told_by_the_module_as_a_program() -> None:
    out, _ = run("--version")
    assert out == f"gmultisocket {gmultisocket.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("send", "-d", "inproc://nobody", "x"), "nobody listens to the name"),
        (("recv", "-l", "ipc:///missing/folder/socket"), "no such file or directory"),
        (("survey", "-q", "-l", "inproc://alone", "--peers", "0", "x"), "no answer within 1.0 s: nobody is connected"),
        (("pub", "-q", "-l", "inproc://alone", "-t", "0", "-T", "a", "x"), "1 subscriber to a did not come"),
    ],
)
def test_what_fails_is_told_in_one_line(
    arguments: tuple[str, ...], why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert why in err and err.startswith("gmultisocket: ") and err.count("\n") == 1


def test_a_second_signal_ends_the_wait_for_a_peer_that_does_not_read(tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    lines.write_bytes(b"x" * 10_000 + b"\n")
    with (
        start("push", "-l", f"ipc://{tmp_path}/socket", "--lines", "-F", str(lines), "-n", "1000") as process,
        Socket({"socket.recv_queue_size": 1}) as sock,
    ):
        sock.dial(address_of(process))
        # The first message waits here, and behind it everything is full.
        wait_until(lambda: sock.counters.messages_received > 0, PATIENCE)
        process.send_signal(signal.SIGINT)
        assert read_line(process.stderr) == (
            "gmultisocket: waiting until what was sent has left; another signal ends this at once\n"
        )
        status, out, err = interrupt(process)
        assert (status, out, err.count("\n")) == (130, "", 1) and "drops messages: disconnect" in err
    lines.unlink()
    assert not list(tmp_path.iterdir())


def test_a_signal_before_the_command_has_begun_ends_it_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gmultisocket.cli.Parser", interrupted)
    assert main(["recv"]) == 130
    assert capsys.readouterr() == ("", "")


def test_that_nobody_can_come_is_told() -> None:
    with start("recv", "-q", "-l", "inproc://alone", stdout=subprocess.DEVNULL) as process:
        _, err = process.communicate(timeout=PATIENCE)
        assert err == b"gmultisocket: nothing can come any more: nobody in another process reaches inproc\n"
        assert process.returncode == 1


def test_a_command_imports_only_what_it_needs() -> None:
    program = """
import sys
from gmultisocket.cli import main
main(["send", "--help"])
loaded = {name for name in sys.modules if name.startswith("gmultisocket.")}
assert not {name for name in loaded if name.startswith("gmultisocket.protocol")}, loaded
assert "gmultisocket.switch" not in loaded and "gmultisocket.cli.demo" not in loaded
for name in ("json", "base64", "difflib", "tempfile", "platform", "shutil", "subprocess", "gevent.subprocess"):
    assert name not in sys.modules or name in before, name
"""
    program = "import sys, gmultisocket; before = set(sys.modules)" + program
    with start(program=[sys.executable, "-c", program]) as process:
        end(process)


#: Commands that wait, and the status with which a signal ends them: 0 if nothing else would.
WAITING = {
    ("recv",): 0,
    ("recv", "--count", "1"): 130,
    ("cat",): 0,
    ("cat", "--count", "1"): 130,
    ("send", "data"): 130,
    ("send", "data", "-i", "1"): 0,
    ("pub", "a b"): 130,
    ("sub",): 0,
    ("sub", "-n", "1"): 130,
    ("req", "x"): 130,
    ("rep",): 0,
    ("push", "x"): 130,
    ("pull", "-n", "2"): 130,
    ("bus",): 0,
    ("pair", "x"): 0,
    ("survey", "x"): 130,
    ("respond", "-n", "1"): 130,
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_without_a_word(number: int, tmp_path: Path) -> None:
    # The signal makes no difference to a command, nor the command to the signal.
    waiting = dict(list(WAITING.items())[number % 3 :: 3])
    with ExitStack() as stack:
        processes = [
            stack.enter_context(start(*arguments, "-l", f"ipc://{tmp_path}/{index}"))
            for index, arguments in enumerate(waiting)
        ]
        for process, (arguments, status) in zip(processes, waiting.items(), strict=True):
            address_of(process)
            assert interrupt(process, number) == (status, "", ""), arguments
    assert not list(tmp_path.iterdir()), "a socket file is still there"


def test_an_output_that_nobody_reads_ends_a_command_without_a_word(tmp_path: Path) -> None:
    commands = (("recv",), ("sub",), ("rep",), ("cat",), ("bus",))
    with ExitStack() as stack:
        processes = [stack.enter_context(start(*each, "-l", f"ipc://{tmp_path}/{each[0]}")) for each in commands]
        for process in processes:
            address_of(process)
            process.stdout.close()
        for process in processes:
            assert process.wait(PATIENCE) == 141
            assert without_hints(process.stderr.read()) == ""
    assert not list(tmp_path.iterdir())


def test_a_message_for_an_output_that_nobody_reads_ends_a_command(tmp_path: Path) -> None:
    with start("recv", "-l", f"ipc://{tmp_path}/socket") as process, Socket() as sock:
        sock.dial(address_of(process))
        sock.send(b"first")
        assert read_line(process.stdout) == "first\n"
        process.stdout.close()
        sock.send(b"into the void")
        assert process.wait(PATIENCE) == 141


def test_the_installed_script_is_the_same_command() -> None:
    script = Path(sysconfig.get_path("scripts"), "gmultisocket")
    if not script.exists():
        pytest.skip("the package is not installed here")
    shown = subprocess.run(
        [sys.executable, str(script), "--version"], capture_output=True, text=True, timeout=PATIENCE, env=environment()
    )
    assert shown.stdout == f"gmultisocket {gmultisocket.__version__}\n"


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_output_is_one_line_and_a_failure() -> None:
    printing = ("--help", "--version", "options", "demo -n 1", "recv --help", "perf inproc_thr 1 10")
    with open(FULL, "w") as full, ExitStack() as stack:
        for process in [stack.enter_context(start(*each.split(), stdout=full)) for each in printing]:
            _, err = process.communicate(timeout=PATIENCE)
            assert err == b"gmultisocket: input or output failed: no space left on device\n"
            assert process.returncode == 1


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["recv", "cat"])
def test_a_full_output_ends_what_prints_messages(command: str, tmp_path: Path) -> None:
    with (
        open(FULL, "w") as full,
        start(command, "-l", f"ipc://{tmp_path}/socket", stdout=full) as process,
    ):
        address_of(process)
        run("send", "-d", f"ipc://{tmp_path}/socket", "one")
        err = process.stderr.read()
        process.wait(PATIENCE)
    assert without_hints(err) == "gmultisocket: input or output failed: no space left on device\n"
    assert process.returncode == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_error_output_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with open(FULL, "w") as full, start("recv", "-l", f"ipc://{path}", "-n", "1", stderr=full) as process:
        wait_until(path.exists, PATIENCE)
        run("send", "-d", f"ipc://{path}", "one")
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("closed", ["stdin", "stdout"])
def test_a_closed_file_is_an_error_in_words(closed: str, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    redirection = "<&-" if closed == "stdin" else ">&-"
    command = f'exec "$0" -m gmultisocket cat -l ipc://{path} {redirection}'
    with start(program=["sh", "-c", command, sys.executable]) as process:
        if closed == "stdout":
            address_of(process)
            run("send", "-d", f"ipc://{path}", "one")
        _, err = process.communicate(timeout=PATIENCE)
    name = {"stdin": "input", "stdout": "output"}[closed]
    assert (without_hints(err), process.returncode) == (f"gmultisocket: standard {name} is closed\n", 1)


@pytest.mark.parametrize("ignored", [("INT",), ("TERM",), ("INT", "TERM")])
@pytest.mark.parametrize("command", ["recv", "switch"])
def test_a_signal_that_the_caller_ignores_stays_ignored(command: str, ignored: tuple[str, ...]) -> None:
    address = "tcp://127.0.0.1:0"
    arguments = {"switch": f"{address} {address}", "recv": f"-l {address}"}[command]
    shell = f"trap '' {' '.join(ignored)}; exec \"$0\" -m gmultisocket {command} {arguments}"
    with start(program=["sh", "-c", shell, sys.executable]) as process:
        address_of(process)
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = {key: value for key, _, value in (line.partition(":") for line in lines)}
        for name in ("INT", "TERM"):
            bit = 1 << (signal.Signals[f"SIG{name}"] - 1)
            assert bool(int(status["SigIgn"], 16) & bit) == (name in ignored)
            assert bool(int(status["SigCgt"], 16) & bit) == (name not in ignored)


def test_the_flags_for_tls_and_headers_reach_a_websocket(tmp_path: Path) -> None:
    ca, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    authority().cert_pem.write_to_path(str(ca))
    server_certificate().private_key_and_cert_chain_pem.write_to_path(str(key))
    requests: list[Any] = []
    options = {
        "transport.tls.certfile": str(key),
        "transport.ws.listener.authorize": lambda request: requests.append(request.headers["X-Who"]),
    }
    with Socket() as sock:
        address = sock.listen("wss://127.0.0.1:0/path", options).address
        wss = ("send", "-d", address, "-H", "X-Who: a: person", "hi")
        with start(*wss, "--cacert", str(ca)) as trusting, start(*wss) as distrusting, start(*wss, "-k") as careless:
            end(trusting)
            end(careless)
            assert "certificate" in end(distrusting, 1)[1]
        assert [sock.recv(timeout=5) for _ in range(2)] == [b"hi", b"hi"]
    assert requests == ["a: person"] * 2


def test_a_certificate_of_its_own_is_shown(tmp_path: Path) -> None:
    ca, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    authority().cert_pem.write_to_path(str(ca))
    server_certificate().private_key_and_cert_chain_pem.write_to_path(str(key))
    tls = ("--cacert", str(ca), "--cert", str(key))
    with start("recv", "-l", "tls+tcp://127.0.0.1:0", *tls, "-n", "1") as process:
        address = address_of(process)
        run("send", "-d", address, *tls, "hi")
        assert end(process)[0] == "hi\n"


def test_warnings_are_printed_unless_quiet_and_all_records_if_verbose() -> None:
    with Socket() as sock, ExitStack() as stack:
        arguments = ("pull", "-l", "tcp://127.0.0.1:0", "-n", "1")
        pulls = [stack.enter_context(start(*arguments, flag)) for flag in ("-vv", "-v")]
        for pull in pulls:
            sock.dial(address_of(pull))
            sock.send_msg(Message(flags=CONTROL | TO_ALL, content=b"garbage"))
        sock.send_all(b"enough")
        errors = [end(pull)[1] for pull in pulls]
    assert all("gmultisocket: Pull drops a message (garbage)" in err for err in errors)
    assert "closed: " in errors[0] and "disconnected: " in errors[1]
