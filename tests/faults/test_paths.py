"""Paths that lead nowhere, to strangers, or round in circles, through switches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from gevent import socket

from gmultisocket import Message, PipeEvent, Socket, Switch
from gmultisocket.core.pipes.ids import next_pipe_id, was_pipe_id
from gmultisocket.errors import BadPath, BrokenPath
from gmultisocket.testing import wait_until
from gmultisocket.wire import DEFAULT_TTL, TO_ALL, TO_DEST, Decoder, pack_id, path_ids
from tests.faults.peers import connected, frame, listening, messages, read_message, read_until_closed


@contextmanager
def switched() -> Iterator[tuple[Socket, Switch]]:
    """Yield a server behind a switch; the switch's front listens for clients."""
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as switch:
        server.dial(back.listen("tcp://127.0.0.1:0").address)
        front.listen("tcp://127.0.0.1:0")
        back.wait_pipes(1, timeout=5)
        yield server, switch


def request(peer: socket.socket, server: Socket, content: bytes = b"request") -> bytes:
    """Send a request from a plain client to the server, and return the way back to it."""
    peer.sendall(frame(content))
    message = server.recv_msg(timeout=5)
    assert message.content == content
    return message.source


def test_a_reply_to_a_client_that_has_gone_is_dropped_and_the_next_one_arrives() -> None:
    with switched() as (server, switch):
        [listener] = switch.front.listeners
        with connected(listener) as gone:
            way_back = request(gone, server)
        wait_until(lambda: not switch.front.pipes)
        with connected(listener) as stays:
            other_way = request(stays, server)
            for _ in range(100):
                server.send_to(way_back, b"too late")
            server.send_to(other_way, b"in time")
            [reply] = read_message(stays, Decoder(1))
            assert reply.content == b"in time"
        assert switch.drops == {"BrokenPath": 100}
        assert switch.running
        # Late replies are nobody's fault: the server keeps its pipe.
        assert len(switch.back.pipes) == 1


def test_a_reply_after_the_switch_has_started_anew_reaches_nobody() -> None:
    strangers: list[Message] = []
    with Socket() as server, ExitStack() as second:
        with Socket() as back, Socket() as front, Switch(back, front):
            server.dial(back.listen("tcp://127.0.0.1:0").address, {"connector.dialer.min_reconnect_time": 0.01})
            with connected(front.listen("tcp://127.0.0.1:0")) as client:
                way_back = request(client, server)
            address = back.listeners[0].address
        back, front = second.enter_context(Socket()), second.enter_context(Socket())
        second.enter_context(Switch(back, front))
        back.listen(address)
        back.wait_pipes(1, timeout=5)
        listener = front.listen("tcp://127.0.0.1:0")
        with connected(listener) as other:
            fresh = request(other, server)
            # The way to the switch that was ends here already; with the new way's first step it ends at the new one.
            with pytest.raises(BrokenPath):
                server.send_to(way_back, b"for the client that was")
            server.send_to(fresh[:4] + way_back[4:], b"for the client that was")
            server.send_to(fresh, b"for you")
            strangers += read_message(other, Decoder(1))
    assert [message.content for message in strangers] == [b"for you"]


def test_guessed_paths_reach_nobody_and_the_guesser_is_cut_off() -> None:
    with switched() as (server, switch):
        [listener] = switch.front.listeners
        removed: list[PipeEvent] = []
        switch.front.on_pipe(lambda event: removed.append(event) if event.kind == "remove" else None)
        with connected(listener) as guesser, connected(listener) as honest:
            way_back = request(honest, server)
            # The first id of a destination on the wire names the guesser's own end, and is taken off.
            paths = [pack_id(1) + pack_id(number) for number in range(1, 10_001)]
            with suppress(ConnectionError):
                guesser.sendall(b"".join(frame(b"guess", TO_DEST, destination=path) for path in paths))
            assert read_until_closed(guesser) == b""
            wait_until(lambda: removed)
            assert removed[0].reason == "it sends to paths that never were"
            server.send_to(way_back, b"still here")
            assert read_message(honest, Decoder(1))[0].content == b"still here"
            assert not server.queued
            assert switch.running


def test_a_client_can_send_along_a_path_that_it_was_told() -> None:
    """Ids are no secret from those who are on the path: knowing one is enough, so they are not a permission."""
    with switched() as (server, switch):
        [listener] = switch.front.listeners
        with connected(listener) as client:
            way_back = request(client, server)
            server.send_to(way_back, b"reply")
            [reply] = read_message(client, Decoder(1))
            client.sendall(frame(b"again", TO_DEST, destination=reply.source))
            assert server.recv(timeout=5) == b"again"
            assert switch.drops == {}


