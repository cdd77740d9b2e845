"""How long a good host name waits beside 200 that get no answer. ``python3 benchmarks/lookups.py``

The system's ``getaddrinfo`` is replaced by one that answers at once, but for names under ``.invalid`` waits 1 s and
fails, in its thread. 200 dialers dial such names. Printed are, in seconds, how long it takes to dial a good name, at
first and again 3 s later; how long a task for gevent's own threads waits; and the number of threads of the process. Run
as a file, it measures the gmultisocket that PYTHONPATH names.
"""

from __future__ import annotations

import _socket
import socket
import time
from pathlib import Path
from typing import Any

import gevent

from gmultisocket import Socket

DEAD = 200
WAIT = 1.0

_real = _socket.getaddrinfo


def getaddrinfo(host: Any, port: Any, family: int = 0, kind: int = 0, protocol: int = 0, flags: int = 0) -> Any:
    if flags & socket.AI_NUMERICHOST:
        return _real(host, port, family, kind, protocol, flags)
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name.endswith(".invalid"):
        time.sleep(WAIT)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return _real("127.0.0.1" if name.endswith(".example") else host, port, family, kind, protocol, flags)


def timed(call: Any, *args: Any) -> float:
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def threads() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Threads:")[2].split()[0])


def main() -> None:
    _socket.getaddrinfo = getaddrinfo
    with Socket() as server, Socket({"connector.dialer.dial_timeout": 100.0}) as client:
        port = server.listen("tcp://127.0.0.1:0").address.rpartition(":")[2]
        for number in range(DEAD):
            client.dial(f"tcp://dead-{number}.invalid:80", {"connector.dialer.dial_async": True})
        gevent.sleep(0.01)
        for moment in ("at first", "after 3 s"):
            print(f"{moment}: good name {timed(client.dial, f'tcp://good.example:{port}'):.3f} s")
            print(f"{moment}: gevent's threads {timed(gevent.get_hub().threadpool.apply, len, ([],)):.3f} s")
            print(f"{moment}: {threads()} threads")
            if moment == "at first":
                gevent.sleep(3)


if __name__ == "__main__":
    main()
