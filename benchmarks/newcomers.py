"""A Pub comes up behind a switch with many Subs: how long until it has their subscriptions, and does a loop stall?

``python3 -m benchmarks.newcomers [SUBS [PATTERNS]]`` (5000 and 1)

The switch, the Pub and the Subs (in two processes) are in processes of their own. First the Pub comes up. Then the
process of the switch is killed, and another one takes its place. Printed are the seconds until the Pub has the last
subscription: since it dialed, and since the new switch listens. And for each process, how late a 10 ms timer was at the
worst, in ms. It measures the ``gmultisocket`` of the folder in which it is run.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import gevent

from gmultisocket import Socket, Switch
from gmultisocket.cli.collecting import collect_rarely
from gmultisocket.protocol import Pub, Sub

from .harness import Amount, Peer, Plan, started
from .worker import hear, say

_PROCESSES = 2
_PATIENCE = 60.0
#: Seconds for all of it.
_SECONDS = 170.0


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


def be_switch(back: str, front: str) -> None:
    """Pass on between two addresses, as ``gmultisocket switch`` does (worker)."""
    collect_rarely()
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)
    with Socket() as pubs, Socket() as subs, Switch(pubs, subs):
        say(back=pubs.listen(back).address, front=subs.listen(front).address)
        _tell_stalls()


def be_subs(address: str, first: int, count: int, patterns: int) -> None:
    """Subscribe (worker)."""
    subs = []
    for number in range(first, first + count):
        sub = Sub({"connector.dialer.dial_timeout": 60.0})
        for pattern in range(patterns):
            sub.subscribe(f"topic.{number}.{pattern}")
        sub.dial(address)
        subs.append(sub)
    # This process stands for thousands of programs with a Sub each. None of these would make enough objects for the
    # garbage collector to run; here it would run for all of them.
    gc.disable()
    say()
    _tell_stalls()


def _tell_stalls() -> None:
    stalls = Stalls()
    while True:
        hear(in_loop=True)
        say(stall=stalls.take())


def be_pub(address: str, wanted: int) -> None:
    """Wait for all subscriptions; when asked, wait until they are lost, and for all of them again (worker)."""
    stalls = Stalls()
    begin = time.monotonic()
    with Pub() as pub:
        pub.dial(address)
        while True:
            while pub.subscriptions < wanted and time.monotonic() - begin < _PATIENCE:
                gevent.sleep(0.002)
            say(got=pub.subscriptions, begin=begin, end=time.monotonic(), stall=stalls.take())
            hear(in_loop=True)
            while pub.subscriptions:
                gevent.sleep(0.002)
            say(stall=stalls.take())
            begin = time.monotonic()


def main(count: int = 5000, patterns: int = 1) -> None:
    """Measure, and print."""
    share = count // _PROCESSES
    plan = Plan(Amount.FULL, _SECONDS, Path.cwd())
    with started(plan) as start:
        with started(plan) as start_switch:
            switch = start_switch("newcomers:be_switch", back="tcp://127.0.0.1:0", front="tcp://127.0.0.1:0")
            addresses = switch.hear()
            front = addresses["front"]
            subs = [
                start("newcomers:be_subs", address=front, first=number * share, count=share, patterns=patterns)
                for number in range(_PROCESSES)
            ]
            for peer in subs:
                peer.hear()
            time.sleep(1.0)
            for peer in (switch, *subs):
                _stall(peer)
            pub = start("newcomers:be_pub", address=addresses["back"], wanted=share * _PROCESSES * patterns)
            heard = pub.hear()
            _show("the Pub comes up", heard, heard["begin"], switch, subs)
            time.sleep(1.0)
        # The switch has been killed.
        _stall(pub)
        switch = start("newcomers:be_switch", **addresses)
        switch.hear()
        begin = time.monotonic()
        _show("another switch", pub.hear(), begin, switch, subs)


def _stall(peer: Peer) -> float:
    peer.tell()
    return float(peer.hear()["stall"])


def _show(what: str, heard: dict[str, float], begin: float, switch: Peer, subs: list[Peer]) -> None:
    theirs = " and ".join(f"{_stall(peer):.0f}" for peer in subs)
    stalls = f"Pub {heard['stall']:.0f} ms, switch {_stall(switch):.0f} ms, Subs {theirs} ms"
    print(f"{what}: {heard['got']} subscriptions in {heard['end'] - begin:.2f} s; stalls: {stalls}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
