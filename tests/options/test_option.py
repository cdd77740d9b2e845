"""Options: what each kind takes, how its text is read, and how an option is found by its name."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmultisocket import options
from gmultisocket.errors import BadOptionValue, OptionError, UnknownOption
from gmultisocket.options import Option, Options, define, describe, lookup, option
from tests.cases import every_case

TTL = options.socket.send_ttl
QUEUE = options.socket.send_queue_size
WAIT = options.socket.send_stop_timeout
OVERFLOW = options.socket.send_overflow
NO_RECV = options.socket.no_recv


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("_by_name", "_by_go_name"):
        monkeypatch.setattr(option, registry, dict(getattr(option, registry)))


# Values


@pytest.mark.parametrize(
    ("option", "value"),
    [(TTL, 0), (TTL, 255), (NO_RECV, True), (WAIT, 0.0), (OVERFLOW, "drop_oldest"), (options.connector.pipe_limit, 1)],
)
def test_a_right_value_is_kept_as_it_is(option: Option[Any], value: object) -> None:
    assert option.validate(value) is value


def test_an_int_becomes_the_float_that_an_option_takes() -> None:
    assert type(WAIT.validate(3)) is float


BAD_VALUES: list[tuple[Option[Any], Any, Any]] = [
    (TTL, 256, "a whole number from 0 to 255"),
    (TTL, -1, "a whole number from 0 to 255"),
    (TTL, True, "a whole number"),
    (TTL, 1.0, "a whole number"),
    (TTL, "1", "a whole number"),
    (TTL, None, "a whole number"),
    (QUEUE, 65536, "from 0 to 65535 (messages)"),
    (NO_RECV, 1, "true or false"),
    (NO_RECV, "true", "true or false"),
    (WAIT, True, "a number of seconds of at least 0"),
    (WAIT, -0.1, "a number of seconds of at least 0"),
    (WAIT, float("nan"), "a number of seconds"),
    (WAIT, float("inf"), "a number of seconds"),
    (WAIT, 10**400, "a number of seconds"),
    (WAIT, "5s", "a number of seconds"),
    (OVERFLOW, "drop", "one of block, drop_newest, drop_oldest, disconnect"),
    (OVERFLOW, ["block"], "one of block"),
    (options.connector.pipe_limit, -2, "at least -1"),
    (options.connector.pipe.max_recv_content_length, 2**32, "from 0 to 4294967295"),
    (options.connector.dialer.min_reconnect_time, 0, "at least 0.001"),
]


def test_a_bad_value_is_an_error_that_says_what_is_right() -> None:
    with every_case() as case:
        for option, value, expected in BAD_VALUES:
            with case(f"{option} = {value!r}"):
                with pytest.raises(BadOptionValue) as caught:
                    option.validate(value)
                assert caught.value.name == option.name
                assert caught.value.value is value
                assert expected in str(caught.value)


TEXTS: list[tuple[Option[Any], Any, Any]] = [
    *((NO_RECV, text, True) for text in ("", "true", "True", "TRUE", "t", "yes", "1")),
    *((NO_RECV, text, False) for text in ("false", "False", "f", "no", "0")),
    (TTL, "7", 7),
    (TTL, "+7", 7),
    (TTL, "007", 7),
    (options.connector.pipe_limit, "-1", -1),
    (WAIT, "1.5", 1.5),
    (WAIT, "3", 3.0),
    (WAIT, ".5", 0.5),
    (WAIT, "100ms", 0.1),
    (WAIT, "5s", 5.0),
    (WAIT, "2m", 120.0),
    (WAIT, "1h", 3600.0),
    (WAIT, "1m30s", 90.0),
    (WAIT, "1.5h", 5400.0),
    (WAIT, "7us", 7e-6),
    (WAIT, "7µs", 7e-6),
    (WAIT, "7ns", 7e-9),
    (OVERFLOW, "disconnect", "disconnect"),
]


def test_a_text_is_read_as_an_address_means_it() -> None:
    with every_case() as case:
        for option, text, value in TEXTS:
            with case(f"{option} = {text!r}"):
                parsed = option.parse(text)
                assert parsed == value
                assert type(parsed) is type(value) or isinstance(parsed, frozenset)


BAD_TEXTS: list[tuple[Option[Any], Any, Any]] = [
    (NO_RECV, "2", "true or false"),
    (NO_RECV, "maybe", "true or false"),
    (TTL, "", "a whole number"),
    (TTL, "1_0", "a whole number"),
    (TTL, " 1", "a whole number"),
    (TTL, "0x10", "a whole number"),
    (TTL, "٣", "a whole number"),
    (TTL, "1.0", "a whole number"),
    (TTL, "9" * 100_000, "a whole number"),
    (TTL, "256", "from 0 to 255"),
    (WAIT, "", "100ms"),
    (WAIT, "5 s", "100ms"),
    (WAIT, "5d", "100ms"),
    (WAIT, "s", "100ms"),
    (WAIT, "5s3", "100ms"),
    (WAIT, "1e3", "100ms"),
    (WAIT, "inf", "100ms"),
    (WAIT, "nan", "100ms"),
    (WAIT, "9" * 400, "a number of seconds"),
    (WAIT, "-5s", "at least 0"),
    (OVERFLOW, "Block", "one of block"),
]


def test_a_bad_text_is_an_error_that_says_what_is_right() -> None:
    with every_case() as case:
        for option, text, expected in BAD_TEXTS:
            with case(f"{option} = {text!r}"):
                with pytest.raises(BadOptionValue) as caught:
                    option.parse(text)
                assert expected in str(caught.value)
                assert len(str(caught.value)) < 300


def test_an_object_cannot_be_written_in_an_address() -> None:
    option = define("transport.smoke.context", object, None)
    context = object()
    assert option.validate(context) is context
    with pytest.raises(BadOptionValue, match="cannot be written in an address"):
        option.parse("context")


@given(st.sampled_from(describe()), st.text(max_size=30))
def test_any_text_is_a_right_value_or_the_documented_error(option: Option[Any], text: str) -> None:
    try:
        value = option.parse(text)
    except BadOptionValue as error:
        assert error.name == option.name
    else:
        assert option.validate(value) == value


@given(st.sampled_from(describe()), st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary())
def test_any_python_value_is_right_or_the_documented_error(option: Option[Any], value: object) -> None:
    try:
        kept = option.validate(value)
    except BadOptionValue as error:
        assert error.name == option.name
    else:
        assert kept == value


# Names


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("socket.send_ttl", TTL),
        ("Socket.SendTTL", TTL),
        ("SOCKET.SENDTTL", TTL),
        ("Connector.Pipe.CloseOnEOF", options.connector.pipe.close_on_eof),
        ("Connector.Dialer.MinReconnectTime", options.connector.dialer.min_reconnect_time),
        ("Transport.Tcp.NoDelay", options.transport.tcp.no_delay),
    ],
)
def test_a_name_is_found_in_either_spelling(name: str, option: Option[Any]) -> None:
    assert lookup(name) is option
    assert lookup(option) is option


UNKNOWN_NAMES = [
    ("socket.send_queue_sise", "socket.send_queue_size"),
    ("Socket.SendQueueLength", "socket.send_queue_size"),
    ("send_ttl", "socket.send_ttl"),
    ("SendTTL", "socket.send_ttl"),
    ("socket.no_delay", "transport.tcp.no_delay"),
    ("Socket.Send_TTL", "socket.send_ttl"),
    ("colour", ""),
    ("", ""),
    ("x" * 1_000_000, ""),
]


def test_an_unknown_name_is_an_error_with_the_nearest_name() -> None:
    with every_case() as case:
        for name, suggestion in UNKNOWN_NAMES:
            with case(repr(name)):
                with pytest.raises(UnknownOption) as caught:
                    lookup(name)
                assert caught.value.suggestion == suggestion
                assert str(caught.value).endswith(f"did you mean {suggestion!r}?") == bool(suggestion)


@pytest.mark.parametrize("name", [None, 5, b"socket.send_ttl", ("socket",)])
def test_what_is_no_name_at_all_is_unknown(name: Any) -> None:
    with pytest.raises(UnknownOption):
        lookup(name)


def test_an_unknown_name_leaves_nothing_locked_behind() -> None:
    for _ in range(3):
        with pytest.raises(UnknownOption):
            lookup("Socket.Nothing")
    assert lookup("Socket.SendTTL") is TTL


def test_people_define_options_of_their_own() -> None:
    colour = define("transport.smoke.colour", "choice", "grey", choices=["grey", "white"], doc="Of the smoke.")
    assert lookup("transport.smoke.Colour") is colour
    assert colour in describe()
    assert Options({"transport.smoke.colour": "white"}).get(colour) == "white"


@pytest.mark.parametrize("name", ["socket.send_ttl", "socket.send_t_t_l", "socket.sendttl"])
def test_a_name_that_either_spelling_would_confuse_is_taken(name: str) -> None:
    with pytest.raises(OptionError, match="already defined"):
        define(name, int, 1)
    assert lookup("socket.send_ttl") is lookup("Socket.SendTTL") is TTL


def test_a_name_that_no_lookup_could_find_is_refused() -> None:
    with every_case() as case:
        for name in ["", "ttl", "Socket.TTL", "socket.", ".ttl", "socket..ttl", "socket.t-t", "socket.1"]:
            with case(repr(name)):
                with pytest.raises(OptionError, match="snake_case"):
                    define(name, int, 1)


def test_an_option_has_a_kind_that_exists_and_a_default_that_is_right() -> None:
    with pytest.raises(OptionError, match="no kind"):
        define("smoke.list", list, [])
    with pytest.raises(BadOptionValue, match="of at most 3"):
        define("smoke.size", int, 5, maximum=3)
    with pytest.raises(UnknownOption):
        lookup("smoke.size")
    seconds = define("smoke.time", float, 5, unit="seconds")
    assert isinstance(seconds.default, float)


def test_a_plain_number_option_takes_no_units() -> None:
    factor = define("smoke.factor", "float", 1.5, minimum=1)
    assert factor.parse("2.5") == 2.5
    with pytest.raises(BadOptionValue, match="a number of at least 1"):
        factor.parse("2s")


def test_a_copied_or_pickled_option_is_the_same_one() -> None:
    values = {TTL: 3}
    for twin in (copy.deepcopy(values), pickle.loads(pickle.dumps(values))):
        assert list(twin)[0] is TTL


def test_an_option_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        TTL.default = 5  # type: ignore[misc]
    assert TTL.default == 16


def test_an_option_reads_well() -> None:
    assert str(TTL) == "socket.send_ttl"
    assert repr(TTL) == "<Option socket.send_ttl: int = 16>"
    assert repr(Options({TTL: 3})) == "Options({'socket.send_ttl': 3})"
