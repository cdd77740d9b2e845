"""The connections of one listener that are not pipes yet: who may begin its handshake, who waits, and who must leave.

A connection goes through three stages:

* Its peer has sent nothing yet. It costs little, so there may be ``connector.listener.max_waiting`` of them.
* Its peer has begun the handshake. It has one of ``connector.listener.max_handshaking`` places.
* A function of this side's user decides about it: ``authorize``, ``origin_checker`` or a negotiator. At most
  ``connector.listener.max_deciding`` of them run at the same time.

Connections enter a stage in the order in which they asked for it. If a place is missing, the oldest connection that has
made this side wait for longer than ``PATIENCE`` leaves. The time for which a connection waits for its turn, or for a
function of this side, is not the peer's: it ends no connection.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable
from typing import Final

from gevent.hub import Hub

from ... import options as opts
from ...errors import HandshakeFailed
from ...loop.periodic import Periodic
from ...loop.slots import Slots
from ...loop.waiting import WaitList
from ...options import Options
from ...transport import Connection
from ...transport.peerlimits import Admission
from .entry import Entry
from .places import Places

__all__ = ["PATIENCE", "Visitor", "WaitingRoom"]

#: Seconds. A peer that has made this side wait for longer loses its place when another connection needs it: peers that
#: connect and say nothing must not keep others out until their time limit. Enough for three round trips around the
#: world.
PATIENCE: Final = 1.0
#: Seconds between two looks for connections that must leave.
_CHECK_INTERVAL: Final = 0.05
#: Connections that are not pipes yet may have this part of the descriptors that the process may open.
_PART_OF_DESCRIPTORS: Final = 4


class WaitingRoom:
    """The connections of one listener that are not pipes yet.

    Attributes:
        functions: the slots for functions of this side's user.
    """

    def __init__(self, hub: Hub, options: Options) -> None:
        mine = opts.connector.listener
        handshaking = options.get(mine.max_handshaking)
        self._limit = min(options.get(mine.max_waiting), _most_descriptors())
        self._places = Slots(hub, handshaking)
        self.functions = Slots(hub, min(options.get(mine.max_deciding), handshaking))
        #: The connections without and with a place, the oldest first.
        self._waiting: dict[Visitor, None] = {}
        self._begun: dict[Visitor, None] = {}
        self._not_full = WaitList(hub, lambda: len(self) < self._limit)
        #: Runs while connections wait for places.
        self._evictions = Periodic(lambda: _CHECK_INTERVAL if self._places.waiting else 0.0, self._make_places)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._begun)

    def wait_not_full(self) -> None:
        """Block until there is room for one more connection. A slow one leaves for it. Only for the accept loop."""
        while len(self) >= self._limit:
            if not self._evict(self._waiting) and not self._evict(self._begun):
                self._not_full.wait(_CHECK_INTERVAL)

    def enter(self, visitor: Visitor) -> None:
        """Add a connection that was just accepted."""
        self._waiting[visitor] = None

    def begin(self, visitor: Visitor) -> bool:
        """Block until a place is free, and give it to a visitor. Return whether it had to wait."""
        if self._places.full:
            self._evictions.start()
        waited = self._places.take()
        visitor.has_place = True
        self._waiting.pop(visitor, None)
        self._begun[visitor] = None
        return waited

    def leave(self, visitor: Visitor) -> None:
        """Remove a connection, which has become a pipe or was closed."""
        self._waiting.pop(visitor, None)
        if visitor.has_place:
            self._begun.pop(visitor, None)
            self._places.give_back()
        self._not_full.wake()

    def stop(self) -> None:
        """End the room's own greenlet. Never blocks."""
        self._evictions.stop()

    def join(self) -> None:
        """Block until the room's own greenlet has ended."""
        self._evictions.join()

    def _make_places(self, *times: float) -> None:
        """Evict one slow connection for each one that waits for a place."""
        for _ in range(self._places.waiting):
            if not self._evict(self._begun):
                return

    def _evict(self, visitors: dict[Visitor, None]) -> bool:
        """Evict the oldest visitor whose peer is slow. Return False if there is none."""
        visitor = _slow(visitors)
        if visitor is None:
            return False
        del visitors[visitor]
        visitor.evict()
        return True


class Visitor(Entry):
    """One connection of a listener that is not a pipe yet.

    Args:
        connection: the connection.
        places: of the socket.
        functions: the slots of :attr:`WaitingRoom.functions`.
        waits_at_limit: whether it waits for a place at the pipe limit, instead of being refused.

    Attributes:
        room: None for a connection that a server has accepted: that server limits their number.
        admission: what the connection is counted under; None before it is.
        has_place: whether the room counts it among those that have begun.
        evict: closes the connection, because it is slow and others wait. Set by the listener. Must not block.
    """

    __slots__ = ("_connection", "_functions", "_has_slot", "_waits", "admission", "evict", "has_place", "room")

    evict: Callable[[], object]

    def __init__(self, connection: Connection, places: Places, functions: Slots, *, waits_at_limit: bool) -> None:
        super().__init__(places)
        self._connection = connection
        self._functions = functions
        self._waits = waits_at_limit
        self._has_slot = False
        self.room: WaitingRoom | None = None
        self.admission: Admission | None = None
        self.has_place = False

    @property
    def in_own_greenlet(self) -> bool:
        return self.room is not None

    def begin(self) -> None:
        if self.room is not None and not self.has_place:
            self._check(self.room.begin(self))

    def _take_slot(self) -> None:
        waited = self._functions.take()
        self._has_slot = True
        self._check(waited)

    def _give_slot_back(self) -> None:
        if self._has_slot:
            self._has_slot = False
            self._functions.give_back()

    def admit(self) -> None:
        if self.admission is not None:
            self.admission.identify(self._connection.identity)
        waited = False
        if self._waits:
            waited = self._places.reserve_in_turn()
        else:
            self._places.reserve()
        self.reserved = True
        self._check(waited)

    def _check(self, waited: bool) -> None:
        """Raise if the peer has hung up while it waited for its turn: nobody needs the work for it any more."""
        if waited and self._connection.hung_up():
            raise HandshakeFailed(self._connection.peer_address, "the peer hung up while it waited for its turn")


def _slow(visitors: Iterable[Visitor]) -> Visitor | None:
    for visitor in visitors:
        if visitor.peer_time.since is not None and visitor.peer_time.seconds >= PATIENCE:
            return visitor
    return None


def _most_descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, soft // _PART_OF_DESCRIPTORS) if soft != resource.RLIM_INFINITY else 1 << 30
