"""What it takes to read the numbers of a Pub with many subscribers: ``stats()``, and a scrape of Prometheus.

    python3 -m benchmarks.scrape [PIPES]

The subscribers are plain sockets in another process. First they have nothing to read. Then they do not read what is
published, until the queue of every pipe has messages. Each figure is the median of 15 calls, with the least and the
most.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import gevent
from gevent import subprocess
from prometheus_client import CollectorRegistry, generate_latest

from gmultisocket import Pub
from gmultisocket.contrib.prometheus import Collector
from gmultisocket.core.stats import slowest_pipes

_CALLS = 15
#: Subscribes to everything, by hand, and reads nothing.
_SUBSCRIBERS = """
import socket, sys
peers = []
for _ in range(int(sys.argv[2])):
    peers.append(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
    peers[-1].sendall(bytes([0x21, 16, 0, 0, 0, 0, 0, 2, 1]) + b">")
sys.stdin.read()
"""


def _median(call: Callable[[], object]) -> str:
    times = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
        gevent.sleep(0.01)
    return f"{statistics.median(times):6.1f} ms ({min(times):.1f} to {max(times):.1f})"


def _scrape(folder: str | None) -> Callable[[], object]:
    registry = CollectorRegistry()
    registry.register(Collector(folder))
    return lambda: generate_latest(registry)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, Pub() as pub:
        port = pub.listen("tcp://127.0.0.1:0").address.rpartition(":")[2]
        command = [sys.executable, "-c", _SUBSCRIBERS, port, str(count)]
        subscribers = subprocess.Popen(command, stdin=subprocess.PIPE)
        pub.wait_pipes(count, timeout=60)
        while pub.subscriptions < count:
            gevent.sleep(0.1)
        rows = {
            "stats()": pub.stats,
            "a scrape": _scrape(None),
            "a scrape, with a folder": _scrape(folder),
            "the slowest ten": lambda: slowest_pipes(pub.pipes, 10),
        }
        for state in ("idle", "behind"):
            if state == "behind":
                while pub.stats()["send_queue"] < 10 * count:
                    pub.publish("topic", b"x" * 100_000)
                    gevent.sleep(0)
            for name, call in rows.items():
                print(f"{count} pipes {state:8}{name:26}{_median(call)}", flush=True)
        subscribers.kill()
        pub.close(0)


if __name__ == "__main__":
    main()
