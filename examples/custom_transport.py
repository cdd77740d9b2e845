"""A custom transport: it connects Sockets of one process by name.

    python3 examples/custom_transport.py

``gmultisocket/transport/base.py`` says what dialers, listeners and connections must do.
"""

from gevent import socket as gevent_socket
from gevent.queue import SimpleQueue

from gmultisocket import Address, Socket
from gmultisocket.errors import AddressInUse, Closed, ConnectionRefused
from gmultisocket.options import Options
from gmultisocket.testing import check_transport
from gmultisocket.transport import Transport, TransportDialer, TransportListener, register
from gmultisocket.transport.stream import SocketConnection

listeners = {}


class PairConnection(SocketConnection):
    """A gevent socket as a connection.

    For another kind of stream, subclass StreamConnection.
    """

    local_address = peer_address = "pair://"


class PairDialer(TransportDialer):
    def __init__(self, address: Address) -> None:
        self.address = address

    def connect(self) -> PairConnection:
        if self.address.location not in listeners:
            raise ConnectionRefused(self.address.bare, "nobody listens to the name")
        near, far = gevent_socket.socketpair()
        listeners[self.address.location].arrived.put(PairConnection(far))
        return PairConnection(near)


class PairListener(TransportListener):
    def __init__(self, address: Address) -> None:
        self.location, self.arrived = address.location, SimpleQueue()

    @property
    def address(self) -> str:
        return f"pair://{self.location}"

    def listen(self) -> None:
        if listeners.setdefault(self.location, self) is not self:
            raise AddressInUse(self.address, "the name is taken")

    def accept(self) -> PairConnection:
        connection = self.arrived.get()
        if connection is None:
            self.arrived.put(None)
            raise Closed("listener")
        return connection

    def close(self) -> None:
        if listeners.get(self.location) is self:
            del listeners[self.location]
        while not self.arrived.empty() and (connection := self.arrived.get()):
            connection.close()
        self.arrived.put(None)

    def abandon(self) -> None:
        listeners.pop(self.location, None)


class PairTransport(Transport):
    schemes = ("pair",)

    def dialer(self, address: Address, options: Options) -> PairDialer:
        return PairDialer(address)

    def listener(self, address: Address, options: Options) -> PairListener:
        return PairListener(address)


def main() -> None:
    register(PairTransport())
    with Socket() as server, Socket() as client:
        server.listen("pair://demo")
        client.dial("pair://demo")
        client.send(b"through a transport of our own")
        print(server.recv(timeout=5).decode())
    print(len(check_transport(lambda: "pair://checks")), "checks of the library pass")


if __name__ == "__main__":
    main()
