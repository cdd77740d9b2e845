"""Forwarding: a sender, a switch and a receiver in three processes, joined by tcp.

The clock runs from the sender's first call to the receiver's last return.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from .harness import Entry, Figure, Plan, Round, Row, address_of, started
from .oneway import one_way
from .worker import say

__all__ = ["rows"]

#: Content bytes -> messages in a round, full and part.
_COUNTS = {64: (100_000, 15_000), 1024: (60_000, 10_000), 65536: (6_000, 900)}
_QUICK_COUNT = 500


def rows() -> list[Row]:
    """Return the rows of this work."""
    return [_row(size) for size in _COUNTS]


def _row(size: int) -> Row:
    entries = [Entry(name, partial(_run, name, size), name) for name in ("gmultisocket", "pyzmq", "pynng")]
    figure = Figure("gmultisocket", "pyzmq", at_least=1.3)
    title = "through a switch one way by tcp, {size}"
    return Row(f"switch-{size}", title, "messages/s", True, entries, [figure])


@contextmanager
def _run(contestant: str, size: int, plan: Plan) -> Iterator[Round]:
    full, part = _COUNTS[size]
    count = plan.count(full, part=part, quick=_QUICK_COUNT)
    with address_of("tcp") as address, started(plan) as start:
        receiver = start("oneway:receive", contestant=contestant, address=address, count=count)
        switch = start("forwarding:forward", contestant=contestant, address=receiver.hear()["address"])
        sender = start("oneway:send", contestant=contestant, size=size, count=count)
        yield one_way(sender, receiver, switch.hear()["address"], count)


def forward(contestant: str, address: str) -> None:
    """Forward everything from a new address to the receiver's (worker)."""
    {"gmultisocket": _switch, "pyzmq": _proxy, "pynng": _device}[contestant](address)


def _switch(address: str) -> None:
    from gmultisocket import Socket, Switch

    back, front = Socket(), Socket()
    back.dial(address)
    switch = Switch(back, front)
    switch.start()
    say(address=front.listen("tcp://127.0.0.1:0").address)
    switch.join()


def _proxy(address: str) -> None:
    """Forward in C++: zmq.proxy never returns to Python."""
    import zmq

    context = zmq.Context()
    front, back = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    back.connect(address)
    front.bind("tcp://127.0.0.1:0")
    endpoint = front.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    say(address=endpoint.rstrip(b"\0").decode())
    zmq.proxy(front, back)


def _device(address: str) -> None:
    """Forward in C: nng_device never returns to Python, which pynng has no method for."""
    import pynng  # type: ignore[import-untyped]

    front, back = (
        pynng.Pair0(opener=pynng.lib.nng_pair0_open_raw, send_buffer_size=1000, recv_buffer_size=1000) for _ in range(2)
    )
    back.dial(address, block=True)
    say(address=f"tcp://{front.listen('tcp://127.0.0.1:0').local_address}")
    pynng.lib.nng_device(front.socket, back.socket)
