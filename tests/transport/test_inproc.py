from __future__ import annotations

from gmultisocket.testing import MessageTransportChecks


class TestInproc(MessageTransportChecks):
    address = "inproc://checks"
