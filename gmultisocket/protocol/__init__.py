"""Protocols: who talks to whom, in which order, and what becomes of a message that nobody takes.

Each is one class for each role, in one module, over a Socket of its own; :class:`Protocol` is what they share.
"""

from __future__ import annotations

from .base import Protocol

__all__ = ["Protocol"]
