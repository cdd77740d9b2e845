"""Raw pipes: peers that send plain bytes, such as nc and telnet, talk to a Socket.

    python3 examples/raw_pipe.py

The peer here is a plain TCP socket. To be the peer yourself, start this and connect with nc:

    gmultisocket cat --listen 'tcp://127.0.0.1:30002?connector.pipe.raw=true' --to last
    nc 127.0.0.1 30002
"""

from contextlib import suppress

import gevent
from gevent import socket as gevent_socket

from gmultisocket import Socket
from gmultisocket.errors import BrokenPath


def serve(sock: Socket) -> None:
    for message in sock:
        if not message.content:
            # The first message of a raw pipe is empty: a peer is there, and can be greeted.
            answer = b"welcome, stranger\n"
        else:
            # A message is the bytes of one read. It may end in the middle of a line.
            answer = b"you said " + message.content
        with suppress(BrokenPath):  # the peer has disconnected, or does not read
            sock.send_to(message.source, answer)


def main() -> None:
    with Socket() as sock:
        address = sock.listen("tcp://127.0.0.1:0", {"connector.pipe.raw": True}).address
        serving = gevent.spawn(serve, sock)
        host, port = address.removeprefix("tcp://").split(":")

        with gevent_socket.create_connection((host, int(port))) as peer, peer.makefile("rb") as lines:
            print("peer reads: ", lines.readline())
            peer.sendall(b"just bytes\n")
            print("peer reads: ", lines.readline())
            # send_all() reaches raw pipes, too; send() does not.
            sock.send_all(b"news for everybody\n")
            print("peer reads: ", lines.readline())
    serving.join()


if __name__ == "__main__":
    main()
