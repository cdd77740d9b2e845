"""What dialers and listeners have in common: an address, options, and pipes that come from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ...address import Address
from ...options import Option, Options
from ..pipes.ids import prepare
from ..pipes.pipe import PUSHED, Pipe

__all__ = ["Endpoint"]


class Endpoint(ABC):
    """A dialer or a listener.

    Attributes:
        options: its options. A value that is not set here comes from the socket.
        dials: whether it is a dialer.
    """

    __slots__ = (
        "_given",
        "_pipes",
        "options",
    )

    dials: bool

    def __init__(self, address: Address, options: Options, pipes: Mapping[int, Pipe]) -> None:
        self._given = address
        self._pipes = pipes
        self.options = options
        options.watch(self, PUSHED)
        prepare()

    @property
    def given_address(self) -> str:
        """The address as it was given, without its options: with port 0, if that was given."""
        return self._given.bare

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
        """Stop. Its pipes stay open. May be repeated."""

    @abstractmethod
    def _pipe_closed(self, pipe: Pipe) -> None:
        """One of its pipes has closed."""

    @abstractmethod
    def _place_free(self) -> None:
        """The pipe limit has changed, or a pipe may be made again."""

    @abstractmethod
    def _join(self) -> None:
        """Block until no greenlet works for it any more, except for the caller."""

    @abstractmethod
    def _abandon(self) -> None:
        """Release its descriptors in a forked child, without switching greenlets."""

    def _option_changed(self, option: Option[Any], value: Any) -> None:
        """Push a changed option to the pipes that came from here.

        Pipes with options of their own are not called: their scope follows this one, and pushes to them itself.
        """
        for pipe in list(self._pipes.values()):
            if pipe._endpoint is self and pipe._options is None:
                pipe._option_changed(option, value)
