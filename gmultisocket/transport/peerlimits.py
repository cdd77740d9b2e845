"""How many connections one peer may have, for each address and for each identity; and how fast a listener accepts.

Only connections that were accepted while a limit was set are counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Mapping
from typing import Any, Final

import gevent

from .. import options as opts
from ..errors import PipeRefused
from ..loop.rate import Rate
from ..options import Options

__all__ = ["AcceptPace", "Admission", "PeerLimits", "PeerOverLimit", "address_key", "identity_key"]

#: An IPv6 host has a network of its own, and takes as many addresses from it as it likes.
_IPV6_NETWORK: Final = 64


class PeerOverLimit(PipeRefused):
    """The peer has as many connections as one peer may have. Others are let in."""


def address_key(host: str) -> str:
    """Return what the connections of one host are counted under: its IPv4 address, or its IPv6 /64 network."""
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, _IPV6_NETWORK), strict=False))


def identity_key(identity: Mapping[str, Any]) -> Hashable:
    """Return what the connections of one identity are counted under; None if the peer has none.

    That is its ``user`` (what an ``authorize`` function returned), or the subject of its certificate, or its ``uid``.
    """
    if identity.get("user") is not None:
        return "user", repr(identity["user"])
    certificate = identity.get("certificate")
    if certificate:
        return "certificate", repr(certificate.get("subject"))
    return ("uid", identity["uid"]) if "uid" in identity else None


class Admission:
    """What one connection is counted under."""

    __slots__ = ("_keys", "_limits")

    def __init__(self, limits: PeerLimits) -> None:
        self._limits = limits
        self._keys: list[Hashable] = []

    @property
    def counted(self) -> bool:
        """Whether the connection counts for anything, so that :meth:`leave` must be called when it ends."""
        return bool(self._keys)

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Count the connection for an identity.

        Raises:
            PeerOverLimit: the identity has as many connections as it may.
        """
        limit = self._limits.per_identity
        if limit:
            self._count(identity_key(identity), limit, "this identity has its connector.listener.max_per_identity")

    def _count(self, key: Hashable, limit: int, why: str) -> None:
        if not key:
            return
        counts = self._limits.counts
        if counts.get(key, 0) >= limit:
            raise PeerOverLimit(f"{why} of connections")
        counts[key] = counts.get(key, 0) + 1
        self._keys.append(key)

    def leave(self) -> None:
        """Forget the connection: it has closed. May be repeated."""
        keys, self._keys = self._keys, []
        counts = self._limits.counts
        for key in keys:
            counts[key] -= 1
            if not counts[key]:
                del counts[key]


class PeerLimits:
    """Counts the connections of one listener or port.

    Args:
        options: of the listener.

    Attributes:
        counts: the number of connections by address and by identity.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.counts: dict[Hashable, int] = {}

    @property
    def per_identity(self) -> int:
        """The number of connections that an identity may have, 0 for any number."""
        return self._options.get(opts.connector.listener.max_per_identity)

    def admit(self, host: str) -> Admission:
        """Count a connection that was just accepted.

        Args:
            host: its peer's IP address, "" if it has none.

        Raises:
            PeerOverLimit: the address has as many connections as it may.
        """
        admission = Admission(self)
        limit = self._options.get(opts.connector.listener.max_per_address)
        if limit and host:
            admission._count(address_key(host), limit, "this address has its connector.listener.max_per_address")
        return admission


class AcceptPace:
    """Slows an accept loop down (``connector.listener.accept_rate``)."""

    __slots__ = ("_rate",)

    def __init__(self) -> None:
        self._rate: Rate | None = None

    def wait(self, options: Options) -> None:
        """Block until one more connection may be accepted."""
        per_second = options.get(opts.connector.listener.accept_rate)
        if not per_second:
            self._rate = None
            return
        if self._rate is None or self._rate.per_second != per_second:
            self._rate = Rate(per_second)
        while pause := self._rate.debt:
            gevent.sleep(pause)

    def count(self) -> None:
        """Count a connection that was accepted."""
        if self._rate is not None:
            self._rate.use(1)
