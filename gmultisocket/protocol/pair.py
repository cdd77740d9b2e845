"""Pair: two that talk to each other alone.

* Who talks to whom: one Pair with one other. While it has its peer, it turns away whoever else connects, and dials
  nobody; once the peer has left, the next one is let in.
* On the wire: the content, sent to one.
* What is lost, and when: what had left for a peer that then went. What had not left waits for the next peer, as what
  is sent while there is none does.

One that is turned away has its connection closed at once, without a byte. Its dialer tries again, ever more slowly up
to ``connector.dialer.max_reconnect_time``. For the moment until it notices it is connected, and loses what it sends: a
peer that has to know asks for an answer first.
"""

from __future__ import annotations

from .plain import PlainReceiver

__all__ = ["Pair"]


class Pair(PlainReceiver):
    """Talks to one peer. A message with flags is dropped and counted (``garbage``).

    Args:
        options: of the socket underneath.
    """

    fixed = {
        "socket.no_recv": False,
        "socket.no_send": False,
        "connector.pipe_limit": 1,
        "connector.listener.over_limit": "refuse",
    }

    def send(self, content: bytes, timeout: float | None = None) -> None:
        """Send to the peer. Blocks while there is none, or it takes nothing. Raises as ``Socket.send`` does."""
        self.socket.send(content, timeout)
