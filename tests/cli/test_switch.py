from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gmultisocket import Socket
from gmultisocket.cli import main
from tests.cli.command import address_of, interrupt, read_line, start


def test_a_hub_forwards_between_those_who_dial_its_two_addresses(tmp_path: Path) -> None:
    addresses = [f"ipc://{tmp_path}/{side}" for side in ("in", "out")]
    with start("switch", *addresses) as process, Socket() as publisher, Socket() as one, Socket() as other:
        assert [address_of(process), address_of(process)] == addresses
        publisher.dial(addresses[0])
        for worker in (one, other):
            worker.dial(addresses[1])
            # Once an answer is here, the hub knows the worker.
            worker.send(b"hello")
            message = publisher.recv_msg(timeout=20)
            publisher.send_to(message.source, b"welcome")
            assert worker.recv(timeout=20) == b"welcome"
        assert publisher.send_all(b"news") == 1
        assert [worker.recv(timeout=20) for worker in (one, other)] == [b"news", b"news"]
        status, out, err = interrupt(process, signal.SIGTERM)
        assert (status, out) == (0, "")
        assert err == "gmultisocket: 5 messages forwarded\n"
    assert not list(tmp_path.iterdir())


def test_it_dials_if_the_address_says_so() -> None:
    with Socket() as service, Socket() as client:
        address = service.listen("tcp://127.0.0.1:0").address
        with start("switch", "tcp://127.0.0.1:0", f"{address}#dial") as process:
            client.dial(address_of(process), {"connector.dialer.reconnect": False})
            assert read_line(process.stderr) == f"gmultisocket: front: dialed {address}\n"
            client.send(b"question")
            message = service.recv_msg(timeout=20)
            assert (message.content, message.hops) == (b"question", 2)
            service.send_to(message.source, b"answer")
            assert client.recv(timeout=20) == b"answer"


def test_what_cannot_go_on_is_counted(tmp_path: Path) -> None:
    with start("switch", "-v", f"ipc://{tmp_path}/a", f"ipc://{tmp_path}/b") as process, Socket() as a, Socket() as b:
        a.dial(address_of(process))
        b.dial(address_of(process))
        with Socket() as gone:
            gone.dial(f"ipc://{tmp_path}/a")
            gone.send(b"who are you?")
            path = b.recv_msg(timeout=20).source
        while "closed" not in read_line(process.stderr):
            pass
        b.send_to(path, b"too late")
        b.send(b"in time")
        assert a.recv(timeout=20) == b"in time"
        assert "gmultisocket: 1 messages dropped: BrokenPath\n" in interrupt(process)[2]


def test_the_ttl_of_messages_is_lowered_to_the_given_one() -> None:
    with start("switch", "--max-ttl", "5", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0") as process:
        with Socket({"socket.send_ttl": 255}) as a, Socket() as b:
            a.dial(address_of(process))
            b.dial(address_of(process))
            a.send(b"far", timeout=20)
            assert b.recv_msg(timeout=20).ttl == 4


@pytest.mark.parametrize(
    ("back", "front", "status", "why"),
    [
        ("tcp://127.0.0.1", "tcp://127.0.0.1:0", 2, "the port is missing"),
        ("inproc://same", "inproc://same", 1, "the name is in use"),
        ("tcp://127.0.0.1:0", "inproc://nobody#dial", 1, "nobody listens to the name"),
    ],
)
def test_an_address_that_does_not_work_ends_it(
    back: str, front: str, status: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["switch", back, front]) == status
    err = capsys.readouterr().err
    assert why in err and "Traceback" not in err
