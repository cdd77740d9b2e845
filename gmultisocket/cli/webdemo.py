"""``gmultisocket demo --web``: the live page of ``contrib.monitor``, and a small world of peers that it shows.

A Pub has subscribers, some of which read slowly and miss messages, and all of which leave after a while and come again.
A Push has workers, and a Rep is asked. The rates rise and fall. Everything runs in this process, over a unix socket.
"""

from __future__ import annotations

import errno
import math
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

import gevent
from gevent.pool import Group
from gevent.pywsgi import WSGIServer

from ..contrib.monitor import Monitor
from ..errors import AddressInUse, MultiSocketError
from ..protocol import Pub, Pull, Push, Rep, Req, Sub
from .notes import note
from .receiving import until_signal

__all__ = ["serve"]

_SUBJECTS: Final = 10
_SIZE: Final = 2000
#: Of ten peers, so many are workers and askers; the others are subscribers.
_WORKERS: Final = 2
_ASKERS: Final = 1
#: One subscriber in so many reads slowly.
_SLOW: Final = 20
#: Seconds after which rates are as they were.
_PERIOD: Final = 40.0


def serve(port: int, peers: int) -> int:
    """Serve the page until a signal, and return the exit status.

    Args:
        port: on the loopback interface; 0 for a free one.
        peers: how many there are.

    Raises:
        AddressInUse: another program has the port.
    """
    monitor = Monitor("", authorize=None)
    server = WSGIServer(("127.0.0.1", port), monitor, log=None)
    try:
        server.start()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise AddressInUse(f"127.0.0.1:{port}", "another program has the port") from error
    try:
        with tempfile.TemporaryDirectory(prefix="gmultisocket-") as folder, _World(folder) as world:
            world.start(peers)
            note(f"listening at http://127.0.0.1:{server.server_port}/")
            with until_signal(True):
                world.join()
    finally:
        monitor.stop()
        server.stop(timeout=1)
    return 0


class _World:
    """The sockets that the page shows. A context manager.

    Args:
        folder: for the socket files.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._random = random.Random()
        self._greenlets = Group()
        self._feed = Pub({"socket.name": "feed"})
        self._jobs = Push({"socket.name": "jobs"})
        self._rep = Rep(self._answer, {"socket.name": "answers"}, concurrency=10)

    def __enter__(self) -> _World:
        return self

    def __exit__(self, *error: object) -> None:
        self._greenlets.kill()
        for sock in (self._feed, self._jobs, self._rep):
            sock.close(0)

    def start(self, peers: int) -> None:
        """Start everything. Blocks until the servers listen."""
        for sock, name in ((self._feed, "feed"), (self._jobs, "jobs"), (self._rep, "rep")):
            sock.listen(self._address(name))
        self._rep.start()
        self._greenlets.spawn(self._publish)
        self._greenlets.spawn(self._hand_out)
        workers = peers * _WORKERS // 10
        askers = peers * _ASKERS // 10
        for number in range(peers):
            live = self._work if number < workers else self._ask if number < workers + askers else self._subscribe
            self._greenlets.spawn(self._live_again, live, number)

    def join(self) -> None:
        """Block until all ends."""
        self._greenlets.join(raise_error=True)

    def _address(self, name: str) -> str:
        return f"ipc://{self._folder}/{name}"

    # The servers

    def _pause(self, rate: float) -> None:
        """Wait as long as it takes at a rate that rises and falls."""
        gevent.sleep(1 / (rate * (1 + 0.8 * math.sin(monotonic() * 2 * math.pi / _PERIOD))))

    def _publish(self) -> None:
        content = bytes(_SIZE)
        while True:
            self._feed.publish(f"prices.{self._random.randrange(_SUBJECTS)}", content)
            self._pause(100)

    def _hand_out(self) -> None:
        while True:
            self._jobs.send(b"job")
            self._pause(100)

    def _answer(self, question: bytes) -> bytes:
        gevent.sleep(self._random.expovariate(50))
        return b"answer to " + question

    # The peers

    def _live_again(self, live: Callable[[int], None], number: int) -> None:
        """Connect, stay for about a minute, disconnect, and begin again."""
        gevent.sleep(self._random.random())
        while True:
            with suppress(MultiSocketError):
                gevent.with_timeout(self._random.uniform(20, 120), live, number, timeout_value=None)
            gevent.sleep(self._random.uniform(0, 4))

    def _subscribe(self, number: int) -> None:
        with Sub({"socket.name": "subscribers"}) as sub:
            sub.dial(self._address("feed"))
            sub.subscribe(">" if number % _SLOW == 0 else f"prices.{number % _SUBJECTS}")
            while True:
                sub.recv()
                if number % _SLOW == 0:
                    gevent.sleep(self._random.expovariate(10))

    def _work(self, number: int) -> None:
        with Pull({"socket.name": "workers"}) as pull:
            pull.dial(self._address("jobs"))
            while True:
                pull.recv()
                gevent.sleep(self._random.expovariate(20))

    def _ask(self, number: int) -> None:
        with Req({"socket.name": "askers"}) as req:
            req.dial(self._address("rep"))
            while True:
                req.request(b"question")
                self._pause(5)
