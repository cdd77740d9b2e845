"""Reps that hang while others work: requests go to the others, and come back when the Rep has answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from gmultisocket import Message, Pipe, Socket
from gmultisocket.errors import Closed, Timeout
from gmultisocket.protocol import Rep, Req, Stream, StreamSocket
from gmultisocket.protocol import suspects as suspects_module
from gmultisocket.protocol.streamend import RESET
from gmultisocket.protocol.suspects import Suspects
from gmultisocket.testing import wait_until

LONG = 20.0
NEVER: dict[str, Any] = {"protocol.reqrep.probe_interval": 1e6}
AT_ONCE: dict[str, Any] = {"protocol.reqrep.probe_interval": 1e-6}
SHORT = 0.05

Addresses = Callable[[], str]


@contextmanager
def one_hangs(new_address: Addresses, options: dict[str, Any]) -> Iterator[tuple[Req, Socket, Rep]]:
    """Yield a Req, a peer that answers nothing by itself, and a Rep that answers."""
    with Req(options) as req, Socket({"socket.recv_queue_size": 1000}) as hung, Rep(bytes.upper) as rep:
        rep.start()
        req.dial(hung.listen(new_address()).address)
        req.dial(rep.listen(new_address()).address)
        yield req, hung, rep


def ask_until_timeout(req: Req) -> None:
    """Ask all peers, and let the request time out that is not answered."""
    requests = [req.request_async(b"x", LONG) for _ in req.pipes]
    wait_until(lambda: sum(request.done for request in requests) == len(requests) - 1)
    (unanswered,) = [request for request in requests if not request.done]
    with pytest.raises(Timeout):
        unanswered.get(SHORT)
    unanswered.cancel()


def answer(hung: Socket) -> int:
    """Answer everything that has come."""
    count = 0
    while hung.queued:
        message = hung.recv_msg(LONG)
        hung.send_to(message.source, message.content)
        count += 1
    return count


def suspect(req: Req) -> Pipe:
    (each,) = req._suspects.pipes.values()
    return each.pipe


def test_a_rep_that_hangs_gets_no_more_requests(new_address: Addresses) -> None:
    with one_hangs(new_address, NEVER) as (req, hung, _):
        ask_until_timeout(req)
        for _ in range(50):
            assert req.request(b"x", LONG) == b"X"
        wait_until(lambda: hung.queued)
        assert hung.queued == 1


def test_whatever_it_answers_ends_the_suspicion(new_address: Addresses) -> None:
    with one_hangs(new_address, NEVER) as (req, hung, _):
        ask_until_timeout(req)
        assert suspect(req) in req.pipes.values()
        wait_until(lambda: hung.queued)
        assert answer(hung) == 1
        wait_until(lambda: req.counters.drops == {"late": 1})
        assert not req._suspects.pipes
        requests = [req.request_async(b"y", LONG) for _ in range(10)]
        wait_until(lambda: hung.queued == 5)
        answer(hung)
        assert sorted(request.get(LONG) for request in requests) == [b"Y"] * 5 + [b"y"] * 5


def test_it_gets_a_probe_now_and_then(new_address: Addresses) -> None:
    with one_hangs(new_address, AT_ONCE) as (req, hung, _):
        ask_until_timeout(req)
        wait_until(lambda: hung.queued == 1)
        hung.recv(LONG)

        def ask() -> bool:
            request = req.request_async(b"z", LONG)
            probed = bool(req._by_pipe.get(suspect(req).id))
            if not probed:
                assert request.get(LONG) == b"Z"
            return probed

        wait_until(ask, LONG)
        wait_until(lambda: hung.queued == 1)
        answer(hung)
        wait_until(lambda: not req._suspects.pipes and not req.in_flight)


def test_when_all_hang_all_are_asked(new_address: Addresses) -> None:
    with Req(NEVER) as req, Socket() as one, Socket() as other:
        for hung in (one, other):
            req.dial(hung.listen(new_address()).address)
        for _ in range(6):
            with pytest.raises(Timeout):
                req.request(b"", SHORT)
        wait_until(lambda: (one.queued, other.queued) in ((3, 3), (2, 4), (4, 2)))
        assert len(req._suspects.pipes) == 2
        # One answers: it gets everything.
        answer(one)
        wait_until(lambda: len(req._suspects.pipes) == 1)
        before = other.queued
        for _ in range(4):
            req.request_async(b"", LONG)
        wait_until(lambda: one.queued == 4)
        assert other.queued == before


def test_a_rep_that_comes_gets_everything_and_when_it_goes_the_suspects_are_asked_again(new_address: Addresses) -> None:
    with Req(NEVER) as req, Socket() as hung:
        req.dial(hung.listen(new_address()).address)
        with pytest.raises(Timeout):
            req.request(b"", SHORT)
        with Rep(bytes.upper) as rep:
            rep.start()
            req.dial(rep.listen(new_address()).address)
            for _ in range(10):
                assert req.request(b"x", LONG) == b"X"
            assert hung.queued == 1
        wait_until(lambda: len(req.pipes) == 1)
        request = req.request_async(b"", LONG)
        wait_until(lambda: hung.queued == 2)
        answer(hung)
        assert request.get(LONG) == b""


def test_a_suspect_that_goes_is_forgotten(new_address: Addresses) -> None:
    with one_hangs(new_address, NEVER) as (req, hung, _):
        ask_until_timeout(req)
        hung.close()
        wait_until(lambda: len(req.pipes) == 1)
        assert not req._suspects.pipes
        assert req.request(b"x", LONG) == b"X"


def test_a_retried_request_passes_over_suspects(new_address: Addresses) -> None:
    with one_hangs(new_address, NEVER) as (req, hung, _), Socket() as dying:
        ask_until_timeout(req)
        address = dying.listen(new_address()).address
        req.dial(address, {"connector.dialer.reconnect": False})
        requests = [req.request_async(b"x", LONG, retry=1) for _ in range(2)]
        wait_until(lambda: dying.queued == 1)
        dying.close()
        assert [request.get(LONG) for request in requests] == [b"X"] * 2
        assert hung.queued == 1


def test_a_rep_whose_queue_is_full_is_waited_for_rather_than_a_suspect() -> None:
    options: dict[str, Any] = {**NEVER, "socket.send_queue_size": 1}
    with Req(options) as req, Socket() as hung, Socket({"socket.recv_queue_size": 1}) as busy:
        for number, peer in enumerate((hung, busy)):
            req.dial(peer.listen(f"inproc://busy-{number}").address)
        requests = [req.request_async(b"", LONG) for _ in range(2)]
        busy.send_to(busy.recv_msg(LONG).source, b"????")
        for request in requests:
            with pytest.raises(Timeout):
                request.get(SHORT)
            request.cancel()
        assert len(req._suspects.pipes) == 1
        asking = gevent.spawn(lambda: [req.request_async(b"", LONG) for _ in range(5)])
        for _ in range(5):
            busy.recv(LONG)
        asking.get(timeout=LONG)
        assert hung.queued == 1


@pytest.mark.parametrize("kind", ["timeout", "async", "gevent"])
def test_every_way_to_wait_too_long_counts(kind: str) -> None:
    with Req(NEVER) as req, Socket() as hung, Socket() as other:
        req.dial(hung.listen("inproc://ways").address)
        if kind == "timeout":
            with pytest.raises(Timeout):
                req.request(b"", SHORT)
        elif kind == "async":
            request = req.request_async(b"", LONG)
            with pytest.raises(Timeout):
                request.get(SHORT)
            assert not req._suspects.pipes
            request.cancel()
        else:
            with gevent.Timeout(SHORT, False):
                req.request(b"", LONG)
        assert suspect(req) in req.pipes.values()
        req.dial(other.listen("inproc://other-way").address)
        for _ in range(3):
            req.request_async(b"", LONG)
        assert (hung.queued, other.queued) == (1, 3)


def test_a_request_that_is_cancelled_and_one_that_others_overtook_are_no_sign() -> None:
    with Req(NEVER) as req, Socket() as by_hand:
        req.dial(by_hand.listen("inproc://no-sign").address)
        req.request_async(b"", LONG).cancel()
        slow, quick = req.request_async(b"", LONG), req.request_async(b"", LONG)
        by_hand.recv(LONG)
        by_hand.recv(LONG)
        message = by_hand.recv_msg(LONG)
        by_hand.send_to(message.source, message.content)
        assert quick.get(LONG) == b""
        with pytest.raises(Timeout):
            slow.get(SHORT)
        slow.cancel()
        assert not req._suspects.pipes


def test_without_the_option_a_rep_that_hangs_gets_its_share(new_address: Addresses) -> None:
    with one_hangs(new_address, {"protocol.reqrep.probe_interval": 0.0}) as (req, hung, _):
        for _ in range(3):
            ask_until_timeout(req)
        wait_until(lambda: hung.queued == 3)


def test_probes_become_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(suspects_module, "monotonic", lambda: now)
    with Req({"protocol.reqrep.probe_interval": 10.0}) as req, Socket() as hung, Socket() as other:  # type: ignore[arg-type]
        for number, peer in enumerate((hung, other)):
            req.dial(peer.listen(f"inproc://rarer-{number}").address)
        req.request_async(b"", LONG)
        (pipe_id,) = req._by_pipe
        pipe = req.pipes[pipe_id]
        suspects: Suspects = req._suspects
        suspects.timed_out(pipe, 0)
        probes = []
        while now < 1400:
            now += 1
            if suspects.probe() is pipe:
                probes.append(now - 1000)
        assert probes == [10, 30, 70, 130, 190, 250, 310, 370]
        # A full one gets none.
        now += 100
        pipe.full = True
        assert suspects.probe() is None
        pipe.full = False
        assert suspects.probe() is None
        now += 1
        assert suspects.probe() is pipe


def test_a_closed_req_has_no_suspects_and_raises(new_address: Addresses) -> None:
    with one_hangs(new_address, AT_ONCE) as (req, _, _):
        ask_until_timeout(req)
        req.close(0)
        assert not req._suspects.pipes
        with pytest.raises(Closed):
            req.request(b"", LONG)


def test_a_req_that_is_closing_sends_no_probes() -> None:
    options: dict[str, Any] = {**AT_ONCE, "socket.send_queue_size": 1}
    with Req(options) as req, Socket() as hung, Socket({"socket.recv_queue_size": 1}) as stuck:
        for number, peer in enumerate((hung, stuck)):
            req.dial(peer.listen(f"inproc://closing-{number}").address)
        requests = [req.request_async(b"", LONG) for _ in range(4)]
        for request in requests:
            with pytest.raises(Timeout):
                request.get(0.001)
            request.cancel()
        # The second request of the one that is stuck waits in its pipe: closing waits for it.
        closing = gevent.spawn(req.close, LONG)
        gevent.sleep(0)
        assert req._suspects.pipes and not req.closed
        with pytest.raises(Closed):
            req.request(b"", LONG)
        stuck.recv(LONG)
        stuck.recv(LONG)
        closing.get(timeout=LONG)


# The same for streams


def test_a_stream_that_does_not_answer_is_not_asked_again(new_address: Addresses) -> None:
    options: dict[str, Any] = {"protocol.stream.probe_interval": 1e6}
    with Stream(options) as client, Socket() as hung, Stream() as server:
        client.dial(hung.listen(new_address()).address)
        client.dial(server.listen(new_address()).address)
        accepting = gevent.spawn(list, server)
        # The first that was dialed is the first that is asked.
        with pytest.raises(Timeout):
            client.connect(SHORT)
        opened = [client.connect(LONG) for _ in range(10)]
        message = hung.recv_msg(LONG)
        assert message.content == b"\x00" and not hung.queued
        # A late answer makes it a peer like others.
        hung.send_msg(Message(0x22, source=b"\0\0\0\7", destination=message.source, content=b"\x01"))
        wait_until(lambda: not client._suspects.pipes)
        assert hung.recv(LONG) == RESET
        connecting = [gevent.spawn(client.connect, LONG) for _ in range(2)]
        wait_until(lambda: hung.queued == 1)
        wait_until(lambda: sum(greenlet.ready() for greenlet in connecting) == 1)
        gevent.killall(connecting)
        opened += [greenlet.value for greenlet in connecting if isinstance(greenlet.value, StreamSocket)]
        for connection in opened:
            connection.close()
        server.close(0)
        for connection in accepting.get(timeout=LONG):
            connection.close()
