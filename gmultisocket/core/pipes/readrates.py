"""How fast a peer may send: ``connector.pipe.max_message_rate`` and ``max_byte_rate``."""

from __future__ import annotations

from typing import Final

from ... import options as opts
from ...errors import MultiSocketError
from ...loop.rate import Rate
from ...options import Options

__all__ = ["LONGEST_PAUSE", "RATE_OPTIONS", "ReadRates", "read_rates"]

#: A change of one of these makes the limits of a pipe new.
RATE_OPTIONS: Final = (
    opts.connector.pipe.max_message_rate,
    opts.connector.pipe.max_byte_rate,
    opts.connector.pipe.over_rate,
)
#: How many bytes one read asks for at most while messages are limited, and at least while bytes are: a pause after a
#: large read would be long.
_MAX_READ: Final = 4096
_MIN_READ: Final = 512
#: Seconds between two looks whether the limits have changed.
LONGEST_PAUSE: Final = 1.0
#: Reads of a limited pipe in a second, if its peer sends much.
_READS_PER_SECOND: Final = 4


class _TooFast(MultiSocketError):
    """Why the pipe of a peer closes that sends too much."""

    def __str__(self) -> str:
        return "the peer sends more than connector.pipe.max_message_rate or connector.pipe.max_byte_rate allows"


class ReadRates:
    """The limits of one pipe.

    Attributes:
        read_size: how many bytes one read may ask for.
    """

    __slots__ = ("_bytes", "_closes", "_messages", "_seen", "read_size")

    def __init__(self, messages: float, size: float, closes: bool, seen: int) -> None:
        self._messages = Rate(messages) if messages else None
        self._bytes = Rate(size) if size else None
        self._closes = closes
        #: The messages of the pipe that were counted already.
        self._seen = seen
        self.read_size = _MAX_READ if messages else 1 << 20
        if size:
            self.read_size = min(self.read_size, max(_MIN_READ, int(size) // _READS_PER_SECOND))

    def use(self, messages: int, size: int) -> None:
        """Count what was read.

        Args:
            messages: how many the pipe has received since it was made.
            size: the bytes of this read.

        Raises:
            MultiSocketError: the peer has sent too much, and ``connector.pipe.over_rate`` says that its pipe closes.
        """
        if self._messages is not None:
            self._messages.use(messages - self._seen)
            self._seen = messages
        if self._bytes is not None:
            self._bytes.use(size)
        if self._closes and self.pause:
            raise _TooFast

    @property
    def pause(self) -> float:
        """The seconds for which the pipe must not be read from."""
        return max((rate.debt for rate in (self._messages, self._bytes) if rate is not None), default=0.0)


def read_rates(options: Options, seen: int) -> ReadRates | None:
    """Return the limits that options set for a pipe, None if they set none.

    Args:
        options: of the pipe.
        seen: how many messages the pipe has received.
    """
    mine = opts.connector.pipe
    messages, size = options.get(mine.max_message_rate), options.get(mine.max_byte_rate)
    return ReadRates(messages, size, options.get(mine.over_rate) == "close", seen) if messages or size else None
