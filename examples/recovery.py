"""History: a Sub that was cut off gets the publications that it has missed, and is told if some are missing.

    python3 examples/recovery.py
"""

from gmultisocket.protocol import MemoryHistory, Pub, Sub


def main() -> None:
    with Pub(history=MemoryHistory("orders.>", max_entries=3)) as pub, Sub() as sub:
        sub.on_gap(lambda gap: print("missing:", gap.reason))
        sub.dial(pub.listen("tcp://127.0.0.1:0").address)
        sub.subscribe("orders.>", timeout=5, recover=True)

        pub.publish("orders.eu", b"1")
        print(*sub.recv(timeout=5))

        for pipe in [*sub.pipes.values()]:
            pipe.close()
        for number in (2, 3):
            pub.publish("orders.eu", b"%d" % number)
        for _ in range(2):
            print(*sub.recv(timeout=5))

        # More than the history keeps.
        for pipe in [*sub.pipes.values()]:
            pipe.close()
        for number in range(4, 9):
            pub.publish("orders.us", b"%d" % number)
        for _ in range(3):
            print(*sub.recv(timeout=5))


if __name__ == "__main__":
    main()
