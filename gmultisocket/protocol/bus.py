"""Bus: what one Bus sends, all its neighbours receive.

* Who talks to whom: each Bus with the peers that it is connected to. Nothing is forwarded: for a mesh, connect each Bus
  to each other. A switch does forward, from the members on one side of it to those on the other.
* On the wire: the content, sent to all.
* What is lost, and when: a neighbour that reads too slowly, so that its queue is full, misses messages. They are
  counted on its pipe (``overflow``), and the first is logged. With ``socket.send_overflow`` ``block`` the sender waits
  instead. A neighbour that is not connected when a message is sent never gets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plain import PlainReceiver

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Bus"]


class Bus(PlainReceiver):
    """Sends to all neighbours, and receives from any. A message with flags is dropped and counted (``garbage``).

    Args:
        options: of the socket underneath.
    """

    defaults = {"socket.send_overflow": "drop_newest"}
    fixed = {"socket.no_recv": False, "socket.no_send": False}

    def send(self, content: Buffer, timeout: float | None = None) -> int:
        """Send to every neighbour. Does not wait for any, unless ``socket.send_overflow`` is ``block``.

        Args:
            content: bytes-like.
            timeout: seconds, for ``block``.

        Returns:
            The number of neighbours that it went to.

        Raises:
            Timeout, MessageTooLong, Closed: as ``Socket.send_all`` does.
        """
        return self.socket.send_all(content, timeout)
