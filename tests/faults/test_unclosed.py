"""Ending without close(): what was sent leaves, or it is said how much did not, and nothing hangs."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from pathlib import Path

import gevent
import pytest
from gevent import subprocess as gsubprocess

from gmultisocket import Socket
from gmultisocket.errors import Closed, Timeout, WrongThread
from gmultisocket.protocol import Pull, Push, Rep, Req
from gmultisocket.testing import wait_until
from tests.faults.peers import listening
from tests.faults.process import ROOT
from tests.peers import only_pipe

_SEND = """
import sys, gevent
from gmultisocket import Socket
sock = Socket()
sock.dial(sys.argv[1])
for number in range(10):
    sock.send(b"%d" % number)
"""

#: How the program ends after it has sent, and its exit code.
ENDINGS = {
    "falling off its end": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "sys.exit in a greenlet": ("gevent.spawn(sys.exit, 3).join()", 3),
    "an exception": ("raise SystemError", 1),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", -2),
    "forgetting the socket": ("del sock; import gc; gc.collect()", 0),
    "closing without waiting": ("sock.close_nowait()", 0),
    "blocking outside of gevent, and os._exit": ("sock.flush(); import os; os._exit(0)", 0),
}


def _run(script: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a program, which may fail; other greenlets run meanwhile."""
    done: subprocess.CompletedProcess[str] = gsubprocess.run(
        [sys.executable, *options, "-c", script, *arguments],
        cwd=ROOT, stdin=gsubprocess.DEVNULL, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    return done


def _received(sock: Socket, count: int) -> list[bytes]:
    return [sock.recv(timeout=5) for _ in range(count)]


def _fill(sock: Socket) -> None:
    """Send until the peer, which reads nothing, takes no more."""
    with pytest.raises(Timeout):
        while True:
            sock.send(bytes(100_000), timeout=0)
            gevent.sleep(0)


TEN = [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("end", ENDINGS)
def test_what_was_sent_leaves_however_the_program_ends(end: str) -> None:
    last, code = ENDINGS[end]
    with Socket() as server:
        done = _run(_SEND + last, server.listen("tcp://127.0.0.1:0").address)
        assert done.returncode == code, done.stderr
        assert _received(server, 10) == TEN
        assert "Warning" not in done.stderr


def test_what_a_forgotten_protocol_has_sent_leaves() -> None:
    script = _SEND.replace("import Socket", "import Socket; from gmultisocket.protocol import Push as Socket")
    with Socket() as server:
        last = "sock.cycle = sock\ndel sock; import gc; gc.collect()"
        done = _run(script + last, server.listen("tcp://127.0.0.1:0").address)
        assert done.returncode == 0, done.stderr
        assert _received(server, 10) == TEN


@pytest.mark.parametrize("address", ["ipc://{}/socket", "ws://127.0.0.1:0/"])
def test_what_was_sent_leaves_by_every_transport(address: str, tmp_path: Path) -> None:
    with Socket() as server:
        done = _run(_SEND, server.listen(address.format(tmp_path)).address)
        assert done.returncode == 0, done.stderr
        assert _received(server, 10) == TEN


def test_what_a_thread_sent_by_a_handle_leaves() -> None:
    script = _SEND + "for number in range(10): handle.send(b'%d' % number)\n"
    script = script.replace("for number in", "handle = sock.threadsafe()\nfor number in", 1)
    with Socket() as server:
        assert _run(script, server.listen("tcp://127.0.0.1:0").address).returncode == 0
        assert _received(server, 20) == TEN + TEN


@pytest.mark.parametrize("life", ["has ended", "has ended and forgotten it", "still runs"])
def test_what_a_thread_has_sent_leaves(life: str) -> None:
    script = f"""
import sys, threading, gevent
from gmultisocket import Socket
kept = []
ready = threading.Event()
def work():
    sock = Socket()
    if {life != "has ended and forgotten it"}:
        kept.append(sock)
    sock.dial(sys.argv[1])
    for number in range(10):
        sock.send(b"%d" % number)
    ready.set()
    if {life == "still runs"}:
        gevent.sleep(1000)
thread = threading.Thread(target=work, daemon=True)
thread.start()
ready.wait()
if {life != "still runs"}:
    thread.join()
"""
    with Socket() as server:
        done = _run(script, server.listen("tcp://127.0.0.1:0").address)
        assert done.returncode == 0, done.stderr
        assert _received(server, 10) == TEN


def test_replies_that_wait_in_an_outbox_leave() -> None:
    script = """
import sys
from gmultisocket.protocol import Rep
rep = Rep()
rep.dial(sys.argv[1])
for _ in range(3):
    request = next(iter(rep))
    request.reply(request.content)
"""
    with Req() as req:
        address = req.listen("tcp://127.0.0.1:0").address
        asked = [gevent.spawn(req.request, b"%d" % number, timeout=10, retry=0) for number in range(3)]
        assert _run(script, address).returncode == 0
        assert [one.get(timeout=5) for one in asked] == [b"0", b"1", b"2"]


_NOBODY_READS = """
import sys, gevent
from gmultisocket import Socket
sock = Socket({"socket.send_queue_size": 8})
sock.dial(sys.argv[1])
number = 0
try:
    while True:
        sock.send(bytes(100_000), timeout=0)
        number += 1
        gevent.sleep(0)
except TimeoutError:
    pass
"""


@pytest.mark.parametrize("logs", [False, True])
def test_what_cannot_leave_is_counted_and_the_exit_does_not_hang(logs: bool) -> None:
    setup = "import logging; logging.basicConfig()\n" if logs else ""
    with listening() as (silent, address):
        done = _run(setup + _NOBODY_READS, address)
        assert done.returncode == 0, done.stderr
        assert "messages had not left when the process ended: <Socket open pipes=1>" in done.stderr
        assert done.stderr.count("ERROR:gmultisocket") == 1


def test_nothing_waits_if_the_option_says_so() -> None:
    script = (
        _NOBODY_READS.replace('"socket.send_queue_size": 8', '"socket.send_stop_timeout": 0')
        + """
import atexit, time
from gmultisocket.core import flushing
atexit.unregister(flushing._at_exit)
began = time.monotonic()
flushing._at_exit()
assert time.monotonic() - began < flushing._EXIT_TIMEOUT / 2
"""
    )
    with listening() as (silent, address):
        done = _run(script, address)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("state", ["destroyed", "gone with its thread"])
def test_a_hub_that_does_not_run_any_more_does_not_hang_the_exit(state: str) -> None:
    last = "gevent.get_hub().destroy(destroy_loop=True)" if state == "destroyed" else ""
    script = _NOBODY_READS + last
    if state != "destroyed":
        body = "".join(f"    {line}\n" for line in _NOBODY_READS.splitlines())
        script = f"import threading\ndef work():\n    global sock\n{body}\nt = threading.Thread(target=work)\n"
        script += "t.start()\nt.join()\n"
    with listening() as (silent, address):
        done = _run(script, address)
        assert done.returncode == 0, done.stderr
        assert "messages had not left when the process ended" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_child_of_a_fork_sends_nothing_of_its_parent() -> None:
    script = (
        _SEND
        + """
import os
child = os.fork()
if child:
    os.waitpid(child, 0)
"""
    )
    with Socket() as server:
        done = _run(script, server.listen("tcp://127.0.0.1:0").address, options=("-Wdefault",))
        assert done.returncode == 0, done.stderr
        assert _received(server, 10) == TEN
        with pytest.raises(Timeout):
            server.recv(timeout=0)
        assert done.stderr.count("unclosed <Socket") == 1


def test_an_exit_with_nothing_to_send_runs_no_greenlet() -> None:
    script = """
import sys, gevent
from gmultisocket import Socket
sock = Socket()
sock.listen("tcp://127.0.0.1:0")
gevent.spawn(print, "this ran")
"""
    done = _run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("kind", ["Socket", "Push"])
def test_a_socket_that_is_open_at_the_exit_is_named_by_a_resource_warning(kind: str) -> None:
    script = f"""
from gmultisocket import Socket
from gmultisocket.protocol import Push
unused, closed, used = Socket(), {kind}(), {kind}()
closed.listen("tcp://127.0.0.1:0")
closed.close()
used.listen("tcp://127.0.0.1:0")
"""
    done = _run(script, options=("-Wdefault",))
    assert done.stderr.count("ResourceWarning: unclosed") == 1
    assert f"unclosed <{kind} open pipes=0>" in done.stderr


@pytest.mark.parametrize("kind", [Socket, Push])
def test_a_forgotten_socket_is_a_resource_warning_and_is_closed(kind: type[Socket] | type[Push]) -> None:
    with Socket() as server:
        forgotten = kind()
        forgotten.dial(server.listen("tcp://127.0.0.1:0").address)
        for content in TEN:
            forgotten.send(content)
        server.wait_pipes(1, timeout=5)
        with pytest.warns(ResourceWarning, match=f"unclosed <{kind.__name__} open pipes=1>, with 9 messages"):
            del forgotten
            gc.collect()
        assert _received(server, 10) == TEN
        wait_until(lambda: not server.pipes)


def test_a_socket_that_was_closed_or_never_used_is_forgotten_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closed = Socket()
        closed.listen("tcp://127.0.0.1:0")
        closed.close()
        del closed
        Socket()
        Rep()
        gc.collect()


# flush()


@pytest.mark.parametrize("sender", [Socket, Push])
def test_flush_returns_when_everything_has_left(sender: type[Socket] | type[Push]) -> None:
    with Socket() as server, sender() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        for content in TEN:
            client.send(content)
        client.flush(timeout=5)
        assert not any(pipe.queued for pipe in client.pipes.values())
        assert _received(server, 10) == TEN


def test_flush_raises_when_the_peer_does_not_read_and_nothing_is_lost() -> None:
    with Socket() as client, listening() as (silent, address):
        client.dial(address)
        peer, _ = silent.accept()
        _fill(client)
        pipe = only_pipe(client)
        queued = pipe.queued
        with pytest.raises(Timeout, match="flush timed out after 0.05 s"):
            client.flush(timeout=0.05)
        assert pipe.queued == queued and not client.counters.drops
        peer.close()
        client.close(linger=0)


def test_flush_waits_for_messages_that_no_peer_can_take_yet() -> None:
    with Socket() as client, Pull() as second:
        with listening() as (first, address):
            client.dial(address, {"connector.dialer.reconnect": False})
            peer, _ = first.accept()
            _fill(client)
            peer.close()
            wait_until(lambda: not client.pipes)
        waiting = gevent.spawn(client.flush)
        gevent.sleep(0)
        with pytest.raises(Timeout):
            client.flush(timeout=0)
        client.dial(second.listen("tcp://127.0.0.1:0").address)
        reading = gevent.spawn(lambda: [None for _ in second])
        waiting.get(timeout=5)
        reading.kill()


def test_flush_of_a_protocol_waits_for_its_outbox_too() -> None:
    small = {"transport.tcp.read_buffer": 4096, "transport.tcp.write_buffer": 4096}
    options = {"socket.send_queue_size": 1, "socket.recv_queue_size": 1, **small}
    with Rep(options=options) as rep, Socket(options) as client:
        client.dial(rep.listen("tcp://127.0.0.1:0").address)
        requests = iter(rep)
        for number in range(40):
            client.send(b"%04d" % number)
            next(requests).reply(bytes(100_000))
        assert rep._unsent() > 1
        with pytest.raises(Timeout):
            rep.flush(timeout=0)
        reading = gevent.spawn(_received, client, 40)
        rep.flush(timeout=10)
        assert rep._unsent() == 0
        assert len(reading.get(timeout=10)) == 40


def test_flush_of_a_closed_socket_returns_and_of_a_handle_says_so() -> None:
    sock = Socket()
    handle = sock.threadsafe()
    handle.close()
    with pytest.raises(Closed):
        handle.flush(timeout=1)
    sock.close()
    sock.flush(timeout=0)


def test_a_thread_can_wait_until_what_it_sent_has_left() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        handle = client.threadsafe()
        outcome: list[object] = []

        def work() -> None:
            for content in TEN:
                handle.send(content)
            handle.flush(timeout=5)
            outcome.append(client.counters.messages_sent)
            try:
                client.flush()
            except WrongThread:
                outcome.append("refused")

        gevent.get_hub().threadpool.apply(work)
        assert outcome == [10, "refused"]
        handle.flush(timeout=5)
        handle.close()
        assert _received(server, 10) == TEN
