"""A certificate for the rows over TLS. It is made for one run and removed after it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_certificate"]


def write_certificate(file: Path) -> None:
    """Write one file with a certificate for 127.0.0.1, its key, and the authority that signed it, for both sides.

    Raises:
        ImportError: trustme is not installed.
    """
    import trustme

    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    file.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + authority.cert_pem.bytes())
