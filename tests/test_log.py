from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gmultisocket import log
from gmultisocket.log import ThrottledLog, get_logger

logger = logging.getLogger("gmultisocket.test")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a log sees, in the first place of a list."""
    now = [1000.0]
    monkeypatch.setattr(log, "monotonic", lambda: now[0])
    return now


def written(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_the_first_record_of_an_interval_has_its_own_level_and_the_others_debug(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttled = ThrottledLog(logger, 10.0)
    with caplog.at_level(logging.DEBUG, "gmultisocket"):
        for number in range(3):
            throttled.log("refused", logging.WARNING, "refused %d of %s", number, "them")
            clock[0] += 4.0
    assert written(caplog) == [
        (logging.WARNING, "refused 0 of them"),
        (logging.DEBUG, "refused 1 of them"),
        (logging.DEBUG, "refused 2 of them"),
    ]


def test_an_interval_begins_with_a_record_that_has_its_own_level(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    throttled = ThrottledLog(logger, 10.0)
    with caplog.at_level(logging.INFO, "gmultisocket"):
        for number in range(31):
            throttled.log("refused", logging.ERROR, "%d", number)
            clock[0] += 1.0
    assert written(caplog) == [(logging.ERROR, str(number)) for number in (0, 10, 20, 30)]


def test_each_kind_has_intervals_of_its_own(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    throttled = ThrottledLog(logger, 10.0)
    with caplog.at_level(logging.INFO, "gmultisocket"):
        throttled.log("a", logging.WARNING, "a1")
        throttled.log("b", logging.ERROR, "b1")
        throttled.log("a", logging.WARNING, "a2")
    assert written(caplog) == [(logging.WARNING, "a1"), (logging.ERROR, "b1")]


def test_a_log_keeps_a_bounded_number_of_kinds(caplog: pytest.LogCaptureFixture) -> None:
    throttled = ThrottledLog(logger, 10.0)
    with caplog.at_level(logging.INFO, "gmultisocket"):
        for number in range(1000):
            throttled.log(f"kind {number}", logging.WARNING, "kind %d", number)
        throttled.log("kind 0", logging.WARNING, "again")
    assert written(caplog) == [(logging.WARNING, f"kind {number}") for number in range(33)]
    assert len(throttled._written) == 33


def test_two_logs_of_one_logger_do_not_count_for_each_other(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gmultisocket"):
        ThrottledLog(logger, 10.0).log("a", logging.WARNING, "one")
        ThrottledLog(logger, 10.0).log("a", logging.WARNING, "two")
    assert written(caplog) == [(logging.WARNING, "one"), (logging.WARNING, "two")]


def test_a_text_without_arguments_may_hold_a_percent_sign(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gmultisocket"):
        ThrottledLog(logger, 10.0).log("a", logging.WARNING, "100 %")
    assert written(caplog) == [(logging.WARNING, "100 %")]


@pytest.mark.parametrize(
    ("text", "args", "shown"),
    [
        ("%s", ("a\x1bb",), r"a\x1bb"),
        ("%r", ("a\nb",), r"'a\nb'"),
        ("%s", ({"a\x07": "\u202e"},), r"{'a\x07': '\u202e'}"),
        ("%d of %5.1f", (3, 4.5), "3 of   4.5"),
        ("%s", (ValueError("no\r\n"),), r"no\r\n"),
        ("100 %", (), "100 %"),
        ("%s %s", ("größe", None), "größe None"),
    ],
)
def test_the_arguments_of_a_record_are_made_printable(
    text: str, args: tuple[object, ...], shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    safe = get_logger("gmultisocket.test.safe", at_once=True)
    assert get_logger("gmultisocket.test.safe", at_once=True) is safe
    assert get_logger("gmultisocket.test.safe") is get_logger("gmultisocket.test.safe") is not safe
    assert len(logging.getLogger("gmultisocket.test.safe").filters) == 1
    with caplog.at_level(logging.DEBUG, "gmultisocket"):
        safe.debug(text, *args)
    assert caplog.records[-1].getMessage() == shown


def test_a_traceback_is_left_alone_unless_it_would_act_on_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    safe = get_logger("gmultisocket.test.safe", at_once=True)
    with caplog.at_level(logging.DEBUG, "gmultisocket"):
        for words in ("plain", "forged\n2000-01-01\x1b", "\n"):
            try:
                try:
                    raise KeyError("below" + words)
                except KeyError as error:
                    raise ValueError(words) from error
            except ValueError:
                safe.exception("failed")
    plain, forged, newline = caplog.records
    assert plain.exc_text is None or "ValueError: plain" in plain.exc_text
    assert "\n2000" not in caplog.text and "\x1b" not in caplog.text
    assert r"ValueError: forged\n2000-01-01\x1b" in str(forged.exc_text)
    assert str(newline.exc_text or caplog.text).count("Traceback") >= 1


def test_an_error_brings_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("odd")
    with caplog.at_level(logging.INFO, "gmultisocket"):
        ThrottledLog(logger, 10.0).log("a", logging.ERROR, "failed", error=error)
    (record,) = caplog.records
    assert record.exc_info and record.exc_info[1] is error
    assert "ValueError: odd" in caplog.text


def test_only_code_with_nothing_half_done_logs_at_once() -> None:
    """Everywhere else the program's filters and handlers would run in the middle of the library's work."""
    package = Path(log.__file__).parent
    sources = {str(path.relative_to(package)): path.read_text() for path in package.rglob("*.py")}
    at_once = {name for name, source in sources.items() if "at_once=True" in source}
    assert at_once == {
        "log.py", "usercode.py", "options/scope.py", "contrib/wsgi.py", "contrib/servers.py", "contrib/systemd.py",
        "core/flushing.py",
    }  # fmt: skip
    bare = {name for name, source in sources.items() if "logging.getLogger(" in source}
    assert bare == {"log.py", "testing/_protocol.py"}
    shown = {name for name, source in sources.items() if "print_exc" in source or "sys.stderr" in source}
    assert {name for name in shown if not name.startswith("cli/")} == {"log.py"}
