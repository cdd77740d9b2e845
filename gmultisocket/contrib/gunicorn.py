"""Hooks for gunicorn: peers hear that a worker goes away before it does.

In the configuration file::

    from gmultisocket.contrib.gunicorn import post_worker_init, worker_int

or without one, ``gunicorn -c python:gmultisocket.contrib.gunicorn ...``; where there are such hooks already, call these
from there. gunicorn tells an application nothing when its worker is to stop, and kills both when the graceful timeout
is over. With the hooks the pipes of every :func:`~gmultisocket.contrib.wsgi.mount` are closed with 1001 at once, and
the worker is done in a second or two.

What gevent patches in a worker is not imported before that: the configuration is read in the master.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["post_worker_init", "worker_int"]

#: How often it is looked whether the worker is to stop, in seconds.
_STEP: Final = 0.1


def post_worker_init(worker: Any) -> None:
    """Watch a worker, and stop what is mounted in it when it is to stop: by SIGTERM, a reload, max_requests.

    Does not block.
    """
    import gevent

    # The greenlet is the worker's, and ends with it.
    worker.gmultisocket_watcher = gevent.spawn(_watch, worker)


def worker_int(worker: Any) -> None:
    """Stop what is mounted in a worker that is to stop at once: by Ctrl-C, or SIGQUIT. Does not block."""
    from .wsgi import mounts

    for mounted in mounts():
        mounted.stop("the worker is stopping")


def _watch(worker: Any) -> None:
    import gevent

    while worker.alive:
        gevent.sleep(_STEP)
    worker_int(worker)
