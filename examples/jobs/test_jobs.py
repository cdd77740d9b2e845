"""What every protocol must do, and what this one promises: ``python3 -m pytest`` in this folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest
from jobs import AT_ONCE, MAX_WAITING, JobQueue, Worker

from gmultisocket import Message, Socket
from gmultisocket.errors import Closed, Timeout
from gmultisocket.testing import ProtocolChecks, wait_until
from gmultisocket.wire import CONTROL, TO_DEST

LONG = 10.0


class TestJobQueue(ProtocolChecks):
    address = "tcp://127.0.0.1:0"
    lacks = ("send", "recv")
    waits = ()
    garbage = (
        *ProtocolChecks.garbage,
        Message(content=b"\1\1"),
        Message(flags=CONTROL, content=b"\2\0"),
    )

    def make(self, options: Any = None) -> JobQueue:
        return JobQueue(options)

    def make_peer(self, options: Any = None) -> Worker:
        return Worker(options)

    def exchange(self, protocol: JobQueue, peer: Worker, content: bytes) -> bytes:
        protocol.put(content, self.limit)
        job = peer.take(self.limit)
        assert job.done()
        protocol.wait_done(self.limit)
        return job.content

    def exchange_by_hand(self, protocol: JobQueue, sock: Socket, content: bytes) -> bytes:
        sock.send_msg(Message(flags=CONTROL, content=b"\1\1"), self.limit)
        protocol.put(content, self.limit)
        job = sock.recv_msg(self.limit)
        number, arrived = job.content[:4], job.content[4:]
        done = Message(CONTROL | TO_DEST, destination=job.source, content=b"\2" + number)
        sock.send_msg(done, self.limit)
        protocol.wait_done(self.limit)
        return arrived

    def calls(self, protocol: JobQueue) -> dict[str, Any]:
        return {
            "put": lambda timeout: protocol.put(b"", timeout),
            "wait_done": protocol.wait_done,
        }


class TestWorker(ProtocolChecks):
    address = "tcp://127.0.0.1:0"
    lacks = ("send", "recv")
    waits = ("take",)
    garbage = (*ProtocolChecks.garbage, Message(content=b"\0\0\0"))

    def make(self, options: Any = None) -> Worker:
        return Worker(options)

    def make_peer(self, options: Any = None) -> JobQueue:
        return JobQueue(options)

    def exchange(self, protocol: Worker, peer: JobQueue, content: bytes) -> bytes:
        return TestJobQueue.exchange(self, peer, protocol, content)

    def exchange_by_hand(self, protocol: Worker, sock: Socket, content: bytes) -> bytes:
        ready = sock.recv_msg(self.limit)
        assert ready.flags & CONTROL and ready.content == b"\1\1"
        sock.send_to(ready.source, b"\0\0\0\7" + content, self.limit)
        job = protocol.take(self.limit)
        assert job.done() and sock.recv(self.limit) == b"\2\0\0\0\7"
        return job.content

    def calls(self, protocol: Worker) -> dict[str, Any]:
        return {"take": protocol.take, "start": lambda timeout: protocol.start(bytes)}


# What it promises itself


@contextmanager
def connected(workers: int = 1) -> Iterator[Any]:
    """A queue, and its workers."""
    with JobQueue() as queue:
        address = queue.listen("tcp://127.0.0.1:0").address
        made = [Worker() for _ in range(workers)]
        for worker in made:
            worker.dial(address)
        yield (queue, *made)
        for worker in made:
            worker.close()


def test_the_jobs_of_a_worker_that_leaves_are_given_again_in_their_order() -> None:
    with JobQueue() as queue, Worker({AT_ONCE: 3}) as leaver, Worker() as stayer:
        address = queue.listen("tcp://127.0.0.1:0").address
        for content in (b"1", b"2", b"3", b"4"):
            queue.put(content)
        leaver.dial(address)
        taken = [leaver.take(LONG) for _ in range(3)]
        assert taken[1].done()
        wait_until(lambda: queue.done == 1)
        leaver.close()
        with pytest.raises(Closed):
            taken[0].done()
        stayer.dial(address)
        again = []
        for _ in range(3):
            again.append(job := stayer.take(LONG))
            job.done()
        assert [job.content for job in again] == [b"1", b"3", b"4"]
        queue.wait_done(LONG)
        assert (queue.done, queue.given_again) == (4, 3)


def test_a_worker_takes_no_more_at_a_time_than_it_says() -> None:
    with connected(2) as (queue, one, other):
        for content in (b"1", b"2", b"3"):
            queue.put(content)
        first = [one.take(LONG), other.take(LONG)]
        with pytest.raises(Timeout):
            one.take(0)
        assert queue.stats()["jobs_waiting"] == 1 and queue.stats()["jobs_given"] == 2
        first[1].done()
        assert other.take(LONG).content == b"3"
        assert queue.close(0) == 2


def test_put_blocks_while_too_many_wait_and_ends_with_close() -> None:
    with JobQueue({MAX_WAITING: 1}) as queue:
        queue.put(b"waits")
        with pytest.raises(Timeout):
            queue.put(b"too many", timeout=0)
        blocked = gevent.spawn(pytest.raises, Closed, queue.put, b"too many")
        gevent.sleep(0)
        assert queue.close(0) == 1
        blocked.get(timeout=LONG)


def test_a_handler_that_raises_has_failed_its_job_and_gets_the_next(caplog: pytest.LogCaptureFixture) -> None:
    with connected() as (queue, worker):
        worker.start(int)
        for content in (b"1", b"no number", b"3"):
            queue.put(content)
        queue.wait_done(LONG)
        assert (queue.done, queue.failed) == (2, 1)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "a handler of a Worker failed" in record.getMessage() and record.exc_info


def test_an_answer_about_a_job_of_somebody_else_is_late() -> None:
    with connected() as (queue, worker), Socket() as stranger:
        queue.put(b"job")
        job = worker.take(LONG)
        stranger.dial(queue.socket.listeners[0].address)
        stranger.send_msg(Message(flags=CONTROL, content=b"\2\0\0\0\1"))
        wait_until(lambda: queue.counters.drops.get("late") == 1)
        assert queue.done == 0 and job.done()
        queue.wait_done(LONG)
