"""Checks for transports whose connections pass whole messages inside the process."""

from __future__ import annotations

from ..transport import MessageConnection
from ._bench import Bench
from ._transport import TransportChecks

__all__ = ["MessageTransportChecks"]


class MessageTransportChecks(TransportChecks):
    """Checks for a transport of :class:`~gmultisocket.transport.MessageConnection`; see :class:`TransportChecks`."""

    def _ends(self, bench: Bench) -> tuple[MessageConnection, MessageConnection]:
        one, other = bench.connect()
        assert isinstance(one, MessageConnection), f"{type(one).__name__} is no MessageConnection"
        assert isinstance(other, MessageConnection), f"{type(other).__name__} is no MessageConnection"
        return one, other

    def test_the_two_ends_know_each_other(self) -> None:
        with self.bench() as bench:
            one, other = self._ends(bench)
            assert one.peer is other and other.peer is one, "the ends are not each other's peer"
            assert one.pipe is None and other.pipe is None, "an end has a pipe, but it was given to none"

    def test_closing_one_end_closes_the_other(self) -> None:
        with self.bench() as bench:
            for one, other in (self._ends(bench), self._ends(bench)[::-1]):
                assert not one.closed and not other.closed, "an end is closed from the start"
                one.close()
                assert one.closed, "closed is False after close()"
                assert other.closed, "the other end did not notice the close"
