"""Certificates: every refusal has a class that names its reason, on both sides; bad options are found at once."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from gevent.ssl import SSLContext as GeventSSLContext

from gmultisocket import Socket
from gmultisocket.address import Address
from gmultisocket.errors import (
    AddressError,
    BadCertificate,
    BadFile,
    BadOptionValue,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRefused,
    CertificateRequired,
    ConnectionFailed,
    HandshakeFailed,
    HostnameMismatch,
    MultiSocketError,
    TLSError,
    UntrustedCertificate,
)
from gmultisocket.options import Options
from gmultisocket.testing import Bench, wait_until
from gmultisocket.transport import StreamConnection
from gmultisocket.transport.tlscontext import ClientSide, ServerSide, explain
from tests.cases import every_case
from tests.certificates import (
    TLS,
    authority,
    client_certificate,
    client_context,
    dial_options,
    expired_certificate,
    future_certificate,
    listen_options,
    other_authority,
    server_certificate,
    server_context,
    write_authority,
    write_certificate,
)

LISTEN = "tls+tcp://127.0.0.1:0"


def shake_hands(listen: Mapping[str, Any], dial: Mapping[str, Any], host: str = "127.0.0.1") -> tuple[Any, Any]:
    """Run a handshake between a dialer and a listener. Return the result of each side: an error, or its identity."""
    with Bench(LISTEN, dial, listen, 10.0) as bench:

        def accept() -> object:
            connection = bench.listener.accept()
            try:
                connection.handshake()
                return connection.identity
            except MultiSocketError as error:
                return error
            finally:
                # In time for the dialer to hear of it.
                connection.close()

        accepting = gevent.spawn(accept)
        try:
            dialed = bench.make_dialer(bench.listener.address.replace("127.0.0.1", host)).connect()
        except MultiSocketError as error:
            return error, accepting.get(timeout=10)
        assert isinstance(dialed, StreamConnection)
        try:
            # With TLS 1.3, a listener that says no says so after the dialer's handshake.
            assert dialed.recv(1) == b""
            return dialed.identity, accepting.get(timeout=10)
        except MultiSocketError as error:
            return error, accepting.get(timeout=10)
        finally:
            dialed.close()


def only_tls_1_2(options: dict[str, Any]) -> dict[str, Any]:
    options[TLS.context.name].maximum_version = ssl.TLSVersion.TLSv1_2
    return options


# What a dialer finds wrong


def test_a_listener_of_a_trusted_authority_is_accepted() -> None:
    dialed, accepted = shake_hands(listen_options(), dial_options())
    assert dialed["certificate"]["subjectAltName"][0] == ("IP Address", "127.0.0.1")
    assert dialed["tls_version"] == accepted["tls_version"] == "TLSv1.3"
    assert dialed["cipher"] == accepted["cipher"] and isinstance(dialed["cipher"], str)
    assert accepted["certificate"] is None


@pytest.mark.parametrize("older", [False, True], ids=["TLS 1.3", "TLS 1.2"])
@pytest.mark.parametrize(
    ("certificate", "error", "refusal"),
    [
        (lambda: other_authority().issue_cert("127.0.0.1"), UntrustedCertificate, "does not trust"),
        (lambda: authority().issue_cert("example.org"), HostnameMismatch, "bad"),
        (expired_certificate, CertificateExpired, "expired"),
        (future_certificate, CertificateNotYetValid, "bad"),
    ],
    ids=["unknown authority", "other host", "expired", "not yet valid"],
)
def test_a_dialer_says_what_is_wrong_with_the_listeners_certificate(
    certificate: Any, error: type[BadCertificate], refusal: str, older: bool
) -> None:
    listen = listen_options(certificate())
    dialed, accepted = shake_hands(only_tls_1_2(listen) if older else listen, dial_options())
    assert type(dialed) is error
    assert dialed.address.startswith("tls+tcp://127.0.0.1:") and dialed.address in str(dialed)
    assert type(accepted) is CertificateRefused, "the listener hears of it, too"
    assert refusal in accepted.why


def test_a_certificate_for_another_name_is_not_one_for_this_name() -> None:
    listen = listen_options(authority().issue_cert("example.org"))
    dialed, _ = shake_hands(listen, dial_options(), host="localhost")
    assert type(dialed) is HostnameMismatch
    dialed, _ = shake_hands(listen, dial_options() | {TLS.server_hostname.name: "example.org"}, host="localhost")
    assert dialed["tls_version"]


def test_a_self_signed_certificate_is_untrusted(tmp_path: Path) -> None:
    alone = trustme.CA()
    certfile = tmp_path / "alone.pem"
    certfile.write_bytes(alone.private_key_pem.bytes() + alone.cert_pem.bytes())
    dialed, _ = shake_hands({TLS.certfile.name: str(certfile)}, dial_options())
    assert type(dialed) is UntrustedCertificate


def test_the_systems_authorities_do_not_know_a_private_one() -> None:
    dialed, _ = shake_hands(listen_options(), {})
    assert type(dialed) is UntrustedCertificate


def test_a_cafile_stands_in_place_of_the_systems_authorities(tmp_path: Path) -> None:
    side = ClientSide(Address.parse("tls+tcp://a:1"), "a", Options(write_authority(tmp_path)))
    assert side._context.cert_store_stats()["x509_ca"] == 1


def test_the_systems_authorities_are_loaded_only_where_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda context, purpose: loaded.append(purpose))
    address = Address.parse("tls+tcp://a:1")
    ClientSide(address, "a", Options(write_authority(tmp_path)))
    ClientSide(address, "a", Options({TLS.insecure.name: True}))
    ClientSide(address, "a", Options({TLS.insecure.name: True, **write_authority(tmp_path)}))
    assert not loaded
    ClientSide(address, "a", Options())
    assert loaded == [ssl.Purpose.SERVER_AUTH]


def test_a_system_without_authorities_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(empty))
    dialed, _ = shake_hands(listen_options(), {})
    assert type(dialed) is UntrustedCertificate


# What a listener finds wrong


def test_mutual_tls_puts_the_peers_certificate_on_the_pipe() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(LISTEN, listen_options(mutual=True))
        client.dial(listener.address, dial_options(client_certificate()))
        server.wait_pipes(1, timeout=5)
        (theirs,), (mine,) = server.pipes.values(), client.pipes.values()
        assert theirs.identity["certificate"]["subjectAltName"] == (("email", "dialer@example.org"),)
        assert mine.identity["certificate"]["subjectAltName"][0] == ("IP Address", "127.0.0.1")
        mine.close()
        wait_until(lambda: theirs.closed)
        assert theirs.identity["certificate"]["subjectAltName"] == (("email", "dialer@example.org"),)


@pytest.mark.parametrize("older", [False, True], ids=["TLS 1.3", "TLS 1.2"])
@pytest.mark.parametrize(
    ("certificate", "error", "refusal"),
    [
        (lambda: other_authority().issue_cert("someone"), UntrustedCertificate, "does not trust"),
        (expired_certificate, CertificateExpired, "expired"),
        (future_certificate, CertificateNotYetValid, "bad"),
    ],
    ids=["unknown authority", "expired", "not yet valid"],
)
def test_a_listener_says_what_is_wrong_with_the_dialers_certificate(
    certificate: Any, error: type[BadCertificate], refusal: str, older: bool
) -> None:
    listen = listen_options(mutual=True)
    dialed, accepted = shake_hands(only_tls_1_2(listen) if older else listen, dial_options(certificate()))
    assert type(accepted) is error
    assert type(dialed) is CertificateRefused
    assert refusal in dialed.why


def test_a_dialer_without_a_certificate_hears_that_one_is_required() -> None:
    dialed, accepted = shake_hands(listen_options(mutual=True), dial_options())
    assert (type(dialed), type(accepted)) == (CertificateRequired, CertificateRequired)
    assert dialed.why != accepted.why, "each says whose is missing"


def test_tls_1_2_has_no_word_for_a_required_certificate_and_the_dialer_knows_it_all_the_same() -> None:
    dialed, accepted = shake_hands(only_tls_1_2(listen_options(mutual=True)), dial_options())
    assert (type(dialed), type(accepted)) == (CertificateRequired, CertificateRequired)
    assert "requires a certificate" in dialed.why


def test_a_listener_without_a_common_cipher_requires_no_certificate() -> None:
    listen, dial = only_tls_1_2(listen_options(mutual=True)), dial_options()
    listen[TLS.context.name].set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    dial[TLS.context.name].set_ciphers("ECDHE-ECDSA-AES256-GCM-SHA384")
    dialed, accepted = shake_hands(listen, dial)
    assert (type(dialed), type(accepted)) == (TLSError, TLSError)


def test_a_refused_certificate_is_the_reason_of_the_pipe_and_the_dialer_backs_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen(LISTEN, listen_options(mutual=True))
        reasons: list[str] = []
        client.on_pipe(lambda event: reasons.append(event.reason) if event.kind == "remove" else None)
        shortest = 0.02
        dialer = client.dial(listener.address, dial_options() | {"connector.dialer.min_reconnect_time": shortest})
        wait_until(lambda: len(reasons) >= 5)
        assert all("requires a certificate" in reason for reason in reasons), reasons
        assert dialer._pause > shortest * 1.1**3, "each pause is longer than the one before"
        assert not server.pipes
    names = [record.name for record in caplog.records if record.levelno >= logging.WARNING]
    assert names == ["gmultisocket.connector"] * 2, "noted once on each side, however often it happens"


def test_a_refusal_is_the_reason_though_messages_were_sent_before_it_came() -> None:
    for _ in range(20):
        with Socket() as server, Socket() as client:
            listener = server.listen(LISTEN, listen_options(mutual=True))
            client.dial(listener.address, dial_options() | {"connector.dialer.reconnect": False})
            (pipe,) = client.pipes.values()
            for _ in range(5):
                client.send_all(bytes(50_000), timeout=5)
            wait_until(lambda pipe=pipe: pipe.closed)  # type: ignore[misc]
            assert "requires a certificate" in pipe.reason
            assert not server.queued


# Versions and other people's contexts


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.* is deprecated:DeprecationWarning")
def test_versions_before_tls_1_2_are_refused(tmp_path: Path) -> None:
    old = client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    dialed, accepted = shake_hands(write_certificate(tmp_path, server_certificate(), "server"), {TLS.context.name: old})
    for error in (dialed, accepted):
        assert type(error) is TLSError and "no TLS version" in error.why


@pytest.mark.parametrize("kind", [ssl.SSLContext, GeventSSLContext], ids=["ssl", "gevent.ssl"])
def test_contexts_may_be_the_standard_librarys_or_gevents(kind: type[ssl.SSLContext]) -> None:
    listening, dialing = kind(ssl.PROTOCOL_TLS_SERVER), kind(ssl.PROTOCOL_TLS_CLIENT)
    server_certificate().configure_cert(listening)
    authority().configure_trust(dialing)
    dialed, accepted = shake_hands({TLS.context.name: listening}, {TLS.context.name: dialing})
    assert dialed["cipher"] == accepted["cipher"]


def test_a_contexts_certificate_may_be_renewed_while_it_is_in_use(tmp_path: Path) -> None:
    context = server_context(expired_certificate())
    with Socket() as server, Socket() as client:
        listener = server.listen(LISTEN, {TLS.context.name: context})
        with pytest.raises(CertificateExpired):
            client.dial(listener.address, dial_options())
        server_certificate().configure_cert(context)
        client.dial(listener.address, dial_options())
        server.wait_pipes(1, timeout=5)


def test_a_listening_context_without_a_certificate_is_named_as_the_likely_cause() -> None:
    dialed, accepted = shake_hands({TLS.context.name: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, dial_options())
    assert type(dialed) is TLSError
    assert type(accepted) is TLSError and "certificate" in accepted.why


# Options


def client_side(options: dict[Any, Any], host: str = "localhost") -> ClientSide:
    return ClientSide(Address.parse("tls+tcp://localhost:1"), host, Options(options))


def server_side(options: dict[Any, Any]) -> ServerSide:
    return ServerSide(Options(options))


def test_a_listener_without_a_certificate_does_not_start() -> None:
    with Socket() as sock:
        with pytest.raises(BadOptionValue, match="transport.tls.certfile.*needs a certificate"):
            sock.listen(LISTEN)
        assert not sock.listeners


def test_options_may_stand_in_the_address(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, server_certificate(), "server")
    query = "&".join(f"{name}={path}" for name, path in files.items())
    with Socket() as server, Socket() as client:
        listener = server.listen(f"{LISTEN}?{query}")
        client.dial(f"{listener.address}?transport.tls.cafile={write_authority(tmp_path)[TLS.cafile.name]}")
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"


def test_files_make_mutual_tls(tmp_path: Path) -> None:
    ca = write_authority(tmp_path)
    listen = write_certificate(tmp_path, server_certificate(), "server") | ca | {TLS.verify: True}
    _, accepted = shake_hands(listen, write_certificate(tmp_path, client_certificate(), "client") | ca)
    assert accepted["certificate"]["subjectAltName"] == (("email", "dialer@example.org"),)
    _, accepted = shake_hands(listen, ca)
    assert type(accepted) is CertificateRequired


def test_a_listener_with_a_cafile_verifies_unless_told_not_to(tmp_path: Path) -> None:
    ca = write_authority(tmp_path)
    listen = write_certificate(tmp_path, server_certificate(), "server") | ca
    assert type(shake_hands(listen, ca)[1]) is CertificateRequired
    assert shake_hands(listen | {TLS.verify: False}, ca)[1]["certificate"] is None


def test_files_are_read_once(tmp_path: Path) -> None:
    ca = write_authority(tmp_path)
    with Socket() as server, Socket() as client:
        listener = server.listen(LISTEN, write_certificate(tmp_path, server_certificate(), "server"))
        dialer = client.dial(listener.address, ca | {"connector.dialer.min_reconnect_time": 0.01})
        for path in tmp_path.iterdir():
            path.unlink()
        client.close_pipe(next(iter(client.pipes)))
        wait_until(lambda: dialer.reconnects == 1)
        client.send(b"hello")
        assert server.recv(timeout=5) == b"hello"


@pytest.mark.parametrize("option", ["certfile", "keyfile", "cafile"])
@pytest.mark.parametrize("problem", ["missing", "a folder", "no PEM", "not allowed"])
def test_errors_name_the_file(tmp_path: Path, option: str, problem: str) -> None:
    options = write_certificate(tmp_path, server_certificate(), "server") | write_authority(tmp_path)
    path = tmp_path / ("x" * 60) / "the file"
    path.parent.mkdir()
    if problem == "a folder":
        path.mkdir()
    elif problem == "no PEM":
        path.write_text("nothing of use")
    elif problem == "not allowed":
        path = Path("\0")
    options[f"transport.tls.{option}"] = str(path)
    for make in (client_side, server_side):
        with pytest.raises(BadFile) as caught:
            make(options)
        assert problem == "not allowed" or str(path) in str(caught.value)
        assert caught.value.name.startswith("transport.tls.")


def test_a_key_must_belong_to_its_certificate(tmp_path: Path) -> None:
    options = write_certificate(tmp_path, server_certificate(), "server")
    options[TLS.keyfile.name] = write_certificate(tmp_path, client_certificate(), "other")[TLS.keyfile.name]
    with pytest.raises(BadFile, match="does not belong") as caught:
        server_side(options)
    assert caught.value.path == options[TLS.keyfile.name]


def test_certificate_and_key_may_share_a_file(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(server_certificate().private_key_and_cert_chain_pem.bytes())
    dialed, _ = shake_hands({TLS.certfile.name: str(both)}, dial_options())
    assert dialed["tls_version"]


def encrypted(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Encrypt the key of a certificate with the password "secret"."""
    key = load_pem_private_key(Path(options[TLS.keyfile.name]).read_bytes(), None)
    path = folder / "encrypted.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    return options | {TLS.keyfile.name: str(path)}


