"""Surveys: who is asked, whose replies count, and when it is over."""

from __future__ import annotations

import gevent
import pytest

from gmultisocket import Message, Socket
from gmultisocket.errors import MessageTooLong
from gmultisocket.protocol import Respondent, Surveyor
from gmultisocket.protocol import survey as survey_module
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL, TO_DEST
from tests.protocol.net import Net

LONG = 20.0


def reply_from(number: int, by_hand: Socket, message: Message, content: bytes) -> None:
    """Reply as a switch would for one of the respondents behind it."""
    source = number.to_bytes(4, "big")
    by_hand.send_msg(Message(TO_DEST, source=source, destination=message.source, content=message.content + content))


def test_everybody_is_asked_and_the_replies_come_until_the_deadline(net: Net) -> None:
    respondents = [Respondent(lambda content, number=number: content + b"%d" % number) for number in range(5)]
    with Surveyor() as surveyor:
        net.connect(surveyor, *respondents)
        for respondent in respondents:
            respondent.start()
        survey = surveyor.survey(b"who? ", LONG)
        assert survey.sent == (1 if net.switches else 5)
        everybody = [b"who? %d" % number for number in range(5)]
        assert sorted(next(survey) for _ in everybody) == everybody
        short = surveyor.survey(b"who? ", 0.02)
        assert {*short} <= {*everybody}
        assert list(short) == []
    for respondent in respondents:
        respondent.close()


def test_a_surveyor_and_a_respondent_speak_the_wire_as_written_by_hand(net: Net) -> None:
    with Surveyor() as surveyor, Socket() as by_hand:
        net.connect(surveyor, by_hand)
        survey = surveyor.survey(b"who?", LONG)
        message = by_hand.recv_msg(LONG)
        assert message.flags == TO_ALL
        assert len(message.content) == 8 and message.content[4:] == b"who?"
        by_hand.send_to(message.source, message.content[:4] + b"me")
        assert next(survey) == b"me"
    with Respondent(lambda content: b"me") as respondent, Socket() as by_hand:
        net.connect(respondent, by_hand)
        respondent.start()
        by_hand.send_all(b"\x00\x00\x00\x2awho?")
        message = by_hand.recv_msg(LONG)
        assert (message.flags, message.content) == (TO_DEST, b"\x00\x00\x00\x2ame")


def test_of_a_hundred_respondents_some_are_silent_and_some_are_late(direct: Net) -> None:
    """30 say nothing, 20 say it when nobody listens any more; the other 50 are heard."""
    late = []

    def serve(respondent: Respondent, number: int) -> None:
        for question in respondent:
            if number < 50:
                question.reply(b"%d" % number)
            elif number < 70:
                late.append(question)

    respondents = [Respondent() for _ in range(100)]
    with Surveyor() as surveyor:
        direct.connect(surveyor, *respondents)
        serving = [gevent.spawn(serve, respondent, number) for number, respondent in enumerate(respondents)]
        survey = surveyor.survey(b"", LONG)
        assert survey.sent == 100
        assert sorted(int(next(survey)) for _ in range(50)) == list(range(50))
        wait_until(lambda: len(late) == 20)
        survey.close()
        for question in late:
            assert question.reply(b"sorry")
        wait_until(lambda: surveyor.counters.drops == {"late": 20})
        for respondent in respondents:
            respondent.close()
        gevent.joinall(serving, raise_error=True)


def test_a_reply_after_the_deadline_is_late(direct: Net) -> None:
    with Surveyor() as surveyor, Respondent() as respondent:
        direct.connect(surveyor, respondent)
        assert list(surveyor.survey(b"quick!", 0.02)) == []
        assert respondent.recv(LONG).reply(b"slow")
        wait_until(lambda: surveyor.counters.drops == {"late": 1})


def test_two_surveys_at_once_do_not_mix(net: Net) -> None:
    with Surveyor() as surveyor, Respondent() as one, Respondent() as two:
        net.connect(surveyor, one, two)
        first, second = surveyor.survey(b"first", LONG), surveyor.survey(b"second", LONG)
        questions = [respondent.recv(LONG) for respondent in (one, two) for _ in range(2)]
        for question in reversed(questions):
            question.reply(b"to " + question.content)
        assert [next(first) for _ in range(2)] == [b"to first"] * 2
        assert [next(second) for _ in range(2)] == [b"to second"] * 2


def test_greenlets_that_share_a_survey_wait_without_keeping_the_loop_busy() -> None:
    with Surveyor() as surveyor, Socket() as by_hand:
        by_hand.dial(surveyor.listen("inproc://shared").address)
        survey = surveyor.survey(b"who?", LONG)
        waiting = [gevent.spawn(next, survey, None) for _ in range(3)]
        wait_until(lambda: len(survey._arrivals.waiters) == 3)
        asked = by_hand.recv_msg(LONG)
        by_hand.send_to(asked.source, asked.content[:4] + b"one")
        wait_until(lambda: any(each.ready() for each in waiting))
        for _ in range(10):
            gevent.sleep(0)
        # The other two wait, and nobody is about to wake them again.
        assert len(survey._arrivals.waiters) == 2 and not survey._arrivals._scheduled
        survey.close()
        assert sorted([each.get() or b"" for each in waiting]) == [b"", b"", b"one"]


def test_without_peers_a_survey_is_over_at_once() -> None:
    with Surveyor() as surveyor:
        survey = surveyor.survey(b"anybody?", 1000)
        assert survey.sent == 0
        assert list(survey) == []


