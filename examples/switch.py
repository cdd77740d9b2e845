"""A switch between a client and a service: it forwards messages, its middleware changes or drops them.

    python3 examples/switch.py

The client sends over tcp to the switch, which forwards over ipc to the service. Replies come back the same way.
"""

import tempfile
from contextlib import suppress

import gevent

from gmultisocket import Message, Socket, Switch
from gmultisocket.errors import BrokenPath, Timeout


def middleware(message: Message) -> Message | None:
    """Called for both directions; returns the message to forward, or None to drop it."""
    if message.content == b"spam":
        return None
    return message.replace(content=message.content.upper())


def serve(service: Socket) -> None:
    for message in service:
        reply = b"%s came through %d pipes" % (message.content, message.hops)
        with suppress(BrokenPath):  # the peer has disconnected, or does not read
            service.send_to(message.source, reply)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Socket() as service, Socket() as back, Socket() as front:
        service.listen(f"ipc://{folder}/service")
        serving = gevent.spawn(serve, service)
        back.dial(f"ipc://{folder}/service")
        address = front.listen("tcp://127.0.0.1:0").address
        with Switch(back, front, middleware) as switch, Socket() as client:
            client.dial(address)
            for content in (b"hello", b"spam", b"good bye"):
                client.send(content)
                try:
                    print(content.decode(), "->", client.recv(timeout=0.5).decode())
                except Timeout:
                    print(content.decode(), "-> no answer")
            print(switch.forwarded, "messages forwarded,", switch.drops["middleware"], "dropped by the middleware")
    serving.join()


if __name__ == "__main__":
    main()
