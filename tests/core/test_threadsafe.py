"""Sending from other OS threads: real ones, also where Python's are patched."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from gevent.monkey import get_original

from gmultisocket import Message, Socket
from gmultisocket.core import threadsafe
from gmultisocket.core.threadsafe import ThreadsafeSender
from gmultisocket.errors import Closed, MessageDropped, Timeout, WrongThread
from gmultisocket.loop import owner
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL

start_new_thread = get_original("_thread", "start_new_thread")


class Thread:
    """A real OS thread that does one thing."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.done = False
        start_new_thread(self._run, (call,))

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self.error = error
        finally:
            self.done = True

    def join(self) -> None:
        """Wait, while greenlets run, and raise what the thread has raised."""
        wait_until(lambda: self.done, timeout=10)
        if self.error is not None:
            raise self.error


def in_thread(call: Callable[[], object]) -> None:
    Thread(call).join()


def test_a_thread_sends_through_the_handle(two: tuple[Socket, Socket]) -> None:
    server, client = two
    path = next(iter(client.pipes.values())).path
    with client.threadsafe() as handle:

        def work() -> None:
            handle.send(b"one")
            handle.send_all(bytearray(b"all"))
            handle.send_to(path, memoryview(b"dest"))
            handle.send_msg(Message(TO_ALL, content=b"message"))

        in_thread(work)
        assert [server.recv(timeout=5) for _ in range(4)] == [b"one", b"all", b"dest", b"message"]


def test_many_threads_send_at_once_and_each_keeps_its_order(two: tuple[Socket, Socket]) -> None:
    server, client = two
    with client.threadsafe() as handle:
        threads = [
            Thread(lambda name=name: [handle.send(b"%d %d" % (name, number)) for number in range(500)])
            for name in range(8)
        ]
        received = [server.recv(timeout=10).split() for _ in range(4000)]
        for thread in threads:
            thread.join()
    for name in range(8):
        assert [int(number) for who, number in received if int(who) == name] == list(range(500))


def test_a_thread_wakes_a_program_that_only_waits(two: tuple[Socket, Socket]) -> None:
    server, client = two
    sleep = get_original("time", "sleep")
    with client.threadsafe() as handle:
        thread = Thread(lambda: (sleep(0.02), handle.send(b"awake")))
        # Nothing else is going to happen in this loop.
        assert server.recv() == b"awake"
        thread.join()


def test_a_handle_keeps_a_loop_alive_in_which_nothing_else_can_happen() -> None:
    with Socket() as lonely, lonely.threadsafe() as handle:
        waiting = gevent.spawn(lonely.recv)
        Thread(lambda: handle.send(b"x")).join()
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            waiting.get()
        lonely.close()
        with pytest.raises(Closed):
            waiting.get()


@pytest.mark.parametrize("content", ["text", None, 7])
def test_what_is_not_bytes_like_is_refused_in_the_thread_itself(content: Any) -> None:
    with Socket() as sock, sock.threadsafe() as handle:
        with pytest.raises(TypeError):
            in_thread(lambda: handle.send(content))
        assert handle.pending == 0


def test_what_could_not_be_sent_is_counted_and_the_rest_goes_on(
    two: tuple[Socket, Socket], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = two
    with client.threadsafe() as handle, caplog.at_level(logging.WARNING, "gmultisocket"):

        def work() -> None:
            handle.send_to(b"\0\0\0\1", b"nobody is there")
            handle.send_to(b"", b"no path")
            handle.send_msg("no message")  # type: ignore[arg-type]
            handle.send(b"good")

        in_thread(work)
        assert server.recv(timeout=5) == b"good"
        assert handle.failed == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_thread_that_is_too_fast_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadsafe, "_MAX_PENDING", 5)
    with Socket() as lonely, lonely.threadsafe() as handle:
        outcomes: Counter[str] = Counter()

        def work() -> None:
            for _ in range(20):
                try:
                    handle.send(b"x")
                    outcomes["taken"] += 1
                except MessageDropped as error:
                    outcomes[error.reason] += 1

        # The loop does not run meanwhile: nothing is sent.
        thread = Thread(work)
        while not thread.done:
            pass
        assert outcomes == {"taken": 5, "overflow": 15} and handle.pending == 5
        assert handle.close(timeout=0.01) == 5


def test_closing_the_handle_sends_what_waits(two: tuple[Socket, Socket]) -> None:
    server, client = two
    handle = client.threadsafe()
    thread = Thread(lambda: [handle.send(b"%d" % number) for number in range(100)])
    while not thread.done:
        pass
    receiving = gevent.spawn(lambda: [server.recv(timeout=5) for _ in range(100)])
    assert handle.close() == 0
    assert handle.close() == 0
    assert receiving.get(timeout=5) == [b"%d" % number for number in range(100)]
    with pytest.raises(Closed) as caught:
        in_thread(lambda: handle.send(b"late"))
    assert caught.value.what == "handle"


def test_closing_the_handle_gives_up_in_time_and_counts_every_message() -> None:
    with Socket() as lonely:
        handle = lonely.threadsafe()
        in_thread(lambda: [handle.send(b"x") for _ in range(7)])
        gevent.sleep(0)
        assert handle.close(timeout=0.01) == 7


