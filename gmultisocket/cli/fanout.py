"""``gmultisocket perf fanout``: one Pub, and many Subs in a second process.

One publication follows the other: the next one is published when the last Sub has the one before. Each carries the time
at which it was published, by the system's monotonic clock, which both processes share. The second process takes the
times, and tells the first one on its standard output when all Subs have a publication, and at the end what it measured.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
import tempfile
from argparse import Namespace
from array import array
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import gevent
from gevent import subprocess
from gevent.event import Event
from gevent.pool import Pool

from ..errors import MultiSocketError
from ..protocol import Pub, Sub
from .connecting import make
from .progress import Progress

__all__ = ["measure", "subscribe"]

_TOPIC: Final = "perf"
_TIME: Final = struct.Struct(">d")
#: Subs that connect at the same time.
_CONNECTING: Final = 100
#: Descriptors that a process needs besides those of its connections.
_OTHER_DESCRIPTORS: Final = 64


def measure(
    arguments: Namespace, peers: int, size: int, times: int, percentiles: Callable[[Sequence[float]], str]
) -> list[str]:
    """Publish, and return the lines of the result. Blocks until all is done.

    Args:
        arguments: of the command.
        peers: how many Subs there are.
        size: of a message, in bytes; it has at least the 8 bytes of its time.
        times: how often it is published.
        percentiles: makes a text of some values.

    Raises:
        MultiSocketError: the system allows too few descriptors, or the second process failed.
    """
    _allow_descriptors(peers)
    size = max(size, _TIME.size)
    with tempfile.TemporaryDirectory(prefix="gmultisocket-") as folder, make(Pub, arguments) as sock:
        address = sock.listen(f"ipc://{folder}/perf.sock").address
        command = [sys.executable, "-m", "gmultisocket", "perf", "_subscribers", address, str(peers), str(times)]
        process: Any = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            return _publish(sock, process, peers, size, times, percentiles)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                stream.close()


def _publish(
    sock: Pub, process: Any, peers: int, size: int, times: int, percentiles: Callable[[Sequence[float]], str]
) -> list[str]:
    with Progress("connecting", peers) as progress:
        watching = gevent.spawn(_watch, sock, progress)
        try:
            _hear(process)
        finally:
            watching.kill()
    sock.wait_subscribers(_TOPIC, peers)
    padding = bytes(size - _TIME.size)
    # The first one warms up, and is not measured.
    _publish_one(sock, process, padding)
    with Progress("fanout", times) as progress:
        start = monotonic()
        for number in range(times):
            _publish_one(sock, process, padding)
            progress.show(number, unit="publications")
        seconds = monotonic() - start
    measured = json.loads(_hear(process))
    each, last = measured["each"], measured["last"]
    return [
        f"subscribers: {peers}",
        f"message size: {size} [B]",
        f"publications: {times}",
        f"deliveries: {peers * times / seconds:.0f} [msg/s]",
        f"latency to each: {percentiles(each)} [ms]",
        f"latency to last: {percentiles(last)} [ms]",
    ]


def _publish_one(sock: Pub, process: Any, padding: bytes) -> None:
    """Publish, and block until every Sub has it."""
    sock.publish(_TOPIC, _TIME.pack(monotonic()) + padding)
    _hear(process)


def _watch(sock: Pub, progress: Progress) -> None:
    while True:
        progress.show(len(sock.pipes), unit="peers")
        gevent.sleep(0.1)


def _hear(process: Any) -> bytes:
    """Return the next line of the second process."""
    line: bytes = process.stdout.readline()
    if not line:
        raise MultiSocketError("the process of the subscribers has failed")
    return line


def subscribe(arguments: Namespace, address: str, peers: int, times: int) -> None:
    """Run the second process."""
    _allow_descriptors(peers)
    each, last = array("d"), array("d")
    here = Event()
    times += 1

    def take(sock: Sub) -> None:
        for _ in range(times):
            _, content = sock.recv()
            each.append((monotonic() - _TIME.unpack_from(content)[0]) * 1e3)
            if len(each) % peers == 0:
                last.append(max(each[-peers:]))
                here.set()

    socks = [make(Sub, arguments) for _ in range(peers)]
    try:
        for sock in socks:
            sock.subscribe(_TOPIC)
        Pool(_CONNECTING).map(lambda sock: sock.dial(address), socks)
        print("connected", flush=True)
        taking = [gevent.spawn(take, sock) for sock in socks]
        for number in range(times):
            while len(last) <= number:
                here.clear()
                here.wait()
            print("here", flush=True)
        gevent.joinall(taking, raise_error=True)
        print(json.dumps({"each": list(each[peers:]), "last": list(last[1:])}), flush=True)
    finally:
        for sock in socks:
            sock.close(0)


def _allow_descriptors(peers: int) -> None:
    """Raise this process's limit of descriptors to what is needed, as far as the system allows."""
    needed = peers + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise MultiSocketError(f"{peers} peers need {needed} descriptors, and the limit is {hard}: see 'ulimit -n'")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
