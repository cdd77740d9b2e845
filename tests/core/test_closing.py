"""Closing a socket: from anywhere, at any moment, with nothing left behind and every loss counted."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import gevent
import pytest
from gevent import socket as gsocket

from gmultisocket import Message, Negotiation, Socket, Switch
from gmultisocket.errors import Closed, ConnectionFailed, MultiSocketError, Timeout
from gmultisocket.protocol import Pub, Sub
from gmultisocket.testing import wait_until
from gmultisocket.wire import Decoder
from tests.addresses import TRANSPORTS, plain_connection, plain_listener
from tests.oracle import descriptors

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER of 0: closing resets the connection


def library_greenlets() -> list[gevent.Greenlet]:
    """Return all live greenlets that run a method of the library."""
    return [
        found
        for found in gc.get_objects()
        if isinstance(found, gevent.Greenlet)
        and not found.dead
        and type(getattr(getattr(found, "_run", None), "__self__", None)).__module__.startswith("gmultisocket.")
    ]


def stuck_sender(sock: Socket) -> int:
    """Send until nothing more is taken for a while. Returns how many messages were."""
    sent = 0
    with suppress(Timeout):
        while True:
            sock.send(b"%d " % sent + bytes(70_000), timeout=0.01)
            sent += 1
    return sent


# The two ends of an inproc pipe count for each other, and so keep each other until the collector comes.
@pytest.mark.parametrize("transport", [each for each in TRANSPORTS if each != "inproc"], indirect=True)
def test_closed_pipes_leave_nothing_for_the_garbage_collector(address: str) -> None:
    """A server may let it run rarely: it looks at all living objects, and holds up all peers meanwhile."""
    with ExitStack() as stack, Pub() as pub:
        address = pub.listen(address).address
        subs = [stack.enter_context(Sub()) for _ in range(50)]
        for sub in subs:
            sub.dial(address)
            sub.subscribe("news", 20)
        assert pub.publish("news", b"") == len(subs)
        gc.collect()
        gc.disable()
        try:
            for sub in subs:
                sub.close()
            wait_until(lambda: not pub.pipes)
            assert gc.collect() < len(subs)
        finally:
            gc.enable()


def test_closing_twice_is_harmless(address: str) -> None:
    sock = Socket()
    assert not sock.closed
    sock.listen(address)
    assert sock.close() == 0
    assert sock.closed
    assert sock.close() == 0


def test_a_socket_that_was_never_used_closes() -> None:
    sock = Socket()
    assert sock.close() == 0
    assert sock.closed


def test_a_with_block_closes() -> None:
    with suppress(ZeroDivisionError), Socket() as sock:
        raise ZeroDivisionError
    assert sock.closed


def test_closing_at_the_same_time_waits_for_the_first_call(stream_address: str) -> None:
    server = Socket()
    with plain_connection(server.listen(stream_address).address):
        server.wait_pipes(timeout=5)
        stuck_sender(server)
        closed: list[bool] = []
        closers = [gevent.spawn(lambda: (server.close(0.05), closed.append(server.closed))) for _ in range(5)]
        gevent.joinall(closers, timeout=5, raise_error=True)
        assert closed == [True] * 5
        assert sorted(closer.value[0] > 0 for closer in closers) == [False] * 4 + [True]


def test_nothing_is_left_when_close_returns(address: str) -> None:
    before = descriptors()
    server, client, lonely = Socket(), Socket(), Socket()
    where = server.listen(address).address
    for _ in range(3):
        client.dial(where)
    lonely.dial("tcp://127.0.0.1:1", {"connector.dialer.dial_async": True})
    server.wait_pipes(3, timeout=5)
    for sock in (client, lonely, server):
        sock.close()
    assert descriptors().keys() == before.keys()
    assert library_greenlets() == []


def test_nothing_is_left_when_close_returns_though_a_pipe_closed_just_before(stream_address: str) -> None:
    before = descriptors()
    server = Socket()
    with plain_connection(server.listen(stream_address).address) as stuck:
        server.wait_pipes(timeout=5)
        stuck_sender(server)
        for pipe in list(server.pipes.values()):
            pipe.close()
        server.close()
        assert len(descriptors()) == len(before) + 1
        assert library_greenlets() == []
        assert stuck.fileno() >= 0


def test_nothing_is_left_of_a_half_closed_raw_pipe(stream_address: str) -> None:
    before = descriptors()
    server = Socket({"connector.pipe.raw": True, "connector.pipe.close_on_eof": False})
    with plain_connection(server.listen(stream_address).address) as peer:
        peer.shutdown(gsocket.SHUT_WR)
        assert server.recv(timeout=5) == b""
        assert server.recv(timeout=5) is None
        server.stop_listen(server.listeners[0].address)
        server.close()
        assert len(descriptors()) == len(before) + 1


# What was sent before


def test_messages_that_were_sent_before_closing_all_arrive(address: str) -> None:
    with Socket() as server:
        client = Socket({"socket.send_queue_size": 1000})
        client.dial(server.listen(address).address)
        sent = [b"%d" % number for number in range(256)]
        for content in sent:
            client.send(content)
        receiving = gevent.spawn(lambda: [server.recv(timeout=5) for _ in sent])
        assert client.close() == 0
        assert receiving.get(timeout=5) == sent


@pytest.mark.parametrize("way", ["to a listener", "to a dialer"])
def test_messages_arrive_also_at_a_slow_receiver(address: str, way: str) -> None:
    with Socket({"socket.recv_queue_size": 4}) as receiver:
        sender = Socket({"socket.send_queue_size": 1000})
        if way == "to a listener":
            sender.dial(receiver.listen(address).address)
        else:
            receiver.dial(sender.listen(address).address, {"connector.dialer.reconnect": False})
        sent = [b"%d " % number + bytes(2000) for number in range(256)]
        for content in sent:
            sender.send(content)
        closing = gevent.spawn(sender.close, 30)
        received = []
        for number in range(len(sent)):
            received.append(receiver.recv(timeout=5))
            if number % 16 == 0:
                gevent.sleep(0.001)
        assert received == sent
        assert closing.get(timeout=5) == 0


def test_messages_arrive_also_when_the_closing_side_has_not_received_its_own(address: str) -> None:
    """A kernel that closes a connection with unread bytes in it resets it, and may take what is on its way along."""
    with Socket({"socket.send_queue_size": 10_000}) as server:
        client = Socket({"socket.send_queue_size": 10_000, "socket.recv_queue_size": 1})
        client.dial(server.listen(address).address)
        server.wait_pipes(timeout=5)
        sent = [b"%d " % number + bytes(500) for number in range(256)]
        for number, content in enumerate(sent):
            client.send(content)
            server.send(b"unread %d " % number + bytes(5000))
            if number % 64 == 0:
                gevent.sleep(0)
        receiving = gevent.spawn(lambda: [server.recv(timeout=5) for _ in sent])
        assert client.close(linger=30) == 0
        assert receiving.get(timeout=5) == sent
        server.close(linger=0)


def test_close_returns_how_many_messages_were_lost(address: str) -> None:
    with Socket({"socket.recv_queue_size": 1}) as receiver:
        sender = Socket({"socket.send_queue_size": 2000})
        sender.dial(receiver.listen(address).address)
        receiver.wait_pipes(timeout=5)
        sent = [b"%d " % number + bytes(100_000) for number in range(300)]
        for content in sent:
            sender.send(content, timeout=5)
        lost = sender.close(linger=0.01)
        assert 0 < lost < len(sent)
        assert sender.counters.drops == {"disconnect": 1, "closed": lost - 1} or sender.counters.drops == {
            "closed": lost
        }
        received = []
        with suppress(MultiSocketError):
            while True:
                received.append(receiver.recv(timeout=0.2))
        # A reset may have cost more than was counted here, never less, and there is no gap.
        assert received == sent[: len(received)]
        assert len(received) <= len(sent) - lost


def test_close_counts_what_is_lost_because_a_peer_dies_while_it_waits() -> None:
    sender = Socket({"socket.send_queue_size": 1000})
    with plain_connection(sender.listen("tcp://127.0.0.1:0").address) as peer:
        sender.wait_pipes(timeout=5)
        (pipe,) = sender.pipes.values()
        while pipe.queued < 10:
            sender.send_all(bytes(100_000))
        queued = pipe.queued
        closing = gevent.spawn(sender.close, 30)
        gevent.sleep(0.01)
        peer.setsockopt(gsocket.SOL_SOCKET, gsocket.SO_LINGER, RESET)
        peer.close()
        assert closing.get(timeout=5) == queued


def test_messages_that_wait_for_a_peer_count_as_lost(address: str) -> None:
    sender = Socket({"socket.send_queue_size": 10})
    with Socket({"socket.recv_queue_size": 1}) as receiver:
        receiver.dial(sender.listen("inproc://waiting").address, {"connector.dialer.reconnect": False})
        sender.wait_pipes(timeout=5)
        for _ in range(6):
            sender.send(b"x")
    wait_until(lambda: not sender.pipes)
    assert sender.close() == 5
    assert sender.counters.drops == {"closed": 5}


def test_a_stuck_peer_holds_a_close_up_no_longer_than_it_may_linger(stream_address: str) -> None:
    sender = Socket({"socket.send_stop_timeout": 0.02})
    with plain_connection(sender.listen(stream_address).address):
        sender.wait_pipes(timeout=5)
        stuck_sender(sender)
        assert sender.close() > 0


def test_a_frame_that_is_half_gone_is_not_finished_by_something_else(stream_address: str) -> None:
    """What a peer has got when the other side gave up is a row of whole frames and the beginning of one."""
    sender = Socket({"socket.send_queue_size": 100})
    with plain_connection(sender.listen(stream_address).address) as peer:
        sender.wait_pipes(timeout=5)
        sent = stuck_sender(sender)
        lost = sender.close(linger=0)
        decoder = Decoder(1)
        messages: list[Message] = []
        with suppress(ConnectionResetError):
            while data := peer.recv(1 << 20):
                messages += [Message(*fields) for fields in decoder.feed(data)]
        assert [int(message.content.split()[0]) for message in messages] == list(range(sent - lost))


# Those who wait


def test_a_hundred_senders_and_a_hundred_receivers_wake_up(address: str) -> None:
    with Socket() as server, Socket() as lonely:
        server.listen(address)
        waiting = [gevent.spawn(server.recv) for _ in range(100)]
        waiting += [gevent.spawn(server.send, b"x") for _ in range(100)]
        waiting += [gevent.spawn(lonely.wait_pipes, number + 1) for number in range(10)]
        gevent.sleep(0)
        server.close()
        lonely.close()
        for greenlet in waiting:
            with pytest.raises(Closed):
                greenlet.get(timeout=5)


def test_all_that_wait_wake_up_before_a_close_that_lingers_is_done(stream_address: str) -> None:
    """They wake in the first turns of the loop, not when the time of ``linger`` is up."""
    with Socket({"socket.send_queue_size": 1}) as sender, Socket({"socket.recv_queue_size": 1}) as lonely:
        with plain_connection(sender.listen(stream_address).address):
            sender.wait_pipes(timeout=5)
            (pipe,) = sender.pipes.values()
            stuck_sender(sender)
            waiting = [gevent.spawn(sender.recv) for _ in range(100)]
            waiting += [gevent.spawn(sender.send, b"x") for _ in range(50)]
            waiting += [gevent.spawn(sender.send_all, b"x") for _ in range(25)]
            waiting += [gevent.spawn(sender.send_to, pipe.path, b"x") for _ in range(25)]
            waiting += [gevent.spawn(lonely.wait_pipes, number + 1) for number in range(10)]
            gevent.sleep(0)
            closing = [gevent.spawn(sock.close, 30.0) for sock in (sender, lonely)]
            turns = 0
            while not all(greenlet.ready() for greenlet in waiting):
                gevent.sleep(0)
                turns += 1
                assert turns < 50, sum(not greenlet.ready() for greenlet in waiting)
            assert not closing[0].ready(), "it still tries to send what is queued"
            for greenlet in waiting:
                with pytest.raises(Closed):
                    greenlet.get()
        gevent.joinall(closing, raise_error=True, timeout=10)


def test_senders_that_wait_for_a_full_pipe_wake_up(stream_address: str) -> None:
    with Socket({"socket.send_queue_size": 1}) as sender:
        with plain_connection(sender.listen(stream_address).address):
            sender.wait_pipes(timeout=5)
            (pipe,) = sender.pipes.values()
            stuck_sender(sender)
            waiting = [gevent.spawn(sender.send, b"x") for _ in range(20)]
            waiting += [gevent.spawn(sender.send_all, b"x") for _ in range(20)]
            waiting += [gevent.spawn(sender.send_to, pipe.path, b"x") for _ in range(20)]
            gevent.sleep(0)
            sender.close(linger=0)
            for greenlet in waiting:
                with pytest.raises(Closed):
                    greenlet.get(timeout=5)


def test_a_dial_that_is_under_way_ends_at_once_and_leaves_nothing() -> None:
    before = descriptors()
    with full_listener() as where:
        during = len(descriptors())
        for options in ({}, {"connector.dialer.dial_async": True}):
            sock = Socket()
            dialing = gevent.spawn(sock.dial, where, options)
            wait_until(lambda: len(descriptors()) > during)
            sock.close()
            assert len(descriptors()) == during
            if options:
                assert dialing.get(timeout=5).closed
            else:
                with pytest.raises(Closed):
                    dialing.get(timeout=5)
    assert descriptors().keys() == before.keys()


@contextmanager
def full_listener() -> Iterator[str]:
    """Yield an address at which connections are neither made nor refused."""
    with ExitStack() as stack:
        listener, address = plain_listener(backlog=0)
        stack.enter_context(listener)
        for _ in range(4):
            filler = stack.enter_context(gsocket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield address


def test_a_closed_socket_neither_dials_nor_listens(address: str) -> None:
    sock = Socket()
    sock.close()
    for call in (lambda: sock.dial(address), lambda: sock.listen(address), lambda: sock.wait_pipes(timeout=1)):
        with pytest.raises(Closed):
            call()


# From anywhere


def test_a_negotiator_may_close_its_socket(address: str) -> None:
    events: list[str] = []
    with Socket() as server, Socket() as client:
        server.on_pipe(lambda event: events.append(event.kind))
        server.set_negotiator(lambda negotiation: server.close())
        with suppress(ConnectionFailed):
            client.dial(server.listen(address).address, {"connector.dialer.reconnect": False})
        wait_until(lambda: server.closed)
        wait_until(lambda: not client.pipes)
        gevent.sleep(0)
    # The connection never was a pipe, so no pipe has gone.
    assert events == []


def test_a_dialers_negotiator_may_close_its_socket(address: str) -> None:
    with Socket() as server, Socket() as client:
        client.set_negotiator(lambda negotiation: client.close())
        with pytest.raises(Closed):
            client.dial(server.listen(address).address)
        assert client.closed
        wait_until(lambda: not server.pipes)


def test_a_socket_may_be_closed_while_a_negotiator_is_at_work(address: str) -> None:
    began: list[Negotiation] = []
    ended: list[type[BaseException]] = []

    def wait_for_ever(negotiation: Negotiation) -> None:
        began.append(negotiation)
        try:
            gevent.sleep(60)
        except BaseException as error:
            ended.append(type(error))
            raise

    with Socket() as server, Socket() as client:
        server.set_negotiator(wait_for_ever)
        dialing = gevent.spawn(client.dial, server.listen(address).address, {"connector.dialer.reconnect": False})
        wait_until(lambda: began)
        server.close()
        assert len(ended) == 1
        assert issubclass(ended[0], gevent.GreenletExit)
        assert not server.pipes
        dialing.join(5)
        wait_until(lambda: not client.pipes)


def test_a_middleware_may_close_both_sockets_of_its_switch(address: str) -> None:
    with Socket() as back, Socket() as front, Socket() as client:

        def end(message: Message) -> None:
            back.close()
            front.close()

        switch = Switch(back, front, end)
        with switch:
            client.dial(front.listen(address).address)
            client.send(b"x")
            assert switch.join(timeout=5)
        assert back.closed and front.closed


def test_the_one_that_iterates_may_close(address: str) -> None:
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address).address)
        client.send(b"stop")
        for message in server:
            assert message.content == b"stop"
            server.close()
        assert server.closed


def test_a_kill_during_close_leaves_nothing_behind(stream_address: str) -> None:
    sender = Socket()
    with plain_connection(sender.listen(stream_address).address):
        sender.wait_pipes(timeout=5)
        stuck_sender(sender)
        closing = gevent.spawn(sender.close, 60)
        gevent.sleep(0.01)
        assert not sender.closed
        closing.kill()
        assert sender.closed
        assert not sender.pipes


def test_close_nowait_returns_at_once_and_closes(address: str) -> None:
    sock = Socket()
    sock.listen(address)
    closing = sock.close_nowait()
    assert not sock.closed
    assert closing.get(timeout=5) == 0
    assert sock.closed


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        # Ctrl-C while the main program waits for a message.
        ("interrupt", "interrupted True"),
        # A handler that has the socket closed; the loop over messages ends by itself.
        ("handler", "ended True"),
    ],
)
def test_a_signal_ends_a_program_that_waits_for_messages(
    patched: bool, how: str, expected: str, tmp_path: Path
) -> None:
    program = textwrap.dedent(
        """
        import sys
        patched, how = sys.argv[1:]
        if patched == "True":
            from gevent import monkey
            monkey.patch_all()
        import signal
        from gmultisocket import Socket

        sock = Socket()
        sock.listen("tcp://127.0.0.1:0")
        if how == "handler":
            signal.signal(signal.SIGINT, lambda number, frame: sock.close_nowait())
        try:
            print("ready", flush=True)
            for message in sock:
                pass
            print("ended", sock.close() == 0 and sock.closed)
        except KeyboardInterrupt:
            sock.close()
            print("interrupted", sock.closed)
        """
    )
    # The program's own file descriptors; the wait is cooperative under monkey patching and short without.
    with subprocess.Popen(
        [sys.executable, "-c", program, str(patched), how],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            # Not before the event loop sleeps: a signal in the instant between its last look at them and its sleep
            # is seen by no program of gevent's until the next event.
            wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
            os.kill(process.pid, signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert out.strip() == expected, err


def test_the_peers_of_a_closed_socket_see_it_go(address: str) -> None:
    with Socket() as server, ExitStack() as stack:
        clients = [stack.enter_context(Socket({"connector.dialer.reconnect": False})) for _ in range(5)]
        where = server.listen(address).address
        for client in clients:
            client.dial(where)
        server.wait_pipes(5, timeout=5)
        server.close()
        wait_until(lambda: not any(client.pipes for client in clients))


def every_call(sock: Socket) -> list[Callable[[], object]]:
    return [
        lambda: sock.send(b"x"),
        lambda: sock.send_all(b"x"),
        lambda: sock.recv(),
        lambda: sock.recv_msg(),
        lambda: sock.dial("inproc://x"),
        lambda: sock.listen("inproc://x"),
        lambda: sock.wait_pipes(),
    ]


def test_every_blocking_call_of_a_closed_socket_raises_closed() -> None:
    sock = Socket()
    sock.close()
    for call in every_call(sock):
        with pytest.raises(Closed):
            call()
    assert (list(sock), sock.pipes, sock.dialers, sock.listeners, sock.queued) == ([], {}, (), (), 0)
    assert sock.close_pipe(1) is False
    assert "closed" in repr(sock)


def test_a_closed_socket_says_so_to_every_call() -> None:
    sock = Socket()
    sock.listen("tcp://127.0.0.1:0")
    sock.close()
    for call in (sock.recv, lambda: sock.send(b"x"), lambda: sock.send_all(b"x"), lambda: sock.send_to(b"path", b"x")):
        with pytest.raises(Closed):
            call()
    for connect in (sock.dial, sock.listen):
        with pytest.raises(Closed):
            connect("tcp://127.0.0.1:1")
    assert list(sock) == []
    assert sock.close() == 0
