"""What Rep and Respondent share: handlers and iteration, answers whose askers do not read, and how it all ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import GreenletExit
from gevent.event import Event

from gmultisocket import Message, Socket
from gmultisocket.errors import Closed, HandlerFailed, MessageTooLong, NotSupported, PeerGone, Timeout
from gmultisocket.protocol import Rep, Req, Respondent, Surveyor
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, TO_ALL, TO_ONE
from tests import addresses
from tests.protocol.net import Net

LONG = 20.0
#: Both kinds, and what asks them.
BOTH = pytest.mark.parametrize("kind", [Rep, Respondent])


def upper(content: bytes) -> bytes:
    return content.upper()


@contextmanager
def asked(kind: Any, handler: Any = None, **more: Any) -> Iterator[tuple[Any, Callable[[bytes], Callable[[], bytes]]]]:
    """One that answers, and a function that asks it and returns what waits for the answer."""
    with kind(handler, **more) as answerer, Req() if kind is Rep else Surveyor() as asker:
        asker.dial(answerer.listen("tcp://127.0.0.1:0").address)
        answerer.wait_pipes(1, LONG)

        def ask(content: bytes) -> Callable[[], bytes]:
            if isinstance(asker, Req):
                request = asker.request_async(content)
                return lambda: request.get(LONG)
            survey = asker.survey(content, LONG)
            return lambda: next(survey)

        yield answerer, ask


# Handlers


def test_a_handler_that_fails_fails_its_request_is_logged_and_the_next_is_served(
    direct: Net, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(content: bytes) -> bytes | None:
        if content == b"raise":
            raise ValueError("of mine")
        if content == b"timeout":
            raise gevent.Timeout(1)
        if content == b"closed":
            raise Closed("something else")
        if content == b"text":
            return "text"  # type: ignore[return-value]
        if content == b"long":
            return bytes(1 << 20)
        return None if content == b"none" else content

    with Rep(handler) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        bad = [req.request_async(content) for content in (b"raise", b"timeout", b"closed", b"text", b"long")]
        silent = req.request_async(b"none")
        assert req.request(b"good", LONG) == b"good"
        assert not silent.done
        for request in bad:
            with pytest.raises(HandlerFailed):
                request.get(LONG)
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 5
    assert failures[0].exc_info is not None and "of mine" in str(failures[0].exc_info[1])


@BOTH
def test_a_handler_that_nobody_has_started_is_told_once_when_requests_wait(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    with asked(kind, upper) as (answerer, ask):
        answers = [ask(b"a") for _ in range(3)] if kind is Rep else [ask(b"a")]
        wait_until(warnings, LONG)
        answerer.start()
        assert [answer() for answer in answers] == [b"A"] * len(answers)
        assert ask(b"b")() == b"B"
    assert len(warnings()) == 1
    assert "call its start()" in warnings()[0] and kind.__name__ in warnings()[0]


def test_a_handler_that_is_started_soon_after_the_first_request_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with asked(Rep, upper) as (rep, ask), asked(Respondent, upper) as (_, ask_other):
        answer = ask(b"a")
        wait_until(lambda: rep.socket.queued)
        rep.start()
        assert answer() == b"A"
        # It began to wait later, so its warning comes later.
        ask_other(b"a")
        wait_until(lambda: caplog.records, LONG)
    assert [record.getMessage()[:11] for record in caplog.records] == ["<Respondent"]


def test_as_many_handlers_run_at_once_as_are_allowed_and_no_more(direct: Net) -> None:
    running, most = 0, 0
    go = Event()

    def handler(content: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        go.wait()
        running -= 1
        return content

    with Rep(handler, concurrency=7) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        requests = [req.request_async(b"") for _ in range(20)]
        wait_until(lambda: running == 7)
        assert rep.running == 7
        go.set()
        for request in requests:
            request.get(LONG)
        assert most == 7


def test_a_rep_without_a_handler_cannot_serve_and_one_with_it_cannot_be_iterated() -> None:
    with Rep() as rep:
        with pytest.raises(NotSupported):
            rep.start()
    with Rep(upper) as rep:
        with pytest.raises(NotSupported):
            rep.recv(0)
        rep.close()
        with pytest.raises(Closed):
            rep.start()
    with pytest.raises(ValueError):
        Rep(upper, concurrency=0)


def test_serve_forever_serves_until_somebody_closes(direct: Net) -> None:
    with Rep(upper) as rep, Req() as req:
        direct.connect(rep, req)
        serving = gevent.spawn(rep.serve_forever)
        assert req.request(b"served", LONG) == b"SERVED"
        assert not serving.ready()
        rep.close()
        serving.get(timeout=LONG)


@BOTH
def test_a_handler_answers_until_its_socket_closes(kind: Any) -> None:
    with asked(kind, upper) as (answerer, ask):
        answerer.start()
        assert [ask(b"%d a" % number)() for number in range(3)] == [b"0 A", b"1 A", b"2 A"]
        assert answerer.running == 0


@BOTH
def test_a_handler_that_returns_nothing_leaves_its_asker_without_an_answer_and_so_does_one_that_fails_a_survey(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(content: bytes) -> bytes | None:
        if content == b"raise":
            raise ValueError("of mine")
        return None if content == b"none" else content

    with asked(kind, handler) as (answerer, ask):
        answerer.start()
        failing = ask(b"raise")
        silent = [gevent.spawn(ask(b"none"))]
        if kind is Rep:
            with pytest.raises(HandlerFailed):
                failing()
        else:
            silent.append(gevent.spawn(failing))
        assert ask(b"good")() == b"good"
        assert not any(greenlet.ready() for greenlet in silent)
        gevent.killall(silent)
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 1 and failures[0].exc_info is not None and "of mine" in str(failures[0].exc_info[1])


@BOTH
def test_to_start_twice_is_to_start_once(kind: Any) -> None:
    go = Event()

    def handler(content: bytes) -> bytes:
        go.wait()
        return content

    with asked(kind, handler) as (answerer, ask):
        for _ in range(3):
            answerer.start()
        answers = [ask(b"%d" % number) for number in range(2)]
        wait_until(lambda: answerer.running)
        gevent.idle()
        assert answerer.running == 1 and answerer.socket.queued == 1
        go.set()
        assert [answer() for answer in answers] == [b"0", b"1"]


@BOTH
def test_what_makes_no_sense_is_dropped_and_counted_and_reaches_no_handler(kind: Any) -> None:
    seen: list[bytes] = []
    with kind(seen.append) as answerer, Socket() as by_hand:
        by_hand.dial(answerer.listen("tcp://127.0.0.1:0").address)
        answerer.start()
        for content, flags in ((b"", 0), (b"123", 0), (b"\0\0\0\1x", CONTROL), (b"\0\0\0\2good", 0), (b"\0\0\0\3", 0)):
            by_hand.send_msg(Message(flags=TO_ONE | flags, content=content))
        wait_until(lambda: len(seen) == 2)
        assert seen == [b"good", b""]
        assert answerer.counters.drops == {"garbage": 3}


# Iteration


def test_iteration_answers_and_ends_with_close(direct: Net) -> None:
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)

        def serve() -> int:
            served = 0
            for request in rep:
                assert request.reply(request.content * 2) and request.replied
                served += 1
            return served

        serving = gevent.spawn(serve)
        assert [req.request(b"%d" % number, LONG) for number in range(3)] == [b"00", b"11", b"22"]
        rep.close()
        assert serving.get(timeout=LONG) == 3


def test_a_question_is_answered_once_but_may_be_answered_again_after_an_answer_too_long(direct: Net) -> None:
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)
        request = req.request_async(b"")
        question = rep.recv(LONG)
        with pytest.raises(MessageTooLong):
            question.reply(bytes(1 << 20))
        assert question.reply(bytearray(b"first"))
        with pytest.raises(NotSupported):
            question.reply(b"second")
        assert request.get(LONG) == b"first"


def test_a_reply_to_an_asker_that_has_gone_is_counted_and_no_error(direct: Net) -> None:
    with Rep() as rep:
        with Req() as req:
            direct.connect(rep, req)
            req.request_async(b"")
            question = rep.recv(LONG)
        wait_until(lambda: not rep.pipes)
        assert not question.reply(b"")
        assert rep.counters.drops == {"peer gone": 1}


@BOTH
def test_what_is_asked_says_what_it_is(kind: Any) -> None:
    with asked(kind) as (answerer, ask):
        answer = ask(b"hello")
        question = answerer.recv(LONG)
        (pipe,) = answerer.pipes.values()
        assert (question.content, question.source, question.replied) == (b"hello", pipe.path, False)
        assert "5 bytes" in repr(question) and "replied" not in repr(question)
        assert question.reply(memoryview(b"world"))
        assert question.replied and "replied" in repr(question)
        assert answer() == b"world"


@BOTH
def test_an_answer_that_is_no_bytes_is_an_error_and_may_be_given_again(kind: Any) -> None:
    with asked(kind) as (answerer, ask):
        answer = ask(b"")
        question = answerer.recv(LONG)
        for wrong in ("text", 7, None):
            with pytest.raises(TypeError):
                question.reply(wrong)
        assert not question.replied and question.reply(b"right")
        assert answer() == b"right"


@BOTH
def test_a_wait_for_something_to_answer_ends_in_time_whatever_comes(kind: Any) -> None:
    with kind() as answerer, Socket() as by_hand:
        by_hand.dial(answerer.listen("inproc://garbage").address)

        def talk() -> None:
            while True:
                by_hand.send_msg(Message(flags=TO_ALL, content=b"123"))
                gevent.sleep(0.001)

        talking = gevent.spawn(talk)
        with pytest.raises(Timeout):
            answerer.recv(0.05)
        talking.kill()
        assert answerer.counters.drops["garbage"] > 1
        answerer.close()
        with pytest.raises(Closed):
            answerer.recv(LONG)


@BOTH
def test_an_answer_after_the_end_is_an_error(kind: Any) -> None:
    with asked(kind) as (answerer, ask):
        ask(b"")
        question = answerer.recv(LONG)
        answerer.close()
        with pytest.raises(Closed):
            question.reply(b"too late")
        assert not question.replied


@pytest.mark.parametrize("closed", ["the protocol", "its socket"])
def test_a_failure_after_the_end_is_an_error(direct: Net, closed: str) -> None:
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)
        req.request_async(b"")
        request = rep.recv(LONG)
        (rep if closed == "the protocol" else rep.socket).close(0)
        with pytest.raises(Closed):
            request.fail("too late")
        with pytest.raises(Closed):
            request.reply(b"too late")
        assert not request.replied


# Askers that do not read


@pytest.mark.parametrize("transport", ["inproc", "tcp", "ws"])
def test_an_asker_that_does_not_read_holds_up_nobody_and_loses_its_pipe(transport: str, tmp_path: Path) -> None:
    address = addresses.TRANSPORTS[transport](tmp_path)
    with Rep(lambda content: bytes(20_000)) as rep, Socket({"socket.recv_queue_size": 1}) as stuck, Req() as req:
        stuck.dial(rep.listen(address).address)
        rep.start()
        rep.wait_pipes(1, LONG)
        (pipe,) = rep.pipes.values()
        while not pipe.full:
            stuck.send(b"\0\0\0\0", LONG)
            gevent.sleep(0)
        req.dial(next(iter(rep.socket.listeners)).address)
        assert len(req.request(b"", LONG)) == 20_000
        while not pipe.closed:
            stuck.send(b"\0\0\0\0", LONG)
            gevent.sleep(0)
        assert "does not read" in pipe.reason
        assert len(req.request(b"", LONG)) == 20_000
        stuck.close(0)
        rep.close(0)


@contextmanager
def slow_asker(kind: Any, answers: int) -> Iterator[tuple[Any, Socket]]:
    """One that answers, and one that has asked so often and has not read the answers, most of which wait."""
    options = {"socket.send_queue_size": 2}
    with kind(lambda content: content, options) as answerer, Socket({"socket.recv_queue_size": 1}) as asker:
        asker.dial(answerer.listen("inproc://slow").address)
        answerer.start()
        for number in range(answers):
            asker.send(b"\0\0\0\1%d" % number, LONG)
        wait_until(lambda: not answerer.socket.queued and not answerer.running)
        yield answerer, asker
        asker.close(0)


@BOTH
def test_answers_that_wait_leave_in_order(kind: Any) -> None:
    with slow_asker(kind, 50) as (answerer, asker):
        assert [asker.recv(LONG)[4:] for _ in range(50)] == [b"%d" % number for number in range(50)]
        assert answerer.counters.drops == {}


@BOTH
def test_close_waits_for_answers_that_wait_for_their_asker(kind: Any) -> None:
    with slow_asker(kind, 50) as (answerer, asker):
        closing = gevent.spawn(answerer.close, LONG)
        gevent.idle()
        assert not closing.ready()
        assert [asker.recv(LONG)[4:] for _ in range(50)] == [b"%d" % number for number in range(50)]
        assert closing.get(timeout=LONG) == 0


@BOTH
def test_answers_that_still_wait_when_the_time_is_up_are_counted(kind: Any) -> None:
    with slow_asker(kind, 50) as (answerer, asker):
        answerer.close(0.01)
        drops = answerer.counters.drops
        # One has arrived, and as many as the queue holds are lost with the pipe.
        assert drops == {"closed": 47, "disconnect": 2}


@BOTH
def test_answers_whose_asker_goes_while_they_wait_are_counted(kind: Any) -> None:
    with slow_asker(kind, 50) as (answerer, asker):
        asker.close(0)
        wait_until(lambda: sum(answerer.counters.drops.values()) == 49)
        assert answerer.counters.drops == {"peer gone": 47, "disconnect": 2}


@BOTH
def test_an_asker_with_too_many_requests_kept_back_loses_its_pipe_and_each_of_them_is_counted(kind: Any) -> None:
    """2 answers wait here and 4 requests are kept: the fifth is one too many."""
    options = {"socket.send_queue_size": 1, "protocol.answers.max_waiting": 4}
    with kind(lambda content: content, options) as answerer, Socket({"socket.recv_queue_size": 1}) as asker:
        asker.dial(answerer.listen("inproc://too-many").address, {"connector.dialer.reconnect": False})
        answerer.start()
        (pipe,) = answerer.pipes.values()

        def ask(count: int) -> None:
            for _ in range(count):
                asker.send(b"\0\0\0\1", LONG)
            wait_until(lambda: not answerer.socket.queued and not answerer.running)

        # One answer arrives, and one is in the queue.
        ask(1 + 1 + 2 + 4)
        assert not pipe.closed and answerer.counters.drops == {}
        ask(1)
        assert pipe.closed and pipe.reason == "the peer asks and does not read the answers"
        wait_until(lambda: answerer.counters.drops == {"peer gone": 7, "disconnect": 1})


@BOTH
def test_an_answer_whose_asker_goes_while_the_sender_lets_others_run_is_counted(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that finds a pipe full may switch greenlets before it raises Timeout."""
    with kind() as answerer, Socket() as asker:
        asker.dial(answerer.listen("inproc://goes").address)
        asker.send(b"\0\0\0\1", LONG)
        question = answerer.recv(LONG)

        def send_to(*args: Any, **more: Any) -> None:
            asker.close(0)
            wait_until(lambda: not answerer.pipes)
            raise Timeout("send_to", 0)

        monkeypatch.setattr(answerer.socket, "send_to", send_to)
        assert question.reply(b"") is False
        assert answerer.counters.drops == {"peer gone": 1}


