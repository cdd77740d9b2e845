"""Where an option may be set: at which of these objects it has an effect.

An option that has no effect where it is set is refused, because a program that sets it there believes that it has one.
A socket accepts the options of dialers, listeners and pipes, which inherit them. A plane is a backplane.
"""

from __future__ import annotations

from typing import Final, Literal

__all__ = ["PLACES", "Place", "usual_places"]

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


def usual_places(name: str) -> tuple[Place, ...]:
    """Return where the options of this kind may be set; everywhere, for options of other libraries."""
    return next((places for start, places in _USUAL.items() if name.startswith(start)), PLACES)
