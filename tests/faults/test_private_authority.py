"""Certificates of a private authority that lack extensions: Python 3.13 refuses them, and the error says what to do."""

from __future__ import annotations

import ipaddress
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gmultisocket import Socket
from gmultisocket.errors import BadCertificate
from tests.faults.process import ROOT

LACKS = {
    "key usage of the authority": {"ca_key_usage": False},
    "authority key identifier": {"aki": False},
    "critical basic constraints": {"critical": False},
}


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def make(folder: Path, *, ca_key_usage: bool = True, aki: bool = True, critical: bool = True) -> dict[str, str]:
    """Write an authority and a certificate for 127.0.0.1, and return their files."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def builder(subject: str, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("Our authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    ca = builder("Our authority", ca_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=critical)
    if ca_key_usage:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        ca = ca.add_extension(usage, critical=True)
    leaf = builder("server", key.public_key()).add_extension(
        x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
    )
    if aki:
        leaf = leaf.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
    pem = serialization.Encoding.PEM
    secret = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    files = {"ca": ca.sign(ca_key, hashes.SHA256()).public_bytes(pem)}
    files["server"] = leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem) + key.private_bytes(pem, *secret)
    for each, data in files.items():
        (folder / f"{each}.pem").write_bytes(data)
    return {each: str(folder / f"{each}.pem") for each in files}


def strict(cafile: str) -> ssl.SSLContext:
    """Return a context as Python 3.13 makes it."""
    context = ssl.create_default_context(cafile=cafile)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


@pytest.mark.parametrize("scheme", ["tls+tcp", "wss"])
@pytest.mark.parametrize("what", LACKS)
def test_a_certificate_without_the_extensions_is_refused_with_the_reason_and_the_way_out(
    what: str, scheme: str, tmp_path: Path
) -> None:
    files = make(tmp_path, **LACKS[what])
    with Socket() as server, Socket() as client:
        address = server.listen(f"{scheme}://127.0.0.1:0", {"transport.tls.certfile": files["server"]}).address
        options: list[dict[str, Any]] = [{"transport.tls.context": strict(files["ca"])}]
        if sys.version_info >= (3, 13):
            options.append({"transport.tls.cafile": files["ca"]})
        for each in options:
            with pytest.raises(BadCertificate, match="RFC 5280.*Python 3.13.*A private authority.*VERIFY_X509_STRICT"):
                client.dial(address, each)
        # The way out that the error names.
        context = strict(files["ca"])
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        client.dial(address, {"transport.tls.context": context})
        client.send(b"hello")
        assert server.recv(timeout=20) == b"hello"


def test_the_commands_of_the_page_make_certificates_that_are_accepted(tmp_path: Path) -> None:
    page = (ROOT / "docs/tls.rst").read_text()
    section = page.partition("\nA private authority\n")[2].partition("\n\nWhen it does not work\n")[0]
    shell = section.partition("code-block:: shell")[2].partition("\n\n    ")[2].partition("\n\nIf")[0]
    commands = [line.removeprefix("    ") for line in shell.splitlines()]
    script = "set -e\n" + "\n".join(commands).replace("feed.example.org", "localhost")
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    if done.returncode == 127:
        pytest.skip("openssl is not installed")
    assert done.returncode == 0, done.stderr
    with Socket() as server, Socket() as client:
        files = {"transport.tls.certfile": "server.pem", "transport.tls.keyfile": "server.key"}
        options = {option: f"{tmp_path}/{file}" for option, file in files.items()}
        address = server.listen("tls+tcp://127.0.0.1:0", options).address
        context = strict(f"{tmp_path}/ca.pem")
        client.dial(address, {"transport.tls.context": context, "transport.tls.server_hostname": "localhost"})
        client.send(b"hello")
        assert server.recv(timeout=20) == b"hello"
