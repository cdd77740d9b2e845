"""Many messages of all sizes, over every transport."""

from __future__ import annotations

import random

import gevent

from gmultisocket import Socket

COUNT = 1000
LONGEST = 128 * 1024


def contents(seed: int) -> list[bytes]:
    """Return contents of random sizes from 0 to 128 KiB, most of them small, each of the two ends among them."""
    rng = random.Random(seed)
    pool = rng.randbytes(2 * LONGEST)
    sizes = [0, LONGEST] + [int(LONGEST * rng.random() ** 4) for _ in range(COUNT - 2)]
    rng.shuffle(sizes)
    starts = [rng.randrange(LONGEST) for _ in sizes]
    return [pool[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def test_a_thousand_messages_of_random_sizes_both_ways_compare_equal(address: str) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        there, back = contents(1), contents(2)
        workers = [
            gevent.spawn(lambda: [client.send(content) for content in there]),
            gevent.spawn(lambda: [server.send(content) for content in back]),
            gevent.spawn(lambda: [server.recv(timeout=20) for _ in there]),
            gevent.spawn(lambda: [client.recv(timeout=20) for _ in back]),
        ]
        gevent.joinall(workers, raise_error=True)
        # Not assert on the lists themselves: pytest would compare 20 MB to explain a difference.
        assert [one == other for one, other in zip(workers[2].value, there, strict=True)] == [True] * COUNT
        assert [one == other for one, other in zip(workers[3].value, back, strict=True)] == [True] * COUNT
        assert client.counters.messages_sent == server.counters.messages_received == COUNT
