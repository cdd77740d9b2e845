"""Peers that guess paths through a switch: for themselves, under made-up sources, and from behind another switch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from gmultisocket import Message, Socket, Switch, switch
from gmultisocket.core.pipes.ids import was_pipe_id
from gmultisocket.errors import Closed, NoPeers, Timeout
from gmultisocket.testing import wait_until
from gmultisocket.wire import TO_ALL, TO_DEST, pack_id, path_ids

#: The most guesses that a switch looks up for one pipe, whatever the peer writes.
MOST = 600


def made_up() -> Iterator[bytes]:
    """Yield pipe ids that this process never issued."""
    while True:
        number = random.randrange(1, 1 << 31)
        if not was_pipe_id(number):
            yield pack_id(number)


@contextmanager
def switched(address: str) -> Iterator[tuple[Socket, Switch, str]]:
    """Yield a server behind a switch, the switch, and the address of its front."""
    with Socket() as back, Socket() as front, Socket() as server, Switch(back, front) as joined:
        server.dial(back.listen("inproc://guessing-back").address)
        yield server, joined, front.listen(address).address


def guess(peer: Socket, count: int, sources: Iterator[bytes], way: bytes = b"") -> None:
    """Send guesses, each under the next one of some sources.

    Args:
        way: the known beginning of the path, up to the switch at which the id is guessed.
    """
    [pipe] = peer.pipes.values()
    with suppress(Closed, NoPeers, Timeout):
        for source, target in itertools.islice(zip(sources, made_up(), strict=False), count):
            path = (way or pipe.path) + target
            peer.send_msg(Message(TO_DEST, source=source, destination=path, content=b"forged"), timeout=5)


def looked_up(joined: Switch, count: int) -> int:
    """Wait until all guesses have arrived, and return how many the switch has tried."""
    wait_until(lambda: sum(joined.drops.values()) == count, timeout=20)
    assert set(joined.drops) <= {"BrokenPath", "guessing"}
    return joined.drops["BrokenPath"]


KINDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "one": lambda: itertools.repeat(pack_id(77)),
    "few": lambda: itertools.cycle(pack_id(number) for number in range(1, 20)),
    "many": made_up,
    "deep": lambda: (b"".join(itertools.islice(made_up(), random.randrange(1, 40))) for _ in itertools.count()),
    "tree": lambda: (b"".join(pack_id(random.randrange(1, 30)) for _ in range(6)) for _ in itertools.count()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_made_up_sources_do_not_let_a_peer_guess_on(kind: str, address: str) -> None:
    with switched(address) as (server, joined, where), Socket() as guesser, Socket() as victim:
        victim.dial(where)
        victim.send(b"hello")
        way_back = server.recv_msg(timeout=5).source
        guesser.dial(where)
        guess(guesser, 1500, KINDS[kind]())
        assert looked_up(joined, 1500) < MOST
        # Even the right path has no effect now.
        [pipe] = guesser.pipes.values()
        source = pack_id(77) if kind in ("one", "few") else next(KINDS[kind]())
        right = Message(TO_DEST, source=source, destination=pipe.path + way_back[:4], content=b"forged")
        guesser.send_msg(right)
        # The pipe stays open, as others may use it, and what is not sent along a path goes on.
        guesser.send(b"asks")
        assert server.recv(timeout=5) == b"asks"
        server.send_to(way_back, b"reply")
        assert victim.recv(timeout=5) == b"reply"
        assert not victim.queued


def test_a_guesser_that_connects_again_gets_no_more_guesses(address: str) -> None:
    with switched(address) as (_, joined, where):
        # The first one begins the window; the others are new in it.
        for connection in range(30):
            with Socket() as guesser:
                guesser.dial(where)
                guess(guesser, 100, made_up())
                looked_up(joined, (connection + 1) * 100)
        assert joined.drops["BrokenPath"] < MOST + 1100 + 100


@contextmanager
def tree(levels: int) -> Iterator[tuple[list[Switch], str]]:
    """Yield switches in a row, the innermost first; and the address of the outermost one's front."""
    with ExitStack() as stack:
        switches: list[Switch] = []
        for level in range(levels):
            back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
            if switches:
                back.dial(f"inproc://guessing-{level - 1}")
            else:
                back.listen("inproc://guessing-back")
            front.listen(f"inproc://guessing-{level}")
            switches.append(stack.enter_context(Switch(back, front)))
        yield switches, f"inproc://guessing-{levels - 1}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", [2, 3, 5])
