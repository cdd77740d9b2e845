"""The client for browsers and Node: ``gmultisocket.js``, which is served from here.

A mount and a ws listener answer GET requests for ``gmultisocket.js`` below their path. The client therefore always has
the version of the server. What they send is ``gmultisocket.min.js``: the same program, made small by
``python3 -m tests.browser.minify``. The folder is an npm package as well: see its README.

Loaded with the first such request.
"""

from __future__ import annotations

import gzip
from functools import cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Answer", "answer"]

_FILE: Final = Path(__file__).with_name("gmultisocket.min.js")
#: It holds nobody's data: pages of other origins may import it. Browsers ask each time whether it is still the same.
_HEADERS: Final = (
    ("Content-Type", "text/javascript; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("Access-Control-Allow-Origin", "*"),
    ("X-Content-Type-Options", "nosniff"),
    ("Vary", "Accept-Encoding"),
)


class Answer(NamedTuple):
    """An HTTP answer.

    Attributes:
        status: 200, or 304 if the browser has it already.
        headers: without those of the connection.
        body: the script, perhaps compressed.
    """

    status: HTTPStatus
    headers: list[tuple[str, str]]
    body: bytes


@cache
def _script() -> tuple[bytes, bytes, str]:
    """Return the script, the same compressed, and its ETag."""
    script = _FILE.read_bytes()
    return script, gzip.compress(script, mtime=0), f'W/"{sha256(script).hexdigest()[:16]}"'


def answer(method: str, if_none_match: str, accept_encoding: str) -> Answer:
    """Return the answer to a request for the script.

    Args:
        method: GET or HEAD.
        if_none_match, accept_encoding: the headers of the request, "" without one.
    """
    plain, compressed, tag = _script()
    headers = [*_HEADERS, ("ETag", tag)]
    if tag in (each.strip() for each in if_none_match.split(",")):
        return Answer(HTTPStatus.NOT_MODIFIED, headers, b"")
    body = plain
    if "gzip" in accept_encoding:
        body = compressed
        headers.append(("Content-Encoding", "gzip"))
    headers.append(("Content-Length", str(len(body))))
    return Answer(HTTPStatus.OK, headers, body if method == "GET" else b"")
