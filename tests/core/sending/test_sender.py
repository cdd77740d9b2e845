"""Sending: to one, to all, to a destination, and what happens where a pipe takes no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent.event import Event

from gmultisocket import Message, Socket
from gmultisocket.errors import (
    BadMessage,
    BadPath,
    BrokenPath,
    Closed,
    MessageDropped,
    MessageTooLong,
    NoPeers,
    NotSupported,
    Timeout,
)
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, INTERNAL, NO_SOURCE, RAW, TO_ALL, TO_DEST, TO_ONE, Decoder, pack_id
from tests.addresses import plain_connection
from tests.cases import every_case
from tests.peers import only_pipe


def drain(sock: Socket, quiet: float = 0.05) -> list[bytes]:
    """Receive until nothing has come for a while."""
    received = []
    while True:
        try:
            received.append(sock.recv(timeout=quiet))
        except Timeout:
            return received


class Hub:
    """A socket and peers of this process whose queues are small, and which receive only when told to."""

    def __init__(self, stack: ExitStack, peers: int, options: dict[str, Any], room: int = 1, name: str = "hub") -> None:
        self.sock = stack.enter_context(Socket({"socket.send_queue_size": 1, **options}))
        address = self.sock.listen(f"inproc://{name}").address
        self.peers = [stack.enter_context(Socket({"socket.recv_queue_size": room})) for _ in range(peers)]
        for peer in self.peers:
            peer.dial(address)
            self.sock.wait_pipes(self.peers.index(peer) + 1, timeout=5)
        self.pipes = list(self.sock.pipes.values())

    @property
    def capacity(self) -> int:
        """How many messages fit on the way to one peer."""
        return self.peers[0].get_option("socket.recv_queue_size") + self.sock.get_option("socket.send_queue_size")

    def fill(self, count: int | None = None) -> None:
        """Fill the way to every peer."""
        for pipe in self.pipes:
            for _ in range(self.capacity if count is None else count):
                self.sock.send_to(pipe.path, b"fill", timeout=0)


@pytest.fixture
def make_hub() -> Iterator[Callable[..., Hub]]:
    with ExitStack() as stack:
        hubs: list[Hub] = []

        def make(peers: int = 1, room: int = 1, **options: Any) -> Hub:
            names = {f"socket.{name}": value for name, value in options.items()}
            hubs.append(Hub(stack, peers, names, room, f"hub-{len(hubs)}"))
            return hubs[-1]

        yield make
        for hub in hubs:
            hub.sock.close(linger=0)


# Contents


BYTES_LIKE: list[Any] = [b"", b"x", bytearray(b"array"), memoryview(b"a view")[2:], b"z" * 131072]


def test_any_bytes_like_content_arrives_as_bytes(two: tuple[Socket, Socket]) -> None:
    server, client = two
    with every_case() as case:
        for content in BYTES_LIKE:
            with case(f"{len(content)} bytes in a {type(content).__name__}"):
                client.send(content)
                received = server.recv(timeout=5)
                assert type(received) is bytes and received == bytes(content)


def test_a_mutable_content_may_be_changed_after_sending(two: tuple[Socket, Socket]) -> None:
    server, client = two
    content = bytearray(b"before")
    for _ in range(3):
        client.send(content)
    content[:] = b"after!"
    assert [server.recv(timeout=5) for _ in range(3)] == [b"before"] * 3


def test_what_is_not_bytes_like_is_refused_by_every_way_to_send(two: tuple[Socket, Socket]) -> None:
    with every_case() as case:
        for content in ("text", 7, None, [1, 2]):
            with case(repr(content)):
                check_refused(two, content)


def check_refused(two: tuple[Socket, Socket], content: Any) -> None:
    server, client = two
    for call in (
        lambda: client.send(content),
        lambda: client.send_all(content),
        lambda: client.send_to(only_pipe(client).path, content),
        lambda: client.send_msg(Message(content=content)),
        lambda: client._for_protocol().send_group([only_pipe(client)], content),
    ):
        with pytest.raises(TypeError, match="bytes-like"):
            call()
    client.send(b"good")
    assert server.recv(timeout=5) == b"good"


def test_a_content_that_is_too_long_is_refused_here_and_costs_no_connection(two: tuple[Socket, Socket]) -> None:
    server, client = two
    limit = 131072
    for call in (
        lambda: client.send(bytes(limit + 1)),
        lambda: client.send_all(bytes(limit + 1)),
        lambda: client.send_to(only_pipe(client).path, bytes(limit + 1)),
        lambda: client.send_msg(Message(content=bytes(limit + 1))),
    ):
        with pytest.raises(MessageTooLong) as caught:
            call()
        assert (caught.value.size, caught.value.limit) == (limit + 1, limit)
    pipe = only_pipe(client)
    client.send(bytes(limit))
    assert server.recv(timeout=5) == bytes(limit)
    assert only_pipe(client) is pipe


def test_the_longest_content_to_send_follows_the_options_while_the_socket_lives(two: tuple[Socket, Socket]) -> None:
    _, client = two
    client.set_option("connector.pipe.max_recv_content_length", 10)
    with pytest.raises(MessageTooLong):
        client.send(bytes(11))
    client.set_option("socket.max_send_content_length", 20)
    client.send(bytes(20))
    with pytest.raises(MessageTooLong):
        client.send(bytes(21))


# To one


def test_a_send_without_a_peer_waits_for_one(address: str) -> None:
    with Socket() as server, Socket() as client:
        sending = gevent.spawn(client.send, b"early")
        gevent.sleep(0.01)
        assert not sending.ready()
        client.dial(server.listen(address).address)
        assert server.recv(timeout=5) == b"early"
        sending.get(timeout=5)


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_send_without_a_peer_times_out_and_is_not_sent_later(address: str, timeout: float) -> None:
    with Socket() as server, Socket() as client:
        with pytest.raises(Timeout) as caught:
            client.send(b"late", timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.operation == "send"
        client.dial(server.listen(address).address)
        client.send(b"next")
        assert server.recv(timeout=5) == b"next"


def test_to_one_messages_go_to_the_pipes_in_turn(address: str) -> None:
    with Socket() as sender, ExitStack() as stack:
        receivers = [stack.enter_context(Socket()) for _ in range(4)]
        where = sender.listen(address).address
        for receiver in receivers:
            receiver.dial(where)
        sender.wait_pipes(4, timeout=5)
        for number in range(40):
            sender.send(b"%d" % number)
        shares = [[receiver.recv(timeout=5) for _ in range(10)] for receiver in receivers]
        assert sorted(int(content) for share in shares for content in share) == list(range(40))
        for share in shares:
            assert share == sorted(share, key=int)


def test_a_pipe_that_takes_nothing_gets_no_share(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2)
    stuck, ready = hub.pipes
    for _ in range(hub.capacity):
        hub.sock.send_to(stuck.path, b"fill", timeout=0)
    for number in range(20):
        hub.sock.send(b"%d" % number, timeout=5)
        assert hub.peers[1].recv(timeout=5) == b"%d" % number
    assert (stuck.counters.messages_sent, ready.counters.messages_sent) == (1, 20)


def test_waiting_senders_are_served_in_the_order_in_which_they_came(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.fill()
    senders = []
    for number in range(50):
        senders.append(gevent.spawn(hub.sock.send, b"%d" % number))
        gevent.sleep(0)
    received = [hub.peers[0].recv(timeout=5) for _ in range(50 + hub.capacity)]
    gevent.joinall(senders, timeout=5, raise_error=True)
    assert received == [b"fill"] * hub.capacity + [b"%d" % number for number in range(50)]


def test_waiting_senders_keep_their_order_also_when_it_is_time_to_let_others_run(make_hub: Callable[..., Hub]) -> None:
    # With a budget of one message every sender owes the loop a turn.
    hub = make_hub(yield_messages=1)
    hub.fill()
    senders = []
    for number in range(50):
        senders.append(gevent.spawn(hub.sock.send, b"%d" % number))
        gevent.sleep(0)
    received = [hub.peers[0].recv(timeout=5) for _ in range(50 + hub.capacity)]
    gevent.joinall(senders, timeout=5, raise_error=True)
    assert received[hub.capacity :] == [b"%d" % number for number in range(50)]


def test_a_message_that_did_not_leave_goes_to_another_pipe(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2, send_queue_size=10)
    first, second = hub.pipes
    hub.sock.send(b"1")
    hub.sock.send(b"2")
    for number in range(3, 13):
        hub.sock.send(b"%d" % number)
    assert (first.queued, second.queued) == (5, 5)
    hub.sock.close_pipe(first.id)
    received = [hub.peers[1].recv(timeout=5) for _ in range(11)]
    # "1" had arrived at the first peer; the rest is all there, and in order for each pipe.
    assert received == [b"2", b"4", b"6", b"8", b"10", b"12", b"3", b"5", b"7", b"9", b"11"]
    assert hub.sock.counters.drops == {}


def test_a_message_that_did_not_leave_waits_for_the_next_peer(address: str) -> None:
    options = {"socket.send_queue_size": 4, "connector.dialer.min_reconnect_time": 0.01}
    with Socket({"socket.recv_queue_size": 1}) as server, Socket(options) as client:
        listener = server.listen(address)
        client.dial(listener.address)
        server.wait_pipes(timeout=5)
        pipe = only_pipe(client)
        sent = 0
        big = b"x" * 100_000
        while pipe.queued < 3:
            client.send(b"%d " % sent + big, timeout=5)
            sent += 1
        arrived = []
        client.close_pipe(pipe.id)
        wait_until(lambda: client.pipes and pipe.id not in client.pipes)
        client.send(b"%d " % sent + big, timeout=5)
        while (number := int(server.recv(timeout=5).split()[0])) != sent:
            arrived.append(number)
        # What was on its way in the kernel may be lost with the connection; what was queued here whole may not.
        assert [number for number in arrived if number >= sent - 2] == [sent - 2, sent - 1]


def test_hundreds_of_pipes_that_break_at_once_lose_no_queued_message() -> None:
    with Socket() as server, Socket() as survivor, ExitStack() as stack:
        where = server.listen("tcp://127.0.0.1:0").address
        doomed = [stack.enter_context(plain_connection(where)) for _ in range(150)]
        server.wait_pipes(150, timeout=5)
        for connection in doomed:
            connection.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        # No reader has run since: only the writes find out, one after the other.
        server.send(b"message")
        survivor.dial(where)
        assert survivor.recv(timeout=5) == b"message"


# To all


def test_a_to_all_message_goes_to_every_pipe_and_says_to_how_many(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        clients = [stack.enter_context(Socket()) for _ in range(5)]
        where = server.listen(address).address
        for client in clients:
            client.dial(where)
        server.wait_pipes(5, timeout=5)
        for number in range(100):
            assert server.send_all(b"%d" % number) == 5
        for client in clients:
            assert [client.recv(timeout=5) for _ in range(100)] == [b"%d" % number for number in range(100)]


def test_a_to_all_message_without_peers_goes_to_nobody_and_is_not_kept(address: str) -> None:
    with Socket() as server, Socket() as client:
        assert server.send_all(b"nobody hears") == 0
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        assert server.send_all(b"hello") == 1
        assert client.recv(timeout=5) == b"hello"


def test_all_kinds_of_messages_to_one_peer_arrive_in_the_order_of_sending(two: tuple[Socket, Socket]) -> None:
    server, client = two
    receiving = gevent.spawn(lambda: [client.recv(timeout=5) for _ in range(300)])
    path = only_pipe(server).path
    for number in range(300):
        content = b"%d" % number
        match number % 7:
            case 0 | 1:
                server.send(content)
            case 2 | 3 | 4:
                server.send_all(content)
            case _:
                server.send_to(path, content)
        if number % 50 == 49:
            gevent.sleep(0)
    assert receiving.get(timeout=5) == [b"%d" % number for number in range(300)]


def test_a_full_pipe_does_not_hold_up_a_to_all_message_for_the_others(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=3)
    stuck = hub.pipes[0]
    for _ in range(hub.capacity):
        hub.sock.send_to(stuck.path, b"fill", timeout=0)
    with pytest.raises(Timeout) as caught:
        hub.sock.send_all(b"news", timeout=0.01)
    assert caught.value.sent == 2
    assert [peer.recv(timeout=5) for peer in hub.peers[1:]] == [b"news", b"news"]
    assert stuck.counters.drops == {"timeout": 1}
    assert [hub.peers[0].recv(timeout=5) for _ in range(hub.capacity)] == [b"fill"] * hub.capacity
    assert drain(hub.peers[0]) == []


def test_a_pipe_that_has_room_again_gets_its_to_all_message_before_one_that_stays_stuck(
    make_hub: Callable[..., Hub],
) -> None:
    hub = make_hub(peers=3)
    hub.fill()
    sending = gevent.spawn(hub.sock.send_all, b"news")
    gevent.sleep(0)
    # In each order: the first in the row is stuck, then the last.
    for peer in (hub.peers[2], hub.peers[0]):
        assert [peer.recv(timeout=5) for _ in range(hub.capacity + 1)] == [b"fill"] * hub.capacity + [b"news"]
        assert not sending.ready()
    assert [hub.peers[1].recv(timeout=5) for _ in range(hub.capacity + 1)][-1] == b"news"
    assert sending.get(timeout=5) == 3


def test_a_to_all_message_does_not_overtake_those_that_wait(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2)
    hub.fill()
    sending = [gevent.spawn(hub.sock.send_all, b"%d" % number) for number in range(4)]
    gevent.sleep(0)
    sending[0].kill()
    for peer in hub.peers:
        assert peer.recv(timeout=5) == b"fill"
    # In one of these turns the pipes are writable, and those that wait have not run yet.
    for _ in range(20):
        with pytest.raises(Timeout):
            hub.sock.send_all(b"newer", timeout=0)
        gevent.sleep(0)
    for peer in hub.peers:
        received = [peer.recv(timeout=5) for _ in range(hub.capacity - 1 + 3)]
        assert received == [b"fill"] * (hub.capacity - 1) + [b"1", b"2", b"3"]
    gevent.joinall(sending, timeout=5, raise_error=True)
    assert hub.sock.send_all(b"newer", timeout=0) == 2


def test_a_stuck_pipe_that_closes_lets_a_to_all_message_be_done(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2)
    hub.fill()
    sending = gevent.spawn(hub.sock.send_all, b"news")
    gevent.sleep(0)
    hub.sock.close_pipe(hub.pipes[0].id)
    assert [hub.peers[1].recv(timeout=5) for _ in range(hub.capacity + 1)][-1] == b"news"
    assert sending.get(timeout=5) == 1


def test_send_group_reaches_the_named_pipes_and_passes_over_closed_ones(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        clients = [stack.enter_context(Socket()) for _ in range(3)]
        where = server.listen(address).address
        for number, client in enumerate(clients):
            client.dial(where)
            server.wait_pipes(number + 1, timeout=5)
        pipes = list(server.pipes.values())
        assert server._for_protocol().send_group([pipes[0], pipes[2]], b"some", flags=CONTROL) == 2
        assert clients[0].recv_msg(timeout=5).flags == TO_ALL | CONTROL
        assert clients[2].recv(timeout=5) == b"some"
        server.close_pipe(pipes[0].id)
        assert server._for_protocol().send_group(pipes, b"rest") == 2
        assert clients[1].recv(timeout=5) == b"rest"


# To a destination


def test_a_reply_goes_back_the_way_that_the_message_came(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        where = server.listen(address).address
        clients = [stack.enter_context(Socket()) for _ in range(3)]
        for number, client in enumerate(clients):
            client.dial(where)
            server.wait_pipes(number + 1, timeout=5)
        for client, pipe in zip(clients, list(server.pipes.values()), strict=True):
            client.send(b"question")
            question = server.recv_msg(timeout=5)
            assert (question.source, question.pipe_id) == (pipe.path, pipe.id)
            server.send_to(question.source, b"answer")
            answer = client.recv_msg(timeout=5)
            assert (answer.content, answer.destination, answer.send_type) == (b"answer", b"", TO_DEST)


@pytest.mark.parametrize("path", [bytearray, memoryview])
def test_a_path_may_be_any_bytes_like_object(two: tuple[Socket, Socket], path: Callable[[bytes], Any]) -> None:
    server, client = two
    client.send_to(path(only_pipe(client).path), b"hello")
    assert server.recv(timeout=5) == b"hello"


NO_PATHS: list[Any] = [b"", b"123", b"12345", bytes(4 * 256), "path", None, 7]


def test_what_is_no_path_is_refused(two: tuple[Socket, Socket]) -> None:
    _, client = two
    with every_case() as case:
        for path in NO_PATHS:
            with case(repr(path)):
                with pytest.raises(BadPath):
                    client.send_to(path, b"lost")
                assert client.counters.messages_sent == 0


def test_a_path_through_no_open_pipe_is_broken(two: tuple[Socket, Socket]) -> None:
    server, client = two
    path = only_pipe(client).path
    stranger = only_pipe(server).path
    for unknown in (stranger, bytes(4), b"\x80\0\0\0", b"\xff" * 4):
        with pytest.raises(BrokenPath) as caught:
            client.send_to(unknown, b"lost")
        assert caught.value.pipe_id == int.from_bytes(unknown, "big")
    client.dialers[0].close()
    client.close_pipe(only_pipe(client).id)
    with pytest.raises(BrokenPath):
        client.send_to(path, b"lost")


def test_a_send_that_waits_for_a_pipe_fails_when_the_pipe_closes(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.fill()
    sending = gevent.spawn(hub.sock.send_to, hub.pipes[0].path, b"late")
    gevent.sleep(0)
    hub.peers[0].close()
    with pytest.raises(BrokenPath):
        sending.get(timeout=5)


def test_senders_that_wait_for_one_pipe_are_served_in_order_and_before_newcomers(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.fill()
    path = hub.pipes[0].path
    senders = []
    for number in range(30):
        senders.append(gevent.spawn(hub.sock.send_to, path, b"%d" % number))
        gevent.sleep(0)
    received = []
    for number in range(30, 60):
        received.append(hub.peers[0].recv(timeout=5))
        # It comes at the moment at which there may be room, and others wait.
        senders.append(gevent.spawn(hub.sock.send_to, path, b"%d" % number))
    received += [hub.peers[0].recv(timeout=5) for _ in range(30 + hub.capacity)]
    gevent.joinall(senders, timeout=5, raise_error=True)
    assert received == [b"fill"] * hub.capacity + [b"%d" % number for number in range(60)]


def test_a_hot_to_one_sender_does_not_starve_the_other_ways_to_send(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(send_queue_size=4)
    path = hub.pipes[0].path

    def repeat(send: Callable[[], object]) -> None:
        while True:
            send()

    senders = [
        gevent.spawn(repeat, lambda: hub.sock.send(b"one")),
        gevent.spawn(repeat, lambda: hub.sock.send_to(path, b"dest")),
        gevent.spawn(repeat, lambda: hub.sock.send_all(b"all")),
    ]
    shares = Counter(hub.peers[0].recv(timeout=5) for _ in range(600))
    gevent.killall(senders)
    assert set(shares) == {b"one", b"dest", b"all"}
    assert min(shares.values()) >= 60, shares


# send_msg


def test_send_msg_sends_as_the_fields_say(two: tuple[Socket, Socket]) -> None:
    server, client = two
    far = pack_id(7) + pack_id(9)
    assert client.send_msg(Message(TO_ONE | CONTROL, ttl=5, source=far, content=b"one")) == 1
    assert client.send_msg(Message(TO_ALL | NO_SOURCE, ttl=300, content=b"all")) == 1
    path = only_pipe(client).path
    assert client.send_msg(Message(TO_DEST, destination=path + far, content=b"dest")) == 1
    here = only_pipe(server).path
    messages = [server.recv_msg(timeout=5) for _ in range(3)]
    assert [message[:5] for message in messages] == [
        (TO_ONE | CONTROL, 4, here + far, b"", b"one"),
        (TO_ALL | NO_SOURCE, 254, here, b"", b"all"),
        (TO_DEST, 15, here, far, b"dest"),
    ]


GOES_NO_FURTHER = [
    (Message(TO_ONE, ttl=0), "ttl"),
    (Message(TO_ALL, ttl=0), "ttl"),
    (Message(TO_ONE | RAW), "raw"),
    (Message(TO_DEST), "arrived"),
]


def test_a_message_that_may_not_go_further_is_dropped(two: tuple[Socket, Socket]) -> None:
    _, client = two
    with every_case() as case:
        for message, reason in GOES_NO_FURTHER:
            with case(f"flags {message.flags:#04x}, ttl {message.ttl}"):
                with pytest.raises(MessageDropped) as caught:
                    client.send_msg(message)
                assert caught.value.reason == reason


def test_send_msg_refuses_what_is_no_message(two: tuple[Socket, Socket]) -> None:
    server, client = two
    for error, message in (
        (NotSupported, Message(TO_ONE | INTERNAL, content=b"\0")),
        (BadMessage, Message(3)),
        (BadMessage, Message(256)),
        (BadPath, Message(TO_ONE, source=b"123")),
        (BadPath, Message(TO_DEST, destination=b"123")),
        (BrokenPath, Message(TO_DEST, destination=pack_id(5))),
    ):
        with pytest.raises(error):
            client.send_msg(message)
    client.send(b"good")
    assert server.recv(timeout=5) == b"good"


def test_what_may_not_be_forwarded_is_an_error_and_not_a_silent_loss() -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        for message, reason in (
            (Message(ttl=0), "ttl"),
            (Message(flags=RAW), "raw"),
            (Message(flags=TO_DEST), "arrived"),
            (Message(source=bytes(4 * 255)), "hops"),
        ):
            with pytest.raises(MessageDropped) as caught:
                client.send_msg(message)
            assert caught.value.reason == reason
        with pytest.raises(BadMessage):
            client.send_msg(Message(flags=3))
        client.send(b"fine")
        assert server.recv(timeout=5) == b"fine"


def test_a_forwarded_to_all_message_waits_no_more_for_a_pipe_that_was_given_up_until_it_has_sent_a_queue(
    make_hub: Callable[..., Hub],
) -> None:
    hub = make_hub(send_to_patience=0.01)
    (pipe,) = hub.pipes
    message = Message(TO_ALL, 16, b"", b"", b"for all")
    lost: list[int] = []

    def forward(expected: int) -> None:
        with gevent.Timeout(10):
            assert hub.sock._for_protocol().forward(message, None, lost.append) == expected

    for _ in range(hub.capacity):
        forward(1)
    forward(0)
    assert sum(lost) == 1 and pipe.counters.drops == {"overflow": 1}
    # A wait has no end now.
    hub.sock.set_option("socket.send_to_patience", 0.0)
    forward(0)
    assert sum(lost) == 2 and pipe.counters.drops == {"overflow": 2}
    for _ in range(hub.capacity):
        hub.peers[0].recv(timeout=5)
        wait_until(lambda: not pipe.full)
        forward(1)
    # It has sent a whole queue, and is worth a wait again.
    waiting = gevent.spawn(forward, 1)
    gevent.sleep(0)
    assert not waiting.ready()
    hub.peers[0].recv(timeout=5)
    waiting.get(timeout=5)
    assert sum(lost) == 2 and pipe.counters.drops == {"overflow": 2}


def test_the_ttl_of_what_is_sent_is_an_option_and_0_means_16(two: tuple[Socket, Socket]) -> None:
    server, client = two
    for value, arrives_as in ((0, 15), (1, 0), (255, 254)):
        client.set_option("socket.send_ttl", value)
        client.send(b"x")
        assert server.recv_msg(timeout=5).ttl == arrives_as


# Options that say what to do instead of waiting


@pytest.mark.parametrize("option", ["fail_no_peers", "send_best_effort"])
def test_a_send_without_peers_may_fail_at_once(address: str, option: str) -> None:
    with Socket({f"socket.{option}": True}) as sender, Socket() as receiver:
        with pytest.raises(NoPeers):
            sender.send(b"x")
        with pytest.raises(NoPeers):
            sender.send_msg(Message(content=b"x"))
        assert sender.send_all(b"x") == 0
        receiver.dial(sender.listen(address).address)
        sender.wait_pipes(timeout=5)
        sender.send(b"y")
        assert receiver.recv(timeout=5) == b"y"


def test_senders_that_wait_fail_when_the_last_peer_goes(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(fail_no_peers=True)
    hub.fill()
    senders = [gevent.spawn(hub.sock.send, b"x") for _ in range(3)]
    gevent.sleep(0)
    assert not any(sender.ready() for sender in senders)
    hub.peers[0].close()
    for sender in senders:
        with pytest.raises(NoPeers):
            sender.get(timeout=5)


def test_senders_that_wait_for_a_peer_hear_of_a_change_of_mind() -> None:
    with Socket() as sock:
        for option in ("socket.fail_no_peers", "socket.send_best_effort"):
            sender = gevent.spawn(sock.send, b"x")
            gevent.sleep(0)
            sock.set_option(option, True)
            with pytest.raises(NoPeers):
                sender.get(timeout=5)
            sock.set_option(option, False)
        sender = gevent.spawn(sock.send, b"x")
        gevent.sleep(0)
        sock.set_option("socket.no_send", True)
        with pytest.raises(NotSupported):
            sender.get(timeout=5)


def test_a_new_overflow_policy_frees_those_who_wait(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2)
    hub.fill()
    path = hub.pipes[0].path
    waiting = [
        gevent.spawn(hub.sock.send, b"one"),
        gevent.spawn(hub.sock.send_to, path, b"dest"),
        gevent.spawn(hub.sock.send_all, b"all"),
    ]
    gevent.sleep(0)
    hub.sock.set_option("socket.send_overflow", "drop_newest")
    gevent.joinall(waiting, timeout=5, raise_error=True)
    assert hub.sock.counters.drops == {"overflow": 4}


def test_a_stuck_peer_does_not_hold_up_senders_that_waited_for_any_peer_under_a_dropping_policy() -> None:
    with (
        Socket({"socket.send_overflow": "drop_newest", "socket.send_queue_size": 1}) as sock,
        Socket({"socket.recv_queue_size": 1}) as stuck,
    ):
        senders = [gevent.spawn(sock.send, b"%d" % number) for number in range(10)]
        gevent.sleep(0)
        stuck.dial(sock.listen("inproc://stuck").address)
        gevent.joinall(senders, timeout=5, raise_error=True)
        sock.send(b"more", timeout=5)
        assert sock.counters.drops == {"overflow": 9}
        assert [stuck.recv(timeout=5) for _ in range(2)] == [b"0", b"1"]


def test_best_effort_drops_what_cannot_be_queued_at_once(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=2, send_best_effort=True)
    hub.fill()
    with pytest.raises(MessageDropped) as caught:
        hub.sock.send(b"x")
    assert caught.value.reason == "overflow"
    with pytest.raises(MessageDropped):
        hub.sock.send_to(hub.pipes[0].path, b"x")
    assert hub.sock.send_all(b"x") == 0
    assert hub.peers[1].recv(timeout=5) == b"fill"
    wait_until(lambda: not hub.pipes[1].full)
    assert hub.sock.send_all(b"y") == 1


def test_a_socket_with_no_send_refuses_every_way_to_send(address: str) -> None:
    with Socket({"socket.no_send": True}) as mute, Socket() as peer:
        peer.dial(mute.listen(address).address)
        mute.wait_pipes(timeout=5)
        path = only_pipe(mute).path
        calls: dict[str, Callable[[], object]] = {
            "send": lambda: mute.send(b"x"),
            "send_all": lambda: mute.send_all(b"x"),
            "send_to": lambda: mute.send_to(path, b"x"),
            "send_msg": lambda: mute.send_msg(Message(content=b"x")),
        }
        with every_case() as case:
            for name, call in calls.items():
                with case(name):
                    with pytest.raises(NotSupported):
                        call()
                    peer.send(b"it can still receive")
                    assert mute.recv(timeout=5) == b"it can still receive"


@pytest.mark.parametrize("call", ["send", "send_to", "send_all"])
def test_drop_newest_keeps_the_oldest_and_counts_the_others(make_hub: Callable[..., Hub], call: str) -> None:
    hub = make_hub(send_overflow="drop_newest", send_queue_size=3)
    offer_numbers(hub, call, 20)
    assert hub.pipes[0].counters.drops == {"overflow": 20 - hub.capacity}
    assert drain(hub.peers[0]) == [b"%d" % number for number in range(hub.capacity)]


@pytest.mark.parametrize("call", ["send", "send_to", "send_all"])
def test_drop_oldest_keeps_the_newest_and_counts_the_others(make_hub: Callable[..., Hub], call: str) -> None:
    hub = make_hub(send_overflow="drop_oldest", send_queue_size=3)
    offer_numbers(hub, call, 20)
    assert hub.pipes[0].counters.drops == {"overflow": 20 - hub.capacity}
    assert drain(hub.peers[0]) == [b"0", b"17", b"18", b"19"]


@pytest.mark.parametrize("call", ["send", "send_to", "send_all"])
def test_disconnect_closes_the_pipe_that_takes_no_more(make_hub: Callable[..., Hub], call: str) -> None:
    hub = make_hub(send_overflow="disconnect", send_queue_size=3)
    hub.peers[0].dialers[0].options.set("connector.dialer.reconnect", False)
    for number in range(hub.capacity):
        offer(hub, call, b"%d" % number)
    if call == "send_to":
        with pytest.raises(BrokenPath):
            offer(hub, call, b"too many")
    else:
        offer(hub, call, b"too many")
    assert hub.pipes[0].closed and "overflow" in hub.pipes[0].reason
    drops = hub.sock.counters.drops
    # To-one messages are kept for the next peer; the others are lost with their pipe.
    assert drops == ({"overflow": 1} if call == "send" else {"overflow": 1, "disconnect": 3})
    assert drain(hub.peers[0]) == [b"0"]


def offer(hub: Hub, call: str, content: bytes) -> None:
    if call == "send_to":
        hub.sock.send_to(hub.pipes[0].path, content, timeout=1)
    else:
        getattr(hub.sock, call)(content, timeout=1)


def offer_numbers(hub: Hub, call: str, count: int) -> None:
    for number in range(count):
        offer(hub, call, b"%d" % number)


def test_drop_oldest_drops_as_many_as_a_limit_in_bytes_needs(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(send_overflow="drop_oldest", send_queue_size=100, send_queue_bytes=1000)
    hub.sock.send(b"arrives")
    hub.sock.send(b"a" * 10)
    hub.sock.send(b"b" * 1000)
    hub.sock.send(b"newest")
    assert hub.pipes[0].counters.drops == {"overflow": 2}
    assert drain(hub.peers[0]) == [b"arrives", b"newest"]


def test_one_stuck_peer_costs_the_others_nothing_under_a_dropping_policy(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(peers=3, send_overflow="drop_newest")
    for number in range(50):
        hub.sock.send_all(b"%d" % number)
        assert [peer.recv(timeout=5) for peer in hub.peers[1:]] == [b"%d" % number] * 2
    assert [pipe.counters.drops for pipe in hub.pipes] == [{"overflow": 50 - hub.capacity}, {}, {}]


# Queues


def test_the_send_queue_limits_how_much_waits_for_a_pipe(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(send_queue_size=5)
    for _ in range(6):
        hub.sock.send(b"x", timeout=0)
    assert hub.pipes[0].queued == 5
    with pytest.raises(Timeout):
        hub.sock.send(b"x", timeout=0)


def test_the_send_queue_is_limited_in_bytes_too(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub(send_queue_size=100, send_queue_bytes=1000)
    for _ in range(3):
        hub.sock.send(bytes(500), timeout=0)
    assert hub.pipes[0].queued == 2
    with pytest.raises(Timeout):
        hub.sock.send(b"x", timeout=0)


@pytest.mark.parametrize("size", [0, 1, 3, 50])
def test_changing_the_send_queue_of_a_live_socket_keeps_what_is_queued(make_hub: Callable[..., Hub], size: int) -> None:
    hub = make_hub(send_queue_size=10)
    for number in range(11):
        hub.sock.send(b"%d" % number, timeout=0)
    waiting = gevent.spawn(hub.sock.send, b"11")
    gevent.sleep(0)
    hub.sock.set_option("socket.send_queue_size", size)
    received = [hub.peers[0].recv(timeout=5) for _ in range(12)]
    waiting.get(timeout=5)
    assert received == [b"%d" % number for number in range(12)]


def test_a_larger_send_queue_lets_waiting_senders_go_on(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.fill()
    sender = gevent.spawn(hub.sock.send, b"x")
    gevent.sleep(0)
    assert not sender.ready()
    hub.sock.set_option("socket.send_queue_size", 2)
    sender.get(timeout=5)


def test_a_change_of_the_limits_survives_pipes_that_break_under_it() -> None:
    with Socket({"socket.send_queue_size": 1}) as server, ExitStack() as stack:
        where = server.listen("tcp://127.0.0.1:0?transport.tcp.write_buffer=4096").address
        peers = [stack.enter_context(plain_connection(where)) for _ in range(3)]
        server.wait_pipes(3, timeout=5)
        while True:
            try:
                server.send(bytes(65536), timeout=0.01)
            except Timeout:
                break
        victims = list(server.pipes.values())
        for peer in peers:
            peer.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()
        server.close_pipe(victims[0].id)
        server.set_option("socket.send_queue_size", 10)
        wait_until(lambda: not server.pipes)
        assert all(pipe.closed for pipe in victims)
        server.close(linger=0)


def test_a_bytes_pipe_counts_messages_that_left_and_those_that_wait(stream_address: str) -> None:
    with Socket({"socket.send_queue_size": 8}) as server:
        where = server.listen(stream_address).address
        with plain_connection(where) as peer:
            server.wait_pipes(timeout=5)
            pipe = only_pipe(server)
            offered = 0
            while True:
                try:
                    server.send(bytes(50_000), timeout=0.05)
                except Timeout:
                    break
                offered += 1
            assert pipe.counters.messages_sent + pipe.queued == offered
            decoder = Decoder(1)
            received = 0
            while received < offered:
                received += len(decoder.feed(peer.recv(1 << 20)))
            wait_until(lambda: not pipe.queued)
            assert pipe.counters.messages_sent == offered
            assert pipe.counters.bytes_sent == offered * 50_008
            assert server.counters.messages_sent == offered


# Letting others run


def others_run_while(call: Callable[[], object], limit: int = 100_000) -> bool:
    """Call again and again, and return whether another greenlet gets to run before the limit."""
    ran = Event()
    other = gevent.spawn(ran.set)
    for _ in range(limit):
        call()
        if ran.is_set():
            return True
    other.kill()
    return False


def test_a_greenlet_that_only_sends_lets_others_run(two: tuple[Socket, Socket]) -> None:
    server, client = two
    client.set_option("socket.send_queue_size", 65535)
    server.set_option("socket.recv_queue_size", 65535)
    path = only_pipe(client).path
    for call in (
        lambda: client.send(b"x"),
        lambda: client.send_all(b"x"),
        lambda: client.send_to(path, b"x"),
        lambda: client.send_msg(Message(content=b"x")),
    ):
        assert others_run_while(call)
    client.close(linger=0)


def test_a_greenlet_that_sends_to_nobody_lets_others_run() -> None:
    with Socket() as sock:
        assert others_run_while(lambda: sock.send_all(b"x"))

        def poll() -> None:
            with pytest.raises(Timeout):
                sock.send(b"x", timeout=0)

        assert others_run_while(poll, limit=5000)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_a_greenlet_whose_messages_are_all_dropped_lets_others_run(make_hub: Callable[..., Hub], policy: str) -> None:
    hub = make_hub(send_overflow=policy)
    hub.fill()
    path = hub.pipes[0].path
    for call in (lambda: hub.sock.send(b"x"), lambda: hub.sock.send_all(b"x"), lambda: hub.sock.send_to(path, b"x")):
        assert others_run_while(call)


def test_a_greenlet_that_polls_a_full_pipe_lets_others_run(make_hub: Callable[..., Hub]) -> None:
    hub = make_hub()
    hub.fill()
    path = hub.pipes[0].path

    def poll(send: Callable[[], object]) -> None:
        with pytest.raises(Timeout):
            send()

    assert others_run_while(lambda: poll(lambda: hub.sock.send_to(path, b"x", timeout=0)), limit=5000)
    assert others_run_while(lambda: poll(lambda: hub.sock.send_all(b"x", timeout=0)), limit=5000)


# Closing


def test_a_closed_socket_refuses_every_way_to_send(two: tuple[Socket, Socket]) -> None:
    _, client = two
    path = only_pipe(client).path
    client.close()
    for call in (
        lambda: client.send(b"x"),
        lambda: client.send_all(b"x"),
        lambda: client.send_to(path, b"x"),
        lambda: client.send_msg(Message(content=b"x")),
        lambda: client._for_protocol().send_group([], b"x"),
    ):
        with pytest.raises(Closed):
            call()


# Mistakes of the caller


@pytest.mark.parametrize("flags", [-8, 256, 1 << 20, 3])
def test_flags_that_no_byte_holds_or_that_name_no_send_type_are_refused_with_words(flags: int) -> None:
    with Socket() as sock, pytest.raises(BadMessage, match="name no send type"):
        sock.send_msg(Message(flags, content=b"x"), timeout=0)


def test_text_is_refused_with_what_to_do_about_it() -> None:
    with Socket() as sock, pytest.raises(TypeError, match="encode it"):
        sock.send("text", timeout=0)  # type: ignore[arg-type]
