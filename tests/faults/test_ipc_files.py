"""The file of an ipc listener: one that is left over or in use, a file of another kind, and who may open it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket as plain_socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import gevent
import pytest

from gmultisocket import Address, Socket
from gmultisocket.errors import AddressError, AddressInUse, ConnectionFailed, ConnectionRefused
from gmultisocket.testing import wait_until
from tests.faults.peers import connected
from tests.faults.process import needs, run_script, spawn_script

LISTENS = """
import sys
from gmultisocket import Socket
with Socket() as sock:
    sock.listen(sys.argv[1])
    print("listening", flush=True)
    for message in sock:
        sock.send_to(message.source, b"from the first")
"""


def works(server: Socket, path: Path) -> bool:
    """Send a message through the file."""
    with Socket() as client:
        client.dial(f"ipc://{path}")
        client.send(b"through")
        return server.recv(timeout=5) == b"through"


def inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino


def test_the_file_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    for _ in range(2):
        with spawn_script(LISTENS, f"ipc://{path}") as first:
            assert first.stdout.readline() == b"listening\n"
        assert path.is_socket()
        with Socket() as client, pytest.raises(ConnectionRefused):
            client.dial(f"ipc://{path}")
    with Socket() as server:
        server.listen(f"ipc://{path}")
        assert works(server, path)
    assert os.listdir(tmp_path) == []


def test_a_living_process_keeps_its_file_and_its_peers(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with spawn_script(LISTENS, f"ipc://{path}") as first, Socket() as second, Socket() as client:
        assert first.stdout.readline() == b"listening\n"
        before = inode(path)
        for _ in range(3):
            with pytest.raises(AddressInUse):
                second.listen(f"ipc://{path}")
        # Nor does the second one's end take the first one's file away.
        second.close()
        assert inode(path) == before
        client.dial(f"ipc://{path}")
        client.send(b"?")
        assert client.recv(timeout=5) == b"from the first"
        first.kill()
        first.wait()
        path.unlink()


def test_a_living_listener_whose_backlog_is_full_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(plain_socket.socket(plain_socket.AF_UNIX)) as busy, ExitStack() as stack, Socket() as server:
        busy.bind(str(path))
        busy.listen(1)
        while True:
            peer = stack.enter_context(plain_socket.socket(plain_socket.AF_UNIX))
            peer.setblocking(False)
            if peer.connect_ex(str(path)):
                break
        with pytest.raises(AddressInUse):
            server.listen(f"ipc://{path}")
        assert path.is_socket()
    path.unlink()


def regular_file(path: Path) -> None:
    path.write_text("precious")


def empty_file(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def link_to_a_file(path: Path) -> None:
    (path.parent / "file").write_text("precious")
    path.symlink_to(path.parent / "file")


def link_to_a_dead_socket(path: Path) -> None:
    with plain_socket.socket(plain_socket.AF_UNIX) as sock:
        sock.bind(str(path.parent / "dead"))
    path.symlink_to(path.parent / "dead")


@pytest.mark.parametrize(
    "make", [regular_file, empty_file, folder, fifo, dangling_link, link_to_a_file, link_to_a_dead_socket]
)
def test_what_is_no_socket_is_left_alone(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "path"
    make(path)
    before = inode(path), sorted(os.listdir(tmp_path))
    with Socket() as server, pytest.raises(ConnectionFailed, match="it was left alone"):
        server.listen(f"ipc://{path}")
    assert (inode(path), sorted(os.listdir(tmp_path))) == before
    if make is regular_file:
        assert path.read_text() == "precious"
    if make is link_to_a_dead_socket:
        (tmp_path / "dead").unlink()


def test_a_folder_that_does_not_exist_and_a_path_that_is_too_long_are_errors_that_say_so(tmp_path: Path) -> None:
    with Socket() as server:
        with pytest.raises(ConnectionFailed, match="no such file or directory"):
            server.listen(f"ipc://{tmp_path}/missing/socket")
        long = tmp_path / ("x" * (108 - len(os.fsencode(tmp_path)) - 1))
        assert len(os.fsencode(long)) == 108
        for call in (server.listen, server.dial):
            with pytest.raises(AddressError, match="107"):
                call(f"ipc://{long}")
        assert server.listen(f"ipc://{str(long)[:-1]}")
    assert os.listdir(tmp_path) == []


def test_only_the_file_that_a_listener_made_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket() as first, Socket() as second:
        first.listen(f"ipc://{path}")
        # Somebody clears the folder, and another server starts at the same path.
        path.unlink()
        second.listen(f"ipc://{path}")
        first.close()
        assert path.is_socket()
        assert works(second, path)
    assert not path.exists()


@pytest.mark.parametrize("removed", ["file", "folder"])
def test_a_file_that_is_gone_already_is_no_trouble(removed: str, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "socket"
    path.parent.mkdir()
    with Socket() as server:
        server.listen(f"ipc://{path}")
        if removed == "folder":
            shutil.rmtree(path.parent)
        else:
            path.unlink()
    assert not path.exists()


def test_a_file_at_a_relative_path_goes_though_the_program_has_changed_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Socket() as server:
        server.listen("ipc://socket")
        assert works(server, tmp_path / "socket")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert os.listdir(tmp_path) == ["elsewhere"]


CONNECTS = """
import os, sys
from gmultisocket import Socket
from gmultisocket.errors import ConnectionFailed
with Socket() as one, Socket() as other:  # nothing can be imported after this
    one.dial(other.listen(f"ipc://@{os.getpid()}").address)
    one.send(b"hello")
    other.recv()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
