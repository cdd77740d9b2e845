"""What dialers and listeners have in common: they belong to a socket, have options, and pipes come from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ..address import Address
from ..options import Option, Options
from .pipe import COPIED

if TYPE_CHECKING:
    from .connector import Connector
    from .pipe import Pipe

__all__ = ["Endpoint"]


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
        options.watch(self, COPIED)

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

    def option_changed(self, option: Option[Any]) -> None:
        """Tell the pipes that came from here of an option that changed."""
        for pipe in list(self._connector.pipes.values()):
            if pipe.endpoint is self:
                pipe.option_changed(option)
