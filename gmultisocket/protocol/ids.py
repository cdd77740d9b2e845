"""The ids that match answers to requests and surveys: the first 4 bytes of the content.

They start at a random number and count up, so that a socket hardly ever takes the answer to an earlier socket's request
for the answer to its own.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from typing import Final

__all__ = ["ID_SIZE", "new_id", "request_ids"]

#: Bytes of an id.
ID_SIZE: Final = 4


def request_ids() -> Iterator[bytes]:
    """Yield ids without end, packed; they repeat after 2^32."""
    start = int.from_bytes(os.urandom(ID_SIZE), "big")
    while True:
        yield start.to_bytes(ID_SIZE, "big")
        start = (start + 1) & 0xFFFFFFFF


def new_id(ids: Iterator[bytes], in_use: Container[bytes]) -> bytes:
    """Return the next id that is not in use."""
    while (request_id := next(ids)) in in_use:
        pass
    return request_id
