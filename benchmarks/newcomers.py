"""A Pub comes up behind a switch with many Subs: how long until it has their subscriptions, and does a loop stall?

``python3 benchmarks/newcomers.py [SUBS [PATTERNS]]`` (5000 and 1)

The switch, the Pub and the Subs (in two processes) are in processes of their own. First the Pub comes up. Then the
process of the switch is killed, and another one takes its place. Printed are the seconds until the Pub has the last
subscription: since it dialed, and since the new switch listens. And for each process, how late a 10 ms timer was at the
worst, in ms. Run as a file, it measures the gmultisocket that PYTHONPATH names.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import time
from typing import Any

import gevent

from gmultisocket import Socket, Switch
from gmultisocket.protocol import Pub, Sub

_PROCESSES = 2
_PATIENCE = 60.0


class Stalls:
    """Measures how late a 10 ms timer is."""

    def __init__(self) -> None:
        self._worst = 0.0
        gevent.spawn(self._run)

    def _run(self) -> None:
        while True:
            before = time.perf_counter()
            gevent.sleep(0.01)
            self._worst = max(self._worst, time.perf_counter() - before - 0.01)

    def take(self) -> float:
        """Return the worst one since the last call, in ms."""
        worst, self._worst = self._worst, 0.0
        return round(worst * 1000)


class Child:
    """A process of this file. It writes lines of JSON, and answers each line that it gets."""

    def __init__(self, *arguments: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, text: str = "") -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def heard() -> str:
    """Return the next line of the parent. Others run meanwhile."""
    return str(gevent.get_hub().threadpool.apply(sys.stdin.readline)).strip()


def be_switch(back_address: str, front_address: str) -> None:
    with Socket() as back, Socket() as front, Switch(back, front):
        say([back.listen(back_address).address, front.listen(front_address).address])
        stalls = Stalls()
        while True:
            heard()
            say(stalls.take())


def be_subs(address: str, first: str, count: str, patterns: str) -> None:
    subs = []
    for number in range(int(first), int(first) + int(count)):
        sub = Sub({"connector.dialer.dial_timeout": 60.0})
        for pattern in range(int(patterns)):
            sub.subscribe(f"topic.{number}.{pattern}")
        sub.dial(address)
        subs.append(sub)
    # This process stands for thousands of programs. The garbage collector would stall it for all of them.
    gc.collect()
    gc.freeze()
    say("ready")
    stalls = Stalls()
    while True:
        heard()
        say(stalls.take())


def be_pub(address: str, wanted: str) -> None:
    """Come up, and wait for all subscriptions; when asked, wait until they are lost, and for all of them again."""
    stalls = Stalls()
    begin = time.monotonic()
    with Pub() as pub:
        pub.dial(address)
        while True:
            while pub.subscriptions < int(wanted) and time.monotonic() - begin < _PATIENCE:
                gevent.sleep(0.002)
            say([pub.subscriptions, begin, time.monotonic(), stalls.take()])
            heard()
            while pub.subscriptions:
                gevent.sleep(0.002)
            say(stalls.take())
            begin = time.monotonic()


def main(count: int, patterns: int) -> None:
    switch = Child("switch", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    back, front = switch.hear()
    share = count // _PROCESSES
    subs = [Child("subs", front, number * share, share, patterns) for number in range(_PROCESSES)]
    for child in subs:
        child.hear()
    time.sleep(1.0)
    for child in (switch, *subs):
        child.ask()
    pub = Child("pub", back, share * _PROCESSES * patterns)
    try:
        got, begin, end, stall = pub.hear()
        show("the Pub comes up", got, end - begin, stall, switch, subs)
        time.sleep(1.0)
        switch.end()
        pub.ask()
        switch = Child("switch", back, front)
        switch.hear()
        begin = time.monotonic()
        got, _, end, stall = pub.hear()
        show("another switch", got, end - begin, stall, switch, subs)
    finally:
        for child in (pub, switch, *subs):
            child.end()


def show(what: str, got: int, seconds: float, stall: float, switch: Child, subs: list[Child]) -> None:
    theirs = " and ".join(f"{child.ask()}" for child in subs)
    print(f"{what}: {got} subscriptions in {seconds:.2f} s; "
          f"stalls: Pub {stall} ms, switch {switch.ask()} ms, Subs {theirs} ms", flush=True)  # fmt: skip


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    roles = {"switch": be_switch, "subs": be_subs, "pub": be_pub}
    if sys.argv[1:] and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        numbers = [int(each) for each in sys.argv[1:]]
        main(*(numbers + [5000, 1][len(numbers) :]))
