"""Addresses: ``scheme://location?option=value#dial``.

This module parses addresses and the options in them. The meaning of a location belongs to the transport of its scheme;
:func:`split_host_port` is for all transports that need a host and a port. No I/O, no name lookup.

The location is not percent-decoded, so a path or name is used exactly as it is written; it may contain spaces. A path
with a "?" or "#" cannot be written in an address: pass ``Address("ipc", path)``. Values of options are percent-decoded.

Source: Go ``address/address.go``, which parses with net/url and therefore refuses or changes some ipc paths, and
silently drops user names and passwords; here they are refused, and never repeated in an error message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from .errors import AddressError, hide_values
from .frozen import Frozen
from .options import OptionValues, lookup

__all__ = ["Address", "Connectable", "redact", "split_host_port"]

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*)://"
#: Any host and port, also a wrong one. A text that does not match may be a password that contains a "/".
_AUTHORITY = r"(\[[^\]]*\]|[^:\[\]]*)(:[0-9]+)?"
#: A zone as URLs have it (RFC 6874), and so the Go code. "%25" and a number can be an interface's number.
_ZONE_IN_URL = "%25(.*[^0-9].*)"
_BRACKETED = r"\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?)\](?::(.*))?"

DialT = TypeVar("DialT", covariant=True)
ListenT = TypeVar("ListenT", covariant=True)


class Connectable(Protocol[DialT, ListenT]):
    """An object that can dial and listen: a socket or a protocol."""

    def dial(self, address: Address, options: OptionValues | None = None, /) -> DialT:
        """Connect to the address."""

    def listen(self, address: Address, options: OptionValues | None = None, /) -> ListenT:
        """Accept connections at the address."""


class Address(Frozen):
    """A parsed address. Made by :meth:`parse`. Immutable; :meth:`replaced` returns a changed copy.

    Two addresses are equal if their parts are equal, even if their texts differ.

    Attributes:
        scheme: the transport's name in lower case: ``"tcp"``.
        location: the text between "://" and "?" or "#": ``"127.0.0.1:80"``, ``"/tmp/x.sock"``, ``"@abstract"``.
        connect_type: ``"dial"``, ``"listen"`` or "".
        options: the values that the address sets, by option name.
        text: the whole address as it was written.
    """

    __slots__ = ("connect_type", "location", "options", "scheme", "text")

    def __init__(
        self,
        scheme: str,
        location: str,
        connect_type: str = "",
        options: Mapping[str, Any] | None = None,
        text: str = "",
    ) -> None:
        self.scheme = scheme
        self.location = location
        self.connect_type = connect_type
        self.options: dict[str, Any] = dict(options or {})
        self.text = text or self.bare

    def __repr__(self) -> str:
        secret = any(lookup(name).secret for name in self.options)
        return f"Address({hide_values(self.text) if secret else self.text!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Address):
            return NotImplemented
        return self._meaning() == other._meaning() and self.options == other.options

    def __hash__(self) -> int:
        return hash(self._meaning())

    def _meaning(self) -> tuple[str, str, str]:
        return self.scheme, self.location, self.connect_type

    def __str__(self) -> str:
        return self.text

    @property
    def bare(self) -> str:
        """The address without options and connect type: ``"tcp://127.0.0.1:80"``."""
        return f"{self.scheme}://{self.location}"

    @classmethod
    def parse(cls, text: str | Address) -> Address:
        """Parse an address and the options in it.

        Raises:
            AddressError: the text is not an address; the error says why.
            UnknownOption: the address sets an option that is not defined.
            BadOptionValue: the address sets an option to a wrong value.
        """
        if isinstance(text, Address):
            return text
        shown, scheme, rest = _split_scheme(text)
        rest, _, connect_type = rest.partition("#")
        location, _, query = rest.partition("?")
        if not location:
            raise AddressError(shown, 'nothing follows "://": expected a host and port, a path or a name')
        if connect_type not in ("", "dial", "listen"):
            raise AddressError(shown, 'the connect type after "#" is wrong: expected #dial or #listen')
        return cls(scheme, location, connect_type, _parse_query(query, shown), text)

    def with_location(self, location: str) -> Address:
        """Return this address with another location, for example with the real port of a listener."""
        rest = self.text[len(self.bare) :]
        return self.replaced(self.scheme, location, f"{self.scheme}://{location}{rest}")

    def replaced(self, scheme: str, location: str, text: str = "") -> Address:
        """Return an address with another scheme and location, and the same connect type and options."""
        return Address(scheme, location, self.connect_type, self.options, text)

    def merged(self, options: OptionValues | None = None) -> dict[str, Any]:
        """Return the options of this address by name, overridden by ``options``.

        Raises:
            UnknownOption: ``options`` contains a name that is not defined.
            BadOptionValue: ``options`` contains a wrong value.
        """
        given = ((lookup(name), value) for name, value in (options or {}).items())
        return self.options | {option.name: option.validate(value) for option, value in given}

    def connect(self, sock: Connectable[DialT, ListenT], options: OptionValues | None = None) -> DialT | ListenT:
        """Dial or listen, as the connect type says, and return the dialer or listener. Blocks as those calls do.

        Args:
            sock: the socket or protocol that dials or listens.
            options: override the options of the address.

        Raises:
            AddressError: the address has no connect type.
            MultiSocketError: as ``dial`` and ``listen`` raise it.
        """
        if self.connect_type == "dial":
            return sock.dial(self, self.merged(options))
        if self.connect_type == "listen":
            return sock.listen(self, self.merged(options))
        raise AddressError(self.text, "the connect type is missing: expected #dial or #listen at the end")


def split_host_port(location: str, address: str | Address) -> tuple[str, int]:
    """Return host and port of a location such as ``"127.0.0.1:80"``, ``"[::1]:0"`` or ``"*:80"``.

    An IPv6 address is returned without its brackets, and with its zone: ``fe80::1%eth0``, also for the
    ``[fe80::1%25eth0]`` of URLs. The host "*" means every interface and is returned as it is: only
    a listener can use it. No other text means every interface, and an empty host is an error.

    Args:
        location: host and port, nothing else.
        address: the whole address, for the error.

    Raises:
        AddressError: host or port is missing or wrong; the error says what would be right.
    """
    shown = redact(str(address))
    if location.startswith("["):
        match = re.fullmatch(_BRACKETED, location)
        if match is None:
            raise AddressError(shown, "expected an IPv6 address in brackets and a port, like [::1]:80")
        host, port = re.sub(_ZONE_IN_URL, r"%\1", match.group(1)), match.group(2)
    else:
        host, colon, port = location.rpartition(":")
        if not colon:
            host, port = location, None
        if ":" in host:
            raise AddressError(shown, "an IPv6 address needs brackets, like [::1]:80")
    if port is None or port == "":
        raise AddressError(shown, "the port is missing: expected host:port (with port 0 the system chooses a free one)")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise AddressError(shown, "the port must be a number from 0 to 65535, and nothing may follow it")
    if not host:
        raise AddressError(shown, 'the host is missing: expected host:port ("*" for every interface)')
    if not re.fullmatch(r"[^/@?#\[\]*]+|\*", host):
        raise AddressError(shown, "the host must be a name or an IP address, or * alone for every interface")
    return host, int(port)


def _split_scheme(text: object) -> tuple[str, str, str]:
    """Return the address without a password, for errors; the scheme; and the text after "://".

    Raises:
        AddressError: it has no scheme, a user name, a password, white space or a control character.
    """
    if not isinstance(text, str):
        raise AddressError(type(text).__name__, "an address is a str, like tcp://127.0.0.1:5555")
    match = re.match(_SCHEME, text)
    if match is None:
        why = "the scheme before :// is missing or wrong" if "://" in text else 'there is no "://" in it'
        raise AddressError(redact(text), f"{why}: expected an address like tcp://127.0.0.1:5555")
    scheme, rest = match.group(1).lower(), text[match.end() :]
    if _has_credentials(scheme, rest):
        raise AddressError(redact(text), "a user name or password does not belong in an address")
    # Paths and names of ipc and inproc may contain "@". With other schemes it is safer to hide the text before one.
    shown = text if _is_name(scheme) else redact(text)
    has_space = text != text.strip() or " " in (rest.partition("?")[2] if _is_name(scheme) else text)
    if has_space or not text.isprintable():
        raise AddressError(shown, "it contains white space or a control character")
    return shown, scheme, rest


def _is_name(scheme: str) -> bool:
    """Return whether the locations of a scheme are paths or names, which have no host and so no user name."""
    return scheme == "ipc" or scheme.partition(".")[0] == "inproc"


def _has_credentials(scheme: str, rest: str) -> bool:
    """Return whether the text contains ``user:password@`` or ``user@``. In doubt it does: a log must not show it."""
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if _is_name(scheme):
        return ":" in user
    if at:
        return user != ""
    # A password may contain a plain "/", "?" or "#". Then the text before that character is not a host and port.
    return "@" in rest and not re.fullmatch(_AUTHORITY, authority)


def redact(text: str) -> str:
    """Return an address with the text before the last "@" replaced, as that may be a password."""
    match = re.match(_SCHEME, text)
    scheme = match.group() if match else ""
    before, at, after = text[len(scheme) :].rpartition("@")
    return f"{scheme}***@{after}" if before else f"{scheme}{at}{after}"


def _parse_query(query: str, shown: str) -> dict[str, Any]:
    """Return the options of a query by name."""
    values: dict[str, Any] = {}
    for pair in query.split("&"):
        if not pair:
            continue
        key, _, text = pair.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", key):
            raise AddressError(shown, 'the options after "?" are wrong: expected name=value, joined by "&"')
        option = lookup(key)
        if option.name in values:
            raise AddressError(shown, f"option {option.name} is set twice")
        values[option.name] = option.parse(_percent_decode(text, shown))
    return values


def _percent_decode(text: str, shown: str) -> str:
    if "%" not in text:
        return text
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise AddressError(shown, 'a "%" in a value must be written as %25')
    try:
        decoded = re.sub(b"%(..)", lambda match: bytes.fromhex(match.group(1).decode()), text.encode()).decode()
    except UnicodeDecodeError:
        raise AddressError(shown, "a percent-encoded value is not UTF-8") from None
    if not decoded.isprintable():
        raise AddressError(shown, "a percent-encoded value contains a control character")
    return decoded
