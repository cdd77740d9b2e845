"""Peers that ask and do not read the answers: what waits for them is bounded in number and in bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.core.pipes import bytespipe
from gmultisocket.protocol import Rep, Req, Respondent
from gmultisocket.testing import wait_until
from tests import addresses

LONG = 20.0
SIZE = 100_000
TRANSPORTS = ["inproc", "ipc", "tcp", "ws"]


def answer(content: bytes) -> bytes:
    return bytes(SIZE)


@pytest.mark.parametrize("kind", [Rep, Respondent])
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_unread_replies_are_bounded_in_bytes(
    transport: str, kind: type[Rep] | type[Respondent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For how long a peer that may not be written to any more can have sent something that nobody receives.
    monkeypatch.setattr(bytespipe, "DRAIN_TIMEOUT", 0.1)
    limit = 2_000_000
    options: dict[str, Any] = {"protocol.answers.max_waiting_bytes": limit}
    with kind(answer, options) as server, Socket({"socket.recv_queue_size": 1}) as stuck:
        stuck.dial(server.listen(addresses.TRANSPORTS[transport](tmp_path)).address)
        server.start()
        server.wait_pipes(1, LONG)
        (pipe,) = server.pipes.values()
        most = 0
        while not pipe.closed:
            stuck.send(b"\0\0\0\0", LONG)
            gevent.sleep(0)
            queue = server._outbox.queues.get(pipe)
            if queue is not None:
                assert queue.size <= limit
                most = max(most, len(queue.messages))
        assert "does not read" in pipe.reason
        assert 0 < most <= limit // SIZE
        wait_until(lambda: server.counters.drops.get("peer gone", 0) >= most)
        wait_until(lambda: not server._outbox.queues)
        stuck.close(0)
        server.close(0)


def test_one_reply_over_the_limit_may_wait_alone(tmp_path: Path) -> None:
    options: dict[str, Any] = {"protocol.answers.max_waiting_bytes": 1, "socket.send_queue_size": 1}
    with Rep(answer, options) as rep, Socket({"socket.recv_queue_size": 1}) as slow:
        slow.dial(rep.listen("inproc://alone").address)
        rep.start()
        # One is received, one waits in the pipe, one in the outbox.
        for _ in range(3):
            slow.send(b"\0\0\0\0", LONG)
        wait_until(lambda: rep._outbox.queues)
        for _ in range(3):
            assert len(slow.recv(LONG)) == SIZE + 4
        assert rep.counters.drops == {}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_peer_that_reads_may_have_more_under_way_than_the_limit(transport: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"protocol.answers.max_waiting_bytes": 4_000_000}
    handled: list[int] = []

    def handler(content: bytes) -> bytes:
        handled.append(int(content))
        return bytes(SIZE)

    with Rep(handler, options) as rep, Req() as req:
        req.dial(rep.listen(addresses.TRANSPORTS[transport](tmp_path)).address)
        rep.start()
        requests = [req.request_async(b"%d" % number, LONG) for number in range(300)]
        assert all(len(request.get(LONG)) == SIZE for request in requests)
        assert handled == list(range(300))
        assert rep.counters.drops == {} and not rep._held


@pytest.mark.parametrize("concurrency", [1, 2])
def test_requests_that_wait_are_answered_by_iteration_too(concurrency: int) -> None:
    options: dict[str, Any] = {"protocol.answers.max_waiting": 4, "socket.send_queue_size": 1}
    with Rep(None, options) as rep, Socket({"socket.recv_queue_size": 1}) as slow:
        slow.dial(rep.listen("inproc://iterated").address)

        def serve() -> None:
            for request in rep:
                gevent.sleep(0)
                request.reply(request.content)

        serving = [gevent.spawn(serve) for _ in range(concurrency)]
        for _ in range(2 + 4 + 2):
            slow.send(b"\0\0\0\0x", LONG)
        wait_until(lambda: rep._held)
        assert [slow.recv(LONG) for _ in range(8)] == [b"\0\0\0\0x"] * 8
        wait_until(lambda: not rep._held)
        assert rep.counters.drops == {}
    gevent.joinall(serving, raise_error=True)


@pytest.mark.parametrize("end", ["the peer goes", "close"])
def test_requests_that_wait_are_counted_when_they_end_unanswered(end: str) -> None:
    options: dict[str, Any] = {"protocol.answers.max_waiting": 4, "socket.send_queue_size": 1}
    with Rep(bytes, options) as rep, Socket({"socket.recv_queue_size": 1}) as stuck:
        stuck.dial(rep.listen("inproc://counted").address)
        rep.start()
        for _ in range(7):
            stuck.send(b"\0\0\0\0x", LONG)
        # One reply is received, one waits in the pipe, two in the outbox.
        wait_until(lambda: sum(len(held.messages) for held in rep._held.values()) == 3)
        if end == "close":
            rep.close(0)
            assert rep.counters.drops["closed"] == 3 + 2
        else:
            stuck.close(0)
            wait_until(lambda: rep.counters.drops.get("peer gone") == 3 + 2)
            assert not rep._held
