"""The engines for NATS and Redis do what an engine must, with the real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from gmultisocket.testing.engines import EngineChecks
from tests.backplane.servers import BrokerServer, JetStreamServer, NatsServer, RedisServer


class _BrokerChecks(EngineChecks):
    kind: ClassVar[type[BrokerServer]]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def serve(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        # One server for all checks, as they leave it running.
        with cls.kind(tmp_path_factory.mktemp("server")) as server:
            cls.server, cls.url = server, server.url
            yield


class TestNats(_BrokerChecks):
    kind = NatsServer


class TestNatsWithJetStream(_BrokerChecks):
    kind = JetStreamServer
    history = ("h.>",)
    exact_gaps = False


class TestRedis(_BrokerChecks):
    kind = RedisServer
    history = ("h.>",)
