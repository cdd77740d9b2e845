"""TLS settings: makes an ``ssl.SSLContext`` from options, and translates the errors of OpenSSL.

``dial()`` and ``listen()`` make a :class:`ClientSide` or :class:`ServerSide`, which reads the files once. It then wraps
sockets for tls+tcp and wss. TLS connections are in ``tls.py``.

The contexts are made by ``ssl.create_default_context``, which verifies certificates and host names. TLS 1.2 is the
oldest version, with ciphers that encrypt and authenticate in one step (no CBC), and renegotiation is off. A program
that needs other settings, or new certificates without a restart, sets its own context; it may call ``load_cert_chain``
of that context again at any time.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Callable
from typing import Any, cast

from gevent import socket as gsocket
from gevent.ssl import SSLSocket

from .. import options as opts
from ..address import Address
from ..errors import (
    AddressError,
    BadCertificate,
    BadFile,
    BadOptionValue,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRefused,
    CertificateRequired,
    HostnameMismatch,
    NotTLS,
    TLSError,
    UntrustedCertificate,
)
from ..options import Option, Options
from .stream import describe_os_error

__all__ = ["ClientSide", "ServerSide", "explain"]

_tls = opts.transport.tls

#: In characters. OpenSSL allows 1024 bytes, and a character may have four.
_LONGEST_PASSWORD = 255
#: Errors of a file that can be opened at another time.
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class ClientSide:
    """The dialing side of TLS.

    Args:
        address: the dialed address.
        host: its host, which the certificate must contain.
        options: ``transport.tls.*``.

    Raises:
        BadOptionValue, BadFile: the options are wrong or do not fit together.
        AddressError: the host is not a name that a certificate can contain.
    """

    __slots__ = ("_context", "_kind", "_options", "_server_hostname")

    def __init__(self, address: Address, host: str, options: Options) -> None:
        self._options = options
        #: None if no descriptor was free for the system's authorities; the next attempt tries again.
        self._context: ssl.SSLContext | None = None
        try:
            self._context = _client_context(options)
        except _NoDescriptor:
            pass
        has_certificate = options.get(_tls.context) is not None or options.get(_tls.certfile)
        self._kind = _Socket if has_certificate else _SocketWithoutCertificate
        self._server_hostname = _certificate_name(options.get(_tls.server_hostname) or host, address)

    def wrap(self, sock: gsocket.socket) -> SSLSocket:
        """Return a TLS socket that takes over a connected socket, before the handshake. Does not block.

        Raises:
            OSError: the peer has already disconnected, or the system's authorities cannot be read now. The socket is
                then closed.
        """
        if self._context is None:
            try:
                self._context = _client_context(self._options)
            except BaseException:
                sock.close()
                raise
        return _wrap(self._kind, sock, self._context, server_side=False, server_hostname=self._server_hostname)


class ServerSide:
    """The listening side of TLS.

    Args:
        options: ``transport.tls.*``.

    Raises:
        BadOptionValue, BadFile: the options are wrong or do not fit together; for example there is no certificate.
    """

    __slots__ = ("_context",)

    def __init__(self, options: Options) -> None:
        self._context = _server_context(options)

    def wrap(self, sock: gsocket.socket) -> SSLSocket:
        """Return a TLS socket that takes over an accepted socket, before the handshake. Does not block.

        Raises:
            OSError: the peer has already disconnected. The socket is then closed.
        """
        return _wrap(_Socket, sock, self._context, server_side=True, server_hostname=None)


class _Socket(SSLSocket):
    """gevent's TLS socket. Closes itself if its constructor fails after the peer has disconnected; gevent does not."""

    def __init__(self, sock: gsocket.socket, **arguments: Any) -> None:
        try:
            super().__init__(sock, **arguments)
        except OSError:
            if sock.fileno() < 0:
                # It has taken over the descriptor.
                self.close()
            raise


class _SocketWithoutCertificate(_Socket):
    """The same, if it is sure that this side has no certificate."""


