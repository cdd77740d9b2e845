"""tls+tcp: what TLS does on a connection, and around one. Certificates and their errors: ``test_tlscontext.py``."""

from __future__ import annotations

from gmultisocket.testing import StreamTransportChecks
from tests.certificates import dial_options, listen_options


class TestTls(StreamTransportChecks):
    address = "tls+tcp://127.0.0.1:0"
    bad_addresses = ("tls+tcp://127.0.0.1", "tls+tcp://:80", "tls+tcp://127.0.0.1:65536", "tls+tcp://::1:80")
    dial_options = dial_options()
    listen_options = listen_options()
    # A TLS goodbye ends both directions for many peers.
    half_close = False
