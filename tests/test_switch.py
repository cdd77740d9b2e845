"""Switches: chains of them, with the replies checked, middleware, and everything that must not end one."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
from gevent.event import Event

from gmultisocket import Message, Socket, Switch
from gmultisocket.errors import Timeout
from gmultisocket.switch import Middleware
from gmultisocket.testing import wait_until
from gmultisocket.wire import CONTROL, INTERNAL, TO_ALL, TO_DEST
from tests.addresses import plain_connection

_count = itertools.count()


def inproc() -> str:
    """Return an address that nobody listens at, for what does not depend on the transport."""
    return f"inproc://switch-{next(_count)}"


class Chain:
    """A client and a server with ``hops`` pipes, and so one switch less, between them."""

    def __init__(
        self, stack: ExitStack, new_address: Callable[[], str], hops: int, middleware: Middleware | None = None
    ) -> None:
        self.client = stack.enter_context(Socket())
        self.server = stack.enter_context(Socket())
        self.switches = []
        near = self.client
        for _ in range(hops - 1):
            front, back = stack.enter_context(Socket()), stack.enter_context(Socket())
            near.dial(front.listen(new_address()).address)
            front.wait_pipes(timeout=5)
            self.switches.append(stack.enter_context(Switch(back, front, middleware)))
            near = back
        near.dial(self.server.listen(new_address()).address)
        self.server.wait_pipes(timeout=5)

    def set_ttl(self, value: int) -> None:
        self.client.set_option("socket.send_ttl", value)
        self.server.set_option("socket.send_ttl", value)

    @property
    def drops(self) -> dict[str, int]:
        return dict(sum((Counter(switch.drops) for switch in self.switches), Counter()))

    def check_both_ways(self, hops: int) -> None:
        """Send by every way to send, and check that it arrives and that the reply does."""
        self.client.send(b"to one")
        self.client.send_all(b"to all")
        questions = [self.server.recv_msg(timeout=10) for _ in range(2)]
        assert [question.content for question in questions] == [b"to one", b"to all"]
        for question in questions:
            assert question.hops == hops
            self.server.send_to(question.source, b"reply to " + question.content)
        for question in questions:
            reply = self.client.recv_msg(timeout=10)
            assert reply.content == b"reply to " + question.content
            assert (reply.hops, reply.distance, reply.send_type) == (hops, 0, TO_DEST)
            # And the reply can be replied to.
            self.client.send_to(reply.source, b"thanks")
            assert self.server.recv(timeout=10) == b"thanks"


@pytest.mark.parametrize("hops", [1, 2, 4, 8, 16])
def test_messages_and_replies_arrive_through_up_to_16_hops(new_address: Callable[[], str], hops: int) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, hops)
        chain.check_both_ways(hops)
        assert chain.drops == {}


@pytest.mark.parametrize("hops", [17, 18, 32])
def test_more_hops_take_more_ttl(new_address: Callable[[], str], hops: int) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, hops)
        chain.client.send(b"does not arrive")
        wait_until(lambda: chain.drops == {"ttl": 1})
        # It went as far as it might: through 15 switches, and the 16th dropped it.
        assert [switch.forwarded for switch in chain.switches] == [1] * 15 + [0] * (hops - 16)
        with pytest.raises(Timeout):
            chain.server.recv(timeout=0)
        chain.set_ttl(hops)
        chain.check_both_ways(hops)
        assert chain.drops == {"ttl": 1}


def test_a_reply_needs_as_much_ttl_as_the_question(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 17)
        chain.client.set_option("socket.send_ttl", 17)
        chain.client.send(b"question")
        question = chain.server.recv_msg(timeout=10)
        chain.server.send_to(question.source, b"reply")
        wait_until(lambda: chain.drops == {"ttl": 1})
        chain.server.send_msg(Message(TO_DEST, ttl=17, destination=question.source, content=b"reply"))
        assert chain.client.recv(timeout=10) == b"reply"


def test_many_messages_go_both_ways_at_once_in_order(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 3)

        def serve() -> None:
            for message in chain.server:
                chain.server.send_to(message.source, message.content[::-1])

        serving = gevent.spawn(serve)
        contents = [b"%d " % number + bytes(number % 500) for number in range(1000)]
        sending = gevent.spawn(lambda: [chain.client.send(content) for content in contents])
        received = [chain.client.recv(timeout=10) for _ in contents]
        assert received == [content[::-1] for content in contents]
        sending.get()
        chain.server.close()
        serving.get(timeout=5)


def test_each_client_gets_its_own_replies(address: str) -> None:
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front), ExitStack() as stack:
        where = front.listen(address).address
        server.dial(back.listen("inproc://back").address)
        clients = [stack.enter_context(Socket()) for _ in range(10)]
        for client in clients:
            client.dial(where)

        def serve() -> None:
            for message in server:
                server.send_to(message.source, b"reply to " + message.content)

        serving = gevent.spawn(serve)
        for number in range(5):
            for name, client in enumerate(clients):
                client.send(b"%d %d" % (name, number))
        for name, client in enumerate(clients):
            for number in range(5):
                assert client.recv(timeout=5) == b"reply to %d %d" % (name, number)
        server.close()
        serving.get(timeout=5)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("scheme", ["inproc", "tcp"])
def test_replies_find_the_way_back_through_several_switches(scheme: str, count: int) -> None:
    """Many clients at once, so that a path that is mixed up with another's shows."""
    address = {"inproc": "inproc://hop{}", "tcp": "tcp://127.0.0.1:0"}[scheme]
    with ExitStack() as stack:
        server = stack.enter_context(Socket())
        where = server.listen(address.format("server")).address
        for number in range(count):
            back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
            back.dial(where)
            where = front.listen(address.format(number)).address
            stack.enter_context(Switch(back, front))
        clients = [stack.enter_context(Socket()) for _ in range(10)]
        for client in clients:
            client.dial(where)
        for round in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d/%d" % (number, round))
            for _ in clients:
                message = server.recv_msg(timeout=5)
                assert message.hops == count + 1
                server.send_to(message.source, b"re " + message.content)
            for number, client in enumerate(clients):
                reply = client.recv_msg(timeout=5)
                assert reply.content == b"re %d/%d" % (number, round)
                assert reply.destination == b""


