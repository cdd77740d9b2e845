"""To-all messages for many pipes at once.

Pipes that write the same bytes for a message, and have nothing else waiting, are *in step*. A to-all message is put
once into their :class:`FanOut`, not once into each of their queues; when the turn of the loop ends, what has gathered
is joined once and given to the kernel pipe by pipe. A pipe falls out of step when something is sent to it
alone, or when the kernel takes no more for it; the frames that it has not sent are then put into its own queue
(the bytes themselves stay shared), and it comes back when that is empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .bytespipe import BytesPipe
    from .sender import Sender

__all__ = ["FanOut"]


class FanOut:
    """The pipes in step that share one kind of bytes.

    Attributes:
        members: the pipes, in the order in which they joined.
        pending: frames of this turn that have not left yet.
        pending_bytes: their size.
    """

    __slots__ = ("_sender", "_sent_in_turn", "_wrap", "members", "pending", "pending_bytes")

    def __init__(self, sender: Sender, wrap: Callable[[bytes], bytes]) -> None:
        self._sender = sender
        self._wrap = wrap
        self._sent_in_turn = False
        self.members: dict[BytesPipe, None] = {}
        self.pending: list[bytes] = []
        self.pending_bytes = 0

    def add(self, pipe: BytesPipe) -> None:
        """Take in a pipe with an empty queue. Only while nothing is pending."""
        self.members[pipe] = None
        pipe.fan_out = self

    def remove(self, pipe: BytesPipe) -> None:
        """Let go of a pipe, which takes over what is pending."""
        del self.members[pipe]
        pipe.fan_out = None
        self._sender.fell_out(pipe)

    def put(self, frame: bytes) -> None:
        """Send one frame to every member: at once if it is the first of the turn, else with the others."""
        frame = self._wrap(frame)
        if not self._sent_in_turn:
            self._sent_in_turn = True
            self._sender.mark_fan_out(self)
            self._write([frame], frame)
            return
        self.pending.append(frame)
        self.pending_bytes += len(frame)
        if len(self.pending) >= self._sender.queue_limit or self.pending_bytes >= self._sender.flush_bytes:
            self.flush()

    def go_on(self) -> None:
        """Gather from the first frame of this turn on: whoever was made to let others run has more to send.

        Else a sender whose every message is a whole budget, as one to 1,000 pipes is, would gather nothing.
        """
        if self.members and not self._sent_in_turn:
            self._sent_in_turn = True
            self._sender.mark_fan_out(self)

    def flush(self) -> None:
        """Give the kernel what is pending. Never switches greenlets."""
        frames = self.pending
        if frames:
            self.pending = []
            self.pending_bytes = 0
            self._write(frames, frames[0] if len(frames) == 1 else b"".join(frames))

    def end_turn(self) -> None:
        """Send what was put in this turn. Called in the hub."""
        self.flush()
        self._sent_in_turn = False

    def _write(self, frames: list[bytes], data: bytes) -> None:
        size = len(data)
        count = len(frames)
        # Members change only after the loop: whatever a broken pipe sets off may not disturb it.
        behind: list[tuple[BytesPipe, int, OSError | None]] = []
        for pipe in self.members:
            try:
                taken = pipe._send(data)
            except BlockingIOError:
                behind.append((pipe, 0, None))
                continue
            except OSError as error:
                behind.append((pipe, 0, error))
                continue
            if taken == size:
                pipe.messages_sent += count
                pipe.bytes_sent += size
            else:
                behind.append((pipe, taken, None))
        self._sender.spend(count * len(self.members), size * len(self.members))
        for pipe, taken, broken in behind:
            if pipe.fan_out is self:
                self.remove(pipe)
                if broken is None:
                    pipe.take_back(frames, taken)
                else:
                    pipe.lose(frames, broken)
