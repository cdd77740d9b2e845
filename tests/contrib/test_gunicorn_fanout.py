"""The example: what any gunicorn worker is told, the browsers of all workers hear."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import gevent
import pytest

from gmultisocket import Message
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, Decoder, encode
from tests.contrib.gunicorns import PATIENCE, ROOT, Gunicorn, Peer, running, standing_still
from tests.transport.wspeers import Opcode, frame, request

CONFIGURATION = ROOT / "examples/gunicorn_fanout/gunicorn.conf.py"


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gunicorn]:
    """The example."""
    monkeypatch.setenv("PLANE", f"ipc://{folder}/hub")
    with running(folder, "-c", str(CONFIGURATION), app="") as server:
        yield server


def workers(server: Gunicorn) -> list[int]:
    """Return the pids of both workers."""
    wait_until(lambda: server.log.count("Booting worker") == 2, PATIENCE)
    return [int(pid) for pid in re.findall(r"Booting worker with pid: ([0-9]+)", server.log)]


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
    (message,) = Decoder(1).feed(peer.read_frame().data)
    assert message.content.startswith(b"\0\4said")
    return bytes(message.content[6:])


def test_what_any_worker_is_told_the_browsers_of_all_workers_hear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path, monkeypatch) as server, ExitStack() as stack:
        pids = workers(server)
        everybody = []
        for pid in pids:
            with standing_still(pid):
                everybody.append(browser(server, stack))
        for pid in pids:

            def told(pid: int = pid) -> bool:
                # Until the hub knows what the other worker wants, its browser misses what is said.
                with standing_still(pid):
                    say(server, b"hello")
                with gevent.Timeout(0.5, False):
                    assert hear(other).endswith(b": hello")
                    return True
                return False

            other = everybody[1 - pids.index(pid)]
            assert told()
        with Peer(server.address) as peer:
            peer.send(request("/", {"Upgrade": None, "Connection": "close"}))
            assert peer.status() == 200
            assert b'["multisocket.binary"]' in peer.read_rest()
        server.stop()
        server.wait_ended()
