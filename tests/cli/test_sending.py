from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gmultisocket import Socket
from tests.cli.command import PATIENCE, address_of, interrupt, read_line, run, start, write_line


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Socket, str]]:
    with Socket() as sock:
        yield sock, sock.listen(f"ipc://{tmp_path}/socket").address


def test_the_argument_is_sent(server: tuple[Socket, str]) -> None:
    sock, address = server
    out, err = run("send", "--dial", address, "héllo")
    assert sock.recv(timeout=5) == "héllo".encode()
    assert (out, err) == ("", f"gmultisocket: dialed {address}\n")


def test_all_of_standard_input_is_one_message(server: tuple[Socket, str]) -> None:
    sock, address = server
    run("send", "-d", address, data=b"two\nlines\n")
    assert sock.recv(timeout=5) == b"two\nlines\n"


def test_each_line_is_a_message_if_that_is_asked_for(server: tuple[Socket, str]) -> None:
    sock, address = server
    run("send", "-d", address, "--lines", data=b"one\n\ntwo\nwithout end")
    assert [sock.recv(timeout=5) for _ in range(4)] == [b"one", b"", b"two", b"without end"]


def test_lines_leave_as_they_are_written(server: tuple[Socket, str]) -> None:
    sock, address = server
    with start("send", "-d", address, "--lines") as process:
        for line in (b"first", b"second"):
            write_line(process, line)
            assert sock.recv(timeout=20) == line


def test_everything_is_repeated_as_often_as_asked_for(server: tuple[Socket, str]) -> None:
    sock, address = server
    run("send", "-d", address, "--count", "3", "--interval", "0.001", "tick")
    run("send", "-d", address, "--count", "2", "--lines", data=b"a\nb\n")
    assert [sock.recv(timeout=5) for _ in range(7)] == [b"tick"] * 3 + [b"a", b"b"] * 2


def test_all_peers_get_a_message_to_all() -> None:
    arguments = ("send", "-l", "tcp://127.0.0.1:0", "--peers", "2", "--all", "hi")
    with Socket() as one, Socket() as other, start(*arguments) as process:
        address = address_of(process)
        one.dial(address)
        other.dial(address)
        assert [sock.recv(timeout=20) for sock in (one, other)] == [b"hi", b"hi"]
        assert process.wait(20) == 0


def test_it_gives_up_when_no_peer_comes() -> None:
    _, err = run("send", "-l", "tcp://127.0.0.1:0", "--timeout", "0.05", "hi", status=1)
    assert err.endswith("gmultisocket: 1 peer did not come within 0.05 s\n")


def test_a_content_that_is_too_long_is_told(server: tuple[Socket, str]) -> None:
    _, address = server
    _, err = run("send", "-d", address, data=bytes(200_000), status=1)
    assert "a content of 200000 bytes is over the limit of 131072 bytes" in err


def test_options_can_be_set(server: tuple[Socket, str]) -> None:
    sock, address = server
    sock.set_option("connector.pipe.max_recv_content_length", 300_000)
    run("send", "-d", address, "-o", "socket.max_send_content_length=300000", data=bytes(200_000))
    assert sock.recv(timeout=5) == bytes(200_000)


def test_messages_that_did_not_leave_are_told(tmp_path: Path) -> None:
    with Socket({"socket.recv_queue_size": 1}) as sock:
        address = sock.listen(f"ipc://{tmp_path}/socket").address
        lines = b"\n".join([b"x" * 100_000] * 20)
        options = ("-o", "socket.send_stop_timeout=0.05", "-o", "socket.send_queue_size=100")
        _, err = run("send", "-d", address, "--lines", *options, data=lines, status=1)
        assert " messages were not sent" in err


def test_verbose_shows_pipes_that_come_and_go(server: tuple[Socket, str]) -> None:
    sock, address = server
    _, err = run("send", "-v", "-d", address, "hi")
    shown = err.splitlines()
    assert shown[0].startswith(f"gmultisocket: {address} connected: pipe ") and shown[0].endswith(", dialed")
    assert f"gmultisocket: {address} disconnected: the socket was closed" in shown
    assert sock.recv(timeout=5) == b"hi"


def test_pieces_of_a_file_are_put_together_again(server: tuple[Socket, str], tmp_path: Path) -> None:
    sock, address = server
    data = bytes(range(256)) * 1000
    path = tmp_path / "file"
    path.write_bytes(data)
    with start("recv", "-l", f"ipc://{tmp_path}/r", "-n", "26", "--raw") as process:
        run("send", "-d", address_of(process), "-F", str(path), "--split", "10000")
        assert process.communicate(timeout=PATIENCE)[0] == data


def test_an_interval_alone_repeats_until_a_signal(server: tuple[Socket, str]) -> None:
    sock, address = server
    with start("send", "-d", address, "-i", "0.01", "tick") as process:
        assert [sock.recv(timeout=20) for _ in range(3)] == [b"tick"] * 3
        read_line(process.stderr)
        assert interrupt(process) == (0, "", "")


def test_the_longest_message_can_be_set(server: tuple[Socket, str]) -> None:
    sock, address = server
    sock.set_option("connector.pipe.max_recv_content_length", 300_000)
    run("send", "-d", address, "-Z", "300000", data=bytes(200_000))
    assert sock.recv(timeout=5) == bytes(200_000)


def test_json_goes_through_two_commands_unchanged(tmp_path: Path) -> None:
    with start("recv", "-l", f"ipc://{tmp_path}/r", "-n", "2", "--json") as process:
        lines = b'{"content": "n\\u00e9"}\n{"content_base64": "/w=="}\n'
        run("send", "-d", address_of(process), "--split", "json", data=lines)
        out = process.communicate(timeout=PATIENCE)[0].splitlines()
    assert [line.partition(b", ")[0] + b"}" for line in out] == lines.splitlines()
