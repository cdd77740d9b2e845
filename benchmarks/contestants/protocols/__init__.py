"""The adapters of the libraries that have protocols, for the works that compare protocols: see ``base.py``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .. import CONTESTANTS

if TYPE_CHECKING:
    from .base import Protocols

__all__ = ["load"]


def load(name: str) -> Protocols:
    """Return a new peer, by the name of its library. Only the process that uses an adapter imports it."""
    adapter = import_module(f".{CONTESTANTS[name].module}", __name__)
    peer: Protocols = adapter.Adapter()
    return peer
