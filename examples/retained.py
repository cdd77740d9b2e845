"""Retained values: who comes late gets the present state at once, and then what changes.

    python3 examples/retained.py
"""

from gmultisocket.protocol import Pub, Sub


def main() -> None:
    with Pub() as pub, Sub() as early, Sub() as late:
        address = pub.listen("tcp://127.0.0.1:0").address
        early.dial(address)
        early.subscribe("rooms.*", timeout=5)

        for room, state in (("rooms.1", b"free"), ("rooms.2", b"busy"), ("rooms.1", b"busy")):
            pub.publish(room, state, retain=True)
        for _ in range(3):
            print("early:", *early.recv(timeout=5))

        # It missed all of that.
        late.dial(address)
        late.subscribe("rooms.*", timeout=5)
        for _ in range(2):
            print("late:", *late.recv(timeout=5))

        pub.publish("rooms.2", b"free", retain=True)
        print("late:", *late.recv(timeout=5))


if __name__ == "__main__":
    main()
