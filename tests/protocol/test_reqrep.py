"""Requests and replies: whose reply is whose, who hears what when something dies, and the bytes of it all."""

from __future__ import annotations

import random
from pathlib import Path

import gevent
import pytest

from gmultisocket import Socket
from gmultisocket.errors import (
    Closed,
    MessageTooLong,
    NoPeers,
    PeerGone,
    PipeRefused,
    Timeout,
)
from gmultisocket.protocol import ReceivedRequest, Rep, Req, Request
from gmultisocket.testing import wait_until
from tests import addresses
from tests.protocol.net import Net

QUICK = {"connector.dialer.min_reconnect_time": 0.001, "connector.dialer.max_reconnect_time": 0.02}
LONG = 20.0


def upper(content: bytes) -> bytes:
    return content.upper()


# Everywhere


def test_a_request_is_answered(net: Net) -> None:
    with Rep(upper) as rep, Req() as req:
        net.connect(rep, req)
        rep.start()
        assert req.request(b"hello", LONG) == b"HELLO"
        assert req.request(b"", LONG) == b""
        assert req.in_flight == 0


def test_a_rep_may_dial_reqs(net: Net) -> None:
    with Req() as req, Rep(upper) as rep:
        net.connect(req, rep)
        rep.start()
        assert req.request(b"hello", LONG) == b"HELLO"


def test_a_thousand_requests_in_flight_over_ten_reps_get_their_own_replies_whatever_their_order(net: Net) -> None:
    asked: list[ReceivedRequest] = []

    def collect(rep: Rep) -> None:
        asked.extend(rep)

    with Req() as req:
        reps = [Rep() for _ in range(10)]
        net.connect(req, *reps)
        collectors = [gevent.spawn(collect, rep) for rep in reps]
        requests = [req.request_async(b"%d" % number, LONG) for number in range(1000)]
        wait_until(lambda: len(asked) == 1000, 20)
        assert req.in_flight == 1000
        random.shuffle(asked)
        for question in asked:
            assert question.reply(b"reply to " + question.content)
        replies = [request.get(LONG) for request in requests]
        assert replies == [b"reply to %d" % number for number in range(1000)]
        assert req.in_flight == 0
        for rep in reps:
            rep.close()
        gevent.joinall(collectors, raise_error=True)


def test_a_rep_and_a_req_speak_the_wire_as_written_by_hand(net: Net) -> None:
    with Rep(upper) as rep, Socket() as by_hand:
        net.connect(rep, by_hand)
        rep.start()
        by_hand.send(b"\x00\x00\x00\x2aask")
        assert by_hand.recv(LONG) == b"\x00\x00\x00\x2aASK"
    with Req() as req, Socket() as by_hand:
        net.connect(req, by_hand)
        request = req.request_async(b"ask", LONG)
        message = by_hand.recv_msg(LONG)
        assert message.send_type == 0 and message.flags == 0
        assert len(message.content) == 7 and message.content[4:] == b"ask"
        by_hand.send_to(message.source, message.content[:4] + b"told")
        assert request.get(LONG) == b"told"


def test_many_greenlets_ask_over_one_req(net: Net) -> None:
    with Rep(upper, concurrency=5) as rep, Req() as req:
        net.connect(rep, req)
        rep.start()
        asking = [gevent.spawn(req.request, b"from %d" % number, LONG) for number in range(200)]
        assert [greenlet.get(timeout=LONG) for greenlet in asking] == [b"FROM %d" % number for number in range(200)]


# Giving up


def test_a_timed_out_request_spoils_nothing_and_its_late_reply_is_counted(net: Net) -> None:
    with Req() as req, Rep() as rep:
        net.connect(req, rep)
        with pytest.raises(Timeout) as failure:
            req.request(b"first", 0.05)
        assert (failure.value.operation, failure.value.seconds) == ("request", 0.05)
        late = rep.recv(LONG)
        second = req.request_async(b"second", LONG)
        late.reply(b"too late")
        rep.recv(LONG).reply(b"in time")
        assert second.get(LONG) == b"in time"
        assert req.counters.drops == {"late": 1}


def test_a_cancelled_request_is_over_at_once_for_those_who_wait(direct: Net) -> None:
    with Req() as req, Rep() as rep:
        direct.connect(req, rep)
        request = req.request_async(b"")
        waiting = [gevent.spawn(request.get) for _ in range(3)]
        gevent.sleep(0)
        assert not request.done
        assert request.cancel() and request.done
        for greenlet in waiting:
            with pytest.raises(Closed, match="cancelled"):
                greenlet.get(timeout=LONG)
        assert not request.cancel()
        assert req.in_flight == 0
        rep.recv(LONG).reply(b"")
        wait_until(lambda: req.counters.drops == {"late": 1})


def test_a_request_may_be_waited_for_again_after_a_timeout_and_by_several(direct: Net) -> None:
    with Req() as req, Rep() as rep:
        direct.connect(req, rep)
        request = req.request_async(b"")
        with pytest.raises(Timeout):
            request.get(0.01)
        waiting = [gevent.spawn(request.get, LONG) for _ in range(3)]
        gevent.sleep(0)
        rep.recv(LONG).reply(b"reply")
        assert [greenlet.get(timeout=LONG) for greenlet in waiting] == [b"reply"] * 3
        assert request.get(0) == b"reply"
        assert not request.cancel()


