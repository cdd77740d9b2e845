"""A tunnel: a plain TCP service, reached by plain TCP clients through two switches.

    python3 examples/stream_proxy.py
"""

from contextlib import ExitStack

from gevent import socket
from gevent.server import StreamServer

from gmultisocket import Socket, Switch
from gmultisocket.protocol import Stream, StreamProxy


def shout(connection: socket.socket, _: object) -> None:
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data.upper())


def main() -> None:
    with ExitStack() as stack:
        service = StreamServer(("127.0.0.1", 0), shout)
        service.start()
        stack.callback(service.stop)

        # The Stream at the service, two switches, and the Stream at the clients.
        far, near = stack.enter_context(Stream()), stack.enter_context(Stream())
        address = far.listen("tcp://127.0.0.1:0").address
        for _ in range(2):
            back, front = stack.enter_context(Socket()), stack.enter_context(Socket())
            back.dial(address)
            address = front.listen("tcp://127.0.0.1:0").address
            stack.enter_context(Switch(back, front))
        near.dial(address)

        stack.enter_context(StreamProxy(far, f"tcp://127.0.0.1:{service.server_port}"))
        entrance = stack.enter_context(StreamProxy("tcp://127.0.0.1:0", near))
        host, port = entrance.address.removeprefix("tcp://").split(":")

        for words in (b"hello", b"is anybody there?"):
            with socket.create_connection((host, int(port)), timeout=5) as client:
                client.sendall(words)
                print(f"{words.decode()} -> {client.recv(4096).decode()}")
        print(f"{entrance.joined} connections went through the tunnel")


if __name__ == "__main__":
    main()
