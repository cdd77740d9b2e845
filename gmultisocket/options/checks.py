"""Checkers and parsers for the options of this library whose kind and range do not say enough.

A checker returns the value to store. A parser returns a value for the checker. Both raise a ValueError whose text says
which values are right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, cast

from .option import parse_bool

UINT32: Final = 2**32 - 1


def check_pipe_limit(value: int) -> int:
    if value == 0:
        raise ValueError("-1 for no limit, or at least 1")
    return value


def check_compress_over(value: int) -> int:
    if 0 < value < 256:
        raise ValueError("0 for no compression, or at least 256: shorter messages hardly get shorter")
    return value


def check_linger(value: int) -> int:
    if value not in (-1, 0):
        # close(2) waits for so long, also on a non-blocking socket, and every greenlet with it.
        raise ValueError("0 to reset the connection, or -1; use close(linger=...) of the Socket to wait for messages")
    return value


def check_mode(value: int) -> int:
    if not 0 <= value <= 0o777:
        raise ValueError("a file mode from 0 to 0o777")
    return value


def parse_mode(text: str) -> int:
    if not re.fullmatch("(0o)?[0-7]{1,4}", text):
        raise ValueError("a file mode in octal digits, like 0600")
    return int(text, 8)


def check_uids(value: object) -> frozenset[int] | None:
    if value is None:
        return None
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        uids = list(value)
        if all(isinstance(uid, int) and not isinstance(uid, bool) and 0 <= uid <= UINT32 for uid in uids):
            return frozenset(uids)
    raise ValueError("a collection of user ids, or None for all users")


def parse_uids(text: str) -> list[int]:
    if not re.fullmatch("[0-9]{1,10}(,[0-9]{1,10})*", text):
        raise ValueError("user ids separated by commas, like 0,1000")
    return [int(uid) for uid in text.split(",")]


def check_ssl_context(value: object) -> Any:
    # By a method of it: importing ssl takes longer than importing this library, and most programs do not need it.
    if value is not None and not hasattr(value, "wrap_bio"):
        raise ValueError("an ssl.SSLContext, or None")
    return value


def check_verify(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ValueError("true, false, or None for the default behaviour")


def parse_verify(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise ValueError("true or false") from None


def check_callable(value: object) -> Any:
    if value is not None and not callable(value):
        raise ValueError("a function that returns the password (options do not store secrets), or None")
    return value


def check_function(value: object) -> Callable[..., Any] | None:
    if value is None or callable(value):
        return cast("Callable[..., Any] | None", value)
    raise ValueError("a function, or None")


def check_origins(value: object) -> tuple[str | re.Pattern[str], ...]:
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        # Browsers send origins in lower case.
        origins = tuple([origin.lower() if isinstance(origin, str) else origin for origin in value])
        if all(isinstance(origin, re.Pattern) or _is_origin(origin) for origin in origins):
            return origins
    raise ValueError("a collection of origins like https://example.com, or of compiled regular expressions")


def _is_origin(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", value) is not None


def check_hosts(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        hosts = tuple([host.lower() if isinstance(host, str) else host for host in value])
        if hosts and all(isinstance(host, str) and re.fullmatch(r"[^/@?#\s]+", host) for host in hosts):
            return hosts
    raise ValueError('a collection of host names like example.com or example.com:8080, "*" for any, or None')


def check_path(value: str) -> str:
    if value and not re.fullmatch("/[!-~]*", value) or "?" in value:
        raise ValueError("a path that begins with a slash, without a query, like /healthz, or an empty text")
    return value


def check_headers(value: object) -> Mapping[str, str] | Callable[[], Mapping[str, str]]:
    if callable(value):
        return cast("Callable[[], Mapping[str, str]]", value)
    if isinstance(value, Mapping) and all(is_header(name, text) for name, text in value.items()):
        return dict(value)
    raise ValueError("a mapping of header names to values without line breaks, or a function that returns a mapping")


def is_header(name: object, value: object) -> bool:
    """Return whether two texts can be the name and value of an HTTP header. A line break would start another one."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is not None
        and re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is not None
    )
