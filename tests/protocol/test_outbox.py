"""What is owed to peers: in order, one for each key, and none of them held up by another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gmultisocket import Message, Pipe, Socket
from gmultisocket.protocol import ProtocolBase
from gmultisocket.protocol.outbox import Outbox
from gmultisocket.testing import wait_until

LONG = 10.0


class Owing(ProtocolBase):
    """A protocol that does nothing but owe."""

    def __init__(self, **more: Any) -> None:
        super().__init__({"socket.send_queue_size": 1, "socket.send_overflow": "drop_newest"})
        self.outbox = Outbox(self._core, self._spawn, **more)


@contextmanager
def owing_to(*peers: Socket, **more: Any) -> Iterator[tuple[Owing, list[Pipe]]]:
    """One that owes, and its pipes to the peers, in their order."""
    with Owing(**more) as owing:
        address = owing.listen("inproc://owing").address
        pipes = []
        for peer in peers:
            peer.dial(address)
            pipes += [pipe for pipe in owing.pipes.values() if pipe not in pipes]
        yield owing, pipes


def test_messages_leave_in_order_and_one_for_each_key() -> None:
    with Socket() as peer, owing_to(peer) as (owing, (pipe,)):
        for key, content in ((1, b"first"), (2, b"second"), (3, b"third"), (2, b"second again")):
            owing.outbox.post(pipe, key, Message(content=content))
        assert owing.outbox.waiting(pipe) == 3
        pending = owing.outbox.pending(pipe, 2)
        assert pending is not None and pending.content == b"second again"
        owing.outbox.forget(pipe, 3)
        owing.outbox.forget(pipe, 4)
        assert owing.outbox.pending(pipe, 3) is None
        owing.outbox.flush(LONG)
        assert [peer.recv(LONG), peer.recv(LONG)] == [b"first", b"second again"]
        assert owing.outbox.waiting(pipe) == 0 and peer.queued == 0


def test_a_peer_that_does_not_read_loses_nothing_and_holds_up_nobody() -> None:
    with Socket({"socket.recv_queue_size": 1}) as stuck, Socket() as other:
        with owing_to(stuck, other) as (owing, (to_stuck, to_other)):
            for number in range(10):
                for pipe in (to_stuck, to_other):
                    owing.outbox.post(pipe, number, Message(content=b"%d" % number))
            assert [other.recv(LONG) for _ in range(10)] == [b"%d" % number for number in range(10)]
            assert owing.outbox.waiting(to_stuck) == 8
            assert [stuck.recv(LONG) for _ in range(10)] == [b"%d" % number for number in range(10)]
            assert owing.counters.drops == {}


def test_what_may_leave_at_once_does_and_comes_after_what_waits() -> None:
    told: list[Pipe] = []
    with Socket({"socket.recv_queue_size": 2}) as peer, owing_to(peer, on_sent=told.append) as (owing, (pipe,)):
        owing.outbox.send(pipe, 1, Message(content=b"first"))
        assert peer.queued == 1 and owing.outbox.waiting(pipe) == 0 and told == [pipe]
        owing.outbox.post(pipe, 2, Message(content=b"second"))
        for content in (b"third", b"third again"):
            owing.outbox.send(pipe, 3, Message(content=content))
        assert owing.outbox.waiting(pipe) == 2
        assert [peer.recv(LONG) for _ in range(3)] == [b"first", b"second", b"third again"]
        # The peer's queue, and then the pipe's, are full.
        for number in range(4):
            owing.outbox.send(pipe, number, Message(content=b"%d" % number))
        assert pipe.full and owing.outbox.waiting(pipe) == 1
        assert [peer.recv(LONG) for _ in range(4)] == [b"0", b"1", b"2", b"3"]
        pipe.close()
        owing.outbox.send(pipe, 1, Message(content=b"late"))
        owing.outbox.flush(LONG)
        assert owing.outbox.waiting(pipe) == 0 and peer.queued == 0


@pytest.mark.parametrize("close", [True, False])
def test_what_is_owed_to_a_peer_that_goes_is_forgotten(close: bool) -> None:
    with Socket({"socket.recv_queue_size": 1}) as stuck, owing_to(stuck) as (owing, (pipe,)):
        for number in range(10):
            owing.outbox.post(pipe, number, Message(content=b"%d" % number))
        gevent.idle()
        assert owing.outbox.waiting(pipe) == 8
        if close:
            pipe.close()
            wait_until(lambda: owing.outbox.waiting(pipe) == 0)
        else:
            owing.outbox.flush(0)
            owing.close(0)
            assert owing.outbox.waiting(pipe) == 0


@pytest.mark.parametrize(
    ("limits", "allowed"), [((3, 0), 3), ((100, 3 * (256 + 10)), 3), ((0, 0), 1), ((100, 1), 1)], ids=str
)
def test_one_message_more_than_may_wait_closes_the_pipe_and_all_are_counted(
    limits: tuple[int, int], allowed: int
) -> None:
    """The limits are a number and bytes, 256 of which each message has besides its content. One may always wait."""
    with Socket({"socket.recv_queue_size": 1}) as stuck:
        with owing_to(stuck, limits=lambda: limits, close_reason="of mine", count_drops=True) as (owing, (pipe,)):
            # One arrives, and one is in the queue.
            for number in range(2):
                assert owing.outbox.post(pipe, number, Message(content=bytes(10)))
                wait_until(lambda: not owing.outbox.queues)
            for number in range(allowed):
                assert owing.outbox.post(pipe, number, Message(content=bytes(10)))
            assert owing.outbox.waiting(pipe) == allowed and not pipe.closed
            assert owing.outbox.post(pipe, allowed, Message(content=bytes(10))) is False
            assert pipe.closed and pipe.reason == "of mine"
            wait_until(lambda: not owing.outbox.queues)
            assert owing.counters.drops == {"peer gone": allowed + 1}
