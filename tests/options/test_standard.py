"""The library's own options: those of the Go code with their defaults, and what is new."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gmultisocket
from gmultisocket import options
from gmultisocket.options import Option, Options, describe, lookup
from tests import optionnames
from tests.cases import every_case

#: Accepted for the sake of Go programs that set them.
WITHOUT_EFFECT = {
    "transport.ws.read_buffer_size",
    "transport.ws.write_buffer_size",
    "transport.inproc.read_buffer",
    "transport.inproc.channel.buffer_size",
}

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


def test_every_option_of_the_go_code_is_there_with_its_default() -> None:
    with every_case() as case:
        for name, default in GO.items():
            with case(name):
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
    for name in ("socket", "connector", "transport", "plane"):
        attributes |= _options_under(getattr(options, name), name)
    # Protocols define theirs in their own modules.
    defined_here = {option.name: option for option in describe() if not option.name.startswith("protocol.")}
    assert attributes == defined_here


def test_the_description_is_sorted_and_has_a_sentence_for_each() -> None:
    names = [option.name for option in describe()]
    assert names == sorted(names)
    assert all(option.doc.endswith(".") for option in describe())
    assert {option.unit for option in describe()} == {"", "bytes", "messages", "seconds"}


def own_options() -> list[Option[Any]]:
    """Return the options of the library: other people's may have been defined by a test of theirs."""
    attributes: dict[str, Option[Any]] = {}
    for name in ("socket", "connector", "transport", "protocol"):
        attributes |= _options_under(getattr(options, name), name)
    return list(attributes.values())


def test_every_option_is_read_somewhere_or_says_that_it_has_no_effect() -> None:
    package = Path(gmultisocket.__file__).parent
    source = "\n".join(path.read_text() for path in sorted(package.rglob("*.py")) if path.parent != package / "options")
    read = set(re.findall(r"\.(\w+)\b", source))
    with every_case() as case:
        for option in own_options():
            with case(option):
                has_no_effect = option.doc.startswith("No effect")
                assert has_no_effect == (option.name in WITHOUT_EFFECT)
                assert has_no_effect or option.name.rpartition(".")[2] in read


def test_every_default_is_a_value_that_can_be_set() -> None:
    with every_case() as case:
        for option in own_options():
            with case(option):
                assert Options({option: option.default}).get(option) == option.default


def test_times_that_must_pass_are_never_0() -> None:
    """0 would mean "at once" to one reader and "never" to the next: where it is allowed, the text says which."""
    with every_case() as case:
        for option in own_options():
            if option.unit == "seconds" and not option.minimum:
                with case(option):
                    # For a close, no time is just no time.
                    assert "0: " in option.doc or option.name == "socket.send_stop_timeout"


# For type checkers


def test_the_names_for_type_checkers_are_those_of_the_definitions() -> None:
    assert optionnames.PATH.read_text() == optionnames.source(), "run: python3 -m tests.optionnames"


def test_the_names_for_type_checkers_can_be_imported() -> None:
    from gmultisocket.options.names import OptionsByName

    assert OptionsByName.__total__ is False
    assert set(OptionsByName.__annotations__) >= {"socket.no_recv", "protocol.stream.window"}


def test_option_values_is_a_name_when_the_program_runs() -> None:
    values: options.OptionValues = {"socket.no_recv": True}
    assert options.Options(values).get(options.socket.no_recv) is True
