"""What people need to test their own use of gmultisocket, and their own transports and protocols.

Nothing in the library imports this package. Its checks raise ``AssertionError`` and need no particular test runner.
"""

from __future__ import annotations

from ._wait import wait_until

__all__ = ["wait_until"]