@pytest.mark.parametrize("secret", ["secret", b"secret"])
def test_an_encrypted_key_is_opened_with_what_the_password_function_returns(tmp_path: Path, secret: Any) -> None:
    options = encrypted(tmp_path, write_certificate(tmp_path, server_certificate(), "server"))
    dialed, _ = shake_hands(options | {TLS.password.name: lambda: secret}, dial_options())
    assert dialed["tls_version"]


def test_an_encrypted_key_without_its_password_asks_nobody(tmp_path: Path) -> None:
    options = encrypted(tmp_path, write_certificate(tmp_path, server_certificate(), "server"))
    with pytest.raises(BadFile, match="encrypted"):
        server_side(options)
    with pytest.raises(BadFile, match="password"):
        server_side(options | {TLS.password: lambda: "wrong"})
    for useless in (None, "x" * 2000):
        with pytest.raises(BadFile, match="password"):
            server_side(options | {TLS.password: lambda useless=useless: useless})
    with pytest.raises(BadOptionValue, match="function"):
        Options({TLS.password: "secret"})


def test_a_key_without_a_certificate_is_half_of_what_is_needed(tmp_path: Path) -> None:
    options = write_certificate(tmp_path, server_certificate(), "server")
    del options[TLS.certfile.name]
    for make in (client_side, server_side):
        with pytest.raises(BadOptionValue, match="transport.tls.certfile"):
            make(options)


