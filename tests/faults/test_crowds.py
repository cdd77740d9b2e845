"""Thousands of peers: a listener that restarts, a storm of dialers, and subscribers of which some are stuck.

``GMULTISOCKET_TEST_CROWD`` is another number of peers than 5000.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import gevent
import pytest

from gmultisocket import Dialer, Socket
from gmultisocket.testing import wait_until
from tests.faults.peers import free_port, port_of
from tests.faults.process import MIB, many_descriptors, resident, spawn_script

CROWD = int(os.environ.get("GMULTISOCKET_TEST_CROWD", "5000"))
LONG = 60.0


@contextmanager
def conversation() -> Iterator[list[int]]:
    """Send requests between two other sockets. Yield a list that holds the number of answers."""
    answers = [0]

    def talk(asking: Socket, answering: Socket) -> None:
        while True:
            asking.send(b"question")
            answering.send(answering.recv())
            asking.recv()
            answers[0] += 1
            gevent.sleep(0.01)

    with Socket() as asking, Socket() as answering:
        asking.dial(answering.listen("tcp://127.0.0.1:0").address)
        talking = gevent.spawn(talk, asking, answering)
        yield answers
        talking.kill()


@pytest.mark.timeout(240)
def test_thousands_of_dialers_find_a_restarted_listener_again_and_do_not_come_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    next_pause = Dialer._next_pause

    def recorded(dialer: Dialer) -> float:
        pauses.append(next_pause(dialer))
        return pauses[-1]

    monkeypatch.setattr(Dialer, "_next_pause", recorded)
    shortest = 2.0
    options = {
        "connector.dialer.min_reconnect_time": shortest, "connector.dialer.max_reconnect_time": 4 * shortest,
        "connector.dialer.dial_timeout": 30.0,
    }  # fmt: skip
    address = f"tcp://127.0.0.1:{free_port()}"
    with many_descriptors(2 * CROWD + 500), Socket(options) as client, conversation() as answers:
        dialers: list[Dialer] = []
        for restarts in range(2):
            with Socket({"connector.listener.backlog": CROWD}) as server:
                server.listen(address)
                before = answers[0]
                while len(dialers) < CROWD:
                    dialers.append(client.dial(address, {"connector.dialer.dial_async": True}))
                server.wait_pipes(CROWD, timeout=LONG)
                client.wait_pipes(CROWD, timeout=LONG)
                assert answers[0] - before > 10, "others had to wait until all were in"
                assert server.send_all(b"welcome") == CROWD
                assert all(client.recv(timeout=LONG) == b"welcome" for _ in range(CROWD))
                assert sum(dialer.attempts for dialer in dialers) <= (1 + 2 * restarts) * CROWD
            wait_until(lambda: not client.pipes, LONG)
        assert client.reconnects == CROWD
    # The first pauses are between half of the shortest and all of it, and no tenth of them has far more than its share.
    together = Counter(int(20 * pause / shortest) for pause in pauses[:CROWD])
    assert len(together) >= 9 and max(together.values()) < CROWD / 5, together


SUBSCRIBERS = """
import select, socket, sys

port, healthy, stuck = map(int, sys.argv[1:])
poll, held, received = select.epoll(), [], {}
for number in range(healthy + stuck):
    sock = socket.socket()
    if number >= healthy:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128)
    sock.connect(("127.0.0.1", port))
    held.append(sock)
    if number < healthy:
        received[sock.fileno()] = 0
        poll.register(sock, select.EPOLLIN)
print("connected", flush=True)
by_number = {sock.fileno(): sock for sock in held}
nothing = bytearray(1 << 20)
expected = int(sys.stdin.readline())
missing = healthy
while missing:
    for number, _ in poll.poll(60) or sys.exit("nothing comes any more"):
        # The kernel counts the bytes, and does not copy them.
        size = by_number[number].recv_into(nothing, 0, socket.MSG_TRUNC)
        if not size:
            sys.exit("a healthy subscriber was cut")
        received[number] += size
        missing -= received[number] == expected
print("complete", flush=True)
sys.stdin.read()
"""


def say(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    child.stdin.write(line + b"\n")
    child.stdin.flush()


def listen_to(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.timeout(180)
def test_of_thousands_of_subscribers_one_in_a_hundred_is_stuck_and_costs_no_more_than_its_queue() -> None:
    size, queue, count = 131072, 4, 6
    stuck = CROWD // 100
    options = {
        "socket.send_overflow": "drop_newest", "socket.send_queue_size": queue, "socket.no_recv": True,
        "connector.listener.backlog": CROWD,
    }  # fmt: skip
    with many_descriptors(CROWD + 500), Socket(options) as server:
        # The kernel takes little of what is sent to a stuck peer.
        listener = server.listen("tcp://127.0.0.1:0", {"transport.tcp.write_buffer": 16384})
        with spawn_script(SUBSCRIBERS, port_of(listener), CROWD - stuck, stuck) as child:
            assert listen_to(child) == b"connected"
            server.wait_pipes(CROWD, timeout=LONG)
            say(child, b"%d" % (count * (size + 8)))
            before = highest = resident()
            for number in range(count):
                server.send_all(bytes([number]) * size, timeout=LONG)
                highest = max(highest, resident())
                waiting = [pipe for pipe in server.pipes.values() if pipe.queued]
                while len(waiting) > stuck:
                    gevent.sleep(0.001)
                    highest = max(highest, resident())
                    waiting = [pipe for pipe in waiting if pipe.queued]
            assert listen_to(child) == b"complete"
            assert highest - before < stuck * queue * size, f"{(highest - before) / MIB:.1f} MiB"
            # One message is partly with the kernel, and a queue is full; what came after that was dropped.
            held_up = [pipe for pipe in server.pipes.values() if pipe.queued]
            assert len(held_up) == stuck
            assert all(pipe.queued <= queue + 1 for pipe in held_up)
            assert server.counters.drops == {"overflow": sum(pipe.counters.drops["overflow"] for pipe in held_up)}
            assert server.counters.messages_sent >= count * (CROWD - stuck)
        server.close(linger=0)
