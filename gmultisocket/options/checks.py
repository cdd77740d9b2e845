"""What kind and range cannot say about the options of this library: which values are right, and their text forms.

A checker returns the value to keep, a parser what the checker then gets; both raise ValueError that says what would be
right.
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
    raise ValueError("a collection of user ids, or None for anybody")


def parse_uids(text: str) -> list[int]:
    if not re.fullmatch("[0-9]{1,10}(,[0-9]{1,10})*", text):
        raise ValueError("user ids with commas between, like 0,1000")
    return [int(uid) for uid in text.split(",")]


def check_ssl_context(value: object) -> Any:
    # By what it can do: importing ssl costs more than importing this library, and most programs need none.
    if value is not None and not hasattr(value, "wrap_bio"):
        raise ValueError("an ssl.SSLContext, or None")
    return value


def check_verify(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ValueError("true, false, or None for the usual")


def parse_verify(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        raise ValueError("true or false") from None


def check_callable(value: object) -> Any:
    if value is not None and not callable(value):
        raise ValueError("a function that returns it, so that no secret is kept in an option")
    return value


def check_function(value: object) -> Callable[..., Any] | None:
    if value is None or callable(value):
        return cast("Callable[..., Any] | None", value)
    raise ValueError("a function, or None")


def check_origins(value: object) -> tuple[str | re.Pattern[str], ...]:
    if isinstance(value, Collection) and not isinstance(value, (str, bytes, bytearray)):
        # Browsers write them in lower case.
        origins = tuple([origin.lower() if isinstance(origin, str) else origin for origin in value])
        if all(isinstance(origin, re.Pattern) or _is_origin(origin) for origin in origins):
            return origins
    raise ValueError("a collection of origins like https://example.com, or of compiled patterns")


def _is_origin(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", value) is not None


def check_headers(value: object) -> Mapping[str, str] | Callable[[], Mapping[str, str]]:
    if callable(value):
        return cast("Callable[[], Mapping[str, str]]", value)
    if isinstance(value, Mapping) and all(is_header(name, text) for name, text in value.items()):
        return dict(value)
    raise ValueError("a mapping of header names to values without line breaks, or a function that returns one")


def is_header(name: object, value: object) -> bool:
    """Tell whether two texts can be the name and value of an HTTP header: a line break in one would make two."""
    return (
        isinstance(name, str)
        and isinstance(value, str)
        and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) is not None
        and re.fullmatch(r"[\t\x20-\x7e\x80-\xff]*", value) is not None
    )
