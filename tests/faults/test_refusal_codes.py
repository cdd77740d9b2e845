"""Refusals that a page can tell apart: the WebSocket opens and closes with a code (``refuse_with``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.event import Event
from websockets.frames import Opcode

from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount
from gmultisocket.errors import PipeRefused, RequestRefused
from gmultisocket.testing import wait_until
from tests.browser.chromium import browsing
from tests.certificates import listen_options
from tests.contrib.test_wsgi import serving
from tests.faults.process import needs
from tests.faults.test_refused_upgrades import AUTHORIZE, BY_ADDRESS, BY_IDENTITY, BY_LIMIT
from tests.transport.test_ws_browser import Site
from tests.transport.wspeers import RawPeer, frame, request

WAY = "transport.ws.listener.refuse_with"
PAGE = {"Origin": "http://127.0.0.1"}


def raising(error: Exception) -> Callable[[Any], object]:
    def authorize(request: Any) -> object:
        raise error

    return authorize


VERDICTS = [
    (lambda request: 401, 4401, "Unauthorized"),
    (lambda request: False, 4403, "Forbidden"),
    (lambda request: 429, 4429, "Too Many Requests"),
    (lambda request: 503, 4503, "Service Unavailable"),
    (raising(RequestRefused(401, "your session has ended")), 4401, "your session has ended"),
    (raising(PipeRefused("not you")), 4403, "the pipe was refused: not you"),
    (raising(ValueError("secret")), 4500, "Internal Server Error"),
    # No function can accept a request by a status, or invent one.
    (lambda request: 200, 4403, "Forbidden"),
    (lambda request: 999, 4403, "Forbidden"),
]
VERDICT = pytest.mark.parametrize(("authorize", "code", "reason"), VERDICTS)


def asking(address: str, **headers: str) -> RawPeer:
    """Return a peer that has sent its request."""
    peer = RawPeer(address)
    peer.send(request("/ws", headers))
    return peer


def closed_with(peer: RawPeer) -> int:
    """Return the code that closes a peer's WebSocket, and answer it."""
    assert peer.status() == 101
    code = peer.read_close().code
    peer.send(frame(Opcode.CLOSE, code.to_bytes(2, "big")))
    assert peer.read_rest() == b""
    return code


@VERDICT
def test_a_listener_closes_with_the_status_that_authorize_says(
    authorize: Callable[[Any], object], code: int, reason: str
) -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: "code", AUTHORIZE: authorize})
        with asking(listener.address) as peer:
            assert peer.status() == 101
            goodbye = peer.read_close()
            assert (goodbye.code, goodbye.reason) == (code, reason)
            # The peer has its time to answer, and counts meanwhile. The connection ends with the answer.
            assert len(listener._room) == 1
            peer.send(frame(Opcode.PING, b"?") + frame(Opcode.CLOSE, code.to_bytes(2, "big")))
            assert peer.read_rest() == b""
        wait_until(lambda: not len(listener._room))
        assert not server.pipes and (listener.accepted, listener.refused) == (1, 1)


@VERDICT
def test_a_mount_closes_with_the_status_that_authorize_says(
    authorize: Callable[[Any], object], code: int, reason: str
) -> None:
    with Socket() as server:
        mounted = mount(server, "/ws", options={WAY: "code", AUTHORIZE: authorize})
        with serving(mounted) as served, served.peer(request("/ws")) as peer:
            assert peer.status() == 101
            goodbye = peer.read_close()
            assert (goodbye.code, goodbye.reason) == (code, reason)
            peer.send(frame(Opcode.CLOSE, code.to_bytes(2, "big")))
            assert peer.read_rest() == b""
            assert not server.pipes and mounted.listener is not None and mounted.listener.refused == 1
        assert '"GET /ws HTTP/1.1" 101' in served.log.getvalue()


def test_over_tls_the_peer_is_told_as_well() -> None:
    with Socket() as server:
        mounted = mount(server, "/ws", options={WAY: "code", AUTHORIZE: lambda request: 401})
        with serving(mounted, tls=True) as served, served.peer(request("/ws")) as peer:
            assert closed_with(peer) == 4401


LIMITS = [
    (BY_ADDRESS, -1, 4429),
    (BY_IDENTITY, -1, 4429),
    (BY_LIMIT, 1, 4503),
    ({**BY_LIMIT, AUTHORIZE: lambda request: "anna"}, 1, 4503),
]
LIMIT = pytest.mark.parametrize(
    ("options", "pipe_limit", "code"), LIMITS, ids=["address", "identity", "pipes", "pipes, authorized"]
)


@LIMIT
def test_a_listener_says_whether_the_peer_or_the_socket_has_too_many(
    options: dict[str, Any], pipe_limit: int, code: int
) -> None:
    with Socket({"connector.pipe_limit": pipe_limit}) as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {**options, WAY: "code"})
        with asking(listener.address) as first:
            assert first.status() == 101
            server.wait_pipes(1, timeout=5)
            with asking(listener.address) as second:
                assert closed_with(second) == code
            wait_until(lambda: not len(listener._room))
            assert len(server.pipes) == 1 and (listener.accepted, listener.refused) == (2, 1)
            first.close()
            wait_until(lambda: not server.pipes)
            # What the refused one was counted under is free again.
            with asking(listener.address) as third:
                assert third.status() == 101
                server.wait_pipes(1, timeout=5)


