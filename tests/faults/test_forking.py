"""A fork with live pipes: the child has none of them, the parent loses nothing, and the peers notice neither."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import gevent.os
import pytest
from gevent.threadpool import ThreadPool

from gmultisocket import Pipe, Socket, pair
from gmultisocket.core.pipes.ids import next_pipe_id
from gmultisocket.errors import Closed, ForkedSocketError
from gmultisocket.testing import wait_until
from gmultisocket.testing._fork import in_forked_child
from tests.faults.peers import connected, messages, read_until_closed
from tests.faults.process import run_script, spawn_script

SCHEMES = ["tcp", "ipc", "inproc"]


def address_of(scheme: str, folder: Path) -> str:
    return {"tcp": "tcp://127.0.0.1:0", "ipc": f"ipc://{folder}/socket", "inproc": "inproc://before-the-fork"}[scheme]


@pytest.fixture(params=SCHEMES)
def sockets(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Socket, Socket]]:
    """Yield a server and a client, connected, that have both sent and received."""
    with Socket() as server, Socket() as client:
        client.dial(server.listen(address_of(request.param, tmp_path)).address)
        client.send(b"before")
        server.send_to(server.recv_msg(timeout=5).source, b"before")
        client.recv(timeout=5)
        yield server, client


def socket_descriptors() -> set[str]:
    """Return the descriptors of this process that are sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(name)
    return found


CALLS: dict[str, Callable[[Socket, Pipe], object]] = {
    "send": lambda sock, pipe: sock.send(b"x"),
    "send_all": lambda sock, pipe: sock.send_all(b"x"),
    "send_to": lambda sock, pipe: sock.send_to(pipe.path, b"x"),
    "recv": lambda sock, pipe: sock.recv(),
    "recv_msg": lambda sock, pipe: sock.recv_msg(),
    "dial": lambda sock, pipe: sock.dial("tcp://127.0.0.1:1"),
    "listen": lambda sock, pipe: sock.listen("tcp://127.0.0.1:0"),
    "connect": lambda sock, pipe: sock.connect("tcp://127.0.0.1:0#listen"),
    "wait_pipes": lambda sock, pipe: sock.wait_pipes(2),
    "close_pipe": lambda sock, pipe: sock.close_pipe(pipe.id),
    "on_pipe": lambda sock, pipe: sock.on_pipe(print),
    "set_option": lambda sock, pipe: sock.set_option("socket.send_ttl", 3),
    "iteration": lambda sock, pipe: next(iter(sock)),
    "threadsafe": lambda sock, pipe: sock.threadsafe(),
}


def test_in_the_child_every_use_is_an_error_at_once_and_no_descriptor_is_left(sockets: tuple[Socket, Socket]) -> None:
    pipes = [next(iter(sock.pipes.values())) for sock in sockets]

    def child(report: int) -> None:
        assert socket_descriptors() == set()
        for sock, pipe in zip(sockets, pipes, strict=True):
            for name, call in CALLS.items():
                with pytest.raises(ForkedSocketError):
                    call(sock, pipe)
                    pytest.fail(name)
            assert sock.closed
            assert sock.close() == 0

    in_forked_child(child)
    server, client = sockets
    for _ in range(3):
        client.send(b"after")
        server.send_to(server.recv_msg(timeout=5).source, b"after")
        assert client.recv(timeout=5) == b"after"
    assert len(server.pipes) == len(client.pipes) == 1


def test_in_the_child_a_handle_for_other_threads_is_of_no_use_either(sockets: tuple[Socket, Socket]) -> None:
    server, client = sockets
    with client.threadsafe() as handle:

        def child(report: int) -> None:
            for call in (lambda: handle.send(b"x"), lambda: handle.flush(1)):
                with pytest.raises(ForkedSocketError):
                    call()
            assert handle.pending == 0

        in_forked_child(child)
        handle.send(b"after")
        assert server.recv(timeout=5) == b"after"


def test_a_child_has_sockets_of_its_own_even_under_the_same_names(sockets: tuple[Socket, Socket]) -> None:
    def child(report: int) -> None:
        gevent.reinit()
        with Socket() as server, Socket() as client:
            for address in ("inproc://before-the-fork", "tcp://127.0.0.1:0"):
                client.dial(server.listen(address).address)
                client.send(b"in the child")
                assert server.recv(timeout=5) == b"in the child"

    in_forked_child(child)


