"""gevent.Timeout and kill() at any point of any call: nothing is lost, torn or sent twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress

import gevent
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmultisocket import Message, Socket
from gmultisocket.errors import Timeout
from gmultisocket.testing import FakeStream, FakeTransport, wait_until
from gmultisocket.wire import Decoder
from tests.addresses import plain_connection
from tests.peers import only_pipe


@pytest.fixture
def two(address: str) -> Iterator[tuple[Socket, Socket]]:
    """A server and a client that dialed it, with small queues."""
    options = {"socket.send_queue_size": 2, "socket.recv_queue_size": 2}
    with Socket(options) as server, Socket(options) as client:
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        yield server, client


def interrupted(call: Callable[[], object], rng: random.Random) -> bool:
    """Make a call in a greenlet that is killed or timed out at a random turn. Returns whether the call was done."""
    done = False

    def work() -> None:
        nonlocal done
        if rng.random() < 0.5:
            # A timeout of 0 strikes in the first turn in which the call waits.
            with suppress(gevent.Timeout), gevent.Timeout(rng.choice((0, 0.0002, 0.001))):
                call()
                done = True
        else:
            call()
            done = True

    greenlet = gevent.spawn(work)
    for _ in range(rng.randrange(6)):
        gevent.sleep(0)
    greenlet.kill()
    return done


@pytest.mark.parametrize("way", ["send", "send_to", "send_all"])
def test_interrupted_sends_have_sent_their_message_or_not_and_never_half_of_it(
    two: tuple[Socket, Socket], way: str
) -> None:
    server, client = two
    rng = random.Random(way)
    path = only_pipe(client).path
    received: list[int] = []
    receiving = gevent.spawn(lambda: [received.append(int(server.recv().split()[0])) for _ in iter(int, 1)])

    def send(content: bytes) -> object:
        return client.send_to(path, content) if way == "send_to" else getattr(client, way)(content)

    sent = []
    for number in range(250):
        content = b"%d " % number + bytes(rng.choice((0, 10, 60_000)))
        if interrupted(lambda content=content: send(content), rng):
            sent.append(number)
    client.send(b"-1 end", timeout=10)
    wait_until(lambda: received and received[-1] == -1, timeout=10)
    receiving.kill()
    assert received[:-1] == sent
    assert client.counters.messages_sent == len(sent) + 1


def test_interrupted_receives_take_no_message(two: tuple[Socket, Socket]) -> None:
    server, client = two
    rng = random.Random(3)
    sending = gevent.spawn(lambda: [client.send(b"%d" % number) for number in range(300)])
    received: list[int] = []
    while len(received) < 300:
        interrupted(lambda: received.append(int(server.recv())), rng)
        with suppress(Timeout):
            received.append(int(server.recv(timeout=rng.choice((0, 0.0001)))))
    sending.get(timeout=5)
    assert received == list(range(300))


def test_timeouts_of_the_calls_themselves_lose_nothing_either(two: tuple[Socket, Socket]) -> None:
    server, client = two
    rng = random.Random(5)
    received: list[int] = []

    def receive() -> None:
        while not received or received[-1] != -1:
            with suppress(Timeout):
                received.append(int(server.recv(timeout=rng.choice((0, 0.0003, 0.001)))))
            gevent.sleep(0)

    receiving = gevent.spawn(receive)
    sent = []
    for number in range(200):
        with suppress(Timeout):
            client.send(b"%d" % number, timeout=rng.choice((0, 0.0003, 0.001)))
            sent.append(number)
    client.send(b"-1", timeout=10)
    receiving.get(timeout=10)
    assert received[:-1] == sent


def test_many_interrupted_senders_and_receivers_account_for_every_message(two: tuple[Socket, Socket]) -> None:
    server, client = two
    rng = random.Random(7)
    sent: list[int] = []
    received: list[int] = []

    def send(number: int) -> None:
        client.send(b"%d" % number)
        sent.append(number)

    def receive() -> None:
        received.append(int(server.recv()))

    workers = []
    for number in range(300):
        workers += [gevent.spawn(send, number), gevent.spawn(receive)]
        if rng.random() < 0.5:
            rng.choice(workers).kill(block=False)
        if rng.random() < 0.2:
            gevent.sleep(0)
    gevent.sleep(0.01)
    gevent.killall(workers)
    with suppress(Timeout):
        while True:
            received.append(int(server.recv(timeout=0.1)))
    assert sorted(received) == sorted(sent)


@settings(max_examples=100)
@given(
    takes=st.lists(st.integers(0, 2000), max_size=40),
    steps=st.lists(st.tuples(st.sampled_from(["send", "send_all"]), st.integers(0, 4)), min_size=1, max_size=20),
)
def test_no_frame_is_torn_however_little_the_kernel_takes_and_whenever_a_sender_is_killed(
    takes: list[int], steps: list[tuple[str, int]]
) -> None:
    stream = FakeStream(takes=takes)
    sent = []
    with FakeTransport([stream]) as fake, Socket({"socket.send_queue_size": 1}) as client:
        client.dial(fake.address)
        for number, (way, turns) in enumerate(steps):
            sender = gevent.spawn(getattr(client, way), b"%d " % number + bytes(number * 131 % 1500))
            for _ in range(turns):
                gevent.sleep(0)
            sender.kill()
            if sender.successful() and not isinstance(sender.value, gevent.GreenletExit):
                sent.append(number)
        assert client.close(linger=5) == 0
    messages = Decoder(1).feed(bytes(stream.sent))
    assert [int(Message(*fields).content.split()[0]) for fields in messages] == sent


def test_the_peer_reads_whole_frames_only_when_senders_are_killed(stream_address: str) -> None:
    rng = random.Random(11)
    with Socket({"socket.send_queue_size": 2}) as server:
        with plain_connection(server.listen(stream_address).address) as peer:
            server.wait_pipes(timeout=5)
            decoder = Decoder(1)
            contents: list[bytes] = []

            def read() -> None:
                while data := peer.recv(rng.choice((100, 5000, 100_000))):
                    contents.extend(Message(*fields).content for fields in decoder.feed(data))

            reading = gevent.spawn(read)
            sent = []
            for number in range(150):
                content = b"%d " % number + bytes(rng.choice((10, 5000, 120_000)))
                if interrupted(lambda content=content: server.send(content), rng):
                    sent.append(content)
            assert server.close(linger=10) == 0
            reading.get(timeout=10)
    assert decoder.pending == 0
    assert [content.split()[0] for content in contents] == [content.split()[0] for content in sent]
    assert contents == sent


def test_an_interrupted_send_all_says_by_its_counters_who_has_the_message(address: str) -> None:
    with Socket({"socket.send_queue_size": 1}) as sender, Socket({"socket.recv_queue_size": 1}) as receiver:
        receiver.dial(sender.listen(address).address)
        sender.wait_pipes(timeout=5)
        pipe = only_pipe(sender)
        with suppress(Timeout):
            while True:
                sender.send(bytes(60_000), timeout=0.01)
        killed = gevent.spawn(sender.send_all, b"x")
        gevent.sleep(0)
        killed.kill()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
            sender.send_all(b"x")
        assert pipe.counters.drops == {"timeout": 2}
        sender.close(linger=0)


def test_an_interrupted_dial_leaves_a_working_socket_and_nothing_else(address: str) -> None:
    rng = random.Random(13)
    with Socket() as server, Socket() as client:
        where = server.listen(address).address
        for _ in range(40):
            interrupted(lambda: client.dial(where), rng)
            for dialer in client.dialers:
                pipe = dialer.pipe
                dialer.close()
                if pipe is not None:
                    pipe.close()
            assert not client.pipes
        client.dial(where)
        wait_until(lambda: len(server.pipes) == 1, timeout=10)
        client.send(b"whole")
        assert server.recv(timeout=5) == b"whole"


def test_an_interrupted_close_closes(address: str) -> None:
    rng = random.Random(17)
    with Socket() as server:
        where = server.listen(address).address
        for _ in range(15):
            client = Socket()
            client.dial(where)
            client.send(b"x" * 1000)
            interrupted(client.close, rng)
            client.close()
            assert client.closed and not client.pipes
        wait_until(lambda: not server.pipes)


def test_an_interrupted_wait_for_pipes_leaves_the_others_waiting(address: str) -> None:
    rng = random.Random(19)
    with Socket() as server, Socket() as client:
        waiting = gevent.spawn(server.wait_pipes, 1)
        for _ in range(20):
            interrupted(lambda: server.wait_pipes(1), rng)
        client.dial(server.listen(address).address)
        waiting.get(timeout=5)


def test_a_timeout_that_strikes_while_a_message_is_ready_leaves_it_for_the_next(two: tuple[Socket, Socket]) -> None:
    """The timeout and the message come in the same turn of the loop: whoever loses, the message does not."""
    server, client = two
    for number in range(50):
        got: list[bytes] = []

        def receive(got: list[bytes] = got) -> None:
            with suppress(gevent.Timeout), gevent.Timeout(0.0005):
                got.append(server.recv())

        receiving = gevent.spawn(receive)
        gevent.spawn_later(0.0004, client.send, b"%d" % number)
        receiving.join()
        assert (got or [server.recv(timeout=5)]) == [b"%d" % number]
