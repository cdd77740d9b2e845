"""Pipeline: a Push distributes work, each piece to one Pull.

* Who talks to whom: any number of Pushes with any number of Pulls, directly or through switches. Each message goes to
  one Pull, in turn among those that can take one.
* On the wire: the content, sent to one.
* What is lost, and when: a message that has not left when its pipe closes goes to another Pull. A message that has left
  is lost if its Pull dies while the message is in the kernel's buffers or in the Pull's queue. There is no
  acknowledgement.

Faster Pulls get more work: a Pull that is slow lets its buffers fill, and gets nothing while they are full. Smaller
buffers make the shares finer and the losses smaller: ``socket.recv_queue_size`` of the Pull, ``socket.send_queue_size``
of the Push, and the kernel's, ``transport.tcp.read_buffer`` and ``write_buffer``. The defaults are for throughput.
Messages over one pipe stay in order; those over different pipes have no order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .base import ProtocolBase
from .plain import PlainReceiver

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Pull", "Push"]


class Push(ProtocolBase):
    """Distributes work. What a peer sends is dropped and counted (``no_recv``)."""

    fixed = {"socket.no_recv": True, "socket.no_send": False}

    def send(self, content: Buffer, timeout: float | None = None) -> None:
        """Send to one Pull. Blocks until a Pull can take it, also while none is connected. Raises as ``Socket.send``.

        Args:
            content: bytes-like.
            timeout: seconds.
        """
        self.socket.send(content, timeout)


class Pull(PlainReceiver):
    """Receives work: ``recv()``, or iteration. A message with flags is dropped and counted (``garbage``)."""

    fixed = {"socket.no_recv": False, "socket.no_send": True}
