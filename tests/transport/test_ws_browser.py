"""A real browser, Chromium without a window, opens pages that talk to a Socket.

A page reports by a POST to the server that it came from. It uses its WebSocket itself, by the rules of the wire; the
client of the library has tests of its own in ``tests/browser/``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import gevent
import pytest
from gevent.pywsgi import WSGIServer
from gevent.queue import Queue

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount
from gmultisocket.testing import wait_until
from tests.browser.chromium import browsing
from tests.certificates import listen_options
from tests.faults.process import needs

pytestmark = [needs("chromium --version"), pytest.mark.timeout(120)]

#: How long Chromium may take to come up on a busy machine, in seconds.
PATIENCE = 60

_PAGE = """<!DOCTYPE html>
<script>
function connect(url, receive) {
  const socket = new WebSocket(url, ["multisocket.binary"]);
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({data}) => {
    const frame = new Uint8Array(data), [, , hops, distance] = frame;
    receive(frame.subarray(8 + 4 * (hops + distance)));
  };
  return socket;
}
function send(socket, content) {
  const frame = new Uint8Array(8 + content.length);
  frame[1] = 16; // ttl; type, hops and distance are 0
  new DataView(frame.buffer).setUint32(4, content.length);
  frame.set(content, 8);
  socket.send(frame);
}
let reported = Promise.resolve();
const report = event => {
  // One after the other: requests side by side could overtake each other.
  reported = reported.then(() => fetch("/report", {method: "POST", body: JSON.stringify(event)}));
};
const address = decodeURIComponent(location.search.slice(1));
const socket = connect(address, content => report({received: new TextDecoder().decode(content)}));
socket.onopen = () => {
  report({opened: socket.protocol});
  send(socket, new TextEncoder().encode("hello from " + location.origin));
};
socket.onclose = ({code, reason, wasClean}) => report({code, reason, wasClean});
</script>
"""


class Site:
    """A web server with one page, which opens the ws address in its query and says what becomes of it.

    Args:
        mounted: a Socket that is reached at ``/ws`` of the same server.
        options: for its pipes.

    Attributes:
        port: where it serves.
        reports: what the pages have said.
    """

    def __init__(self, mounted: Socket | None = None, options: dict[str, Any] | None = None) -> None:
        self.reports: Queue[dict[str, Any]] = Queue()
        app = self._answer if mounted is None else mount(mounted, "/ws", self._answer, options)
        self._server = WSGIServer(("127.0.0.1", 0), app, log=None, error_log=None)
        self._files = {"/": _PAGE}

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/report":
            self.reports.put(json.loads(environ["wsgi.input"].read()))
        if path not in self._files:
            start_response("404 Not Found", [])
            return []
        start_response("200 OK", [("Content-Type", "text/html")])
        return [self._files[path].encode()]

    def report(self) -> dict[str, Any]:
        return self.reports.get(timeout=PATIENCE)

    def __enter__(self) -> Site:
        self._server.start()
        self.port: int = self._server.server_port
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stop(timeout=1)


def test_a_page_of_a_listed_origin_exchanges_messages_and_is_told_when_the_server_goes() -> None:
    with Site() as site, Socket() as server:
        origin = f"http://127.0.0.1:{site.port}"
        address = server.listen("ws://127.0.0.1:0/chat", {"transport.ws.listener.origins": [origin]}).address
        with browsing(f"{origin}/?{address}"):
            message = server.recv_msg(timeout=PATIENCE)
            assert message.content == f"hello from {origin}".encode()
            server.send_to(message.source, "and a good day to you: €".encode())
            assert site.report() == {"opened": "multisocket.binary"}
            assert site.report() == {"received": "and a good day to you: €"}
            server.send_all(b"x" * 70_000)
            assert site.report() == {"received": "x" * 70_000}
            assert gevent.spawn(server.close).get(timeout=10) == 0
            goodbye = site.report()
            assert (goodbye["code"], goodbye["wasClean"]) == (1001, True)


def test_a_page_of_the_same_host_needs_no_list() -> None:
    with Site() as site, Socket() as server:
        address = server.listen("wss://127.0.0.1:0/", listen_options()).address
        port = address.removesuffix("/").rpartition(":")[2]
        # One name for both, each at the usual port, as behind a proxy.
        rules = f"MAP site.test:80 127.0.0.1:{site.port}, MAP site.test:443 127.0.0.1:{port}"
        flags = [f"--host-resolver-rules={rules}", "--ignore-certificate-errors"]
        with browsing("http://site.test/?wss://site.test/", *flags):
            assert site.report() == {"opened": "multisocket.binary"}
            assert server.recv(timeout=PATIENCE) == b"hello from http://site.test"
        wait_until(lambda: not server.pipes)


def test_a_page_and_its_socket_can_be_served_at_the_same_port() -> None:
    with Socket() as server, Site(server) as site:
        place = f"127.0.0.1:{site.port}"
        with browsing(f"http://{place}/?ws://{place}/ws"):
            assert site.report() == {"opened": "multisocket.binary"}
            message = server.recv_msg(timeout=PATIENCE)
            assert message.content == f"hello from http://{place}".encode()
            server.send_to(message.source, b"hello yourself")
            assert site.report() == {"received": "hello yourself"}
            (pipe,) = server.pipes.values()
            pipe.close()
            goodbye = site.report()
            assert (goodbye["code"], goodbye["wasClean"]) == (1000, True)


def test_a_page_of_another_origin_is_refused() -> None:
    with Site() as site, Socket() as server:
        listed = {"transport.ws.listener.origins": [f"http://127.0.0.1:{site.port}"]}
        listener = server.listen("ws://127.0.0.1:0/", listed)
        # The same server, under another name.
        with browsing(f"http://localhost:{site.port}/?{listener.address}"):
            goodbye = site.report()
            assert (goodbye["code"], goodbye["wasClean"]) == (1006, False)
        assert listener.refused == 1
        assert not server.pipes and not server.queued


@pytest.mark.parametrize("mounted", [False, True], ids=["listener", "mount"])
def test_a_page_and_a_socket_compress_what_they_send(mounted: bool) -> None:
    """Chromium offers permessage-deflate by itself, and the page notices nothing."""
    options = {"transport.ws.compress_over": 256}
    with Socket() as server, Site(server, options) as site:
        place = f"127.0.0.1:{site.port}"
        address = f"ws://{place}/ws"
        if not mounted:
            allowed = {"transport.ws.listener.origins": [f"http://{place}"], **options}
            address = server.listen("ws://127.0.0.1:0/", allowed).address
        with browsing(f"http://{place}/?{address}"):
            message = server.recv_msg(timeout=PATIENCE)
            assert message.content == f"hello from http://{place}".encode()
            (pipe,) = server.pipes.values()
            assert site.report() == {"opened": "multisocket.binary"}
            content = json.dumps([{"symbol": "EURUSD", "bid": number} for number in range(2000)])
            before = pipe.bytes_sent
            server.send_all(content.encode())
            assert site.report() == {"received": content}
            assert 0 < pipe.bytes_sent - before < len(content) / 4
            server.send_to(message.source, b"short")
            assert site.report() == {"received": "short"}
            pipe.close()
            assert site.report()["wasClean"] is True