# Closing


def test_close_lets_running_handlers_answer_and_asks_no_more(direct: Net) -> None:
    begun, go = Event(), Event()

    def handler(content: bytes) -> bytes:
        begun.set()
        go.wait()
        return content

    with Rep(handler) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        running, waiting = req.request_async(b"running"), req.request_async(b"waiting")
        assert begun.wait(LONG)
        wait_until(lambda: rep.socket.queued == 1)
        closing = gevent.spawn(rep.close, LONG)
        gevent.sleep(0)
        assert not closing.ready()
        go.set()
        closing.get(timeout=LONG)
        assert running.get(LONG) == b"running"
        with pytest.raises(PeerGone):
            waiting.get(LONG)
        assert rep.counters.drops == {"closed": 1}


def test_close_ends_handlers_that_run_longer_than_linger(direct: Net) -> None:
    ended = []

    def handler(content: bytes) -> bytes:
        try:
            Event().wait()
        finally:
            ended.append(content)
        return content

    with Rep(handler, concurrency=2) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        requests = [req.request_async(b"%d" % number) for number in range(2)]
        wait_until(lambda: rep.running == 2)
        rep.close(0.02)
        assert sorted(ended) == [b"0", b"1"]
        for request in requests:
            with pytest.raises(PeerGone):
                request.get(LONG)


