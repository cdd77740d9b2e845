"""A hub with peers that stop: real processes that get SIGSTOP, behind a Switch and behind ``gmultisocket switch``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Socket, Switch
from gmultisocket.errors import BrokenPath, Timeout
from gmultisocket.testing import wait_until
from tests.cli.command import address_of, interrupt, start
from tests.faults.peers import stuck
from tests.faults.process import spawn_script

LARGE = bytes(60_000)
COUNT = 300
#: A queue holds this number.
FEW = 30

#: Says hello, counts what it receives, and reports the number when it is asked to.
WORKER = """
import sys
from gmultisocket import Socket

with Socket() as sock:
    sock.dial(sys.argv[1])
    sock.send(b"hello")
    received = 0
    for message in sock:
        if message.content == b"report":
            sock.send(b"%d" % received)
        else:
            received += 1
"""


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def stopped(process: Any) -> Iterator[None]:
    """Stop a process, and let it go on when the body has ended."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(process.pid))
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def publish(publisher: Socket, others: list[Socket], count: int = COUNT) -> None:
    """Send to all workers, and check that the running ones receive each message before the next one is sent."""
    for number in range(count):
        publisher.send_all(b"%d" % number + LARGE, timeout=20)
        for other in others:
            assert other.recv(timeout=20) == b"%d" % number + LARGE


def hear_hello(publisher: Socket) -> bytes:
    """Return the path to a worker that has connected."""
    message = publisher.recv_msg(timeout=30)
    assert message.content == b"hello"
    return message.source


def join(publisher: Socket, where: str, options: dict[str, Any] | None = None) -> Socket:
    """Return a worker in this process."""
    worker = Socket(options)
    worker.dial(where)
    worker.send(b"hello")
    hear_hello(publisher)
    return worker


def test_a_stopped_worker_behind_a_switch_holds_up_no_other(address: str) -> None:
    if address.startswith("inproc:"):
        pytest.skip("a peer in this process cannot be stopped")
    with Socket() as back, Socket() as front, Socket() as publisher, Switch(back, front) as switch:
        publisher.dial(back.listen("inproc://hub-in").address)
        listener = front.listen(address)
        where = listener.address + address[len(address.partition("?")[0]) :].partition("#")[0]
        with spawn_script(WORKER, where) as process:
            path = hear_hello(publisher)
            with join(publisher, where) as other:
                before = switch.forwarded
                with stopped(process):
                    publish(publisher, [other])
                # The worker has begun to read again. Before that, the switch may drop the question as well.
                wait_until(lambda: not any(pipe.full for pipe in front.pipes.values()), timeout=30)
                publisher.send_to(path, b"report")
                received = int(publisher.recv(timeout=30))
                # Every message was received or counted.
                assert 0 < received < COUNT
                assert switch.drops == {"overflow": COUNT - received}
                assert switch.forwarded == before + COUNT + 2
                # A worker that has caught up loses nothing more, as long as its queue holds what it has not read.
                publish(publisher, [other], FEW)
                publisher.send_to(path, b"report")
                assert int(publisher.recv(timeout=30)) == received + FEW


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_a_stopped_worker_holds_up_no_other_at_the_switch_of_the_command(scheme: str, tmp_path: Path) -> None:
    addresses = [f"ipc://{tmp_path}/{side}" if scheme == "ipc" else "tcp://127.0.0.1:0" for side in ("in", "out")]
    with start("switch", *addresses) as process, Socket() as publisher:
        publisher.dial(address_of(process))
        where = address_of(process)
        with spawn_script(WORKER, where) as worker:
            path = hear_hello(publisher)
            with join(publisher, where) as other:
                with stopped(worker):
                    publish(publisher, [other])
                asked = 0
                report: bytes | None = None
                # Until the worker has begun to read again, the switch may drop the question as well.
                while report is None and asked < 30:
                    publisher.send_to(path, b"report")
                    asked += 1
                    with contextlib.suppress(Timeout):
                        report = publisher.recv(timeout=1)
                assert report is not None
                lost = COUNT - int(report)
                (dropped,) = re.findall(r"gmultisocket: (\d+) messages dropped: overflow\n", interrupt(process)[2])
                assert lost <= int(dropped) < lost + asked


def test_a_worker_that_does_not_receive_in_the_process_of_the_switch_holds_up_no_other() -> None:
    with Socket() as back, Socket() as front, Socket() as publisher, Switch(back, front) as switch:
        publisher.dial(back.listen("inproc://hub-in").address)
        where = front.listen("inproc://hub-out").address
        with join(publisher, where) as idle, join(publisher, where) as other:
            publish(publisher, [other])
            assert switch.drops == {"overflow": COUNT - idle.queued - sum(pipe.queued for pipe in front.pipes.values())}


def test_several_stuck_workers_cost_a_hub_its_patience_once() -> None:
    options = {"transport.tcp.write_buffer": 4096}
    with Socket() as back, Socket() as front, Socket() as publisher, Switch(back, front) as switch:
        publisher.dial(back.listen("inproc://hub-in").address)
        listener = front.listen("tcp://127.0.0.1:0", options)
        with join(publisher, listener.address) as other, stuck(listener, 20):
            wait_until(lambda: len(front.pipes) == 21)
            with gevent.Timeout(20):
                publish(publisher, [other])
            assert switch.drops["overflow"] > 20 * (COUNT - 100)
            assert len(front.pipes) == 21


def test_a_hub_that_is_to_wait_waits() -> None:
    with Socket() as back, Socket({"socket.send_overflow": "block"}) as front, Socket() as publisher:
        publisher.dial(back.listen("inproc://hub-in").address)
        listener = front.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096})
        with Switch(back, front) as switch, join(publisher, listener.address) as other:
            received: list[bytes] = []
            reading = gevent.spawn(lambda: received.extend(other.recv(timeout=30) for _ in range(COUNT)))
            with stuck(listener):
                wait_until(lambda: len(front.pipes) == 2)
                sending = gevent.spawn(lambda: [publisher.send_all(LARGE) for _ in range(COUNT)])
                wait_until(lambda: any(pipe.full for pipe in front.pipes.values()) and back.queued)
                assert not sending.ready()
            sending.get(timeout=20)
            reading.get(timeout=20)
            assert switch.drops == {}


def test_a_client_that_stops_while_it_is_answered_through_a_switch_holds_up_no_other(tmp_path: Path) -> None:
    """What is sent along a path must not be lost unseen: it may be a part of a stream. So the pipe is closed."""
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as switch:
        server.dial(back.listen(f"ipc://{tmp_path}/in").address)
        where = front.listen(f"ipc://{tmp_path}/out").address
        with spawn_script(WORKER, where) as process:
            path = hear_hello(server)
            with join(server, where) as other, stopped(process):
                other.send(b"hello")
                other_path = hear_hello(server)
                known = set(front.pipes)
                for number in range(COUNT):
                    server.send_to(path, LARGE, timeout=20)
                    server.send_to(other_path, b"%d" % number, timeout=20)
                    assert other.recv(timeout=20) == b"%d" % number
                wait_until(lambda: "BrokenPath" in switch.drops)
                assert len(front.pipes) == 1
            # The worker's dialer connects again.
            wait_until(lambda: len(front.pipes) == 1 and not set(front.pipes) & known, timeout=30)
            server.send_all(b"report")
            assert server.recv(timeout=30)
            with pytest.raises(BrokenPath):
                front.send_to(path[4:], b"too late")
