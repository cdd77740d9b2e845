"""The example: what any gunicorn worker is told, the browsers of all workers hear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
import pytest
from websockets.frames import Opcode

from gmultisocket import Message
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Decoder, encode
from tests.contrib.gunicorns import PATIENCE, ROOT, Gunicorn, Peer, running, standing_still
from tests.transport.wspeers import frame, request

CONFIGURATION = ROOT / "examples/gunicorn_fanout/gunicorn.conf.py"


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gunicorn]:
    """The example."""
    monkeypatch.setenv("PLANE", f"ipc://{folder}/hub")
    with running(folder, "-c", str(CONFIGURATION), app="") as server:
        yield server


def browser(server: Gunicorn, stack: ExitStack) -> Peer:
    """Return a browser that has subscribed as the page does."""
    peer = stack.enter_context(server.peer())
    peer.send(frame(Opcode.BINARY, encode(Message(CONTROL | TO_ALL, content=b"\x01said"))))
    heard = b""
    while heard != b"\x02said":
        heard = peer.hear()
    return peer


def say(server: Gunicorn, content: bytes) -> None:
    """Post what somebody has typed."""
    with Peer(server.address) as peer:
        head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
        peer.send(head.encode() + content)
        assert peer.status() == 200
        peer.read_rest()


def hear(peer: Peer) -> bytes:
    """Return what a browser shows next."""
    found = peer.read_frame()
    while found.opcode is not Opcode.BINARY:
        # A ping: the machine is slow.
        found = peer.read_frame()
    (message,) = Decoder(1).feed(found.data)
    assert message.content.startswith(b"\0\4said")
    return bytes(message.content[6:])


def test_what_any_worker_is_told_the_browsers_of_all_workers_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as server, ExitStack() as stack:
        pids = server.workers()
        everybody = []
        for pid in pids:
            with standing_still(pid):
                everybody.append(browser(server, stack))
        for pid, other in (pids, pids[::-1]):
            with standing_still(pid):
                say(server, b"hello")
            assert [hear(peer) for peer in everybody] == [b"worker %d: hello" % other] * 2
        with Peer(server.address) as peer:
            peer.send(request("/", {"Upgrade": None, "Connection": "close"}))
            assert peer.status() == 200
            assert b'from "/ws/gmultisocket.js"' in peer.read_rest()
        server.stop()
        assert [peer.answer_goodbye() for peer in everybody] == [1001] * 2
        server.wait_ended()


def test_a_stopped_worker_does_not_stop_the_browsers_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as server, ExitStack() as stack:
        pids = server.workers()
        with standing_still(pids[1]):
            first = browser(server, stack)
        with standing_still(pids[0]):
            # They reach the other worker. Enough is said to fill every buffer on the way to the one that stands still.
            peers = [browser(server, stack) for _ in range(2)]
            for number in range(200):
                say(server, b"%d" % number + bytes(60_000))
                for peer in peers:
                    assert b": %d\0" % number in hear(peer)[:40]

        def goes_on() -> bool:
            # What is said before it is connected again does not reach it.
            say(server, b"good morning")
            with gevent.Timeout(0.2, False):
                while not hear(first).endswith(b": good morning"):
                    pass
                return True
            return False

        wait_until(goes_on, PATIENCE)
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert re.search("gmultisocket: the hub ends: a signal; 2[0-9][0-9] publications came", server.log)
