"""Bus: five members, each connected to each; what one says, the four others hear, once.

    python3 examples/bus.py
"""

import gevent

from gmultisocket.protocol import Bus

NAMES = ("Ada", "Bob", "Cid", "Dot", "Eve")


def listen(bus: Bus) -> list[str]:
    return sorted(bus.recv(timeout=5).decode() for _ in range(len(NAMES) - 1))


def main() -> None:
    members: dict[str, Bus] = {}
    addresses: list[str] = []
    for name in NAMES:
        bus = members[name] = Bus()
        # A mesh: each dials all that were there before, and listens for those to come.
        for address in addresses:
            bus.dial(address)
        addresses.append(bus.listen("tcp://127.0.0.1:0").address)
    for bus in members.values():
        bus.wait_pipes(len(NAMES) - 1, timeout=5)

    listening = {name: gevent.spawn(listen, bus) for name, bus in members.items()}
    for name, bus in members.items():
        count = bus.send(f"hello from {name}".encode())
        print(f"{name} said hello to {count} neighbours")
    for name, greenlet in listening.items():
        print(f"{name} heard:", ", ".join(greenlet.get()))

    for bus in members.values():
        bus.close()


if __name__ == "__main__":
    main()
