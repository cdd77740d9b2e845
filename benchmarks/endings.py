"""What arrives if nobody calls close(), and what arrives beside a health check. ``python3 -m benchmarks.endings``

Each ending is a process that sends 10 messages and ends; the table has how many arrive, and how long the process takes
to end after its last line. The last rows are a Push with a Pull, and a health check that connects for 20 ms
and comes again after 50 ms: how many of 200 messages the Pull gets. All sockets are on the loopback.
"""

from __future__ import annotations

import subprocess
import sys
import time

import gevent
import gevent.socket

from gmultisocket import Socket
from gmultisocket.errors import MultiSocketError
from gmultisocket.protocol import Pull, Push

SEND = """
import sys, time, gevent
from gmultisocket import Socket
sock = Socket()
sock.dial(sys.argv[1])
for number in range(10):
    sock.send(b"%d" % number)
print(time.monotonic(), flush=True)
"""

ENDINGS = {
    "end of the program": "",
    "sys.exit": "sys.exit()",
    "an exception": "raise SystemExit(1)",
    "Ctrl-C": "raise KeyboardInterrupt",
    "the socket is forgotten": "del sock; import gc; gc.collect(); gevent.sleep(0.1)",
    "os._exit": "import os; os._exit(0)",
}


def received(sock: Socket) -> int:
    """Return how many messages arrive before half a second of silence."""
    count = 0
    try:
        while True:
            sock.recv(timeout=0.5)
            count += 1
    except MultiSocketError:
        return count


def ending(last: str) -> tuple[int, float]:
    """Return how many of 10 messages arrive, and the seconds that the process takes to end."""
    with Socket() as server:
        address = server.listen("tcp://127.0.0.1:0").address
        process = subprocess.Popen(
            [sys.executable, "-c", SEND + last, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while process.poll() is None:
            gevent.sleep(0.001)
        ended = time.monotonic()
        assert process.stdout is not None
        began = float(process.stdout.read())
        return received(server), ended - began


def beside_checks(hold: bool) -> int:
    """Return how many of 200 messages arrive beside a health check."""
    with Push({"connector.pipe.hold_until_heard": True} if hold else None) as push, Pull() as pull:
        address = push.listen("tcp://127.0.0.1:0").address
        pull.dial(address)
        push.wait_pipes(1)

        def check() -> None:
            while True:
                with gevent.socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))):
                    gevent.sleep(0.02)
                gevent.sleep(0.05)

        checking = gevent.spawn(check)
        for number in range(200):
            push.send(b"%d" % number)
            gevent.sleep(0.002)
        checking.kill()
        return received(pull.socket)


def main() -> None:
    print(f"{'ending':28}{'of 10 arrive':>14}{'seconds':>10}")
    for name, last in ENDINGS.items():
        count, seconds = ending(last)
        print(f"{name:28}{count:14}{seconds:10.2f}")
    print(f"\n{'beside a health check':28}{'of 200 arrive':>14}")
    for hold in (False, True):
        try:
            print(f"{'held until heard' if hold else 'by default':28}{beside_checks(hold):14}")
        except MultiSocketError as error:
            print(f"{'held until heard':28}{'-':>14}  ({error})")


if __name__ == "__main__":
    main()
