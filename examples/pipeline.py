"""Pipeline: a Push sends pieces of work, Pulls of different speed take them, and push the results to a last Pull.

    python3 examples/pipeline.py
"""

import gevent

from gmultisocket.protocol import Pull, Push

# Small buffers share the work more evenly: a piece that waits at a slow worker cannot go to a quick one.
SMALL = {
    "socket.send_queue_size": 1,
    "socket.recv_queue_size": 1,
    "transport.tcp.read_buffer": 4096,
    "transport.tcp.write_buffer": 4096,
}
PIECES = 300


def work(name: str, seconds: float, source: str, sink: str) -> None:
    with Pull(SMALL) as pull, Push() as push:
        push.dial(sink)
        pull.dial(source)
        for piece in pull:
            gevent.sleep(seconds)
            push.send(b"%s %d" % (name.encode(), sum(piece)))


def main() -> None:
    speeds = {"quick": 0.001, "steady": 0.004, "slow": 0.016}
    with Push(SMALL) as push, Pull() as pull:
        source = push.listen("tcp://127.0.0.1:0").address
        sink = pull.listen("tcp://127.0.0.1:0").address
        workers = [gevent.spawn(work, name, seconds, source, sink) for name, seconds in speeds.items()]
        push.wait_pipes(len(workers), timeout=5)

        # send() blocks while no worker can take more, so the source is never far ahead of the workers.
        sending = gevent.spawn(lambda: [push.send(bytes([number % 100]) * 1000) for number in range(PIECES)])
        results = [pull.recv(timeout=10).split() for _ in range(PIECES)]
        sending.get()
        for name in speeds:
            done = sum(worker == name.encode() for worker, _ in results)
            print(f"{name:7}{'#' * (done // 4)} {done}")
        print("total  ", sum(int(result) for _, result in results))
        gevent.killall(workers)


if __name__ == "__main__":
    main()