with Socket() as sock:
    try:
        sock.dial(sys.argv[1])
        sock.send(b"hello")
        print(sock.recv(timeout=float(sys.argv[2])))
    except (ConnectionFailed, TimeoutError) as error:
        print(type(error).__name__, getattr(error, "why", ""))
"""
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Yield a folder that every user gets to, unlike those of pytest."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


def answer_in(server: Socket) -> None:
    """Answer every message (a greenlet)."""
    for message in server:
        server.send_to(message.source, b"welcome")


@AS_ROOT
@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, "ConnectionFailed permission denied"),
        ({"transport.ipc.mode": 0o666}, "b'welcome'"),
        ({"transport.ipc.mode": 0o666, "transport.ipc.allow_uids": [65534]}, "b'welcome'"),
    ],
    ids=["0600", "0666", "allowed"],
)
def test_another_user_gets_in_as_far_as_the_mode_and_the_list_of_users_say(
    options: dict[str, object], answer: str, public_folder: Path
) -> None:
    with Socket() as server:
        server.listen(f"ipc://{public_folder}/socket", options)
        worker = gevent.spawn(answer_in, server)
        assert run_script(CONNECTS, f"ipc://{public_folder}/socket", 20).strip() == answer
        worker.kill()


@AS_ROOT
@pytest.mark.parametrize("address", ["ipc://{}/socket", "ipc://@{}"])
def test_a_user_who_is_not_on_the_list_gets_no_pipe_and_no_answer(address: str, public_folder: Path) -> None:
    address = address.format(public_folder)
    with Socket() as server:
        server.listen(address, {"transport.ipc.mode": 0o666, "transport.ipc.allow_uids": [os.getuid()]})
        worker = gevent.spawn(answer_in, server)
        assert "welcome" not in run_script(CONNECTS, address, 0.5)
        with Socket() as friend:
            friend.dial(address)
            friend.send(b"hello")
            assert friend.recv(timeout=5) == b"welcome"
        worker.kill()


BINDS = """
import os, sys
from gmultisocket import Socket
os.umask(0)
with Socket() as sock:
    sock.listen(sys.argv[1])
"""


@needs("strace -o /dev/null true")
def test_there_is_no_moment_at_which_somebody_could_connect_who_may_not(tmp_path: Path) -> None:
    """The file has its mode before anybody is listened to, and no bit too many before that, with any umask."""
    calls = "bind,listen,chmod,fchmod,fchmodat,link,linkat,rename,renameat,renameat2"
    log = tmp_path / "calls"
    trace = ("strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={calls}")
    run_script(BINDS, f"ipc://{tmp_path}/socket", wrapper=trace)
    lines = [line.split(None, 1)[1] for line in log.read_text().splitlines()]
    lines = [line for line in lines if str(tmp_path) in line or line.startswith(("fchmod(", "listen("))]
    steps = [line.partition("(")[0].removesuffix("at") for line in lines]
    assert steps == ["fchmod", "bind", "chmod", "listen"] or steps == ["fchmod", "bind", "fchmod", "listen"]
    assert "0600" in lines[0] and "0600" in lines[2]


RACES = """
import sys
from gmultisocket import Socket
from gmultisocket.errors import AddressInUse
sys.stdin.read(1)
with Socket() as sock:
    try:
        sock.listen(sys.argv[1])
    except AddressInUse:
        print("taken", flush=True)
    else:
        print("mine", flush=True)
    sys.stdin.read()
