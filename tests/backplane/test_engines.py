"""Every engine does what an engine must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gmultisocket.testing.engines import EngineChecks
from tests.backplane.hubs import hub
from tests.faults.peers import free_port


class TestMemory(EngineChecks):
    url = "memory://checks"
    history = ("h.>",)


class _HubChecks(EngineChecks):
    #: The check kills and starts the hub itself.
    options = {"plane.start_hub": False}
    history = ("h.>",)

    @classmethod
    def make_url(cls, folders: pytest.TempPathFactory) -> str:
        raise NotImplementedError

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def serve(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        # One hub for all checks: to start a process takes longer than most of them.
        cls.url = cls.make_url(tmp_path_factory)
        with hub(cls.url, "--history", *cls.history) as cls.server:
            yield


class TestHubByIPC(_HubChecks):
    @classmethod
    def make_url(cls, folders: pytest.TempPathFactory) -> str:
        return f"ipc://{folders.mktemp('hub')}/hub"


class TestHubByTCP(_HubChecks):
    @classmethod
    def make_url(cls, folders: pytest.TempPathFactory) -> str:
        return f"tcp://127.0.0.1:{free_port()}"
