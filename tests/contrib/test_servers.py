"""What is different from server to server, with stand-ins for the servers; the real ones are in the files beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import monkey
from gevent import socket as gsocket
from gevent.pywsgi import WSGIServer
from websockets.frames import Opcode

from gmultisocket import Message, Socket
from gmultisocket.contrib import wsgi
from gmultisocket.contrib.wsgi import mount
from gmultisocket.wire import encode
from tests.contrib.environs import Unreader, call, gunicorn
from tests.transport.wspeers import frame, request


@pytest.fixture
def sock() -> Iterator[Socket]:
    with Socket() as sock:
        yield sock
        sock.close(linger=0)


def test_a_server_without_a_gevent_socket_is_told_so(
    sock: Socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsgi, "_warned", set())
    status, body = call(mount(sock))
    assert status == 501 and b"gevent" in body
    with monkey.get_original("socket", "socket")() as blocking, gsocket.socket() as one:
        # The sync worker of an application that has patched everything still serves one request at a time.
        for says in (gunicorn(blocking), gunicorn(one) | {"wsgi.multithread": False}):
            status, body = call(mount(sock), **says)
            assert status == 501 and b"gthread" in body
    assert not sock.listeners
    # Once, as a page cannot show it.
    (record,) = caplog.records
    assert "a WebSocket got a 501: a WebSocket needs a server that runs on gevent" in record.getMessage()


def test_an_older_gunicorn_is_passed_by_and_what_it_has_read_is_kept(sock: Socket) -> None:
    mine, theirs = gsocket.socketpair()
    body = Unreader(frame(Opcode.BINARY, encode(Message(content=b"hello"))))
    with mine, theirs:
        says = gunicorn(mine) | {"SERVER_SOFTWARE": "gunicorn/26.0.0", "wsgi.input": body}
        serving = gevent.spawn(call, mount(sock), **says)
        assert sock.recv(timeout=5) == b"hello"
        assert body.buf.getvalue() == b""
        head = theirs.recv(4096)
        assert head.startswith(b"HTTP/1.1 101 ") and b"chunked" not in head
        sock.close(linger=0)
        with pytest.raises(StopIteration):
            serving.get(timeout=5)


def test_a_middleware_that_loses_write_is_named_or_passed_by(sock: Socket) -> None:
    mounted = mount(sock)
    mine, theirs = gsocket.socketpair()
    with mine, theirs, mine.makefile("rb") as file:
        with pytest.raises(RuntimeError, match="middleware has lost"):
            call(mounted, **{"wsgi.input": file})
        # gunicorn knows how to be passed by.
        theirs.shutdown(gsocket.SHUT_WR)
        with pytest.raises(StopIteration):
            call(mounted, **gunicorn(mine))
        assert theirs.recv(4096).startswith(b"HTTP/1.1 101 ")


def test_behind_a_unix_socket_nobody_has_a_made_up_address(sock: Socket, tmp_path: Path) -> None:
    file = tmp_path / "wsgi"
    with gsocket.socket(gsocket.AF_UNIX) as listening, gsocket.socket(gsocket.AF_UNIX) as peer:
        listening.bind(str(file))
        listening.listen()
        server = WSGIServer(listening, mount(sock), log=None, error_log=None)
        server.start()
        try:
            peer.connect(str(file))
            peer.sendall(request("/ws"))
            sock.wait_pipes(1, timeout=5)
            (pipe,) = sock.pipes.values()
            assert (pipe.peer_address, pipe.local_address) == ("ws://?", "ws://?/ws")
        finally:
            server.stop(timeout=0)
            file.unlink()
