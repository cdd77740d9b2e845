from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Socket
from gmultisocket.core.pipes import ids


def test_ids_have_31_bits_and_are_never_0() -> None:
    drawn = [ids.next_pipe_id() for _ in range(2000)]
    assert all(1 <= pipe_id < 2**31 for pipe_id in drawn)
    # All of the bits are used, high and low: 2,000 draws miss one with a chance of 2^-2000.
    assert 2**31 - 1 == max(drawn) | sum(1 << bit for bit in range(31) if any(id_ >> bit & 1 for id_ in drawn))


def test_no_id_is_given_out_twice() -> None:
    drawn = [ids.next_pipe_id() for _ in range(50_000)]
    assert len(set(drawn)) == len(drawn)


@settings(max_examples=50)
@given(st.binary(min_size=16, max_size=16), st.sets(st.integers(0, 2**31 - 1), min_size=2, max_size=50))
def test_the_permutation_is_one_to_one_within_31_bits(key: bytes, values: set[int]) -> None:
    permuted = {ids._permute(value, key) for value in values}
    assert len(permuted) == len(values)
    assert all(0 <= value < 2**31 for value in permuted)


def test_a_slice_of_the_permutation_is_one_to_one_for_every_value_of_a_half() -> None:
    key = b"k" * 16
    for values in (range(1 << 15), (value << 15 for value in range(1 << 16)), range(2**31 - 5000, 2**31)):
        counted = list(values)
        assert len({ids._permute(value, key) for value in counted}) == len(counted)


def test_neighbours_do_not_look_alike() -> None:
    drawn = [ids.next_pipe_id() for _ in range(1000)]
    near = sum(abs(one - other) < 2**20 for one, other in itertools.pairwise(drawn))
    # By chance about one pair in a thousand.
    assert near < 30


def test_two_processes_give_out_other_ids() -> None:
    one, other = ids._Ids(), ids._Ids()
    assert {one.next() for _ in range(1000)}.isdisjoint({other.next() for _ in range(1000)})


def test_an_id_of_0_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_permute", lambda value, key: value)
    fresh = ids._Ids()
    assert [fresh.next() for _ in range(3)] == [1, 2, 3]


def test_when_all_ids_are_used_up_there_is_an_error_and_no_id_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_BITS", 3)
    monkeypatch.setattr(ids, "_permute", lambda value, key: value)
    fresh = ids._Ids()
    assert [fresh.next() for _ in range(7)] == [1, 2, 3, 4, 5, 6, 7]
    for _ in range(2):
        with pytest.raises(OverflowError):
            fresh.next()


def test_a_pipe_that_comes_back_has_another_id(address: str) -> None:
    with Socket() as server, Socket() as client:
        where = server.listen(address).address
        seen = set()
        for _ in range(10):
            dialer = client.dial(where)
            assert dialer.pipe is not None
            seen.add(dialer.pipe.id)
            dialer.close()
            dialer.pipe.close()
        assert len(seen) == 10
