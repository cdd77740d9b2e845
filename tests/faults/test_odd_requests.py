"""Requests for a WebSocket that are right but odd, or wrong in a way that not every server notices.

A listener of our own and a mount in gevent.pywsgi give the same answer.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import Mount, mount
from tests.contrib.gunicorns import Peer, running
from tests.transport.wspeers import RawPeer, request


@contextmanager
def our_listener() -> Iterator[str]:
    with Socket() as sock:
        yield sock.listen("ws://127.0.0.1:0/ws").address


def no_page(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Length", "0"), ("Connection", "close")])
    return []


@contextmanager
def serving(mounted: Mount, path: str = "/ws") -> Iterator[str]:
    server = WSGIServer(("127.0.0.1", 0), mounted, log=None, error_log=io.StringIO(), spawn=Pool())
    server.start()
    try:
        yield f"ws://127.0.0.1:{server.server_port}{path}"
    finally:
        server.stop(timeout=5)


@contextmanager
def our_mount() -> Iterator[str]:
    with Socket() as sock, serving(mount(sock, "/ws", no_page)) as address:
        yield address
        sock.close(linger=0)


def headers(*lines: str) -> bytes:
    """Return a right request with more header lines, as they are."""
    return request("/ws")[:-2] + "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


REQUESTS = {
    "a content length of 0": (headers("Content-Length: 0"), 101),
    "a body": (headers("Content-Length: 1") + b"x", 400),
    "a chunked body": (headers("Transfer-Encoding: chunked") + b"0\r\n\r\n", None),
    "a whole URL": (request("http://127.0.0.1/ws"), 101),
    "a whole URL of WebSocket": (request("ws://127.0.0.1/ws?query"), 101),
    "a whole URL in capitals": (request("HTTP://127.0.0.1/ws"), 101),
    "a whole URL of another path": (request("http://127.0.0.1/other"), 404),
    "a whole URL without a path": (request("http://127.0.0.1"), 404),
    "a whole URL without a path, but a query": (request("http://127.0.0.1?/ws"), 404),
    "a whole URL with a user": (request("http://me@127.0.0.1/ws"), 400),
    "the host of a whole URL counts": (request("http://good.example/ws", {"Origin": "http://127.0.0.1"}), 403),
    "the Host beside a whole URL does not": (
        request("http://127.0.0.1/ws", {"Host": "evil.example", "Origin": "http://evil.example"}),
        403,
    ),
    "an origin that is the host of the URL": (
        request("http://127.0.0.1/ws", {"Host": "other.example", "Origin": "http://127.0.0.1"}),
        101,
    ),
    "a target that is neither": (request("ws"), 400),
    "a URL of another kind": (request("ftp://127.0.0.1/ws"), 400),
    "two hosts": (headers("Host: 127.0.0.1"), 400),
    "two other hosts": (headers("Host: evil.example"), 400),
    "two hosts and a whole URL": (headers("Host: 127.0.0.1").replace(b"/ws", b"http://127.0.0.1/ws", 1), 400),
    "no host": (request("/ws", {"Host": None}), 400),
    "no host but a whole URL": (request("http://127.0.0.1/ws", {"Host": None}), 400),
    "a zero byte": (headers("X: a\0b"), 400),
    "a control character": (headers("X: a\x01b"), 400),
    "a delete character": (headers("X: a\x7fb"), 400),
    "a folded line": (headers("X: a", " b"), 400),
    "bytes that are not ASCII": (headers("X: \xe9\xff"), 101),
    "a name with an underscore": (headers("X_Y: a"), 101),
    "upgrade in capitals": (request("/ws", {"Upgrade": "WebSocket"}), 101),
    "a list of connection options": (request("/ws", {"Connection": "keep-alive, Upgrade"}), 101),
    "a slash more": (request("/ws/"), 404),
    "a slash more in front": (request("//ws"), 404),
}


@pytest.mark.parametrize("kind", [our_listener, our_mount])
@pytest.mark.parametrize("what", REQUESTS)
def test_an_odd_request_gets_the_same_answer_everywhere(what: str, kind: Callable[[], Any]) -> None:
    data, status = REQUESTS[what]
    with kind() as address, RawPeer(address) as peer:
        peer.send(data)
        answer = peer.status()
        # A body in chunks is refused, with different words.
        assert answer == status or (status is None and answer in (400, 501))


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/wß", "/w%C3%9F"),
        ("/wß", "/w%c3%9f"),
        ("/w%C3%9F", "/w%C3%9F"),
        ("/日本/ws", "/%E6%97%A5%E6%9C%AC/ws"),
        ("/a b", "/a%20b"),
        ("/a%20b", "/a%20b"),
        ("/a+b", "/a+b"),
        ("/100%", "/100%25"),
        ("/a#b", "/a%23b"),
        ("/a%3Fb", "/a%3Fb"),
        ("/ws/", "/ws/"),
        ("//ws", "//ws"),
        ("/", "/"),
        ("/@x:y", "/@x:y"),
    ],
)
def test_a_mount_may_have_every_path(path: str, target: str) -> None:
    seen = []

    def authorize(asked: Any) -> None:
        seen.append(asked.path)

    with Socket() as sock:
        mounted = mount(sock, path, no_page, {"transport.ws.listener.authorize": authorize})
        with serving(mounted, target) as address:
            for whole in (target, f"http://127.0.0.1{target}", f"{target}?query"):
                with RawPeer(address) as peer:
                    peer.send(request(whole))
                    assert peer.status() == 101
            with RawPeer(address) as peer:
                peer.send(request(target + "x"))
                assert peer.status() == 404
            # A Socket can dial it, and authorize sees the path as a URL has it.
            with Socket() as client:
                client.dial(address)
                client.send(b"hello")
                assert sock.recv(timeout=10) == b"hello"
            sock.close(linger=0)
    assert len(set(seen)) == 1 and seen[0].isascii()


def test_gunicorn_passes_odd_requests_on(tmp_path: Path) -> None:
    with running(tmp_path, "-k", "gevent", "-c", "python:gmultisocket.contrib.gunicorn") as server:
        for data in (headers("Content-Length: 0"), request("http://127.0.0.1/ws")):
            with Peer(server.address) as peer:
                peer.send(data)
                assert peer.status() == 101
                peer.say(b"hello")
                assert peer.hear().endswith(b" hello")
        with Peer(server.address) as peer:
            peer.send(request("http://good.example/ws", {"Origin": "http://127.0.0.1"}))
            # The application tells pages the status by a close code.
            assert peer.status() == 101
            assert peer.answer_goodbye() == 4403
        server.stop()
        server.wait_ended()
