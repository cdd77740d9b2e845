"""How the ends of a protocol are connected in these tests: over each transport, directly and through switches."""

from __future__ import annotations

from pathlib import Path

from gmultisocket import Socket, Switch
from gmultisocket.protocol import ProtocolBase
from tests import addresses

#: One of each kind; what tls, tcp6 and the others change, no protocol sees.
TRANSPORTS = ("inproc", "ipc", "tcp", "ws")


class Net:
    """Connects protocols and sockets, and takes everything down that it has put between them.

    Attributes:
        transport: the scheme of its addresses.
        switches: how many switches are between any two ends.
    """

    def __init__(self, transport: str, switches: int, folder: Path) -> None:
        self.transport = transport
        self.switches = switches
        self._folder = folder
        self._switches: list[Switch] = []

    def address(self) -> str:
        """Return an address that is free."""
        return addresses.TRANSPORTS[self.transport](self._folder)

    def connect(self, hub: ProtocolBase | Socket, *leaves: ProtocolBase | Socket) -> None:
        """Connect a hub with each of the leaves. Blocks until all pipes are there."""
        address = hub.listen(self.address()).address
        last: ProtocolBase | Socket = hub
        for _ in range(self.switches):
            back, front = Socket(), Socket()
            self._switches.append(Switch(back, front))
            back.dial(address)
            last.wait_pipes(1, timeout=5)
            address = front.listen(self.address()).address
            last = front
            self._switches[-1].start()
        for leaf in leaves:
            leaf.dial(address)
        last.wait_pipes(len(leaves), timeout=10)

    def close(self) -> None:
        for switch in self._switches:
            switch.back.close(0)
            switch.front.close(0)
            switch.stop()
