"""Transports, and the registry that finds the transport of an address by its scheme.

``tcp``, ``tls+tcp``, ``ws``, ``wss``, ``ipc``, ``inproc`` and ``fd`` are built in and imported when they are first
used. Other transports are added by :func:`register`, or by an entry point in the group ``gmultisocket.transports``
whose name is the scheme and whose object is a :class:`Transport` or a subclass of it.
"""

from __future__ import annotations

from importlib import import_module

from ..errors import UnknownTransport
from .base import (
    Connection,
    MessageConnection,
    PacketCodec,
    PacketConnection,
    StreamConnection,
    Transport,
    TransportDialer,
    TransportListener,
)

__all__ = [
    "Connection",
    "MessageConnection",
    "PacketCodec",
    "PacketConnection",
    "StreamConnection",
    "Transport",
    "TransportDialer",
    "TransportListener",
    "find",
    "register",
    "schemes",
    "unregister",
]

#: Scheme -> module of this package whose ``TRANSPORT`` is the transport.
_BUILT_IN = {
    "tcp": "tcp",
    "tls+tcp": "tls",
    "tls": "tls",
    "ws": "ws",
    "ws.sr": "ws",
    "ws.rw": "ws",
    "wss": "ws",
    "ipc": "ipc",
    "fd": "inherited",
    "tls+fd": "inherited",
    "ws+fd": "ws",
    "wss+fd": "ws",
    "inproc": "inproc",
    "inproc.channel": "inproc",
    "inproc.channel.msr": "inproc",
    "inproc.channel.sr": "inproc",
    "inproc.channel.rw": "inproc",
    "inproc.iopipe": "inproc",
    "inproc.netpipe": "inproc",
}
_GROUP = "gmultisocket.transports"
_found: dict[str, Transport] = {}


def register(transport: Transport, *, replace: bool = False) -> None:
    """Register a transport for its schemes.

    Args:
        transport: the transport; many sockets may use it at the same time.
        replace: replace the transports that have the schemes now. Otherwise that is an error.

    Raises:
        ValueError: the transport has no scheme, or another transport has one of its schemes.
    """
    if not transport.schemes:
        raise ValueError(f"{transport!r} names no scheme: set its 'schemes'")
    for scheme in transport.schemes:
        if not replace and (scheme in _found or scheme in _BUILT_IN):
            raise ValueError(f"the scheme {scheme!r} is taken: pass replace=True to take it over")
    for scheme in transport.schemes:
        _found[scheme] = transport


def unregister(transport: Transport) -> None:
    """Undo :func:`register`. Sockets that use the transport already keep it."""
    for scheme in transport.schemes:
        if _found.get(scheme) is transport:
            del _found[scheme]


def schemes() -> list[str]:
    """Return all known schemes, except those of entry points that were not used yet, sorted."""
    return sorted(_found.keys() | _BUILT_IN.keys())


def find(scheme: str, address: object = "") -> Transport:
    """Return the transport for a scheme.

    Args:
        scheme: the text before ``://``.
        address: the whole address, for the error.

    Raises:
        UnknownTransport: no transport has the scheme.
    """
    transport = _found.get(scheme)
    if transport is not None:
        return transport
    if scheme in _BUILT_IN:
        transport = import_module(f".{_BUILT_IN[scheme]}", __name__).TRANSPORT
    else:
        transport = _from_entry_point(scheme)
    if transport is None:
        known = ", ".join(schemes())
        raise UnknownTransport(str(address or scheme), f"no transport has the scheme {scheme!r}; known: {known}")
    _found[scheme] = transport
    return transport


def _from_entry_point(scheme: str) -> Transport | None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=_GROUP, name=scheme):
        loaded = entry.load()
        transport: Transport = loaded() if isinstance(loaded, type) else loaded
        return transport
    return None
