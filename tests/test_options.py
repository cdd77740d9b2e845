"""Options: what each takes, how names are found, how values come down through scopes, how changes are refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import options
from gmultisocket.errors import BadOptionValue, OptionError, UnknownOption
from gmultisocket.options import Option, Options, define, describe, lookup, option
from tests import optionnames

TTL = options.socket.send_ttl
QUEUE = options.socket.send_queue_size
WAIT = options.socket.send_stop_timeout
OVERFLOW = options.socket.send_overflow
NO_RECV = options.socket.no_recv


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("_by_name", "_by_go_name"):
        monkeypatch.setattr(option, registry, dict(getattr(option, registry)))


# The options of the Go code

GO = {
    "Socket.NoRecv": False,
    "Socket.NoSend": False,
    "Socket.RecvQueueSize": 64,
    "Socket.SendQueueSize": 64,
    "Socket.SendTTL": 16,
    "Socket.SendBestEffort": False,
    "Socket.SendStopTimeout": 5.0,
    "Connector.PipeLimit": -1,
    "Connector.Dialer.Reconnect": True,
    "Connector.Dialer.MinReconnectTime": 0.1,
    "Connector.Dialer.MaxReconnectTime": 8.0,
    "Connector.Dialer.DialAsync": False,
    "Connector.Pipe.Raw": False,
    "Connector.Pipe.RawRecvBufSize": 4096,
    "Connector.Pipe.CloseOnEOF": True,
    "Connector.Pipe.MaxRecvContentLength": 131072,
    "Connector.Pipe.ReadBuffer": 0,
    "transport.tcp.NoDelay": True,
    "transport.tcp.KeepAlive": True,
    "transport.tcp.KeepAlivePeriod": 15.0,
    "transport.tcp.ReadBuffer": 0,
    "transport.tcp.WriteBuffer": 0,
    "transport.tcp.Linger": -1,
    "transport.inproc.ReadBuffer": 8192,
    "transport.inproc.channel.BufferSize": 16,
}


@pytest.mark.parametrize(("name", "default"), GO.items())
def test_every_option_of_the_go_code_is_there_with_its_default(name: str, default: object) -> None:
    option = lookup(name)
    assert option.default == default
    assert type(option.default) is type(default)
    assert lookup(name.lower()) is option


def test_what_is_new_is_off_or_as_in_go() -> None:
    scope = Options()
    assert scope.get(options.socket.send_overflow) == "block"
    assert scope.get(options.socket.send_queue_bytes) == scope.get(options.socket.recv_queue_bytes) == 0
    assert scope.get(options.socket.max_send_content_length) == -1
    assert scope.get(options.socket.fail_no_peers) is False
    assert scope.get(options.connector.pipe.heartbeat_interval) == 0.0
    assert scope.get(options.transport.tcp.reuse_port) is False
    assert scope.get(options.transport.tcp.user_timeout) == 0.0
    assert scope.get(options.transport.ipc.mode) == 0o600
    assert scope.get(options.transport.ipc.allow_uids) is None


def _options_under(namespace: type, prefix: str) -> dict[str, Option[Any]]:
    found: dict[str, Option[Any]] = {}
    for name, value in vars(namespace).items():
        if isinstance(value, Option):
            found[f"{prefix}.{name}"] = value
        elif isinstance(value, type):
            found |= _options_under(value, f"{prefix}.{name}")
    return found


def test_the_attributes_are_named_as_the_options() -> None:
    attributes: dict[str, Option[Any]] = {}
    for name in ("socket", "connector", "transport"):
        attributes |= _options_under(getattr(options, name), name)
    # Protocols define theirs in their own modules.
    defined_here = {option.name: option for option in describe() if not option.name.startswith("protocol.")}
    assert attributes == defined_here


def test_the_description_is_sorted_and_has_a_sentence_for_each() -> None:
    names = [option.name for option in describe()]
    assert names == sorted(names)
    assert all(option.doc.endswith(".") for option in describe())
    assert {option.unit for option in describe()} == {"", "bytes", "messages", "seconds"}


# Values


@pytest.mark.parametrize(
    ("option", "value"),
    [(TTL, 0), (TTL, 255), (NO_RECV, True), (WAIT, 0.0), (OVERFLOW, "drop_oldest"), (options.connector.pipe_limit, 1)],
)
def test_a_right_value_is_kept_as_it_is(option: Option[Any], value: object) -> None:
    assert option.validate(value) is value


def test_an_int_becomes_the_float_that_an_option_takes() -> None:
    assert type(WAIT.validate(3)) is float


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
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
        pytest.param(WAIT, 10**400, "a number of seconds", id="over the largest float"),
        (WAIT, "5s", "a number of seconds"),
        (OVERFLOW, "drop", "one of block, drop_newest, drop_oldest, disconnect"),
        (OVERFLOW, ["block"], "one of block"),
        (options.connector.pipe_limit, 0, "-1 for no limit, or at least 1"),
        (options.connector.pipe_limit, -2, "at least -1"),
        (options.connector.pipe.max_recv_content_length, 2**32, "from 0 to 4294967295"),
        (options.connector.dialer.min_reconnect_time, 0, "at least 0.001"),
        (options.transport.ipc.mode, 0o1000, "a file mode from 0 to 0o777"),
        (options.transport.ipc.allow_uids, "1000", "a collection of user ids"),
        (options.transport.ipc.allow_uids, [-1], "a collection of user ids"),
        (options.transport.ipc.allow_uids, [True], "a collection of user ids"),
        (options.transport.ipc.allow_uids, [[]], "a collection of user ids"),
        (options.transport.ipc.allow_uids, 0, "a collection of user ids"),
    ],
)
def test_a_bad_value_is_an_error_that_says_what_is_right(option: Option[Any], value: object, expected: str) -> None:
    with pytest.raises(BadOptionValue) as caught:
        option.validate(value)
    assert caught.value.name == option.name
    assert caught.value.value is value
    assert expected in str(caught.value)


def test_allowed_users_cannot_be_changed_behind_the_option() -> None:
    uids = [0, 1000]
    kept = options.transport.ipc.allow_uids.validate(uids)
    uids.append(5)
    assert kept == {0, 1000}


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
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
        (options.transport.ipc.mode, "0600", 0o600),
        (options.transport.ipc.mode, "660", 0o660),
        (options.transport.ipc.mode, "0o770", 0o770),
        (options.transport.ipc.allow_uids, "0,1000", {0, 1000}),
    ],
)
def test_a_text_is_read_as_an_address_means_it(option: Option[Any], text: str, value: object) -> None:
    parsed = option.parse(text)
    assert parsed == value
    assert type(parsed) is type(value) or isinstance(parsed, frozenset)


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        (NO_RECV, "2", "true or false"),
        (NO_RECV, "maybe", "true or false"),
        (TTL, "", "a whole number"),
        (TTL, "1_0", "a whole number"),
        (TTL, " 1", "a whole number"),
        (TTL, "0x10", "a whole number"),
        (TTL, "٣", "a whole number"),
        (TTL, "1.0", "a whole number"),
        pytest.param(TTL, "9" * 100_000, "a whole number", id="a hundred thousand digits"),
        (TTL, "256", "from 0 to 255"),
        (WAIT, "", "100ms"),
        (WAIT, "5 s", "100ms"),
        (WAIT, "5d", "100ms"),
        (WAIT, "s", "100ms"),
        (WAIT, "5s3", "100ms"),
        (WAIT, "1e3", "100ms"),
        (WAIT, "inf", "100ms"),
        (WAIT, "nan", "100ms"),
        pytest.param(WAIT, "9" * 400, "a number of seconds", id="over the largest float"),
        (WAIT, "-5s", "at least 0"),
        (OVERFLOW, "Block", "one of block"),
        (options.transport.ipc.mode, "rw-------", "octal digits, like 0600"),
        (options.transport.ipc.mode, "0680", "octal digits"),
        (options.transport.ipc.mode, "7777", "a file mode from 0 to 0o777"),
        (options.transport.ipc.allow_uids, "", "like 0,1000"),
        (options.transport.ipc.allow_uids, "root", "like 0,1000"),
        (options.transport.ipc.allow_uids, "9999999999", "a collection of user ids"),
    ],
)
def test_a_bad_text_is_an_error_that_says_what_is_right(option: Option[Any], text: str, expected: str) -> None:
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


@settings(deadline=None)
@given(st.sampled_from(describe()), st.text(max_size=30))
def test_any_text_is_a_right_value_or_the_documented_error(option: Option[Any], text: str) -> None:
    try:
        value = option.parse(text)
    except BadOptionValue as error:
        assert error.name == option.name
    else:
        assert option.validate(value) == value


@settings(deadline=None)
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


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("socket.send_queue_sise", "socket.send_queue_size"),
        ("Socket.SendQueueLength", "socket.send_queue_size"),
        ("send_ttl", "socket.send_ttl"),
        ("SendTTL", "socket.send_ttl"),
        ("socket.no_delay", "transport.tcp.no_delay"),
        ("Socket.Send_TTL", "socket.send_ttl"),
        ("colour", ""),
        ("", ""),
        pytest.param("x" * 1_000_000, "", id="a million letters"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest_name(name: str, suggestion: str) -> None:
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


@pytest.mark.parametrize("name", ["", "ttl", "Socket.TTL", "socket.", ".ttl", "socket..ttl", "socket.t-t", "socket.1"])
def test_a_name_that_no_lookup_could_find_is_refused(name: str) -> None:
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


# Scopes


def test_a_value_comes_from_the_nearest_scope_that_has_one() -> None:
    top = Options({"Socket.SendTTL": 3})
    middle = Options(parent=top)
    bottom = Options({QUEUE: 5}, parent=middle)
    assert (bottom.get(TTL), bottom.get("socket.send_queue_size"), bottom.get(WAIT)) == (3, 5, 5.0)
    middle.set(TTL, 4)
    assert (top.get(TTL), middle.get(TTL), bottom.get(TTL)) == (3, 4, 4)
    assert middle.own() == {"socket.send_ttl": 4}
    assert middle.has_own("Socket.SendTTL") and not bottom.has_own(TTL)


def test_a_value_of_its_own_stays_where_the_parent_changes() -> None:
    top = Options()
    bottom = Options({TTL: 16}, parent=top)
    seen: list[int] = []
    bottom.on_change(TTL, lambda old, new: seen.append(new))
    top.set(TTL, 3)
    assert (bottom.get(TTL), seen) == (16, [])


@pytest.mark.parametrize("values", [{"socket.nothing": 1}, {TTL: 3, QUEUE: -1}])
def test_a_scope_is_not_made_from_bad_values(values: dict[Any, Any]) -> None:
    with pytest.raises(OptionError):
        Options(values)
    assert Options().own() == {}


def test_bad_names_and_values_change_nothing() -> None:
    scope = Options({TTL: 3})
    seen: list[object] = []
    scope.on_change(TTL, lambda old, new: seen.append(new), check=seen.append)
    with pytest.raises(BadOptionValue):
        scope.set(TTL, 300)
    with pytest.raises(UnknownOption):
        scope.set("socket.ttl", 3)
    with pytest.raises(UnknownOption):
        scope.get("socket.ttl")
    assert (scope.own(), seen) == ({"socket.send_ttl": 3}, [])


def test_hooks_hear_of_changes_here_and_above_with_both_values() -> None:
    top = Options()
    middle = Options(parent=top)
    bottom = Options(parent=middle)
    seen: list[tuple[str, int, int, int]] = []
    bottom.on_change(TTL, lambda old, new: seen.append(("bottom", old, new, bottom.get(TTL))))
    top.on_change("Socket.SendTTL", lambda old, new: seen.append(("top", old, new, top.get(TTL))))
    top.set(TTL, 3)
    middle.set(TTL, 4)
    top.set(TTL, 5)
    top.set(QUEUE, 5)
    assert seen == [("top", 16, 3, 3), ("bottom", 16, 3, 3), ("bottom", 3, 4, 4), ("top", 3, 5, 5)]


def test_a_removed_hook_hears_nothing_and_may_be_removed_again() -> None:
    scope = Options()
    seen: list[int] = []

    def hook(old: int, new: int) -> None:
        seen.append(new)

    first, _second = scope.on_change(TTL, hook), scope.on_change(TTL, hook)
    first()
    first()
    scope.set(TTL, 3)
    assert seen == [3]


def test_a_hook_may_remove_itself_and_set_another_option() -> None:
    scope = Options()

    def hook(old: int, new: int) -> None:
        remove()
        scope.set(QUEUE, new)

    remove = scope.on_change(TTL, hook)
    scope.set(TTL, 3)
    scope.set(TTL, 4)
    assert scope.own() == {"socket.send_ttl": 4, "socket.send_queue_size": 3}


def refuse(value: object) -> None:
    raise RuntimeError("refused")


def test_a_check_anywhere_refuses_before_anyone_has_seen_the_value() -> None:
    top = Options()
    scopes = [Options(parent=top), Options(parent=Options(parent=top)), Options(parent=top)]
    seen: list[int] = []
    for scope in (top, *scopes):
        scope.on_change(TTL, lambda old, new: seen.append(new))
    scopes[1].on_change(TTL, lambda old, new: seen.append(new), check=refuse)
    with pytest.raises(RuntimeError, match="refused"):
        top.set(TTL, 3)
    assert seen == []
    assert top.own() == {}
    assert [scope.get(TTL) for scope in scopes] == [16, 16, 16]


@pytest.mark.parametrize("before", [{}, {TTL: 2}])
def test_a_hook_that_raises_undoes_the_change_everywhere(before: dict[Option[int], int]) -> None:
    top = Options(before)
    middle, bottom = Options(parent=top), Options(parent=top)
    seen: list[tuple[str, int, int]] = []
    top.on_change(TTL, lambda old, new: seen.append(("top", old, new)))
    middle.on_change(TTL, lambda old, new: seen.append(("middle", old, new)))
    remove = bottom.on_change(TTL, lambda old, new: refuse(new))
    was = top.get(TTL)
    with pytest.raises(RuntimeError, match="refused"):
        top.set(TTL, 3)
    assert seen == [("top", was, 3), ("middle", was, 3), ("middle", 3, was), ("top", 3, was)]
    assert (top.get(TTL), bottom.get(TTL), top.has_own(TTL)) == (was, was, bool(before))
    remove()
    top.set(TTL, 3)
    assert bottom.get(TTL) == 3


def test_an_error_while_undoing_is_logged_and_the_first_error_comes_out(caplog: pytest.LogCaptureFixture) -> None:
    scope = Options()
    seen: list[int] = []

    def cannot_go_back(old: int, new: int) -> None:
        if new == 16:
            raise ValueError("cannot go back")

    scope.on_change(TTL, lambda old, new: seen.append(new))
    scope.on_change(TTL, cannot_go_back)
    scope.on_change(TTL, lambda old, new: refuse(new))
    with pytest.raises(RuntimeError, match="refused"):
        scope.set(TTL, 3)
    assert (scope.own(), seen) == ({}, [3, 16])
    assert [record.name for record in caplog.records] == ["gmultisocket.options"]
    assert "socket.send_ttl" in caplog.text


def test_a_scope_is_gone_when_its_owner_drops_it_though_the_parent_lives() -> None:
    top = Options()
    bottom = Options(parent=Options(parent=top))
    seen: list[int] = []
    bottom.on_change(TTL, lambda old, new: seen.append(new))
    gone = weakref.ref(bottom)
    top.set(TTL, 3)
    del bottom
    gc.collect()
    assert gone() is None
    top.set(TTL, 4)
    assert seen == [3]


def test_many_scopes_that_nobody_watches_cost_their_parent_nothing() -> None:
    top = Options()
    scopes = [Options(parent=top) for _ in range(1000)]
    assert not list(top._inheriting(TTL))[1:]
    top.set(TTL, 3)
    assert {scope.get(TTL) for scope in scopes} == {3}
    assert not hasattr(scopes[0], "__dict__")


# For type checkers


def test_the_names_for_type_checkers_are_those_of_the_definitions() -> None:
    assert optionnames.PATH.read_text() == optionnames.source(), "run: python3 -m tests.optionnames"


def test_the_names_for_type_checkers_can_be_imported() -> None:
    from gmultisocket.options.names import OptionsByName

    assert OptionsByName.__total__ is False
    assert set(OptionsByName.__annotations__) >= {"socket.no_recv", "protocol.stream.window"}


def test_option_values_is_a_name_when_the_program_runs() -> None:
    values: options.OptionValues = {"socket.no_recv": True}
    assert Options(values).get(NO_RECV) is True
