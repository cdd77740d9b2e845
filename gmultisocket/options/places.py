"""Where an option may be set: at which objects it has an effect, and what reads it there.

An option that has no effect where it is set is refused, because a program that sets it there believes that it has one.
A socket accepts the options of dialers, listeners and pipes, which inherit them. An endpoint accepts the options of its
own transport only, and a socket those of its own protocol. A plane is a backplane.
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal, NamedTuple

__all__ = ["PLACES", "Place", "Reader", "endpoint_reader", "family", "socket_reader", "usual_places"]

Place = Literal["socket", "dialer", "listener", "pipe", "plane"]

PLACES: Final[tuple[Place, ...]] = ("socket", "dialer", "listener", "pipe", "plane")

#: By the beginning of the name, for the library's own options. ``standard.py`` says which options are exceptions.
_USUAL: Final[dict[str, tuple[Place, ...]]] = {
    "socket.": ("socket",),
    "protocol.": ("socket",),
    "connector.dialer.": ("socket", "dialer"),
    "connector.listener.": ("socket", "listener"),
    "connector.": ("socket", "dialer", "listener", "pipe"),
    "transport.ws.listener.": ("socket", "listener"),
    "transport.tcp.": ("socket", "dialer", "listener", "plane"),
    "transport.tls.": ("socket", "dialer", "listener", "plane"),
    "transport.ws.": ("socket", "dialer", "listener"),
    "transport.ipc.": ("socket", "listener"),
    "transport.inproc.": ("socket", "dialer", "listener"),
    "plane.": ("plane",),
}


#: The options of one transport or protocol, by the beginning of their names. Others may define further ones.
_TRANSPORTS: Final = tuple(f"transport.{kind}" for kind in ("tcp", "tls", "ws", "ipc", "inproc"))


class Reader(NamedTuple):
    """What reads the options of a scope.

    Attributes:
        name: for errors: ``"tcp listener"``.
        families: the families of options that it reads: ``("transport.tcp",)``.
    """

    name: str
    families: tuple[str, ...]


def socket_reader(name: str = "bare Socket", protocols: tuple[str, ...] = ()) -> Reader:
    """Return the reader of a socket's options: those of all transports, and of its own protocol."""
    return Reader(name, _TRANSPORTS + protocols)


@cache
def endpoint_reader(scheme: str, kind: Place, families: tuple[str, ...]) -> Reader:
    """Return the reader of an endpoint's options: those of its transport. One object for all endpoints of a kind."""
    return Reader(f"{scheme} {kind}", families)


def family(name: str) -> str:
    """Return the family that an option of one transport or protocol belongs to, ``""`` for every other option.

    Every protocol says which families it reads, others' too. A transport that is not the library's need not.
    """
    start = ".".join(name.split(".", 2)[:2])
    return start if start in _TRANSPORTS or start.startswith("protocol.") else ""


def usual_places(name: str) -> tuple[Place, ...]:
    """Return where the options of this kind may be set; everywhere, for options of other libraries."""
    return next((places for start, places in _USUAL.items() if name.startswith(start)), PLACES)
