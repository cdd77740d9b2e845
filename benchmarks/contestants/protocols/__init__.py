"""The libraries that have protocols, one adapter each, for the works that compare these: see ``base.py``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .. import CONTESTANTS

if TYPE_CHECKING:
    from .base import Protocols

__all__ = ["load"]


def load(name: str) -> Protocols:
    """Return a new peer by the name of its library; an adapter is imported only in the process that uses it."""
    adapter = import_module(f".{CONTESTANTS[name].module}", __name__)
    peer: Protocols = adapter.Adapter()
    return peer
