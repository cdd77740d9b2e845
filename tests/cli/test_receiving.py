from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gmultisocket import Pub, Socket, Sub
from tests.cli.command import PATIENCE, address_of, end, interrupt, read_line, start, without_hints


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
    assert (process.returncode, without_hints(err)) == (0, "")
    return out


def test_contents_are_printed_as_lines(client: Socket) -> None:
    assert received(client, [b"one", b"", b"\xff\x00"]) == b"one\n\n\xff\x00\n"


@pytest.mark.parametrize("flags", [("-Q",), ("--quoted",), ("-f", "quoted")])
def test_a_format_has_a_short_name(flags: tuple[str, ...], client: Socket) -> None:
    assert received(client, [b"a'b\n\xff"], *flags) == b'"a\'b\\n\\xff"\n'


def test_messages_are_printed_as_json(client: Socket) -> None:
    first, second = map(json.loads, received(client, [b"hi", b"h\xffi"], "--json").splitlines())
    assert first.pop("source") and first == {"content": "hi", "hops": 1, "send_type": "one", "ttl": 15}
    assert second["content_base64"] == "aP9p" and "content" not in second


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
            assert end(process)[0] == "x\nx\nx\n"


def test_a_dial_may_come_before_its_listener(client: Socket, tmp_path: Any) -> None:
    address = f"ipc://{tmp_path}/late"
    with start("recv", "-d", address, "--async", "-n", "1") as process:
        assert read_line(process.stderr) == f"gmultisocket: dialing {address}\n"
        client.listen(address)
        client.send(b"at last", timeout=PATIENCE)
        assert end(process) == ("at last\n", "")


def test_it_ends_when_nothing_comes_any_more(client: Socket) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0", "--timeout", "1.5") as process:
        client.dial(address_of(process), {"connector.dialer.reconnect": False})
        client.send(b"only one")
        assert end(process) == ("only one\n", "")


@pytest.mark.parametrize(("arguments", "needed"), [((), 1), (("--count", "5"), 5)])
def test_it_fails_when_too_few_came_in_time(arguments: tuple[str, ...], needed: int) -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0", "--timeout", "0.05", *arguments) as process:
        out, err = end(process, 1)
    assert out == "" and f"0 of {needed} messages arrived, then none for 0.05 s" in err


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
        assert end(process)[0] == "plain bytes\n"


def test_that_the_peer_speaks_a_protocol_is_said_once() -> None:
    with start("recv", "-l", "tcp://127.0.0.1:0") as process:
        address = address_of(process)
        with Pub() as pub, Sub() as sub:
            pub.dial(address)
            assert read_line(process.stderr).endswith(
                " is a Pub, which sends to subscribers only: use 'gmultisocket sub'\n"
            )
            sub.subscribe(">")
            sub.dial(address)
            assert read_line(process.stderr).endswith(
                " is a Sub, which sends only subscriptions: use 'gmultisocket pub'\n"
            )


#: A command, the peer that it dials (None: it listens, and nobody comes), and what it says.
SILENT: list[tuple[tuple[str, ...], Any, str]] = [
    (("recv",), None, "nobody has connected yet\n"),
    (("recv",), Socket, "1 peer is connected, but nothing has come: does it wait to be asked?"),
    (("pull",), Socket, "1 peer is connected, but nothing has come: is it a Push"),
    (("sub", "-s", "a.b"), Pub, "1 peer is connected, but nothing has come: nothing was published under a.b\n"),
    (("sub", "-s", "a.b"), Socket, "no answer to the subscription to a.b: is the peer a Pub?\n"),
    (("rep",), Socket, "1 peer is connected, but nothing has come: is it a Req"),
    (("push", "x", "--peers", "2"), Socket, "waiting for 2 peers\n"),
    (("pub", "-T", "a", "x"), Socket, "waiting for 1 subscriber to a\n"),
    (("survey", "x"), None, "waiting for 1 peer\n"),
    (("req", "x"), Socket, "1 peer is connected, but nothing has come: is the peer a Rep?\n"),
]


def test_that_nothing_comes_is_said_after_two_seconds() -> None:
    with ExitStack() as stack:
        processes = []
        for arguments, peer, _ in SILENT:
            address = ("-l", "tcp://127.0.0.1:0")
            if peer is not None:
                address = ("-d", stack.enter_context(peer()).listen("tcp://127.0.0.1:0").address)
            processes.append(stack.enter_context(start(*arguments, *address)))
        for process, (arguments, _, said) in zip(processes, SILENT, strict=True):
            lines = [read_line(process.stderr)]
            while not lines[-1].startswith(f"gmultisocket: {said}"):
                assert lines[-1], (arguments, lines)
                lines.append(read_line(process.stderr))
            assert interrupt(process)[2] == ""


def test_nothing_of_this_is_said_if_quiet(client: Socket) -> None:
    with start("recv", "-q", "-l", "tcp://127.0.0.1:0", "-t", "2.1") as process:
        assert end(process, 1) == ("", "gmultisocket: 0 of 1 messages arrived, then none for 2.1 s\n")