def test_a_guesser_behind_other_switches_silences_only_itself(levels: int, kind: str) -> None:
    with tree(levels) as (switches, where), Socket() as client, Socket() as guesser, Socket() as neighbour:
        client.dial(switches[0].back.listeners[0].address)
        for peer in (guesser, neighbour):
            peer.dial(where)
            peer.send(b"hello")
        ways = [client.recv_msg(timeout=5).source for _ in range(2)]
        client.send_to(ways[0], b"welcome")
        # The guesser knows the way to the innermost switch, and guesses the id of a peer there.
        way = guesser.recv_msg(timeout=5).source[:-4]
        assert len(path_ids(way)) == levels
        sources = (source[: 4 * 3] for source in KINDS[kind]())
        guess(guesser, 1500, sources, way)
        wait_until(lambda: sum(switches[0].drops.values()) == 1500, timeout=30)
        assert switches[0].drops["BrokenPath"] < MOST
        client.send_to(ways[1], b"still there?")
        request = neighbour.recv_msg(timeout=5)
        neighbour.send_to(request.source, b"yes")
        assert client.recv(timeout=5) == b"yes"
        assert all(len(joined.back.pipes) and len(joined.front.pipes) for joined in switches)


def test_who_was_cut_off_may_send_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(switch, "monotonic", lambda: now[0])
    with switched("inproc://guessing-front") as (server, joined, where), Socket() as guesser, Socket() as other:
        for peer in (guesser, other):
            peer.dial(where)
            peer.send(b"hello")
        source, target = (server.recv_msg(timeout=5).source for _ in range(2))
        del source
        guess(guesser, 100, KINDS["one"]())
        assert looked_up(joined, 100) == 16
        server.send_to(target, b"let me know")
        [pipe] = guesser.pipes.values()
        [way] = [pipe.path for pipe in joined.back.pipes.values()]
        told = Message(TO_DEST, source=pack_id(77), destination=pipe.path + way, content=b"told")
        guesser.send_msg(told)
        wait_until(lambda: joined.drops["guessing"] == 85)
        now[0] += 61
        guesser.send_msg(told)
        assert server.recv(timeout=5) == b"told"
        assert joined.drops["guessing"] == 85


# The ttl


@pytest.mark.parametrize("value", [0, -1, 256])
def test_max_ttl_has_a_range(value: int) -> None:
    with Socket() as back, Socket() as front, pytest.raises(ValueError, match="from 1 to 255"):
        Switch(back, front, max_ttl=value)


@pytest.mark.parametrize(("max_ttl", "sent", "arrives"), [(64, 255, 63), (64, 64, 62), (64, 20, 18), (255, 255, 253)])
def test_a_switch_bounds_the_ttl_of_what_it_forwards(address: str, max_ttl: int, sent: int, arrives: int) -> None:
    with Socket() as back, Socket() as front, Socket() as server, Socket() as client:
        with Switch(back, front, max_ttl=max_ttl):
            server.dial(back.listen("inproc://guessing-back").address)
            client.dial(front.listen(address).address)
            client.send_msg(Message(ttl=sent, content=b"far"))
            assert server.recv_msg(timeout=5).ttl == arrives


def test_a_message_that_goes_round_between_switches_is_forwarded_as_often_as_max_ttl_allows() -> None:
    """Three switches in a ring: the peer writes the largest ttl that there is."""
    forwarded = {}
    for max_ttl in (8, 255):
        with ExitStack() as stack:
            switches = [
                Switch(stack.enter_context(Socket()), stack.enter_context(Socket()), max_ttl=max_ttl) for _ in range(3)
            ]
            for number, joined in enumerate(switches):
                joined.front.dial(switches[number - 1].back.listen(f"inproc://guessing-ring-{number}").address)
            peer = stack.enter_context(Socket())
            peer.dial(switches[0].back.listen("inproc://guessing-entry").address)
            for joined in switches:
                stack.enter_context(joined)
            peer.send_msg(Message(TO_ALL, ttl=255, content=b"round"))
            wait_until(lambda: any(joined.drops for joined in switches), timeout=20)  # noqa: B023
            forwarded[max_ttl] = sum(joined.forwarded for joined in switches)
    assert forwarded[8] < 20
    assert forwarded[255] > 200
