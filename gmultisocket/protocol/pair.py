"""Pair: two peers that talk to each other alone.

* Who talks to whom: one Pair with one other. While it has its peer, it refuses all other connections, and dials nobody.
  Once the peer has left, it takes the next one.
* On the wire: the content, sent to one.
* What is lost, and when: messages that had left for a peer which then went away. Messages that had not left wait for
  the next peer, and so do messages sent while there is no peer.

A refused connection is closed at once, without a byte. Its dialer tries again, after longer and longer pauses up to
``connector.dialer.max_reconnect_time``. Until it notices, for a moment, it is connected, and loses what it sends: if
that matters, wait for an answer from the peer first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plain import PlainReceiver

if TYPE_CHECKING:
    from typing_extensions import Buffer

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

    def send(self, content: Buffer, timeout: float | None = None) -> None:
        """Send to the peer. Blocks while there is none, or its queue is full. Raises as ``Socket.send`` does.

        Args:
            content: bytes-like.
            timeout: seconds.
        """
        self.socket.send(content, timeout)
