"""The part of a plane that concerns the peers of all processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..protocol.subscriptions import check_pattern
from .control import Control, PlanePresence

__all__ = ["AllProcesses"]


class AllProcesses(ABC):
    """The methods of a plane that concern the peers of all processes."""

    @abstractmethod
    def _use_control(self) -> Control:
        """Return the object that exchanges messages with the other processes."""

    def presence(self, pattern: str, timeout: float = 1.0) -> PlanePresence:
        """Return how many subscribers the Pubs of all processes have for a pattern or topic. Blocks until they answer.

        Args:
            pattern: as for ``Pub.presence``.
            timeout: seconds to wait for processes that do not answer.

        Raises:
            BadTopic: it is not a pattern.
        """
        control = self._use_control()
        check_pattern(pattern)
        return control.presence(pattern, timeout)

    def revoke(self, identity: Mapping[str, Any], pattern: str, reason: str = "revoked") -> None:
        """End the subscriptions of a pattern by all peers with an identity, at the Pubs of all processes.

        As ``Pub.revoke`` for each of them. Does not block; nobody says whether there were any.

        Args:
            identity: as in ``pipe.identity``, e.g. ``{"user": "ann"}``. A peer may have more entries than these. JSON
                must be able to hold them.
            pattern: exactly as it was subscribed to.
            reason: for the subscriber.

        Raises:
            BadTopic: it is not a pattern.
            ValueError, TypeError: the identity is empty, or JSON cannot hold it.
        """
        control = self._use_control()
        check_pattern(pattern)
        control.revoke(identity, pattern, reason)

    def disconnect(self, identity: Mapping[str, Any], reason: str = "disconnected", *, code: int | None = None) -> None:
        """Close the connections of all peers with an identity, at the Pubs of all processes.

        Does not block; nobody says whether there were any. Of a session, the whole WebSocket is closed.

        Args:
            identity: as for :meth:`revoke`.
            reason: the ``reason`` of the pipes. With a code, WebSocket peers get it.
            code: from 4000 to 4999: the close code that WebSocket peers get, e.g. 4401 for "log in again" or 4403 for
                "do not come back". Without it they get 1000, and a page connects again.

        Raises:
            ValueError, TypeError: as :meth:`revoke`; or the code is another number.
        """
        self._use_control().disconnect(identity, reason, code)
