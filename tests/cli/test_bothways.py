from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket
from gevent import subprocess

from gmultisocket import Socket
from tests.cli.command import PATIENCE, address_of, end, interrupt, read_line, run, start, write_line


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Socket, str]]:
    with Socket() as sock:
        yield sock, sock.listen(f"ipc://{tmp_path}/socket").address


def answer(sock: Socket, count: int) -> None:
    for _ in range(count):
        message = sock.recv_msg(timeout=PATIENCE)
        sock.send_to(message.source, b"re: " + message.content)


def test_lines_go_out_and_messages_come_in(server: tuple[Socket, str]) -> None:
    sock, address = server
    with start("cat", "--dial", address) as process:
        for line in (b"one", b"two"):
            write_line(process, line)
            answer(sock, 1)
            assert read_line(process.stdout) == f"re: {line.decode()}\n"


def test_it_ends_when_enough_has_come(server: tuple[Socket, str]) -> None:
    sock, address = server
    answering = gevent.spawn(answer, sock, 1)
    out, _ = run("cat", "-d", address, "--count", "1", data=b"question\n")
    answering.get(timeout=5)
    assert out == "re: question\n"


def test_it_ends_with_its_input_once_nothing_comes_any_more(server: tuple[Socket, str]) -> None:
    sock, address = server
    answering = gevent.spawn(answer, sock, 2)
    out, _ = run("cat", "-d", address, "--wait", "1", data=b"one\ntwo")
    answering.get(timeout=5)
    assert out == "re: one\nre: two\n"


def test_enough_is_waited_for_and_too_few_are_an_error(server: tuple[Socket, str]) -> None:
    sock, address = server

    def answer_late() -> None:
        source = sock.recv_msg(timeout=PATIENCE).source
        # Longer than it waits without a number.
        gevent.sleep(1.2)
        sock.send_to(source, b"late")

    answering = gevent.spawn(answer_late)
    with start("cat", "-d", address, "-n", "1", "question") as patient:
        assert end(patient)[0] == "late\n"
    answering.get()
    _, err = run("cat", "-d", address, "-n", "1", "-w", "0.1", "question", status=1)
    assert err.endswith("gmultisocket: 0 of 1 messages arrived, then none for 0.1 s\n")


def test_lines_go_to_all_if_that_is_asked_for() -> None:
    with Socket() as one, Socket() as other, start("cat", "-l", "tcp://127.0.0.1:0", "--to", "all") as process:
        address = address_of(process)
        for sock in (one, other):
            sock.dial(address, {"connector.dialer.reconnect": False})
            sock.send(b"here")
            assert read_line(process.stdout) == "here\n"
        write_line(process, b"to both")
        assert [sock.recv(timeout=20) for sock in (one, other)] == [b"to both", b"to both"]


def test_lines_go_to_who_wrote_last_if_that_is_asked_for() -> None:
    with Socket() as one, Socket() as other, start("cat", "-l", "tcp://127.0.0.1:0", "--to", "last") as process:
        address = address_of(process)
        for sock in (one, other):
            sock.dial(address, {"connector.dialer.reconnect": False})
        for sock in (other, one, other):
            sock.send(b"me")
            assert read_line(process.stdout) == "me\n"
            write_line(process, b"you")
            assert sock.recv(timeout=20) == b"you"


def test_a_line_to_nobody_is_dropped_and_told() -> None:
    with start("cat", "-l", "tcp://127.0.0.1:0", "--to", "last") as process:
        address_of(process)
        write_line(process, b"hello?")
        assert "nobody has written yet" in read_line(process.stderr)


def test_a_line_to_who_has_gone_is_dropped_and_told() -> None:
    with start("cat", "-l", "tcp://127.0.0.1:0", "--to", "last", "-v") as process:
        address = address_of(process)
        with Socket() as sock:
            sock.dial(address)
            sock.send(b"bye")
            assert read_line(process.stdout) == "bye\n"
        while "disconnected" not in read_line(process.stderr):
            pass
        write_line(process, b"wait!")
        assert "the peer that wrote last has gone" in read_line(process.stderr)


def test_a_line_that_cannot_be_sent_ends_it(server: tuple[Socket, str]) -> None:
    _, address = server
    _, err = run("cat", "-d", address, data=b"x" * 200_000, status=1)
    assert "a content of 200000 bytes is over the limit of 131072 bytes: raise socket.max_send_content_length" in err


def test_it_talks_to_a_peer_that_knows_only_bytes() -> None:
    with start("cat", "-l", "tcp://127.0.0.1:0?connector.pipe.raw=true", "--to", "last", "-f", "raw") as process:
        host, _, port = address_of(process).removeprefix("tcp://").rpartition(":")
        with gsocket.create_connection((host, int(port))) as peer:
            peer.sendall(b"hello\n")
            assert read_line(process.stdout) == "hello\n"
            write_line(process, b"who is there?")
            assert peer.recv(100) == b"who is there?"


def test_a_file_can_be_its_input(server: tuple[Socket, str], tmp_path: Path) -> None:
    sock, address = server
    lines = tmp_path / "lines"
    lines.write_bytes(b"from\na file\n")
    program = (
        "import os, sys; os.dup2(os.open(sys.argv.pop(), os.O_RDONLY), 0);"
        "from gmultisocket.cli import main; sys.exit(main())"
    )
    with start("cat", "-d", address, "--wait", "0", str(lines), program=[sys.executable, "-c", program]) as process:
        assert [sock.recv(timeout=20) for _ in range(2)] == [b"from", b"a file"]
        assert process.wait(PATIENCE) == 0


def test_a_pair_talks_by_lines() -> None:
    with start("pair", "-l", "tcp://127.0.0.1:0") as one:
        with start("pair", "-d", address_of(one)) as other:
            for line in (b"hello", b"hello again"):
                write_line(one, line)
                assert read_line(other.stdout) == line.decode() + "\n"
                write_line(other, b"answer to " + line)
                assert read_line(one.stdout) == f"answer to {line.decode()}\n"
            assert interrupt(other)[:2] == (0, "")
        assert interrupt(one)[:2] == (0, "")


def test_a_message_of_the_arguments_is_sent_also_if_enough_has_come_before(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/bus"
    arguments = ("bus", "-l", address, "-n", "1", "--delay", "0.3", "late")
    with start(*arguments) as one, start("bus", "-d", address_of(one), "-n", "1", "early") as other:
        assert end(one)[0] == "early\n"
        assert end(other)[0] == "late\n"


def test_a_bus_may_only_listen(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/bus"
    with start("bus", "-l", address, "-w", "inf", "-n", "1", stdin=subprocess.DEVNULL) as one:
        run("bus", "-d", address_of(one), "-w", "0", "news")
        assert end(one)[0] == "news\n"