@LIMIT
def test_a_mount_says_whether_the_peer_or_the_socket_has_too_many(
    options: dict[str, Any], pipe_limit: int, code: int
) -> None:
    with Socket({"connector.pipe_limit": pipe_limit}) as server:
        mounted = mount(server, "/ws", options={**options, WAY: "code"})
        with serving(mounted) as served, served.peer(request("/ws")) as first:
            assert first.status() == 101
            server.wait_pipes(1, timeout=5)
            with served.peer(request("/ws")) as second:
                assert closed_with(second) == code
            assert len(server.pipes) == 1


@pytest.mark.parametrize("mounts", [False, True], ids=["listener", "mount"])
def test_only_pages_get_a_code_where_that_is_asked_for(mounts: bool) -> None:
    options = {WAY: "code_to_pages", AUTHORIZE: lambda request: 401}
    with Socket() as server:
        mounted = mount(server, "/ws", options=options)
        with serving(mounted) as served:
            address = served.address if mounts else server.listen("ws://127.0.0.1:0/ws", options).address
            with asking(address, **PAGE) as page:
                assert closed_with(page) == 4401
            with asking(address) as program:
                assert program.status() == 401
            with Socket() as client, pytest.raises(RequestRefused) as caught:
                client.dial(address)
            assert caught.value.status == 401


def test_a_page_of_another_origin_gets_a_code_too() -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: "code_to_pages"})
        with asking(listener.address, Origin="http://evil.example") as page:
            assert closed_with(page) == 4403
        assert listener.refused == 1


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec-WebSocket-Protocol": "chat"}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Upgrade": None}, 426),
    ],
)
@pytest.mark.parametrize("options", [{}, BY_ADDRESS], ids=["", "over a limit"])
def test_what_is_no_right_request_gets_a_status(
    changes: dict[str, str | None], status: int, options: dict[str, Any]
) -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: "code", **options})
        with asking(listener.address) as first:
            assert first.status() == 101
            with RawPeer(listener.address) as peer:
                peer.send(request("/ws", changes))
                assert peer.status() == (429 if options else status)
                peer.read_rest()


@pytest.mark.parametrize(("way", "status"), [("status", 503), ("code", 101)])
def test_a_request_that_waits_when_its_listener_closes_gets_an_answer(way: str, status: int) -> None:
    with Socket({"connector.pipe_limit": 1}) as server, Socket() as other:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: way, "transport.ws.listener.pending_size": 1})
        # The port stays open for this one.
        other.listen(listener.address.replace("/ws", "/other"))
        port = listener.transport._port
        with asking(listener.address) as first:
            assert first.status() == 101
            server.wait_pipes(1, timeout=5)
            waiting = [asking(listener.address) for _ in range(3)]
            # One is at the listener, and the port holds the others.
            wait_until(lambda: len(port._waiting) == 2)
            listener.close()
            for peer in waiting:
                assert peer.status() == status
                if way == "code":
                    assert peer.read_close().code == 4503
                peer.close()


def test_a_peer_that_does_not_answer_leaves_its_place() -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: "code", AUTHORIZE: lambda request: False})
        with asking(listener.address) as peer:
            assert peer.status() == 101 and peer.read_close().code == 4403
            # It may say what it likes: nothing of that is answered, or kept.
            peer.send(frame(Opcode.BINARY, bytes(60_000)))
            assert peer.read_rest() == b""
        wait_until(lambda: not len(listener._room))
        assert not server.queued


def test_refused_peers_end_with_their_listener() -> None:
    with Socket() as server:
        listener = server.listen("ws://127.0.0.1:0/ws", {WAY: "code", AUTHORIZE: lambda request: False})
        with asking(listener.address) as peer:
            assert peer.status() == 101 and peer.read_close().code == 4403
            listener.close()
            assert peer.read_rest() == b""
        wait_until(lambda: not listener._handshakes)


def test_a_refusal_reaches_a_peer_that_hung_up_at_once_without_harm() -> None:
    asked, go_on = Event(), Event()

    def authorize(request: Any) -> bool:
        asked.set()
        go_on.wait()
        return False

    with Socket() as server:
        mounted = mount(server, "/ws", options={WAY: "code", AUTHORIZE: authorize})
        with serving(mounted) as served:
            with served.peer(request("/ws")):
                asked.wait()
            gevent.sleep(0)
            go_on.set()
            wait_until(lambda: mounted.listener is not None and mounted.listener.refused == 1)
        assert not server.pipes


@needs("chromium --version")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("where", ["listener", "tls listener", "mount"])
def test_a_page_reads_the_code(where: str) -> None:
    options = {WAY: "code_to_pages", AUTHORIZE: raising(RequestRefused(401, "log in first"))}
    with Socket() as server, Site(server, options) as site:
        place = f"127.0.0.1:{site.port}"
        address = f"ws://{place}/ws"
        flags = []
        if where != "mount":
            secure = listen_options() if where == "tls listener" else {}
            scheme = "wss" if secure else "ws"
            options |= {"transport.ws.listener.origins": [f"http://{place}"], **secure}
            address = server.listen(f"{scheme}://127.0.0.1:0/ws", options).address
            flags = ["--ignore-certificate-errors"]
        with browsing(f"http://{place}/?{address}", *flags):
            assert site.report() == {"opened": "multisocket.binary"}
            goodbye = site.report()
        assert goodbye == {"code": 4401, "reason": "log in first", "wasClean": True}
        assert not server.pipes