def test_what_came_before_the_deadline_can_be_taken_after_it(direct: Net) -> None:
    with Surveyor() as surveyor, Respondent(bytes) as respondent:
        direct.connect(surveyor, respondent)
        respondent.start()
        survey = surveyor.survey(b"reply", 0.2)
        wait_until(lambda: surveyor.counters.messages_received == 1)
        wait_until(lambda: not survey.seconds_left)
        assert list(survey) == [b"reply"]


def test_a_survey_that_is_closed_or_dropped_takes_no_more_replies(direct: Net) -> None:
    with Surveyor() as surveyor, Respondent() as respondent:
        direct.connect(surveyor, respondent)
        surveyor.survey(b"dropped", LONG)
        closed = surveyor.survey(b"closed", LONG)
        waiting = gevent.spawn(list, closed)
        gevent.sleep(0)
        closed.close()
        assert waiting.get(timeout=LONG) == []
        for _ in range(2):
            respondent.recv(LONG).reply(b"late")
        wait_until(lambda: surveyor.counters.drops == {"late": 2})


def test_close_ends_the_surveys_and_keeps_what_had_come(direct: Net) -> None:
    with Surveyor() as surveyor, Respondent(bytes) as respondent:
        direct.connect(surveyor, respondent)
        respondent.start()
        survey = surveyor.survey(b"reply", 1000)
        wait_until(lambda: surveyor.counters.messages_received == 1)
        surveyor.close()
        assert list(survey) == [b"reply"]


def test_replies_that_nobody_takes_are_bounded(direct: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_MAX_WAITING", 3)
    with Surveyor() as surveyor, Socket() as by_hand:
        direct.connect(surveyor, by_hand)
        survey = surveyor.survey(b"", LONG)
        message = by_hand.recv_msg(LONG)
        for number in range(5):
            reply_from(number, by_hand, message, b"%d" % number)
        wait_until(lambda: surveyor.counters.drops == {"overflow": 2})
        survey.close()
        assert list(survey) == [b"0", b"1", b"2"]


def test_the_bytes_of_replies_that_nobody_takes_are_bounded(direct: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "_MAX_WAITING_BYTES", 2500)
    with Surveyor() as surveyor, Socket() as by_hand:
        direct.connect(surveyor, by_hand)
        survey = surveyor.survey(b"", LONG)
        message = by_hand.recv_msg(LONG)
        for number in range(3):
            reply_from(number, by_hand, message, b"%d" % number * 1000)
        wait_until(lambda: surveyor.counters.drops == {"overflow": 1})
        assert [next(survey)[:1], next(survey)[:1]] == [b"0", b"1"]
        reply_from(3, by_hand, message, b"3" * 2500)
        assert next(survey) == b"3" * 2500


def test_a_respondent_that_reads_nothing_holds_up_no_survey(direct: Net) -> None:
    with Surveyor() as surveyor, Socket({"socket.recv_queue_size": 1}) as stuck, Respondent(bytes) as respondent:
        direct.connect(surveyor, stuck)
        (pipe,) = surveyor.pipes.values()
        while not pipe.full:
            surveyor.survey(bytes(100_000), 1)
        respondent.start()
        respondent.dial(next(iter(surveyor.socket.listeners)).address)
        surveyor.wait_pipes(2, LONG)
        survey = surveyor.survey(b"heard", LONG)
        assert survey.sent == 1
        assert next(survey) == b"heard"
        stuck.close(0)
        surveyor.close(0)


def test_a_survey_that_is_too_long_fails_where_it_is_made() -> None:
    with Surveyor() as surveyor, pytest.raises(MessageTooLong):
        surveyor.survey(bytes(131072), 1)


# Replies that nobody asked for


def test_a_source_may_reply_once(net: Net) -> None:
    with Surveyor() as surveyor, Socket() as by_hand, Respondent(bytes) as honest:
        net.connect(surveyor, by_hand, honest)
        honest.start()
        survey = surveyor.survey(b"who?", LONG)
        message = by_hand.recv_msg(LONG)
        for number in range(100):
            by_hand.send_to(message.source, message.content[:4] + b"%d" % number)
        wait_until(lambda: surveyor.counters.drops == {"second reply": 99})
        assert {next(survey), next(survey)} == {b"0", b"who?"}
        # In another survey it may reply again.
        other = surveyor.survey(b"again?", LONG)
        message = by_hand.recv_msg(LONG)
        by_hand.send_to(message.source, message.content[:4] + b"me")
        assert {next(other), next(other)} == {b"me", b"again?"}


@pytest.mark.parametrize("bound", [("_MAX_SOURCES", 3), ("_MAX_SOURCES_BYTES", 3 * 8)])
def test_the_sources_that_are_remembered_are_bounded(
    direct: Net, monkeypatch: pytest.MonkeyPatch, bound: tuple[str, int]
) -> None:
    monkeypatch.setattr(survey_module, *bound)
    with Surveyor() as surveyor, Socket() as by_hand:
        direct.connect(surveyor, by_hand)
        survey = surveyor.survey(b"", LONG)
        message = by_hand.recv_msg(LONG)
        for number in range(5):
            reply_from(number, by_hand, message, b"")
            if number < 3:
                assert next(survey) == b""
        wait_until(lambda: surveyor.counters.drops == {"overflow": 2})
        survey.close()
        assert not survey._sources


def test_ids_of_surveys_cannot_be_guessed_from_others() -> None:
    with Surveyor() as surveyor, Socket({"socket.recv_queue_size": 100}) as by_hand:
        by_hand.dial(surveyor.listen("inproc://guessed").address)
        surveys = [surveyor.survey(b"", LONG) for _ in range(50)]
        made = [int.from_bytes(by_hand.recv(LONG), "big") for _ in surveys]
        steps = {(after - before) % 2**32 for before, after in zip(made, made[1:], strict=False)}
        assert len(steps) == 49
