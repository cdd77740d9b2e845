"""Quick start, the client: one greenlet sends, another receives. See ``quickstart_server.py``."""

import argparse

import gevent

from gmultisocket import Socket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?", default="tcp://127.0.0.1:30001")
    parser.add_argument("--name", default="world")
    parser.add_argument("--messages", type=int, default=5)
    parser.add_argument("--interval", type=float, default=0.2, help="seconds between messages")
    arguments = parser.parse_args()

    with Socket() as sock:
        sock.dial(arguments.address)

        def send() -> None:
            for number in range(arguments.messages):
                sock.send(f"{arguments.name} {number}".encode())
                gevent.sleep(arguments.interval)

        # Sending and receiving are independent: answers may arrive at any time.
        sending = gevent.spawn(send)
        for _ in range(arguments.messages):
            print(sock.recv(timeout=10).decode(), flush=True)
        sending.join()


if __name__ == "__main__":
    main()