def test_to_one_messages_are_shared_among_the_servers_and_to_all_messages_reach_each(address: str) -> None:
    with Socket() as back, Socket() as front, Socket() as client, Switch(back, front), ExitStack() as stack:
        where = back.listen(address).address
        servers = [stack.enter_context(Socket()) for _ in range(3)]
        for server in servers:
            server.dial(where)
        back.wait_pipes(3, timeout=5)
        client.dial(front.listen("inproc://front").address)
        for number in range(30):
            client.send(b"%d" % number)
        shares = [[server.recv(timeout=5) for _ in range(10)] for server in servers]
        assert sorted(int(content) for share in shares for content in share) == list(range(30))
        client.send_all(b"all")
        assert [server.recv(timeout=5) for server in servers] == [b"all"] * 3


def test_a_switch_works_the_same_in_both_directions(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        chain.server.send_all(b"from behind")
        message = chain.client.recv_msg(timeout=5)
        chain.client.send_to(message.source, b"heard")
        assert chain.server.recv(timeout=5) == b"heard"


# Middleware


def test_a_middleware_sees_every_message_and_may_replace_or_drop_it(new_address: Callable[[], str]) -> None:
    seen: list[bytes] = []

    def censor(message: Message) -> Message | None:
        seen.append(message.content)
        if message.content == b"secret":
            return None
        return message.replace(content=message.content.upper(), flags=message.flags | CONTROL)

    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2, censor)
        for content in (b"one", b"secret", b"two"):
            chain.client.send(content)
        messages = [chain.server.recv_msg(timeout=5) for _ in range(2)]
        assert [(message.content, message.flags) for message in messages] == [(b"ONE", CONTROL), (b"TWO", CONTROL)]
        chain.server.send_to(messages[0].source, b"reply")
        assert chain.client.recv(timeout=5) == b"REPLY"
        assert seen == [b"one", b"secret", b"two", b"reply"]
        assert chain.drops == {"middleware": 1}
        assert chain.switches[0].forwarded == 3


