"""The ids by which answers find their questions: 4 bytes in front of the content, as requests and surveys have them.

They start anywhere and count up, so that an answer to what an earlier socket asked is hardly ever taken for one to what
this one asks.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from typing import Final

__all__ = ["ID_SIZE", "new_id", "question_ids"]

#: Bytes of an id.
ID_SIZE: Final = 4


def question_ids() -> Iterator[bytes]:
    """Yield ids without end, packed; they come back after 2^32."""
    start = int.from_bytes(os.urandom(ID_SIZE), "big")
    while True:
        yield start.to_bytes(ID_SIZE, "big")
        start = (start + 1) & 0xFFFFFFFF


def new_id(ids: Iterator[bytes], in_use: Container[bytes]) -> bytes:
    """Return the next id that is not in use."""
    while (question_id := next(ids)) in in_use:
        pass
    return question_id
