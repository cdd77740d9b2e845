"""Handlers that fail: their Reqs are told at once, over every transport and through switches; Go can read the wire."""

from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Message, Socket, Switch
from gmultisocket.errors import HandlerFailed, NotSupported, PeerGone, Timeout
from gmultisocket.protocol import Rep, Req, Respondent, Surveyor
from gmultisocket.testing import wait_until
from gmultisocket.wire import INTERNAL, TO_DEST, TO_ONE, Decoder, encode
from tests.protocol.net import TRANSPORTS, Net

LONG = 20.0
PASSWORD = "the password is hunter2"


@pytest.fixture(params=[f"{transport}-{switches}" for transport in TRANSPORTS for switches in (0, 1, 3)])
def net(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    """A net for each transport, direct and with one and three switches."""
    transport, switches = request.param.split("-")
    made = Net(transport, int(switches), tmp_path)
    yield made
    made.close()


def fail(content: bytes) -> bytes:
    if content == b"good":
        return content
    raise RuntimeError(PASSWORD)


def test_a_request_whose_handler_fails_fails_at_once_and_others_are_served(net: Net) -> None:
    with Rep(fail) as rep, Req() as req:
        net.connect(rep, req)
        rep.start()
        bad = [req.request_async(b"bad") for _ in range(3)]
        for request in bad:
            with pytest.raises(HandlerFailed) as caught:
                request.get(LONG)
            # What went wrong is for the log of the Rep. Only that it went wrong crosses the wire.
            assert caught.value.why == "" and "hunter2" not in str(caught.value)
            assert request.done and not request.cancel()
        with pytest.raises(HandlerFailed):
            req.request(b"bad", LONG)
        assert req.request(b"good", LONG) == b"good"
        assert req.in_flight == 0 and req.counters.drops == rep.counters.drops == {}


def test_a_rep_sends_the_text_of_an_error_if_an_option_says_so() -> None:
    def handler(content: bytes) -> bytes:
        raise ValueError(content.decode())

    with Rep(handler, {"protocol.reqrep.send_errors": True}) as rep, Req() as req:
        req.dial(rep.listen("tcp://127.0.0.1:0").address)
        rep.start()
        for text, why in (("no such user", "ValueError: no such user"), ("\x1b[2J\n", r"ValueError: \x1b[2J\n")):
            with pytest.raises(HandlerFailed) as caught:
                req.request(text.encode(), LONG)
            assert caught.value.why == why
            assert str(caught.value) == f"the handler of the request failed: {why}"
        with pytest.raises(HandlerFailed) as caught:
            req.request(b"x" * 100_000, LONG)
        assert len(caught.value.why) == 200


def test_a_request_that_failed_is_not_sent_to_another_rep() -> None:
    calls = 0

    def handler(content: bytes) -> bytes:
        nonlocal calls
        calls += 1
        raise RuntimeError

    with Req() as req, Rep(handler) as one, Rep(handler) as other:
        address = req.listen("tcp://127.0.0.1:0").address
        for rep in (one, other):
            rep.dial(address)
            rep.start()
        req.wait_pipes(2, LONG)
        with pytest.raises(HandlerFailed):
            req.request(b"", LONG, retry=5)
        assert calls == 1 and req.in_flight == 0


def test_a_rep_that_fails_is_no_rep_that_hangs() -> None:
    """It answers, so it keeps its share of the requests."""

    def handler(content: bytes) -> bytes:
        raise RuntimeError

    with Req({"protocol.reqrep.probe_interval": 3600.0}) as req, Rep(handler) as bad, Rep(bytes) as good:
        address = req.listen("tcp://127.0.0.1:0").address
        for rep in (bad, good):
            rep.dial(address)
            rep.start()
        req.wait_pipes(2, LONG)
        outcomes = []
        for _ in range(20):
            try:
                outcomes.append(req.request(b"x", LONG))
            except HandlerFailed:
                outcomes.append(b"failed")
        assert outcomes.count(b"failed") == outcomes.count(b"x") == 10


def test_one_that_was_silent_and_then_fails_gets_its_share_again() -> None:
    go = Event()

    def handler(content: bytes) -> bytes:
        go.wait()
        raise RuntimeError

    with Req({"protocol.reqrep.probe_interval": 3600.0}) as req, Rep(handler) as bad, Rep(bytes) as good:
        req_address = req.listen("tcp://127.0.0.1:0").address
        bad.dial(req_address)
        bad.start()
        req.wait_pipes(1, LONG)
        with pytest.raises(Timeout):
            req.request(b"", timeout=0.01)
        good.dial(req_address)
        good.start()
        req.wait_pipes(2, LONG)
        assert {req.request(b"x", LONG) for _ in range(6)} == {b"x"}
        go.set()
        # The request that timed out fails now: too late, but it shows that the Rep answers.
        wait_until(lambda: req.counters.drops.get("late"))
        with pytest.raises(HandlerFailed):
            for _ in range(2):
                req.request(b"x", LONG)


def test_a_request_can_be_refused_by_hand(direct: Net) -> None:
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)
        request = req.request_async(b"")
        received = rep.recv(LONG)
        assert received.fail("not on \u2603 Sundays") and received.replied
        with pytest.raises(HandlerFailed) as caught:
            request.get(LONG)
        assert caught.value.why == r"not on \u2603 Sundays"
        for again in (received.fail, lambda: received.reply(b"")):
            with pytest.raises(NotSupported):
                again()


