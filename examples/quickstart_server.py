"""Quick start, the server: two workers answer every message. Ends on Ctrl-C, or after ``--messages N``.

    python3 examples/quickstart_server.py
    python3 examples/quickstart_client.py           (in another terminal)
"""

import argparse
import signal

import gevent

from gmultisocket import Message, Socket
from gmultisocket.errors import BrokenPath


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address", nargs="?", default="tcp://127.0.0.1:30001")
    parser.add_argument("--messages", type=int, default=0, help="end after this number of answers; 0 never")
    arguments = parser.parse_args()

    with Socket() as sock:
        gevent.signal_handler(signal.SIGINT, sock.close)
        print("listening at", sock.listen(arguments.address).address, flush=True)
        answered = 0

        def answer(number: int, message: Message) -> None:
            try:
                # A message's source is its path to here, and so the way back to its sender.
                sock.send_to(message.source, b"[#%d] Hello, %s" % (number, message.content))
            except BrokenPath:
                print("a client has gone before its answer was sent")

        def work(number: int) -> None:
            nonlocal answered
            for message in sock:  # ends when the socket closes
                answer(number, message)
                answered += 1
                if answered == arguments.messages:
                    sock.close_nowait()

        # Any number of greenlets may receive at the same time: each message goes to one of them.
        gevent.joinall([gevent.spawn(work, number) for number in range(2)])
    print("answered", answered, "messages")


if __name__ == "__main__":
    main()
