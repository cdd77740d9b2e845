"""The nets that tests run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.protocol.net import TRANSPORTS, Net


@pytest.fixture(params=[f"{transport}-{switches}" for transport in TRANSPORTS for switches in (0, 1, 3)])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    """A net for each transport, direct and with one and three switches."""
    transport, switches = request.param.split("-")
    made = Net(transport, int(switches), tmp_path)
    yield made
    made.close()


@pytest.fixture(params=TRANSPORTS)
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    """A net for each transport, without switches."""
    yield Net(request.param, 0, tmp_path)
