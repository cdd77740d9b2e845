"""Upgrade requests that are refused, each with its own status: no request gets further by a second mistake in it."""

from __future__ import annotations

import pytest

from gmultisocket import Socket
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