SHARES = """
import os, sys, gevent, gevent.os
from gmultisocket import Socket

fork = gevent.os.fork if sys.argv[2] == "gevent" else os.fork
with Socket() as server:
    print(server.listen(sys.argv[1]).address, flush=True)
    server.wait_pipes(1, timeout=20)
    child = fork()
    if not child:
        # The copies of the parent's greenlets run here: they are to find nothing to read and nobody to accept.
        gevent.sleep(30)
        os._exit(0)
    print("forked", flush=True)
    for _ in range(4000):
        message = server.recv_msg(timeout=20)
        server.send_to(message.source, message.content)
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
@pytest.mark.parametrize("fork", ["os", "gevent"])
def test_a_child_whose_loop_runs_steals_neither_messages_nor_connections(
    scheme: str, fork: str, tmp_path: Path
) -> None:
    """2,000 messages by a connection that was there before the fork, and 50 by each of 40 that came after it."""
    with spawn_script(SHARES, address_of(scheme, tmp_path), fork) as parent, ExitStack() as stack:
        address = parent.stdout.readline().decode().strip()
        clients = [stack.enter_context(Socket()) for _ in range(41)]
        clients[0].dial(address)
        assert parent.stdout.readline() == b"forked\n"
        for client in clients[1:]:
            client.dial(address)
        for client, count in zip(clients, [2000] + [50] * 40, strict=True):
            for number in range(count):
                client.send(b"%d" % number, timeout=20)
                if number % 50 == 49:
                    for earlier in range(number - 49, number + 1):
                        assert client.recv(timeout=20) == b"%d" % earlier
        assert all(client.reconnects == 0 for client in clients)
        assert parent.wait(timeout=20) == 0


def test_what_was_queued_at_the_fork_leaves_once(tmp_path: Path) -> None:
    """Messages that wait for the end of the turn, and for a kernel that takes no more, are the parent's alone."""
    with Socket({"socket.send_queue_size": 1000}) as server:
        listener = server.listen(f"ipc://{tmp_path}/socket")
        with connected(listener) as full, ExitStack() as stack:
            server.wait_pipes(1, timeout=5)
            [blocked] = server.pipes.values()
            first = 0
            while blocked.queued < 3:
                server.send_all(b"%d" % first + b"." * 20000)
                first += 1
            idle = stack.enter_context(connected(listener))
            server.wait_pipes(2, timeout=5)
            for number in range(first, first + 5):
                server.send_all(b"%d" % number + b"." * 20000)

            def child(report: int) -> None:
                gevent.reinit()
                gevent.sleep(0.1)

            in_forked_child(child)
            readers = [gevent.spawn(read_until_closed, peer) for peer in (full, idle)]
            assert server.close() == 0
            for reader, start in zip(readers, (0, first), strict=True):
                arrived = [int(message.content.rstrip(b".")) for message in messages(reader.get())]
                assert arrived == list(range(start, first + 5))


OUTLIVES = """
import os, sys, time
from gmultisocket import Socket

sock = Socket()
print(sock.listen(sys.argv[1]).address, flush=True)
sock.recv()
child = os.fork()
if not child:
    sys.stdin.read()
    os._exit(0)
print(sock.close(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("scheme", ["tcp", "ipc"])
def test_a_close_in_the_parent_reaches_the_peers_though_a_child_lives(scheme: str, tmp_path: Path) -> None:
    """A copy of the connection in the child would keep it open, and the port or the path taken."""
    with spawn_script(OUTLIVES, address_of(scheme, tmp_path)) as parent, Socket() as client, Socket() as heir:
        address = parent.stdout.readline().decode().strip()
        client.dial(address, {"connector.dialer.reconnect": False})
        client.send(b"go")
        assert parent.stdout.readline() == b"0\n"
        wait_until(lambda: not client.pipes, timeout=20)
        heir.listen(address)


def test_a_child_that_ends_does_not_unlink_the_parents_socket_file(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket() as server, Socket() as client:
        server.listen(f"ipc://{path}")

        def child(report: int) -> None:
            server.close()

        in_forked_child(child)
        assert path.is_socket()
        client.dial(f"ipc://{path}")
        client.send(b"still there")
        assert server.recv(timeout=5) == b"still there"


def test_a_pair_and_a_threadsafe_handle_stay_with_the_parent() -> None:
    one, other = pair()
    handle = one.threadsafe()

    def child(report: int) -> None:
        for sock in (one, other):
            with pytest.raises(ForkedSocketError):
                sock.send(b"x")
        with pytest.raises((ForkedSocketError, Closed)):
            handle.send(b"x")

    in_forked_child(child)
    receiver = gevent.spawn(other.recv, 5)
    handle.send(b"from the parent")
    assert receiver.get(timeout=5) == b"from the parent"
    handle.close()
    one.close()
    other.close()


def test_a_child_gives_out_other_ids_than_its_parent() -> None:
    mine = {next_pipe_id() for _ in range(1000)}

    def child(report: int) -> None:
        assert not mine & {next_pipe_id() for _ in range(1000)}

    in_forked_child(child)


def test_another_threads_sockets_are_let_go_of_as_well() -> None:
    """The thread does not exist in the child, and its descriptors do."""
    there: list[str] = []

    def other_thread() -> None:
        with Socket() as sock:
            there.append(sock.listen("tcp://127.0.0.1:0").address)
            while there:
                gevent.sleep(0.01)
        gevent.get_hub().destroy()

    pool = ThreadPool(1)
    try:
        thread = pool.spawn(other_thread)
        wait_until(lambda: there)

        def child(report: int) -> None:
            assert socket_descriptors() == set()

        assert socket_descriptors() != set()
        in_forked_child(child)
        there.clear()
        thread.get(timeout=5)
    finally:
        there.clear()
        pool.kill()


LEFT_OPEN = """
import os, sys, threading
import gevent
from gmultisocket import Socket
from gmultisocket.errors import ForkedSocketError
from gmultisocket.loop.lag import lag_of

left, own = [], [Socket() for _ in range(20)]

def work():
    server, client = Socket(), Socket()
    client.dial(server.listen(sys.argv[1]).address)
    server.wait_pipes(1, timeout=20)
    lag_of(gevent.get_hub())
    left.extend([server, client, server.threadsafe()])
    gevent.get_hub().destroy()

for sock in own:
    sock.listen("tcp://127.0.0.1:0")
thread = threading.Thread(target=work)
thread.start()
thread.join()
child = os.fork()
if not child:
    for sock in own:
        try:
            sock.send_all(b"x")
        except ForkedSocketError:
            print("not the child's")
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink("/proc/self/fd/" + name).startswith("socket:"):
                print("a socket is left")
        except OSError:
            pass
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_a_thread_has_left_open_keeps_a_child_from_letting_go_of_nothing(scheme: str, tmp_path: Path) -> None:
    """Its loop was destroyed with it, and gevent refuses to stop watchers of such a loop."""
    assert run_script(LEFT_OPEN, address_of(scheme, tmp_path)) == "not the child's\n" * 20
    # The program has not closed it.
    (tmp_path / "socket").unlink(missing_ok=True)
