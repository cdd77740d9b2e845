"""The recipe for Django: what a call of `authorize` has opened ends with the call, and not with the WebSocket."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contrib.gunicorns import ROOT, Gunicorn, Peer, running
from tests.transport.wspeers import request

pytest.importorskip("django", reason="Django is not installed (pip install django)")

SOCKETS = 50


def open_handles(server: Gunicorn) -> int:
    with Peer(server.address) as peer:
        peer.send(request("/", {"Upgrade": None, "Connection": "close"}))
        assert peer.status() == 200
        return int(peer.read_rest())


def test_open_websockets_hold_no_connection_to_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_DATABASE", str(tmp_path / "db.sqlite"))
    script = "from tests.contrib.djangoed import make_session; print(make_session())"
    key = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    arguments = ("-k", "gevent", "-c", "python:gmultisocket.contrib.gunicorn")
    with running(tmp_path, *arguments, app="tests.contrib.djangoed:make_application()") as server:
        with Peer(server.address) as stranger:
            stranger.send(request("/ws"))
            assert stranger.status() == 401
        with ExitStack() as stack:
            for _ in range(2):
                for _ in range(SOCKETS // 2):
                    peer = stack.enter_context(Peer(server.address))
                    peer.send(request("/ws", {"Cookie": f"sessionid={key.strip()}"}))
                    assert peer.status() == 101
                    peer.say(b"hello")
                    assert peer.hear().endswith(b" hello")
                assert open_handles(server) == 0
            server.stop()
        server.wait_ended()
