"""python-socketio with its Redis manager, under gevent, for the rows of the Backplane (workers).

One process emits by a manager that only writes. In the other one a server has a client in the room, without a
connection: what is counted are the packets that the server would send to it. So both processes do all that lies
between ``emit`` and a WebSocket, as a Backplane does with a subscription.

The content is text: as bytes it would cost python-socketio a second packet.
"""

from __future__ import annotations

import time
from typing import Any

from ..worker import hear, say

__all__ = ["publish", "receive"]

_ROOM = "orders"
_BURST = 100
_CHANNEL = "socketio"


def publish(url: str, count: int, size: int) -> None:
    """Emit, and say how much processor time it took (worker)."""
    from gevent import monkey

    monkey.patch_all()
    import gevent
    import socketio

    manager = socketio.RedisManager(url, channel=_CHANNEL, write_only=True)
    content = "x" * size
    manager.emit("order", content, namespace="/", room="nobody")
    say()
    while True:
        hear(in_loop=True)
        begin, spent = time.monotonic(), time.process_time()
        for number in range(count):
            manager.emit("order", content, namespace="/", room=_ROOM)
            if number % _BURST == 0:
                gevent.sleep(0)
        say(begin=begin, spent=time.process_time() - spent)


def receive(url: str, count: int, size: int) -> None:
    """Receive, and say how much processor time it took (worker)."""
    from gevent import monkey

    monkey.patch_all()
    import redis
    import socketio
    from gevent.event import Event

    done = Event()
    arrived = 0
    length = 0

    class Server(socketio.Server):  # type: ignore[misc]
        """Counts the packets that it would send."""

        def _send_eio_packet(self, eio_sid: str, packet: Any) -> None:
            nonlocal arrived, length
            arrived += 1
            length = len(packet.data)
            if arrived % count == 0:
                done.set()

    manager = socketio.RedisManager(url, channel=_CHANNEL)
    server = Server(async_mode="gevent", client_manager=manager)
    manager.initialize()
    server.manager_initialized = True
    manager.enter_room(manager.connect("a client", "/"), "/", _ROOM)
    asking = redis.Redis.from_url(url)
    while dict(asking.pubsub_numsub(_CHANNEL)).get(_CHANNEL.encode()) != 1:
        time.sleep(0.01)
    say()
    while True:
        hear(in_loop=True)
        spent = time.process_time()
        done.wait()
        done.clear()
        # The packet is an array of JSON with the event's name around the content.
        assert length > size
        say(end=time.monotonic(), spent=time.process_time() - spent, size=size)
