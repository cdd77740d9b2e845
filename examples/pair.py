"""Pair: two talk to each other; a third one is refused until one of the two has left.

    python3 examples/pair.py
"""

import gevent
from gevent.event import Event

from gmultisocket.protocol import Pair


def main() -> None:
    with Pair() as host, Pair() as guest, Pair() as stranger:
        left = Event()
        host.on_pipe(lambda event: left.set() if event.kind == "remove" else None)
        address = host.listen("tcp://127.0.0.1:0").address
        guest.dial(address)

        guest.send(b"Is anybody in?")
        print("  guest:", host.recv(timeout=5).decode())
        host.send(b"Come in.")
        print("   host:", guest.recv(timeout=5).decode())

        # The host closes its connection at once. The stranger dials again, with growing pauses.
        dialer = stranger.dial(address)
        while dialer.attempts < 3:
            gevent.sleep(0.01)
        print(f"         (a stranger has dialed, and the host still has {len(host.pipes)} peer)")

        # A message sent before the host has noticed is lost with the guest. A later one waits for the next peer.
        guest.close()
        left.wait(timeout=5)
        host.send(b"Next, please.", timeout=10)
        print("   host:", stranger.recv(timeout=10).decode())


if __name__ == "__main__":
    main()
