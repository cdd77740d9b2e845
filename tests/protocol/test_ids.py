"""Ids of requests and of stream ends: not to be guessed, and not used again too soon."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

import pytest

from gmultisocket import options
from gmultisocket.core.pipes import ids as pipe_ids
from gmultisocket.errors import MultiSocketError, NoIds
from gmultisocket.protocol import Stream, ids
from gmultisocket.testing import wait_until

LONG = 20.0


def numbers(made: Iterator[bytes], count: int) -> list[int]:
    return [int.from_bytes(request_id, "big") for request_id in islice(made, count)]


def test_request_ids_have_32_random_bits() -> None:
    made = numbers(ids.request_ids(), 2000)
    assert len(set(made)) > 1990
    # No step between two ids comes twice: they do not count in any way.
    steps = {(after - before) % 2**32 for before, after in zip(made, made[1:], strict=False)}
    assert len(steps) > 1990
    for bit in range(32):
        assert 700 < sum(number >> bit & 1 for number in made) < 1300


def test_sequences_start_somewhere_else_each() -> None:
    assert len({next(ids.request_ids()) for _ in range(5)}) > 1


def test_an_id_in_use_is_passed_over() -> None:
    sequence = ids.request_ids()
    used = set(islice(sequence, 3))
    start = min(used)
    again = (bytes(request_id) for request_id in [*used, start, b"held", b"free"])
    assert ids.new_id(again, used, {b"held"}) == b"free"


def test_a_quarantine_is_bounded_in_time_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(ids, "monotonic", lambda: now)
    monkeypatch.setattr(ids, "_MAX_QUARANTINED", 10)
    quarantine = ids.Quarantine()
    for number in range(15):
        quarantine.add(struct.pack(">I", number))
    assert len(quarantine) == 10
    assert struct.pack(">I", 4) not in quarantine and struct.pack(">I", 5) in quarantine
    quarantine.discard(struct.pack(">I", 5))
    quarantine.discard(b"none")
    assert len(quarantine) == 9
    now = 60.0
    quarantine.add(b"late")
    assert len(quarantine) == 1 and b"late" in quarantine


def test_ids_of_a_pool_are_not_in_use_nor_in_quarantine_and_run_out_with_words() -> None:
    in_use: dict[bytes, None] = {}
    pool = ids.IdPool(in_use, bits=5)
    for _ in range(10):
        in_use[pool.new()] = None
    made = list(in_use)
    for ident in made[:5]:
        del in_use[ident]
        pool.release(ident)
    fresh = {pool.new() for _ in range(500)}
    assert not fresh & set(made) and len(fresh) == 31 - 10
    in_use.update(dict.fromkeys(list(fresh)[:11]))
    assert len(in_use) == 16 and pool.used_up
    with pytest.raises(NoIds, match="used up") as caught:
        pool.new()
    assert isinstance(caught.value, MultiSocketError)


def test_ids_of_a_pool_have_31_bits_and_are_never_0() -> None:
    pool = ids.IdPool({})
    made = [int.from_bytes(pool.new(), "big") for _ in range(2000)]
    assert all(1 <= number < 2**31 for number in made) and len(set(made)) == 2000
    for bit in range(31):
        assert 700 < sum(number >> bit & 1 for number in made) < 1300


def test_streams_use_no_ids_of_pipes_and_no_id_twice_in_a_row() -> None:
    with Stream() as server, Stream() as client:
        client.dial(server.listen("inproc://ids").address)
        used = pipe_ids._ids._used
        seen: set[bytes] = set()
        for _ in range(200):
            with client.connect(LONG) as connection, server.accept(LONG):
                seen |= {connection._end.id, connection._end.path[-4:]}
        assert pipe_ids._ids._used == used
        assert len(seen) == 400
        wait_until(lambda: not client._ends and not server._ends)


def test_when_a_stream_has_no_ids_it_says_so_and_refuses_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stream({options.socket.send_queue_size: 10}) as server, Stream() as client:
        client.dial(server.listen("inproc://used-up").address)
        monkeypatch.setattr(client._ids, "_bits", 2)
        first, second = client.connect(LONG), client.connect(LONG)
        with pytest.raises(NoIds):
            client.connect(LONG)
        assert client.connections == 2
        monkeypatch.setattr(server._ids, "_bits", 2)
        monkeypatch.setattr(client._ids, "_bits", 31)
        with pytest.raises(ConnectionRefusedError):
            client.connect(LONG)
        assert server.counters.drops == {"refused": 1}
        for connection in (first, second):
            connection.close()
