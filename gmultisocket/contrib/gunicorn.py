"""Hooks for gunicorn: a worker that stops tells its peers first.

In the configuration file::

    from gmultisocket.contrib.gunicorn import post_worker_init, worker_int

or without one, ``gunicorn -c python:gmultisocket.contrib.gunicorn ...``. If your configuration has hooks with these
names already, call these from yours. gunicorn does not tell an application that its worker has to stop, and kills both
after the graceful timeout. With the hooks the pipes of every :func:`~gmultisocket.contrib.wsgi.mount` are closed with
1001 at once, and the worker ends within a second or two.

gunicorn reads the configuration in the master, before gevent patches the worker. So what gevent patches is imported
inside the functions.
"""

from __future__ import annotations

import sys
from typing import Any, Final

__all__ = ["post_worker_init", "worker_int"]

#: Seconds between two checks whether the worker has to stop.
_CHECK_INTERVAL: Final = 0.1


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
