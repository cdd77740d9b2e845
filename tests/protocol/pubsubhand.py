"""A subscriber with a history by hand: a plain Socket that asks a Pub with positions, and reads what that answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gmultisocket import Socket
from gmultisocket.protocol import Pub
from gmultisocket.protocol.pubsubwire import Ask, Positioned, Replay, read_positioned, read_replay
from gmultisocket.wire import CONTROL, TO_ALL, Message

LONG = 20.0


@contextmanager
def hand(name: str, pub: Pub, **options: Any) -> Iterator[Socket]:
    """A plain Socket that is connected to a Pub. What the Pub asks it is taken off."""
    with Socket(options) as by_hand:
        by_hand.dial(pub.listen(f"inproc://{name}").address)
        assert by_hand.recv(LONG) == b"\x04"
        yield by_hand


def ask(by_hand: Socket, *asks: Ask) -> None:
    for each in asks:
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=each.encode()))
        by_hand.send_msg(Message(CONTROL | TO_ALL, content=b"\x01" + each.pattern.encode()))


def answers(by_hand: Socket, count: int) -> list[Replay | Positioned | bytes]:
    """Return what a Pub sends: 0x06 and 0x07 decoded, others as they are."""
    found: list[Replay | Positioned | bytes] = []
    for _ in range(count):
        message = by_hand.recv_msg(LONG)
        kind = message.content[:1] if message.flags & CONTROL else b""
        if kind == b"\x06":
            found.append(read_replay(message.content))
        elif kind == b"\x07":
            found.append(read_positioned(message.content))
        else:
            found.append(message.content)
    return found
