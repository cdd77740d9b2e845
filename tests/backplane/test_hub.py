"""The hub: one for each path, and what it does with clients that are no good."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import socket as gsocket
from gevent import subprocess
from gevent.event import Event

from gmultisocket import Backplane, Message, Socket, Sub
from gmultisocket.backplane import hublock
from gmultisocket.backplane.hubserver import HubServer
from gmultisocket.backplane.hubwire import VERSION, WELCOME, welcome
from gmultisocket.errors import AddressInUse, ConnectionFailed, EngineRefused
from gmultisocket.testing import wait_until
from gmultisocket.testing.engines import check_sum
from gmultisocket.wire import CONTROL, TO_DEST
from tests.backplane.hubs import history_arguments, hub, listens
from tests.backplane.kills import HISTORY, check_rows, measure
from tests.faults.peers import free_port

LIMIT = 20.0


@contextmanager
def serving(options: dict[str, Any] | None = None, history: Sequence[str] = ()) -> Iterator[tuple[HubServer, str]]:
    """A hub in this process, and its address."""
    url = f"tcp://127.0.0.1:{free_port()}"
    with HubServer(options, history=history) as server:
        greenlet = gevent.spawn(server.serve, url)
        wait_until(lambda: listens(url), LIMIT)
        yield server, url
        greenlet.kill()


def starter_of(plane: Backplane) -> Any:
    """Return what starts hubs for a plane."""
    return plane._use().engine._starter  # type: ignore[attr-defined]


def sub_address(sub: Sub) -> str:
    """Return the address from which a Sub is connected."""
    (pipe,) = sub.pipes.values()
    return pipe.local_address


def has_ended(pid: int) -> bool:
    """Return whether a child has ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # gevent takes the status of every child, once a test has used its subprocess module.
        return True


# One hub for each path


def test_of_hubs_that_start_at_once_one_lives(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/hub"
    command = [sys.executable, "-m", "gmultisocket", "hub", url]
    started = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        wait_until(lambda: sum(each.poll() is None for each in started) == 1 and listens(url), LIMIT)
    finally:
        for each in started:
            each.terminate()
        printed = {each.communicate()[1]: each.returncode for each in started}
    assert sorted(printed.values()) == [0, 1]
    assert all("another hub holds" in text for text, status in printed.items() if status)
    assert not (tmp_path / "hub").exists()


def test_a_lock_is_held_until_its_holder_is_dead(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/hub"
    with hublock.HubLock(url):
        with pytest.raises(AddressInUse, match="another hub holds .*/hub.lock"), hublock.HubLock(url):
            pass
    with hublock.HubLock(url):
        pass
    with pytest.raises(ConnectionFailed, match="none/hub.lock: no such file"), hublock.HubLock("ipc:///none/hub"):
        pass


def test_a_plane_starts_a_hub_that_ends_after_its_last_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hublock, "_IDLE", 1)
    url = f"ipc://{tmp_path}/hub"
    history = ["h.>", "x"]
    with Backplane(url, history=history) as one, Backplane(url, history=history) as other, Sub() as sub:
        subscription = other.subscribe("t", LIMIT)
        one.publish("t", b"1")
        assert subscription.recv(LIMIT) == ("t", b"1")
        sub.dial(other.pub().listen("inproc://hub-started").address)
        sub.subscribe("h.a", LIMIT, recover=True)
        [pipe] = sub.pipes.values()
        pipe.close()
        one.publish("h.a", b"2")
        assert sub.recv(LIMIT) == ("h.a", b"2"), "the hub was started without the history"
        pids = [pid for pid in (starter_of(one)._pid, starter_of(other)._pid) if pid]
    # If both have started one, one of these has ended at once.
    for pid in pids:
        wait_until(lambda pid=pid: has_ended(pid), LIMIT)
    assert not (tmp_path / "hub").exists()


def test_a_hub_that_is_killed_or_loses_its_path_is_replaced_by_a_plane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hublock, "_IDLE", 1)
    url = f"ipc://{tmp_path}/hub"
    with hub(url) as first, Backplane(url) as plane:
        plane.subscribe("t")
        plane.connect(LIMIT)
        kinds: list[str] = []
        plane.on_event(lambda event: kinds.append(event.kind))
        first.kill()
        wait_until(lambda: kinds == ["down", "gap", "up"], LIMIT)
        second = starter_of(plane)._pid
        assert second
        (tmp_path / "hub").unlink()
        wait_until(lambda: kinds == ["down", "gap", "up"] * 2, LIMIT)
        third = starter_of(plane)._pid
        assert third not in (0, second)
    wait_until(lambda: has_ended(third), LIMIT)


