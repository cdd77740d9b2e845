"""Which engine a URL is for. An engine is imported when the first plane needs it."""

from __future__ import annotations

from importlib import import_module
from typing import Final

from ..errors import UnknownTransport
from .engine import Engine

__all__ = ["SCHEMES", "find_engine"]

#: By scheme: the module in this package, and the class in it.
SCHEMES: Final[dict[str, tuple[str, str]]] = {
    "memory": ("memory", "MemoryEngine"),
    "ipc": ("hub", "HubEngine"),
    "tcp": ("hub", "HubEngine"),
    "tls+tcp": ("hub", "HubEngine"),
    "nats": ("nats", "NatsEngine"),
    "nats+tls": ("nats", "NatsEngine"),
    "redis": ("redis", "RedisEngine"),
    "rediss": ("redis", "RedisEngine"),
    "redis+unix": ("redis", "RedisEngine"),
    "valkey": ("redis", "RedisEngine"),
    "valkeys": ("redis", "RedisEngine"),
}


def find_engine(url: str) -> type[Engine]:
    """Return the engine for a URL.

    Raises:
        UnknownTransport: no engine has its scheme.
    """
    scheme = url.partition("://")[0]
    if scheme not in SCHEMES or "://" not in url:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UnknownTransport(scheme, f"no engine of a Backplane has this scheme; there are {known}")
    module, name = SCHEMES[scheme]
    found: type[Engine] = getattr(import_module(f".{module}", __package__), name)
    return found
