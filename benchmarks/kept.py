"""What a history costs a Pub: the processor time of a publish with one and without, in the publishing process.

The subscribers are plain connections of one plain epoll process, as in ``takers.py``. To a Pub with a history they say
what a Sub with ``recover=True`` says, so they get each publication with its position.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from . import takers
from .harness import Entry, Figure, Outcome, Plan, Round, Row, started
from .worker import hear, say

__all__ = ["rows"]

_SIZE = 64
_TOPIC = takers.pattern(1)
#: Publications in a row; then others run, as in a program that does something else too.
_BURST = 50
_WITH = "gmultisocket, history"
_ASK = b"\x05"


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [
        Row(
            f"pubsub-history-{peers}", f"publish {{size}} to {peers} tcp subscribers, processor time", "µs", False,
            [Entry(_WITH, partial(_spent, peers, True), "gmultisocket"),
             Entry("gmultisocket", partial(_spent, peers, False), "gmultisocket")],
            [Figure(_WITH, "gmultisocket", at_most=1.3)],
        )
        for peers in (1, 10, 100)
    ]  # fmt: skip


@contextmanager
def _spent(peers: int, history: bool, plan: Plan) -> Iterator[Round]:
    bursts = plan.count(400, part=40, quick=2)
    with started(plan) as start:
        publisher = start("kept:publish", peers=peers, history=history, bursts=bursts)
        start("kept:take", peers=peers, positions=history, **publisher.hear())

        def measure() -> Outcome:
            publisher.tell()
            return Outcome(publisher.hear()["spent"] * 1e6, _SIZE)

        yield measure


def publish(peers: int, history: bool, bursts: int) -> None:
    """Publish in bursts, and send the processor time of a publish for each round that the parent asks for (worker)."""
    import gevent

    from gmultisocket.protocol import MemoryHistory, Pub

    with Pub(history=MemoryHistory("prices.>") if history else None) as pub:
        say(port=pub.listen("tcp://127.0.0.1:0").address.rpartition(":")[2])
        pub.wait_subscribers(_TOPIC, peers, 30)
        content = b"x" * _SIZE
        # A history that is full: each publication pushes another one out.
        for _ in range(220):
            for _ in range(_BURST):
                pub.publish(_TOPIC, content)
            gevent.sleep(0.0001 * peers)
        while True:
            hear(in_loop=True)
            spent = 0.0
            for _ in range(bursts):
                begin = time.process_time()
                for _ in range(_BURST):
                    pub.publish(_TOPIC, content)
                # The turn ends.
                gevent.sleep(0)
                gevent.sleep(0)
                spent += time.process_time() - begin
                gevent.sleep(0.002 + 0.0001 * peers)
            say(spent=spent / bursts / _BURST)


def take(port: str, peers: int, positions: bool) -> None:
    """Connect, subscribe, and read what comes (worker)."""
    poll = select.epoll()
    connections = {}
    pattern = _TOPIC.encode()
    for number in range(peers):
        connection = socket.create_connection(("127.0.0.1", int(port)))
        contents = [takers.SUBSCRIBE + pattern]
        if positions:
            contents.insert(0, struct.pack(">cIBBH", _ASK, number + 1, 1, 0, len(pattern)) + pattern)
        for content in contents:
            connection.sendall(takers.control(content))
        connection.setblocking(False)
        poll.register(connection, select.EPOLLIN)
        connections[connection.fileno()] = connection
    buffer = bytearray(1 << 18)
    while True:
        for descriptor, _ in poll.poll():
            if not connections[descriptor].recv_into(buffer):
                return