@pytest.fixture(params=TRANSPORTS)
def direct(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Net]:
    yield Net(request.param, 0, tmp_path)


def test_a_survey_is_not_refused() -> None:
    with Respondent() as respondent, Surveyor() as surveyor:
        surveyor.dial(respondent.listen("tcp://127.0.0.1:0").address)
        surveyor.wait_pipes(1, LONG)
        survey = surveyor.survey(b"", LONG)
        received = respondent.recv(LONG)
        with pytest.raises(NotSupported):
            received.fail()
        assert received.reply(b"here") and next(survey) == b"here"


def test_a_request_whose_req_has_gone_fails_quietly() -> None:
    with Rep() as rep:
        with Req() as req:
            req.dial(rep.listen("tcp://127.0.0.1:0").address)
            req.request_async(b"")
            received = rep.recv(LONG)
        wait_until(lambda: not rep.pipes)
        assert not received.fail()
        assert rep.counters.drops == {"peer gone": 1}


def test_failures_wait_for_a_req_that_does_not_read_as_replies_do() -> None:
    """They do not pass the limits of the outbox: a peer that asks and does not read is closed."""
    with Rep(fail, {"protocol.answers.max_waiting": 8, "socket.send_queue_size": 1}) as rep:
        rep.start()
        address = rep.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 4096}).address
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with gsocket.socket() as raw:
            raw.setsockopt(stdlib_socket.SOL_SOCKET, stdlib_socket.SO_RCVBUF, 1)
            raw.connect((host, int(port)))
            rep.wait_pipes(1, LONG)

            def ask() -> None:
                try:
                    while True:
                        raw.sendall(encode(Message(content=b"\0\0\0\1bad")) * 1000)
                except OSError:
                    pass

            asking = gevent.spawn(ask)
            wait_until(lambda: not rep.pipes, LONG)
            asking.kill()
        assert rep.counters.drops["peer gone"] > 0


# The wire


def request_by_hand(rep: Rep, content: bytes) -> tuple[bytes, bytes]:
    """Send a request as a Go program does. Return all bytes of the answer, and the id of the Rep's pipe."""
    host, _, port = rep.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
    with gsocket.create_connection((host, int(port))) as raw:
        raw.sendall(bytes.fromhex("00100000 00000004") + content)
        rep.wait_pipes(1, LONG)
        (pipe,) = rep.pipes.values()
        raw.settimeout(LONG)
        answer = b""
        while len(answer) < 8 or len(answer) < 12 + answer[7]:
            answer += raw.recv(1)
        return answer, pipe.path


def test_the_bytes_of_a_failure_are_those_that_are_documented() -> None:
    """Flags 0x06: internal, to a destination. The Go code drops every message with flag 0x04 without a look at it."""
    with Rep(fail) as rep:
        rep.start()
        answer, path = request_by_hand(rep, b"\xde\xad\xbe\xef")
    assert answer == bytes.fromhex("06100001 00000005") + path + bytes.fromhex("10 deadbeef")
    assert answer[0] & INTERNAL


def test_no_user_of_a_socket_and_no_older_peer_sees_a_failure(direct: Net) -> None:
    with Rep(fail) as rep, Socket() as by_hand:
        direct.connect(rep, by_hand)
        rep.start()
        for content in (b"\0\0\0\1bad", b"\0\0\0\2good"):
            by_hand.send(content)
        assert by_hand.recv(LONG) == b"\0\0\0\2good"
        assert by_hand.counters.drops == {"internal": 1}


@pytest.mark.parametrize(
    ("flags", "content", "counted"),
    [
        (INTERNAL | TO_DEST, b"\x10\0\0\0", "internal"),  # no whole id
        (INTERNAL | TO_DEST, b"\x10\xff\xff\xff\xff", "late"),  # of no request
        (INTERNAL | TO_DEST, b"\x11\xff\xff\xff\xff", "internal"),  # of no kind that is known
        (INTERNAL | TO_DEST, b"", "internal"),
        (INTERNAL | TO_DEST, b"\x00", "internal"),  # who is at the end of a path cannot close the pipe
        (INTERNAL | TO_ONE, b"\x10\xff\xff\xff\xff", "internal"),
    ],
)
def test_a_failure_that_makes_no_sense_is_counted_and_nothing_else(flags: int, content: bytes, counted: str) -> None:
    with Req() as req:
        host, _, port = req.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
        with gsocket.create_connection((host, int(port))) as raw:
            req.wait_pipes(1, LONG)
            request = req.request_async(b"")
            decoder = Decoder(7)
            messages: list[Message] = []
            while not messages:
                messages = decoder.feed(raw.recv(4096))
            raw.sendall(encode(Message(flags=flags, destination=b"\0\0\0\1", content=content)))
            wait_until(lambda: req.counters.drops == {counted: 1})
            assert not request.done
            # The pipe lives, and what makes sense is taken.
            reply = Message(flags=TO_DEST, destination=b"\0\0\0\1", content=messages[0].content[:4] + b"reply")
            raw.sendall(encode(reply))
            assert request.get(LONG) == b"reply"


