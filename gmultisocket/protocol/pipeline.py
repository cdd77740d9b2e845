"""Pipeline: Push hands work out, each piece to one Pull.

* Who talks to whom: any number of Pushes with any number of Pulls, directly or through switches. Each message goes to
  one Pull, in turn among those that can take one.
* On the wire: the content, sent to one.
* What is lost, and when: a message that has not left when its pipe closes goes to another Pull. One that has left is
  gone with its Pull: what was in the kernel's buffers and the Pull's queue when that died. There is no acknowledgement.

Work is shared by ability because a Pull that does not keep up lets its buffers fill, and gets nothing while they are
full. So the smaller the buffers, the finer the share and the smaller the loss: ``socket.recv_queue_size`` on the Pull,
``socket.send_queue_size`` on the Push, and the kernel's, ``transport.tcp.read_buffer`` and ``write_buffer``. The
defaults are for throughput. Messages over one pipe stay in order; those over different pipes have none.
"""

from __future__ import annotations

from .base import Protocol
from .plain import PlainReceiver

__all__ = ["Pull", "Push"]


class Push(Protocol):
    """Hands out work. What a peer sends is dropped and counted (``no_recv``)."""

    fixed = {"socket.no_recv": True, "socket.no_send": False}

    def send(self, content: bytes, timeout: float | None = None) -> None:
        """Send to one Pull. Blocks while none can take it, also while there is none. Raises as ``Socket.send`` does."""
        self.socket.send(content, timeout)


class Pull(PlainReceiver):
    """Takes work: ``recv()``, or iteration. A message with flags is dropped and counted (``garbage``)."""

    fixed = {"socket.no_recv": False, "socket.no_send": True}