def _wrap(
    kind: type[_Socket],
    sock: gsocket.socket,
    context: ssl.SSLContext,
    server_side: bool,
    server_hostname: str | None,
) -> SSLSocket:
    try:
        # Raises if the peer has disconnected. It may still disconnect before the next line, which also checks it.
        sock.getpeername()
        # Not context.wrap_socket(): with a context of the standard library it makes sockets that block the event loop.
        wrapped = kind(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            _context=context,
        )
    except OSError as error:
        sock.close()
        raise ConnectionResetError(errno.ECONNRESET, "the peer disconnected before the TLS handshake") from error
    if cast(Any, wrapped)._sslobj is None:
        wrapped.close()
        raise ConnectionResetError(errno.ECONNRESET, "the peer disconnected before the TLS handshake")
    return wrapped


# From options to contexts


def _client_context(options: Options) -> ssl.SSLContext:
    insecure = options.get(_tls.insecure)
    _check_verify(options.get(_tls.verify), insecure)
    context: ssl.SSLContext | None = options.get(_tls.context)
    if context is not None:
        if context.protocol == ssl.PROTOCOL_TLS_SERVER:
            raise BadOptionValue(_tls.context.name, context, "a context that can dial, not of PROTOCOL_TLS_SERVER")
        if context.verify_mode == ssl.CERT_NONE and not insecure:
            why = "a context that verifies certificates, or transport.tls.insecure set as well"
            raise BadOptionValue(_tls.context.name, context, why)
        return context
    context = _trusting_context(options, insecure)
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.get(_tls.certfile) or options.get(_tls.keyfile):
        _load_certificate(context, options)
    return _hardened(context)


def _check_verify(verify: bool | None, insecure: bool) -> None:
    """Refuse ambiguous combinations, of which one meaning would leave a dialer without protection."""
    if verify is False and not insecure:
        why = "true for a dialer: only transport.tls.insecure turns verification off"
        raise BadOptionValue(_tls.verify.name, verify, why)
    if verify and insecure:
        raise BadOptionValue(_tls.insecure.name, insecure, "false if transport.tls.verify is true")


def _server_context(options: Options) -> ssl.SSLContext:
    context: ssl.SSLContext | None = options.get(_tls.context)
    verify = options.get(_tls.verify)
    if context is not None:
        if context.protocol == ssl.PROTOCOL_TLS_CLIENT:
            raise BadOptionValue(_tls.context.name, context, "a context that can listen, not of PROTOCOL_TLS_CLIENT")
        if verify and context.verify_mode != ssl.CERT_REQUIRED:
            why = "false if the verify_mode of transport.tls.context is not CERT_REQUIRED"
            raise BadOptionValue(_tls.verify.name, verify, why)
        return context
    if not options.get(_tls.certfile):
        why = "a PEM file: a TLS listener needs a certificate, or a transport.tls.context that has one"
        raise BadOptionValue(_tls.certfile.name, "", why)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load_certificate(context, options)
    authorities = options.get(_tls.cafile)
    if verify and not authorities:
        # Not the system's authorities: every web site has a certificate of one of those.
        why = "a PEM file with the authorities of the certificates that peers must have"
        raise BadOptionValue(_tls.cafile.name, "", why)
    if authorities and verify is not False:
        _load_authorities(context, options)
        context.verify_mode = ssl.CERT_REQUIRED
    return _hardened(context)


