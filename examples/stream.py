"""Streams: many connections over one Socket, which are used like sockets; here by an HTTP client and a line server.

    python3 examples/stream.py
"""

import http.client

import gevent

from gmultisocket.protocol import Stream, StreamSocket


def count_words(sock: StreamSocket) -> None:
    with sock, sock.makefile("rw", encoding="utf-8") as file:
        for line in file:
            file.write(f"{len(line.split())} words\n")
            file.flush()


def answer_http(sock: StreamSocket) -> None:
    with sock, sock.makefile("rwb") as file:
        path = file.readline().split()[1]
        file.write(b"HTTP/1.0 200 OK\r\n\r\nthis is " + path)


def main() -> None:
    with Stream() as server, Stream() as client:
        client.dial(server.listen("tcp://127.0.0.1:0").address)

        with client.connect(timeout=5) as sock:
            counting = gevent.spawn(count_words, server.accept(timeout=5))
            with sock.makefile("rw", encoding="utf-8") as file:
                for line in ("the quick brown fox", "jumps"):
                    file.write(line + "\n")
                    file.flush()
                    print(f"{line!r} has {file.readline().strip()}")
        counting.get()

        browser = http.client.HTTPConnection("a-name-that-nobody-looks-up")
        browser.sock = client.connect(timeout=5)
        answering = gevent.spawn(answer_http, server.accept(timeout=5))
        browser.request("GET", "/a/page")
        print("HTTP over a stream:", browser.getresponse().read().decode())
        answering.get()
        print(f"{len(client.pipes)} pipe was enough for both")


if __name__ == "__main__":
    main()
