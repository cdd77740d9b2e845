from __future__ import annotations

from gmultisocket.testing import StreamTransportChecks


class TestTcp(StreamTransportChecks):
    address = "tcp://127.0.0.1:0"
    bad_addresses = ("tcp://127.0.0.1", "tcp://:80", "tcp://127.0.0.1:65536", "tcp://::1:80", "tcp://127.0.0.1:80/path")