def test_no_message_is_unaccounted_for_when_a_handle_closes_while_threads_send() -> None:
    for _ in range(8):
        with Socket() as sock, Socket({"socket.recv_queue_size": 65535}) as peer:
            peer.dial(sock.listen("inproc://race").address)
            sock.wait_pipes(timeout=5)
            handle = sock.threadsafe()
            taken: list[int] = []

            def work(handle: ThreadsafeSender = handle, taken: list[int] = taken) -> None:
                count = 0
                try:
                    while True:
                        handle.send(b"x")
                        count += 1
                except Closed:
                    taken.append(count)
                except MessageDropped:
                    taken.append(count)

            threads = [Thread(work) for _ in range(3)]
            gevent.sleep(0.001)
            given_up = handle.close()
            for thread in threads:
                thread.join()
            received = 0
            while peer.queued:
                peer.recv()
                received += 1
            assert sum(taken) == received + given_up + handle.failed


def test_what_a_thread_adds_after_a_handle_has_closed_is_taken_back() -> None:
    """The thread has seen that the handle is open, and then others ran until it was closed."""
    reached, closed = [], []

    class Late(deque[Any]):
        def append(self, call: Any) -> None:
            reached.append(True)
            while not closed:
                pass
            super().append(call)

    with Socket() as sock:
        handle = sock.threadsafe()
        handle._calls = Late()
        thread = Thread(lambda: handle.send(b"late"))
        while not reached:
            pass
        closed.append(handle.close())
        with pytest.raises(Closed) as caught:
            thread.join()
        assert caught.value.what == "handle" and closed == [0] and handle.pending == 0


def test_a_closed_socket_refuses_what_comes_by_its_handle() -> None:
    sock = Socket()
    handle = sock.threadsafe()
    sock.close()
    with pytest.raises(Closed) as caught:
        in_thread(lambda: handle.send(b"late"))
    assert caught.value.what == "socket"
    handle.close()


def test_the_handle_is_closed_in_the_sockets_own_thread() -> None:
    with Socket() as sock, sock.threadsafe() as handle:
        with pytest.raises(WrongThread):
            in_thread(handle.close)
        assert handle.close() == 0


def test_the_socket_itself_refuses_every_call_of_another_thread(two: tuple[Socket, Socket]) -> None:
    server, client = two
    pipe = next(iter(client.pipes.values()))
    calls: list[Callable[[], object]] = [
        lambda: client.send(b"x"),
        lambda: client.send_all(b"x"),
        lambda: client.send_to(pipe.path, b"x"),
        lambda: client.send_msg(Message()),
        lambda: client._for_protocol().send_group([pipe], b"x"),
        lambda: client.recv(),
        lambda: client.recv_msg(),
        lambda: next(iter(client)),
        lambda: client.dial("inproc://x"),
        lambda: client.listen("inproc://x"),
        lambda: client.connect("inproc://x#dial"),
        lambda: client.stop_dial("inproc://x"),
        lambda: client.stop_listen("inproc://x"),
        lambda: client.set_negotiator(None),
        lambda: client.close_pipe(pipe.id),
        lambda: client.on_pipe(lambda event: None),
        lambda: client.wait_pipes(),
        lambda: client.threadsafe(),
        lambda: client.set_option("socket.no_send", True),
        lambda: client.close(),
        lambda: client.dialers[0].close(),
        lambda: server.listeners[0].close(),
        lambda: pipe.close(),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(WrongThread):
            in_thread(call)
            pytest.fail(f"call {number} went through")
    client.send(b"fine here")
    assert server.recv(timeout=5) == b"fine here"


def test_a_socket_of_a_threads_own_works_there_and_talks_to_others() -> None:
    with Socket() as server:
        where = server.listen("tcp://127.0.0.1:0").address

        def work() -> None:
            try:
                with Socket() as client:
                    client.dial(where)
                    client.send(b"from another thread")
                    assert client.recv(timeout=5) == b"welcome"
            finally:
                gevent.get_hub().destroy(destroy_loop=True)

        thread = Thread(work)
        message = server.recv_msg(timeout=5)
        assert message.content == b"from another thread"
        server.send_to(message.source, b"welcome")
        thread.join()


def test_a_flush_in_another_thread_ends_in_time_and_what_it_waited_for_stays_queued() -> None:
    with Socket() as server, Socket() as client:
        handle = client.threadsafe()
        handle.send(b"waits for a peer")
        flushing = Thread(lambda: handle.flush(0.01))
        wait_until(lambda: flushing.done)
        assert isinstance(flushing.error, Timeout) and flushing.error.operation == "flush"
        client.dial(server.listen("tcp://127.0.0.1:0").address)
        flushing = Thread(lambda: handle.flush(10))
        assert server.recv(timeout=5) == b"waits for a peer"
        wait_until(lambda: flushing.done)
        assert flushing.error is None


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("ends", ["before", "meanwhile", "and its number is used again"])
def test_a_flush_does_not_wait_for_a_thread_that_has_ended(ends: str, timeout: float | None) -> None:
    handles: list[ThreadsafeSender] = []

    def own_socket() -> None:
        # Nobody is connected, so that the message waits.
        handles.append(Socket().threadsafe())
        handles[0].send(b"nobody gets it")
        gevent.sleep(0.2)

    thread = Thread(own_socket)
    wait_until(lambda: handles)
    stopped = False
    others = []

    def wait_for_the_end() -> None:
        while not stopped:
            get_original("time", "sleep")(0.01)

    if ends != "meanwhile":
        thread.join()
    if ends == "and its number is used again":
        others = [Thread(wait_for_the_end) for _ in range(4)]
    with pytest.raises(Closed, match="its thread has ended"):
        handles[0].flush(timeout)
    stopped = True
    for other in others:
        other.join()
    thread.join()
    for each in (handles[0], handles[0]._socket):
        each._abandon()  # type: ignore[attr-defined]
        owner.unregister(each)