@pytest.mark.parametrize("path", [b"", b"odd", b"12345", b"x" * 1024, None, "text", 7], ids=repr)
def test_what_is_no_path_is_an_error_and_writes_nothing(path: Any) -> None:
    with Socket() as sock, listening() as (silent, address):
        sock.dial(address)
        peer, _ = silent.accept()
        for _ in range(3):
            with pytest.raises(BadPath):
                sock.send_to(path, b"x")
        sock.send(b"in step")
        sock.close()
        [message] = messages(read_until_closed(peer))
        assert message.content == b"in step"
        peer.close()


def test_the_first_id_of_a_source_is_ours_whatever_the_peer_wrote() -> None:
    with Socket() as server, connected(server.listen("tcp://127.0.0.1:0")) as peer:
        claim = pack_id(1) + pack_id(2) + pack_id(3)
        peer.sendall(frame(b"spoofed", source=claim))
        message = server.recv_msg(timeout=5)
        [pipe_id] = server.pipes
        assert message.source == pack_id(pipe_id) + claim
        assert message.pipe_id == pipe_id
        server.send_to(message.source, b"reply")
        [reply] = read_message(peer, Decoder(1))
        assert reply.content == b"reply"
        assert reply.destination == claim


def test_ids_are_random_and_told_from_those_that_never_were() -> None:
    ids = [next_pipe_id() for _ in range(5000)]
    assert len(set(ids)) == 5000
    assert all(0 < pipe_id < 1 << 31 for pipe_id in ids)
    assert all(map(was_pipe_id, ids))
    # Spread over all 31 bits, and in no order.
    assert len({pipe_id >> 25 for pipe_id in ids}) == 64
    assert sorted(ids) != ids
    others = [random.randrange(1, 1 << 31) for _ in range(5000)]
    assert sum(map(was_pipe_id, others)) < 50
    assert not was_pipe_id(0) and not was_pipe_id(1 << 31) and not was_pipe_id(-1)


@contextmanager
def ring(size: int) -> Iterator[list[Switch]]:
    """Join switches in a ring: the front of each is the only peer of the back of the next."""
    with ExitStack() as stack:
        switches = [Switch(stack.enter_context(Socket()), stack.enter_context(Socket())) for _ in range(size)]
        for switch, after in zip(switches, switches[1:] + switches[:1], strict=True):
            switch.front.dial(after.back.listen("tcp://127.0.0.1:0").address)
            after.back.wait_pipes(1, timeout=5)
        for switch in switches:
            stack.enter_context(switch)
        yield switches


@pytest.mark.parametrize("send_type", ["one", "all"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_message_in_a_ring_of_switches_dies_of_its_ttl(size: int, send_type: str) -> None:
    with ring(size) as switches, connected(switches[0].back.listen("tcp://127.0.0.1:0")) as peer:
        before = sum(len(sock.pipes) for switch in switches for sock in (switch.back, switch.front))
        peer.sendall(frame(b"round", TO_ALL if send_type == "all" else 0))
        wait_until(lambda: any("ttl" in switch.drops for switch in switches))
        forwarded = sum(switch.forwarded for switch in switches)
        # The peer's pipe is the first of the 16 that it comes by.
        assert DEFAULT_TTL - 1 <= forwarded <= DEFAULT_TTL * 2
        assert sum(len(sock.pipes) for switch in switches for sock in (switch.back, switch.front)) == before


def test_a_mesh_of_two_by_two_switches_comes_to_rest() -> None:
    """Every back dials every front: each to-all message doubles at each hop, and still ends."""
    with ExitStack() as stack:
        switches = [Switch(stack.enter_context(Socket()), stack.enter_context(Socket())) for _ in range(2)]
        for switch in switches:
            address = switch.front.listen("tcp://127.0.0.1:0").address
            for other in switches:
                other.back.dial(address)
        for switch in switches:
            switch.front.wait_pipes(2, timeout=5)
            stack.enter_context(switch)
        ttl = 7
        with connected(switches[0].front.listeners[0]) as peer:
            peer.sendall(frame(b"spread", TO_ALL, ttl=ttl))
            wait_until(lambda: sum(switch.drops.get("ttl", 0) for switch in switches) == 2 ** (ttl - 1))
            assert sum(switch.forwarded for switch in switches) == 2 ** (ttl - 1) - 1
            assert all(switch.drops == {"ttl": switch.drops["ttl"]} for switch in switches)


def test_a_to_all_message_does_not_come_back_to_the_peer_that_it_came_from() -> None:
    with switched() as (server, switch):
        [listener] = switch.front.listeners
        with connected(listener) as client, connected(listener) as other:
            request(other, server)
            client.sendall(frame(b"to all", TO_ALL))
            message = server.recv_msg(timeout=5)
            assert message.content == b"to all"
            assert len(path_ids(message.source)) == 2
            server.send_all(b"end")
            for peer in (client, other):
                assert [message.content for message in read_message(peer, Decoder(1))] == [b"end"]
