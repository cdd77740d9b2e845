from __future__ import annotations

from pathlib import Path

import pytest

from gmultisocket.testing import StreamTransportChecks


class TestIpc(StreamTransportChecks):
    bad_addresses = ("ipc://@", "ipc:///" + "x" * 107)

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path = tmp_path

    def make_address(self) -> str:
        return f"ipc://{self.path}/socket"
