"""Jobs: a queue gives each job to one worker, and to another one if that leaves.

* Who talks to whom: a JobQueue with any number of Workers, directly or through
  switches.
* On the wire: by each new pipe a Worker sends a control message: a byte 1, and a byte
  with the number of jobs that it takes at a time. A job is a 4-byte number and the
  content, sent to the source of that message. Its answer is a control message to the
  job's source: a byte 2 (done) or 3 (failed), and the 4-byte number.
* What is lost, and when: nothing while the queue lives. A job may be done twice: its
  worker has left, or its answer was lost. A job that has failed is not given again. A
  worker that hangs keeps its jobs until its pipe closes. A queue does not see that a
  worker behind a switch has left. What makes no sense is dropped and counted: as
  ``garbage``, ``late`` (an answer about a job that the worker does not have) or
  ``overflow`` (too many workers).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

import gevent

from gmultisocket import Message, Pipe
from gmultisocket.errors import BrokenPath, Closed, Timeout
from gmultisocket.options import OptionValues, define
from gmultisocket.protocol import Deadline, Outbox, ProtocolBase, WaitList
from gmultisocket.wire import CONTROL, SEND_TYPE_MASK, TO_DEST, first_id

AT_ONCE = define(
    "protocol.jobs.at_once", int, 1, minimum=1, maximum=255, unit="messages",
    doc="Jobs that a Worker takes at a time.",
)  # fmt: skip
MAX_WAITING = define(
    "protocol.jobs.max_waiting", int, 1000, minimum=1, unit="messages",
    doc="Jobs that wait before put() blocks.",
)  # fmt: skip
READY, DONE, FAILED = b"\1", b"\2", b"\3"
ID_SIZE = 4
MAX_WORKERS = 10_000


class JobQueue(ProtocolBase):
    """Gives each job to one Worker."""

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "put()"}
    families = ("protocol.jobs",)

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        #: Jobs that are done, jobs that have failed, and how often one was given again.
        self.done = self.failed = self.given_again = 0
        self._last_id = 0
        #: The jobs that wait, each with its number in front; and those that workers have, by
        #: source and number.
        self._waiting: deque[bytes] = deque()
        self._given: dict[tuple[bytes, bytes], bytes] = {}
        #: The sources of all workers; and one entry for each job that a worker can take now.
        self._workers: set[bytes] = set()
        self._free: deque[bytes] = deque()
        # Callers of put() and of wait_done(). The condition is what they wait for.
        self._putters = WaitList(gevent.get_hub(), self._has_room)
        self._finishers = WaitList(gevent.get_hub(), self._all_done)
        self._outbox: Outbox = Outbox(self._core, self._spawn)
        self._core.on_message(self._on_message)
        self._core.on_pipe(self._on_pipe)

    def put(self, content: bytes, timeout: float | None = None) -> None:
        """Add a job. Blocks while ``protocol.jobs.max_waiting`` jobs wait for a worker.

        Raises:
            Timeout: too many jobs waited all the time. It was not added.
            MessageTooLong: with the 4 bytes of its number it is too long.
            Closed: the queue is closed.
        """
        self._check_open()
        self._last_id += 1
        number = (self._last_id % 2**32).to_bytes(ID_SIZE)
        job = self._core.check_content(number + content)
        deadline = Deadline(timeout)
        while not self._has_room():
            if not self._putters.wait(deadline.left()):
                raise Timeout("put", timeout)
            self._check_open()
        self._waiting.append(job)
        self._give()

    def wait_done(self, timeout: float | None = None) -> None:
        """Block until no job waits and no worker has one. Raises Timeout, and Closed."""
        deadline = Deadline(timeout)
        self._check_open()
        while not self._all_done():
            if not self._finishers.wait(deadline.left()):
                raise Timeout("wait_done", timeout)
            self._check_open()

    def _has_room(self) -> bool:
        return len(self._waiting) < self.options.get(MAX_WAITING)

    def _all_done(self) -> bool:
        return not self._waiting and not self._given

    def _give(self) -> None:
        """Send jobs to workers that are free."""
        while self._waiting and self._free:
            source, job = self._free.popleft(), self._waiting.popleft()
            number = job[:ID_SIZE]
            self._given[source, number] = job
            message = Message(TO_DEST, destination=source, content=job)
            self._outbox.post(self.pipes[first_id(source)], number, message)
        self._putters.wake()
        self._finishers.wake()

    def _on_message(self, message: Message) -> bool:
        source, kind, rest = message.source, message.content[:1], message.content[1:]
        if message.pipe_id not in self.pipes:
            # It was read before this side closed the pipe.
            self._drop(message, "late")
        elif message.flags & ~SEND_TYPE_MASK != CONTROL:
            self._drop(message, "garbage")
        elif kind == READY and len(rest) == 1 and source not in self._workers:
            if len(self._workers) < MAX_WORKERS:
                self._workers.add(source)
                self._free.extend([source] * rest[0])
            else:
                self._drop(message, "overflow")
        elif kind in (DONE, FAILED) and len(rest) == ID_SIZE:
            if self._given.pop((source, rest), None) is not None:
                self.done += kind == DONE
                self.failed += kind == FAILED
                self._free.append(source)
            else:
                self._drop(message, "late")
        else:
            self._drop(message, "garbage")
        self._give()
        return True

    def _on_pipe(self, kind: str, pipe: Pipe) -> None:
        """Take back the jobs of workers that have left, the oldest first again."""
        if kind == "remove":
            self._workers = {each for each in self._workers if first_id(each) != pipe.id}
            self._free = deque(each for each in self._free if first_id(each) != pipe.id)
            lost = [key for key in self._given if first_id(key[0]) == pipe.id]
            self._waiting.extendleft(self._given.pop(key) for key in reversed(lost))
            self.given_again += len(lost)
            self._give()

    def _own_stats(self) -> dict[str, int]:
        return {
            "jobs_waiting": len(self._waiting),
            "jobs_given": len(self._given),
            "jobs_done": self.done,
            "jobs_failed": self.failed,
            "jobs_given_again": self.given_again,
        }

    def _stop(self, deadline: Deadline) -> int:
        """Wait until all jobs are done. Return how many are not."""
        self._putters.wake_all()
        while not self._all_done() and self._finishers.wait(deadline.left()):
            pass
        return len(self._waiting) + len(self._given)

    def _ended(self) -> None:
        self._finishers.wake_all()


class Job:
    """A job, as :meth:`Worker.take` returns it."""

    def __init__(self, worker: Worker, message: Message) -> None:
        self._worker = worker
        self._id, self.content, self.source = message.content[:ID_SIZE], message.content[ID_SIZE:], message.source

    def done(self) -> bool:
        """Tell the queue. Blocks while the pipe is full. Return False if the queue, or the way to it, has gone."""
        return self._answer(DONE)

    def fail(self) -> bool:
        """Tell the queue that the job has failed, and is not to be given again. As :meth:`done`."""
        return self._answer(FAILED)

    def _answer(self, kind: bytes) -> bool:
        content = kind + self._id
        answer = Message(CONTROL | TO_DEST, destination=self.source, content=content)
        try:
            self._worker.socket.send_msg(answer)
        except BrokenPath:
            return False
        return True


class Worker(ProtocolBase):
    """Takes jobs: by :meth:`take`, or by :meth:`start` with a handler."""

    fixed = {"socket.no_recv": False, "socket.no_send": False}
    instead = {"send": "job.done()", "recv": "take()"}
    families = ("protocol.jobs",)

    def __init__(self, options: OptionValues | None = None) -> None:
        super().__init__(options)
        self._outbox: Outbox = Outbox(self._core, self._spawn)
        self._core.on_pipe(self._on_pipe)

    def _on_pipe(self, kind: str, pipe: Pipe) -> None:
        if kind == "add":
            ready = READY + self.options.get(AT_ONCE).to_bytes(1)
            self._outbox.post(pipe, "ready", Message(CONTROL, content=ready))

    def take(self, timeout: float | None = None) -> Job:
        """Return the next job. Blocks until there is one. Raises as ``Socket.recv_msg``."""
        return Job(self, self._next(timeout, min_size=ID_SIZE))

    def start(self, handler: Callable[[bytes], object]) -> None:
        """Call ``handler(content)`` for each job, for ``protocol.jobs.at_once`` of them at the same time.

        Does not block. If the handler raises, the error is logged, and the job has failed. ``close()`` ends handlers
        that run; the queue gives their jobs to others.
        """
        self._check_open()
        for _ in range(self.options.get(AT_ONCE)):
            self._spawn(self._work, handler)

    def _work(self, handler: Callable[[bytes], object]) -> None:
        with suppress(Closed):
            while True:
                job = self.take()
                try:
                    handler(job.content)
                except (Exception, gevent.Timeout) as error:
                    pipe_id = first_id(job.source)
                    self._report("a handler of a Worker failed", error, pipe_id=pipe_id)
                    job.fail()
                else:
                    job.done()


def main() -> None:
    results = []

    def square(content: bytes) -> None:
        results.append(int(content) ** 2)

    with JobQueue() as queue, Worker() as lazy, Worker({AT_ONCE: 2}) as worker:
        address = queue.listen("tcp://127.0.0.1:0").address
        for number in range(10):
            queue.put(b"%d" % number)
        lazy.dial(address)
        print("taken, and never done:", lazy.take(timeout=5).content.decode())
        worker.start(square)
        worker.dial(address)
        lazy.close()
        queue.wait_done(timeout=5)
        print("results:", *sorted(results))
        print(queue.done, "jobs done,", queue.given_again, "of them given again")


if __name__ == "__main__":
    main()