def test_an_answer_of_a_handler_that_survives_the_end_of_linger_is_counted(direct: Net) -> None:
    def handler(content: bytes) -> bytes:
        try:
            Event().wait()
        except GreenletExit:
            pass
        return content

    with Rep(handler) as rep, Req() as req:
        direct.connect(rep, req)
        rep.start()
        request = req.request_async(b"")
        wait_until(lambda: rep.running == 1)
        rep.close(0)
        with pytest.raises(PeerGone):
            request.get(LONG)
        assert rep.counters.drops == {"closed": 1}


def test_a_handler_may_close_its_own_rep(direct: Net) -> None:
    with Req() as req:
        rep = Rep(lambda content: b"%d" % rep.close(0))
        direct.connect(rep, req)
        rep.start()
        with pytest.raises(PeerGone):
            req.request(b"", LONG)
        wait_until(lambda: rep.closed)


def test_close_waits_for_the_body_of_a_loop_and_may_be_called_in_it(direct: Net) -> None:
    begun, go = Event(), Event()
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)

        def serve() -> None:
            for request in rep:
                begun.set()
                go.wait()
                request.reply(b"done")

        serving = gevent.spawn(serve)
        request = req.request_async(b"")
        assert begun.wait(LONG)
        closing = gevent.spawn(rep.close, LONG)
        gevent.sleep(0)
        go.set()
        closing.get(timeout=LONG)
        serving.get(timeout=LONG)
        assert request.get(LONG) == b"done"
    with Rep() as rep, Req() as req:
        direct.connect(rep, req)
        last = req.request_async(b"")
        for question in rep:
            assert question.reply(b"bye")
            rep.close(LONG)
        assert last.get(LONG) == b"bye"
