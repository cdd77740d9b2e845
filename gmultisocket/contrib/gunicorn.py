"""Hooks for gunicorn: a worker that stops tells its peers first, and the master keeps a hub for its workers.

In the configuration file::

    from gmultisocket.contrib.gunicorn import hub_hooks, post_worker_init, worker_int

    on_starting, on_exit = hub_hooks("ipc:///run/app/hub")

or without one, and without a hub, ``gunicorn -c python:gmultisocket.contrib.gunicorn ...``. If your configuration has
hooks with these names already, call these from yours. gunicorn does not tell an application that its worker has to
stop, and kills both after the graceful timeout. With the hooks the pipes of every
:func:`~gmultisocket.contrib.wsgi.mount` are closed with 1001 at once, and the worker ends within a second or two.

gunicorn reads the configuration in the master, before gevent patches the worker. So what gevent patches is imported
inside the functions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["hub_hooks", "post_worker_init", "worker_int"]

#: Seconds between two checks whether the worker has to stop.
_CHECK_INTERVAL: Final = 0.1
#: A hub that has lived for less than these seconds is started again only after a pause of so many.
_SHORT_LIFE: Final = 5.0
_PAUSE: Final = 1.0


def post_worker_init(worker: Any) -> None:
    """Start to watch a worker, and stop its mounts when it has to stop: after SIGTERM, a reload or max_requests.

    Also starts the worker's reports to others; see :func:`~gmultisocket.contrib.reports.reports_in`. Does not block.
    """
    import gevent

    from . import wsgi

    wsgi.worker_stops_mounts = True
    # Only if the application has loaded it: most do without.
    reports = sys.modules.get(f"{__package__}.reports")
    if reports is not None:
        reports.start_all()
    # The greenlet belongs to the worker, and ends with it.
    worker.gmultisocket_greenlet = gevent.spawn(_watch, worker)


def worker_int(worker: Any) -> None:
    """Stop the mounts of a worker that has to stop at once, after Ctrl-C or SIGQUIT. Does not block."""
    from .wsgi import mounts

    for mounted in mounts():
        mounted.stop("the worker is stopping")


def _watch(worker: Any) -> None:
    import gevent

    while worker.alive:
        gevent.sleep(_CHECK_INTERVAL)
    worker_int(worker)


def hub_hooks(address: str, history: Sequence[str] = ()) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    """Return the hooks ``on_starting`` and ``on_exit`` of a master that keeps a hub.

    The hub starts before the workers, and ends after them. It lives through reloads and restarts of workers. If it
    dies, that is in gunicorn's log, and it is started again.

    Args:
        address: where it listens: the URL of the workers' :class:`~gmultisocket.Backplane`.
        history: as for the Backplane.

    Raises:
        AddressError: it is no address.
        BadTopic: a pattern of the history is not one.
    """
    from ..address import Address
    from ..protocol.subscriptions import check_pattern

    Address.parse(address)
    for pattern in history:
        check_pattern(pattern)

    def on_starting(server: Any) -> None:
        server.gmultisocket_hub = _HubKeeper(address, history, server.log)

    def on_exit(server: Any) -> None:
        # After a reload these are other hooks than those that have started it.
        keeper = getattr(server, "gmultisocket_hub", None)
        if keeper is not None:
            keeper.stop()

    return on_starting, on_exit


class _HubKeeper:
    """Keeps a hub, from a thread of gunicorn's master. It must not use gevent's functions, which need its loop.

    Args:
        address: of the hub.
        history: patterns of the topics whose publications it keeps.
        log: gunicorn's.
    """

    def __init__(self, address: str, history: Sequence[str], log: Any) -> None:
        from gevent.monkey import get_original

        from ..backplane.hublock import KEPT, path_of

        # Workers of this master start no hub of their own.
        os.environ[KEPT] = path_of(address)
        self._address = address
        self._history = history
        self._log = log
        self._clock: Callable[[], float] = get_original("time", "monotonic")
        allocate_lock = get_original("_thread", "allocate_lock")
        #: Held until the master stops.
        self._stopping = allocate_lock()
        self._stopping.acquire()
        #: Held while the thread lives.
        self._running = allocate_lock()
        self._running.acquire()
        self._process = self._start()
        get_original("_thread", "start_new_thread")(self._keep, ())

    def stop(self) -> None:
        """End the hub. Blocks until it has ended."""
        self._stopping.release()
        while not self._running.acquire(timeout=_CHECK_INTERVAL):
            self._process.terminate()

    def _start(self) -> Any:
        """Start the hub. Return its process.

        Raises:
            OSError: there is no memory for it, for example.
        """
        from subprocess import PIPE, Popen

        # The hub ends when its input does: with the master and all workers, even if nobody could end it.
        command = [sys.executable, "-m", "gmultisocket", "hub", self._address, "--until-eof"]
        command += [f"--history={pattern}" for pattern in self._history]
        # In a session of its own: Ctrl-C is for gunicorn, which ends the hub after the workers.
        return Popen(command, stdin=PIPE, start_new_session=True)

    def _keep(self) -> None:
        """Start the hub again whenever it ends (the thread)."""
        try:
            quick = False
            while True:
                started = self._clock()
                # The status is not known: gunicorn's master may have taken it.
                self._process.wait()
                self._process.stdin.close()
                if self._stopping.acquire(blocking=False):
                    return
                if not quick:
                    self._log.error("The hub at %s has ended: it starts again.", self._address)
                # One that cannot start is in the log once.
                quick = self._clock() - started < _SHORT_LIFE
                if quick and self._stopping.acquire(timeout=_PAUSE):
                    return
                if not self._start_again():
                    return
        finally:
            self._running.release()

    def _start_again(self) -> bool:
        """Start the hub, after some attempts if it must be. Return False if the master stops."""
        failed = False
        while True:
            try:
                self._process = self._start()
                return True
            except OSError as error:
                # Python itself may be missing for a moment, while it is replaced.
                if not failed:
                    self._log.error(
                        "The hub at %s cannot be started, and will be tried again: %s", self._address, error
                    )
                failed = True
            if self._stopping.acquire(timeout=_PAUSE):
                return False
