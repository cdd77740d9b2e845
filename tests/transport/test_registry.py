"""The registry: ``gmultisocket.transport`` itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.errors import UnknownTransport
from gmultisocket.options import Options
from gmultisocket.testing import FakeStream
from gmultisocket.transport import (
    Connection,
    Transport,
    TransportDialer,
    TransportListener,
    find,
    register,
    schemes,
    unregister,
)
from gmultisocket.wire import Message, encode


class SmokeDialer(TransportDialer):
    def connect(self) -> Connection:
        return FakeStream([encode(Message(content=b"puff"))])


class Smoke(Transport):
    schemes: ClassVar[tuple[str, ...]] = ("smoke", "smoke.white")

    def dialer(self, address: Address, options: Options) -> TransportDialer:
        return SmokeDialer()

    def listener(self, address: Address, options: Options) -> TransportListener:
        raise NotImplementedError


@pytest.fixture
def smoke() -> Iterator[Smoke]:
    transport = Smoke()
    yield transport
    unregister(transport)


def test_a_registered_transport_is_found_under_each_of_its_schemes(smoke: Smoke) -> None:
    register(smoke)
    assert find("smoke") is smoke and find("smoke.white") is smoke
    assert {"smoke", "smoke.white"} <= set(schemes())


def test_a_socket_uses_a_registered_transport(smoke: Smoke) -> None:
    register(smoke)
    with Socket() as sock:
        sock.dial("smoke://signals?connector.dialer.reconnect=false")
        assert sock.recv(timeout=5) == b"puff"


def test_a_scheme_that_nobody_registered_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(UnknownTransport, match="no transport has the scheme 'smoke'; known: .*inproc, .*tcp"):
        find("smoke", "smoke://signals")
    with Socket() as sock, pytest.raises(UnknownTransport) as caught:
        sock.listen("smoke://signals")
    assert caught.value.address == "smoke://signals"


def test_an_unregistered_transport_is_forgotten(smoke: Smoke) -> None:
    register(smoke)
    unregister(smoke)
    unregister(smoke)
    assert "smoke" not in schemes()
    with pytest.raises(UnknownTransport):
        find("smoke")


def test_a_taken_scheme_is_not_given_to_another_transport(smoke: Smoke) -> None:
    register(smoke)
    other = Smoke()
    with pytest.raises(ValueError, match="the scheme 'smoke' is taken: pass replace=True"):
        register(other)
    assert find("smoke") is smoke
    register(other, replace=True)
    try:
        assert find("smoke") is other
        unregister(smoke)
        assert find("smoke") is other, "what is somebody else's now was taken away"
    finally:
        unregister(other)


def test_a_built_in_transport_can_be_replaced_and_comes_back() -> None:
    class Other(Smoke):
        schemes = ("tcp",)

    built_in, other = find("tcp"), Other()
    with pytest.raises(ValueError, match="'tcp' is taken"):
        register(other)
    register(other, replace=True)
    try:
        assert find("tcp") is other
    finally:
        unregister(other)
    assert find("tcp") is built_in


def test_a_transport_without_a_scheme_is_refused() -> None:
    class Nameless(Smoke):
        schemes = ()

    with pytest.raises(ValueError, match="names no scheme"):
        register(Nameless())


@pytest.mark.parametrize("target", ["Smoke", "TRANSPORT"])
def test_an_entry_point_may_name_a_transport_or_a_class_of_one(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "smoke_signals.py").write_text(
        "from gmultisocket.transport import Transport\n"
        "class Smoke(Transport):\n"
        "    schemes = ('smoke',)\n"
        "    def dialer(self, address, options): ...\n"
        "    def listener(self, address, options): ...\n"
        "TRANSPORT = Smoke()\n"
    )
    metadata = tmp_path / "smoke_signals-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: smoke-signals\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[gmultisocket.transports]\nsmoke = smoke_signals:{target}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = find("smoke")
    try:
        assert type(found).__module__ == "smoke_signals"
        assert find("smoke") is found, "an entry point is loaded once"
    finally:
        unregister(found)
        del sys.modules["smoke_signals"]
