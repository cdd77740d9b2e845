"""Guessed paths at a switch: how many ids per second a peer can try, and how often loops forward one message.

    python3 -m benchmarks.guessing

One peer sends frames to made-up ids, each under a source that it has made up, for a few seconds. A forged message
arrives when an id is that of an open pipe; the last column is how often that would happen at a switch with 10,000
pipes. Then one message with a ttl of 255 goes to all in a mesh of switches.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import gevent
from gevent import socket as gsocket

from gmultisocket import Message, Socket, Switch
from gmultisocket.wire import TO_ALL, TO_DEST, encode, pack_id

_SECONDS = 3.0
_PIPES = 10_000
_BATCH = 500

_SOURCES: dict[str, Callable[[int], bytes]] = {
    "one invented source": lambda number: pack_id(77),
    "a new one each time": lambda number: pack_id(number % (2**31 - 1) + 1),
}


def _guesses(source: Callable[[int], bytes], reconnect: bool) -> tuple[int, int]:
    """Return how many guesses were sent, and how many the switch has looked up."""
    numbers = itertools.count()
    sent = 0
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as switch:
        server.dial(back.listen("inproc://guessing").address)
        host, _, port = front.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
        end = time.monotonic() + _SECONDS
        sock = None
        while time.monotonic() < end:
            if sock is None:
                sock = gsocket.create_connection((host, int(port)))
            frames = []
            for number in itertools.islice(numbers, _BATCH):
                path = pack_id(1) + pack_id(random.randrange(1, 1 << 31))
                frames.append(encode(Message(TO_DEST, source=source(number), destination=path)))
            with suppress(OSError):
                sock.sendall(b"".join(frames))
            sent += _BATCH
            gevent.sleep(0)
            if reconnect:
                sock.close()
                sock = None
        if sock is not None:
            sock.close()
        while front.queued or front.pipes:
            gevent.sleep(0.01)
        return sent, switch.drops.get("BrokenPath", 0)


def _forwards(size: int, send_type: int) -> int:
    """Return how often the switches of a mesh have forwarded one message a second after it was sent."""
    with ExitStack() as stack:
        switches = [Switch(stack.enter_context(Socket()), stack.enter_context(Socket())) for _ in range(size)]
        for number, switch in enumerate(switches):
            switch.front.dial(switches[number - 1].back.listen(f"inproc://mesh-{number}").address)
        peer = stack.enter_context(Socket())
        peer.dial(switches[0].back.listen("inproc://mesh").address)
        for switch in switches:
            stack.enter_context(switch)
        peer.send_msg(Message(send_type, ttl=255))
        gevent.sleep(1)
        return sum(switch.forwarded for switch in switches)


def main() -> None:
    print(f"{'peer':36}{'sent/s':>10}{'tried/s':>10}{'forged/hour':>14}")
    for name, source in _SOURCES.items():
        for reconnect in (False, True):
            sent, tried = _guesses(source, reconnect)
            forged = tried / _SECONDS * 3600 * _PIPES / (1 << 31)
            what = f"{name}{', connects again' if reconnect else ''}"
            print(f"{what:36}{sent / _SECONDS:10,.0f}{tried / _SECONDS:10,.0f}{forged:14,.1f}")
    print(f"forwards of one message with ttl 255, ring of three switches: {_forwards(3, TO_ALL)}")


if __name__ == "__main__":
    main()
