"""wss: the certificates and handshakes of TLS below the requests of WebSockets. Messages over it: ``test_ws.py``."""

from __future__ import annotations

import logging
import os
import ssl
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Socket
from gmultisocket.errors import (
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRefused,
    CertificateRequired,
    HandshakeFailed,
    HostnameMismatch,
    NotTLS,
    TLSError,
    UntrustedCertificate,
)
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.certificates import (
    authority,
    client_certificate,
    client_context,
    dial_options,
    expired_certificate,
    future_certificate,
    listen_options,
    other_authority,
)

WSS = "wss://127.0.0.1:0/path"


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2].partition("/")[0])


@pytest.mark.parametrize(
    ("certificate", "error"),
    [
        (lambda: other_authority().issue_cert("127.0.0.1"), UntrustedCertificate),
        (lambda: authority().issue_cert("example.org"), HostnameMismatch),
        (expired_certificate, CertificateExpired),
        (future_certificate, CertificateNotYetValid),
    ],
    ids=["unknown authority", "other host", "expired", "not yet valid"],
)
def test_a_dialer_says_what_is_wrong_with_the_listeners_certificate(certificate: Any, error: type[TLSError]) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(WSS, listen_options(certificate()))
        with pytest.raises(error, match="^wss://127.0.0.1"):
            client.dial(listener.address, dial_options())
        assert not server.pipes and not client.dialers


@pytest.mark.parametrize(
    ("certificate", "error"),
    [(None, CertificateRequired), (lambda: other_authority().issue_cert("someone"), CertificateRefused)],
    ids=["none", "unknown authority"],
)
def test_a_refusal_of_the_dialers_certificate_is_what_dial_raises(certificate: Any, error: type[TLSError]) -> None:
    """Unlike tls+tcp with TLS 1.3: the answer to the request does not come, and the reason does."""
    with Socket() as server, Socket() as client:
        listener = server.listen(WSS, listen_options(mutual=True))
        with pytest.raises(error):
            client.dial(listener.address, dial_options(certificate and certificate()))
        client.dial(listener.address, dial_options(client_certificate()))
        server.wait_pipes(1, timeout=5)


def test_a_listener_without_a_certificate_does_not_start() -> None:
    with Socket() as sock, pytest.raises(Exception, match="transport.tls.certfile.*needs a certificate"):
        sock.listen(WSS)


def test_ws_and_wss_do_not_mix_and_say_so_at_once(caplog: pytest.LogCaptureFixture) -> None:
    with Socket() as server, Socket() as client:
        secure = server.listen(WSS, listen_options()).address
        plain = server.listen("ws://127.0.0.1:0/path").address
        with gevent.Timeout(5):
            for _ in range(3):
                with pytest.raises(HandshakeFailed):
                    client.dial(secure.replace("wss:", "ws:"))
                with pytest.raises(NotTLS):
                    client.dial(plain.replace("ws:", "wss:"), dial_options())
        wait_until(lambda: len(warnings_of(caplog)) == 2)
        assert sum("does not speak TLS" in warning for warning in warnings_of(caplog)) == 1
        assert sum("dial wss" in warning for warning in warnings_of(caplog)) == 1


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["silent", "half a hello"])
def test_half_tls_handshakes_hold_up_nobody(data: bytes) -> None:
    with Socket() as server, Socket() as client, ExitStack() as stack:
        listener = server.listen(WSS, listen_options())
        for _ in range(200):
            where = ("127.0.0.1", port_of(listener.address))
            stack.enter_context(gsocket.create_connection(where, timeout=10)).sendall(data)
        client.dial(listener.address, dial_options())
        client.send(b"here I am")
        assert server.recv(timeout=10) == b"here I am"


def test_a_peer_that_stops_after_its_tls_handshake_is_cut_when_its_time_is_up() -> None:
    with Socket() as server:
        listener = server.listen(WSS, listen_options() | {"connector.listener.handshake_timeout": 0.1})
        with gsocket.create_connection(("127.0.0.1", port_of(listener.address)), timeout=5) as peer:
            # What ssl itself makes of the bytes, as the library has no part in it.
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = client_context().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while tls.version() is None:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    peer.sendall(outgoing.read())
                    incoming.write(peer.recv(16384))
            peer.sendall(outgoing.read())
            while data := peer.recv(16384):
                incoming.write(data)
            assert tls.read(16384).startswith(b"HTTP/1.1 408 ")
            assert tls.read(16384) == b"", "and TLS' own goodbye"


def test_a_child_does_not_finish_its_parents_dial() -> None:
    with gsocket.socket() as plain, Socket() as client:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        address = f"wss://127.0.0.1:{plain.getsockname()[1]}/path"
        dialing = gevent.spawn(client.dial, address, dial_options())
        peer, _ = plain.accept()
        with peer:
            peer.recv(1)

            def child(report: int) -> None:
                os.write(peer.fileno(), b"HTTP/")
                gevent.sleep(0.2)

            in_forked_child(child)
            # What the child's loop could have read is still there for the parent's.
            with pytest.raises(NotTLS):
                dialing.get(timeout=5)


def test_the_certificate_is_on_the_pipe() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(WSS, listen_options(mutual=True)).address, dial_options(client_certificate()))
        server.wait_pipes(1, timeout=5)
        (theirs,), (mine,) = server.pipes.values(), client.pipes.values()
        assert theirs.identity["certificate"]["subjectAltName"] == (("email", "dialer@example.org"),)
        assert mine.identity["tls_version"] == theirs.identity["tls_version"] == "TLSv1.3"