def _hardened(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Of those that the system allows. With TLS 1.2, CBC ciphers have a record of attacks; TLS 1.3 has none.
    ciphers = [each["name"] for each in cast(Any, context.get_ciphers()) if each["aead"]]
    context.set_ciphers(":".join(ciphers))
    return context


def _load_certificate(context: ssl.SSLContext, options: Options) -> None:
    certfile, keyfile = options.get(_tls.certfile), options.get(_tls.keyfile)
    if not certfile:
        raise BadOptionValue(_tls.certfile.name, "", "the certificate that belongs to transport.tls.keyfile")
    _check_readable(_tls.certfile, certfile)
    if keyfile:
        _check_readable(_tls.keyfile, keyfile)
    try:
        context.load_cert_chain(certfile, keyfile or None, _password(options))
    except ssl.SSLError as error:
        raise _certificate_error(error, certfile, keyfile) from error


def _certificate_error(error: ssl.SSLError, certfile: str, keyfile: str) -> BadFile:
    if error.reason == "KEY_VALUES_MISMATCH":
        if keyfile:
            return BadFile(_tls.keyfile.name, keyfile, f"this key does not belong to the certificate {certfile}")
        return BadFile(_tls.certfile.name, certfile, "the key in it does not belong to its first certificate")
    if keyfile:
        why = f"it contains no PEM key, or the password is wrong, or {certfile} contains no certificate"
        return BadFile(_tls.keyfile.name, keyfile, why)
    why = "it does not contain a PEM certificate and its key, or the password is wrong"
    return BadFile(_tls.certfile.name, certfile, why)


def _password(options: Options) -> Callable[[], str | bytes]:
    """Return a function for OpenSSL that returns the password of the key. Without one OpenSSL asks on the terminal."""
    ask = options.get(_tls.password)
    file = options.get(_tls.keyfile) or options.get(_tls.certfile)

    def password() -> str | bytes:
        if ask is None:
            raise BadFile(_tls.keyfile.name, file, "the key is encrypted, and transport.tls.password is not set")
        answer = ask()
        if not isinstance(answer, (str, bytes)) or len(answer) > _LONGEST_PASSWORD:
            why = f"transport.tls.password did not return a password: a str or bytes of at most {_LONGEST_PASSWORD}"
            raise BadFile(_tls.keyfile.name, file, why)
        return answer

    return password


class _NoDescriptor(OSError):
    """No descriptor or no memory was left for the file with the system's authorities."""


def _trusting_context(options: Options, insecure: bool) -> ssl.SSLContext:
    """Return a dialer's context that trusts the authorities of ``cafile``, or else those of the system.

    The latter are loaded only if they are needed: this takes 30 to 100 ms, during which nothing else runs.
    """
    path = options.get(_tls.cafile)
    if path:
        _check_readable(_tls.cafile, path)
        try:
            # Trusts these instead of the system's, not in addition.
            return ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=path)
        except ssl.SSLError as error:
            raise BadFile(_tls.cafile.name, path, "it contains no PEM certificate") from error
    if insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if keylog := os.environ.get("SSLKEYLOGFILE"):
            # As in create_default_context.
            context.keylog_filename = keylog
        return context
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    file = ssl.get_default_verify_paths().cafile
    if file and not context.cert_store_stats()["x509_ca"]:
        # OpenSSL says nothing of a file that it could not open. This says it.
        try:
            context.load_verify_locations(file)
        except ssl.SSLError:
            # It is empty. There may be a directory of authorities, from which OpenSSL reads when it needs one.
            pass
        except OSError as error:
            if error.errno in _EXHAUSTED:
                why = f"the system's authorities cannot be read: {describe_os_error(error)}"
                raise _NoDescriptor(why) from error
    return context