@pytest.mark.parametrize("error", [ValueError("broken"), gevent.Timeout(1), KeyError()])
def test_a_middleware_that_raises_loses_its_message_and_nothing_else(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fragile(message: Message) -> Message:
        if message.content == b"bad":
            raise error
        return message

    with ExitStack() as stack, caplog.at_level(logging.ERROR, "gmultisocket"):
        chain = Chain(stack, inproc, 2, fragile)
        for content in (b"bad", b"good", b"bad", b"better"):
            chain.client.send(content)
        assert [chain.server.recv(timeout=5) for _ in range(2)] == [b"good", b"better"]
        assert chain.drops == {"error": 2}
        assert chain.switches[0].running
        # The first is logged, with its traceback; a thousand more would only fill the disk.
        assert len(caplog.records) == 1 and caplog.records[0].exc_info
        assert "the middleware failed" in caplog.records[0].getMessage()


@pytest.mark.parametrize("answer", ["text", 7, ("tuple",), Message(content="text")])  # type: ignore[arg-type]
def test_a_middleware_that_returns_something_else_loses_its_message_and_nothing_else(answer: Any) -> None:
    def confused(message: Message) -> Any:
        return answer if message.content == b"bad" else message

    with ExitStack() as stack:
        chain = Chain(stack, inproc, 2, confused)
        chain.client.send(b"bad")
        chain.client.send(b"good")
        assert chain.server.recv(timeout=5) == b"good"
        assert sum(chain.drops.values()) == 1


def test_a_slow_middleware_holds_up_only_its_own_direction() -> None:
    go_on = Event()

    def slow(message: Message) -> Message:
        if message.content == b"slow":
            go_on.wait()
        return message

    with ExitStack() as stack:
        chain = Chain(stack, inproc, 2, slow)
        chain.client.send(b"slow")
        chain.client.send(b"behind it")
        chain.server.send_all(b"the other way")
        assert chain.client.recv(timeout=5) == b"the other way"
        assert chain.server.queued == 0
        go_on.set()
        assert [chain.server.recv(timeout=5) for _ in range(2)] == [b"slow", b"behind it"]


# What must not end a switch


def test_a_reply_to_a_client_that_has_gone_is_dropped_and_counted(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        with Socket() as gone:
            gone.dial(chain.switches[0].front.listeners[0].address)
            gone.send(b"question")
            question = chain.server.recv_msg(timeout=5)
        wait_until(lambda: len(chain.switches[0].front.pipes) == 1)
        chain.server.send_to(question.source, b"reply to nobody")
        wait_until(lambda: chain.drops == {"BrokenPath": 1})
        chain.check_both_ways(2)


def test_a_message_that_has_arrived_at_the_switch_itself_is_dropped(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        (pipe,) = chain.client.pipes.values()
        chain.client.send_to(pipe.path, b"for the switch")
        wait_until(lambda: chain.drops == {"arrived": 1})
        chain.check_both_ways(2)


def test_a_to_all_message_to_nobody_is_counted() -> None:
    with Socket() as back, Socket() as front, Socket() as client, Switch(back, front) as switch:
        client.dial(front.listen("inproc://front").address)
        client.send_all(b"anybody?")
        wait_until(lambda: switch.drops == {"no peer": 1})


def test_a_raw_message_does_not_pass_a_switch() -> None:
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as switch:
        server.dial(back.listen("inproc://back").address)
        where = front.listen("tcp://127.0.0.1:0", {"connector.pipe.raw": True}).address
        with plain_connection(where) as peer:
            peer.sendall(b"x")
            # Its announcement, and what it said.
            wait_until(lambda: switch.drops == {"raw": 2})


def test_a_switch_that_finds_no_peer_waits_for_one() -> None:
    with Socket() as back, Socket() as front, Socket() as client, Socket() as server, Switch(back, front) as switch:
        client.dial(front.listen("inproc://front").address)
        client.send(b"patient")
        gevent.sleep(0.001)
        server.dial(back.listen("inproc://back").address)
        assert server.recv(timeout=5) == b"patient"
        assert switch.drops == {}


def test_a_to_all_message_that_full_peers_lose_counts_once_for_each_of_them() -> None:
    small = {"socket.send_queue_size": 1, "socket.send_to_patience": 0.01}
    with ExitStack() as stack:
        back, front, client = (stack.enter_context(sock) for sock in (Socket(small), Socket(), Socket()))
        client.dial(front.listen(inproc()).address)
        where = back.listen(inproc()).address
        for _ in range(2):
            stack.enter_context(Socket({"socket.recv_queue_size": 1})).dial(where)
        with Switch(back, front) as switch:
            for _ in range(3):
                client.send_all(b"to each")
            wait_until(lambda: switch.drops == {"overflow": 2})
            assert [pipe.counters.drops for pipe in back.pipes.values()] == [{"overflow": 1}] * 2
            assert switch.forwarded == 2


def test_a_message_that_waits_for_a_peer_of_a_socket_that_closes_is_counted() -> None:
    with Socket() as back, Socket() as front, Socket() as client, Switch(back, front) as switch:
        client.dial(front.listen(inproc()).address)
        client.send(b"waits for a peer")
        wait_until(lambda: front.counters.messages_received == 1 and not front.queued)
        back.close()
        assert switch.join(timeout=5) is True
        assert switch.drops == {"closed": 1}


@pytest.mark.parametrize("scheme", ["inproc", "tcp"])
def test_internal_messages_along_a_path_are_counted_as_others_are(scheme: str) -> None:
    def new_address() -> str:
        return inproc() if scheme == "inproc" else "tcp://127.0.0.1:0"

    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        (switch,) = chain.switches
        seen: list[bytes] = []
        chain.client._for_protocol().on_internal(lambda message: not seen.append(message.content))
        chain.client.send(b"where are you?")
        path = chain.server.recv_msg(timeout=5).source
        (pipe,) = chain.server.pipes.values()
        (arrives,) = switch.back.pipes.values()

        def send(destination: bytes, source: bytes = b"") -> None:
            message = Message(INTERNAL | TO_DEST, source=source, destination=destination, content=b"\x7f")
            chain.server._for_protocol().pass_on(pipe, message)

        sent, received = pipe.messages_sent, arrives.messages_received
        bytes_sent, forwarded = pipe.bytes_sent, switch.forwarded
        send(path)
        wait_until(lambda: seen == [b"\x7f"])
        assert switch.drops == {} and switch.forwarded == forwarded + 1
        assert (pipe.messages_sent, arrives.messages_received) == (sent + 1, received + 1)
        assert pipe.bytes_sent > bytes_sent
        # A guesser that is behind another switch is cut off, and its pipe stays open.
        for _ in range(20):
            send(path[:4] + b"\x7f\xff\xff\xfe", b"\0\0\0\1")
        wait_until(lambda: sum(switch.drops.values()) == 20)
        assert switch.drops == {"BrokenPath": 16, "guessing": 4}
        assert not pipe.closed and seen == [b"\x7f"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_message_whose_middleware_ends_the_program_is_counted(error: type[BaseException]) -> None:
    def last(message: Message) -> Message:
        raise error

    with ExitStack() as stack:
        chain = Chain(stack, inproc, 2, last)
        with pytest.raises(error):
            chain.client.send(b"end it")
            gevent.sleep(10)
        assert chain.drops == {"error": 1}


# Starting and stopping


def test_a_switch_needs_two_sockets() -> None:
    with Socket() as sock, pytest.raises(ValueError, match="two different"):
        Switch(sock, sock)


def test_a_switch_may_be_started_and_stopped_again_and_again(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        (switch,) = chain.switches
        for number in range(3):
            assert switch.running
            switch.start()
            switch.stop()
            switch.stop()
            assert not switch.running
            chain.client.send(b"%d" % number)
            wait_until(lambda: switch.front.queued)
            assert chain.server.queued == 0
            # It had stayed in its socket, and goes on now.
            switch.start()
            assert chain.server.recv(timeout=5) == b"%d" % number


def test_the_sockets_stay_open_when_a_switch_stops() -> None:
    with Socket() as back, Socket() as front:
        with Switch(back, front):
            pass
        assert not back.closed and not front.closed


def test_a_switch_ends_with_its_sockets() -> None:
    with Socket() as back, Socket() as front:
        switch = Switch(back, front)
        switch.start()
        assert switch.join(timeout=0.001) is False
        back.close()
        front.close()
        assert switch.join(timeout=5) is True
        assert not switch.running
        with pytest.raises(RuntimeError, match="make a new one"):
            switch.start()
        switch.stop()


def test_a_message_in_hand_is_counted_when_a_switch_is_stopped() -> None:
    with Socket() as back, Socket() as front, Socket() as client:
        waits = Event()

        def wait(message: Message) -> Message:
            if message.content == b"in the middleware":
                waits.set()
                gevent.sleep(60)
            return message

        client.dial(front.listen("inproc://front").address)
        for content in (b"in the middleware", b"waits for a peer"):
            with Switch(back, front, wait) as switch:
                client.send(content)
                wait_until(lambda: waits.is_set() and not front.queued)
                gevent.sleep(0)
            assert switch.drops == {"stopped": 1}


def test_a_middleware_that_stops_its_switch_lets_nothing_else_pass() -> None:
    with Socket() as back, Socket() as front, Socket() as client, Socket() as server:

        def last(message: Message) -> Message:
            if message.content == b"last":
                switch.stop()
            return message

        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)
        for content in (b"first", b"last", b"too late", b"much too late"):
            client.send(content)
        switch = Switch(back, front, last)
        switch.start()
        assert [server.recv(timeout=5) for _ in range(2)] == [b"first", b"last"]
        gevent.sleep(0.001)
        assert (front.queued, server.queued, switch.running) == (2, 0, False)


def test_a_chain_of_two_switches_on_one_socket_pair_splits_the_work() -> None:
    """Two switches between the same sockets are two workers: no message is forwarded twice."""
    with Socket() as back, Socket() as front, Socket() as client, Socket() as server:
        server.dial(back.listen("inproc://back").address)
        client.dial(front.listen("inproc://front").address)
        with Switch(back, front) as one, Switch(back, front) as two:
            for number in range(100):
                client.send(b"%d" % number)
            received = {server.recv(timeout=5) for _ in range(100)}
            assert received == {b"%d" % number for number in range(100)}
            assert one.forwarded + two.forwarded == 100


def test_a_to_all_message_does_not_come_back(new_address: Callable[[], str]) -> None:
    with ExitStack() as stack:
        chain = Chain(stack, new_address, 2)
        chain.client.send_all(b"out")
        assert chain.server.recv_msg(timeout=5).send_type == TO_ALL
        with pytest.raises(Timeout):
            chain.client.recv(timeout=0.005)
