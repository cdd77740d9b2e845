"""Certificates of listeners that a dialer must not believe, however it came to trust an authority, on tls and wss.

What each side says of each mistake in a handshake is in ``tests/transport/test_tlscontext.py``. Here are sockets that
dial: the error, the pauses, and the listener that goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from gmultisocket import Socket
from gmultisocket.errors import (
    BadCertificate,
    CertificateExpired,
    CertificateNotYetValid,
    HostnameMismatch,
    UntrustedCertificate,
)
from gmultisocket.testing import wait_until
from tests.cases import every_case
from tests.certificates import (
    HOST,
    TLS,
    authority,
    dial_options,
    expired_certificate,
    future_certificate,
    listen_options,
    other_authority,
    server_certificate,
    write_authority,
)

QUICKLY = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.05}
ASYNC = {"connector.dialer.dial_async": True}

#: What is wrong -> the certificate, and the error. Dialers trust ``authority()``.
MISTAKES: dict[str, tuple[Callable[[], trustme.LeafCert], type[BadCertificate]]] = {
    "another authority": (lambda: other_authority().issue_cert(HOST), UntrustedCertificate),
    "another name": (lambda: authority().issue_cert("example.org"), HostnameMismatch),
    "another address": (lambda: authority().issue_cert("127.0.0.2"), HostnameMismatch),
    "a name that begins like it": (lambda: authority().issue_cert(f"{HOST}.example.org"), HostnameMismatch),
    "expired": (expired_certificate, CertificateExpired),
    "not yet valid": (future_certificate, CertificateNotYetValid),
}


@pytest.fixture(params=["tls+tcp", "wss"])
def address(request: pytest.FixtureRequest) -> str:
    """Where to listen, on each transport with TLS."""
    return f"{request.param}://{HOST}:0"


@pytest.fixture(params=["cafile", "context", "system"])
def trusting(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a dialer, in each of the ways to trust an authority."""
    file = write_authority(tmp_path)
    if request.param == "cafile":
        return file
    if request.param == "context":
        return dial_options()
    monkeypatch.setenv("SSL_CERT_FILE", file[TLS.cafile.name])
    return {}


def test_however_an_authority_is_trusted_a_bad_certificate_of_it_is_refused_by_its_own_error(
    address: str, trusting: dict[str, Any]
) -> None:
    with Socket() as server, Socket() as client, every_case() as case:
        good = server.listen(address, listen_options())
        for mistake, (certificate, error) in MISTAKES.items():
            with case(mistake):
                listener = server.listen(address, listen_options(certificate()))
                with pytest.raises(BadCertificate) as refused:
                    client.dial(listener.address, trusting)
                assert type(refused.value) is error
                assert not client.pipes and not client.dialers
        client.dial(good.address, trusting)
        client.send(b"the right one")
        assert server.recv(timeout=5) == b"the right one"


def test_a_name_is_checked_also_where_the_host_is_a_name(address: str, trusting: dict[str, Any]) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(address, listen_options(authority().issue_cert(HOST)))
        with pytest.raises(HostnameMismatch):
            client.dial(listener.address.replace(HOST, "localhost"), trusting)
        with pytest.raises(HostnameMismatch):
            client.dial(listener.address, {**trusting, TLS.server_hostname.name: "localhost"})


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_dialer_that_finds_a_bad_certificate_tries_ever_more_rarely_and_the_listener_goes_on(
    address: str, mistake: str, tmp_path: Path
) -> None:
    certificate, error = MISTAKES[mistake]
    pauses = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 60.0}
    with Socket() as server, Socket(pauses) as client:
        listener = server.listen(address, listen_options(certificate()))
        dialer = client.dial(listener.address, {**write_authority(tmp_path), **ASYNC})
        wait_until(lambda: dialer.attempts >= 4, 10)
        assert type(dialer.last_error) is error
        # A connection whose handshake fails does not make the pauses short again.
        assert dialer._pause > 0.012
        assert not client.pipes and not server.pipes
        with Socket() as other:
            other.dial(listener.address, {TLS.insecure.name: True})
            other.send(b"does not look")
            assert server.recv(timeout=5) == b"does not look"


def test_a_dialer_connects_when_the_certificate_has_become_a_good_one(address: str, tmp_path: Path) -> None:
    options = {**write_authority(tmp_path), **ASYNC}
    with Socket(QUICKLY) as client:
        with Socket() as bad:
            listening = bad.listen(address, listen_options(expired_certificate())).address
            dialer = client.dial(listening, options)
            wait_until(lambda: dialer.attempts >= 2, 10)
        with Socket() as good:
            good.listen(listening, listen_options(server_certificate()))
            client.send(b"renewed", timeout=10)
            assert good.recv(timeout=5) == b"renewed"
