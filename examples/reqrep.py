"""Request and reply: one Req asks, three Reps answer, and one of them closes while it has requests.

    python3 examples/reqrep.py
"""

import gevent

from gmultisocket.errors import HandlerFailed, PeerGone
from gmultisocket.protocol import Rep, Req


def square(content: bytes) -> bytes:
    """The handler: takes the content of a request and returns that of the reply. May block: others run meanwhile."""
    gevent.sleep(0.01)
    return b"%d" % int(content) ** 2


def main() -> None:
    with Req() as req:
        address = req.listen("tcp://127.0.0.1:0").address
        reps = [Rep(square, concurrency=4) for _ in range(3)]
        for rep in reps:
            rep.dial(address)
            rep.start()
        req.wait_pipes(3, timeout=5)

        print("one at a time:    ", [int(req.request(b"%d" % number)) for number in range(5)])

        requests = [req.request_async(b"%d" % number) for number in range(100)]
        print("100 at once:      ", sum(int(request.get(timeout=5)) for request in requests))

        # When a Rep closes, its open requests fail at once. With retry they are sent to another Rep instead: use it
        # only for requests that may be executed twice.
        requests = [req.request_async(b"%d" % number, retry=number % 2) for number in range(12)]
        reps[0].close(linger=0)
        outcomes = []
        for number, request in enumerate(requests):
            try:
                outcomes.append(int(request.get(timeout=5)) == number**2)
            except PeerGone:
                outcomes.append(None)
        print("a Rep that closes:", outcomes.count(True), "answered,", outcomes.count(None), "failed at once")

        # When a handler raises, its request fails at once. The Rep logs the error with its traceback; as nothing is
        # configured here, that goes to the standard error.
        try:
            req.request(b"no number")
        except HandlerFailed as error:
            print("a bad request:    ", error)

        for rep in reps[1:]:
            rep.close()


if __name__ == "__main__":
    main()
