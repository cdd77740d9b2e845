"""The clock of the machine is set, by an hour, forwards and backwards: timeouts and pauses do not see it.

The clock of one process is set, by libfaketime. Its monotonic clock is left alone, as setting a clock leaves it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.process import needs, run_script

STEPPED = """
import sys, time
from pathlib import Path

import gevent
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.errors import MultiSocketError, Timeout
from gmultisocket.protocol import Rep, Req, Respondent, Surveyor
from gmultisocket.testing import wait_until

CLOCK = Path(sys.argv[1])
STEP = int(sys.argv[2])
WATCHED = {
    "connector.pipe.heartbeat_interval": 5.0, "connector.pipe.heartbeat_timeout": 20.0,
    "connector.pipe.idle_timeout": 60.0, "connector.pipe.frame_timeout": 60.0,
    "transport.ws.ping_interval": 5.0, "transport.ws.ping_timeout": 20.0,
}


def step():
    before = time.time()
    CLOCK.write_text(f"{STEP:+d}\\n")
    moved = time.time() - before
    assert abs(moved - STEP) < 60, f"the clock moved by {moved} s"


def still(greenlet, what):
    assert not greenlet.ready(), f"{what} ended with the step: {greenlet.value!r} {greenlet.exception!r}"


def outcome(function, *arguments, **options):
    # What a call returns, or the error that it raises.
    try:
        return function(*arguments, **options)
    except MultiSocketError as error:
        return error


CLOCK.write_text("+0\\n")
servers = [Socket(WATCHED) for _ in range(3)]
clients = [Socket(WATCHED) for _ in range(3)]
addresses = ("tcp://127.0.0.1:0", "ws://127.0.0.1:0", f"ipc://@{CLOCK}")
for server, client, address in zip(servers, clients, addresses):
    client.dial(server.listen(address).address)
    server.wait_pipes(1, timeout=20)
silent = gsocket.socket()
silent.bind(("127.0.0.1", 0))
silent.listen(5)
here = f"127.0.0.1:{silent.getsockname()[1]}"
lonely, crowd, one = Socket(), Socket(), Socket()
asked, rep, req = [], Rep(lambda request: asked.append(request) or gevent.sleep(1) or b"answer"), Req()
respondent, surveyor = Respondent(lambda question: b"vote"), Surveyor()
rep.start()
respondent.start()
req.socket.dial(rep.socket.listen("inproc://rep").address)
surveyor.socket.dial(respondent.socket.listen("inproc://respondent").address)
surveyor.socket.wait_pipes(1, timeout=20)
dialer = lonely.dial("tcp://127.0.0.1:1", {
    "connector.dialer.dial_async": True, "connector.dialer.min_reconnect_time": 120.0,
    "connector.dialer.max_reconnect_time": 120.0,
})
wait_until(lambda: dialer.state.value == "paused", 20)

# These have minutes, and must not end at the step; the others have a second, and must not wait for an hour.
long = {
    "recv": gevent.spawn(outcome, servers[0].recv, timeout=600),
    "send": gevent.spawn(outcome, lonely.send, b"x", timeout=600),
    "wait_pipes": gevent.spawn(outcome, crowd.wait_pipes, 2, timeout=600),
    "dial": gevent.spawn(outcome, Socket().dial, "ws://" + here, {"connector.dialer.dial_timeout": 600.0}),
    "handshake": gevent.spawn(outcome, Socket().dial, "tls+tcp://" + here, {"connector.dialer.dial_timeout": 600.0}),
}
short = {
    "recv": gevent.spawn(outcome, servers[1].recv, timeout=1),
    "send": gevent.spawn(outcome, lonely.send, b"x", timeout=1),
    "wait_pipes": gevent.spawn(outcome, lonely.wait_pipes, 5, timeout=1),
    "dial": gevent.spawn(outcome, Socket().dial, "ws://" + here, {"connector.dialer.dial_timeout": 1.0}),
    "request": gevent.spawn(outcome, req.request, b"question", timeout=600),
    "survey": gevent.spawn(lambda: list(surveyor.survey(b"question", timeout=1))),
}
gevent.sleep(0.2)
step()
# It wakes up, looks, and waits on: for the time that is left.
crowd.dial(one.listen("inproc://one").address)
gevent.joinall(list(short.values()), timeout=20)
for what, greenlet in short.items():
    assert greenlet.ready(), f"{what} waits on after the step"
assert short["request"].get() == b"answer" and len(asked) == 1
assert len(short["survey"].get()) == 1
for what in ("recv", "send", "wait_pipes"):
    assert isinstance(short[what].get(), Timeout), short[what].get()
for what, greenlet in long.items():
    still(greenlet, what)
assert dialer.attempts == 1, "the pause before the next attempt ended with the step"
for server, client in zip(servers, clients):
    for sock in (server, client):
        assert len(sock.pipes) == 1, "a heartbeat cut a pipe at the step"
    client.send(b"and on", timeout=5)
    assert server.recv(timeout=5) == b"and on" if server is not servers[0] else long["recv"].get(timeout=5) == b"and on"
print("nothing saw it")
sys.stdout.flush()
import os
os._exit(0)
"""


@needs("faketime -f +0 true")
@pytest.mark.parametrize("step", [3600, -3600])
def test_nothing_that_waits_sees_a_step_of_the_clock(step: int, tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    # The command only says where the library is: a clock that moves comes from a file.
    wrapper = (
        "faketime", "-f", "+0", "env", "-u", "FAKETIME", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
    )  # fmt: skip
    assert run_script(STEPPED, clock, step, wrapper=wrapper) == "nothing saw it\n"
