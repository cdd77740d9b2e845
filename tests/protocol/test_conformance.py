"""Every protocol class, on every transport, does what a protocol must."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmultisocket.testing import protocols
from tests import addresses
from tests.protocol.net import TRANSPORTS


class OnEveryTransport:
    """Runs checks on each transport."""

    @pytest.fixture(autouse=True, params=TRANSPORTS)
    def set_address(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.address = addresses.TRANSPORTS[request.param](tmp_path)


class TestReq(OnEveryTransport, protocols.ReqChecks):
    pass


class TestRep(OnEveryTransport, protocols.RepChecks):
    pass


class TestPush(OnEveryTransport, protocols.PushChecks):
    pass


class TestPull(OnEveryTransport, protocols.PullChecks):
    pass


class TestBus(OnEveryTransport, protocols.BusChecks):
    pass


class TestPair(OnEveryTransport, protocols.PairChecks):
    pass


class TestSurveyor(OnEveryTransport, protocols.SurveyorChecks):
    pass


class TestRespondent(OnEveryTransport, protocols.RespondentChecks):
    pass


class TestPub(OnEveryTransport, protocols.PubChecks):
    pass


class TestSub(OnEveryTransport, protocols.SubChecks):
    pass


class TestStream(OnEveryTransport, protocols.StreamChecks):
    pass