"""


def test_of_many_that_start_at_once_at_a_dead_processs_path_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with plain_socket.socket(plain_socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with ExitStack() as stack:
        racers = [stack.enter_context(spawn_script(RACES, f"ipc://{path}")) for _ in range(4)]
        for racer in racers:
            racer.stdin.write(b"!")
            racer.stdin.flush()
        answers = [racer.stdout.readline() for racer in racers]
        assert sorted(answers) == [b"mine\n"] + [b"taken\n"] * 3
        with connected(f"ipc://{path}"):
            pass
        for racer in racers:
            racer.stdin.close()
        wait_until(lambda: not path.exists(), timeout=20)
        for racer in racers:
            assert racer.wait(timeout=20) == 0
    assert os.listdir(tmp_path) == []


# File systems, paths, names


def fail(*arguments: object, **options: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("missing", ["link", "fchmod"])
def test_a_file_system_without_a_call_serves_all_the_same(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, missing, fail)
    path = tmp_path / "socket"
    path_of_the_dead(path)
    with Socket() as server, Socket() as second:
        server.listen(f"ipc://{path}")
        assert os.listdir(tmp_path) == ["socket"]
        assert works(server, path)
        with pytest.raises(AddressInUse):
            second.listen(f"ipc://{path}")
        assert works(server, path)
    assert os.listdir(tmp_path) == []


def path_of_the_dead(path: Path) -> None:
    with plain_socket.socket(plain_socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_lock_that_cannot_be_had_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", fail)
    path_of_the_dead(tmp_path / "socket")
    with Socket() as server:
        server.listen(f"ipc://{tmp_path}/socket")
        assert works(server, tmp_path / "socket")


def test_a_listener_that_is_just_starting_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(plain_socket.socket(plain_socket.AF_UNIX)) as starting, Socket() as server:
        # It has bound its path, and does not listen yet: a connect is refused, as with a dead one.
        starting.bind(str(path))
        before = inode(path)
        with pytest.raises(AddressInUse):
            server.listen(f"ipc://{path}")
        assert inode(path) == before
    path.unlink()


@pytest.mark.parametrize("kind", [plain_socket.SOCK_DGRAM, plain_socket.SOCK_SEQPACKET])
def test_a_living_socket_of_another_type_keeps_its_file(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with closing(plain_socket.socket(plain_socket.AF_UNIX, kind)) as other, Socket() as server:
        other.bind(str(path))
        with pytest.raises(AddressInUse):
            server.listen(f"ipc://{path}")
        assert path.is_socket()
    path.unlink()


def test_a_second_listener_is_no_peer_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket() as first, Socket() as second:
        listener = first.listen(f"ipc://{path}")
        for _ in range(3):
            with pytest.raises(AddressInUse):
                second.listen(f"ipc://{path}")
        assert works(first, path)
        assert listener.accepted == 1


KILLED_AT = """
import os, signal, sys
from gmultisocket import Socket
call, address = sys.argv[1:]
real = getattr(os, call)
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, call, die)
Socket().listen(address)
"""


@pytest.mark.parametrize("call", ["fchmod", "chmod", "lstat"])
def test_a_kill_in_the_middle_of_a_listen_leaves_nothing_that_the_next_one_does_not_replace(
    call: str, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with spawn_script(KILLED_AT, call, f"ipc://{path}") as dead:
        assert dead.wait(timeout=20) == -signal.SIGKILL
    with Socket() as server:
        server.listen(f"ipc://{path}")
        assert works(server, path)
    assert os.listdir(tmp_path) == []


def test_a_path_may_contain_spaces_and_every_other_character_as_it_is(tmp_path: Path) -> None:
    for name in ("a b", "a  b c", "%20", "ü ö", "a:b @c", "-"):
        path = tmp_path / name
        with Socket() as server:
            listener = server.listen(f"ipc://{path}")
            assert os.listdir(tmp_path) == [name]
            assert works(server, path)
            assert listener.address == f"ipc://{path}"
    for name in ("a?b", "a#b"):
        with Socket() as server, Socket() as client:
            server.listen(Address("ipc", f"{tmp_path}/{name}"))
            client.dial(Address("ipc", f"{tmp_path}/{name}"))
            assert os.listdir(tmp_path) == [name]


def test_a_dialer_of_a_relative_path_comes_back_though_the_program_has_changed_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Socket() as client:
        with Socket() as server:
            server.listen("ipc://socket")
            client.dial("ipc://socket", {"connector.dialer.min_reconnect_time": 0.01})
        monkeypatch.chdir(tmp_path / "elsewhere")
        with Socket() as server:
            server.listen(f"ipc://{tmp_path}/socket")
            client.send(b"back", timeout=20)
            assert server.recv(timeout=20) == b"back"


def test_a_relative_path_works_where_its_whole_path_would_be_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with Socket() as server, Socket() as client:
        server.listen("ipc://socket")
        client.dial("ipc://socket")
        client.send(b"near")
        assert server.recv(timeout=5) == b"near"
    assert os.listdir(folder) == []


def test_the_kernel_knows_the_path_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Socket() as server:
        server.listen(f"ipc://{path}")
        names = [line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        assert [name for name in names if name.startswith(str(tmp_path))] == [str(path)]
