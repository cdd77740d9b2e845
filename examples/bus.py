"""Bus: each of five members is connected to all others. What one sends, the other four receive once.

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
        # A mesh: each member dials all earlier members, and listens for the later ones.
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
