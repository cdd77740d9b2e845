"""The example: what a browser of one gunicorn worker says, those of the other worker hear."""

from __future__ import annotations

import os
import re
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

import gevent

from gmultisocket.testing import wait_until
from tests.contrib.gunicorns import PATIENCE, ROOT, Gunicorn, Peer, running, standing_still
from tests.transport.wspeers import request

CONFIGURATION = ROOT / "examples/gunicorn_fanout/gunicorn.conf.py"


def join(server: Gunicorn, stack: ExitStack) -> tuple[Peer, bytes]:
    """Return a browser, and the worker that greets it."""
    peer = stack.enter_context(server.peer())
    greeting = re.fullmatch(rb"this is (worker [0-9]+)", peer.hear())
    assert greeting
    return peer, greeting[1]


def test_a_stopped_worker_does_not_stop_the_browsers_of_the_other(tmp_path: Path) -> None:
    with running(tmp_path, "-c", str(CONFIGURATION), app="") as server, ExitStack() as stack:
        first, here = join(server, stack)
        with standing_still(int(here.split()[1])):
            # New browsers reach the other worker.
            peers = [join(server, stack)[0] for _ in range(2)]
            for number in range(200):
                # Enough to fill every buffer on the way to the stopped worker.
                peers[0].say(b"%d" % number + bytes(60_000))
                for peer in peers:
                    assert b": %d\0" % number in peer.hear()[:40]

        # The stopped worker goes on. When it has caught up, its browser sees everything again.
        def read_on() -> None:
            while not first.hear().endswith(b": good morning"):
                pass

        reading = gevent.spawn(read_on)
        while not reading.ready():
            peers[0].say(b"good morning")
            for peer in peers:
                assert peer.hear().endswith(b": good morning")
        reading.get()
        server.stop()
        for peer in (first, *peers):
            peer.answer_goodbye()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert re.search("gmultisocket: [0-9]+ messages dropped: overflow", server.log)


def test_what_one_worker_is_told_the_browsers_of_all_workers_hear(tmp_path: Path) -> None:
    with running(tmp_path, "-c", str(CONFIGURATION), app="") as server, ExitStack() as stack:
        first, here = join(server, stack)
        with standing_still(int(here.split()[1])):
            second, there = join(server, stack)
        assert here != there
        third, _ = join(server, stack)
        everybody = first, second, third
        for peer, worker in ((first, here), (second, there)):
            peer.say(b"hello")
            assert [other.hear() for other in everybody] == [worker + b": hello"] * 3
        with Peer(server.address) as browser:
            browser.send(request("/", {"Upgrade": None, "Connection": "close"}))
            assert browser.status() == 200
            assert b'["multisocket.binary"]' in browser.read_rest()
        server.stop()
        assert [peer.answer_goodbye() for peer in everybody] == [1001] * 3
        server.wait_ended()


def switch_of(server: Gunicorn) -> int:
    """Return the process of the switch that a master has started, 0 if there is none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if parent == server.process.pid and b"switch" in words:
                    return int(folder.name)
    return 0


def test_a_switch_that_dies_is_reported_and_started_again(tmp_path: Path) -> None:
    with running(tmp_path, "-c", str(CONFIGURATION), app="") as server, ExitStack() as stack:
        first, here = join(server, stack)
        with standing_still(int(here.split()[1])):
            second, there = join(server, stack)
        assert here != there
        dead = switch_of(server)
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: "The switch between the workers has died" in server.log, PATIENCE)
        wait_until(lambda: switch_of(server) not in (0, dead), PATIENCE)

        def read_on() -> None:
            while not second.hear().endswith(b": again"):
                pass

        reading = gevent.spawn(read_on)
        while not reading.ready():
            first.say(b"again")
            # Not for the time: what is said before the workers are connected again is lost.
            gevent.sleep(0.1)
        reading.get()
        server.stop()
        for peer in (first, second):
            peer.sock.close()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert server.process.returncode == 0
        assert server.log.count("has died") == 1
        assert switch_of(server) == 0
