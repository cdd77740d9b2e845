"""Certificates for tests: authorities that trustme makes, certificates of them, and contexts and files that hold those.

An authority takes milliseconds to make, so those that many tests need are made once, when first asked for.
"""

from __future__ import annotations

import datetime
import ssl
from functools import cache
from pathlib import Path
from typing import Any

import trustme

from gmultisocket import options as opts

TLS = opts.transport.tls
#: What the listeners of tests are called.
HOST = "127.0.0.1"

_DAY = datetime.timedelta(days=1)


@cache
def authority() -> trustme.CA:
    """Return the authority that tests trust."""
    return trustme.CA()


@cache
def other_authority() -> trustme.CA:
    """Return one that they do not."""
    return trustme.CA()


@cache
def server_certificate() -> trustme.LeafCert:
    """Return the certificate of a listener on loopback."""
    return authority().issue_cert(HOST, "localhost", "::1")


@cache
def client_certificate() -> trustme.LeafCert:
    """Return the certificate of a dialer."""
    return authority().issue_cert("dialer@example.org", common_name="a dialer")


def expired_certificate() -> trustme.LeafCert:
    """Return one for loopback whose time is over."""
    return authority().issue_cert(HOST, not_before=_now() - 2 * _DAY, not_after=_now() - _DAY)


def future_certificate() -> trustme.LeafCert:
    """Return one for loopback whose time has not come."""
    return authority().issue_cert(HOST, not_before=_now() + _DAY, not_after=_now() + 2 * _DAY)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# Contexts, for tests that need no files


def server_context(certificate: trustme.LeafCert | None = None, mutual: bool = False) -> ssl.SSLContext:
    """Return a listener's context; with ``mutual`` it wants certificates of the authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (certificate or server_certificate()).configure_cert(context)
    if mutual:
        authority().configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Return the context of a dialer that trusts the authority, and has a certificate where one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority().configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context


def listen_options(certificate: trustme.LeafCert | None = None, mutual: bool = False) -> dict[str, Any]:
    """Return what a listener needs."""
    return {TLS.context.name: server_context(certificate, mutual)}


def dial_options(certificate: trustme.LeafCert | None = None) -> dict[str, Any]:
    """Return what a dialer needs."""
    return {TLS.context.name: client_context(certificate)}


# Files


def write_certificate(folder: Path, certificate: trustme.LeafCert, name: str) -> dict[str, Any]:
    """Write a certificate and its key, and return the options that name them."""
    certfile, keyfile = folder / f"{name}.pem", folder / f"{name}.key"
    certfile.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(keyfile))
    return {TLS.certfile.name: str(certfile), TLS.keyfile.name: str(keyfile)}


def write_authority(folder: Path, ca: trustme.CA | None = None, name: str = "ca") -> dict[str, Any]:
    """Write an authority's certificate, and return the option that names it."""
    path = folder / f"{name}.pem"
    (ca or authority()).cert_pem.write_to_path(str(path))
    return {TLS.cafile.name: str(path)}


def listen_query(folder: Path) -> str:
    """Write the listener's certificate, and return the options of an address that name it."""
    files = write_certificate(folder, server_certificate(), "server")
    return "&".join(f"{name}={path}" for name, path in files.items())
