"""Transports and the registry in which an address' scheme finds its transport.

``tcp``, ``tls+tcp``, ``ws``, ``wss``, ``ipc`` and ``inproc`` are built in and imported when first used. Other
people's are found by :func:`register`, or by an entry point in the group ``gmultisocket.transports`` whose name is the
scheme and whose object is a :class:`Transport` or a class of one.
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

#: Scheme -> module of this package that holds the transport, as its ``TRANSPORT``.
_BUILT_IN = {
    "tcp": "tcp",
    "tls+tcp": "tls",
    "tls": "tls",
    "ws": "ws",
    "ws.sr": "ws",
    "ws.rw": "ws",
    "wss": "ws",
    "ipc": "ipc",
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
    """Make a transport known under its schemes.

    Args:
        transport: any number of sockets may use it at once.
        replace: take over schemes that are taken; without it that is an error.

    Raises:
        ValueError: it has no scheme, or one is taken.
    """
    if not transport.schemes:
        raise ValueError(f"{transport!r} names no scheme: set its 'schemes'")
    for scheme in transport.schemes:
        if not replace and (scheme in _found or scheme in _BUILT_IN):
            raise ValueError(f"the scheme {scheme!r} is taken: pass replace=True to take it over")
    for scheme in transport.schemes:
        _found[scheme] = transport


def unregister(transport: Transport) -> None:
    """Forget a transport that :func:`register` made known; sockets that use it go on."""
    for scheme in transport.schemes:
        if _found.get(scheme) is transport:
            del _found[scheme]


def schemes() -> list[str]:
    """Return every scheme that is known without looking at entry points, sorted."""
    return sorted(_found.keys() | _BUILT_IN.keys())


def find(scheme: str, address: object = "") -> Transport:
    """Return the transport for a scheme.

    Args:
        scheme: what stands before ``://``.
        address: the whole address, for the error.

    Raises:
        UnknownTransport: nobody registered one.
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
