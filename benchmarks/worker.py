"""A fresh process of a benchmark: it runs one function of one work and exchanges JSON lines over stdin and stdout.

:class:`benchmarks.harness.Peer` starts it as ``python -m benchmarks.worker module:function '{"argument": ...}'``.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["await_ack", "burst_rounds", "hear", "listen_for_acks", "raise_descriptor_limit", "say"]

#: A worker ends by itself after so many seconds: its parent may have been killed.
_LIFETIME = 180
_STDIN = 0


def say(**fields: Any) -> None:
    """Send fields to the parent."""
    print(json.dumps(fields), flush=True)


def hear(*, in_loop: bool = False) -> dict[str, Any]:
    """Block until the parent sends fields, and return them.

    Args:
        in_loop: block only this greenlet, so that queued messages leave; otherwise the whole process stops.
    """
    if in_loop:
        from gevent.select import select

        select([_STDIN], [], [])
    line = b""
    # Not sys.stdin: a second line in its buffer would not wake up select().
    while not line.endswith(b"\n"):
        byte = os.read(_STDIN, 1)
        if not byte:
            sys.exit("the parent has ended")
        line += byte
    heard: dict[str, Any] = json.loads(line)
    return heard


def listen_for_acks(*, green: bool = True) -> Any:
    """Return a socket that listens at a port of loopback: the receivers connect to it, and acknowledge bursts.

    Args:
        green: wait for acknowledgements in gevent's loop, so that queued messages leave meanwhile.
    """
    sockets: Any = import_module("gevent.socket" if green else "socket")
    listener = sockets.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def await_ack(acks: Any) -> None:
    """Block until a burst is acknowledged."""
    if not acks.recv(1):
        raise ConnectionError("the receivers have ended")


def burst_rounds(acks: Any, burst: Callable[[], object], bursts: int) -> None:
    """Send bursts, and send the parent the seconds and the processor time of each round that it asks for.

    Never returns.

    Args:
        acks: a socket that gets a byte when all peers have a burst.
        burst: sends one burst.
        bursts: how many bursts a round has. One burst before the first round warms up, and shows that all peers are
            connected.
    """

    def send_bursts(count: int) -> None:
        for _ in range(count):
            burst()
            await_ack(acks)

    send_bursts(1)
    while True:
        hear()
        begin, processor = time.monotonic(), time.process_time()
        send_bursts(bursts)
        say(seconds=time.monotonic() - begin, processor=time.process_time() - processor)


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open descriptors as far as the system allows, and return the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def main() -> None:
    signal.alarm(_LIFETIME)
    raise_descriptor_limit()
    module, _, function = sys.argv[1].partition(":")
    getattr(import_module(f"benchmarks.{module}"), function)(**json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
