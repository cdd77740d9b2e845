"""What kind and range cannot say about a value: the checks of single options, and their texts in addresses."""

from __future__ import annotations

import re
import ssl
from typing import Any

import pytest

from gmultisocket import options
from gmultisocket.errors import BadOptionValue
from gmultisocket.options import Option, is_header
from tests.cases import every_case

TLS = options.transport.tls
WS = options.transport.ws

GOOD_VALUES: list[tuple[Option[Any], Any, Any]] = [
    (options.connector.pipe_limit, -1, -1),
    (options.transport.ipc.mode, 0, 0),
    (options.transport.ipc.mode, 0o777, 0o777),
    (options.transport.ipc.allow_uids, None, None),
    (options.transport.ipc.allow_uids, (), frozenset()),
    (options.transport.ipc.allow_uids, {0, 2**32 - 1}, {0, 2**32 - 1}),
    (TLS.context, None, None),
    (TLS.password, None, None),
    (TLS.verify, None, None),
    (TLS.verify, True, True),
    (WS.headers, {"X-Token": "a\tb ~ é"}, {"X-Token": "a\tb ~ é"}),
    (WS.listener.authorize, None, None),
    (WS.listener.origins, ["HTTPS://Example.COM:8443"], ("https://example.com:8443",)),
]


def test_a_right_value_is_kept() -> None:
    with every_case() as case:
        for option, value, kept in GOOD_VALUES:
            with case(f"{option} = {value!r}"):
                assert option.validate(value) == kept


def test_objects_are_kept_as_they_are() -> None:
    pattern = re.compile("http://.*")
    for option, value in (
        (TLS.context, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
        (TLS.password, str),
        (WS.headers, dict),
        (WS.listener.authorize, print),
        (WS.listener.origin_checker, len),
    ):
        assert option.validate(value) is value
    assert WS.listener.origins.validate([pattern]) == (pattern,)


BAD_VALUES: list[tuple[Option[Any], Any, Any]] = [
    (options.connector.pipe_limit, 0, "-1 for no limit, or at least 1"),
    (options.transport.ipc.mode, 0o1000, "a file mode from 0 to 0o777"),
    (options.transport.ipc.allow_uids, "1000", "a collection of user ids"),
    (options.transport.ipc.allow_uids, [-1], "a collection of user ids"),
    (options.transport.ipc.allow_uids, [True], "a collection of user ids"),
    (options.transport.ipc.allow_uids, [[]], "a collection of user ids"),
    (options.transport.ipc.allow_uids, 0, "a collection of user ids"),
    (options.transport.ipc.mode, -1, "a file mode"),
    (options.transport.ipc.allow_uids, [2**32], "a collection of user ids"),
    (options.transport.ipc.allow_uids, b"0", "a collection of user ids"),
    (TLS.context, "a context", "an ssl.SSLContext, or None"),
    (TLS.password, "secret", "a function that returns the password"),
    (TLS.verify, "true", "true, false, or None"),
    (TLS.verify, 1, "true, false, or None"),
    (WS.headers, None, "a mapping of header names to values"),
    (WS.headers, {"X": "a\r\nY: b"}, "without line breaks"),
    (WS.headers, {"X\r\nY": "b"}, "without line breaks"),
    (WS.headers, {"X": 1}, "a mapping of header names to values"),
    (WS.headers, [("X", "a")], "a mapping of header names to values"),
    (WS.listener.authorize, "a function", "a function, or None"),
    (WS.listener.origin_checker, 0, "a function, or None"),
    (WS.listener.origins, "http://a.example", "a collection of origins"),
    (WS.listener.origins, ["a.example"], "a collection of origins"),
    (WS.listener.origins, [None], "a collection of origins"),
]


def test_a_bad_value_is_an_error_that_says_what_is_right() -> None:
    with every_case() as case:
        for option, value, expected in BAD_VALUES:
            with case(f"{option} = {value!r}"):
                with pytest.raises(BadOptionValue) as caught:
                    option.validate(value)
                assert caught.value.name == option.name
                assert expected in str(caught.value)


TEXTS: list[tuple[Option[Any], Any, Any]] = [
    (options.transport.ipc.mode, "0600", 0o600),
    (options.transport.ipc.mode, "660", 0o660),
    (options.transport.ipc.mode, "0o770", 0o770),
    (options.transport.ipc.allow_uids, "0,1000", {0, 1000}),
    (options.transport.ipc.allow_uids, "0", {0}),
    (TLS.verify, "", True),
    (TLS.verify, "no", False),
    (WS.listener.origins, "http://a.example,https://B.example:1", ("http://a.example", "https://b.example:1")),
]


def test_a_text_is_read_as_an_address_means_it() -> None:
    with every_case() as case:
        for option, text, value in TEXTS:
            with case(f"{option} = {text!r}"):
                assert option.parse(text) == value


BAD_TEXTS: list[tuple[Option[Any], Any, Any]] = [
    (options.transport.ipc.mode, "rw-------", "octal digits, like 0600"),
    (options.transport.ipc.mode, "0680", "octal digits"),
    (options.transport.ipc.mode, "7777", "a file mode from 0 to 0o777"),
    (options.transport.ipc.allow_uids, "", "like 0,1000"),
    (options.transport.ipc.allow_uids, "root", "like 0,1000"),
    (options.transport.ipc.allow_uids, "9999999999", "a collection of user ids"),
    (options.transport.ipc.mode, "", "octal digits"),
    (options.transport.ipc.allow_uids, "0,", "like 0,1000"),
    (options.transport.ipc.allow_uids, "-1", "like 0,1000"),
    (TLS.verify, "maybe", "true or false"),
    (TLS.context, "a context", "cannot be written in an address"),
    (TLS.password, "secret", "cannot be written in an address"),
    (WS.headers, "X: a", "cannot be written in an address"),
    (WS.listener.origins, "", "a collection of origins"),
    (WS.listener.origins, "http://a.example,", "a collection of origins"),
]


def test_a_bad_text_is_an_error_that_says_what_is_right() -> None:
    with every_case() as case:
        for option, text, expected in BAD_TEXTS:
            with case(f"{option} = {text!r}"):
                with pytest.raises(BadOptionValue) as caught:
                    option.parse(text)
                assert expected in str(caught.value)


def test_allowed_users_cannot_be_changed_behind_the_option() -> None:
    uids = [0, 1000]
    kept = options.transport.ipc.allow_uids.validate(uids)
    uids.append(5)
    assert kept == {0, 1000}


def test_headers_cannot_be_changed_behind_the_option() -> None:
    headers = {"X": "a"}
    kept: Any = WS.headers.validate(headers)
    headers["X"] = "b\r\n"
    assert kept == {"X": "a"}


HEADERS: dict[tuple[object, object], bool] = {
    ("X-Token", "abc"): True,
    ("x!#$%&'*+.^_`|~0", ""): True,
    ("X", "tab\tand é"): True,
    ("", "a"): False,
    ("X Y", "a"): False,
    ("X:", "a"): False,
    ("Größe", "a"): False,
    ("X\n", "a"): False,
    ("X", "a\n"): False,
    ("X", "a\rb"): False,
    ("X", "a\0"): False,
    ("X", "a\x7f"): False,
    ("X", "a€"): False,
    (b"X", "a"): False,
    ("X", b"a"): False,
    ("X", None): False,
}


def test_only_what_makes_one_header_of_a_request_is_one() -> None:
    with every_case() as case:
        for (name, value), expected in HEADERS.items():
            with case(f"{name!r}: {value!r}"):
                assert is_header(name, value) is expected
