"""What dialers and listeners have in common: they belong to a socket, have options, and pipes come from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import options as opts
from ..address import Address
from ..options import Option, Options

if TYPE_CHECKING:
    from .connector import Connector
    from .pipe import Pipe

__all__ = ["Endpoint"]

#: Options of which a pipe keeps a copy, and has to be told about.
_COPIED: tuple[Option[Any], ...] = (
    opts.connector.pipe.max_recv_content_length,
    opts.connector.pipe.read_buffer,
    opts.connector.pipe.raw_recv_buf_size,
)


class Endpoint(ABC):
    """A dialer or a listener.

    Attributes:
        options: its options; what is not set here comes from the socket.
    """

    dials: bool

    def __init__(self, connector: Connector, address: Address, options: Options) -> None:
        self._connector = connector
        self._address = address
        self.options = options
        for option in _COPIED:
            options.on_change(option, partial(self._tell_pipes, option))

    @property
    def given_address(self) -> str:
        """The address as it was given, without its options: with port 0, if that was it."""
        return self._address.bare

    @property
    @abstractmethod
    def address(self) -> str:
        """The address, without its options."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it was closed."""

    @abstractmethod
    def close(self) -> None:
        """Stop it. Its pipes stay. Harmless when repeated."""

    @abstractmethod
    def pipe_closed(self, pipe: Pipe, lived: bool) -> None:
        """Hear that one of its pipes has gone; ``lived`` when the peer had proved to be one."""

    @abstractmethod
    def limit_changed(self) -> None:
        """Hear that the socket may take pipes again, or may not."""

    def _tell_pipes(self, option: Option[Any], old: Any, new: Any) -> None:
        for pipe in list(self._connector.pipes.values()):
            if pipe.endpoint is self:
                pipe.option_changed(option)