def test_beside_a_hub_that_stands_still_no_other_is_started(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/hub"
    with hub(url) as server, Backplane(url) as plane:
        plane.connect(LIMIT)
        server.pause()
        try:
            wait_until(lambda: repr(plane).endswith("down>"), LIMIT)
            with pytest.raises(ConnectionFailed):
                plane.connect(3.0)
            assert starter_of(plane)._pid == 0
        finally:
            server.resume()
        plane.connect(LIMIT)
        check_sum(plane)


def test_a_hub_ends_with_its_input_and_when_nobody_comes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gmultisocket", "hub", f"ipc://{tmp_path}/hub"]
    for arguments, reason in ((["--until-eof"], "its input has ended"), (["--idle", "0.1"], "it had no client")):
        ended = subprocess.run(
            [*command, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=LIMIT
        )
        assert ended.returncode == 0
        assert f"the hub ends: {reason}" in ended.stderr


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_every_publication_is_accounted_for_while_the_hub_is_away(tmp_path: Path, fate: str) -> None:
    url = f"ipc://{tmp_path}/hub"
    with hub(url, *history_arguments(HISTORY)) as server:
        rows = measure(server, url, fate, 0.5, 0.5, {"plane.hold": 0.5})
    check_rows(rows)
    assert rows["plain"]["gaps"] <= 1
    if fate == "stopped":
        # Nobody has noticed it.
        assert rows["history"]["gaps"] == rows["history"]["missed"] == 0
    else:
        # The history was in its memory.
        assert rows["history"]["gaps"] > 0


# Clients that are no good


def test_a_client_that_does_not_read_is_cut_off_and_the_others_go_on() -> None:
    with serving({"socket.send_queue_bytes": 100_000}) as (server, url), Backplane(url) as one, Backplane(url) as other:
        subscription = other.subscribe("t", LIMIT, queue_size=10_000)
        with Sub({"socket.recv_queue_size": 1, "connector.pipe.max_recv_content_length": 0}) as sub:
            sub.dial(url)
            sub.subscribe("t", LIMIT)
            (slow,) = [pipe for pipe in server.pipes.values() if pipe.peer_address == sub_address(sub)]
            number = 0
            while not slow.closed:
                one.publish("t", bytes(60_000))
                assert subscription.recv(LIMIT) == ("t", bytes(60_000))
                number += 1
                assert number < 2000
            assert "queue" in slow.reason or "overflow" in slow.reason or "full" in slow.reason
        one.flush(LIMIT)
        assert one.counters.confirmed == number


def test_a_hub_drops_what_it_does_not_understand() -> None:
    with serving() as (server, url), Backplane(url) as one, Backplane(url) as other, Socket() as stranger:
        subscription = other.subscribe("t", LIMIT)
        stranger.dial(url)
        for content in (b"", b"\0", b"\0\5t", b"\0\1t", b"\0\1t" + bytes(15), b"\0\2\xff\xff" + bytes(16)):
            stranger.send(content)
        stranger.send(b"\0\3a.*" + bytes(16))
        stranger.send_msg(Message(CONTROL, content=b"\x7f?"))
        wait_until(lambda: server.counters.drops.get("garbage") == 8, LIMIT)
        one.publish("t", b"1")
        assert subscription.recv(LIMIT) == ("t", b"1")


def test_a_plane_drops_what_it_does_not_understand() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with Socket() as false_hub:
        false_hub.listen(url)
        with Backplane(url) as plane:
            plane.subscribe("t")
            message = false_hub.recv_msg(LIMIT)
            for content in (b"", b"\0\5t", b"\0\1t" + bytes(15), b"\0\2\xff\xff" + bytes(16)):
                false_hub.send_to(message.source, content)
            for content in (b"\x42\0\0\0\1", b"\x42", b"\x7f", welcome.pack(WELCOME, VERSION, 0)):
                false_hub.send_msg(Message(CONTROL | TO_DEST, destination=message.source, content=content))
            engine = plane._use().engine
            wait_until(lambda: engine.counters.get("garbage", 0) == 7, LIMIT)
            wait_until(lambda: plane._use().is_connected, LIMIT)
            check_sum(plane)
            plane.close(0.0)


def test_a_content_that_was_too_long_before_the_hub_was_there_keeps_no_flush_waiting() -> None:
    with serving() as (_, url), Backplane(url) as plane:
        plane.publish("t", bytes(2 << 20))
        plane.flush(LIMIT)
        assert dict(plane.counters.dropped) == {"too long": 1}
        check_sum(plane)


# History


def test_what_was_missed_while_the_connection_was_lost_comes_in_order_and_without_a_gap() -> None:
    with serving(history=["h.>"]) as (_, url), ExitStack() as stack:
        one, other = (stack.enter_context(Backplane(url, {"plane.hold": 0.1}, history=["h.>"])) for _ in range(2))
        gaps: list[str] = []
        sub, program = stack.enter_context(Sub()), one.subscribe("h.b", LIMIT)
        sub.on_gap(lambda gap: gaps.append(gap.reason))
        sub.dial(one.pub().listen("inproc://hub-history").address)
        for pattern in ("h.a", "h.*", "h.b"):
            sub.subscribe(pattern, LIMIT, recover=True)
        expected = 0
        for turn in range(3):
            engine: Any = one._use().engine
            engine._client.pipe.close("for the test")
            for _ in range(20):
                other.publish(f"h.{'abc'[expected % 3]}", b"%d" % expected)
                expected += 1
            other.flush(LIMIT)
            wait_until(lambda: one.counters.gaps == turn + 1, LIMIT)  # noqa: B023
            one.connect(LIMIT)
            one.publish("h.a", b"%d" % expected)
            # Order holds for one publisher.
            one.flush(LIMIT)
            expected += 1
        got = [int(sub.recv(LIMIT)[1]) for _ in range(expected)]
        assert got == [*range(expected)]
        assert gaps == []
        waiting = [int(program.recv(LIMIT)[1]) for _ in range(program.waiting)]
        assert waiting == [number for number in range(expected) if number % 3 == 1 and number % 21 != 20]


def test_much_that_was_missed_comes_as_fast_as_a_subscriber_reads() -> None:
    number, content = 180, bytes(64_000)
    with serving(history=["h.>"]) as (_, url), ExitStack() as stack:
        one, other = (stack.enter_context(Backplane(url, history=["h.>"])) for _ in range(2))
        gaps: list[str] = []
        # One peer asks for history, and the other one does not.
        sub, plain = (stack.enter_context(Sub({"socket.recv_queue_size": 8})) for _ in range(2))
        sub.on_gap(lambda gap: gaps.append(gap.reason))
        address = one.pub({"socket.send_queue_size": 8}).listen("tcp://127.0.0.1:0").address
        for each in (sub, plain):
            each.dial(address)
            each.subscribe("h.*", LIMIT)
        program = one.subscribe("h.b", LIMIT)
        engine: Any = one._use().engine
        connect, may_connect = engine._connect_once, Event()
        engine._connect_once = lambda client: may_connect.wait() and connect(client)
        engine._client.pipe.close("for the test")
        for each in range(number):
            other.publish(f"h.{'ab'[each % 2]}", b"%d " % each + content)
            other.flush(LIMIT)
        may_connect.set()
        wait_until(lambda: one.counters.gaps == 1, LIMIT)
        one.connect(LIMIT)
        # Only now they read.
        got = [int(sub.recv(LIMIT)[1].split()[0]) for _ in range(number)]
        assert got == [*range(number)]
        other.publish("h.a", b"180 last")
        assert sub.recv(LIMIT) == ("h.a", b"180 last")
        assert gaps == []
        assert [int(program.recv(LIMIT)[1].split()[0]) for _ in range(number // 2)] == [*range(1, number, 2)]
        assert int(plain.recv(LIMIT)[1].split()[0]) == 0


def test_planes_with_other_histories_than_the_hub_are_refused() -> None:
    with serving(history=["h.>", "a"]) as (_, url):
        for history in (["h.>"], ["b"], ["h.>", "a", "b"]):
            with Backplane(url, history=history) as plane:
                with pytest.raises(EngineRefused, match=r"keeps the history of a h\.>, and this Backplane expects"):
                    plane.connect(LIMIT)
        with Backplane(url, history=["a", "h.>"]) as plane:
            plane.connect(LIMIT)


def test_a_hub_of_another_version_is_refused() -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with Socket() as other_version, Backplane(url) as plane:
        other_version.listen(url)
        answering = gevent.spawn(_say_welcome, other_version)
        with pytest.raises(EngineRefused, match=f"version 9 of its protocol, and this library version {VERSION}"):
            plane.connect(LIMIT)
        answering.kill()


def _say_welcome(sock: Socket) -> None:
    for message in sock:
        content = welcome.pack(WELCOME, 9, 0)
        sock.send_msg(Message(CONTROL | TO_DEST, destination=message.source, content=content))


def test_a_server_that_accepts_and_says_nothing_is_no_hub() -> None:
    with gsocket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with Backplane(url) as plane:
            with pytest.raises(ConnectionFailed, match="not answered|silent|nothing"):
                plane.connect(4.0)
            plane.publish("t", b"")
            assert plane.counters.buffered == 1
            assert plane.close(0.0) == 1


def test_signals_end_a_hub_in_order(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}/hub"
    with ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([sys.executable, "-m", "gmultisocket", "hub", url], stderr=subprocess.PIPE, text=True)
        )
        wait_until(lambda: listens(url), LIMIT)
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert "the hub ends: a signal; 0 publications came" in printed
    assert not (tmp_path / "hub").exists()