def _load_authorities(context: ssl.SSLContext, options: Options) -> None:
    path = options.get(_tls.cafile)
    _check_readable(_tls.cafile, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise BadFile(_tls.cafile.name, path, "it contains no PEM certificate") from error


def _check_readable(option: Option[str], path: str) -> None:
    """Raise an error that names the file if it cannot be read. The errors of ssl do not name it."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise BadFile(option.name, path, describe_os_error(error)) from error
    except ValueError as error:
        raise BadFile(option.name, path, str(error)) from error


def _certificate_name(host: str, address: Address) -> str:
    """Return a host as certificates contain it: in ASCII, without an IPv6 zone and without a dot at the end."""
    name = host.partition("%")[0].removesuffix(".")
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise AddressError(address.text, f"the host is not a name that a certificate can contain: {error}") from error
    if not ascii_name or ascii_name.startswith(".") or not ascii_name.isprintable():
        raise AddressError(address.text, "the host is not a name that a certificate can contain")
    return ascii_name


# From errors of OpenSSL to errors of this library

#: X509_V_ERR_* of a verification that failed on this side -> the error class, and the text for people.
_VERIFY_ERRORS: dict[int, tuple[type[BadCertificate], str]] = {
    9: (CertificateNotYetValid, "the peer's certificate is not valid yet"),
    10: (CertificateExpired, "the peer's certificate has expired"),
    62: (HostnameMismatch, "the peer's certificate is for another host"),
    64: (HostnameMismatch, "the peer's certificate is for another IP address"),
}
#: No issuer found, self-signed, or an untrusted root.
_UNTRUSTED = {2, 18, 19, 20, 21, 27}
#: Extensions that are missing or wrong in the certificate or its authority. Checked only with VERIFY_X509_STRICT.
_NOT_STRICT = range(79, 94)

#: Alerts of a peer that refuses this side's certificate -> what they mean.
_REFUSALS = {
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust the authority",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is bad",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for this purpose",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it was not accepted",
    "TLSV1_ALERT_ACCESS_DENIED": "it may not connect",
    "TLSV1_ALERT_DECRYPT_ERROR": "its signature is wrong",
}
#: Errors of OpenSSL about the first bytes of peers that do not speak TLS.
_NOT_TLS = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "HTTPS_PROXY_REQUEST",
    "UNKNOWN_PROTOCOL",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_TOO_SMALL",
    "BAD_RECORD_TYPE",
    "UNEXPECTED_RECORD",
    "BAD_PACKET_LENGTH",
}
_OTHERS = {
    "NO_SHARED_CIPHER": "no cipher is common to both sides; does this side's context have a certificate?",
    "UNSUPPORTED_PROTOCOL": "no TLS version is common to both sides",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no TLS version is common to both sides",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer refused: no common cipher, or it requires a certificate",
}


def explain(error: OSError, address: str, dialed: SSLSocket | None = None) -> TLSError:
    """Return the library's error for an error of ``ssl``.

    Args:
        error: an ``SSLError``, or another OSError of a TLS connection.
        address: the peer, for people.
        dialed: the socket, if the error ended the handshake of the dialing side.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _explain_verification(error, address)
    if not isinstance(error, ssl.SSLError):
        return TLSError(address, describe_os_error(error))
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        if dialed is not None:
            return NotTLS(address, "the peer closed the connection instead of answering; it may not speak TLS")
        return TLSError(address, "the peer closed the connection")
    reason = error.reason or ""
    if reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED" or (dialed is not None and _lacks_certificate(reason, dialed)):
        return CertificateRequired(address, "the peer requires a certificate of this side")
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return CertificateRequired(address, "the peer has sent no certificate")
    if reason in _REFUSALS:
        return CertificateRefused(address, f"the peer refused this side's certificate: {_REFUSALS[reason]}")
    if reason in _NOT_TLS:
        return NotTLS(address, "the peer does not speak TLS")
    return TLSError(address, _OTHERS.get(reason) or f"TLS failed: {reason.lower().replace('_', ' ') or error}")


def _lacks_certificate(reason: str, dialed: SSLSocket) -> bool:
    """Return whether a listener refused the handshake of a dialer because it sent no certificate.

    TLS 1.2 has no alert for that. A listener sends the general one after it has chosen a cipher, or calls the empty
    certificate a bad one.
    """
    if reason == "SSLV3_ALERT_HANDSHAKE_FAILURE":
        return dialed.cipher() is not None
    return reason == "SSLV3_ALERT_BAD_CERTIFICATE" and isinstance(dialed, _SocketWithoutCertificate)


def _explain_verification(error: ssl.SSLCertVerificationError, address: str) -> BadCertificate:
    kind, why = _VERIFY_ERRORS.get(error.verify_code, (BadCertificate, "the peer's certificate was not accepted"))
    if error.verify_code in _UNTRUSTED:
        kind, why = UntrustedCertificate, "no authority that is trusted here has issued the peer's certificate"
    if error.verify_code in _NOT_STRICT:
        why = (
            "the peer's certificate, or that of its authority, breaks a rule of RFC 5280, which Python 3.13 and later "
            "check: make both again with all extensions, see 'A private authority' in the documentation of TLS; or set "
            "transport.tls.context to a context without ssl.VERIFY_X509_STRICT"
        )
    return kind(address, f"{why} ({error.verify_message.rstrip('.')})")
