"""Pipes inside of a real gunicorn, one for each kind of worker, and how they end with it."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import gevent
import pytest

from gmultisocket.testing import wait_until
from tests.certificates import server_certificate, write_certificate
from tests.contrib.gunicorns import PATIENCE, Gunicorn, Peer, running, say, standing_still
from tests.transport.test_wsdeflate import CHROMIUM, read_message
from tests.transport.wspeers import request

HOOKS = ("-c", "python:gmultisocket.contrib.gunicorn")
CLIENTS = 200


def tls(folder: Path) -> list[str]:
    certfile, keyfile = write_certificate(folder, server_certificate(), "server").values()
    return ["--certfile", certfile, "--keyfile", keyfile]


def worker_of(peer: Peer, content: bytes) -> int:
    """Send a content and hear it again. Return the process that has answered."""
    peer.say(content)
    pid, _, heard = peer.hear().partition(b" ")
    assert heard == content
    return int(pid)


def connect(server: Gunicorn, stack: ExitStack, count: int) -> list[Peer]:
    return [stack.enter_context(server.peer()) for _ in range(count)]


def test_every_client_of_every_worker_is_told_when_gunicorn_stops(tmp_path: Path) -> None:
    with running(tmp_path, "-k", "gevent", "-w", "2", *HOOKS) as server, ExitStack() as stack:
        peers = connect(server, stack, 1)
        pid = worker_of(peers[0], b"who are you?")
        with standing_still(pid):
            peers += connect(server, stack, CLIENTS // 2)
            (other,) = {worker_of(peer, b"and you?") for peer in peers[1:]}
        with standing_still(other):
            peers += connect(server, stack, CLIENTS // 2 - 1)
            assert {worker_of(peer, b"and you?") for peer in peers[1 + CLIENTS // 2 :]} == {pid}
        for number, peer in enumerate(peers):
            peer.say(b"%d" % number)
        answers = [peer.hear().partition(b" ")[2] for peer in peers]
        assert answers == [b"%d" % number for number in range(CLIENTS)]
        server.stop()
        goodbyes = [gevent.spawn(peer.answer_goodbye) for peer in peers]
        assert [goodbye.get() for goodbye in goodbyes] == [1001] * CLIENTS
        server.wait_ended()
    assert server.access_log.count('"GET /ws HTTP/1.1" 101 ') == CLIENTS


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])
def test_a_gevent_worker_serves_websockets_beside_its_pages(tmp_path: Path, kind: str, secure: bool) -> None:
    arguments = ["-k", kind, *HOOKS, *(tls(tmp_path) if secure else [])]
    with running(tmp_path, *arguments, secure=secure) as server:
        with Peer(server.address) as peer, Peer(server.address) as reader:
            peer.upgrade(early=say(b"early") * 3)
            reader.send(request("/", {"Upgrade": None, "Connection": "close"}))
            assert reader.status() == 200 and reader.read_rest() == b"a page"
            assert [peer.hear().partition(b" ")[2] for _ in range(3)] == [b"early"] * 3
            worker_of(peer, b"late")
            server.stop()
            assert peer.answer_goodbye() == 1001
        server.wait_ended()
    assert '"GET /ws HTTP/1.1" 101 ' in server.access_log


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])
def test_a_gevent_worker_compresses_and_refuses_pages_by_codes(tmp_path: Path, kind: str, secure: bool) -> None:
    arguments = ["-k", kind, *HOOKS, *(tls(tmp_path) if secure else [])]
    with running(tmp_path, *arguments, secure=secure) as server:
        origin = server.address.replace("ws", "http", 1).removesuffix("/ws")
        page = {"Origin": origin, "Host": origin.partition("://")[2]}
        with Peer(server.address) as peer:
            peer.send(request("/ws?out", page))
            assert peer.status() == 101 and peer.answer_goodbye() == 4401
        with Peer(server.address) as peer:
            peer.send(request("/ws?out"))
            assert peer.status() == 401
        with Peer(server.address) as peer:
            peer.send(request("/ws", {**page, "Sec-WebSocket-Extensions": CHROMIUM}))
            assert b"permessage-deflate; server_no_context_takeover; client_no_context_takeover" in peer.read_head()
            peer.say(b"tick " * 1000)
            assert read_message(peer)[0] is True
            peer.say(b"short")
            compressed, content = read_message(peer)
            assert not compressed and content.endswith(b" short")
            server.stop()
            assert peer.answer_goodbye() == 1001
        server.wait_ended()
    assert server.access_log.count('"GET /ws?out HTTP/1.1" 101 ') == 1


@pytest.mark.parametrize("kind", ["sync", "gthread"])
def test_where_it_cannot_work_the_answer_says_why(tmp_path: Path, kind: str) -> None:
    with running(tmp_path, "-k", kind, *HOOKS) as server:
        with Peer(server.address) as peer:
            peer.send(request("/ws"))
            assert peer.status() == 501
            assert b"gunicorn with -k gevent" in peer.read_line()
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        assert server.process.returncode == 0
        (warning,) = [line for line in server.log.splitlines() if "[WARNING]" in line]
        assert "a request for a WebSocket got a 501: a WebSocket needs a server that runs on gevent" in warning


def test_an_application_that_is_loaded_before_the_fork_has_a_socket_in_each_worker(tmp_path: Path) -> None:
    with running(tmp_path, "-k", "gevent", "-w", "2", "--preload", *HOOKS) as server, ExitStack() as stack:
        (first,) = connect(server, stack, 1)
        pid = worker_of(first, b"one")
        with standing_still(pid):
            (second,) = connect(server, stack, 1)
            assert worker_of(second, b"two") != pid
        server.stop()
        assert first.answer_goodbye() == second.answer_goodbye() == 1001
        server.wait_ended()


def test_a_reload_tells_the_clients_of_the_old_worker_only(tmp_path: Path) -> None:
    with running(tmp_path, "-k", "gevent", *HOOKS) as server, ExitStack() as stack:
        (old,) = connect(server, stack, 1)
        pid = worker_of(old, b"before")
        server.stop(signal.SIGHUP)
        assert old.answer_goodbye() == 1001
        # For a moment the old one still accepts, and refuses.
        wait_until(lambda: "Worker exiting" in server.log, PATIENCE)
        (new,) = connect(server, stack, 1)
        assert worker_of(new, b"after") != pid
        # Ctrl-C is told as well, by the hook that gunicorn has for it.
        server.stop(signal.SIGINT)
        assert new.answer_goodbye() == 1001
        server.wait_ended()


@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])
@pytest.mark.parametrize("where", ["stderr", "file"])
def test_errors_of_the_applications_own_code_are_in_the_error_log(tmp_path: Path, kind: str, where: str) -> None:
    """Each once, with its traceback, wherever that log is, and with nothing configured."""
    file = tmp_path / "error.log"
    arguments = ["-k", kind, *HOOKS, *(["--error-logfile", str(file)] if where == "file" else [])]
    app, log_file = "tests.contrib.failing:application", file if where == "file" else None
    with running(tmp_path, *arguments, app=app, log_file=log_file) as server:
        with Peer(server.address) as peer:
            peer.send(request("/ws?fail"))
            assert peer.status() == 500
            assert peer.read_line() == b"500 Internal Server Error"
        errors = ("failed in the handler", "failed in the callback", "failed in authorize")
        wait_until(lambda: all(f"RuntimeError: {error}" in server.log for error in errors), PATIENCE)
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
        for error in errors:
            assert server.log.count(f"RuntimeError: {error}") == 1, server.log
            assert server.access_log.count(error) == 0


@pytest.mark.parametrize("kind", ["gevent", "gevent_pywsgi"])
def test_without_the_hooks_the_error_log_says_once_what_is_missing(tmp_path: Path, kind: str) -> None:
    with running(tmp_path, "-k", kind, "--graceful-timeout", "1") as server, ExitStack() as stack:
        for peer in connect(server, stack, 3):
            worker_of(peer, b"hello")
        (warning,) = [line for line in server.log.splitlines() if "[WARNING]" in line]
        assert warning.endswith("from gmultisocket.contrib.gunicorn import post_worker_init, worker_int")
        server.stop()
        wait_until(lambda: server.process.poll() is not None, PATIENCE)
