"""Ids of requests."""

from __future__ import annotations

from itertools import islice

from gmultisocket.protocol import ids


def test_ids_count_up_and_wrap_at_32_bits() -> None:
    made = [int.from_bytes(request_id, "big") for request_id in islice(ids.request_ids(), 1000)]
    assert [(number - made[0]) % 2**32 for number in made] == list(range(1000))


def test_sequences_start_somewhere_else_each() -> None:
    assert len({next(ids.request_ids()) for _ in range(5)}) > 1


def test_an_id_in_use_is_passed_over() -> None:
    sequence = ids.request_ids()
    used = set(islice(sequence, 3))
    start = min(used)
    again = (bytes(request_id) for request_id in [*used, start, b"free"])
    assert ids.new_id(again, used) == b"free"