def test_a_killed_asker_leaves_no_request_behind(direct: Net) -> None:
    with Req() as req, Rep() as rep:
        direct.connect(req, rep)
        asking = gevent.spawn(req.request, b"")
        rep.recv(LONG)
        assert req.in_flight == 1
        asking.kill()
        assert req.in_flight == 0


def test_closing_a_req_ends_its_requests_at_once() -> None:
    with Req() as req, Rep() as rep:
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        asking = gevent.spawn(req.request, b"", None)
        request = req.request_async(b"")
        rep.recv(LONG)
        assert req.close() == 0
        with pytest.raises(Closed):
            asking.get(timeout=LONG)
        with pytest.raises(Closed):
            request.get()


# Nobody to ask


def test_a_reply_may_be_polled_for_in_a_loop(direct: Net) -> None:
    with Rep(upper) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        request = req.request_async(b"hello")
        with gevent.Timeout(LONG):
            while True:
                try:
                    assert request.get(timeout=0) == b"HELLO"
                    break
                except Timeout:
                    assert not request.done


def test_without_peers_a_request_waits_for_one_within_its_timeout(direct: Net) -> None:
    with Req() as req, Rep(upper) as rep:
        address = rep.listen(direct.address()).address
        rep.start()
        with pytest.raises(Timeout):
            req.request(b"", 0.02)
        asking = gevent.spawn(req.request, b"patient", LONG)
        gevent.sleep(0)
        req.dial(address)
        assert asking.get(timeout=LONG) == b"PATIENT"


def test_without_peers_a_request_fails_at_once_if_the_socket_is_told_so() -> None:
    with Req({"socket.fail_no_peers": True}) as req:
        with pytest.raises(NoPeers):
            req.request(b"")
        assert req.in_flight == 0


def test_a_request_that_is_too_long_fails_where_it_is_made(direct: Net) -> None:
    with Req() as req, Rep(upper) as rep:
        direct.connect(req, rep)
        rep.start()
        with pytest.raises(MessageTooLong):
            req.request(bytes(131072))
        assert req.request(bytes(131068), LONG) == bytes(131068)
        assert req.in_flight == 0


# Peers that die


def test_a_request_fails_at_once_when_its_peer_goes(direct: Net) -> None:
    with Req() as req, Rep() as rep:
        direct.connect(req, rep)
        requests = [req.request_async(b"") for _ in range(3)]
        asking = gevent.spawn(req.request, b"", None)
        for _ in range(4):
            rep.recv(LONG)
        rep.close(0)
        for request in requests:
            with pytest.raises(PeerGone, match="closed the connection"):
                request.get(LONG)
        with pytest.raises(PeerGone):
            asking.get(timeout=LONG)
        assert req.in_flight == 0


def test_only_requests_of_the_pipe_that_closed_fail(direct: Net) -> None:
    with Req() as req, Rep() as doomed, Rep() as other:
        direct.connect(req, doomed, other)
        requests = [req.request_async(b"") for _ in range(4)]
        with_other = [other.recv(LONG) for _ in range(2)]
        doomed.close(0)
        wait_until(lambda: req.in_flight == 2)
        for question in with_other:
            question.reply(b"here")
        outcomes = sorted(outcome_of(request) for request in requests)
        assert outcomes == ["PeerGone", "PeerGone", "here", "here"]


def test_a_reply_that_came_before_the_peer_went_counts(direct: Net) -> None:
    with Req(QUICK) as req, Socket() as by_hand:
        address = by_hand.listen(direct.address()).address
        req.dial(address)
        for number in range(20):
            req.wait_pipes(1, LONG)
            (pipe,) = req.pipes.values()
            request = req.request_async(b"", LONG)
            message = by_hand.recv_msg(LONG)
            by_hand.send_to(message.source, message.content + b"%d" % number)
            by_hand.close_pipe(message.pipe_id)
            assert request.get(LONG) == b"%d" % number
            wait_until(lambda pipe=pipe: pipe.closed)  # type: ignore[misc]


def test_with_retry_another_peer_is_asked(direct: Net) -> None:
    with Req() as req, Rep() as doomed, Rep(upper) as other:
        direct.connect(req, doomed)
        asking = gevent.spawn(req.request, b"twice", LONG, retry=1)
        doomed.recv(LONG)
        other.start()
        other.dial(next(iter(req.socket.listeners)).address)
        req.wait_pipes(2, LONG)
        doomed.close(0)
        assert asking.get(timeout=LONG) == b"TWICE"


