"""What a service tells systemd, or another supervisor with the same protocol: ready, stopping, alive (sd_notify(3)).

::

    with Socket() as server, service():
        server.listen("fd://feed")
        ...

Outside of a supervisor nothing is told, and nothing else changes. Sockets that systemd has made are listened with by
``fd://`` addresses.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gevent import Timeout
from gevent import socket as gsocket

from ..log import get_logger
from ..loop.periodic import Periodic
from ..transport.inherited import given_by_systemd

__all__ = ["given_by_systemd", "notify", "service", "watchdog_seconds"]

logger = get_logger("gmultisocket.contrib.systemd", at_once=True)

#: Seconds that the supervisor may take to receive a message.
_TIMEOUT = 1.0
#: How often the watchdog is fed in the time that it allows: a loop that is a little late is no reason for a restart.
_PER_INTERVAL = 3


def notify(**fields: object) -> bool:
    """Tell the supervisor something: ``notify(READY=1)``, ``notify(STATUS="12 peers")``, ``notify(STOPPING=1)``.

    ``RELOADING=1`` gets the ``MONOTONIC_USEC`` that systemd needs with it. Blocks for at most a second.

    Args:
        fields: by the names of sd_notify(3).

    Returns:
        Whether the supervisor was told. False without a supervisor, and after an error, which is logged.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if fields.get("RELOADING"):
        fields.setdefault("MONOTONIC_USEC", time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
    lines = [f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items()]
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with gsocket.socket(gsocket.AF_UNIX, gsocket.SOCK_DGRAM) as sock, Timeout(_TIMEOUT, TimeoutError("too slow")):
            # Connected: else the kernel calls the socket writable while the supervisor's queue is full.
            sock.connect(name)
            sock.sendall("\n".join(lines).encode())
    except OSError as error:
        logger.warning("the supervisor at %s could not be told %s: %s", address, ", ".join(fields), error)
        return False
    return True


def watchdog_seconds() -> float:
    """Return within how many seconds the supervisor wants to hear from this process each time; 0 for never."""
    text = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    return int(text) / 1e6 if mine and text.isascii() and text.isdigit() else 0.0


@contextmanager
def service(healthy: Callable[[], bool] | None = None) -> Iterator[None]:
    """Tell the supervisor that the program is ready now, that it lives while the body runs, and that it stops then.

    A greenlet feeds the watchdog. So a program whose event loop is blocked is restarted, if the unit has
    ``WatchdogSec=``.

    Args:
        healthy: called before the watchdog is fed, in the same greenlet. If it returns False or raises, the watchdog is
            not fed.
    """
    seconds = watchdog_seconds()

    def feed(elapsed: float, late: float) -> None:
        if healthy is None or healthy():
            notify(WATCHDOG=1)

    watchdog = Periodic(lambda: seconds / _PER_INTERVAL, feed)
    if seconds:
        watchdog.start()
    try:
        notify(READY=1)
        yield
    finally:
        notify(STOPPING=1)
        watchdog.stop()
        watchdog.join()
