"""ws and wss: the transport's own checks, and what its peers may and may not do."""

from __future__ import annotations

from gmultisocket.testing import PacketTransportChecks
from tests.certificates import dial_options, listen_options


class TestWs(PacketTransportChecks):
    address = "ws://127.0.0.1:0/some/path"
    bad_addresses = ("ws://", "ws:///path", "ws://:80/", "ws://127.0.0.1:65536/", "ws://::1:80/", "ws://127.0.0.1:80/ä")


class TestWsWithoutPath(PacketTransportChecks):
    address = "ws.sr://127.0.0.1:0"


class TestWsAsOneStream(PacketTransportChecks):
    address = "ws.rw://127.0.0.1:0/"


class TestWss(PacketTransportChecks):
    address = "wss://127.0.0.1:0/"
    bad_addresses = ("wss://", "wss://127.0.0.1:65536/")
    dial_options = dial_options()
    listen_options = listen_options()
    half_close = False