def test_with_retry_a_request_outlives_the_restart_of_its_rep(direct: Net) -> None:
    with Req(QUICK) as req:
        first = Rep()
        address = first.listen(direct.address()).address
        req.dial(address)
        asking = gevent.spawn(req.request, b"patient", LONG, retry=1)
        first.recv(LONG)
        first.close(0)
        wait_until(lambda: not req.pipes)
        with pytest.raises(Timeout):
            req.request(b"nobody is there", 0.02)
        with Rep(upper) as second:
            second.start()
            second.listen(address)
            assert asking.get(timeout=LONG) == b"PATIENT"


def test_retry_ends_when_as_many_peers_have_died(direct: Net) -> None:
    with Req(QUICK) as req, Socket() as by_hand:
        req.dial(by_hand.listen(direct.address()).address)
        request = req.request_async(b"", LONG, retry=2)
        for _ in range(3):
            assert not request.done
            message = by_hand.recv_msg(LONG)
            by_hand.close_pipe(message.pipe_id)
        with pytest.raises(PeerGone):
            request.get(LONG)


def test_a_request_given_up_while_it_waits_for_another_peer_is_never_sent(direct: Net) -> None:
    with Req(QUICK) as req, Rep() as doomed:
        address = doomed.listen(direct.address()).address
        req.dial(address)
        given_up = req.request_async(b"given up", LONG, retry=5)
        kept = req.request_async(b"kept", LONG, retry=5)
        for _ in range(2):
            doomed.recv(LONG)
        doomed.close(0)
        wait_until(lambda: not req.pipes)
        given_up.cancel()
        with Rep() as second:
            second.listen(address)
            question = second.recv(LONG)
            assert question.content == b"kept"
            question.reply(b"")
            assert kept.get(LONG) == b""
            assert second.socket.queued == 0


@pytest.mark.parametrize("transport", ["ipc", "tcp", "ws"])
def test_a_request_that_never_left_a_dead_pipe_is_answered_by_another_rep(transport: str, tmp_path: Path) -> None:
    """Once, that is. Whatever had left fails with PeerGone instead, and is executed by nobody else."""
    executed: list[bytes] = []

    def execute(content: bytes) -> bytes:
        executed.append(content)
        return content[:4]

    address = addresses.TRANSPORTS[transport](tmp_path)
    small = {"transport.tcp.write_buffer": 20_000, "transport.tcp.read_buffer": 20_000}
    with Req(small) as req, Socket({**small, "socket.recv_queue_size": 1}) as stuck, Rep(execute) as rep:
        stuck.dial(req.listen(address).address)
        req.wait_pipes(1, LONG)
        (pipe,) = req.pipes.values()
        requests = []
        while pipe.queued < 20:
            requests.append(req.request_async(b"%4d" % len(requests) + bytes(100_000), LONG))
        rep.start()
        rep.dial(next(iter(req.socket.listeners)).address)
        req.wait_pipes(2, LONG)
        pipe.close()
        outcomes = [outcome_of(request) for request in requests]
        answered = [number for number, outcome in enumerate(outcomes) if outcome != "PeerGone"]
        assert set(outcomes[: answered[0]]) == {"PeerGone"}, "what had left"
        assert 19 <= len(answered) <= 20, "what was queued, but for a frame of which a part had left"
        assert [int(content[:4]) for content in executed] == answered
        stuck.close(0)


# Peers that lie


def test_a_reply_from_somebody_else_is_ignored(direct: Net) -> None:
    with Req() as req, Socket() as asked, Socket() as liar:
        direct.connect(req, asked, liar)
        by_pipe = {}
        first = req.request_async(b"", LONG)
        second = req.request_async(b"", LONG)
        for sock in (asked, liar):
            by_pipe[sock] = sock.recv_msg(LONG)
        liar.send_to(by_pipe[liar].source, by_pipe[asked].content[:4] + b"a lie")
        wait_until(lambda: req.counters.drops == {"garbage": 1})
        for sock, message in by_pipe.items():
            sock.send_to(message.source, message.content[:4] + b"the truth")
        assert (first.get(LONG), second.get(LONG)) == (b"the truth", b"the truth")


def test_a_second_reply_is_late(direct: Net) -> None:
    with Req() as req, Socket() as by_hand:
        direct.connect(req, by_hand)
        request = req.request_async(b"", LONG)
        message = by_hand.recv_msg(LONG)
        for _ in range(2):
            by_hand.send_to(message.source, message.content + b"reply")
        assert request.get(LONG) == b"reply"
        wait_until(lambda: req.counters.drops == {"late": 1})


def test_a_refused_req_still_has_its_requests_when_it_is_let_in(direct: Net) -> None:
    """A negotiator's refusal is a pipe that never was: nothing went to it."""
    refused = []

    def negotiator(negotiation: object) -> None:
        if not refused:
            refused.append(negotiation)
            raise PipeRefused("not yet")

    with Rep(upper) as rep, Req({**QUICK, "connector.dialer.dial_async": True}) as req:
        rep.start()
        rep.socket.set_negotiator(negotiator)
        req.dial(rep.listen(direct.address()).address)
        assert req.request(b"patient", LONG, retry=100) == b"PATIENT"
        assert refused


def outcome_of(request: Request) -> str:
    try:
        return request.get(LONG).decode()
    except PeerGone:
        return "PeerGone"
