"""Fixtures of many tests of the core."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmultisocket import Socket


@pytest.fixture
def two(address: str) -> Iterator[tuple[Socket, Socket]]:
    """A server and a client that dialed it."""
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        yield server, client