def test_no_peer_fails_a_request_that_went_to_another_one() -> None:
    with Req() as req, Rep() as rep:
        address = req.listen("tcp://127.0.0.1:0").address
        rep.dial(address)
        req.wait_pipes(1, LONG)
        request = req.request_async(b"")
        received = rep.recv(LONG)
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with gsocket.create_connection((host, int(port))) as liar:
            failure = b"\x10" + received._id
            liar.sendall(encode(Message(flags=INTERNAL | TO_DEST, destination=b"\0\0\0\1", content=failure)))
            wait_until(lambda: req.counters.drops == {"garbage": 1})
            assert not request.done and received.reply(b"true") and request.get(LONG) == b"true"


@pytest.mark.parametrize("what", ["path", "ttl", "full"])
def test_a_switch_drops_and_counts_a_failure_that_cannot_go_on(what: str) -> None:
    with Socket({"socket.send_queue_size": 1}) as back, Socket() as front, Switch(back, front) as switch:
        host, _, port = front.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
        client_host, _, client_port = back.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
        with (
            gsocket.create_connection((host, int(port))) as raw,
            gsocket.create_connection((client_host, int(client_port))) as client,
        ):
            back.wait_pipes(1, LONG)
            (pipe,) = back.pipes.values()
            path = b"\0\0\0\1" + (b"\x7f\xff\xff\xff" if what == "path" else pipe.path)
            failure = Message(
                flags=INTERNAL | TO_DEST, ttl=1 if what == "ttl" else 16, destination=path, content=b"\x10\0\0\0\1"
            )
            if what == "full":
                while not pipe.full:
                    back.send_to(pipe.path, bytes(100_000), timeout=0)
            raw.sendall(encode(failure))
            reason = {"path": "BrokenPath", "ttl": "ttl", "full": "overflow"}[what]
            wait_until(lambda: switch.drops == {reason: 1})
            assert switch.running and switch.forwarded == 0
            del client


def test_a_peer_that_guesses_paths_with_failures_is_cut_off() -> None:
    with Socket() as back, Socket() as front, Switch(back, front) as switch:
        host, _, port = front.listen("tcp://127.0.0.1:0").address.removeprefix("tcp://").rpartition(":")
        with gsocket.create_connection((host, int(port))) as raw:
            for number in range(20):
                path = b"\0\0\0\1" + (0x7FFFFF00 + number).to_bytes(4, "big")
                raw.sendall(encode(Message(flags=INTERNAL | TO_DEST, destination=path, content=b"\x10\0\0\0\1")))
            wait_until(lambda: not front.pipes)
            assert switch.running


def test_a_switch_that_has_stopped_forwards_no_failures_and_none_reaches_its_middleware() -> None:
    seen: list[Message] = []

    def middleware(message: Message) -> Message:
        seen.append(message)
        return message

    with Socket() as back, Socket() as front, Rep(fail) as rep, Req() as req:
        rep.dial(back.listen("tcp://127.0.0.1:0").address)
        rep.start()
        req.dial(front.listen("tcp://127.0.0.1:0").address)
        with Switch(back, front, middleware) as switch:
            with pytest.raises(HandlerFailed):
                req.request(b"bad", LONG)
            assert len(seen) == 1
            request = req.request_async(b"bad")
            wait_until(lambda: len(seen) == 2)
            with pytest.raises(HandlerFailed):
                request.get(LONG)
        assert not switch.running
        back.send_all(b"\0\0\0\1bad")
        wait_until(lambda: back.counters.drops == {"internal": 1})


def test_requests_that_nobody_can_tell_of_time_out_or_lose_their_peer_as_before() -> None:
    """A Rep that closes kills its handlers after the linger time. There is nobody to send anything by then."""
    started = Event()

    def handler(content: bytes) -> bytes:
        started.set()
        gevent.sleep(3600)
        return b""

    with Rep(handler) as rep, Req() as req:
        req.dial(rep.listen("tcp://127.0.0.1:0").address, {"connector.dialer.reconnect": False})
        rep.start()
        request = req.request_async(b"")
        started.wait(LONG)
        rep.close(linger=0.0)
        with pytest.raises(PeerGone):
            request.get(LONG)
