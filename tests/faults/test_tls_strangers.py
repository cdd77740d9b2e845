"""TLS: old ciphers, certificates that are missing, and contexts that would block the loop."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import ssl as gssl

from gmultisocket import Socket
from gmultisocket.errors import CertificateRefused, CertificateRequired, TLSError
from gmultisocket.testing import wait_until
from gmultisocket.transport.tlscontext import explain
from tests.certificates import (
    TLS,
    authority,
    client_context,
    dial_options,
    server_certificate,
    server_context,
    write_authority,
    write_certificate,
)
from tests.faults.peers import connected
from tests.faults.process import spawn_script

SCHEMES = ["tls+tcp", "wss"]
CBC = "ECDHE-ECDSA-AES256-SHA384:ECDHE-ECDSA-AES128-SHA256:ECDHE-RSA-AES256-SHA384"


@pytest.fixture
def listen(tmp_path: Path) -> dict[str, Any]:
    """The options of a listener with files, and so with the library's own context."""
    return write_certificate(tmp_path, server_certificate(), "server")


# Ciphers


def old_ciphers(context: ssl.SSLContext) -> ssl.SSLContext:
    """Allow nothing but CBC ciphers with TLS 1.2."""
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CBC)
    return context


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_listener_takes_no_cbc_cipher(scheme: str, listen: dict[str, Any]) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", listen).address
        with pytest.raises(TLSError):
            client.dial(address, {TLS.context.name: old_ciphers(client_context())})
        # TLS 1.2 itself is no reason to refuse.
        context = client_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        client.dial(address, {TLS.context.name: context})
        [pipe] = client.pipes.values()
        assert pipe.identity["tls_version"] == "TLSv1.2"
        assert "GCM" in pipe.identity["cipher"] or "CHACHA20" in pipe.identity["cipher"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_dialer_offers_no_cbc_cipher(scheme: str, tmp_path: Path) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", {TLS.context.name: old_ciphers(server_context())}).address
        with pytest.raises(TLSError):
            client.dial(address, write_authority(tmp_path))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_program_that_needs_an_old_cipher_brings_a_context(scheme: str) -> None:
    with Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", {TLS.context.name: old_ciphers(server_context())}).address
        client.dial(address, {TLS.context.name: client_context()})
        [pipe] = client.pipes.values()
        assert "GCM" not in pipe.identity["cipher"]


# A certificate that is missing


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("own_context", [True, False])
def test_a_dialer_without_a_certificate_is_told_so(
    scheme: str, version: ssl.TLSVersion, own_context: bool, tmp_path: Path
) -> None:
    context = server_context(mutual=True)
    context.minimum_version = context.maximum_version = version
    dial = dial_options() if own_context else write_authority(tmp_path)
    with Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", {TLS.context.name: context}).address
        reasons: list[str] = []
        client.on_pipe(lambda event: reasons.append(event.reason) if event.kind == "remove" else None)
        try:
            client.dial(address, {**dial, "connector.dialer.reconnect": False})
        except CertificateRequired as error:
            reasons.append(str(error))
        else:
            # With TLS 1.3 the dialer's handshake ends first, and the pipe closes for that reason.
            assert (scheme, version) == ("tls+tcp", ssl.TLSVersion.TLSv1_3)
        wait_until(lambda: reasons)
        assert "requires a certificate of this side" in reasons[0]


def test_a_bad_certificate_of_a_dialer_without_one_is_a_missing_one(tmp_path: Path) -> None:
    """What Go's and other listeners say with TLS 1.2 to a dialer that sends none."""
    error = ssl.SSLError(1, "[SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate")
    error.reason = "SSLV3_ALERT_BAD_CERTIFICATE"
    found = []
    with Socket() as server:
        listener = server.listen("tls+tcp://127.0.0.1:0", {TLS.context.name: server_context()})
        for dial in (write_authority(tmp_path), dial_options()):
            with Socket() as client:
                client.dial(listener.address, dial)
                [pipe] = client.pipes.values()
                found.append(type(explain(error, "", pipe._connection._sock)))  # type: ignore[attr-defined]
    # A context of the program may have a certificate.
    assert found == [CertificateRequired, CertificateRefused]


# Contexts


@pytest.mark.parametrize("make", [ssl.create_default_context, gssl.create_default_context, gssl.SSLContext])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_context_lets_a_silent_peer_stop_the_loop(scheme: str, make: Any) -> None:
    """``gevent.ssl.create_default_context`` makes one of the standard library. Here its sockets do not block."""
    context = make(ssl.Purpose.CLIENT_AUTH) if make is not gssl.SSLContext else make(ssl.PROTOCOL_TLS_SERVER)
    server_certificate().configure_cert(context)
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{scheme}://127.0.0.1:0", {TLS.context.name: context})
        plain = listener.address.replace(scheme, "tcp").removesuffix("/")
        with connected(plain), connected(plain), gevent.Timeout(20):
            client.dial(listener.address, dial_options())
            client.send(b"hello")
            assert server.recv(timeout=10) == b"hello"


BLOCKING = """
import sys
from gevent import ssl
from gevent.pywsgi import WSGIServer
from gmultisocket import Socket
from gmultisocket.contrib.wsgi import mount

context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server = WSGIServer(("127.0.0.1", 0), mount(Socket(), "/ws"), log=None, ssl_context=context)
server.start()
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_a_server_whose_context_blocks_the_loop_is_refused_with_words(listen: dict[str, Any]) -> None:
    with spawn_script(BLOCKING, listen[TLS.certfile.name], listen[TLS.keyfile.name]) as process:
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        context = gssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority().configure_trust(context)
        with gsocket.create_connection(("127.0.0.1", port), timeout=20) as plain:
            peer = context.wrap_socket(plain, server_hostname="127.0.0.1")
            peer.sendall(
                b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            answer = b""
            while b"use gevent.ssl.SSLContext" not in answer:
                data = peer.recv(4096)
                assert data, answer
                answer += data
            assert answer.startswith(b"HTTP/1.1 501 ")
            peer.close()