def test_mutual_tls_needs_its_own_authorities(tmp_path: Path) -> None:
    options = write_certificate(tmp_path, server_certificate(), "server")
    with pytest.raises(BadOptionValue, match="transport.tls.cafile"):
        server_side(options | {TLS.verify: True})


def test_only_insecure_turns_verification_off(tmp_path: Path) -> None:
    with pytest.raises(BadOptionValue, match="transport.tls.insecure"):
        client_side({TLS.verify: False})
    with pytest.raises(BadOptionValue, match="transport.tls.verify"):
        client_side({TLS.verify: True, TLS.insecure: True})
    unknown = listen_options(other_authority().issue_cert("example.org"))
    for allowed in ({TLS.insecure.name: True}, {TLS.insecure.name: True, TLS.verify.name: False}):
        dialed, _ = shake_hands(unknown, allowed)
        assert dialed["certificate"] == {}, "what was not verified is not shown"


@pytest.mark.parametrize(
    ("side", "options", "match"),
    [
        (client_side, {TLS.context: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "PROTOCOL_TLS_SERVER"),
        (client_side, {TLS.context: ssl._create_unverified_context()}, "transport.tls.insecure"),
        (server_side, {TLS.context: ssl.create_default_context()}, "PROTOCOL_TLS_CLIENT"),
        (server_side, {TLS.context: server_context(), TLS.verify: True}, "CERT_REQUIRED"),
    ],
    ids=["a listener's to dial", "one that does not verify", "a dialer's to listen", "one that asks for nothing"],
)
def test_a_context_must_do_what_its_side_needs(side: Any, options: dict[Any, Any], match: str) -> None:
    with pytest.raises(BadOptionValue, match=match):
        side(options)


def test_an_unverifying_context_is_insecure_and_has_to_be_called_so() -> None:
    insecure = {TLS.context.name: ssl._create_unverified_context(), TLS.insecure.name: True}
    dialed, _ = shake_hands(listen_options(other_authority().issue_cert("example.org")), insecure)
    assert dialed["tls_version"]


@pytest.mark.parametrize("value", ["a context", 1, object()])
def test_a_context_is_an_ssl_context(value: Any) -> None:
    with pytest.raises(BadOptionValue, match="SSLContext"):
        Options({TLS.context: value})


def test_verify_in_an_address_is_true_or_false() -> None:
    assert TLS.verify.parse("yes") is True
    with pytest.raises(BadOptionValue, match="true or false"):
        TLS.verify.parse("maybe")


# Names


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("localhost.", "localhost"),
        ("fe80::1%lo", "fe80::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_is_looked_for_as_certificates_have_it(host: str, name: str) -> None:
    assert client_side({}, host)._server_hostname == name


@pytest.mark.parametrize("host", [".local", ".", "ü" * 64 + ".example", "a\tb"])
def test_a_host_that_no_certificate_can_have_is_an_address_error(host: str) -> None:
    with pytest.raises(AddressError):
        client_side({}, host)


def test_ipv6_addresses_are_verified_too() -> None:
    with Socket() as server, Socket() as client:
        listener = server.listen("tls+tcp://[::1]:0", listen_options())
        client.dial(listener.address, dial_options())
        server.wait_pipes(1, timeout=5)
        with pytest.raises(HostnameMismatch):
            client.dial(listener.address, dial_options() | {TLS.server_hostname.name: "::2"})


# Errors


def test_every_tls_error_is_a_failed_handshake_and_connection() -> None:
    for kind in (BadCertificate, CertificateRefused, CertificateRequired):
        assert issubclass(kind, TLSError)
    assert issubclass(TLSError, HandshakeFailed) and issubclass(TLSError, ConnectionFailed)


def test_every_verification_error_has_words() -> None:
    with every_case() as case:
        for code in range(100):
            with case(f"code {code}"):
                error = ssl.SSLCertVerificationError("text")
                error.verify_code, error.verify_message = code, "openssl says"
                explained = explain(error, "tls+tcp://a:1")
                assert isinstance(explained, BadCertificate)
                assert "openssl says" in str(explained)


def test_an_error_that_has_no_name_keeps_openssls() -> None:
    error = ssl.SSLError(1, "[SSL: SOMETHING_NEW] something new (_ssl.c:1)")
    error.reason = "SOMETHING_NEW"
    assert explain(error, "a").why == "TLS failed: something new"
    error.reason = None  # type: ignore[assignment]
    assert "something new" in explain(error, "a").why
