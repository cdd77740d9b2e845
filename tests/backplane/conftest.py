"""Fixtures of the tests of NATS and Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.backplane.servers import BrokerServer, NatsServer, RedisServer


@pytest.fixture(params=[NatsServer, RedisServer], ids=lambda kind: kind.scheme)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerServer]:
    """A running server; the test runs once for each kind."""
    with request.param(tmp_path) as started:
        yield started


@pytest.fixture(params=["nats", "redis"])
def strict_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[BrokerServer, str]]:
    """A running server that soon cuts off a slow subscriber, and what its log says then; once for each kind."""
    strict: BrokerServer
    if request.param == "nats":
        config = 'max_payload: 100000\nmax_pending: 1000000\nwrite_deadline: "300ms"'
        strict, logged = NatsServer.configured(tmp_path, config), "Slow Consumer"
    else:
        limit = ["--client-output-buffer-limit", "pubsub 1mb 0 0"]
        strict, logged = RedisServer(tmp_path, limit), "overcoming of output buffer limits"
    with strict:
        yield strict, logged
