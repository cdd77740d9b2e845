from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gmultisocket import Socket
from tests.cli.command import PATIENCE, address_of, read_line, start


@pytest.fixture
def client() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock


def received(client: Socket, contents: list[bytes], *arguments: str) -> Any:
    """Return what the command prints of these messages."""
    with start("recv", "-l", "tcp://127.0.0.1:0", "--count", str(len(contents)), *arguments) as process:
        client.dial(address_of(process), {"connector.dialer.reconnect": False})
        for content in contents:
            client.send(content)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, b"")
    return out


def test_contents_are_printed_as_lines(client: Socket) -> None:
    assert received(client, [b"one", b"", b"\xff\x00"]) == b"one\n\n\xff\x00\n"


def test_contents_are_printed_as_they_are(client: Socket) -> None:
    assert received(client, [b"one\n", b"two"], "--format", "raw") == b"one\ntwo"


def test_contents_are_printed_quoted(client: Socket) -> None:
    assert received(client, [b"a'b\n\xff"], "-f", "quoted") == b'"a\'b\\n\\xff"\n'


def test_contents_are_printed_in_hex(client: Socket) -> None:
    assert received(client, [b"\x00\xff", b"A"], "-f", "hex") == b"00ff\n41\n"


def test_messages_are_printed_as_json(client: Socket) -> None:
    (line,) = received(client, [b"h\xffi"], "-f", "json").splitlines()
    fields = json.loads(line)
    assert fields.pop("source") and fields == {"content": "h\\xffi", "hops": 1, "send_type": "one", "ttl": 15}


def test_messages_are_printed_as_they_come(client: Socket) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0") as process:
        client.dial(address_of(process), {"connector.dialer.reconnect": False})
        for content in (b"first", b"second"):
            client.send(content)
            assert read_line(process.stdout) == content.decode() + "\n"


def test_it_receives_from_several_addresses_and_says_which(client: Socket) -> None:
    with Socket() as server:
        dialed = server.listen("tcp://127.0.0.1:0").address
        with start("recv", "-d", dialed, "-l", "tcp://127.0.0.1:0", "-l", "tcp://127.0.0.1:0", "-n", "3") as process:
            for _ in range(2):
                client.dial(address_of(process), {"connector.dialer.reconnect": False})
            assert read_line(process.stderr) == f"gmultisocket: dialed {dialed}\n"
            client.send(b"x")
            client.send(b"x")
            server.send(b"x", timeout=20)
            assert process.communicate(timeout=PATIENCE)[0] == b"x\nx\nx\n"


def test_it_ends_when_nothing_comes_any_more(client: Socket) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0", "--timeout", "2") as process:
        client.dial(address_of(process), {"connector.dialer.reconnect": False})
        client.send(b"only one")
        assert process.communicate(timeout=PATIENCE) == (b"only one\n", b"")
    assert process.returncode == 0


@pytest.mark.parametrize(("arguments", "needed"), [((), 1), (("--count", "5"), 5)])
def test_it_fails_when_too_few_came_in_time(arguments: tuple[str, ...], needed: int) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0", "--timeout", "0.05", *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (1, b"")
    assert f"0 of {needed} messages arrived, then none for 0.05 s" in err.decode()


def test_each_message_can_be_answered(client: Socket) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0", "--reply", "pong") as process:
        client.dial(address_of(process), {"connector.dialer.reconnect": False})
        for content in (b"ping", b"ping again"):
            client.send(content)
            assert client.recv(timeout=20) == b"pong"


def test_the_greeting_of_a_raw_pipe_is_not_printed() -> None:
    from gevent import socket as gsocket

    with start("recv", "-l", "tcp://127.0.0.1:0?connector.pipe.raw=true", "-n", "1", "--reply", "bye") as process:
        host, _, port = address_of(process).removeprefix("tcp://").rpartition(":")
        with gsocket.create_connection((host, int(port))) as peer:
            peer.sendall(b"plain bytes")
            assert peer.recv(100) == b"bye"
        assert process.communicate(timeout=PATIENCE)[0] == b"plain bytes\n"
