"""Checks for every transport, of any kind of connection.

First come the checks of the contracts in ``gmultisocket.transport.base``, on bare connections, then those of Sockets
that use the transport. Checks for byte streams, packets or messages only are in the modules beside this one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import gevent

from .. import options as opts
from ..address import Address
from ..core.socket import Socket
from ..errors import AddressError, AddressInUse, Closed, ConnectionFailed
from ..transport import Connection, MessageConnection, StreamConnection
from ._bench import Bench, attempt, check_connected, finish, never_switches, nothing_left, open_descriptors
from ._fork import in_forked_child
from ._wait import wait_until

__all__ = ["TransportChecks"]

#: The longest content that a pipe takes by default, in bytes.
_MAX_SIZE = 131072


class TransportChecks:
    """Checks for any transport. Subclass it, set an address, and let a test runner find the methods.

    With pytest a whole test file is::

        class TestSmoke(StreamTransportChecks):
            address = "smoke://127.0.0.1:0"
            bad_addresses = ("smoke://", "smoke://nowhere")

    The subclasses :class:`StreamTransportChecks`, :class:`PacketTransportChecks` and
    :class:`MessageTransportChecks` add checks for the three kinds of connection. Without a test runner,
    :func:`check_transport` runs them all.

    Each check is a method ``test_...`` without arguments. It closes what it has opened, and raises ``AssertionError``
    with a text that says what is wrong. If a transport cannot pass a check for a good reason, override the check and
    give the reason.

    Attributes:
        address: the address to listen at, many times: with port 0, or a name that is free after a close. If one
            address is not enough, override :meth:`make_address`.
        bad_addresses: addresses with the transport's scheme for which no dialer and no listener may be made.
        dial_options: options by name for dialers, e.g. the certificates to trust.
        listen_options: options by name for listeners, e.g. a certificate.
        limit: the longest time for one step, in seconds.
    """

    address: ClassVar[str] = ""
    bad_addresses: ClassVar[tuple[str, ...]] = ()
    dial_options: ClassVar[Mapping[str, Any]] = {}
    listen_options: ClassVar[Mapping[str, Any]] = {}
    limit: ClassVar[float] = 10.0

    def make_address(self) -> str:
        """Return an address to listen at; by default ``address``."""
        assert self.address, f"{type(self).__name__} must set 'address' or override make_address()"
        return self.address

    # Parts of the checks

    def bench(self) -> Bench:
        """Return a listener that can make connections to itself, for a ``with`` statement."""
        return Bench(self.make_address(), self.dial_options, self.listen_options, self.limit)

    def listen(self, sock: Socket, query: str = "") -> str:
        """Make a Socket listen, with the options in ``query``, and return the address to dial."""
        return sock.listen(_with_query(self.make_address(), query), self.listen_options).address

    def dial(self, sock: Socket, address: str, query: str = "") -> None:
        """Make a Socket dial, with the options in ``query``."""
        sock.dial(_with_query(address, query), self.dial_options)

    # Connections

    def test_a_connection_is_of_one_kind_and_says_where_it_goes(self) -> None:
        with self.bench() as bench:
            ends = bench.connect()
            for end in ends:
                kinds = [kind for kind in (StreamConnection, MessageConnection) if isinstance(end, kind)]
                assert len(kinds) == 1, f"{type(end).__name__} must be a StreamConnection or a MessageConnection"
                for name in ("local_address", "peer_address"):
                    value = getattr(end, name)
                    assert isinstance(value, str) and value, f"{name} is {value!r}"
                assert isinstance(end.identity, Mapping), f"identity is {end.identity!r}"
            check_connected(*ends)

    def test_addresses_are_still_known_after_close(self) -> None:
        with self.bench() as bench:
            end, _ = bench.connect()
            before = end.local_address, end.peer_address
            end.close()
            assert (end.local_address, end.peer_address) == before, "a log that names the peer comes after the close"

    def test_the_address_of_a_listener_can_be_dialed(self) -> None:
        with self.bench() as bench:
            address = Address.parse(bench.listener.address)
            assert address.scheme in bench.transport.schemes, f"{address} has none of {bench.transport.schemes}"
            assert not address.options and not address.connect_type, f"{address} has more than scheme and location"
            check_connected(*bench.connect())

    def test_many_can_be_connected_at_once(self) -> None:
        with self.bench() as bench:
            pairs = [bench.connect() for _ in range(50)]
            for pair in reversed(pairs):
                check_connected(*pair)

    # Dialing and listening

    def unused_address(self) -> str:
        """Return an address at which nobody listens any more."""
        with self.bench() as bench:
            return bench.listener.address

    def test_a_dial_to_nobody_fails(self) -> None:
        address = self.unused_address()
        with nothing_left():
            error = self._dial_nobody(address)
            assert error.address and error.address in str(error), f"the error does not name the address: {error}"
            assert error.why, f"the error does not say why: {error}"

    def _dial_nobody(self, address: str) -> ConnectionFailed:
        dialing = gevent.spawn(attempt, self.bench().make_dialer(address).connect)
        outcome = finish(dialing, self.limit, "connect() to an address at which nobody listens did not end")
        if isinstance(outcome, Connection):
            outcome.close()
        assert isinstance(outcome, ConnectionFailed), f"nobody listens: expected ConnectionFailed, got {outcome!r}"
        return outcome

    def test_an_address_can_be_taken_only_once(self) -> None:
        with self.bench() as bench:
            second = bench.make_listener(bench.listener.address)
            with nothing_left():
                error = attempt(second.listen)
                assert isinstance(error, AddressInUse), f"expected AddressInUse, got {error!r}"
                second.close()

    def test_an_address_is_free_again_after_close(self) -> None:
        with self.bench() as bench:
            ends = bench.connect()
            bench.listener.close()
            again = bench.make_listener(bench.listener.address)
            again.listen()
            assert again.address == bench.listener.address, f"{again.address} is not {bench.listener.address}"
            bench.listener = again
            check_connected(*bench.connect())
            check_connected(*ends)

    def test_closing_a_listener_leaves_its_connections_open(self) -> None:
        with self.bench() as bench:
            ends = bench.connect()
            bench.listener.close()
            check_connected(*ends)

    def test_a_closed_listener_lets_nobody_in(self) -> None:
        with self.bench() as bench:
            bench.listener.close()
            error = attempt(bench.listener.accept)
            assert isinstance(error, Closed), f"accept() of a closed listener must raise Closed, not {error!r}"
            self._dial_nobody(bench.listener.address)

    def test_closing_a_listener_ends_a_waiting_accept(self) -> None:
        with self.bench() as bench:
            accepting = gevent.spawn(attempt, bench.listener.accept)
            gevent.sleep(0)
            bench.listener.close()
            outcome = finish(accepting, self.limit, "close() did not end an accept() that was waiting")
            assert isinstance(outcome, (Closed, OSError)), f"accept() ended with {outcome!r}"

    def test_who_waits_to_be_accepted_notices_the_close(self) -> None:
        with self.bench() as bench:
            dialing = gevent.spawn(attempt, self._connect_and_read, bench)
            gevent.sleep(0)
            bench.listener.close()
            outcome = finish(dialing, self.limit, "a peer that was never accepted did not notice the close")
            assert isinstance(outcome, (OSError, ConnectionFailed)), f"that peer ended with {outcome!r}"

    def _connect_and_read(self, bench: Bench) -> object:
        """Connect to a listener that never accepts, and read. Raises when the listener is closed."""
        connection = bench.make_dialer().connect()
        try:
            if isinstance(connection, MessageConnection):
                wait_until(lambda: connection.closed, self.limit)
                raise ConnectionResetError
            assert isinstance(connection, StreamConnection)
            connection.read_exactly(1)
            return connection
        finally:
            connection.close()

    def test_bad_addresses_are_refused_when_they_are_given(self) -> None:
        with self.bench() as bench:
            for address in self.bad_addresses:
                for make in (bench.make_dialer, bench.make_listener):
                    error = attempt(make, address)
                    assert isinstance(error, AddressError), f"{make.__name__}({address!r}) gave {error!r}"

    def test_nothing_is_opened_before_it_is_needed(self) -> None:
        with self.bench() as bench:
            before = open_descriptors()
            bench.make_dialer()
            bench.make_listener(self.make_address())
            assert open_descriptors() == before, "making a dialer or listener opened a descriptor"

    # Closing

    def test_close_never_blocks_and_may_be_repeated(self) -> None:
        with self.bench() as bench:
            dialed, accepted = bench.connect()
            with never_switches("close()"):
                for closable in (dialed, dialed, accepted, accepted, bench.listener, bench.listener):
                    closable.close()

    def test_nothing_is_left_after_close(self) -> None:
        # The first use sets up things that stay, such as the resolver. They do not count.
        self.unused_address()
        with nothing_left(self.limit), self.bench() as bench:
            for _ in range(5):
                bench.connect()

    def test_a_forked_child_lets_go_without_disturbing_the_parent(self) -> None:
        self.unused_address()
        outside = open_descriptors()
        with self.bench() as bench:
            ends = bench.connect()

            def child(report: int) -> None:
                with never_switches("abandon()"):
                    for mine in (bench.listener, *ends):
                        mine.abandon()
                left = {target for number, target in open_descriptors() - outside if int(number) != report}
                assert not left, f"a forked child holds {left} after abandon()"

            in_forked_child(child, self.limit)
            check_connected(*ends)
            check_connected(*bench.connect())

    # Sockets that use the transport

    def test_messages_arrive_whole_and_in_order_both_ways(self) -> None:
        rng = random.Random(7)
        sizes = [0, 1, _MAX_SIZE, *(rng.choice((rng.randrange(200), rng.randrange(_MAX_SIZE))) for _ in range(97))]
        contents = [rng.randbytes(size) for size in sizes]
        with Socket() as server, Socket() as client:
            self.dial(client, self.listen(server))
            server.wait_pipes(1, self.limit)
            senders = [gevent.spawn(self._send_each, sock, contents) for sock in (client, server)]
            receivers = [gevent.spawn(self._recv_each, sock, len(contents)) for sock in (client, server)]
            for receiver in receivers:
                received = finish(receiver, self.limit, "not every message arrived")
                assert [len(content) for content in received] == sizes, "the sizes or their order changed"
                assert received == contents, "contents changed on the way"
            gevent.joinall(senders, raise_error=True)

    def _send_each(self, sock: Socket, contents: list[bytes]) -> None:
        for content in contents:
            sock.send(content, self.limit)

    def _recv_each(self, sock: Socket, count: int) -> list[bytes]:
        return [sock.recv(self.limit) for _ in range(count)]

    def test_replies_find_their_way_to_each_of_many_clients(self) -> None:
        with Socket() as server:
            address = self.listen(server)
            serving = gevent.spawn(self._answer, server)
            clients = [gevent.spawn(self._ask, address, str(number).encode()) for number in range(30)]
            for number, client in enumerate(clients):
                reply = finish(client, self.limit, "a client got no reply")
                assert reply == b"re: %d" % number, f"client {number} got {reply!r}"
        serving.join()

    def _answer(self, server: Socket) -> None:
        for message in server:
            server.send_to(message.source, b"re: " + message.content, self.limit)

    def _ask(self, address: str, content: bytes) -> bytes:
        with Socket() as client:
            self.dial(client, address)
            client.send(content, self.limit)
            return client.recv(self.limit)

    def test_a_message_to_all_reaches_every_client(self) -> None:
        clients = [Socket() for _ in range(10)]
        with Socket() as server:
            try:
                address = self.listen(server)
                for client in clients:
                    self.dial(client, address)
                server.wait_pipes(len(clients), self.limit)
                for number in range(20):
                    count = server.send_all(b"%d" % number, self.limit)
                    assert count == len(clients), f"send_all() returned {count} instead of {len(clients)}"
                for client in clients:
                    received = self._recv_each(client, 20)
                    assert received == [b"%d" % number for number in range(20)], f"a client got {received}"
            finally:
                for client in clients:
                    client.close()

    def test_what_was_sent_arrives_though_the_sender_closes_at_once(self) -> None:
        contents = [b"%d" % number * 100 for number in range(256)]
        with Socket() as server:
            address = self.listen(server)
            client = Socket({opts.socket.send_queue_size: len(contents)})
            try:
                self.dial(client, address)
                self._send_each(client, contents)
                closing = gevent.spawn(client.close, self.limit)
                received = self._recv_each(server, len(contents))
                assert received == contents, "messages were lost, or came in another order"
                lost = finish(closing, self.limit, "close() did not end")
                assert lost == 0, f"close() returned {lost} lost messages"
            finally:
                client.close()

    def test_options_of_dialer_and_listener_hold_for_their_pipes(self) -> None:
        longest = opts.connector.pipe.max_recv_content_length
        with Socket() as server, Socket({longest: 2000}) as client:
            address = self.listen(server, f"{longest}=1000")
            self.dial(client, address, "connector.dialer.reconnect=false")
            server.wait_pipes(1, self.limit)
            for sock, value in ((server, 1000), (client, 2000)):
                (pipe,) = sock.pipes.values()
                found = pipe.options.get(longest)
                assert found == value, f"the pipe has {longest} = {found}, not {value}"
            client.send(bytes(1000), self.limit)
            assert len(server.recv(self.limit)) == 1000
            client.send(bytes(1001), self.limit)
            wait_until(lambda: not server.pipes and not client.pipes, self.limit, "the close of a pipe over its limit")

    def test_a_dialer_finds_its_peer_again(self) -> None:
        with Socket() as server, Socket() as client:
            self.dial(client, self.listen(server), "connector.dialer.min_reconnect_time=10ms")
            server.wait_pipes(1, self.limit)
            (first,) = server.pipes
            server.close_pipe(first)
            wait_until(lambda: client.reconnects == 1, self.limit, "the dialer's second connection")
            client.send(b"again", self.limit)
            message = server.recv_msg(self.limit)
            assert message.content == b"again" and message.pipe_id != first, f"unexpected {message!r}"

    def test_a_socket_keeps_nothing_of_a_dial_that_failed(self) -> None:
        address = self.unused_address()
        with Socket() as sock, nothing_left():
            error = attempt(sock.dial, address, self.dial_options)
            assert isinstance(error, ConnectionFailed), f"dial() to nobody gave {error!r}"
            assert not sock.dialers, "a dialer that failed is still there"

    def test_a_socket_keeps_an_address_that_another_one_wants(self) -> None:
        with Socket() as first, Socket() as second, Socket() as client:
            taken = self.listen(first)
            error = attempt(second.listen, taken, self.listen_options)
            assert isinstance(error, AddressInUse), f"listen() at a taken address gave {error!r}"
            assert not second.listeners, "a listener that failed is still there"
            self.dial(client, taken)
            client.send(b"still there?", self.limit)
            assert first.recv(self.limit) == b"still there?", "the first listener lost its address"

    def test_a_closed_socket_leaves_nothing(self) -> None:
        self.unused_address()
        with nothing_left(self.limit), Socket() as server, Socket() as client:
            self.dial(client, self.listen(server))
            client.send(b"hello", self.limit)
            assert server.recv(self.limit) == b"hello"


def _with_query(address: str, query: str) -> str:
    """Return an address with more options."""
    if not query:
        return address
    return f"{address}{'&' if '?' in address else '?'}{query}"
