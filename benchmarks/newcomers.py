"""A Pub comes up behind a switch with many Subs: how long until it has their subscriptions, and does the loop stall?

``python3 benchmarks/newcomers.py [SUBS [PATTERNS]]`` (5000 and 1)

One process has the switch and the Pub, another one the Subs. Printed are the seconds from the dial of the Pub until it
has the first and the last subscription, and how late a 10 ms timer was at the worst, in ms, in both processes. Run as a
file, it measures the gmultisocket that PYTHONPATH names.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import gevent

from gmultisocket import Socket, Switch
from gmultisocket.protocol import Pub, Sub


class Stalls:
    """Measures how late a 10 ms timer is."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            before = time.perf_counter()
            gevent.sleep(0.01)
            self.worst = max(self.worst, time.perf_counter() - before - 0.01)

    def end(self) -> float:
        self._greenlet.kill()
        return self.worst


def be_subs(address: str, count: int, patterns: int) -> None:
    subs = []
    for number in range(count):
        sub = Sub({"connector.dialer.dial_timeout": 60.0})
        for pattern in range(patterns):
            sub.subscribe(f"topic.{number}.{pattern}")
        sub.dial(address)
        subs.append(sub)
    print("ready", flush=True)
    sys.stdin.readline()
    stalls = Stalls()
    gevent.get_hub().threadpool.apply(sys.stdin.readline)
    print(stalls.end(), flush=True)


def main(count: int, patterns: int) -> None:
    with Socket() as back, Socket() as front, Switch(back, front):
        pubs = back.listen("tcp://127.0.0.1:0").address
        address = front.listen("tcp://127.0.0.1:0").address
        child = subprocess.Popen(
            [sys.executable, __file__, "subs", address, str(count), str(patterns)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        threads = gevent.get_hub().threadpool
        threads.apply(child.stdout.readline)
        gevent.sleep(1.0)
        child.stdin.write("go\n")
        child.stdin.flush()
        stalls = Stalls()
        before = time.perf_counter()
        with Pub() as pub:
            pub.dial(pubs)
            first = last = 0.0
            while time.perf_counter() - before < 30 and not last:
                gevent.sleep(0.002)
                now = time.perf_counter() - before
                if pub.subscriptions and not first:
                    first = now
                if pub.subscriptions == count * patterns:
                    last = now
            worst = stalls.end()
            child.stdin.write("end\n")
            child.stdin.flush()
            theirs = float(threads.apply(child.stdout.readline))
            print(f"{pub.subscriptions} subscriptions: first {first:.3f} s, last {last:.3f} s; "
                  f"stalls {worst * 1000:.0f} ms here, {theirs * 1000:.0f} ms with the Subs")  # fmt: skip
        child.kill()
        child.wait()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1:2] == ["subs"]:
        be_subs(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        numbers = [int(each) for each in sys.argv[1:]]
        main(*(numbers + [5000, 1][len(numbers) :]))
