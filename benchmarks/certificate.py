"""A certificate for the rows over TLS: made for one run, in a folder that goes with it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_certificate"]


def write_certificate(file: Path) -> None:
    """Write a certificate for 127.0.0.1, its key, and the authority behind it: one file has all that both sides need.

    Raises:
        ImportError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    file.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
