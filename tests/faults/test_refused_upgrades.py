"""Upgrade requests that are refused, each with its own status: no request gets further by a second mistake in it."""

from __future__ import annotations

from typing import Any

import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl

from gmultisocket import Socket
from gmultisocket.testing import wait_until
from gmultisocket.transport.ws import WSListener
from tests.certificates import authority, listen_options
from tests.transport.wspeers import RawPeer, request

AUTHORIZE = "transport.ws.listener.authorize"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(version="HTTP/1.0"), 505),
        (request(version="HTTP/2.0"), 505),
        (request(changes={"Origin": "http://127.0.0.1\r\nOrigin: http://127.0.0.1"}), 400),
        (request(changes={"Origin": "http://127.0.0.1\r\nOrigin: http://example.org"}), 400),
    ],
    ids=["HTTP/1.0", "HTTP/2.0", "two equal origins", "two origins"],
)
def test_a_request_is_refused_by_what_is_wrong_with_it(data: bytes, status: int) -> None:
    with Socket() as server, RawPeer(server.listen("ws://127.0.0.1:0").address) as peer:
        peer.send(data)
        assert peer.status() == status
        peer.read_rest()
        assert not server.pipes


def test_who_is_not_authorized_gets_a_plain_403(caplog: pytest.LogCaptureFixture) -> None:
    with Socket() as server:
        with RawPeer(server.listen("ws://127.0.0.1:0", {AUTHORIZE: lambda request: False}).address) as peer:
            peer.send(request())
            assert peer.status() == 403
            peer.read_rest()
        assert not server.pipes
    # False is an answer, and no mistake of the function.
    assert not [record for record in caplog.records if record.exc_info]
    assert "authorize" not in caplog.text


MAX = "connector.listener."
BY_ADDRESS = {MAX + "max_per_address": 1}
BY_IDENTITY = {MAX + "max_per_identity": 1, AUTHORIZE: lambda request: "anna"}
BY_LIMIT = {MAX + "over_limit": "refuse"}


def asking(address: str) -> RawPeer:
    """Return a peer that has sent its request."""
    peer = RawPeer(address)
    if address.startswith("wss"):
        context = gssl.SSLContext(gssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(context)
        peer.sock = context.wrap_socket(peer.sock, server_hostname="127.0.0.1")
    peer.send(request())
    return peer


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize(
    ("options", "pipe_limit", "status"),
    [(BY_ADDRESS, -1, 429), (BY_IDENTITY, -1, 429), (BY_LIMIT, 1, 503), ({**BY_ADDRESS, **BY_LIMIT}, 1, 429)],
    ids=["address", "identity", "pipes", "address and pipes"],
)
def test_the_status_says_whether_the_peer_or_the_socket_has_too_many(
    scheme: str, options: dict[str, Any], pipe_limit: int, status: int
) -> None:
    with Socket({"connector.pipe_limit": pipe_limit}) as server:
        secure = listen_options() if scheme == "wss" else {}
        listener = server.listen(f"{scheme}://127.0.0.1:0", {**options, **secure})
        with asking(listener.address) as first:
            assert first.status() == 101
            with asking(listener.address) as second:
                assert second.status() == status
            wait_until(lambda: listener.refused == 1)
        server.close(linger=0)


@pytest.mark.parametrize("data", [b"half a reques", b"", request("/elsewhere")])
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_port_counts_the_peers_that_reach_no_listener(scheme: str, data: bytes) -> None:
    """On wss they fail in TLS."""
    with Socket() as server:
        secure = listen_options() if scheme == "wss" else {}
        listener = server.listen(f"{scheme}://127.0.0.1:0", secure)
        transport = listener.transport
        assert isinstance(transport, WSListener) and transport.refused_by_port == 0
        port = int(listener.address.rpartition(":")[2].rstrip("/"))
        for count in (1, 2):
            with gsocket.create_connection(("127.0.0.1", port)) as peer:
                peer.sendall(data)
                peer.shutdown(gsocket.SHUT_WR)
                wait_until(lambda count=count: transport.refused_by_port == count)
        assert listener.refused == 0
