"""The soak: peers of every kind of bad manners, again and again, beside peers that must not notice any of it.

``python3 -m tests.faults.soak SECONDS [PEERS] [SEED]`` in a checkout. ``test_soak.py`` runs it for some seconds, or for
as long as ``GMULTISOCKET_TEST_SOAK`` says.

A round is a number of faults in an order that the seed decides, and traffic of the good peers meanwhile: each asks and
gets its own answers, in order. After each round everything must be as it was: descriptors, greenlets, pipes. Memory may
grow in the first third of the time, when caches fill, and after that by :data:`GROWTH` and by 1 MiB an hour.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Final

import gevent

from gmultisocket import Socket
from gmultisocket.errors import Closed, MultiSocketError, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_DEST
from tests.addresses import plain_connection
from tests.certificates import HOST, dial_options, listen_options
from tests.faults.peers import frame, header, listening, reset, stuck
from tests.faults.process import MIB, many_descriptors, resident
from tests.oracle import Greenlets, descriptors

#: Bytes by which memory may grow after the first third.
GROWTH: Final = 4 * MIB
#: Faults of a round.
_FAULTS: Final = 30
#: Questions of each good peer in a round.
_QUESTIONS: Final = 3
#: Seconds that a round has to end in.
_PATIENCE: Final = 60.0

_OPTIONS: Final = {
    "socket.send_overflow": "drop_newest",
    "connector.pipe.frame_timeout": 0.3,
    "connector.listener.handshake_timeout": 0.3,
    "connector.listener.backlog": 4096,
}
_REDIAL: Final = {"connector.dialer.min_reconnect_time": 0.01, "connector.dialer.max_reconnect_time": 0.5}
_BAD: Final = (
    header(hops=255), header(hops=200, distance=56), header(TO_DEST), header(ttl=0), header(3), header(length=1 << 31),
    b"\xff" * 500, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes.fromhex("16030100c8010000c40303") + bytes(200),
)  # fmt: skip


class Soak:
    """The server, its good peers, and the bad ones that come and go."""

    def __init__(self, peers: int, seed: int, folder: str, stack: ExitStack) -> None:
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.server = stack.enter_context(Socket(_OPTIONS))
        addresses = (
            f"tcp://{HOST}:0", f"ipc://{folder}/socket", f"ws://{HOST}:0", f"tls+tcp://{HOST}:0", "inproc://soak",
        )  # fmt: skip
        self.listeners = [
            self.server.listen(address, listen_options() if "tls" in address else None) for address in addresses
        ]
        self.addresses = [listener.address for listener in self.listeners]
        #: Those that plain sockets connect to.
        self.kernel = self.addresses[:4]
        self.clients: list[Socket] = []
        #: Questions have numbers: an answer belongs to one of them.
        self._asked = 0
        self._answered: dict[Socket, int] = {}
        for number in range(peers):
            client = stack.enter_context(Socket(_REDIAL))
            address = self.addresses[number % len(self.addresses)]
            client.dial(address, dial_options() if "tls" in address else None)
            self.clients.append(client)
        self._answering = gevent.spawn(self._answer)
        stack.callback(self._answering.kill)

    def _answer(self) -> None:
        for message in self.server:
            with suppress(MultiSocketError):
                self.server.send_to(message.source, message.content[::-1])

    # A round

    def run_round(self) -> None:
        """Do some faults while the good peers talk, and wait until all is as before."""
        faults = [getattr(self, name) for name in dir(self) if name.startswith("fault_")]
        chosen = [self.rng.choice(faults) for _ in range(_FAULTS)]
        asking = gevent.spawn(self._ask_all)
        try:
            gevent.joinall([gevent.spawn(self._run, fault) for fault in chosen], _PATIENCE, raise_error=True)
            asking.get(timeout=_PATIENCE)
        finally:
            asking.kill()
        wait_until(self._settled, _PATIENCE)
        self._ask_all()

    def _run(self, fault: Callable[[], None]) -> None:
        gevent.sleep(self.rng.random() / 5)
        fault()
        self.done[fault.__name__.removeprefix("fault_")] += 1

    def _settled(self) -> bool:
        return len(self.server.pipes) == len(self.clients) and all(client.pipes for client in self.clients)

    def _ask_all(self) -> None:
        """Send a request from every good peer, and check the answers. Only those that a cut pipe had are lost."""
        for client in self.clients:
            for _ in range(_QUESTIONS):
                self._asked += 1
                client.send(b"%d?" % self._asked, timeout=_PATIENCE)
        last = self._asked - len(self.clients) * _QUESTIONS
        for client in self.clients:
            last += _QUESTIONS
            while self._answered.get(client, 0) < last and (number := self._next_answer(client)):
                assert self._answered.get(client, 0) < number <= last, "an answer that came twice, or not in order"
                self._answered[client] = number

    @staticmethod
    def _next_answer(client: Socket) -> int:
        """Return the number of the next answer. 0 if none comes: the pipe was cut after the question."""
        while True:
            try:
                answer = client.recv(timeout=0.5)
            except Timeout:
                return 0
            if not answer.startswith(b"all"):
                return int(answer[:0:-1])

    # The bad ones

    def _plain(self, address: str | None = None) -> Any:
        address = address or self.rng.choice(self.kernel)
        return closing(plain_connection(address.split("?")[0].rstrip("/"), 2.0))

    def fault_frame_that_is_cut(self) -> None:
        data = frame(bytes(1000), source=b"abcd" * 3)
        with self._plain() as peer:
            peer.sendall(data[: self.rng.randrange(len(data))])
            if self.rng.random() < 0.5:
                reset(peer)

    def fault_bad_bytes(self) -> None:
        with self._plain() as peer, suppress(OSError):
            peer.sendall(self.rng.choice(_BAD))
            peer.recv(1)

    def fault_random_bytes(self) -> None:
        with self._plain() as peer, suppress(OSError):
            peer.sendall(self.rng.randbytes(self.rng.randrange(1, 2000)))

    def fault_half_a_handshake(self) -> None:
        with self._plain() as peer, suppress(OSError):
            peer.sendall(self.rng.choice((b"\x16\x03\x01\x02\x00\x01", b"GET / HT", b"", bytes(5))))
            gevent.sleep(0.5)

    def fault_reader_that_is_stuck(self) -> None:
        with stuck(self.addresses[self.rng.randrange(2)]) as (peer,):
            for _ in range(20):
                self.server.send_all(b"all" + bytes(30_000), timeout=1)
                gevent.sleep(0)
            if self.rng.random() < 0.5:
                reset(peer)

    def fault_good_peer_that_loses_its_pipe(self) -> None:
        for pipe in list(self.rng.choice(self.clients).pipes.values()):
            pipe.close()

    def fault_peer_that_resets_its_dialer(self) -> None:
        with listening() as (silent, address), Socket(_REDIAL) as client:
            client.dial(address, {"connector.dialer.dial_async": True})
            for _ in range(3):
                reset(silent.accept()[0])

    def fault_socket_that_closes_under_its_users(self) -> None:
        sock = Socket()
        sock.dial(self.rng.choice(self.addresses[:3]))
        using = [gevent.spawn(self._use, sock.recv) for _ in range(5)]
        lonely = Socket()
        using += [gevent.spawn(self._use, lonely.send, b"x") for _ in range(5)]
        gevent.sleep(0)
        using[0].kill()
        sock.close()
        lonely.close()
        gevent.joinall(using, _PATIENCE, raise_error=True)

    @staticmethod
    def _use(function: Callable[..., object], *arguments: object) -> None:
        with suppress(Closed):
            function(*arguments)

    def fault_listener_that_restarts(self) -> None:
        with Socket(_OPTIONS) as server, Socket(_REDIAL) as client:
            address = server.listen(f"tcp://{HOST}:0").address
            dialer = client.dial(address)
            server.wait_pipes(1, _PATIENCE)
            [listener] = server.listeners
            listener.close()
            for pipe in list(server.pipes.values()):
                pipe.close()
            server.listen(address)
            wait_until(lambda: dialer.reconnects, _PATIENCE)
            client.send(b"found again", timeout=_PATIENCE)
            assert server.recv(timeout=_PATIENCE) == b"found again"

    def fault_calls_that_run_out_of_time(self) -> None:
        with Socket() as lonely:
            for function in (lambda: lonely.send(b"x", timeout=0.01), lambda: lonely.recv(timeout=0.01)):
                with suppress(Timeout):
                    function()
            with suppress(gevent.Timeout), gevent.Timeout(0.01):
                lonely.recv()


def soak(seconds: float, peers: int, seed: int) -> str:
    """Run it. Return what was done, for people.

    Raises:
        AssertionError: something did not come back to where it was.
    """
    greenlets = Greenlets()
    greenlets.install()
    trim = ctypes.CDLL(None).malloc_trim
    with tempfile.TemporaryDirectory() as folder, many_descriptors(3 * peers + 500), ExitStack() as stack:
        world = Soak(peers, seed, folder, stack)
        end = monotonic() + seconds
        settled_from = monotonic() + seconds / 3
        # Twice for what is made once: caches, thread pools.
        for _ in range(2):
            world.run_round()
        before = _state(world, greenlets)
        memory: list[int] = []
        rounds = 0
        began = settled = monotonic()
        while not rounds or monotonic() < end:
            world.run_round()
            rounds += 1
            wait_until(lambda: _state(world, greenlets) == before, 10, f"{_state(world, greenlets)} is {before} again")
            gc.collect()
            trim(0)
            if monotonic() >= settled_from or not memory:
                if len(memory) < 2:
                    settled = monotonic()
                memory.append(resident())
        hours = (monotonic() - settled) / 3600
        # The least of the first ones and of the last ones: what a round holds while it is measured is no growth.
        grown = min(memory[-3:]) - min(memory[1:4] or memory)
        done = f"{rounds} rounds in {monotonic() - began:.0f} s, {sum(world.done.values())} faults, seed {seed}"
        text = f"{done}; {before} as before, memory {grown / MIB:+.1f} MiB, drops {world.server.counters.drops}"
        assert grown <= GROWTH + hours * MIB, text
        return text


def _state(world: Soak, greenlets: Greenlets) -> dict[str, int]:
    return {
        "descriptors": len(descriptors()),
        "greenlets": len(greenlets.alive()),
        "pipes": len(world.server.pipes) + sum(len(client.pipes) for client in world.clients),
    }


if __name__ == "__main__":
    _seconds, _peers, _seed = [*map(int, sys.argv[1:]), *(60, 100, int.from_bytes(os.urandom(4)))[len(sys.argv) - 1 :]]
    print(f"seed {_seed}", file=sys.stderr, flush=True)
    os.chdir(Path(__file__).resolve().parent.parent.parent)
    print(soak(_seconds, _peers, _seed))
